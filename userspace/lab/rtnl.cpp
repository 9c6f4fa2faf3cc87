// SPDX-License-Identifier: Apache-2.0
#include "rtnl.hpp"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>

#include <algorithm>
#include <cerrno>
#include <vector>

namespace lab {
namespace {

constexpr std::size_t message_size = 4096;
/// The kernel counts qdisc time in units of 64 ns. Source: include/net/pkt_sched.h, PSCHED_SHIFT.
constexpr std::int64_t tick_ns = 64;
constexpr std::uint32_t netem_limit = 200'000;  // packets; never the reason for a loss here

/// One request under construction.
struct Request {
  alignas(nlmsghdr) std::array<char, message_size> buffer{};
  nlmsghdr* header = mnl_nlmsg_put_header(buffer.data());

  Request(std::uint16_t type, unsigned flags) {
    header->nlmsg_type = type;
    header->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
  }
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request() = default;
  Request(Request&&) = delete;
  Request& operator=(Request&&) = delete;

  template <class T>
  T* extra() {
    return static_cast<T*>(mnl_nlmsg_put_extra_header(header, sizeof(T)));
  }
};

tcmsg* qdisc_header(Request& request, unsigned index, std::uint32_t parent, std::uint32_t handle) {
  auto* tc = request.extra<tcmsg>();
  tc->tcm_family = AF_UNSPEC;
  tc->tcm_ifindex = static_cast<int>(index);
  tc->tcm_parent = parent;
  tc->tcm_handle = handle;
  return tc;
}

Result<unsigned> index_of(const std::string& device) {
  const unsigned index = if_nametoindex(device.c_str());
  if (index == 0) {
    return sys_error(fmt::format("device {}", device), errno);
  }
  return index;
}

}  // namespace

Result<Rtnl> Rtnl::open() {
  mnl_socket* socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
  if (socket == nullptr) {
    return sys_error("socket(NETLINK_ROUTE)", errno);
  }
  Rtnl rtnl{socket};
  if (mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID) < 0) {
    return sys_error("bind(NETLINK_ROUTE)", errno);
  }
  return rtnl;
}

Result<void> Rtnl::talk(nlmsghdr* request, const std::string& what, const std::string& hint) {
  request->nlmsg_seq = ++sequence_;
  if (mnl_socket_sendto(socket_.get(), request, request->nlmsg_len) < 0) {
    return sys_error(what, errno);
  }
  std::vector<char> buffer(static_cast<std::size_t>(MNL_SOCKET_BUFFER_SIZE));
  const unsigned port = mnl_socket_get_portid(socket_.get());
  for (;;) {
    const auto size = mnl_socket_recvfrom(socket_.get(), buffer.data(), buffer.size());
    if (size < 0) {
      return sys_error(what, errno);
    }
    const int more = mnl_cb_run(buffer.data(), static_cast<std::size_t>(size), sequence_, port,
                                nullptr, nullptr);
    if (more < 0) {
      return sys_error(what, errno, hint);
    }
    if (more == MNL_CB_STOP) {
      return {};
    }
  }
}

Result<void> Rtnl::set_up(const std::string& device) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWLINK, 0};
  auto* link = request.extra<ifinfomsg>();
  link->ifi_index = static_cast<int>(*index);
  link->ifi_flags = IFF_UP;
  link->ifi_change = IFF_UP;
  return talk(request.header, fmt::format("set {} up", device));
}

Result<void> Rtnl::add_veth(const std::string& name, const MacAddress& mac, const std::string& peer,
                            const MacAddress& peer_mac, int peer_ns) {
  Request request{RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL};
  request.extra<ifinfomsg>();
  mnl_attr_put_strz(request.header, IFLA_IFNAME, name.c_str());
  mnl_attr_put(request.header, IFLA_ADDRESS, mac.size(), mac.data());
  auto* info = mnl_attr_nest_start(request.header, IFLA_LINKINFO);
  mnl_attr_put_strz(request.header, IFLA_INFO_KIND, "veth");
  auto* data = mnl_attr_nest_start(request.header, IFLA_INFO_DATA);
  auto* other = mnl_attr_nest_start(request.header, VETH_INFO_PEER);
  request.extra<ifinfomsg>();
  mnl_attr_put_strz(request.header, IFLA_IFNAME, peer.c_str());
  mnl_attr_put(request.header, IFLA_ADDRESS, peer_mac.size(), peer_mac.data());
  mnl_attr_put_u32(request.header, IFLA_NET_NS_FD, static_cast<std::uint32_t>(peer_ns));
  mnl_attr_nest_end(request.header, other);
  mnl_attr_nest_end(request.header, data);
  mnl_attr_nest_end(request.header, info);
  return talk(request.header, "add veth pair", "the kernel needs CONFIG_VETH");
}

Result<void> Rtnl::add_address(const std::string& device, std::uint32_t address, int prefix) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL};
  auto* header = request.extra<ifaddrmsg>();
  header->ifa_family = AF_INET;
  header->ifa_prefixlen = static_cast<std::uint8_t>(prefix);
  header->ifa_index = *index;
  mnl_attr_put_u32(request.header, IFA_LOCAL, address);
  mnl_attr_put_u32(request.header, IFA_ADDRESS, address);
  return talk(request.header, fmt::format("add an address to {}", device));
}

