// SPDX-License-Identifier: Apache-2.0
// Which BPF program chooses in the reuseport group of a listener.
#ifndef REUSEPORT_ATTACHED_BPF_HPP
#define REUSEPORT_ATTACHED_BPF_HPP

#include <cstdint>
#include <optional>

#include "host/result.hpp"
#include "host/sockdiag.hpp"

namespace reuseport {

/// The program attached to a reuseport group.
struct AttachedProgram {
  std::uint32_t id = 0;  ///< BPF program id; 0 for a classic (cBPF) program
};

/// The program attached to the group of the socket with this cookie; empty: none. Reads by a BPF
/// iterator, changes nothing. ENOENT: no BTF; EPERM: the hint names the capabilities.
[[nodiscard]] Result<std::optional<AttachedProgram>> attached_program(Protocol protocol,
                                                                      std::uint64_t cookie);

/// SO_COOKIE of a socket, which identifies it in sock_diag.
[[nodiscard]] Result<std::uint64_t> socket_cookie(int fd);

}  // namespace reuseport

#endif  // REUSEPORT_ATTACHED_BPF_HPP
