// SPDX-License-Identifier: Apache-2.0
// parse_mode(): whatever it accepts must print as what was read.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "reuseport/reuseport.hpp"
#include "states.hpp"

namespace {
const reuseport::fuzz::States states{"on", "off", "standby", "refused"};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(static_cast<const char*>(static_cast<const void*>(data)), size);
  const std::optional<reuseport::Mode> mode = reuseport::parse_mode(text);
  reuseport::fuzz::require(!mode || to_string(*mode) == text, "prints otherwise");
  states.reached(mode ? to_string(*mode).data() : "refused");
  return 0;
}