Result<void> Rtnl::add_neighbour(const std::string& device, std::uint32_t address,
                                 const MacAddress& mac) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE};
  auto* header = request.extra<ndmsg>();
  header->ndm_family = AF_INET;
  header->ndm_ifindex = static_cast<int>(*index);
  header->ndm_state = NUD_PERMANENT;
  mnl_attr_put_u32(request.header, NDA_DST, address);
  mnl_attr_put(request.header, NDA_LLADDR, mac.size(), mac.data());
  return talk(request.header, fmt::format("add a neighbour to {}", device));
}

Result<void> Rtnl::add_netem(const std::string& device, std::int64_t delay_ns, double loss) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL};
  qdisc_header(request, *index, root, netem_handle);
  mnl_attr_put_strz(request.header, TCA_KIND, "netem");
  tc_netem_qopt options{};
  options.latency = static_cast<std::uint32_t>(delay_ns / tick_ns);
  options.limit = netem_limit;
  options.loss = static_cast<std::uint32_t>(std::clamp(loss, 0.0, 1.0) * 4294967295.0);
  mnl_attr_put(request.header, TCA_OPTIONS, sizeof options, &options);
  return talk(request.header, fmt::format("add qdisc netem to {}", device),
              "the kernel needs CONFIG_NET_SCH_NETEM");
}

Result<void> Rtnl::add_prio(const std::string& device, Handle parent, Handle handle) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL};
  qdisc_header(request, *index, parent, handle);
  mnl_attr_put_strz(request.header, TCA_KIND, "prio");
  tc_prio_qopt options{};  // every priority to band 0
  options.bands = 2;
  mnl_attr_put(request.header, TCA_OPTIONS, sizeof options, &options);
  return talk(request.header, fmt::format("add qdisc prio to {}", device),
              "the kernel needs CONFIG_NET_SCH_PRIO");
}

Result<void> Rtnl::plug_action(const std::string& device, Handle parent, Handle handle, int action,
                               unsigned flags) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request request{RTM_NEWQDISC, flags};
  qdisc_header(request, *index, parent, handle);
  mnl_attr_put_strz(request.header, TCA_KIND, "plug");
  tc_plug_qopt options{};
  options.action = action;
  options.limit = 16U << 20U;  // bytes; read at creation
  mnl_attr_put(request.header, TCA_OPTIONS, sizeof options, &options);
  return talk(request.header, fmt::format("qdisc plug on {}", device),
              "the kernel needs CONFIG_NET_SCH_PLUG");
}

Result<void> Rtnl::add_plug(const std::string& device, Handle parent, Handle handle) {
  auto added = plug_action(device, parent, handle, TCQ_PLUG_LIMIT, NLM_F_CREATE | NLM_F_REPLACE);
  // A new plug begins throttled: what comes through is held until it is released once.
  if (added) {
    return unplug(device, parent, handle);
  }
  return added;
}

Result<void> Rtnl::plug(const std::string& device, Handle parent, Handle handle) {
  return plug_action(device, parent, handle, TCQ_PLUG_BUFFER, 0);
}

Result<void> Rtnl::unplug(const std::string& device, Handle parent, Handle handle) {
  return plug_action(device, parent, handle, TCQ_PLUG_RELEASE_INDEFINITE, 0);
}

Result<void> Rtnl::classify_syns(const std::string& device, Handle parent, Handle target,
                                 std::uint16_t port) {
  auto index = index_of(device);
  if (!index) {
    return tl::unexpected(index.error());
  }
  Request filter{RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL};
  auto* tc = qdisc_header(filter, *index, parent, 0);
  tc->tcm_info = TC_H_MAKE(1U << 16U, htons(ETH_P_IP));
  mnl_attr_put_strz(filter.header, TCA_KIND, "u32");
  auto* options = mnl_attr_nest_start(filter.header, TCA_OPTIONS);
  mnl_attr_put_u32(filter.header, TCA_U32_CLASSID, target);

  // IPv4 without options, TCP, destination port, flags SYN set and ACK clear.
  const auto key = [](std::uint32_t mask, std::uint32_t value, int offset) {
    tc_u32_key k{};
    k.mask = htonl(mask);
    k.val = htonl(value & mask);
    k.off = offset;
    return k;
  };
  const std::array<tc_u32_key, 3> keys{key(0x00ff0000U, 0x00060000U, 8), key(0x0000ffffU, port, 20),
                                       key(0x00120000U, 0x00020000U, 32)};
  tc_u32_sel selector{};
  selector.flags = TC_U32_TERMINAL;
  selector.nkeys = keys.size();
  std::array<char, sizeof selector + sizeof keys> match{};
  std::memcpy(match.data(), &selector, sizeof selector);
  std::memcpy(match.data() + sizeof selector, keys.data(), sizeof keys);
  mnl_attr_put(filter.header, TCA_U32_SEL, match.size(), match.data());
  mnl_attr_nest_end(filter.header, options);
  return talk(filter.header, fmt::format("add filter u32 to {}", device),
              "the kernel needs CONFIG_NET_CLS_U32");
}

}  // namespace lab
