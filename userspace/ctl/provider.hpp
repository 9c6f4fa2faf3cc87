// SPDX-License-Identifier: Apache-2.0
// SO_REUSEPORT_LISTEN_OFF for sockets of other processes, provided by this kernel, or by BPF for
// the time of a drain.
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
  /// For this thread's network namespace. Exit::unsupported, Exit::permission: there is none; the
  /// hint explains both.
  /// @param fds  the listeners it is for; if enable() records their UDP flows, that scope provides
  ///             the option, whatever cgroup this program runs in
  /// @param size  of their groups, if by BPF
  [[nodiscard]] static Expected<Provider> find(const std::vector<int>& fds, option::GroupSize size);

  /// BPF for the time of this program: when it ends, every listener gets connections again.
  [[nodiscard]] bool by_bpf() const { return session_ != nullptr; }

  /// Must come first, with all listeners.
  [[nodiscard]] Status adopt(const std::vector<int>& fds);
  [[nodiscard]] int set_mode(int fd, int mode);
  [[nodiscard]] int get_info(int fd, reuseport_listen_info* info);
  /// Adopts newcomers that have joined since. Call it now and then.
  void refresh();

 private:
  std::unique_ptr<option::Session> session_;
  bool scope_ = false;      // provided by the scope of enable(), or that records UDP flows
  bool datagrams_ = false;  // some are UDP sockets
};

/// Whether find() would succeed and, if so, whether by BPF. Leaves nothing loaded.
[[nodiscard]] Expected<bool> try_provider();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_PROVIDER_HPP
