// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <random>

#include "clock.hpp"
#include "commands.hpp"
#include "report.hpp"
#include "run.hpp"
#include "terminal.hpp"
#include "usage.hpp"

namespace lab {
namespace {

/// Growth of the lab's own memory over all rounds after the first two that is no leak yet.
constexpr std::int64_t growth_allowed_kb = 16 * 1024;
/// stdin, stdout, stderr, control, epoll and the directory being read: all an old generation may
/// still have open when it says goodbye.
constexpr int descriptors_allowed = 6;

/// Everything about a round follows from its seed, so that one number replays it.
ExperimentSpec round_spec(const SoakOptions& options, std::uint64_t seed) {
  static constexpr std::array links{"loopback", "1ms",     "20ms",    "100ms",
                                    "1ms/1%",   "20ms/1%", "100ms/1%"};
  std::mt19937_64 random{seed};
  const auto between = [&](std::uint64_t low, std::uint64_t high) {
    return low + random() % (high - low + 1);
  };
  ExperimentSpec spec = options.spec;
  spec.method = Method::listen_off;
  spec.seed = seed;
  spec.link = *parse_link(links.at(between(0, links.size() - 1)));
  spec.listeners = static_cast<int>(between(1, 16));
  spec.restarts = static_cast<unsigned>(between(3, 12));
  spec.duration_ns = static_cast<std::int64_t>(between(15, 40)) * one_second;
  const bool open = between(0, 1) == 0;
  spec.concurrency = static_cast<unsigned>(between(8, 128));
  spec.rate = open ? options.spec.rate : 0;
  spec.random_restarts = true;
  spec.churn = between(0, 2) != 0;
  spec.faults = between(0, 1) == 0;
  return spec;
}

/// What is wrong with a round; empty: nothing.
std::string verdict(const Outcome& outcome, const Usage& before, const Usage& after) {
  const auto& load = outcome.load;
  if (load.lost() > 0) {
    return fmt::format("lost {}: {} refused, {} reset, {} timed out, {} unanswered", load.lost(),
                       load.refused, load.reset, load.timed_out, load.unanswered + load.garbled);
  }
  if (load.wrong_generation > 0) {
    return fmt::format("{} connections reached a generation after it was settled",
                       load.wrong_generation);
  }
  if (outcome.stray > 0) {
    return fmt::format("{} connections reached a socket that was never ON", outcome.stray);
  }
  const auto drained = outcome.really.find("drained");
  if (drained == outcome.really.end() || drained->second != outcome.restarts) {
    return fmt::format("not every restart was really drained: {} left, {}", outcome.left,
                       really(outcome));
  }
  if (outcome.most_descriptors > descriptors_allowed) {
    return fmt::format("an old generation ended with {} descriptors open",
                       outcome.most_descriptors);
  }
  if (after.descriptors != before.descriptors) {
    return fmt::format("the lab has {} descriptors open, {} before the round", after.descriptors,
                       before.descriptors);
  }
  return {};
}

std::string describe(const ExperimentSpec& spec) {
  return fmt::format("{}, {} listeners, {}{}{}", spec.link.name(), spec.listeners,
                     spec.rate > 0 ? fmt::format("{:g}/s", spec.rate)
                                   : fmt::format("{} clients", spec.concurrency),
                     spec.churn ? ", churn" : "", spec.faults ? ", faults" : "");
}

}  // namespace

int run_soak(const SoakOptions& options) {
  const auto kernel = preflight(Expect::supported);
  if (!kernel) {
    return kernel.error();
  }
  const auto until = now_ns() + options.duration_ns;
  std::vector<Outcome> outcomes;
  std::string wrong;
  std::int64_t base_kb = 0;
  std::int64_t base_server_kb = 0;
  std::int64_t last_kb = 0;
  std::uint64_t changes = 0;
  unsigned dead_newcomers = 0;
  unsigned stalls = 0;
  auto seed = options.spec.seed;
  for (; wrong.empty() && !interrupted() && now_ns() < until; ++seed) {
    const auto spec = round_spec(options, seed);
    const auto before = own_usage();
    const ProgressLine progress;
    auto outcome = run_experiment(spec, [&](const Progress& now) { progress.show(spec, now); });
    progress.clear();
    if (interrupted()) {
      break;
    }
    const auto after = own_usage();
    if (!outcome) {
      wrong = "not measured: " + outcome.error().text;
    } else {
      wrong = verdict(*outcome, before, after);
      changes += outcome->churn_changes;
      dead_newcomers += outcome->dead_newcomers;
      stalls += outcome->stalls;
      outcomes.push_back(std::move(*outcome));
      const auto& done = outcomes.back();
      fmt::print(
          "seed {}: {}: {} restarts, {} connections, {} lost; lab {} KB, {} descriptors; "
          "servers {} KB, {} descriptors at most\n",
          seed, describe(spec), done.restarts, done.load.connections, done.load.lost(),
          after.rss_kb, after.descriptors, done.most_rss_kb, done.most_descriptors);
      std::fflush(stdout);
    }
    last_kb = after.rss_kb;
    if (outcomes.size() == 2) {
      base_kb = after.rss_kb;
      base_server_kb = std::max(outcomes[0].most_rss_kb, outcomes[1].most_rss_kb);
    }
    if (wrong.empty() && base_server_kb > 0 &&
        outcomes.back().most_rss_kb > base_server_kb + growth_allowed_kb) {
      wrong = fmt::format("a server had {} KB, {} KB in the first rounds",
                          outcomes.back().most_rss_kb, base_server_kb);
    }
    if (wrong.empty() && base_kb > 0 && last_kb > base_kb + growth_allowed_kb) {
      wrong = fmt::format("the lab grew from {} to {} KB", base_kb, last_kb);
    }
    if (!wrong.empty()) {
      fmt::print(
          "STOPPED: seed {} ({}): {}\nreplay: restart-lab soak --seed {} --hours 0.001 "
          "--rate {:g}\n",
          seed, describe(spec), wrong, seed, options.spec.rate);
    }
  }
  const auto sum = total(outcomes, Method::listen_off);
  fmt::print(
      "{} rounds, {} restarts, {} connections, {} lost, {} after settled; churn: {} changes; "
      "faults: {} dead newcomers, {} stalls; memory of the lab: {} KB after two rounds, {} "
      "KB at the end\n",
      outcomes.size(), sum.restarts, sum.load.connections, sum.load.lost(),
      sum.load.wrong_generation, changes, dead_newcomers, stalls, base_kb, last_kb);
  if (!options.output.json.empty()) {
    const std::vector<Check> checks{{wrong.empty(), wrong.empty() ? "nothing lost" : wrong}};
    const auto text =
        document(*kernel, options.output.command, outcomes, {}, checks).dump(2) + "\n";
    if (auto written = write_file(options.output.json, text); !written) {
      fmt::print(stderr, "restart-lab: {}\n", written.error().text);
      return exit_not_measured;
    }
  }
  if (!wrong.empty()) {
    return exit_not_held;
  }
  return interrupted() ? exit_interrupted : exit_held;
}

}  // namespace lab
