// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_EXPERIMENT_HPP
#define LAB_EXPERIMENT_HPP

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base.hpp"
#include "load/disturbance.hpp"
#include "load/histogram.hpp"
#include "load/load.hpp"
#include "method.hpp"
#include "net/link.hpp"

namespace lab {

/// One method on one link under one load.
struct ExperimentSpec {
  RestartMethod method = RestartMethod::close;
  bool udp = false;  ///< UDP flows instead of TCP connections; open loop, and a link without loss
  LinkSpec link;
  LinkDevice device = LinkDevice::automatic;
  unsigned restarts = 20;
  int listeners = 4;
  double rate = 300;              ///< open loop, connections per second; 0: closed loop
  unsigned concurrency = 64;      ///< closed loop
  std::int64_t duration_ns = 0;   ///< restarts are spread over this time ...
  std::uint64_t connections = 0;  ///< ... or, if not 0, over this many connections
  std::int64_t timeout_ns = 0;    ///< of one connection
  std::uint64_t seed = 1;
  bool random_restarts = false;  ///< at random instants drawn from the seed, not evenly spread
  bool churn = false;            ///< see run_churn()
  /// Now and then a newcomer in STANDBY is killed before the restart, and the old generation is
  /// stopped for a moment before it drains. Neither may cost a connection.
  bool faults = false;
  DisturbanceLimits limits;
};

inline constexpr std::int64_t lost_too_many = std::numeric_limits<std::int64_t>::max();

/// What one experiment, or the sum of several, has measured. Times in nanoseconds.
struct Measurement {
  ExperimentSpec spec;
  std::string device;     ///< Link::device(); empty in a sum over several links
  std::string disturbed;  ///< see disturbance(); if not empty, the figures below say nothing about
                          ///< the method
  LoadResult load;
  unsigned restarts = 0;
  /// p99.9 of connect, one for each round that was added up; `lost_too_many` if a thousandth of the
  /// connections or more were lost, because then the thousandth slowest was never connected.
  std::vector<std::int64_t> p999;
  Histogram may_close;  ///< from "drain" to "may close", one per restart
  std::map<std::string, unsigned>
      outcomes;            ///< outcomes of the old generations' drains, with the number of restarts
  std::uint64_t left = 0;  ///< connections a drain gave up on, as it reported
  std::uint64_t cut_short = 0;  ///< accepted connections the old process gave up on
  std::int64_t elapsed_ns = 0;
  std::int64_t most_descriptors = 0;  ///< an old generation or the churn had open at its end
  std::int64_t most_rss_kb = 0;       ///< and the most memory of one
  std::uint64_t stray = 0;            ///< connections that reached the churn
  std::uint64_t churn_changes = 0;
  unsigned dead_newcomers = 0;
  unsigned stalls = 0;
};

/// The progress of an experiment.
struct Progress {
  unsigned restarts;
  std::uint64_t connections;
  std::uint64_t lost;
};
using OnProgress = std::function<void(const Progress&)>;

/// Sets up link and servers, runs the load over the restarts and removes everything again, also on
/// error. An error means that nothing was measured, and says why in one line.
Result<Measurement> run_experiment(const ExperimentSpec& spec, const OnProgress& on_progress);

/// Makes run_experiment() give up at the next poll (SIGINT, SIGTERM). Async-signal-safe.
void interrupt_experiments() noexcept;
[[nodiscard]] bool interrupted() noexcept;

}  // namespace lab

#endif  // LAB_EXPERIMENT_HPP
