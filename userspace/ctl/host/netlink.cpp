// SPDX-License-Identifier: Apache-2.0
#include "host/netlink.hpp"

#include <libmnl/libmnl.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cerrno>

namespace reuseport {

ssize_t receive(mnl_socket* socket, std::span<std::byte> buf) {
  for (;;) {
    sockaddr_nl from{};
    iovec part{buf.data(), buf.size()};
    msghdr msg{};
    msg.msg_name = &from;
    msg.msg_namelen = sizeof(from);
    msg.msg_iov = &part;
    msg.msg_iovlen = 1;
    const ssize_t n = ::recvmsg(mnl_socket_get_fd(socket), &msg, 0);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n >= 0 && (msg.msg_namelen != sizeof(from) || from.nl_pid != 0)) {
      continue;
    }
    if (n >= 0 && (msg.msg_flags & MSG_TRUNC) != 0) {
      errno = EMSGSIZE;
      return -1;
    }
    return n;
  }
}

}  // namespace reuseport
