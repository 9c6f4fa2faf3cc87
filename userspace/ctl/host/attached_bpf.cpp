// SPDX-License-Identifier: Apache-2.0
#include "attached_bpf.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "bpf_iterator.hpp"

namespace reuseport {

Result<std::uint64_t> socket_cookie(int fd) {
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) != 0) {
    return fail("getsockopt(SO_COOKIE)", errno);
  }
  return cookie;
}

Result<std::optional<AttachedProgram>> attached_program(Protocol protocol, std::uint64_t cookie) {
  using namespace detail;
  const auto records = run_iterator<group_record>(protocol == Protocol::udp ? Iterator::udp_groups
                                                                            : Iterator::tcp_groups);
  if (!records) {
    return tl::unexpected(records.error());
  }
  const auto found = std::ranges::find(*records, cookie, &group_record::cookie);
  return found != records->end()
             ? std::optional<AttachedProgram>{AttachedProgram{found->program_id}}
             : std::nullopt;
}

}  // namespace reuseport
