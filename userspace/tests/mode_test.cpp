// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>

#include <cerrno>
#include <ostream>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

struct Kind {
  const char* name;
  const char* ip;
  int type;
  int protocol;
};

// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest's name
void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

constexpr Kind kinds[] = {
    {"tcp4", "127.0.0.1", SOCK_STREAM, 0},
    {"tcp6", "::1", SOCK_STREAM, 0},
    {"tcp_dual", "::", SOCK_STREAM, 0},
    {"udp4", "127.0.0.1", SOCK_DGRAM, 0},
    {"udp6", "::1", SOCK_DGRAM, 0},
    {"mptcp4", "127.0.0.1", SOCK_STREAM, IPPROTO_MPTCP},
    {"mptcp6", "::1", SOCK_STREAM, IPPROTO_MPTCP},
};

class ModeOf : public test::NetNsTest, public ::testing::WithParamInterface<Kind> {
 protected:
  [[nodiscard]] static Fd open(const test::Address& at) {
    return test::open_listener(at, GetParam().type, GetParam().protocol);
  }
};

// Tests of the option itself: see CMakeLists.txt.
class OptionOf : public ModeOf {};

INSTANTIATE_TEST_SUITE_P(Kinds, OptionOf, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return kind.param.name; });
INSTANTIATE_TEST_SUITE_P(Kinds, ModeOf, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return kind.param.name; });

TEST_P(ModeOf, mode_is_set_and_read_back_or_the_option_is_missing) {
  const Fd fd = open(test::address(GetParam().ip));
  ASSERT_TRUE(fd);
  for (const Mode mode : {Mode::off, Mode::standby, Mode::on}) {
    const auto set = set_mode(fd.get(), mode);
    const Expected<Info> seen = get_info(fd.get());
    const bool mptcp = GetParam().protocol == IPPROTO_MPTCP;
    const bool udp = GetParam().type == SOCK_DGRAM;
    if ((mptcp || udp) && test::expected_support() == "supported_by_bpf") {
      ASSERT_FALSE(set);
      EXPECT_EQ(set.error().errnum, mptcp ? EOPNOTSUPP : EAGAIN);
    } else if (test::expect_supported()) {
      ASSERT_TRUE(set) << set.error().message();
      ASSERT_TRUE(seen) << seen.error().message();
      EXPECT_EQ(Mode{seen->mode}, mode);
    } else {
      ASSERT_FALSE(set);
      // mptcp_setsockopt() has a list of options, and this error for all others.
      EXPECT_EQ(set.error().errnum, mptcp ? EOPNOTSUPP : ENOPROTOOPT);
      EXPECT_EQ(set.error().call, "setsockopt(SO_REUSEPORT_LISTEN_OFF)");
      ASSERT_FALSE(seen);
      EXPECT_EQ(seen.error().errnum, ENOPROTOOPT);
      EXPECT_EQ(seen.error().call, "getsockopt(SO_REUSEPORT_LISTEN_OFF)");
      EXPECT_NE(seen.error().hint.find("patches"), std::string::npos);
    }
  }
}

TEST_P(OptionOf, group_is_counted) {
  const Fd first = open(test::address(GetParam().ip));
  const test::Address at = test::local_address(first.get());
  const Fd second = open(at);
  const Fd third = open(at);
  ASSERT_TRUE(set_mode(second.get(), Mode::off));
  ASSERT_TRUE(set_mode(third.get(), Mode::standby));
  const Expected<Info> info = get_info(first.get());
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_EQ(Mode{info->mode}, Mode::on);
  EXPECT_EQ(info->group_on, 1U);
  EXPECT_EQ(info->group_off, 1U);
  EXPECT_EQ(info->group_standby, 1U);
  EXPECT_EQ(get_info(second.get())->group_id, info->group_id);
}

