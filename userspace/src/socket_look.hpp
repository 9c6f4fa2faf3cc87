// SPDX-License-Identifier: Apache-2.0
// What a drain must know of a socket and cannot ask the option.
#ifndef REUSEPORT_SOCKET_LOOK_HPP
#define REUSEPORT_SOCKET_LOOK_HPP

#include <cstdint>
#include <optional>

#include "reuseport/error.hpp"

namespace reuseport::detail {

/// Whether @p fd is a datagram socket. Fails for all but a listening TCP or MPTCP socket and a
/// bound, unconnected UDP socket, with SO_REUSEPORT set.
[[nodiscard]] Result<bool> check_listener(int fd);

/// Something can be accepted or read now. poll(2) without waiting.
[[nodiscard]] bool is_readable(int fd) noexcept;

/// Connections in the accept queue: tcpi_unacked of a listener (tcp_get_info() in net/ipv4/tcp.c).
[[nodiscard]] std::optional<std::uint32_t> accept_queue(int fd) noexcept;

/// net.ipv4.tcp_migrate_req of this network namespace is on. False where it does not exist.
[[nodiscard]] bool migrate_req_is_on() noexcept;

}  // namespace reuseport::detail

#endif  // REUSEPORT_SOCKET_LOOK_HPP
