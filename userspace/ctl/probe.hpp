// SPDX-License-Identifier: Apache-2.0
// probe: what this kernel supports.
#ifndef REUSEPORTCTL_PROBE_HPP
#define REUSEPORTCTL_PROBE_HPP

#include "failure.hpp"
#include "output.hpp"

namespace reuseport::ctl {

/// Prints what works here. Exit::unsupported if the option does not, after printing.
/// @param behaviour  also tests on loopback that an OFF listener gets nothing
[[nodiscard]] Expected<Exit> probe_command(bool behaviour, const Output& out);

/// net.ipv4.tcp_migrate_req of this network namespace; false if the kernel lacks it.
[[nodiscard]] bool migrates_requests();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_PROBE_HPP
