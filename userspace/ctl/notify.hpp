// SPDX-License-Identifier: Apache-2.0
// The service manager's side of Type=notify: sd_notify(3), which is one datagram.
#ifndef REUSEPORTCTL_NOTIFY_HPP
#define REUSEPORTCTL_NOTIFY_HPP

#include <string>

namespace reuseport::ctl {

/// Tells the service manager, if there is one ($NOTIFY_SOCKET); otherwise does nothing.
class Notify {
 public:
  /// Reads $NOTIFY_SOCKET and takes it out of the environment, so that no child speaks for us.
  Notify();

  void ready(const std::string& status) const;
  /// RELOADING=1 with the time systemd 253 asks for.
  void reloading() const;
  void stopping() const;
  void status(const std::string& text) const;

 private:
  void send(const std::string& state) const;
  std::string path_;
};

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_NOTIFY_HPP
