// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <libmnl/libmnl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "result.hpp"

namespace lab {

using MacAddress = std::array<std::uint8_t, 6>;

/// The rtnetlink(7) requests the lab needs, in the network namespace in which it was opened.
/// Each waits for the kernel's answer. Not thread-safe.
class Rtnl {
 public:
  static Result<Rtnl> open();

  Result<void> set_up(const std::string& device);
  /// A veth pair: `name` here, `peer` in the namespace `peer_ns`.
  Result<void> add_veth(const std::string& name, const MacAddress& mac, const std::string& peer,
                        const MacAddress& peer_mac, int peer_ns);
  /// @param address IPv4, network byte order.
  Result<void> add_address(const std::string& device, std::uint32_t address, int prefix);
  /// A neighbour that never expires, so that no address resolution disturbs a measurement.
  Result<void> add_neighbour(const std::string& device, std::uint32_t address,
                             const MacAddress& mac);
  /// Root qdisc netem. @param delay_ns one way. @param loss 0 to 1. Source: tc-netem(8).
  Result<void> add_netem(const std::string& device, std::int64_t delay_ns, double loss);

  /// A place in the tree of qdiscs of a device, as `tc` writes it: 0x20000 is 2:, 0x20001 is 2:1.
  using Handle = std::uint32_t;
  static constexpr Handle root = 0xffffffffU;
  /// Handle of add_netem(), whose one child may hang at netem_handle + 1.
  static constexpr Handle netem_handle = 0x00010000U;

  /// Two bands: everything goes to the first, handle + 1, until a filter says otherwise.
  Result<void> add_prio(const std::string& device, Handle parent, Handle handle);
  /// Sends TCP packets to `port` with SYN set and ACK clear to `target`. Source: tc-u32(8).
  Result<void> classify_syns(const std::string& device, Handle parent, Handle target,
                             std::uint16_t port);
  /// Qdisc plug, which lets packets pass until told otherwise. Source: net/sched/sch_plug.c.
  Result<void> add_plug(const std::string& device, Handle parent, Handle handle);
  /// Holds back every packet that comes from now on.
  Result<void> plug(const std::string& device, Handle parent, Handle handle);
  /// Lets go what was held back, and everything after it.
  Result<void> unplug(const std::string& device, Handle parent, Handle handle);

 private:
  struct Close {
    void operator()(mnl_socket* socket) const { mnl_socket_close(socket); }
  };
  explicit Rtnl(mnl_socket* socket) : socket_(socket) {}

  /// Sends one request and waits for its acknowledgement. @param what names it in the error.
  Result<void> talk(nlmsghdr* request, const std::string& what, const std::string& hint = {});
  Result<void> plug_action(const std::string& device, Handle parent, Handle handle, int action,
                           unsigned flags);

  std::unique_ptr<mnl_socket, Close> socket_;
  std::uint32_t sequence_ = 0;
};

}  // namespace lab
