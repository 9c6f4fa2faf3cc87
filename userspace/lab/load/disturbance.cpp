// SPDX-License-Identifier: Apache-2.0
#include "load/disturbance.hpp"

#include <cstdlib>
#include <fstream>

namespace lab {

MachineSample sample_machine() {
  MachineSample sample;
  sample.monotonic_ns = now_ns();
  sample.suspended_ns = now_ns(CLOCK_BOOTTIME) - sample.monotonic_ns;
  sample.wall_ns = now_ns(CLOCK_REALTIME) - sample.monotonic_ns;
  // proc(5): cpu user nice system idle iowait irq softirq steal; guest time is part of user.
  std::ifstream stat{"/proc/stat"};
  std::string word;
  stat >> word;
  constexpr int fields = 8;
  for (int i = 0; i < fields; ++i) {
    std::uint64_t ticks = 0;
    stat >> ticks;
    sample.total += ticks;
    sample.steal = ticks;
  }
  return sample;
}

std::string disturbance(const RunRecord& run, const LoadResult& load,
                        const DisturbanceLimits& limits) {
  std::string why;
  const auto say = [&why](const std::string& text) { why += (why.empty() ? "" : ", ") + text; };
  if (const auto late = load.late.quantile(0.99); late > limits.late_p99_ns) {
    say(fmt::format("one connection in a hundred began {:.0f} ms late or later", to_ms(late)));
  }
  if (load.longest_stall_ns > limits.stall_ns) {
    say(fmt::format("the load generator stood still for {:.1f} s",
                    to_seconds(load.longest_stall_ns)));
  }
  if (run.planned_ns > 0 &&
      to_seconds(run.elapsed_ns) > to_seconds(run.planned_ns) * limits.overrun + 1) {
    say(fmt::format("the run took {:.0f} s beside its drains instead of {:.0f} s",
                    to_seconds(run.elapsed_ns), to_seconds(run.planned_ns)));
  }
  if (const auto slept = run.after.suspended_ns - run.before.suspended_ns;
      std::llabs(slept) > limits.clock_step_ns) {
    say(fmt::format("the machine was suspended for {:.1f} s", to_seconds(slept)));
  } else if (const auto step = run.after.wall_ns - run.before.wall_ns;
             std::llabs(step) > limits.clock_step_ns) {
    say(fmt::format("the clock was set by {:+.1f} s", to_seconds(step)));
  }
  const auto total = static_cast<double>(run.after.total - run.before.total);
  const auto steal = static_cast<double>(run.after.steal - run.before.steal);
  if (total > 0 && steal / total > limits.steal) {
    say(fmt::format("the hypervisor took {:.0f} % of the CPU time", 100 * steal / total));
  }
  return why;
}

}  // namespace lab
