// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "load/load.hpp"

namespace lab {

/// What can tell, looked at before and after a run, that the machine was not the run's own.
struct MachineSample {
  std::int64_t monotonic_ns = 0;
  std::int64_t suspended_ns = 0;  ///< CLOCK_BOOTTIME ahead of CLOCK_MONOTONIC
  std::int64_t wall_ns = 0;       ///< CLOCK_REALTIME ahead of CLOCK_MONOTONIC
  std::uint64_t steal = 0;        ///< /proc/stat, of all CPUs: what the hypervisor took ...
  std::uint64_t total = 0;        ///< ... of all ticks
};

MachineSample sample_machine();

/// From where on a run is disturbed. Each is far above what a busy machine that keeps up shows, and
/// far below what costs a connection that nothing else would have cost.
struct DisturbanceLimits {
  std::int64_t late_p99_ns = 100 * one_ms;  ///< one connection in a hundred begun so late
  std::int64_t stall_ns = one_second;       ///< the clients' thread once did nothing for so long
  double overrun = 2;                       ///< times the planned duration, drains not counted
  std::int64_t clock_step_ns = 500 * one_ms;
  double steal = 0.10;  ///< of all CPU time
};

/// One run: what its clients and the machine say about it.
struct RunRecord {
  std::int64_t planned_ns = 0;  ///< 0: it has no planned duration
  std::int64_t elapsed_ns = 0;  ///< without the drains, which take the time their method needs
  MachineSample before;
  MachineSample after;
};

/// Why the losses and latencies of a run cannot be booked to the method: in words, or empty when
/// nothing disturbed it. Pure, so that a jump of the clock can be tested without one.
std::string disturbance(const RunRecord& run, const LoadResult& load,
                        const DisturbanceLimits& limits);

}  // namespace lab
