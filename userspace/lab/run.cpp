// SPDX-License-Identifier: Apache-2.0
#include "run.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <random>

#include <reuseport/probe.hpp>

#include "report/report.hpp"

namespace lab {
namespace {

KernelAnswer ask_kernel() {
  const auto result = reuseport::probe();
  KernelAnswer answer;
  answer.supported = result.support == reuseport::Support::supported;
  answer.word = reuseport::to_string(result.support);
  std::replace(answer.word.begin(), answer.word.end(), '_', ' ');
  if (result.support == reuseport::Support::not_in_kernel) {
    answer.word = "not in this kernel";
  } else {
    answer.in_doubt = !result.supported();
  }
  answer.why = result.why();
  return answer;
}

bool is_expected(Expect expect, const KernelAnswer& kernel) {
  switch (expect) {
    case Expect::supported: return kernel.supported;
    case Expect::not_in_kernel: return !kernel.supported && !kernel.in_doubt;
    case Expect::anything: break;
  }
  return true;
}

/// A progress line on stderr, overwritten each time; silent if stderr is not a terminal.
class ProgressLine {
 public:
  explicit ProgressLine(const ExperimentSpec& spec)
      : spec_(spec), shown_(isatty(STDERR_FILENO) == 1) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ProgressLine(ProgressLine&&) = delete;
  ProgressLine& operator=(ProgressLine&&) = delete;
  ~ProgressLine() {
    if (shown_) {
      fmt::print(stderr, "\r\033[K");
    }
  }
  void show(const Progress& progress) const {
    if (shown_) {
      fmt::print(stderr, "\r\033[K{} on {}: restart {} of {}, {} {}, {} lost",
                 info(spec_.method).name, spec_.link.name(), progress.restarts, spec_.restarts,
                 progress.connections, what_is_begun(spec_), progress.lost);
      std::fflush(stderr);
    }
  }