TEST_P(OptionOf, settles_and_is_then_drained) {
  const Fd fd = open(test::address(GetParam().ip));
  EXPECT_FALSE(get_info(fd.get())->drained()) << "an ON listener never is";
  ASSERT_TRUE(set_mode(fd.get(), Mode::off));
  EXPECT_TRUE(test::eventually([&] { return get_info(fd.get())->drained(); }));
}

class ModeErrors : public test::NetNsTest {
 protected:
  // The result of both calls; never reached on a kernel without the option.
  static void expect_error(int fd, int errnum) {
    const int expected = test::expect_supported() ? errnum : ENOPROTOOPT;
    const auto set = set_mode(fd, Mode::off);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().errnum, expected) << set.error().message();
    EXPECT_FALSE(set.error().hint.empty());
  }
};

TEST_F(ModeErrors, other_families_and_protocols) {
  const Fd local(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd raw(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
  const Fd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
  expect_error(local.get(), EOPNOTSUPP);
  expect_error(raw.get(), EOPNOTSUPP);
  expect_error(netlink.get(), EOPNOTSUPP);
}

TEST_F(ModeErrors, no_reuseport) {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  expect_error(fd.get(), EINVAL);
}

TEST_F(ModeErrors, accepted_connection) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(listener.get()));
  const Fd child = test::accept_one(listener.get(), std::chrono::seconds(5));
  ASSERT_TRUE(child);
  expect_error(child.get(), EINVAL);
}

TEST_F(ModeErrors, unknown_mode) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  for (const int mode : {3, -1, 0x10000}) {
    const auto set = set_mode(fd.get(), static_cast<Mode>(mode));
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().errnum, test::expect_supported() ? EINVAL : ENOPROTOOPT);
  }
}

TEST_F(ModeErrors, no_socket_at_all) {
  const Fd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(set_mode(file.get(), Mode::off).error().errnum, ENOTSOCK);
  EXPECT_EQ(get_info(file.get()).error().errnum, ENOTSOCK);
  EXPECT_EQ(set_mode(-1, Mode::off).error().errnum, EBADF);
  EXPECT_EQ(get_info(-1).error().message(),
            "getsockopt(SO_REUSEPORT_LISTEN_OFF): Bad file descriptor: pass an open socket");
}

TEST(Mode, names_go_both_ways) {
  for (const Mode mode : {Mode::on, Mode::off, Mode::standby}) {
    EXPECT_EQ(parse_mode(to_string(mode)), mode);
  }
  EXPECT_EQ(parse_mode("unknown"), std::nullopt);
  EXPECT_EQ(parse_mode(""), std::nullopt);
  EXPECT_EQ(parse_mode("OFF"), std::nullopt);
  EXPECT_EQ(to_string(static_cast<Mode>(7)), "unknown");
}

TEST(Info, drained) {
  constexpr std::uint32_t settled = REUSEPORT_LISTEN_F_SETTLED;
  constexpr std::uint32_t cookies = REUSEPORT_LISTEN_F_COOKIES;
  const auto drained = [](Mode mode, std::uint32_t flags, std::uint32_t on,
                          std::uint32_t handshakes = 0, std::uint32_t queued = 0) {
    Info info{};
    info.mode = static_cast<std::uint32_t>(mode);
    info.flags = flags;
    info.group_on = on;
    info.handshakes = handshakes;
    info.queued = queued;
    return info.drained();
  };
  EXPECT_TRUE(drained(Mode::off, settled, 0));
  EXPECT_TRUE(drained(Mode::standby, settled | REUSEPORT_LISTEN_F_BPF, 1));
  EXPECT_FALSE(drained(Mode::standby, settled, 0)) << "it serves";
  EXPECT_FALSE(drained(Mode::on, settled, 1));
  EXPECT_FALSE(drained(Mode::off, 0, 1));
  EXPECT_FALSE(drained(Mode::off, settled | cookies, 0));
  EXPECT_FALSE(drained(Mode::off, settled, 1, 1));
  EXPECT_FALSE(drained(Mode::off, settled, 1, 0, 1));
}

}  // namespace
}  // namespace reuseport
