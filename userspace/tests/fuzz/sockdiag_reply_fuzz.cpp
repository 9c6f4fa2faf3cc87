// SPDX-License-Identifier: Apache-2.0
// Any datagram as a sock_diag reply. What is parsed must be printable and comparable.
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "host/sockdiag_parse.hpp"
#include "states.hpp"

namespace {

const reuseport::fuzz::States states{"v4_listeners", "v6_listener", "mode",     "none",
                                     "interrupted",  "error",       "truncated"};

void tell(reuseport::detail::Reply reply, int errnum,
          const std::vector<reuseport::DiagSocket>& found) {
  if (reply == reuseport::detail::Reply::interrupted) {
    states.reached("interrupted");
  } else if (reply == reuseport::detail::Reply::failed) {
    states.reached(errnum == EBADMSG ? "truncated" : "error");
  } else if (found.empty()) {
    states.reached("none");
  } else if (found.front().info) {
    states.reached("mode");
  } else if (found.front().local.family == AF_INET6) {
    states.reached("v6_listener");
  } else if (found.size() > 1) {
    states.reached("v4_listeners");
  }
}

}  // namespace

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
  tell(reply, state.errnum, out);
  for (const reuseport::DiagSocket& s : out) {
    if (!s.same_address(s) || s.local.str().empty()) {
      std::abort();
    }
  }
  return 0;
}
