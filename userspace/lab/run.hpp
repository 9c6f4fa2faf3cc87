// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "commands.hpp"
#include "experiment.hpp"
#include "kernel.hpp"

namespace lab {

/// A method on a link that could not be measured here, and why.
struct Unmeasured {
  Method method;
  LinkSpec link;
  std::string why;
};

/// What `run` has to show for it: one line for each expectation that was checked.
struct Check {
  bool held = false;
  std::string text;
};

/// Adds one outcome to another of the same method: counts, latency and what was really done.
void add(Outcome& sum, const Outcome& part);

/// Adds outcomes of one method up: counts, and latency over all links.
Outcome total(const std::vector<Outcome>& outcomes, Method method);

/// Judges by what was measured, and only on kernels where an expectation applies:
/// - `close` lost connections, or the work measures nothing;
/// - `listen-off`, where the option is in the kernel: really drained each time, lost none, nothing
///   reached a generation after it was settled;
/// - its time from drain to may close is at most one round trip plus 50 ms on links without loss;
/// - its p99.9 connect latency is that of any other method or lower: not higher by `latency_slack`
///   in more rounds than a fair coin would show in `significance` of all runs. Where there are too
///   few rounds for that, by `latency_slack`. A method that lost a thousandth of its connections
///   has no p99.9.
/// The last two in the open loop only: a closed loop saturates the machine, and then times are
/// those of its run queue.
std::vector<Check> judge(const KernelAnswer& kernel, const std::vector<Outcome>& outcomes);

/// Two figures of one run within this factor are equal: scheduling noise of a busy machine.
inline constexpr double latency_slack = 1.10;
inline constexpr double significance = 0.01;

}  // namespace lab
