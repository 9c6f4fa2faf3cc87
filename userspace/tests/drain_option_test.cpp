// SPDX-License-Identifier: Apache-2.0
// The drain with SO_REUSEPORT_LISTEN_OFF, on a kernel that has it.
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/wait.h>

#include <ostream>
#include <vector>

#include "reuseport/drain.hpp"
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

// An old listener, which a drain takes, and beside it a newcomer where a test wants one.
class DrainOption : public test::NetNsTest, public ::testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    REUSEPORT_ONLY_WHEN_SUPPORTED();
    ASSERT_NO_FATAL_FAILURE(NetNsTest::SetUp());
    old_ = open(0);
    fd_ = old_.get();
    port_ = test::local_address(fd_).port();
  }

  [[nodiscard]] static Fd open(std::uint16_t port) {
    return test::open_listener(test::address(GetParam().listen, port), SOCK_STREAM,
                               GetParam().protocol);
  }
  [[nodiscard]] test::Address address() const { return test::address(GetParam().connect, port_); }

  void connect(int count) {
    for (int i = 0; i < count; ++i) {
      clients_.push_back(test::open_client(address()));
      ASSERT_EQ(test::connect_result(clients_.back().get()), 0);
    }
  }

  // A client whose request stays half-open at the listener until finish_half_open(): what arrives
  // is not handed over before there is data (tcp(7)).
  void connect_half_open() {
    const int wait_seconds = 30;
    ASSERT_EQ(::setsockopt(fd_, IPPROTO_TCP, TCP_DEFER_ACCEPT, &wait_seconds, sizeof(int)), 0);
    connect(1);
    ASSERT_TRUE(test::eventually([&] { return Listener(fd_).info()->handshakes == 1; }));
  }
  void finish_half_open() { ASSERT_EQ(::send(clients_.back().get(), "x", 1, 0), 1); }

  [[nodiscard]] Drain drain_of_old(DrainOptions options = {}) {
    Drain drain(std::move(options));
    EXPECT_TRUE(drain.add(old_.release()));
    return drain;
  }

  // Steps and accepts until the drain is done, or does not get on.
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

INSTANTIATE_TEST_SUITE_P(Kinds, DrainOption, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return kind.param.name; });

TEST_P(DrainOption, QueueIsAcceptedAndNewcomerGetsTheRest) {
  connect(5);
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.policy = Policy::require});
  ASSERT_TRUE(drain.start());
  connect(20);
  EXPECT_EQ(test::accept_count(newcomer.get(), 20), 20);
  EXPECT_EQ(accepted_until_done(drain), 5);

  const Report& report = drain.report();
  EXPECT_EQ(report.outcome, Outcome::drained);
  EXPECT_EQ(report.method, Method::option);
  EXPECT_TRUE(report.lossless());
  EXPECT_TRUE(report.left().nothing());
  EXPECT_FALSE(report.timed_out);
  EXPECT_FALSE(test::is_open(fd_));
  connect(1);
  EXPECT_EQ(test::accept_count(newcomer.get(), 1), 1);
}

TEST_P(DrainOption, WaitsForHalfOpenHandshakes) {
  connect_half_open();
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.poll_interval = milliseconds(5)});
  ASSERT_TRUE(drain.start());
  const auto end = Clock::now() + milliseconds(100);
  while (Clock::now() < end) {
    ASSERT_EQ(drain.step().action, Action::wait_until);
  }
  EXPECT_EQ(drain.report().left().handshakes, 1U);
  finish_half_open();
  EXPECT_EQ(accepted_until_done(drain), 1);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(DrainOption, DeadlineTellsWhatWasLeft) {
  connect_half_open();
  Drain drain = drain_of_old({.timeout = seconds(1)});
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(drain.start(start));
  EXPECT_EQ(drain.step(start).action, Action::wait_until);
  EXPECT_EQ(drain.step(start + seconds(1)).action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::deadline_hit);
  EXPECT_TRUE(drain.report().timed_out);
  EXPECT_FALSE(drain.report().lossless());
  EXPECT_EQ(drain.report().left().handshakes, 1U);
  EXPECT_FALSE(test::is_open(fd_));
}

