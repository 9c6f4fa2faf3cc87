// SPDX-License-Identifier: Apache-2.0
#include "net/sockdiag.hpp"

#include <libmnl/libmnl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>

#include <array>
#include <cerrno>
#include <memory>

#include "net/netns.hpp"

namespace lab {
namespace {

struct Close {
  void operator()(mnl_socket* socket) const { mnl_socket_close(socket); }
};

struct Count {
  std::uint16_t port;
  unsigned found;
};

int take(const nlmsghdr* header, void* data) {
  auto* count = static_cast<Count*>(data);
  const auto* socket = static_cast<const inet_diag_msg*>(mnl_nlmsg_get_payload(header));
  count->found += ntohs(socket->id.idiag_sport) == count->port ? 1 : 0;
  return MNL_CB_OK;
}

}  // namespace

Result<unsigned> count_sockets(int ns, int state, std::uint16_t port) {
  const auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  const std::unique_ptr<mnl_socket, Close> socket{
      mnl_socket_open2(NETLINK_SOCK_DIAG, SOCK_CLOEXEC)};
  if (!socket || mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) < 0) {
    return sys_error("socket(NETLINK_SOCK_DIAG)", errno);
  }
  alignas(nlmsghdr) std::array<char, 256> room{};
  auto* header = mnl_nlmsg_put_header(room.data());
  header->nlmsg_type = SOCK_DIAG_BY_FAMILY;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  auto* request =
      static_cast<inet_diag_req_v2*>(mnl_nlmsg_put_extra_header(header, sizeof(inet_diag_req_v2)));
  request->sdiag_family = AF_INET;
  request->sdiag_protocol = IPPROTO_TCP;
  request->idiag_states = 1U << static_cast<unsigned>(state);
  if (mnl_socket_sendto(socket.get(), header, header->nlmsg_len) < 0) {
    return sys_error("sendto(NETLINK_SOCK_DIAG)", errno);
  }
  Count count{port, 0};
  const unsigned self = mnl_socket_get_portid(socket.get());
  std::array<char, 32768> buffer{};
  for (int more = MNL_CB_OK; more != MNL_CB_STOP;) {
    const auto size = mnl_socket_recvfrom(socket.get(), buffer.data(), buffer.size());
    more = size < 0
               ? -1
               : mnl_cb_run(buffer.data(), static_cast<std::size_t>(size), 0, self, take, &count);
    if (more < 0) {
      return sys_error("sock_diag", errno);
    }
  }
  return count.found;
}

}  // namespace lab
