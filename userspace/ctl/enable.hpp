// SPDX-License-Identifier: Apache-2.0
// enable and disable: SO_REUSEPORT_LISTEN_OFF on a stock kernel, by BPF.
#ifndef REUSEPORTCTL_ENABLE_HPP
#define REUSEPORTCTL_ENABLE_HPP

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "failure.hpp"
#include "output.hpp"

namespace reuseport::ctl {

struct EnableOptions {
  std::string cgroup;        ///< a cgroup2 directory; empty: that of pid
  std::string netns;         ///< path of a namespace, or a PID; empty: that of pid, or the caller's
  std::optional<pid_t> pid;  ///< use the cgroup and namespace of this process
  bool large_groups = false;
  bool udp_flows = false;
  std::optional<std::chrono::milliseconds> idle;  ///< of a flow
  std::optional<std::uint32_t> flows_max;
};

[[nodiscard]] Done enable_command(const EnableOptions& options, const Output& out);
[[nodiscard]] Done disable_command(bool force, const Output& out);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_ENABLE_HPP
