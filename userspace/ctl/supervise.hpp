// SPDX-License-Identifier: Apache-2.0
// restart: a supervisor for any server whose listeners have SO_REUSEPORT.
//
//   SIGHUP --> new CMD beside the old one --> its listeners are ON on every address of the old
//          --> --ready says yes --> drain the old --> TERM --> it ends
//
// If a step fails, the old one goes on as before and the newcomer is ended.
#ifndef REUSEPORTCTL_SUPERVISE_HPP
#define REUSEPORTCTL_SUPERVISE_HPP

#include <chrono>
#include <csignal>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "drain.hpp"
#include "failure.hpp"
#include "output.hpp"

namespace reuseport::ctl {

struct RestartOptions {
  std::vector<std::string> command;
  std::string ready;                                ///< run by /bin/sh until it says 0
  std::chrono::milliseconds ready_timeout{30'000};  ///< from the start of CMD
  std::chrono::milliseconds drain_timeout{30'000};
  std::chrono::milliseconds stop_timeout{90'000};  ///< after the signal; then SIGKILL. 0: never
  int signal = SIGTERM;
  DrainMethod method = DrainMethod::automatic;
  bool require = false;  ///< as for drain, and the three below
  std::string before_signal;
  std::optional<std::size_t> connections;
  std::optional<std::size_t> flows;
  bool allow_shared = false;    ///< also sockets that another process holds
  bool allow_last = false;      ///< also addresses that the new server does not serve
  bool reuseport_only = false;  ///< listeners without SO_REUSEPORT end with their server
  bool unit = false;            ///< start or replace the server of this systemd unit, then return
  bool dry_run = false;         ///< only print what would be run, and how it would drain
};

/// Runs CMD until it ends or a signal asks to stop. Returns the exit code: the status of CMD, 128
/// plus the signal if one killed it, 0 when asked to stop. With RestartOptions::unit, returns when
/// CMD serves and is the main process of the unit: 0, or Exit::undrained or Exit::deadline if the
/// old server ended undrained.
[[nodiscard]] Expected<int> supervise(const RestartOptions& options, const Output& out);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SUPERVISE_HPP
