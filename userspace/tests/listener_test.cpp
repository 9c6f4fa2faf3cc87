// SPDX-License-Identifier: Apache-2.0
#include "reuseport/listener.hpp"

#include <fcntl.h>

#include <cerrno>
#include <ostream>

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

class ListenerOf : public test::NetNsTest, public ::testing::WithParamInterface<Kind> {
 protected:
  [[nodiscard]] static Fd open(const test::Address& at) {
    return test::open_listener(at, GetParam().type, GetParam().protocol);
  }
};

INSTANTIATE_TEST_SUITE_P(Kinds, ListenerOf, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return kind.param.name; });

TEST_P(ListenerOf, ModeIsSetAndReadBackOrTheOptionIsMissing) {
  const Fd fd = open(test::address(GetParam().ip));
  ASSERT_TRUE(fd);
  const Listener listener(fd.get());
  for (const Mode mode : {Mode::off, Mode::standby, Mode::on}) {
    const Status set = listener.set_mode(mode);
    const Result<Mode> seen = listener.mode();
    if (test::expect_supported()) {
      ASSERT_TRUE(set) << set.error().message();
      ASSERT_TRUE(seen) << seen.error().message();
      EXPECT_EQ(to_string(*seen), to_string(mode));
    } else {
      ASSERT_FALSE(set);
      // mptcp_setsockopt() has a list of what it knows, and this answer for the rest.
      const bool mptcp = GetParam().protocol == IPPROTO_MPTCP;
      EXPECT_EQ(set.error().errnum, mptcp ? EOPNOTSUPP : ENOPROTOOPT);
      EXPECT_EQ(set.error().call, "setsockopt(SO_REUSEPORT_LISTEN_OFF)");
      ASSERT_FALSE(seen);
      EXPECT_EQ(seen.error().errnum, ENOPROTOOPT);
      EXPECT_EQ(seen.error().call, "getsockopt(SO_REUSEPORT_LISTEN_OFF)");
      EXPECT_NE(seen.error().hint.find("patches"), std::string::npos);
    }
  }
}

TEST_P(ListenerOf, GroupIsCounted) {
  REUSEPORT_ONLY_WHEN_SUPPORTED();
  const Fd first = open(test::address(GetParam().ip));
  const test::Address at = test::local_address(first.get());
  const Fd second = open(at);
  const Fd third = open(at);
  ASSERT_TRUE(Listener(second.get()).set_mode(Mode::off));
  ASSERT_TRUE(Listener(third.get()).set_mode(Mode::standby));
  const Result<Info> info = Listener(first.get()).info();
  ASSERT_TRUE(info) << info.error().message();
  EXPECT_EQ(info->mode, Mode::on);
  EXPECT_EQ(info->group_on, 1U);
  EXPECT_EQ(info->group_off, 1U);
  EXPECT_EQ(info->group_standby, 1U);
  EXPECT_EQ(Listener(second.get()).info()->group_id, info->group_id);
}

TEST_P(ListenerOf, SettlesAndIsThenDrained) {
  REUSEPORT_ONLY_WHEN_SUPPORTED();
  const Fd fd = open(test::address(GetParam().ip));
  const Listener listener(fd.get());
  EXPECT_FALSE(listener.info()->drained()) << "an ON listener never is";
  ASSERT_TRUE(listener.set_mode(Mode::off));
  EXPECT_TRUE(test::eventually([&] { return listener.info()->drained(); }));
}

class ListenerErrors : public test::NetNsTest {
 protected:
  // What both calls answer; on a kernel without the option it is never reached.
  static void expect_error(int fd, int errnum) {
    const int expected = test::expect_supported() ? errnum : ENOPROTOOPT;
    const Status set = Listener(fd).set_mode(Mode::off);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().errnum, expected) << set.error().message();
    EXPECT_FALSE(set.error().hint.empty());
  }
};

TEST_F(ListenerErrors, OtherFamiliesAndProtocols) {
  const Fd local(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd raw(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
  const Fd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0));
  expect_error(local.get(), EOPNOTSUPP);
  expect_error(raw.get(), EOPNOTSUPP);
  expect_error(netlink.get(), EOPNOTSUPP);
}

TEST_F(ListenerErrors, NoReuseport) {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  expect_error(fd.get(), EINVAL);
}

TEST_F(ListenerErrors, AcceptedConnection) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(listener.get()));
  const Fd child = test::accept_one(listener.get(), std::chrono::seconds(5));
  ASSERT_TRUE(child);
  expect_error(child.get(), EINVAL);
}

TEST_F(ListenerErrors, UnknownMode) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  for (const int mode : {3, -1, 0x10000}) {
    const Status set = Listener(fd.get()).set_mode(static_cast<Mode>(mode));
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().errnum, test::expect_supported() ? EINVAL : ENOPROTOOPT);
  }
}

TEST_F(ListenerErrors, NoSocketAtAll) {
  const Fd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(Listener(file.get()).set_mode(Mode::off).error().errnum, ENOTSOCK);
  EXPECT_EQ(Listener(file.get()).info().error().errnum, ENOTSOCK);
  EXPECT_EQ(Listener(-1).set_mode(Mode::off).error().errnum, EBADF);
  EXPECT_EQ(Listener(-1).info().error().message(),
            "getsockopt(SO_REUSEPORT_LISTEN_OFF): Bad file descriptor: give an open socket");
}

TEST(Mode, NamesGoBothWays) {
  for (const Mode mode : {Mode::on, Mode::off, Mode::standby}) {
    EXPECT_EQ(parse_mode(to_string(mode)), mode);
  }
  EXPECT_EQ(parse_mode("unknown"), std::nullopt);
  EXPECT_EQ(parse_mode(""), std::nullopt);
  EXPECT_EQ(parse_mode("OFF"), std::nullopt);
  EXPECT_EQ(to_string(static_cast<Mode>(7)), "unknown");
}

TEST(Info, DrainedNeedsAllFour) {
  const Info drained{.mode = Mode::off, .flags = 1};
  EXPECT_TRUE(drained.drained());
  for (const Info& info :
       {Info{.mode = Mode::on, .flags = 1}, Info{.mode = Mode::standby, .flags = 1},
        Info{.mode = Mode::off, .flags = 2}, Info{.mode = Mode::off, .flags = 1, .handshakes = 1},
        Info{.mode = Mode::off, .flags = 1, .queued = 1}}) {
    EXPECT_FALSE(info.drained());
  }
}

}  // namespace
}  // namespace reuseport
