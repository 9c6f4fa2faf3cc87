// SPDX-License-Identifier: Apache-2.0
#include "socket_look.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "reuseport/fd.hpp"

namespace reuseport::detail {
namespace {

Result<int> get_int(int fd, int name, const char* call) {
  int value = 0;
  socklen_t len = sizeof(value);
  if (::getsockopt(fd, SOL_SOCKET, name, &value, &len) != 0) {
    return fail(call, errno, "give an open socket");
  }
  return value;
}

bool is_bound_and_unconnected(int fd) {
  sockaddr_storage name{};
  socklen_t len = sizeof(name);
  auto* address = static_cast<sockaddr*>(static_cast<void*>(&name));
  if (::getpeername(fd, address, &len) == 0) {
    return false;
  }
  len = sizeof(name);
  if (::getsockname(fd, address, &len) != 0) {
    return false;
  }
  // sin6_port is at the same place.
  return static_cast<const sockaddr_in*>(static_cast<const void*>(&name))->sin_port != 0;
}

}  // namespace

Result<bool> check_listener(int fd) {
  const Result<int> domain = get_int(fd, SO_DOMAIN, "getsockopt(SO_DOMAIN)");
  if (!domain) {
    return tl::unexpected(domain.error());
  }
  const Result<int> type = get_int(fd, SO_TYPE, "getsockopt(SO_TYPE)");
  const Result<int> protocol = get_int(fd, SO_PROTOCOL, "getsockopt(SO_PROTOCOL)");
  const Result<int> listens = get_int(fd, SO_ACCEPTCONN, "getsockopt(SO_ACCEPTCONN)");
  const Result<int> reuseport = get_int(fd, SO_REUSEPORT, "getsockopt(SO_REUSEPORT)");
  const bool inet = *domain == AF_INET || *domain == AF_INET6;
  // NOLINTNEXTLINE(misc-redundant-expression): two numbers of one enum
  const bool stream = type == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
  const bool datagram = type == SOCK_DGRAM && protocol == IPPROTO_UDP;
  if (!inet || (!stream && !datagram)) {
    return fail("Drain::add", EINVAL, "not a TCP, MPTCP or UDP socket over IPv4 or IPv6");
  }
  if (stream ? listens != 1 : !is_bound_and_unconnected(fd)) {
    return fail("Drain::add", EINVAL,
                stream ? "this socket does not listen" : "this socket is not bound, or connected");
  }
  if (reuseport != 1) {
    return fail("Drain::add", EINVAL,
                "this listener lacks SO_REUSEPORT: nobody can take over its address");
  }
  return datagram;
}

bool is_readable(int fd) noexcept {
  pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&look, 1, 0) == 1 && (look.revents & POLLIN) != 0;
}

std::optional<std::uint32_t> accept_queue(int fd) noexcept {
  tcp_info info{};
  socklen_t len = sizeof(info);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0 || info.tcpi_state != TCP_LISTEN) {
    return std::nullopt;
  }
  return info.tcpi_unacked;
}

bool migrate_req_is_on() noexcept {
  const Fd file(::open("/proc/sys/net/ipv4/tcp_migrate_req", O_RDONLY | O_CLOEXEC));
  char digit = '0';
  return file.valid() && ::read(file.get(), &digit, 1) == 1 && digit == '1';
}

}  // namespace reuseport::detail
