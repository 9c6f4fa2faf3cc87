// SPDX-License-Identifier: Apache-2.0
// Parses an answer of sock_diag(7). Apart from the socket, so that a fuzzer can feed it anything.
#ifndef REUSEPORT_CORE_REPLY_HPP
#define REUSEPORT_CORE_REPLY_HPP

#include <linux/inet_diag.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace reuseport::core {

/// The member that the kernel would choose.
struct Chosen {
  inet_diag_msg socket{};
  bool v6only = false;
  std::optional<std::uint32_t> mode;
};

/// Parses a SOCK_DIAG_BY_FAMILY message and its attributes; false if it is truncated.
[[nodiscard]] bool read_reply(std::span<const std::byte> bytes, Chosen& chosen) noexcept;

}  // namespace reuseport::core

#endif  // REUSEPORT_CORE_REPLY_HPP
