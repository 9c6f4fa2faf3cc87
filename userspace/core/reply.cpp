// SPDX-License-Identifier: Apache-2.0
#include "reply.hpp"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <cstring>

#include "reuseport/reuseport.h"

namespace reuseport::core {

bool read_reply(std::span<const std::byte> bytes, Chosen& chosen) noexcept {
  constexpr std::size_t body = NLMSG_HDRLEN;
  std::size_t at = body + NLMSG_ALIGN(sizeof(inet_diag_msg));
  if (bytes.size() < at) {
    return false;
  }
  std::memcpy(&chosen.socket, bytes.data() + body, sizeof(chosen.socket));
  for (rtattr attribute{}; at + sizeof(attribute) <= bytes.size();
       at += RTA_ALIGN(attribute.rta_len)) {
    std::memcpy(&attribute, bytes.data() + at, sizeof(attribute));
    if (attribute.rta_len < sizeof(attribute) || at + attribute.rta_len > bytes.size()) {
      return false;
    }
    const std::span value = bytes.subspan(at + RTA_LENGTH(0), attribute.rta_len - RTA_LENGTH(0));
    if (attribute.rta_type == INET_DIAG_SKV6ONLY && !value.empty()) {
      chosen.v6only = value[0] != std::byte{0};
    }
    if (attribute.rta_type == INET_DIAG_REUSEPORT && value.size() >= sizeof(std::uint32_t)) {
      std::uint32_t mode = 0;
      std::memcpy(&mode, value.data(), sizeof(mode));
      chosen.mode = mode;
    }
  }
  return true;
}

}  // namespace reuseport::core
