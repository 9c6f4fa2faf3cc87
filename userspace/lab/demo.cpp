// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include "clock.hpp"
#include "commands.hpp"
#include "report.hpp"
#include "terminal.hpp"

namespace lab {
namespace {

constexpr const char* drained_word = "drained";

/// One line for each thing that had to hold and did not.
std::vector<std::string> judge_demo(const KernelAnswer& kernel, const Outcome& closed,
                                    const Outcome& drained) {
  std::vector<std::string> wrong;
  const auto require = [&wrong](bool held, std::string otherwise) {
    if (!held) {
      wrong.push_back(std::move(otherwise));
    }
  };
  const auto wanted = closed.spec.restarts;
  require(closed.restarts == wanted && drained.restarts == wanted, "not every restart was made");
  require(closed.load.lost() > 0,
          "plain close lost nothing, so this run measures nothing: raise --rate or --restarts");
  const auto found = drained.really.find(drained_word);
  const auto by_option = found == drained.really.end() ? 0 : found->second;
  if (kernel.supported) {
    require(drained.load.lost() == 0,
            fmt::format("drain lost {} connections", drained.load.lost()));
    require(by_option == wanted,
            fmt::format("only {} of {} restarts were really drained", by_option, wanted));
    require(drained.load.wrong_generation == 0,
            fmt::format("{} connections reached a generation after it was off",
                        drained.load.wrong_generation));
  } else {
    require(by_option == 0 && !drained.really.empty(),
            "the kernel lacks the option, but the drain did not report its fallback");
  }
  return wrong;
}

}  // namespace

int run_demo(const DemoOptions& options) {
  const auto kernel = preflight(options.expect);
  if (!kernel) {
    return kernel.error();
  }

  std::vector<Outcome> outcomes;
  for (const Method method : {Method::close, Method::listen_off}) {
    auto spec = options.spec;
    spec.method = method;
    const ProgressLine progress;
    auto outcome = run_experiment(spec, [&](const Progress& now) { progress.show(spec, now); });
    progress.clear();
    if (!outcome) {
      fmt::print(stderr, "restart-lab: {}: {}\n", info(method).name, outcome.error().text);
      return interrupted() ? exit_interrupted : exit_not_measured;
    }
    outcomes.push_back(std::move(*outcome));
  }

  const auto& spec = options.spec;
  fmt::print(
      "link:   {} round trip, {}\nload:   {} new connections a second, seed {}; "
      "{} listeners a generation; timeout {:g} s\n\n{}\n",
      spec.link.name(), outcomes.front().wire, spec.rate, spec.seed, spec.listeners,
      static_cast<double>(spec.timeout_ns) / static_cast<double>(one_second),
      table(outcomes, false));
  if (!options.output.json.empty()) {
    const auto text = document(*kernel, options.output.command, outcomes, {}, {}).dump(2) + "\n";
    if (auto written = write_file(options.output.json, text); !written) {
      fmt::print(stderr, "restart-lab: {}\n", written.error().text);
      return exit_not_measured;
    }
  }

  const auto wrong = judge_demo(*kernel, outcomes[0], outcomes[1]);
  for (const auto& line : wrong) {
    fmt::print("NOT HELD: {}\n", line);
  }
  if (!wrong.empty()) {
    return exit_not_held;
  }
  if (kernel->supported) {
    fmt::print("held: close lost {}, drain lost 0\n", outcomes[0].load.lost());
  } else {
    fmt::print(
        "held: close lost {}; the option is not in this kernel, the fallback lost {} and "
        "said so\n",
        outcomes[0].load.lost(), outcomes[1].load.lost());
  }
  return exit_held;
}

}  // namespace lab
