// SPDX-License-Identifier: Apache-2.0
// Internal: bytes of a sock_diag reply into DiagSocket. Apart from the socket, so that tests and
// fuzzers can feed it anything.
#ifndef REUSEPORT_SOCKDIAG_PARSE_HPP
#define REUSEPORT_SOCKDIAG_PARSE_HPP

#include <cstddef>
#include <span>
#include <vector>

#include "host/sockdiag.hpp"

namespace reuseport::detail {

enum class Reply {
  more,         ///< all well, further messages follow
  done,         ///< the last message was seen
  interrupted,  ///< NLM_F_DUMP_INTR: the tables changed under the dump, ask again
  failed,       ///< errnum says why
};

struct ReplyState {
  Protocol protocol = Protocol::tcp;
  std::vector<DiagSocket>* out = nullptr;
  int errnum = 0;
};

/// Parses one datagram of the kernel's answer to the request @p seq and appends what it holds.
/// Messages that are too short or of another kind are EBADMSG, unknown attributes are skipped.
[[nodiscard]] Reply parse_reply(std::span<const std::byte> bytes, std::uint32_t seq,
                                std::uint32_t portid, ReplyState& state);

}  // namespace reuseport::detail

#endif  // REUSEPORT_SOCKDIAG_PARSE_HPP
