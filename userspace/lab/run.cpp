// SPDX-License-Identifier: Apache-2.0
#include "run.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <random>

#include "clock.hpp"
#include "picture.hpp"
#include "report.hpp"
#include "terminal.hpp"

namespace lab {
namespace {

/// Restarts and connections are totals of a method; each link gets its share, and of that each
/// round.
ExperimentSpec share(const RunOptions& options, Method method, std::size_t link, unsigned round) {
  auto spec = options.spec;
  const auto links = options.links.size();
  spec.method = method;
  spec.link = options.links[link];
  const auto part = [&](std::uint64_t total) {
    const auto of_link = total / links + (link < total % links ? 1 : 0);
    return of_link / options.rounds + (round < of_link % options.rounds ? 1 : 0);
  };
  spec.restarts = static_cast<unsigned>(part(options.spec.restarts));
  spec.connections = part(options.spec.connections);
  spec.duration_ns = options.spec.duration_ns / static_cast<std::int64_t>(links * options.rounds);
  spec.seed = options.spec.seed + round;
  return spec;
}

/// All methods on one link, so often as there are rounds.
class LinkRun {
 public:
  LinkRun(const RunOptions& options, std::size_t link)
      : options_(options), link_(link), order_(options.methods), random_(options.spec.seed) {}

  void run(std::vector<Outcome>& outcomes, std::vector<Unmeasured>& unmeasured) {
    for (unsigned round = 0; round < options_.rounds; ++round) {
      if (options_.rounds > 1) {
        std::shuffle(order_.begin(), order_.end(), random_);
      }
      for (const Method method : order_) {
        const auto spec = share(options_, method, link_, round);
        if (spec.restarts > 0 && !gaps_.contains(method) && !interrupted()) {
          measure(spec);
        }
      }
    }
    for (const Method method : options_.methods) {  // as they were named
      if (const auto found = sums_.find(method); found != sums_.end()) {
        outcomes.push_back(std::move(found->second));
      }
      if (const auto gap = gaps_.find(method); gap != gaps_.end()) {
        unmeasured.push_back({method, options_.links[link_], gap->second});
      }
    }
  }

 private:
  void measure(const ExperimentSpec& spec) {
    const ProgressLine progress;
    auto outcome = run_experiment(spec, [&](const Progress& now) { progress.show(spec, now); });
    progress.clear();
    if (interrupted()) {
      return;
    }
    const auto name = info(spec.method).name;
    if (!outcome) {
      fmt::print(stderr, "{} on {}: not measured: {}\n", name, spec.link.name(),
                 outcome.error().text);
      gaps_[spec.method] = outcome.error().text;
      return;
    }
    fmt::print(stderr, "{} on {}: {} restarts, {} connections, {} lost, {:.0f} s\n", name,
               spec.link.name(), outcome->restarts, outcome->load.connections, outcome->load.lost(),
               static_cast<double>(outcome->elapsed_ns) / static_cast<double>(one_second));
    const auto [sum, first] = sums_.try_emplace(spec.method, *outcome);
    if (!first) {
      add(sum->second, *outcome);
    }
  }

  const RunOptions& options_;
  std::size_t link_;
  std::vector<Method> order_;
  std::mt19937_64 random_;
  std::map<Method, Outcome> sums_;
  std::map<Method, std::string> gaps_;
};

bool write_or_say(const std::string& path, const std::string& text) {
  if (path.empty()) {
    return true;
  }
  auto written = write_file(path, text);
  if (!written) {
    fmt::print(stderr, "restart-lab: {}\n", written.error().text);
  }
  return written.has_value();
}

}  // namespace

int run_methods(const RunOptions& options) {
  const auto kernel = preflight(options.expect);
  if (!kernel) {
    return kernel.error();
  }

  std::vector<Outcome> outcomes;
  std::vector<Unmeasured> unmeasured;
  for (std::size_t link = 0; link < options.links.size() && !interrupted(); ++link) {
    LinkRun{options, link}.run(outcomes, unmeasured);
  }

  fmt::print("\n{}", table(outcomes, true));
  if (options.links.size() > 1) {
    std::vector<Outcome> totals;
    for (const Method method : options.methods) {
      auto sum = total(outcomes, method);
      if (sum.restarts > 0) {
        totals.push_back(std::move(sum));
      }
    }
    fmt::print("\nall links together\n{}", table(totals, true));
  }
  fmt::print("\n");
  const auto checks = judge(*kernel, outcomes);
  for (const auto& check : checks) {
    fmt::print("{}: {}\n", check.held ? "held" : "NOT HELD", check.text);
  }
  for (const auto& gap : unmeasured) {
    fmt::print("NOT MEASURED: {} on {}: {}\n", info(gap.method).name, gap.link.name(), gap.why);
  }

  const auto json = document(*kernel, options.output.command, outcomes, unmeasured, checks);
  bool written = write_or_say(options.output.json, json.dump(2) + "\n");
  if (!options.output.svg.empty()) {
    auto picture = draw(outcomes);
    if (!picture) {
      fmt::print(stderr, "restart-lab: {}\n", picture.error().text);
    }
    written = picture && write_or_say(options.output.svg, *picture) && written;
  }
  if (interrupted()) {
    return exit_interrupted;
  }
  if (std::any_of(checks.begin(), checks.end(), [](const Check& c) { return !c.held; })) {
    return exit_not_held;
  }
  return unmeasured.empty() && written ? exit_held : exit_not_measured;
}

}  // namespace lab
