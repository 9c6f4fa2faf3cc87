// SPDX-License-Identifier: Apache-2.0
// Any datagram as a sock_diag reply. What is parsed must be printable and comparable.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "host/sockdiag_parse.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::byte> bytes(size);  // aligned, as a receive buffer is
  if (size > 0) {
    std::memcpy(bytes.data(), data, size);
  }
  std::vector<reuseport::DiagSocket> out;
  reuseport::detail::ReplyState state{reuseport::Protocol::tcp, &out, 0};
  // sequence and port id 0 are "any" to libmnl, so that the fuzzer need not guess them
  const auto reply = reuseport::detail::parse_reply(bytes, 0, 0, state);
  if (reply == reuseport::detail::Reply::failed && state.errnum == 0) {
    std::abort();
  }
  for (const reuseport::DiagSocket& s : out) {
    if (!s.same_address(s) || s.local.str().empty()) {
      std::abort();
    }
  }
  return 0;
}
