// SPDX-License-Identifier: Apache-2.0
// SO_REUSEPORT_LISTEN_OFF for sockets of other processes, by whoever provides it: this kernel, or
// BPF for the time of a drain.
#ifndef REUSEPORTCTL_PROVIDER_HPP
#define REUSEPORTCTL_PROVIDER_HPP

#include <linux/reuseport.h>

#include <memory>
#include <optional>
#include <vector>

#include "failure.hpp"
#include "option/option.hpp"

namespace reuseport::ctl {

/// Results as in reuseport.h: 0, or a negative errno.
class Provider {
 public:
  /// Of the network namespace this thread is in. Exit::unsupported, Exit::permission: why there is
  /// none; the hint names both.
  /// @p fds  the listeners it is for: those of a scope that records UDP flows are that scope's,
  /// from
  ///         wherever this program was started
  [[nodiscard]] static Outcome<Provider> find(const std::vector<int>& fds);

  /// The modes end with this program: then every listener is chosen as ever.
  [[nodiscard]] bool by_bpf() const { return session_ != nullptr; }

  /// Must come first, with all listeners.
  [[nodiscard]] Status adopt(const std::vector<int>& fds);
  [[nodiscard]] int set_mode(int fd, int mode);
  [[nodiscard]] int get_info(int fd, reuseport_listen_info* info);
  /// Newcomers that joined since are taken in. Now and then.
  void refresh();

 private:
  std::unique_ptr<option::Session> session_;
  bool scope_ = false;      // what enable() made provides it
  bool datagrams_ = false;  // some are UDP sockets
};

/// Whether find() would find one, and then whether by BPF, without leaving anything loaded.
[[nodiscard]] Outcome<bool> try_provider();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_PROVIDER_HPP
