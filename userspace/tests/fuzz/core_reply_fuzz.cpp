// SPDX-License-Identifier: Apache-2.0
// Any datagram as the answer to the query of the core. It never comes from anybody but the kernel,
// but a later kernel may say more.
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include <cstdint>
#include <vector>

#include "core/reply.hpp"
#include "states.hpp"

namespace {
const reuseport::fuzz::States states{"plain", "v6only", "mode", "cut", "cut_attribute"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t fixed = NLMSG_LENGTH(NLMSG_ALIGN(sizeof(inet_diag_msg)));
  const auto* begin = static_cast<const std::byte*>(static_cast<const void*>(data));
  const std::vector<std::byte> bytes(begin, begin + size);  // its end is guarded
  reuseport::core::Chosen chosen;
  if (!reuseport::core::read_reply(bytes, chosen)) {
    states.reached(size < fixed ? "cut" : "cut_attribute");
    return 0;
  }
  reuseport::fuzz::require(size >= fixed, "read what is not there");
  const std::size_t attributes = size - fixed;
  reuseport::fuzz::require(!chosen.v6only || attributes > RTA_LENGTH(0), "no v6only is there");
  reuseport::fuzz::require(!chosen.mode || attributes >= RTA_LENGTH(sizeof(*chosen.mode)),
                           "no mode is there");
  states.reached(chosen.mode ? "mode" : chosen.v6only ? "v6only" : "plain");
  return 0;
}
