// SPDX-License-Identifier: Apache-2.0
// The option by BPF for a tool: adopt listeners, choose among them, set and read their modes.
#include <gtest/gtest.h>
#include <linux/reuseport.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "option/option.hpp"
#include "support/support.hpp"

namespace reuseport::option {
namespace {

using namespace reuseport::test;

constexpr unsigned many = 64;  // enough for every member of a small group to be chosen

class SessionTest : public NetNsTest {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    auto started = Session::start();
    if (expect_supported()) {
      ASSERT_FALSE(started);
      EXPECT_EQ(need(started.error()), Need::not_by_bpf);
      GTEST_SKIP() << "the kernel has the option itself";
    }
    if (::access("/sys/kernel/btf/vmlinux", F_OK) != 0) {
      ASSERT_FALSE(started);
      EXPECT_EQ(need(started.error()), Need::kernel) << started.error().message();
      GTEST_SKIP() << "this kernel has no BTF";
    }
    ASSERT_TRUE(started) << started.error().message();
    session_.emplace(std::move(*started));
  }

  void adopt(const Fd& fd) {
    const auto ok = session_->adopt(fd.get());
    ASSERT_TRUE(ok) << ok.error().message();
  }
  void set(const Fd& fd, int mode) {
    const auto ok = session_->set_mode(fd.get(), mode);
    ASSERT_TRUE(ok) << ok.error().message();
  }
  reuseport_listen_info info(const Fd& fd) {
    const auto got = session_->get_info(fd.get());
    EXPECT_TRUE(got) << got.error().message();
    return got ? *got : reuseport_listen_info{};
  }
  /// Makes `many` connections and says how many of them each got.
  std::vector<int> connect_many(const Address& to, const std::vector<const Fd*>& listeners) {
    std::vector<Fd> clients;
    for (unsigned i = 0; i < many; i++) {
      clients.push_back(open_client(to));
      EXPECT_EQ(connect_result(clients.back().get()), 0);
    }
    std::vector<int> got(listeners.size());
    unsigned sum = 0;
    EXPECT_TRUE(eventually([&] {
      for (std::size_t i = 0; i < listeners.size(); i++) {
        const int n = accept_all(listeners[i]->get());
        got[i] += n;
        sum += static_cast<unsigned>(n);
      }
      return sum >= many;
    }));
    return got;
  }
  bool settles(const Fd& fd) {
    return eventually([&] { return (info(fd).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; });
  }

  std::optional<Session> session_;
};

struct Way {
  const char* name;
  const char* bind;
  const char* to;
};

class SessionWays : public SessionTest, public ::testing::WithParamInterface<Way> {};

TEST_P(SessionWays, OffGetsNothingStandbyFallsBack) {
  const Fd a = open_listener(address(GetParam().bind));
  const std::uint16_t port = local_address(a.get()).port();
  const Address to = address(GetParam().to, port);
  const Fd b = open_listener(address(GetParam().bind, port));
  const Fd c = open_listener(address(GetParam().bind, port));
  adopt(a);
  EXPECT_EQ(info(a).group_on, 3U);

  set(a, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(info(a).group_off, 1U);
  EXPECT_EQ(info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  auto got = connect_many(to, {&a, &b, &c});
  EXPECT_EQ(got[0], 0);
  EXPECT_GT(got[1], 0);
  EXPECT_GT(got[2], 0);
  EXPECT_TRUE(settles(a));

  set(b, REUSEPORT_LISTEN_STANDBY);
  got = connect_many(to, {&a, &b, &c});
  EXPECT_EQ(got[2], static_cast<int>(many));

  set(c, REUSEPORT_LISTEN_OFF);
  got = connect_many(to, {&a, &b, &c});
  EXPECT_EQ(got[1], static_cast<int>(many));

  set(b, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(try_connect(to), ECONNREFUSED);

  set(a, REUSEPORT_LISTEN_ON);
  got = connect_many(to, {&a, &b, &c});
  EXPECT_EQ(got[0], static_cast<int>(many));
}

INSTANTIATE_TEST_SUITE_P(All, SessionWays,
                         ::testing::Values(Way{"ipv4", "127.0.0.1", "127.0.0.1"},
                                           Way{"ipv6", "::1", "::1"},
                                           Way{"any4", "0.0.0.0", "127.0.0.1"},
                                           Way{"any6", "::", "::1"},
                                           Way{"dual", "::", "127.0.0.1"}),
                         [](const auto& way) { return std::string(way.param.name); });

TEST_F(SessionTest, EndsWithTheSession) {
  const Fd a = open_listener(address("127.0.0.1"));
  adopt(a);
  set(a, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(try_connect(local_address(a.get())), ECONNREFUSED);
  session_.reset();
  EXPECT_EQ(try_connect(local_address(a.get())), 0);
}

}  // namespace
}  // namespace reuseport::option
