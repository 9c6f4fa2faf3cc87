// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <random>

#include "process.hpp"
#include "run.hpp"

namespace lab {
namespace {

/// Growth after the first two rounds that does not count as a leak.
constexpr std::int64_t growth_allowed_kb = std::int64_t{16} * 1024;
/// stdin, stdout, stderr, control, epoll and the directory being read: all that an old generation
/// may have open when it ends.
constexpr int descriptors_allowed = 6;

}  // namespace

ExperimentSpec soak_round(const ExperimentSpec& base, std::uint64_t seed) {
  static constexpr std::array links{"loopback", "1ms",     "20ms",    "100ms",
                                    "1ms/1%",   "20ms/1%", "100ms/1%"};
  std::mt19937_64 random{seed};
  const auto between = [&](std::uint64_t low, std::uint64_t high) {
    return low + random() % (high - low + 1);
  };
  ExperimentSpec spec = base;
  spec.seed = seed;
  spec.link = *parse_link(links.at(between(0, links.size() - 1)));
  spec.listeners = static_cast<int>(between(1, 16));
  spec.restarts = static_cast<unsigned>(between(3, 12));
  spec.duration_ns = static_cast<std::int64_t>(between(15, 40)) * one_second;
  const bool open = between(0, 1) == 0;
  spec.concurrency = static_cast<unsigned>(between(8, 128));
  spec.rate = open ? base.rate : 0;
  spec.random_restarts = true;
  spec.churn = between(0, 2) != 0;
  spec.faults = between(0, 1) == 0;
  return spec;
}

std::string LeakWatch::after(const Measurement& round) {
  const auto now = own_usage();
  ++rounds_;
  if (rounds_ <= 2) {
    own_kb_ = now.rss_kb;
    server_kb_ = std::max(server_kb_, round.most_rss_kb);
  }
  if (round.most_descriptors > descriptors_allowed) {
    return fmt::format("an old generation ended with {} descriptors open", round.most_descriptors);
  }
  if (now.descriptors != before_.descriptors) {
    return fmt::format("the lab has {} descriptors open, {} before", now.descriptors,
                       before_.descriptors);
  }
  if (round.most_rss_kb > server_kb_ + growth_allowed_kb) {
    return fmt::format("a server had {} KB, {} KB in the first rounds", round.most_rss_kb,
                       server_kb_);
  }
  if (now.rss_kb > own_kb_ + growth_allowed_kb) {
    return fmt::format("the lab grew from {} to {} KB", own_kb_, now.rss_kb);
  }
  return {};
}

}  // namespace lab
