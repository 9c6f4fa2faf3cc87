// SPDX-License-Identifier: Apache-2.0
// Which listeners a packet finds that arrives through a VRF, see
// Documentation/networking/vrf.rst.
#ifndef REUSEPORT_VRF_HPP
#define REUSEPORT_VRF_HPP

#include <cstdint>

#include "host/result.hpp"
#include "host/sockdiag.hpp"

namespace reuseport {

/// Whether the device is a VRF, or a port of one, in the network namespace of the caller. Needs no
/// privilege. ENODEV: there is no such device.
[[nodiscard]] Result<bool> in_vrf(std::uint32_t ifindex);

/// The sysctls net.ipv4.tcp_l3mdev_accept and udp_l3mdev_accept, of IPv6 as well: whether a socket
/// that is bound to no device gets what arrives through a VRF. A kernel without them has no VRF.
[[nodiscard]] bool accepts_from_vrfs(Protocol protocol);

}  // namespace reuseport

#endif  // REUSEPORT_VRF_HPP
