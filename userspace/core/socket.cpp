// SPDX-License-Identifier: Apache-2.0
#include "socket.hpp"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "reuseport/reuseport.h"

namespace reuseport::core {
namespace {

// SO_NETNS_COOKIE, Linux 5.14; parisc and sparc differ: read as 0 there
constexpr int netns_cookie = 71;
constexpr int bind_to_ifindex = 62;  // SO_BINDTOIFINDEX, Linux 5.1; parisc differs: read as 0 there

// The value of an int option, or @p otherwise if there is no such option.
int get_int(int fd, int level, int name, int otherwise) noexcept {
  int value = 0;
  socklen_t len = sizeof(value);
  return ::getsockopt(fd, level, name, &value, &len) == 0 ? value : otherwise;
}

// Reads the local address; false if the socket has none, or has a peer.
bool read_place(int fd, Place& place) noexcept {
  sockaddr_storage name{};
  socklen_t len = sizeof(name);
  auto* address = static_cast<sockaddr*>(static_cast<void*>(&name));
  if (place.protocol == IPPROTO_UDP && ::getpeername(fd, address, &len) == 0) {
    return false;
  }
  len = sizeof(name);
  if (::getsockname(fd, address, &len) != 0) {
    return false;
  }
  place.family = name.ss_family;
  if (name.ss_family == AF_INET6) {
    sockaddr_in6 in6{};
    std::memcpy(&in6, &name, sizeof(in6));
    place.port = in6.sin6_port;
    std::memcpy(place.address.data(), &in6.sin6_addr, sizeof(in6.sin6_addr));
    place.v6only = get_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0) != 0;
  } else {
    sockaddr_in in{};
    std::memcpy(&in, &name, sizeof(in));
    place.port = in.sin_port;
    place.address[0] = in.sin_addr.s_addr;
  }
  place.device = static_cast<std::uint32_t>(get_int(fd, SOL_SOCKET, bind_to_ifindex, 0));
  struct stat seen {};
  if (::fstat(fd, &seen) != 0) {
    return false;
  }
  place.uid = seen.st_uid;
  return place.port != 0;
}

}  // namespace

std::uint64_t netns_of(int fd) noexcept {
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  const bool told = ::getsockopt(fd, SOL_SOCKET, netns_cookie, &cookie, &len) == 0;
  return told && len == sizeof(cookie) ? cookie : 0;
}

Identity identify(int fd) noexcept {
  struct stat seen {};
  return ::fstat(fd, &seen) == 0 ? Identity{seen.st_dev, seen.st_ino} : Identity{};
}

Fault examine(int fd, Listener& found) noexcept {
  int domain = 0;
  socklen_t len = sizeof(domain);
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) != 0) {
    return {errno, "getsockopt(SO_DOMAIN)", "pass an open socket", fd};
  }
  const int type = get_int(fd, SOL_SOCKET, SO_TYPE, 0);
  const int protocol = get_int(fd, SOL_SOCKET, SO_PROTOCOL, 0);
  const bool inet = domain == AF_INET || domain == AF_INET6;
  const bool stream = type == SOCK_STREAM && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
  const bool datagram = type == SOCK_DGRAM && protocol == IPPROTO_UDP;
  if (!inet || (!stream && !datagram)) {
    return {EINVAL, "add", "not a TCP, MPTCP or UDP socket over IPv4 or IPv6", fd};
  }
  if (stream && get_int(fd, SOL_SOCKET, SO_ACCEPTCONN, 0) != 1) {
    return {EINVAL, "add", "this socket is not listening", fd};
  }
  found.identity = identify(fd);
  found.netns = netns_of(fd);
  found.mptcp = protocol == IPPROTO_MPTCP;
  found.place = {};
  found.place.protocol = datagram ? IPPROTO_UDP : IPPROTO_TCP;
  if (!read_place(fd, found.place)) {
    return {EINVAL, "add", "this socket is not bound, or it is connected", fd};
  }
  if (get_int(fd, SOL_SOCKET, SO_REUSEPORT, 0) != 1) {
    return {EINVAL, "add",
            "this listener lacks SO_REUSEPORT: no other socket can take over its address", fd};
  }
  return {};
}

std::uint32_t accept_queue(int fd) noexcept {
  tcp_info info{};
  socklen_t len = sizeof(info);
  const bool told = ::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0;
  return told && info.tcpi_state == TCP_LISTEN ? info.tcpi_unacked : REUSEPORT_UNKNOWN;
}

bool is_readable(int fd) noexcept {
  pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&look, 1, 0) == 1 && (look.revents & POLLIN) != 0;
}

std::uint64_t own_netns() noexcept {
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const std::uint64_t netns = fd < 0 ? 0 : netns_of(fd);
  if (fd >= 0) {
    ::close(fd);
  }
  return netns;
}

bool migrate_req_is_on() noexcept {
  const int file = ::open("/proc/sys/net/ipv4/tcp_migrate_req", O_RDONLY | O_CLOEXEC);
  char digit = '0';
  const bool on = file >= 0 && ::read(file, &digit, 1) == 1 && digit == '1';
  if (file >= 0) {
    ::close(file);
  }
  return on;
}

}  // namespace reuseport::core
