// SPDX-License-Identifier: Apache-2.0
#include "host/endpoint.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace reuseport {

bool Endpoint::is_any() const noexcept {
  return std::all_of(addr.begin(), addr.end(), [](std::uint8_t b) { return b == 0; });
}

std::string Endpoint::str() const {
  char text[INET6_ADDRSTRLEN] = "?";
  std::string out;

  if (family != AF_INET && family != AF_INET6) {
    return "?";
  }
  inet_ntop(family, addr.data(), text, sizeof(text));
  if (family == AF_INET6) {
    out += '[';
  }
  out += text;
  if (ifindex != 0) {
    out += '%';
    out += std::to_string(ifindex);
  }
  out += family == AF_INET6 ? "]:" : ":";
  out += std::to_string(port);
  return out;
}

std::optional<Endpoint> Endpoint::from(const sockaddr_storage& sa, socklen_t len) noexcept {
  Endpoint e;
  if (sa.ss_family == AF_INET && len >= sizeof(sockaddr_in)) {
    sockaddr_in in{};
    std::memcpy(&in, &sa, sizeof(in));
    std::memcpy(e.addr.data(), &in.sin_addr, sizeof(in.sin_addr));
    e.port = ntohs(in.sin_port);
  } else if (sa.ss_family == AF_INET6 && len >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in6{};
    std::memcpy(&in6, &sa, sizeof(in6));
    std::memcpy(e.addr.data(), &in6.sin6_addr, sizeof(in6.sin6_addr));
    e.port = ntohs(in6.sin6_port);
  } else {
    return std::nullopt;
  }
  e.family = sa.ss_family;
  return e;
}

std::optional<std::uint16_t> parse_port(std::string_view text) noexcept {
  std::uint16_t port = 0;
  const char* end = text.data() + text.size();
  auto [stop, ec] = std::from_chars(text.data(), end, port);

  if (ec != std::errc{} || stop != end || port == 0) {
    return std::nullopt;
  }
  return port;
}

namespace {

std::optional<Endpoint> parse_address(std::string_view text) {
  /* inet_pton() wants a terminated string; an embedded NUL would cut it */
  if (text.size() >= INET6_ADDRSTRLEN || text.find('\0') != std::string_view::npos) {
    return std::nullopt;
  }
  const std::string copy(text);
  Endpoint e;

  for (const sa_family_t family : {sa_family_t{AF_INET}, sa_family_t{AF_INET6}}) {
    if (inet_pton(family, copy.c_str(), e.addr.data()) == 1) {
      e.family = family;
      return e;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<EndpointPattern> EndpointPattern::parse(std::string_view text) {
  EndpointPattern out;
  std::string_view host = text;
  std::string_view port;
  bool has_port = false;

  if (auto only = parse_port(text)) {
    out.port = only;
    return out;
  }
  if (!text.empty() && text.front() == '[') {
    const auto close = text.find(']');
    if (close == std::string_view::npos) {
      return std::nullopt;
    }
    host = text.substr(1, close - 1);
    const auto rest = text.substr(close + 1);
    if (!rest.empty()) {
      if (rest.front() != ':') {
        return std::nullopt;
      }
      has_port = true;
      port = rest.substr(1);
    }
    out.address = parse_address(host);
    if (!out.address || out.address->family != AF_INET6) {
      return std::nullopt;
    }
  } else {
    /* one colon parts address and port; more belong to IPv6 */
    const auto colon = text.find(':');
    if (colon != std::string_view::npos && colon == text.rfind(':')) {
      has_port = true;
      host = text.substr(0, colon);
      port = text.substr(colon + 1);
    }
    if (host != "*" && !(host.empty() && has_port)) {
      out.address = parse_address(host);
      if (!out.address) {
        return std::nullopt;
      }
    }
  }
  if (has_port) {
    out.port = parse_port(port);
    if (!out.port) {
      return std::nullopt;
    }
  }
  return out;
}

bool EndpointPattern::matches(const Endpoint& e) const noexcept {
  if (port && *port != e.port) {
    return false;
  }
  return !address || (address->family == e.family && address->addr == e.addr);
}

}  // namespace reuseport
