// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_SOCKDIAG_HPP
#define REUSEPORT_SOCKDIAG_HPP

#include <cstdint>
#include <memory>
#include <optional>
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

/// One socket as sock_diag(7) reports it.
struct DiagSocket {
  Protocol protocol = Protocol::tcp;
  std::uint8_t state = 0;  ///< TCP_LISTEN, TCP_SYN_RECV, or TCP_CLOSE for unconnected UDP
  bool v6only = false;     ///< an IPv6 socket that does not accept IPv4
  Endpoint local;
  Endpoint remote;              ///< all zero for a listener
  std::uint64_t cookie = 0;     ///< identifies this socket until the machine reboots
  std::uint64_t inode = 0;      ///< the N of "socket:[N]" in /proc/PID/fd; 0 for a request
  std::uint32_t uid = 0;        ///< of the user who created it
  std::uint32_t queued = 0;     ///< TCP: connections in the accept queue; UDP: bytes to read
  std::uint32_t queue_max = 0;  ///< TCP: limit of the accept queue; UDP: bytes to send
  /// Mode, half-open requests and group: INET_DIAG_REUSEPORT, if the kernel has it.
  std::optional<Info> info;

  /// Can these two be in one reuseport group? Same protocol, address, port and device.
  [[nodiscard]] bool same_address(const DiagSocket& other) const noexcept;
};

/// Queries the kernel about sockets, in the network namespace the object was opened in. Needs no
/// privilege. Use it from one thread at a time.
class SockDiag {
 public:
  /// EPROTONOSUPPORT: this kernel was built without sock_diag.
  [[nodiscard]] static Result<SockDiag> open();

  /// TCP listeners, or bound UDP sockets without a peer, sorted by address and inode. Never misses
  /// one that exists all the time; may include one that came or went during the query.
  /// @param port  only this local port; 0: all
  /// ENOENT: the kernel has no tcp_diag or udp_diag.
  [[nodiscard]] Result<std::vector<DiagSocket>> listeners(Protocol protocol,
                                                          std::uint16_t port = 0);

  /// TCP connections that are established, or that only the other side has closed. One that exists
  /// all the time is missed only if the dumps that agree skip the same ones: see dump_whole().
  [[nodiscard]] Result<std::vector<DiagSocket>> connections();

  /// Half-open TCP requests that a listener on @p listener's address may own. A stock kernel does
  /// not report which listener of the address owns one; for a wildcard address, every request of
  /// its port is returned: too many rather than too few.
  [[nodiscard]] Result<std::vector<DiagSocket>> half_open(const Endpoint& listener);

  /// The current state of @p known, by its cookie; empty if it is gone. One exact query; if the
  /// kernel answers with another member of the group, a dump of that port.
  [[nodiscard]] Result<std::optional<DiagSocket>> query(const DiagSocket& known);

 private:
  struct Close {
    void operator()(mnl_socket* s) const noexcept;
  };
  using Socket = std::unique_ptr<mnl_socket, Close>;

  explicit SockDiag(Socket socket) noexcept : socket_(std::move(socket)) {}
  Status reopen();
  Status dump(Protocol protocol, sa_family_t family, std::uint32_t states, std::uint16_t port,
              std::vector<DiagSocket>& out, std::size_t buffer, bool* split);
  /// Appends the sockets of @p port (0: all). The kernel resumes a dump by counting, so where it
  /// takes more than one datagram, or more than one look at a bucket, a socket that leaves in
  /// between hides another. Then repeats the dump until two agree, eight times at most, and appends
  /// what any had: also one that has just closed.
  Status dump_whole(Protocol protocol, sa_family_t family, std::uint32_t states, std::uint16_t port,
                    std::vector<DiagSocket>& out);

  Socket socket_;
  std::uint32_t seq_ = 0;
};

}  // namespace reuseport

#endif  // REUSEPORT_SOCKDIAG_HPP
