// SPDX-License-Identifier: Apache-2.0
#include "host/vrf.hpp"

#include <libmnl/libmnl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <memory>
#include <string_view>

#include "host/netlink.hpp"

namespace reuseport {

namespace {

constexpr std::size_t answer_size = 32768;  // one device with all it has

bool is_vrf(const nlattr* kind) {
  return mnl_attr_validate(kind, MNL_TYPE_NUL_STRING) == 0 &&
         std::string_view(mnl_attr_get_str(kind)) == "vrf";
}

int on_info(const nlattr* attr, void* found) {
  const std::uint16_t type = mnl_attr_get_type(attr);
  if ((type == IFLA_INFO_KIND || type == IFLA_INFO_SLAVE_KIND) && is_vrf(attr)) {
    *static_cast<bool*>(found) = true;
  }
  return MNL_CB_OK;
}

int on_attribute(const nlattr* attr, void* found) {
  return mnl_attr_get_type(attr) == IFLA_LINKINFO ? mnl_attr_parse_nested(attr, on_info, found)
                                                  : MNL_CB_OK;
}

int on_link(const nlmsghdr* nlh, void* found) {
  return mnl_attr_parse(nlh, sizeof(ifinfomsg), on_attribute, found);
}

}  // namespace

Result<bool> in_vrf(std::uint32_t ifindex) {
  const std::unique_ptr<mnl_socket, decltype([](mnl_socket* s) { mnl_socket_close(s); })> socket(
      mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC));
  if (!socket || mnl_socket_bind(socket.get(), 0, MNL_SOCKET_AUTOPID) != 0) {
    return fail("socket(NETLINK_ROUTE)", errno);
  }
  std::array<std::byte, answer_size> buf{};
  nlmsghdr* nlh = mnl_nlmsg_put_header(buf.data());
  nlh->nlmsg_type = RTM_GETLINK;
  nlh->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  nlh->nlmsg_seq = 1;
  auto* link = static_cast<ifinfomsg*>(mnl_nlmsg_put_extra_header(nlh, sizeof(ifinfomsg)));
  link->ifi_index = static_cast<int>(ifindex);
  if (mnl_socket_sendto(socket.get(), nlh, nlh->nlmsg_len) < 0) {
    return fail("sendto(NETLINK_ROUTE)", errno);
  }
  bool found = false;
  for (int more = MNL_CB_OK; more > MNL_CB_STOP;) {
    const ssize_t n = receive(socket.get(), buf);
    if (n >= 0) {
      more = mnl_cb_run(buf.data(), static_cast<std::size_t>(n), 1,
                        mnl_socket_get_portid(socket.get()), on_link, &found);
    }
    if (n < 0 || more < 0) {
      return fail("RTM_GETLINK", errno);
    }
  }
  return found;
}

bool accepts_from_vrfs(Protocol protocol) {
  std::ifstream value(protocol == Protocol::udp ? "/proc/sys/net/ipv4/udp_l3mdev_accept"
                                                : "/proc/sys/net/ipv4/tcp_l3mdev_accept");
  char first = '0';
  return value.get(first) && first != '0';
}

}  // namespace reuseport
