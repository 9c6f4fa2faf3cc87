// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_LOAD_DISTURBANCE_HPP
#define LAB_LOAD_DISTURBANCE_HPP

#include <cstdint>
#include <string>

#include "load/load.hpp"

namespace lab {

/// State of the machine, read before and after a run, that reveals a disturbance.
struct MachineSample {
  std::int64_t monotonic_ns = 0;
  std::int64_t suspended_ns = 0;  ///< CLOCK_BOOTTIME ahead of CLOCK_MONOTONIC
  std::int64_t wall_ns = 0;       ///< CLOCK_REALTIME ahead of CLOCK_MONOTONIC
  std::uint64_t steal = 0;        ///< /proc/stat, of all CPUs: what the hypervisor took ...
  std::uint64_t total = 0;        ///< ... of all ticks
};

MachineSample sample_machine();

/// Limits beyond which a run is disturbed. Each is far above what a busy machine shows that keeps
/// up, and far below what would cost a connection by itself.
struct DisturbanceLimits {
  std::int64_t late_p99_ns = 100 * one_ms;  ///< one connection in a hundred began this late
  std::int64_t stall_ns = one_second;       ///< the clients' thread once stalled for this long
  double overrun = 2;                       ///< times the planned duration, not counting drains
  std::int64_t clock_step_ns = 500 * one_ms;
  double steal = 0.10;  ///< of all CPU time
};

/// One run, as its clients and the machine saw it.
struct RunRecord {
  std::int64_t planned_ns = 0;  ///< 0: it has no planned duration
  std::int64_t elapsed_ns = 0;  ///< without the drains, which take as long as their method needs
  MachineSample before;
  MachineSample after;
};

/// Why the losses and latencies of a run cannot be attributed to the method; empty if nothing
/// disturbed it. Pure, so that a clock jump can be tested without one.
std::string disturbance(const RunRecord& run, const LoadResult& load,
                        const DisturbanceLimits& limits);

}  // namespace lab

#endif  // LAB_LOAD_DISTURBANCE_HPP