TEST_P(DrainOption, DeadlineCanUndo) {
  connect_half_open();
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.at_deadline = AtDeadline::undo, .timeout = seconds(1)});
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(drain.start(start));
  EXPECT_EQ(Listener(fd_).mode(), Mode::off);
  EXPECT_EQ(drain.step(start + seconds(1)).action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_TRUE(drain.report().timed_out);
  ASSERT_TRUE(test::is_open(fd_));
  old_.reset(fd_);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
  finish_half_open();
  EXPECT_TRUE(test::accept_one(fd_, seconds(5)));
}

TEST_P(DrainOption, LateOnesMigrateWhereThatIsOn) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  connect_half_open();
  const Fd newcomer = open(port_);
  Drain drain = drain_of_old({.timeout = seconds(1)});
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(drain.start(start));
  EXPECT_EQ(drain.step(start + seconds(1)).action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::migrated);
  EXPECT_TRUE(drain.report().timed_out);
  finish_half_open();
  EXPECT_TRUE(test::accept_one(newcomer.get(), seconds(5))) << "reported as migrated";
}

TEST_P(DrainOption, LastOnIsRefusedWhereAsked) {
  Drain drain({.last_on = LastOn::refuse});
  ASSERT_TRUE(drain.add(fd_));
  const Status started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EADDRNOTAVAIL);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
  const Fd newcomer = open(port_);
  (void)old_.release();  // the drain's from here
  ASSERT_TRUE(drain.start()) << "a drain that did not start may be started again";
  EXPECT_EQ(accepted_until_done(drain), 0);
}

// Asked for after listen(), SO_REUSEPORT makes no group. Others in the group whose id is 0, as here
// where no other group lives, do not serve its address.
TEST_P(DrainOption, LastOnIsRefusedWhereOneHasNoGroup) {
  const Fd stays[] = {open(port_), open(port_)};
  const test::Address free = test::address(GetParam().listen, 0);
  const Fd lone(::socket(free.get()->sa_family, SOCK_STREAM | SOCK_CLOEXEC, GetParam().protocol));
  ASSERT_EQ(::bind(lone.get(), free.get(), free.len), 0);
  ASSERT_EQ(::listen(lone.get(), 1), 0);
  const int yes = 1;
  ASSERT_EQ(::setsockopt(lone.get(), SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes), 0);
  ASSERT_FALSE(Listener(lone.get()).info()->in_group());
  Drain drain({.last_on = LastOn::refuse});
  ASSERT_TRUE(drain.add(fd_));
  ASSERT_TRUE(drain.add(lone.get()));
  const Status started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EADDRNOTAVAIL);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
}

