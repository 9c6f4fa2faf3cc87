// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_NET_NETNS_HPP
#define LAB_NET_NETNS_HPP

#include <string>

#include "base.hpp"

namespace lab {

/// A new network namespace with `lo` up. It has no name: it vanishes, with every device in it, when
/// the last fd and the last process in it are gone, so that not even SIGKILL leaves anything
/// behind. Needs CAP_SYS_ADMIN. (namespaces(7), network_namespaces(7))
Result<Fd> make_namespace();

/// Moves the calling thread into a namespace for its own lifetime. Other threads stay where they
/// are.
class InNamespace {
 public:
  static Result<InNamespace> enter(int ns);
  InNamespace(InNamespace&&) = default;
  InNamespace& operator=(InNamespace&&) = delete;
  InNamespace(const InNamespace&) = delete;
  InNamespace& operator=(const InNamespace&) = delete;
  ~InNamespace();

 private:
  explicit InNamespace(Fd back) : back_(std::move(back)) {}
  Fd back_;
};

/// Writes a sysctl of a namespace. @param name as in `net/ipv4/tcp_tw_reuse`.
Result<void> set_sysctl(int ns, const std::string& name, const std::string& value);

}  // namespace lab

#endif  // LAB_NET_NETNS_HPP
