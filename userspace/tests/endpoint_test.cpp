// SPDX-License-Identifier: Apache-2.0
#include "host/endpoint.hpp"

#include <gtest/gtest.h>

#include <string>

#include "support/support.hpp"

namespace reuseport {
namespace {

Endpoint endpoint(const std::string& ip, std::uint16_t port) {
  const test::Address a = test::address(ip, port);
  return Endpoint::from(a.storage, a.len).value_or(Endpoint{});
}

TEST(Endpoint, text) {
  EXPECT_EQ(endpoint("192.0.2.1", 80).str(), "192.0.2.1:80");
  EXPECT_EQ(endpoint("2001:db8::1", 65535).str(), "[2001:db8::1]:65535");
  EXPECT_EQ(endpoint("::", 1).str(), "[::]:1");
  Endpoint bound = endpoint("0.0.0.0", 53);
  bound.ifindex = 3;
  EXPECT_EQ(bound.str(), "0.0.0.0%3:53");
  EXPECT_EQ(Endpoint{}.str(), "?");
}

TEST(Endpoint, from_refuses_a_short_or_foreign_address) {
  const test::Address a = test::address("127.0.0.1", 80);
  EXPECT_FALSE(Endpoint::from(a.storage, sizeof(sockaddr_in) - 1));
  sockaddr_storage un{};
  un.ss_family = AF_UNIX;
  EXPECT_FALSE(Endpoint::from(un, sizeof(un)));
}

TEST(Endpoint, order_is_family_address_port) {
  EXPECT_LT(endpoint("127.0.0.1", 99), endpoint("127.0.0.2", 1));
  EXPECT_LT(endpoint("127.0.0.1", 1), endpoint("127.0.0.1", 2));
  EXPECT_LT(endpoint("255.255.255.255", 9), endpoint("::", 1));
}

struct PatternCase {
  const char* text;
  const char* address;  // nullptr: any
  int port;             // 0: any
};

class PatternTest : public ::testing::TestWithParam<PatternCase> {};

TEST_P(PatternTest, parses) {
  const auto& c = GetParam();
  const auto p = EndpointPattern::parse(c.text);
  ASSERT_TRUE(p) << c.text;
  EXPECT_EQ(p->port.value_or(0), c.port);
  ASSERT_EQ(p->address.has_value(), c.address != nullptr);
  if (c.address != nullptr) {
    EXPECT_EQ(p->address->addr, endpoint(c.address, 0).addr);
    EXPECT_TRUE(p->matches(
        endpoint(c.address, c.port != 0 ? static_cast<std::uint16_t>(c.port) : std::uint16_t{7})));
    EXPECT_FALSE(p->matches(endpoint("198.51.100.7", 80)));
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PatternTest,
    ::testing::Values(PatternCase{"80", nullptr, 80}, PatternCase{":80", nullptr, 80},
                      PatternCase{"*:80", nullptr, 80}, PatternCase{"*", nullptr, 0},
                      PatternCase{"127.0.0.1", "127.0.0.1", 0},
                      PatternCase{"127.0.0.1:80", "127.0.0.1", 80}, PatternCase{"::1", "::1", 0},
                      PatternCase{"[::1]", "::1", 0}, PatternCase{"[::1]:443", "::1", 443},
                      PatternCase{"::", "::", 0}, PatternCase{"[::]:65535", "::", 65535}));

TEST(EndpointPattern, refuses_everything_else) {
  for (const char* text : {"",
                           ":",
                           "[",
                           "[]",
                           "[]:80",
                           "[127.0.0.1]:80",
                           "[::1",
                           "[::1]80",
                           "[::1]:",
                           "127.0.0.1:",
                           "127.0.0.1:0",
                           "127.0.0.1:65536",
                           "127.0.0.1:-1",
                           "127.0.0.1:80x",
                           " 80",
                           "80 ",
                           "0",
                           "65536",
                           "localhost:80",
                           "127.0.0.1:+80",
                           "1.2.3",
                           "*:",
                           "*80",
                           "::1]:80",
                           "[::1]:80:1"}) {
    EXPECT_FALSE(EndpointPattern::parse(text)) << '"' << text << '"';
  }
  EXPECT_FALSE(EndpointPattern::parse(std::string_view("127.0.0.1\0x", 11)));
  EXPECT_FALSE(EndpointPattern::parse(std::string(100, '1')));
}

}  // namespace
}  // namespace reuseport
