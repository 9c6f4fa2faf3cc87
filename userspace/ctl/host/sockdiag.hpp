// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_SOCKDIAG_HPP
#define REUSEPORT_SOCKDIAG_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "host/endpoint.hpp"
#include "host/result.hpp"
#include "reuseport/reuseport.hpp"

struct mnl_socket;

namespace reuseport {

enum class Protocol : std::uint8_t { tcp = 6, udp = 17 };

/// "tcp" or "udp".
[[nodiscard]] std::string_view to_string(Protocol protocol) noexcept;

/// One socket as the kernel's sock_diag(7) tells it.
struct DiagSocket {
  Protocol protocol = Protocol::tcp;
  std::uint8_t state = 0;  ///< TCP_LISTEN, TCP_SYN_RECV, or TCP_CLOSE for unconnected UDP
  bool v6only = false;     ///< an IPv6 socket that takes no IPv4
  Endpoint local;
  Endpoint remote;              ///< all zero for a listener
  std::uint64_t cookie = 0;     ///< names this socket until the machine reboots
  std::uint64_t inode = 0;      ///< the N of "socket:[N]" below /proc/PID/fd; 0 for a request
  std::uint32_t uid = 0;        ///< of the user who made it
  std::uint32_t queued = 0;     ///< TCP: connections in the accept queue; UDP: bytes to read
  std::uint32_t queue_max = 0;  ///< TCP: limit of the accept queue; UDP: bytes to send
  /// Mode, half-open requests and group: INET_DIAG_REUSEPORT, where the kernel has it.
  std::optional<Info> info;

  /// Can these two be in one reuseport group? Same protocol, address, port and device.
  [[nodiscard]] bool same_address(const DiagSocket& other) const noexcept;
};

/// Questions to the kernel about its sockets, in the network namespace the object was opened in.
/// Asks no privilege. One thread at a time.
class SockDiag {
 public:
  /// EPROTONOSUPPORT: this kernel was built without sock_diag.
  [[nodiscard]] static Result<SockDiag> open();

  /// TCP listeners, or bound UDP sockets without a peer, sorted by address and inode. One that is
  /// there all the time is never missing; one that came or went meanwhile may be among them.
  /// @param port  only this local port; 0: all
  /// ENOENT: the kernel has no tcp_diag or udp_diag.
  [[nodiscard]] Result<std::vector<DiagSocket>> listeners(Protocol protocol,
                                                          std::uint16_t port = 0);

  /// TCP connections that are established, or that the other side alone has closed.
  [[nodiscard]] Result<std::vector<DiagSocket>> connections();

  /// Half-open TCP requests that a listener on @p listener's address may own. A stock kernel does
  /// not tell which listener of the address owns one, and a wildcard address is given every
  /// request of its port: too many rather than too few.
  [[nodiscard]] Result<std::vector<DiagSocket>> half_open(const Endpoint& listener);

  /// @p known as it is now, found by its cookie; empty when it is gone. One exact question; where
  /// the kernel answers with another member of the group, a dump of that port.
  [[nodiscard]] Result<std::optional<DiagSocket>> query(const DiagSocket& known);

 private:
  struct Close {
    void operator()(mnl_socket* s) const noexcept;
  };
  using Socket = std::unique_ptr<mnl_socket, Close>;

  explicit SockDiag(Socket socket) noexcept : socket_(std::move(socket)) {}
  Status reopen();
  Status dump(Protocol protocol, sa_family_t family, std::uint32_t states, std::uint16_t port,
              std::vector<DiagSocket>& out, std::size_t buffer, std::set<std::uint16_t>* torn);
  /// The listeners of a port that more than one datagram is needed for: the kernel goes on at the
  /// next by counting, so that one which leaves meanwhile hides another. Asked until two answers
  /// agree, or so often that no one is missing from all.
  Status dump_surely(Protocol protocol, sa_family_t family, std::uint16_t port,
                     std::vector<DiagSocket>& out);

  Socket socket_;
  std::uint32_t seq_ = 0;
};

}  // namespace reuseport

#endif  // REUSEPORT_SOCKDIAG_HPP
