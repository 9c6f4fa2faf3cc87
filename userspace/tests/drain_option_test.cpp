// SPDX-License-Identifier: Apache-2.0
// The drain with SO_REUSEPORT_LISTEN_OFF, by the kernel or by BPF.
#include <fcntl.h>
#include <netinet/tcp.h>

#include <ostream>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Kind {
  const char* name;
  const char* listen;
  const char* connect;
  int protocol;
};

// NOLINTNEXTLINE(readability-identifier-naming): GoogleTest's name
void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

constexpr Kind kinds[] = {
    {"tcp4", "127.0.0.1", "127.0.0.1", 0},
    {"tcp6", "::1", "::1", 0},
    {"tcp4_on_dual", "::", "127.0.0.1", 0},
    {"mptcp4", "127.0.0.1", "127.0.0.1", IPPROTO_MPTCP},
};

// An old listener, which a drain takes, and a newcomer beside it if a test needs one.
class OptionDrain : public test::NetNsTest, public ::testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(NetNsTest::SetUp());
    old_ = open(0);
    fd_ = old_.get();
    port_ = test::local_address(fd_).port();
  }

  [[nodiscard]] static Fd open(std::uint16_t port) {
    return test::open_listener(test::address(GetParam().listen, port), SOCK_STREAM,
                               GetParam().protocol);
  }
  [[nodiscard]] static Mode mode(int fd) { return Mode{get_info(fd)->mode}; }
  [[nodiscard]] test::Address address() const { return test::address(GetParam().connect, port_); }

  void connect(int count) {
    for (int i = 0; i < count; ++i) {
      clients_.push_back(test::open_client(address()));
      ASSERT_EQ(test::connect_result(clients_.back().get()), 0);
    }
  }

  // A client whose request stays half-open at the listener until finish_half_open(): with
  // TCP_DEFER_ACCEPT the connection is not accepted before there is data (tcp(7)).
  void connect_half_open() {
    const int wait_seconds = 30;
    ASSERT_EQ(::setsockopt(fd_, IPPROTO_TCP, TCP_DEFER_ACCEPT, &wait_seconds, sizeof(int)), 0);
    connect(1);
    ASSERT_TRUE(test::eventually([&] { return get_info(fd_)->handshakes == 1; }));
  }
  void finish_half_open() { ASSERT_EQ(::send(clients_.back().get(), "x", 1, 0), 1); }

  [[nodiscard]] Drain drain_of_old(DrainOptions options = {}) {
    Drain drain(std::move(options));
    EXPECT_TRUE(drain.add(std::move(old_)));
    return drain;
  }

  // Steps and accepts until the drain is done, or makes no progress.
  static int accepted_until_done(Drain& drain) {
    int accepted = 0;
    const bool done = test::eventually([&] {
      const Step step = drain.step();
      for (const int fd : step.fds) {
        accepted += test::accept_all(fd);
      }
      return step.action == Action::done;
    });
    EXPECT_TRUE(done) << "the drain does not end";
    return accepted;
  }

  Fd old_;
  int fd_ = -1;
  std::uint16_t port_ = 0;
  std::vector<Fd> clients_;
};

INSTANTIATE_TEST_SUITE_P(Kinds, OptionDrain, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return kind.param.name; });

TEST_P(OptionDrain, queue_is_accepted_and_newcomer_gets_the_rest) {
  connect(5);
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.policy = Policy::require});
  ASSERT_TRUE(drain.start());
  connect(20);
  EXPECT_EQ(test::accept_count(newcomer.get(), 20), 20);
  EXPECT_EQ(accepted_until_done(drain), 5);

  const Report report = drain.report();
  EXPECT_EQ(report.outcome, Outcome::drained);
  EXPECT_EQ(report.method, Method::option);
  EXPECT_TRUE(report.lossless());
  EXPECT_TRUE(report.left.nothing());
  EXPECT_FALSE(report.timed_out);
  EXPECT_FALSE(test::is_open(fd_));
  connect(1);
  EXPECT_EQ(test::accept_count(newcomer.get(), 1), 1);
}

TEST_P(OptionDrain, waits_for_half_open_handshakes) {
  connect_half_open();
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.poll_interval = milliseconds(5)});
  ASSERT_TRUE(drain.start());
  const auto end = Clock::now() + milliseconds(100);
  while (Clock::now() < end) {
    ASSERT_EQ(drain.step().action, Action::wait_until);
  }
  EXPECT_EQ(drain.report().left.handshakes, 1U);
  EXPECT_EQ(mode(fd_), Mode::standby);
  finish_half_open();
  EXPECT_EQ(accepted_until_done(drain), 1);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(OptionDrain, deadline_tells_what_was_left) {
  connect_half_open();
  // long enough for a busy machine to take the first step before it
  Drain drain = drain_of_old({.last_on = LastOn::leave, .timeout = seconds(2)});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::deadline_hit);
  EXPECT_TRUE(drain.report().timed_out);
  EXPECT_FALSE(drain.report().lossless());
  EXPECT_EQ(drain.report().left.handshakes, 1U);
  EXPECT_FALSE(test::is_open(fd_));
}

