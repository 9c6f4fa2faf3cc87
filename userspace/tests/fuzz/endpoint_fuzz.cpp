// SPDX-License-Identifier: Apache-2.0
// Addresses on the command line: what is accepted must match the endpoint it names.
#include <sys/socket.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "host/endpoint.hpp"
#include "states.hpp"

namespace {
const reuseport::fuzz::States states{"v4", "v6", "any", "port", "refused"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(static_cast<const char*>(static_cast<const void*>(data)), size);
  const auto pattern = reuseport::EndpointPattern::parse(text);
  if (pattern) {
    reuseport::Endpoint e = pattern->address.value_or(reuseport::Endpoint{});
    e.port = pattern->port.value_or(1);
    if (!pattern->matches(e) || (pattern->port && *pattern->port == 0)) {
      std::abort();
    }
    // what it prints is read back as the same
    if (pattern->address) {
      const auto again = reuseport::EndpointPattern::parse(e.str());
      if (!again || !again->address || again->address->addr != e.addr || again->port != e.port) {
        std::abort();
      }
    }
  }
  states.reached(!pattern                              ? "refused"
                 : !pattern->address                   ? "any"
                 : pattern->address->family == AF_INET ? "v4"
                                                       : "v6");
  const auto port = reuseport::parse_port(text);
  if (port) {
    reuseport::fuzz::require(*port != 0, "port 0");
    states.reached("port");
  }
  return 0;
}
