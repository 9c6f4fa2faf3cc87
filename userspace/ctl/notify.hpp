// SPDX-License-Identifier: Apache-2.0
// The service manager's side of Type=notify: sd_notify(3), which is one datagram.
#ifndef REUSEPORTCTL_NOTIFY_HPP
#define REUSEPORTCTL_NOTIFY_HPP

#include <chrono>
#include <string>

#include "wait.hpp"

namespace reuseport::ctl {

/// Tells the service manager, if there is one ($NOTIFY_SOCKET); otherwise does nothing.
class Notify {
 public:
  Notify();

  void ready(const std::string& status) const;
  /// RELOADING=1 with the time systemd 253 asks for.
  void reloading() const;
  void stopping() const;
  void status(const std::string& text) const;

  /// WATCHDOG=1 where it is due: $WATCHDOG_USEC asks for it (sd_watchdog_enabled(3)), and it is
  /// sent twice as often as that. Call after waits of at most beat().
  void alive();
  [[nodiscard]] std::chrono::milliseconds beat() const { return beat_; }

 private:
  void send(const std::string& state) const;
  std::string path_;
  std::chrono::milliseconds beat_ = std::chrono::milliseconds::max();
  Clock::time_point next_beat_ = Clock::time_point::max();
};

/// Closes the sockets a service manager passed to us (sd_listen_fds(3)): nobody here would accept
/// from them.
void close_passed_sockets();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_NOTIFY_HPP