 private:
  const ExperimentSpec& spec_;
  bool shown_;
};

/// Restarts and connections are totals per method, divided among the links and rounds.
ExperimentSpec share(const RunOptions& options, RestartMethod method, std::size_t link,
                     unsigned round) {
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

/// Link by link; on each link the methods take turns.
std::vector<ExperimentSpec> grid(const RunOptions& options) {
  std::vector<ExperimentSpec> specs;
  for (std::size_t link = 0; link < options.links.size(); ++link) {
    auto order = options.methods;
    std::mt19937_64 random{options.spec.seed};
    for (unsigned round = 0; round < options.rounds; ++round) {
      if (options.rounds > 1) {
        std::shuffle(order.begin(), order.end(), random);
      }
      for (const RestartMethod method : order) {
        if (const auto spec = share(options, method, link, round); spec.restarts > 0) {
          specs.push_back(spec);
        }
      }
    }
  }
  return specs;
}

/// One run: experiments, their results, and the report.
class Run {
 public:
  Run(const RunOptions& options, KernelAnswer kernel)
      : options_(options), kernel_(std::move(kernel)) {}

  int all() {
    if (options_.soak_ns > 0) {
      soak();
    } else {
      for (const auto& spec : grid(options_)) {
        if (!interrupted() && !has_gap(spec)) {
          if (auto measured = measure(spec)) {
            keep(*measured);
          }
        }
      }
      std::erase_if(measured_, [this](const Measurement& m) { return has_gap(m.spec); });
    }
    return report();
  }

 private:
  [[nodiscard]] bool has_gap(const ExperimentSpec& spec) const {
    return std::any_of(gaps_.begin(), gaps_.end(), [&](const Gap& gap) {
      return gap.method == spec.method && gap.link.name() == spec.link.name();
    });
  }

  /// One experiment, repeated while it is disturbed. Empty: it was not measured, or was
  /// interrupted.
  std::optional<Measurement> measure(const ExperimentSpec& spec) {
    Gap gap{spec.method, spec.link, {}, false};
    for (unsigned attempt = 1; attempt <= options_.attempts && !interrupted(); ++attempt) {
      auto result = [&] {
        const ProgressLine line{spec};
        return run_experiment(spec, [&](const Progress& now) { line.show(now); });
      }();
      if (interrupted()) {
        break;
      }
      if (result && result->disturbed.empty()) {
        return std::move(*result);
      }
      gap.disturbed = result.has_value();
      gap.why = result ? "disturbed: " + result->disturbed : result.error().text;
      fmt::print(stderr, "{} on {}: not measured: {}{}\n", info(spec.method).name, spec.link.name(),
                 gap.why, gap.disturbed && attempt < options_.attempts ? "; again" : "");
      if (!result) {
        break;
      }
    }
    if (!gap.why.empty()) {
      gaps_.push_back(std::move(gap));
    }
    return std::nullopt;
  }

  /// The rounds of a method on a link make one row.
  void keep(const Measurement& round) {
    fmt::print(stderr, "{} on {}: {} restarts, {} {}, {} lost, {:.0f} s\n",
               info(round.spec.method).name, round.spec.link.name(), round.restarts,
               round.load.connections, what_is_begun(round.spec), round.load.lost(),
               to_seconds(round.elapsed_ns));
    const auto row = std::find_if(measured_.begin(), measured_.end(), [&](const Measurement& m) {
      return m.spec.method == round.spec.method && m.spec.link.name() == round.spec.link.name();
    });
    if (row == measured_.end()) {
      measured_.push_back(round);
    } else {
      add(*row, round);
    }
  }

  /// Rounds until the time is up or a check fails. A disturbed round does not count.
  void soak() {
    const auto until = now_ns() + options_.soak_ns;
    LeakWatch leaks;
    for (auto seed = options_.spec.seed; !interrupted() && now_ns() < until; ++seed) {
      const auto spec = soak_round(options_.spec, seed);
      const auto round = measure(spec);
      if (!round) {
        if (gaps_.empty() || !gaps_.back().disturbed) {
          return;
        }
        continue;
      }
      measured_.push_back(*round);
      fmt::print(
          "seed {}: {}, {} listeners, {}{}{}: {} restarts, {} connections, {} lost; {} KB, "
          "{} descriptors at most\n",
          seed, spec.link.name(), spec.listeners,
          spec.rate > 0 ? fmt::format("{:g}/s", spec.rate)
                        : fmt::format("{} clients", spec.concurrency),
          spec.churn ? ", churn" : "", spec.faults ? ", faults" : "", round->restarts,
          round->load.connections, round->load.lost(), round->most_rss_kb, round->most_descriptors);
      std::fflush(stdout);
      checks_ = judge(kernel_, {*round}, false);
      if (auto leak = leaks.after(*round); !leak.empty()) {
        checks_.push_back({false, leak});
      }
      if (std::any_of(checks_.begin(), checks_.end(), [](const Check& c) { return !c.passed; })) {
        fmt::print("STOPPED; replay: restart-lab soak --seed {} --hours 0.001 --rate {:g}\n", seed,
                   options_.spec.rate);
        return;
      }
    }
  }

  int report() {
    if (options_.soak_ns > 0) {
      fmt::print("{}\n", describe_soak(measured_));
    } else if (!measured_.empty()) {
      fmt::print("\n{}\n{}", describe_load(options_.spec), table(measured_, !options_.brief));
      if (options_.links.size() > 1) {
        fmt::print("\nall links together\n{}", table(totals(measured_), !options_.brief));
      }
      fmt::print("\n");
      checks_ = judge(kernel_, measured_, !options_.brief && !options_.spec.udp);
    }
    for (const auto& check : checks_) {
      fmt::print("{}: {}\n", check.passed ? "passed" : "FAILED", check.text);
    }
    for (const auto& gap : gaps_) {
      fmt::print("NOT MEASURED: {} on {}: {}\n", info(gap.method).name, gap.link.name(), gap.why);
    }
    bool written = true;
    if (!options_.json.empty()) {
      const auto text =
          document(kernel_, options_.command, measured_, gaps_, checks_).dump(2) + "\n";
      if (auto done = write_file(options_.json, text); !done) {
        fmt::print(stderr, "restart-lab: {}\n", done.error().text);
        written = false;
      }
    }
    if (interrupted()) {
      return exit_interrupted;
    }
    if (std::any_of(checks_.begin(), checks_.end(), [](const Check& c) { return !c.passed; })) {
      return exit_failed;
    }
    // A soak continues after a disturbed round.
    const bool complete =
        !measured_.empty() && std::all_of(gaps_.begin(), gaps_.end(), [this](const Gap& gap) {
          return gap.disturbed && options_.soak_ns > 0;
        });
    return complete && written ? exit_passed : exit_not_measured;
  }

  const RunOptions& options_;
  KernelAnswer kernel_;
  std::vector<Measurement> measured_;
  std::vector<Gap> gaps_;
  std::vector<Check> checks_;
};

}  // namespace

int run(const RunOptions& options) {
  auto kernel = ask_kernel();
  fmt::print("kernel: SO_REUSEPORT_LISTEN_OFF is {} ({})\n", kernel.word, kernel.why);
  std::fflush(stdout);
  if (!is_expected(options.expect, kernel)) {
    fmt::print(stderr, "restart-lab: this is not the expected kernel: {}\n", kernel.word);
    return exit_unexpected;
  }
  if (geteuid() != 0) {
    fmt::print(stderr, "restart-lab: creates network namespaces; run it as root\n");
    return exit_permission;
  }
  auto chosen = options;
  if (chosen.methods.empty()) {
    chosen.methods = {RestartMethod::close,
                      kernel.supported ? RestartMethod::listen_off : RestartMethod::option_bpf};
    if (chosen.spec.udp) {
      chosen.methods.push_back(RestartMethod::option_flows);
    }
  }
  return Run{chosen, std::move(kernel)}.all();
}

}  // namespace lab
