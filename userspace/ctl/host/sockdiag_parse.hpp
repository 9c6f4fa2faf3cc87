// SPDX-License-Identifier: Apache-2.0
// Internal: parses sock_diag replies into DiagSocket. Separate from the socket, so that tests and
// fuzzers can feed it anything.
#ifndef REUSEPORT_SOCKDIAG_PARSE_HPP
#define REUSEPORT_SOCKDIAG_PARSE_HPP

#include <cstddef>
#include <span>
#include <vector>

#include "host/sockdiag.hpp"

namespace reuseport::detail {

enum class Reply {
  more,         ///< no error, further messages follow
  done,         ///< that was the last message
  interrupted,  ///< NLM_F_DUMP_INTR: the tables changed during the dump, repeat it
  failed,       ///< errnum says why
};

struct ReplyState {
  Protocol protocol = Protocol::tcp;
  std::vector<DiagSocket>* out = nullptr;
  int errnum = 0;
};

/// Parses one datagram of the kernel's answer to request @p seq and appends its sockets. Messages
/// that are too short or of another type are EBADMSG; unknown attributes are skipped.
[[nodiscard]] Reply parse_reply(std::span<const std::byte> bytes, std::uint32_t seq,
                                std::uint32_t portid, ReplyState& state);

}  // namespace reuseport::detail

#endif  // REUSEPORT_SOCKDIAG_PARSE_HPP
