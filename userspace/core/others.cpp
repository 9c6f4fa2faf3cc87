// SPDX-License-Identifier: Apache-2.0
// Who else serves an address: sock_diag(7), without libmnl.
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

#include "reply.hpp"
#include "reuseport/reuseport.h"
#include "socket.hpp"

namespace reuseport::core {
namespace {

struct Request {
  nlmsghdr header;
  inet_diag_req_v2 body;
};

Request exact_query(const Place& place) noexcept {
  Request request{};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.header.nlmsg_seq = 1;
  request.body.sdiag_family = static_cast<std::uint8_t>(place.family);
  request.body.sdiag_protocol = place.protocol;
  request.body.idiag_states = ~0U;
  inet_diag_sockid& id = request.body.id;
  id.idiag_if = place.device;
  id.idiag_cookie[0] = id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  // udp_diag swaps local and remote address (udp_dump_one() in net/ipv4/udp_diag.c).
  const bool udp = place.protocol == IPPROTO_UDP;
  (udp ? id.idiag_dport : id.idiag_sport) = place.port;
  std::memcpy(udp ? id.idiag_dst : id.idiag_src, place.address.data(), sizeof(place.address));
  return request;
}

bool ask(int netlink, const Place& place, Chosen& chosen) noexcept {
  const Request request = exact_query(place);
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  const auto* to = static_cast<const sockaddr*>(static_cast<const void*>(&kernel));
  if (::sendto(netlink, &request, sizeof(request), 0, to, sizeof(kernel)) !=
      static_cast<ssize_t>(sizeof(request))) {
    return false;
  }
  // The kernel answers before sendto() returns; skip messages from other senders.
  for (int datagrams = 0; datagrams < 16; ++datagrams) {
    alignas(nlmsghdr) std::array<std::byte, 8192> buffer{};
    sockaddr_nl sender{};
    socklen_t len = sizeof(sender);
    auto* from = static_cast<sockaddr*>(static_cast<void*>(&sender));
    const ssize_t got = ::recvfrom(netlink, buffer.data(), buffer.size(), MSG_DONTWAIT, from, &len);
    if (got < static_cast<ssize_t>(sizeof(nlmsghdr))) {
      return false;
    }
    nlmsghdr header{};
    std::memcpy(&header, buffer.data(), sizeof(header));
    if (len != sizeof(sender) || sender.nl_pid != 0 || header.nlmsg_seq != 1) {
      continue;
    }
    const std::size_t size = std::min<std::size_t>(header.nlmsg_len, static_cast<std::size_t>(got));
    return header.nlmsg_type == SOCK_DIAG_BY_FAMILY &&
           read_reply(std::span(buffer).first(size), chosen);
  }
  return false;
}

}  // namespace

bool others_are_on(const Listener& listener, std::span<const std::uint64_t> leaving) noexcept {
  const Place& place = listener.place;
  const int netlink = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  if (netlink < 0) {
    return false;
  }
  Chosen chosen;
  const bool answered = netns_of(netlink) == listener.netns && ask(netlink, place, chosen);
  ::close(netlink);
  // The lookup goes on to wildcard addresses, which are other groups.
  const inet_diag_sockid& id = chosen.socket.id;
  const bool same_group =
      answered && chosen.socket.idiag_family == place.family && id.idiag_sport == place.port &&
      id.idiag_if == place.device && chosen.socket.idiag_uid == place.uid &&
      chosen.v6only == place.v6only &&
      std::memcmp(id.idiag_src, place.address.data(), place.family == AF_INET ? 4 : 16) == 0;
  if (!same_group) {
    return false;
  }
  return chosen.mode ? *chosen.mode == REUSEPORT_LISTEN_ON
                     : std::find(leaving.begin(), leaving.end(), chosen.socket.idiag_inode) ==
                           leaving.end();
}

}  // namespace reuseport::core
