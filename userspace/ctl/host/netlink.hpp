// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_NETLINK_HPP
#define REUSEPORT_NETLINK_HPP

#include <sys/types.h>

#include <cstddef>
#include <span>

struct mnl_socket;

namespace reuseport {

/// One datagram from the kernel; skips those of other senders (netlink(7)). -1 with errno set,
/// EMSGSIZE if it does not fit.
ssize_t receive(mnl_socket* socket, std::span<std::byte> buf);

}  // namespace reuseport

#endif  // REUSEPORT_NETLINK_HPP
