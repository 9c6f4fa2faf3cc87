// SPDX-License-Identifier: Apache-2.0
// A socket's properties, and who else serves its address.
#ifndef REUSEPORT_CORE_SOCKET_HPP
#define REUSEPORT_CORE_SOCKET_HPP

#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <span>

namespace reuseport::core {

/// Which call failed, its errno (positive; 0: none) and how to fix it. Static strings.
struct Fault {
  int errnum = 0;
  const char* call = "";
  const char* hint = "";
  int fd = -1;  ///< the listener concerned; -1: all

  explicit operator bool() const noexcept { return errnum != 0; }
};

/// Identifies the socket behind a descriptor, to notice when the number is reused for another one.
struct Identity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;

  friend bool operator==(const Identity& a, const Identity& b) noexcept {
    return a.device == b.device && a.inode == b.inode;
  }
};

/// What two listeners of one group have in common, as far as sock_diag(7) reports it.
struct Place {
  sa_family_t family = AF_UNSPEC;
  std::uint8_t protocol = 0;  ///< IPPROTO_TCP, also for MPTCP, or IPPROTO_UDP
  bool v6only = false;
  in_port_t port = 0;  ///< network byte order, like address
  std::uint32_t device = 0;
  uid_t uid = 0;  ///< of the socket's owner: another user's socket is in no group of ours
  std::array<std::uint32_t, 4> address{};
};

struct Listener {
  Identity identity;
  Place place;
  std::uint64_t netns = 0;  ///< the cookie of its network namespace; 0 before Linux 5.14
  bool mptcp = false;
  [[nodiscard]] bool datagram() const noexcept { return place.protocol == IPPROTO_UDP; }
  /// Whether tcp_migrate_req is for it: mptcp_check_listen_stop() ends what MPTCP has in its queue.
  [[nodiscard]] bool migrates() const noexcept { return !datagram() && !mptcp; }
};

/// All zero for a descriptor that is not open.
[[nodiscard]] Identity identify(int fd) noexcept;

/// Checks that @p fd is a listening TCP or MPTCP socket, or a bound, unconnected UDP socket, with
/// SO_REUSEPORT. EBADF, ENOTSOCK, EINVAL.
[[nodiscard]] Fault examine(int fd, Listener& found) noexcept;

/// Connections in the accept queue of a TCP listener, or REUSEPORT_UNKNOWN.
[[nodiscard]] std::uint32_t accept_queue(int fd) noexcept;

/// poll(2) reports something to accept or to read now.
[[nodiscard]] bool is_readable(int fd) noexcept;

/// The cookie of the network namespace of a socket: 0 if the kernel does not tell.
[[nodiscard]] std::uint64_t netns_of(int fd) noexcept;

/// That of the calling thread.
[[nodiscard]] std::uint64_t own_netns() noexcept;

/// net.ipv4.tcp_migrate_req of the calling thread's network namespace.
[[nodiscard]] bool migrate_req_is_on() noexcept;

/// Whether a connection or datagram to @p listener would reach an ON member of its group that is
/// not in @p leaving: one sock_diag(7) query, answered by the kernel's own lookup. If the kernel
/// does not report modes (the option by BPF, or no option), any other member counts as ON. Also
/// false if the query fails, or if the calling thread is in another network namespace.
[[nodiscard]] bool others_are_on(const Listener& listener,
                                 std::span<const std::uint64_t> leaving) noexcept;

/// Whether another process holds one of the sockets in @p inodes (sorted): 1, 0, or a negative
/// errno. See reuseport_drain_options::is_shared.
[[nodiscard]] int held_elsewhere(std::span<const std::uint64_t> inodes) noexcept;

}  // namespace reuseport::core

#endif  // REUSEPORT_CORE_SOCKET_HPP
