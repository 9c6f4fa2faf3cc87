// SPDX-License-Identifier: Apache-2.0
// Messages to a service manager: sd_notify(3). Each is one datagram.
#ifndef REUSEPORTCTL_NOTIFY_HPP
#define REUSEPORTCTL_NOTIFY_HPP

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// Sends messages to the service manager in $NOTIFY_SOCKET. Does nothing without one. A message
/// that cannot be sent is kept in unsent(), and is otherwise no error.
class Notify {
 public:
  Notify();

  /// @param main_process  the main process of the unit from now on, if not 0
  void ready(const std::string& status, pid_t main_process = 0) const;
  /// RELOADING=1, with the time that systemd 253 needs.
  void reloading() const;
  void stopping() const;
  void status(const std::string& text) const;

  /// Makes @p pid the main process of the unit.
  void main_process(pid_t pid) const;
  /// Puts descriptors into the descriptor store of the unit. Replaces those of an earlier call.
  void store(const std::vector<int>& fds) const;
  /// Waits until the service manager has read all messages so far, at most 30 s.
  void flush() const;

  /// Why the first message that was not sent was not; empty if all were.
  [[nodiscard]] const std::string& unsent() const { return unsent_; }

  /// Sends WATCHDOG=1 twice in each $WATCHDOG_USEC (sd_watchdog_enabled(3)). Call it after waits of
  /// at most beat().
  void alive();
  [[nodiscard]] std::chrono::milliseconds beat() const { return beat_; }

 private:
  void send(const std::string& state, const std::vector<int>& fds = {}) const;
  std::string path_;
  mutable std::string unsent_;
  std::chrono::milliseconds beat_ = std::chrono::milliseconds::max();
  Clock::time_point next_beat_ = Clock::time_point::max();
};

/// The sockets that the service manager has passed to us (sd_listen_fds(3)). No child inherits
/// them.
[[nodiscard]] std::vector<Fd> passed_sockets();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_NOTIFY_HPP
