// SPDX-License-Identifier: Apache-2.0
// The service unit (systemd) that this process runs in.
#ifndef REUSEPORTCTL_UNIT_HPP
#define REUSEPORTCTL_UNIT_HPP

#include <vector>

#include "failure.hpp"
#include "host/process.hpp"

namespace reuseport::ctl {

/// The servers of this unit, as of a reload: the main process ($MAINPID), which is the last one,
/// and processes of the same cgroup that an interrupted reload has left: they have a listener in a
/// group of the main process. Only the topmost process of each process tree. Stays in the network
/// namespace of the main process. Empty without $MAINPID: the unit starts.
[[nodiscard]] Expected<std::vector<Process>> servers_of_unit();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_UNIT_HPP
