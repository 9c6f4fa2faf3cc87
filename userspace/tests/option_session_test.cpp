// SPDX-License-Identifier: Apache-2.0
// The option by BPF for a tool: adopt listeners, choose among them, set and read their modes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/reuseport.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "option/option.hpp"
#include "support/support.hpp"

namespace reuseport::option {
namespace {

using namespace reuseport::test;

class StockSession : public NetNsTest {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    auto started = Session::start();
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

class StockSessionWays : public StockSession, public ::testing::WithParamInterface<Way> {};

TEST_P(StockSessionWays, off_gets_nothing_standby_falls_back) {
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
  auto got = spread(to, {&a, &b, &c});
  EXPECT_EQ(got[0], 0);
  EXPECT_GT(got[1], 0);
  EXPECT_GT(got[2], 0);
  EXPECT_TRUE(settles(a));

  set(b, REUSEPORT_LISTEN_STANDBY);
  got = spread(to, {&a, &b, &c});
  EXPECT_EQ(got[2], spread_over);

  set(c, REUSEPORT_LISTEN_OFF);
  got = spread(to, {&a, &b, &c});
  EXPECT_EQ(got[1], spread_over);

  set(b, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(try_connect(to), ECONNREFUSED);

  set(a, REUSEPORT_LISTEN_ON);
  got = spread(to, {&a, &b, &c});
  EXPECT_EQ(got[0], spread_over);
}

INSTANTIATE_TEST_SUITE_P(All, StockSessionWays,
                         ::testing::Values(Way{"ipv4", "127.0.0.1", "127.0.0.1"},
                                           Way{"ipv6", "::1", "::1"},
                                           Way{"any4", "0.0.0.0", "127.0.0.1"},
                                           Way{"any6", "::", "::1"},
                                           Way{"dual", "::", "127.0.0.1"}),
                         [](const auto& way) { return std::string(way.param.name); });

Fd open_bound(const Address& at) {
  Fd fd(::socket(at.family(), SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
  EXPECT_EQ(::bind(fd.get(), at.get(), at.len), 0) << std::strerror(errno);
  return fd;
}

/// Sends spread_over datagrams from as many sockets; returns how many each got, then how many were
/// refused. Waits for all of them: on a busy machine a softirq comes later.
std::vector<int> send_many(const Address& to, const std::vector<const Fd*>& sockets) {
  std::vector<Fd> clients;
  for (int i = 0; i < spread_over; i++) {
    Fd client(::socket(to.family(), SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(client.get(), to.get(), to.len), 0);
    EXPECT_EQ(::send(client.get(), "x", 1, 0), 1);
    clients.push_back(std::move(client));
  }
  std::vector<int> got(sockets.size() + 1);
  char byte = 0;
  static_cast<void>(eventually([&] {
    for (std::size_t i = 0; i < sockets.size(); i++) {
      while (::recv(sockets[i]->get(), &byte, 1, 0) == 1) {
        got[i]++;
      }
    }
    for (const Fd& client : clients) {
      got.back() += ::recv(client.get(), &byte, 1, 0) < 0 && errno == ECONNREFUSED ? 1 : 0;
    }
    return std::accumulate(got.begin(), got.end(), 0) == spread_over;
  }));
  return got;
}

TEST_P(StockSessionWays, datagrams) {
  const Fd a = open_bound(address(GetParam().bind));
  const std::uint16_t port = local_address(a.get()).port();
  const Address to = address(GetParam().to, port);
  const Fd b = open_bound(address(GetParam().bind, port));
  const int all = spread_over;
  auto ok = session_->adopt(std::vector<int>{a.get(), b.get()});
  ASSERT_TRUE(ok) << ok.error().message();
  EXPECT_EQ(info(a).group_on, 2U);

  set(a, REUSEPORT_LISTEN_STANDBY);
  EXPECT_EQ(send_many(to, {&a, &b}), (std::vector{0, all, 0}));
  EXPECT_TRUE(settles(a));
  set(b, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(send_many(to, {&a, &b}), (std::vector{all, 0, 0}));
  set(a, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(send_many(to, {&a, &b}), (std::vector{0, 0, all}));
  set(b, REUSEPORT_LISTEN_ON);
  EXPECT_EQ(send_many(to, {&a, &b}), (std::vector{0, all, 0}));
}

TEST_F(StockSession, datagrams_that_wait_are_counted) {
  const Fd a = open_bound(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_bound(to);
  ASSERT_TRUE(session_->adopt(std::vector<int>{a.get(), b.get()}));
  set(b, REUSEPORT_LISTEN_OFF);
  const Fd client(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::sendto(client.get(), "x", 1, 0, to.get(), to.len), 1);
  EXPECT_TRUE(eventually([&] { return info(a).queued > 0; }));
  EXPECT_EQ(info(b).queued, 0U);
  char byte = 0;
  ASSERT_EQ(::recv(a.get(), &byte, 1, 0), 1);
  EXPECT_EQ(info(a).queued, 0U);
}

// It would be starved otherwise: only its descriptor makes it known.
TEST_F(StockSession, unknown_datagram_socket_is_left_to_the_kernel) {
  const Fd a = open_bound(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_bound(to);
  ASSERT_TRUE(session_->adopt(std::vector<int>{a.get(), b.get()}));
  set(a, REUSEPORT_LISTEN_OFF);
  ASSERT_TRUE(settles(a));
  const Fd stranger = open_bound(to);
  const auto got = send_many(to, {&a, &b, &stranger});
  EXPECT_GT(got[2], 0);
  EXPECT_EQ(info(a).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
  ASSERT_TRUE(session_->adopt(stranger.get()));
  EXPECT_EQ(send_many(to, {&a, &b, &stranger})[0], 0);
  EXPECT_TRUE(settles(a));
}

TEST_F(StockSession, newcomers_are_found) {
  const Fd a = open_bound(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_bound(to);
  session_.reset();
  std::vector<std::size_t> asked;
  auto started = Session::start(-1, GroupSize::normal, [&](const auto& cookies) {
    asked.push_back(cookies.size());
    std::vector<Fd> fds(cookies.size());
    fds[0].reset(::fcntl(b.get(), F_DUPFD_CLOEXEC, 0));
    return fds;
  });
  ASSERT_TRUE(started) << started.error().message();
  session_.emplace(std::move(*started));
  ASSERT_TRUE(session_->adopt(a.get()));
  EXPECT_EQ(info(a).group_on, 2U);
  // on that port, but not in that group
  const Fd stranger = open_bound(address("127.0.0.2", to.port()));
  ASSERT_TRUE(session_->refresh());
  EXPECT_EQ(asked, std::vector<std::size_t>{1}) << "nobody else is asked for, or again";
}

TEST_F(StockSession, group_with_another_program_is_refused) {
  const Fd a = open_bound(address("127.0.0.1"));
  sock_filter first[] = {{BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog program{1, first};
  ASSERT_EQ(::setsockopt(a.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program)),
            0);
  const auto refused = session_->adopt(a.get());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().errnum, EBUSY);
}

// A connected socket is a flow: it keeps its datagrams, and does not count as an ON member.
TEST_F(StockSession, connected_datagram_socket_is_no_member) {
  const Fd a = open_bound(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_bound(to);
  const Fd peer = open_bound(address("127.0.0.1"));
  const Address from = local_address(peer.get());
  ASSERT_EQ(::connect(b.get(), from.get(), from.len), 0);
  adopt(a);
  // some kernels remove it from its group, others do not
  if (const auto ok = session_->adopt(b.get()); !ok) {
    EXPECT_EQ(ok.error().errnum, EINVAL);
  }
  EXPECT_EQ(info(a).group_on, 1U);
  set(a, REUSEPORT_LISTEN_STANDBY);
  EXPECT_EQ(send_many(to, {&a, &b})[0], spread_over) << "nobody is ON: STANDBY serves";
  ASSERT_EQ(::sendto(peer.get(), "x", 1, 0, to.get(), to.len), 1);
  char byte = 0;
  EXPECT_TRUE(eventually([&] { return ::recv(b.get(), &byte, 1, MSG_DONTWAIT) == 1; }));
}

TEST_F(StockSession, datagrams_end_with_the_session) {
  const Fd a = open_bound(address("127.0.0.1"));
  ASSERT_TRUE(session_->adopt(a.get()));
  set(a, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(send_many(local_address(a.get()), {&a}), (std::vector{0, spread_over}));
  session_.reset();
  // the kernel empties the table of programs a moment after its last descriptor is closed
  EXPECT_TRUE(
      eventually([&] { return send_many(local_address(a.get()), {&a})[0] == spread_over; }));
}

TEST_F(StockSession, ends_with_the_session) {
  const Fd a = open_listener(address("127.0.0.1"));
  adopt(a);
  set(a, REUSEPORT_LISTEN_OFF);
  EXPECT_EQ(try_connect(local_address(a.get())), ECONNREFUSED);
  session_.reset();
  EXPECT_EQ(try_connect(local_address(a.get())), 0);
}

}  // namespace
}  // namespace reuseport::option