TEST_P(OptionDrain, deadline_can_undo) {
  connect_half_open();
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.at_deadline = AtDeadline::undo, .timeout = milliseconds(300)});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(mode(fd_), Mode::standby);
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_TRUE(drain.report().timed_out);
  old_ = std::move(drain.take_back()[0]);
  EXPECT_EQ(mode(fd_), Mode::on);
  finish_half_open();
  EXPECT_TRUE(test::accept_one(fd_, seconds(5)));
}

// BPF cannot tell the kernel which listener to migrate to, and of MPTCP only what has fallen back
// to TCP, as here, migrates.
TEST_P(OptionDrain, late_ones_migrate_where_that_is_on) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  connect_half_open();
  const Fd newcomer = open(port_);
  const bool by_bpf = get_info(fd_)->by_bpf();
  Drain drain = drain_of_old({.timeout = milliseconds(300)});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(accepted_until_done(drain), 0);
  const bool mptcp = GetParam().protocol == IPPROTO_MPTCP;
  EXPECT_EQ(drain.report().outcome, by_bpf || mptcp ? Outcome::deadline_hit : Outcome::migrated);
  EXPECT_TRUE(drain.report().timed_out);
  finish_half_open();
  EXPECT_TRUE(by_bpf || test::accept_one(newcomer.get(), seconds(5))) << "reported as migrated";
}

// The newcomer dies while the drain waits for a handshake: the old listener serves again as before.
TEST_P(OptionDrain, the_old_one_serves_again_when_the_newcomer_dies) {
  connect_half_open();
  Fd newcomer = open(port_);
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.step().action, Action::wait_until);
  newcomer.reset();
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_EQ(drain.report().error->errnum, EADDRNOTAVAIL);
  EXPECT_EQ(mode(fd_), Mode::on);
  const int no_wait = 0;
  ASSERT_EQ(::setsockopt(fd_, IPPROTO_TCP, TCP_DEFER_ACCEPT, &no_wait, sizeof(int)), 0);
  finish_half_open();
  connect(1);
  EXPECT_EQ(test::accept_count(fd_, 2), 2);
}

TEST_P(OptionDrain, last_on_is_refused) {
  Drain drain = drain_of_old();
  const auto started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EADDRNOTAVAIL);
  EXPECT_EQ(mode(fd_), Mode::on);
  const Fd newcomer = open(port_);
  ASSERT_TRUE(drain.start()) << "a drain that did not start may be started again";
  EXPECT_EQ(accepted_until_done(drain), 0);
}

// SO_REUSEPORT set after listen() makes no group. Members of the group whose id is 0, as here where
// there is no other group, do not serve its address.
TEST_P(OptionDrain, last_on_is_refused_where_one_has_no_group) {
  const Fd stays[] = {open(port_), open(port_)};
  const test::Address free = test::address(GetParam().listen, 0);
  Fd lone(::socket(free.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, GetParam().protocol));
  ASSERT_EQ(::bind(lone.get(), free.get(), free.len), 0);
  ASSERT_EQ(::listen(lone.get(), 1), 0);
  const int yes = 1;
  ASSERT_EQ(::setsockopt(lone.get(), SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes), 0);
  ASSERT_FALSE(get_info(lone.get())->in_group());
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.add(std::move(lone)));
  const auto started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EADDRNOTAVAIL);
  EXPECT_EQ(mode(fd_), Mode::on);
}

