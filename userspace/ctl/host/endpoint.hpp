// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_ENDPOINT_HPP
#define REUSEPORT_ENDPOINT_HPP

#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace reuseport {

/// Address of a socket. Ordered by family, address, port, device: the order of every listing.
struct Endpoint {
  sa_family_t family = AF_UNSPEC;
  std::array<std::uint8_t, 16> addr{};  ///< network byte order; IPv4 uses the first four bytes
  std::uint16_t port = 0;               ///< host byte order
  std::uint32_t ifindex = 0;            ///< device the socket is bound to, 0 for none

  // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 doubts what the compiler writes here
  auto operator<=>(const Endpoint&) const = default;

  /// 0.0.0.0 or [::].
  [[nodiscard]] bool is_any() const noexcept;
  /// "192.0.2.1:80" or "[2001:db8::1]:80", with "%ifindex" after the address if bound to a device.
  [[nodiscard]] std::string str() const;

  /// From a sockaddr_in or sockaddr_in6; empty for another family or a short @p len.
  [[nodiscard]] static std::optional<Endpoint> from(const sockaddr_storage& sa,
                                                    socklen_t len) noexcept;
};

/// An address as users write it: "80", ":80", "*:80", "127.0.0.1", "127.0.0.1:80", "::1", "[::1]",
/// "[::1]:80".
struct EndpointPattern {
  std::optional<Endpoint> address;  ///< its port and device are ignored
  std::optional<std::uint16_t> port;

  /// Empty for any other text, also with trailing bytes.
  [[nodiscard]] static std::optional<EndpointPattern> parse(std::string_view text);

  [[nodiscard]] bool matches(const Endpoint& e) const noexcept;
};

/// A decimal port, 1 to 65535, and nothing else.
[[nodiscard]] std::optional<std::uint16_t> parse_port(std::string_view text) noexcept;

}  // namespace reuseport

#endif  // REUSEPORT_ENDPOINT_HPP