TEST_P(DrainOption, LastOnAllowedRefusesNewConnections) {
  connect(2);
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(test::try_connect(address()), ECONNREFUSED);
  EXPECT_EQ(accepted_until_done(drain), 2);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(DrainOption, WaitsAsStandbyForANewcomer) {
  Drain drain = drain_of_old({.last_on = LastOn::wait});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(Listener(fd_).mode(), Mode::standby);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  connect(1);
  ASSERT_TRUE(test::wait_queued(fd_, 1));
  const Step step = drain.step();
  ASSERT_EQ(step.action, Action::accept_more) << "a STANDBY listener serves while it is alone";
  EXPECT_EQ(test::accept_count(step.fds[0], 1), 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);

  const Fd newcomer = open(port_);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(Listener(fd_).mode(), Mode::off);
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(drain.report().outcome, Outcome::drained);
}

TEST_P(DrainOption, NoNewcomerUntilTheDeadlineUndoes) {
  Drain drain = drain_of_old({.last_on = LastOn::wait, .timeout = seconds(1)});
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(drain.start(start));
  EXPECT_EQ(drain.step(start + seconds(1)).action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_TRUE(drain.report().timed_out);
  old_.reset(fd_);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
}

TEST_P(DrainOption, UndoRestoresEachMode) {
  const Fd standby = open(port_);
  ASSERT_TRUE(Listener(standby.get()).set_mode(Mode::standby));
  const Fd off = open(port_);
  ASSERT_TRUE(Listener(off.get()).set_mode(Mode::off));
  connect(1);
  for (const bool by_destructor : {false, true}) {
    Drain drain;
    for (const int fd : {fd_, standby.get(), off.get()}) {
      ASSERT_TRUE(drain.add(fd));
    }
    ASSERT_TRUE(test::wait_queued(fd_, 1));
    ASSERT_TRUE(drain.start());
    EXPECT_EQ(drain.step().action, Action::accept_more);
    EXPECT_EQ(Listener(standby.get()).mode(), Mode::off);
    if (by_destructor) {
      { const Drain dying = std::move(drain); }
    } else {
      EXPECT_TRUE(drain.undo());
      EXPECT_EQ(drain.step().action, Action::done);
      EXPECT_EQ(drain.report().outcome, Outcome::undone);
      EXPECT_EQ(drain.undo().error().errnum, ESTALE);
    }
    EXPECT_EQ(Listener(fd_).mode(), Mode::on);
    EXPECT_EQ(Listener(standby.get()).mode(), Mode::standby);
    EXPECT_EQ(Listener(off.get()).mode(), Mode::off);
  }
}

TEST_P(DrainOption, FailureHalfWaySwitchesNothing) {
  const Fd other = open(port_);
  Drain drain;
  ASSERT_TRUE(drain.add(fd_));
  ASSERT_TRUE(drain.add(other.get()));
  const int zero = 0;
  ASSERT_EQ(::setsockopt(other.get(), SOL_SOCKET, SO_REUSEPORT, &zero, sizeof(zero)), 0);
  const Status started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EINVAL);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
}

TEST_P(DrainOption, SharedListenerIsNotSwitchedOff) {
  Result<bool> answer = true;
  Drain drain({.is_shared = [&](int) { return answer; }});
  ASSERT_TRUE(drain.add(fd_));
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
  answer = fail("open(/proc/1/fd)", EACCES, "run as root");
  EXPECT_EQ(drain.start().error().errnum, EACCES);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
  answer = false;
  EXPECT_TRUE(drain.start());
  EXPECT_EQ(Listener(fd_).mode(), Mode::off);
}

TEST_P(DrainOption, AnotherHolderIsFoundWithoutBeingAskedFor) {
  // A child that inherited the listener and does nothing until it is told to end.
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[1]);
    char byte = 0;
    ::_exit(::read(ends[0], &byte, 1) == 0 ? 0 : 1);
  }
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  Drain drain({.close = [](int) {}});
  ASSERT_TRUE(drain.add(fd_));
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
  EXPECT_EQ(Listener(fd_).mode(), Mode::on);
  writer.reset();
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(drain.start());
}

TEST_P(DrainOption, ManyListenersInOneDrain) {
  constexpr int many = 64;
  Drain drain = drain_of_old();
  for (int i = 1; i < many; ++i) {
    ASSERT_TRUE(drain.add(open(port_).release()));
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

TEST_P(DrainOption, CloseIsTheCallersWhereGiven) {
  std::vector<int> closed;
  Drain drain({.close = [&](int fd) { closed.push_back(fd); }});
  ASSERT_TRUE(drain.add(fd_));
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(accepted_until_done(drain), 0);
  EXPECT_EQ(closed, std::vector<int>{fd_});
  EXPECT_TRUE(test::is_open(fd_));
}

class DrainOptionUdp : public test::NetNsTest, public ::testing::WithParamInterface<const char*> {};

INSTANTIATE_TEST_SUITE_P(Kinds, DrainOptionUdp, ::testing::Values("127.0.0.1", "::1"),
                         [](const auto& ip) { return ip.index == 0 ? "udp4" : "udp6"; });

TEST_P(DrainOptionUdp, DatagramsAreReadToTheLast) {
  REUSEPORT_ONLY_WHEN_SUPPORTED();
  Fd old = test::open_listener(test::address(GetParam()), SOCK_DGRAM);
  const test::Address at = test::local_address(old.get());
  const Fd client = test::open_client(at, SOCK_DGRAM);
  // Each is waited for: one still under way when the newcomer comes may be the newcomer's.
  const auto queued = [&] { return Listener(old.get()).info()->queued; };
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  ASSERT_TRUE(test::eventually([&] { return queued() > 0; }));
  const std::uint32_t one = queued();
  ASSERT_EQ(::send(client.get(), "", 0, 0), 0);  // one of no bytes, the last
  ASSERT_TRUE(test::eventually([&] { return queued() > one; }));
  const Fd newcomer = test::open_listener(at, SOCK_DGRAM);
  Drain drain({.policy = Policy::require});
  ASSERT_TRUE(drain.add(old.release()));
  int read = 0;
  const Result<Report> report = run(drain, [&](int fd) {
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