TEST_P(OptionDrain, an_address_that_shall_go_refuses_new_connections) {
  connect(2);
  Drain drain = drain_of_old({.last_on = LastOn::leave});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(mode(fd_), Mode::off);
  EXPECT_EQ(test::try_connect(address()), ECONNREFUSED);
  EXPECT_EQ(accepted_until_done(drain), 2);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(OptionDrain, waits_as_standby_for_a_newcomer) {
  Drain drain = drain_of_old({.last_on = LastOn::wait});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(mode(fd_), Mode::standby);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  connect(1);
  ASSERT_TRUE(test::wait_queued(fd_, 1));
  const Step step = drain.step();
  ASSERT_EQ(step.action, Action::accept_more) << "a STANDBY listener serves while it is alone";
  EXPECT_EQ(test::accept_count(step.fds[0], 1), 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);

  const Fd newcomer = open(port_);
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(OptionDrain, no_newcomer_until_the_deadline_undoes) {
  Drain drain = drain_of_old({.last_on = LastOn::wait, .timeout = milliseconds(100)});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_TRUE(drain.report().timed_out);
  EXPECT_EQ(mode(fd_), Mode::on);
}

TEST_P(OptionDrain, undo_restores_each_mode) {
  const Fd newcomer = open(port_);
  const Fd standby = open(port_);
  ASSERT_TRUE(set_mode(standby.get(), Mode::standby));
  const Fd off = open(port_);
  ASSERT_TRUE(set_mode(off.get(), Mode::off));
  const Fd on(::dup(fd_));
  for (const bool by_destructor : {false, true}) {
    {
      Drain drain = drain_of_old();
      ASSERT_TRUE(drain.add(Fd(::dup(standby.get()))));
      ASSERT_TRUE(drain.add(Fd(::dup(off.get()))));
      ASSERT_TRUE(drain.start());
      EXPECT_EQ(mode(on.get()), Mode::standby);
      EXPECT_EQ(mode(off.get()), Mode::off);
      if (!by_destructor) {
        EXPECT_TRUE(drain.undo());
        EXPECT_EQ(drain.step().action, Action::done);
        EXPECT_EQ(drain.report().outcome, Outcome::undone);
        EXPECT_EQ(drain.undo().error().errnum, ESTALE);
        std::vector<Fd> back = drain.take_back();
        ASSERT_EQ(back.size(), 3U);
        old_ = std::move(back[0]);
      }
    }
    EXPECT_EQ(mode(on.get()), Mode::on);
    EXPECT_EQ(mode(standby.get()), Mode::standby);
    EXPECT_EQ(mode(off.get()), Mode::off);
  }
}

TEST_P(OptionDrain, failure_half_way_switches_nothing) {
  const Fd newcomer = open(port_);
  Fd other = open(port_);
  const int number = other.get();
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.add(std::move(other)));
  const int zero = 0;
  ASSERT_EQ(::setsockopt(number, SOL_SOCKET, SO_REUSEPORT, &zero, sizeof(zero)), 0);
  const auto started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EINVAL);
  EXPECT_EQ(mode(fd_), Mode::on);
}

TEST_P(OptionDrain, many_listeners_in_one_drain) {
  constexpr int many = 64;
  Drain drain = drain_of_old();
  for (int i = 1; i < many; ++i) {
    ASSERT_TRUE(drain.add(open(port_)));
  }
  connect(200);
  const Fd newcomer = open(port_);
  ASSERT_TRUE(drain.start());
  connect(50);
  EXPECT_EQ(test::accept_count(newcomer.get(), 50), 50);
  EXPECT_EQ(accepted_until_done(drain), 200);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
  EXPECT_EQ(drain.report().listeners.size(), 64U);
  EXPECT_TRUE(drain.open_fds().empty());
}

class OptionDrainUdp : public test::NetNsTest, public ::testing::WithParamInterface<const char*> {};

INSTANTIATE_TEST_SUITE_P(Kinds, OptionDrainUdp, ::testing::Values("127.0.0.1", "::1"),
                         [](const auto& ip) { return ip.index == 0 ? "udp4" : "udp6"; });

TEST_P(OptionDrainUdp, datagrams_are_read_to_the_last) {
  Fd old = test::open_listener(test::address(GetParam()), SOCK_DGRAM);
  const test::Address at = test::local_address(old.get());
  const Fd client = test::open_client(at, SOCK_DGRAM);
  // Wait for each: one still in flight when the newcomer comes may reach the newcomer.
  const auto queued = [&] { return get_info(old.get())->queued; };
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  ASSERT_TRUE(test::eventually([&] { return queued() > 0; }));
  const std::uint32_t one = queued();
  ASSERT_EQ(::send(client.get(), "", 0, 0), 0);  // one of no bytes, the last
  ASSERT_TRUE(test::eventually([&] { return queued() > one; }));
  const Fd newcomer = test::open_listener(at, SOCK_DGRAM);
  Drain drain({.policy = Policy::require});
  ASSERT_TRUE(drain.add(std::move(old)));
  int read = 0;
  const Expected<Report> report = run(drain, [&](int fd) {
    char byte = 0;
    if (::recv(fd, &byte, 1, MSG_DONTWAIT) >= 0) {
      ++read;
    }
  });
  ASSERT_TRUE(report) << report.error().message();
  EXPECT_EQ(read, 2);
  EXPECT_EQ(report->outcome, Outcome::drained);
  ASSERT_EQ(::send(client.get(), "y", 1, 0), 1);
  char byte = 0;
  EXPECT_TRUE(
      test::eventually([&] { return ::recv(newcomer.get(), &byte, 1, MSG_DONTWAIT) == 1; }));
}

}  // namespace
}  // namespace reuseport
