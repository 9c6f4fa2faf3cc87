// SPDX-License-Identifier: Apache-2.0
// The drain's rules, on any kernel: a table simulates the option, the listeners are real.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <thread>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace {

// An answer of sock_diag(7) that is in the queue of each netlink socket from the start, from a
// sender that is not the kernel.
struct ForgedAnswer {
  nlmsghdr header;
  inet_diag_msg socket;
};
std::optional<ForgedAnswer> forged;
int delivered = 0;

}  // namespace

// The linker makes the library call this (-Wl,--wrap).
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" {
int __real_socket(int family, int type, int protocol);
int __wrap_socket(int family, int type, int protocol) {
  const int fd = __real_socket(family, type, protocol);
  if (!forged || family != AF_NETLINK || fd < 0) {
    return fd;
  }
  const reuseport::Fd sender(__real_socket(family, type, protocol));
  sockaddr_nl to{};
  to.nl_family = AF_NETLINK;
  socklen_t len = sizeof(to);
  auto* address = static_cast<sockaddr*>(static_cast<void*>(&to));
  if (::bind(fd, address, len) == 0 && ::getsockname(fd, address, &len) == 0 &&
      ::sendto(sender.get(), &*forged, sizeof(*forged), 0, address, len) ==
          static_cast<ssize_t>(sizeof(*forged))) {
    ++delivered;
  }
  return fd;
}
}
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

namespace reuseport {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// What the kernel would report for each listener, and the modes that were set.
struct Provider {
  std::map<int, Info> infos;
  std::vector<std::pair<int, Mode>> set;
  std::map<int, int> set_error;  // by descriptor, 0: works
  std::map<int, int> get_error;

  void say(int fd, std::uint32_t group_on, std::uint32_t handshakes = 0, std::uint32_t queued = 0,
           std::uint32_t flags = REUSEPORT_LISTEN_F_SETTLED) {
    Info& info = infos[fd];
    info.flags = flags;
    info.handshakes = handshakes;
    info.queued = queued;
    info.group_id = 7;
    info.group_on = group_on;
    info.group_standby = 1;
  }
  [[nodiscard]] Mode mode(int fd) { return Mode{infos[fd].mode}; }

  [[nodiscard]] DrainOptions options(DrainOptions given = {}) {
    given.is_shared = [](int) { return false; };
    given.set_mode = [this](int fd, Mode mode) -> Expected<void> {
      if (set_error[fd] != 0) {
        return Error{"set_mode", set_error[fd], ""};
      }
      set.emplace_back(fd, mode);
      infos[fd].mode = static_cast<std::uint32_t>(mode);
      return {};
    };
    given.get_info = [this](int fd) -> Expected<Info> {
      if (get_error[fd] != 0) {
        return Error{"get_info", get_error[fd], ""};
      }
      return infos[fd];
    };
    return given;
  }
};

class DrainRules : public test::NetNsTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(NetNsTest::SetUp());
    old_ = test::open_listener(test::address("127.0.0.1"));
    fd_ = old_.get();
    at_ = test::local_address(fd_);
    newcomer_ = test::open_listener(at_);
    provider_.say(fd_, 2);  // itself and the newcomer
  }

  [[nodiscard]] Drain drain_of_old(DrainOptions options = {}) {
    Drain drain(provider_.options(std::move(options)));
    EXPECT_TRUE(drain.add(std::move(old_)));
    return drain;
  }
  /// A started drain of @p old, which is drained; the table says that there is a newcomer.
  Drain started_drain(Fd old) {
    const int fd = old.get();
    provider_.say(fd, 2);
    provider_.infos[fd].mode = REUSEPORT_LISTEN_ON;
    Drain drain(provider_.options());
    EXPECT_TRUE(drain.add(std::move(old)));
    EXPECT_TRUE(drain.start());
    provider_.say(fd, 1);
    return drain;
  }
  /// A started drain: the old one is drained, @p other has something in its queue.
  Drain drain_of_two(int& other) {
    Fd second = test::open_listener(at_);
    other = second.get();
    provider_.say(fd_, 3);
    provider_.say(other, 3);
    Drain drain = drain_of_old();
    EXPECT_TRUE(drain.add(std::move(second)));
    EXPECT_TRUE(drain.start());
    provider_.say(fd_, 1);
    provider_.say(other, 1, 1);
    EXPECT_EQ(drain.step().action, Action::wait_until);
    return drain;
  }
  static Action step_to_the_end(Drain& drain, milliseconds limit = seconds(10)) {
    Action action = Action::wait_until;
    (void)test::eventually([&] { return (action = drain.step().action) == Action::done; }, limit);
    return action;
  }
  static Report ended(Drain& drain) {
    EXPECT_EQ(step_to_the_end(drain), Action::done);
    return drain.report();
  }

  Provider provider_;
  Fd old_;
  int fd_ = -1;
  test::Address at_;
  Fd newcomer_;
};

// Group numbers are per namespace: each of these has its own newcomer.
TEST_F(DrainRules, groups_of_two_namespaces_are_two) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  Fd elsewhere = test::open_listener(test::address("0.0.0.0"));
  provider_.say(elsewhere.get(), 2);
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.add(std::move(elsewhere)));
  EXPECT_TRUE(drain.start());
}

// ---- The report claims nothing that was not seen ----

TEST_F(DrainRules, what_was_not_started_is_no_success) {
  Drain drain = drain_of_old();
  EXPECT_EQ(drain.report().outcome, Outcome::not_started);
  EXPECT_EQ(drain.report().method, Method::none);
  EXPECT_FALSE(drain.report().lossless());
  EXPECT_EQ(drain.step().action, Action::done);
  provider_.say(fd_, 1);  // alone
  EXPECT_EQ(drain.start().error().errnum, EADDRNOTAVAIL);
  EXPECT_EQ(drain.report().outcome, Outcome::not_started);
  EXPECT_EQ(drain.report().error->errnum, EADDRNOTAVAIL);
  EXPECT_FALSE(drain.report().lossless());
  EXPECT_NE(static_cast<int>(REUSEPORT_DRAINED), 0);
}

TEST_F(DrainRules, while_it_runs_it_says_so) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 2, 3);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  const Report report = drain.report();
  EXPECT_EQ(report.outcome, Outcome::running);
  EXPECT_EQ(report.listeners[0].outcome, Outcome::running);
  EXPECT_FALSE(report.lossless());
  EXPECT_EQ(report.left.handshakes, 2U);
  EXPECT_EQ(report.left.queued, 3U);
  EXPECT_TRUE(report.listeners[0].open);
}

TEST_F(DrainRules, standby_from_start_to_close) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_TRUE(test::is_open(fd_));
  provider_.say(fd_, 1);
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::drained);
  EXPECT_EQ(report.method, Method::option);
  EXPECT_TRUE(report.lossless());
  EXPECT_FALSE(test::is_open(fd_));
  EXPECT_EQ(provider_.set, (std::vector<std::pair<int, Mode>>{{fd_, Mode::standby}}));
}

TEST_F(DrainRules, cookies_and_an_unsettled_choice_are_waited_for) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 0, 0, REUSEPORT_LISTEN_F_SETTLED | REUSEPORT_LISTEN_F_COOKIES);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.say(fd_, 1, 0, 0, 0);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.say(fd_, 1);
  EXPECT_EQ(ended(drain).outcome, Outcome::drained);
}

TEST_F(DrainRules, a_look_that_fails_is_no_look) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1);
  provider_.get_error[fd_] = ENOBUFS;
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(drain.report().listeners[0].errnum, ENOBUFS);
  provider_.get_error.clear();
  EXPECT_EQ(ended(drain).outcome, Outcome::drained);
}

TEST_F(DrainRules, one_that_vanished_counts_by_the_last_look_before) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 2, 4);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.get_error[fd_] = ESTALE;
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::vanished);
  EXPECT_EQ(report.left.handshakes, 2U);
  EXPECT_EQ(report.left.queued, 4U);
  EXPECT_FALSE(report.lossless());
  EXPECT_FALSE(test::is_open(fd_)) << "the copy must not keep the address";
}

TEST_F(DrainRules, one_that_vanished_when_drained_is_drained) {
  int other = -1;
  Drain drain = drain_of_two(other);
  ::close(fd_);
  provider_.say(other, 1);
  const Report report = ended(drain);
  EXPECT_EQ(report.listeners[0].outcome, Outcome::drained);
  EXPECT_EQ(report.listeners[1].outcome, Outcome::drained);
}

TEST_F(DrainRules, a_shut_down_listener_has_vanished) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.infos[fd_] = Info{};  // in no group any more
  provider_.infos[fd_].mode = REUSEPORT_LISTEN_STANDBY;
  provider_.infos[fd_].flags = REUSEPORT_LISTEN_F_SETTLED;
  EXPECT_EQ(ended(drain).outcome, Outcome::vanished);
}

TEST_F(DrainRules, another_socket_under_the_same_number_is_left_alone) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  const Fd stranger = test::open_listener(test::address("127.0.0.1"));
  ASSERT_EQ(::dup2(stranger.get(), fd_), fd_);
  provider_.say(fd_, 1);
  const Fd keep(fd_);
  EXPECT_EQ(ended(drain).outcome, Outcome::vanished);
  EXPECT_TRUE(test::is_open(fd_));
}

TEST_F(DrainRules, another_socket_under_the_same_number_is_not_given_back) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  const Fd stranger = test::open_listener(test::address("127.0.0.1"));
  ASSERT_EQ(::dup2(stranger.get(), fd_), fd_);
  const Fd keep(fd_);
  EXPECT_EQ(drain.undo().error().errnum, ECANCELED);
  EXPECT_EQ(drain.report().outcome, Outcome::vanished);
  EXPECT_TRUE(drain.take_back().empty());
  EXPECT_TRUE(test::is_open(fd_));
}

TEST_F(DrainRules, a_stranger_under_the_number_is_not_switched) {
  Drain drain = drain_of_old();
  const Fd stranger = test::open_listener(test::address("127.0.0.1"));
  ASSERT_EQ(::dup2(stranger.get(), fd_), fd_);
  EXPECT_EQ(drain.start().error().errnum, EBADF);
  EXPECT_TRUE(provider_.set.empty());
}

TEST_F(DrainRules, the_newcomer_is_looked_for_once_more_after_close) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  newcomer_.reset();  // while the table still says that there is one
  provider_.say(fd_, 1);
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::unconfirmed);
  EXPECT_FALSE(report.lossless());
}

// Whoever has CAP_NET_ADMIN may send to a netlink socket, and need not be of this process.
TEST_F(DrainRules, an_answer_that_the_kernel_did_not_send_is_no_newcomer) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  newcomer_.reset();
  provider_.say(fd_, 1);
  sockaddr_in at{};
  std::memcpy(&at, at_.get(), sizeof(at));
  forged.emplace();
  forged->header.nlmsg_len = sizeof(ForgedAnswer);
  forged->header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  forged->header.nlmsg_seq = 1;
  forged->socket.idiag_family = AF_INET;
  forged->socket.id.idiag_sport = at.sin_port;
  forged->socket.id.idiag_src[0] = at.sin_addr.s_addr;
  forged->socket.idiag_inode = ~0U;
  forged->socket.idiag_uid = ::getuid();
  const Report report = ended(drain);
  forged.reset();
  EXPECT_EQ(report.outcome, Outcome::unconfirmed);
  EXPECT_GE(delivered, 1);
}

// SO_REUSEADDR lets another user's UDP socket in at the same address.
TEST_F(DrainRules, another_users_socket_is_no_newcomer) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to give a socket away";
  }
  const int one = 1;
  for (const bool ours : {true, false}) {
    Fd old = test::open_listener(test::address("127.0.0.1"), SOCK_DGRAM);
    const int fd = old.get();
    const test::Address at = test::local_address(fd);
    const Fd other(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    for (const int each : {fd, other.get()}) {
      ASSERT_EQ(::setsockopt(each, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), 0);
    }
    ASSERT_EQ(::fchown(other.get(), ours ? 0 : 65534, static_cast<gid_t>(-1)), 0);
    ASSERT_EQ(::bind(other.get(), at.get(), at.len), 0);
    Drain drain = started_drain(std::move(old));
    EXPECT_EQ(ended(drain).outcome, ours ? Outcome::drained : Outcome::unconfirmed);
  }
}

TEST_F(DrainRules, a_newcomer_in_another_namespace_is_none) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  newcomer_.reset();
  provider_.say(fd_, 1);
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  const Fd stranger = test::open_listener(at_);
  ASSERT_TRUE(stranger);
  EXPECT_EQ(ended(drain).outcome, Outcome::unconfirmed);
}

TEST_F(DrainRules, a_wildcard_listener_is_no_newcomer_of_the_group) {
  newcomer_ = test::open_listener(test::address("0.0.0.0", at_.port()));
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1);
  EXPECT_EQ(ended(drain).outcome, Outcome::unconfirmed);
}

TEST_F(DrainRules, the_newcomer_is_seen_of_every_kind) {
  for (const char* ip : {"127.0.0.1", "0.0.0.0", "::1", "::"}) {
    for (const int type : {SOCK_STREAM, SOCK_DGRAM}) {
      Fd old = test::open_listener(test::address(ip), type);
      const int fd = old.get();
      Fd newcomer = test::open_listener(test::local_address(fd), type);
      for (const bool there : {true, false}) {
        Drain drain = started_drain(std::move(old));
        if (!there) {
          newcomer.reset();
        }
        EXPECT_EQ(ended(drain).outcome, there ? Outcome::drained : Outcome::unconfirmed)
            << ip << " type " << type;
        old = test::open_listener(test::address(ip), type);
        if (there) {
          newcomer = test::open_listener(test::local_address(old.get()), type);
        }
        ASSERT_EQ(old.get(), fd) << "the number is free again";
      }
    }
  }
}

// ---- An ON member in the same group ----

TEST_F(DrainRules, ours_do_not_count_as_newcomers) {
  Fd second = test::open_listener(at_);
  const int other = second.get();
  provider_.say(fd_, 2);
  provider_.say(other, 2);
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.add(std::move(second)));
  EXPECT_EQ(drain.start().error().errnum, EADDRNOTAVAIL);
  EXPECT_TRUE(provider_.set.empty());
  provider_.say(fd_, 3);
  provider_.say(other, 3);
  EXPECT_TRUE(drain.start()) << "a drain that did not start may be started again";
}

TEST_F(DrainRules, a_newcomer_that_dies_gives_the_modes_back) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.say(fd_, 0, 1);
  EXPECT_EQ(drain.step().action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_EQ(drain.report().error->errnum, EADDRNOTAVAIL);
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
  const std::vector<Fd> back = drain.take_back();
  ASSERT_EQ(back.size(), 1U);
  EXPECT_EQ(back[0].get(), fd_);
  EXPECT_TRUE(test::is_open(fd_));
}

// The check right before close() counts, not the first one that said "drained".
TEST_F(DrainRules, a_newcomer_that_dies_while_others_are_waited_for) {
  int other = -1;
  Drain drain = drain_of_two(other);
  provider_.say(fd_, 0);
  provider_.say(other, 0);
  EXPECT_EQ(step_to_the_end(drain), Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_TRUE(test::is_open(fd_));
  EXPECT_TRUE(test::is_open(other));
}

// The drained one is not looked at again before the deadline, but then.
TEST_F(DrainRules, a_newcomer_that_died_is_noticed_at_the_deadline) {
  Fd second = test::open_listener(at_);
  const int other = second.get();
  provider_.say(fd_, 3);
  provider_.say(other, 3);
  Drain drain = drain_of_old({.timeout = seconds(1)});
  EXPECT_TRUE(drain.add(std::move(second)));
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1);
  provider_.say(other, 1, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.say(fd_, 0);
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::undone);
  EXPECT_TRUE(test::is_open(fd_));
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
}

TEST_F(DrainRules, wait_serves_until_a_newcomer_comes) {
  provider_.say(fd_, 1);
  Drain drain = drain_of_old({.last_on = LastOn::wait});
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 0);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(provider_.mode(fd_), Mode::standby);
  EXPECT_EQ(test::try_connect(at_), 0);
  provider_.say(fd_, 1);
  (void)test::accept_all(fd_);
  EXPECT_EQ(ended(drain).outcome, Outcome::drained);
}

TEST_F(DrainRules, nobody_until_the_deadline_undoes) {
  provider_.say(fd_, 1);
  Drain drain = drain_of_old({.last_on = LastOn::wait, .timeout = milliseconds(20)});
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 0);
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::undone);
  EXPECT_TRUE(report.timed_out);
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
}

TEST_F(DrainRules, leave_switches_off_where_nobody_is) {
  newcomer_.reset();
  provider_.say(fd_, 1);
  Drain drain = drain_of_old({.last_on = LastOn::leave});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(provider_.mode(fd_), Mode::off);
  provider_.say(fd_, 0);
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::drained) << "nobody is expected there";
}

TEST_F(DrainRules, leave_stands_by_where_somebody_is_and_goes_off_with_him) {
  Drain drain = drain_of_old({.last_on = LastOn::leave});
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(provider_.mode(fd_), Mode::standby);
  newcomer_.reset();
  provider_.say(fd_, 0, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(provider_.mode(fd_), Mode::off);
  provider_.say(fd_, 0);
  EXPECT_EQ(ended(drain).outcome, Outcome::drained);
}

// ---- Temporary errors ----

TEST_F(DrainRules, a_passing_obstacle_is_waited_for_and_no_reason_to_fall_back) {
  for (const Policy policy : {Policy::prefer, Policy::require}) {
    provider_.set_error[fd_] = EAGAIN;
    provider_.say(fd_, 2, 1);
    Drain drain = drain_of_old({.policy = policy});
    ASSERT_TRUE(drain.start());
    EXPECT_EQ(drain.step().action, Action::wait_until);
    EXPECT_EQ(drain.report().outcome, Outcome::running);
    EXPECT_EQ(drain.report().method, Method::none);
    EXPECT_TRUE(provider_.set.empty());
    provider_.set_error.clear();
    EXPECT_EQ(drain.step().action, Action::wait_until);
    EXPECT_EQ(provider_.mode(fd_), Mode::standby);
    ASSERT_TRUE(drain.undo());
    std::vector<Fd> back = drain.take_back();
    old_ = std::move(back[0]);
    provider_.set.clear();
  }
}

TEST_F(DrainRules, an_obstacle_that_does_not_pass_fails_at_the_deadline) {
  provider_.set_error[fd_] = EAGAIN;
  Drain drain = drain_of_old({.timeout = milliseconds(20)});
  ASSERT_TRUE(drain.start());
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::undone);
  EXPECT_TRUE(report.timed_out);
  EXPECT_EQ(report.error->errnum, EAGAIN);
  EXPECT_TRUE(test::is_open(fd_)) << "not closed by a worse method";
}

TEST_F(DrainRules, where_it_cannot_be_used_prefer_falls_back_and_says_so) {
  provider_.set_error[fd_] = EBUSY;
  Drain required = drain_of_old({.policy = Policy::require});
  EXPECT_EQ(required.start().error().errnum, EBUSY);
  EXPECT_EQ(required.report().outcome, Outcome::not_started);
  old_ = std::move(required.take_back()[0]);
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  const Report report = ended(drain);
  EXPECT_EQ(report.outcome, Outcome::swept_and_closed);
  EXPECT_EQ(report.method, Method::sweep);
  EXPECT_EQ(report.error->errnum, EBUSY);
}

TEST_F(DrainRules, failure_half_way_switches_nothing) {
  Fd second = test::open_listener(at_);
  const int other = second.get();
  provider_.say(fd_, 3);
  provider_.say(other, 3);
  provider_.set_error[other] = EINVAL;
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.add(std::move(second)));
  EXPECT_EQ(drain.start().error().errnum, EINVAL);
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
}

TEST_F(DrainRules, modes_that_cannot_be_given_back_are_tried_again) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 0, 1);
  provider_.set_error[fd_] = EAGAIN;
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(drain.report().outcome, Outcome::running);
  EXPECT_EQ(drain.undo().error().errnum, EAGAIN);
  provider_.set_error.clear();
  EXPECT_EQ(drain.step().action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
}

TEST_F(DrainRules, no_wait_ends_in_the_past) {
  Drain drain = drain_of_old({.at_deadline = AtDeadline::undo, .timeout = milliseconds(5)});
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  provider_.set_error[fd_] = EAGAIN;
  EXPECT_TRUE(test::eventually([&] {
    const auto before = Clock::now();
    const Step step = drain.step();
    EXPECT_TRUE(step.action == Action::done || step.when >= before);
    return step.action == Action::done;
  }));
}

// BPF answers for a UDP socket that it does not know yet, but cannot switch it.
TEST_F(DrainRules, a_socket_that_bpf_does_not_know_yet_is_tried_again) {
  old_ = test::open_listener(test::address("127.0.0.1"), SOCK_DGRAM);
  fd_ = old_.get();
  const Fd newcomer = test::open_listener(test::local_address(fd_), SOCK_DGRAM);
  provider_.infos[fd_].flags = REUSEPORT_LISTEN_F_BPF;
  provider_.set_error[fd_] = EAGAIN;
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.step().action, Action::wait_until);
  provider_.set_error.clear();
  provider_.say(fd_, 2, 0, 1);
  EXPECT_EQ(drain.step().action, Action::wait_until);
  EXPECT_EQ(provider_.mode(fd_), Mode::standby);
  provider_.say(fd_, 1);
  EXPECT_EQ(ended(drain).outcome, Outcome::drained);
}

TEST_F(DrainRules, modes_that_are_not_given_back_are_not_said_to_be) {
  Drain drain = drain_of_old();
  ASSERT_TRUE(drain.start());
  provider_.set_error[fd_] = EPERM;
  EXPECT_EQ(drain.undo().error().errnum, EPERM);
  EXPECT_EQ(drain.report().listeners[0].errnum, EPERM);
}

// ---- Deadlines ----

TEST_F(DrainRules, at_the_deadline_what_was_asked_for) {
  for (const AtDeadline what : {AtDeadline::undo, AtDeadline::keep, AtDeadline::close}) {
    provider_.say(fd_, 2);
    Drain drain = drain_of_old({.at_deadline = what, .timeout = milliseconds(5)});
    ASSERT_TRUE(drain.start());
    provider_.say(fd_, 1, 1);
    const Report report = ended(drain);
    EXPECT_TRUE(report.timed_out);
    EXPECT_FALSE(report.lossless());
    EXPECT_EQ(report.left.handshakes, 1U);
    EXPECT_EQ(report.outcome, what == AtDeadline::undo ? Outcome::undone : Outcome::deadline_hit);
    EXPECT_EQ(provider_.mode(fd_), what == AtDeadline::undo ? Mode::on : Mode::standby);
    EXPECT_EQ(test::is_open(fd_), what != AtDeadline::close);
    provider_.infos[fd_].mode = REUSEPORT_LISTEN_ON;
    std::vector<Fd> back = drain.take_back();
    ASSERT_EQ(back.empty(), what == AtDeadline::close);
    if (!back.empty()) {
      old_ = std::move(back[0]);
    }
  }
}

// tcp_migrate_req is not for MPTCP: what waits in its queue is reset.
TEST_F(DrainRules, nothing_of_mptcp_migrates) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  for (const int protocol : {IPPROTO_TCP, IPPROTO_MPTCP}) {
    const Fd probe(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, protocol));
    if (!probe) {
      GTEST_SKIP() << "no MPTCP here";
    }
    Fd listener = test::open_listener(at_, SOCK_STREAM, protocol);
    provider_.say(listener.get(), 2);
    const int fd = listener.get();
    Drain drain(provider_.options({.timeout = milliseconds(5)}));
    ASSERT_TRUE(drain.add(std::move(listener)));
    ASSERT_TRUE(drain.start());
    provider_.say(fd, 1, 1);
    EXPECT_EQ(ended(drain).outcome,
              protocol == IPPROTO_TCP ? Outcome::migrated : Outcome::deadline_hit);
  }
}

TEST_F(DrainRules, every_time_is_answered_or_refused) {
  const auto start = [&](milliseconds timeout, milliseconds poll) {
    Drain drain(provider_.options({.timeout = timeout, .poll_interval = poll}));
    const auto added = drain.add(std::move(old_));
    if (!added) {
      EXPECT_EQ(added.error().errnum, EINVAL);
      return Action::done;
    }
    EXPECT_TRUE(drain.start());
    provider_.say(fd_, 1, 1);
    const Action action = drain.step().action;
    provider_.say(fd_, 2);
    old_ = std::move(drain.take_back()[0]);
    return action;
  };
  EXPECT_EQ(start(milliseconds(-1), milliseconds(1)), Action::done);
  EXPECT_EQ(start(milliseconds(1), milliseconds::min()), Action::done);
  EXPECT_TRUE(old_.valid());
  EXPECT_EQ(start(milliseconds::max(), milliseconds::max()), Action::wait_until);
  EXPECT_EQ(start(milliseconds::max(), milliseconds(0)), Action::wait_until);
}

TEST_F(DrainRules, no_time_is_one_look) {
  Drain drain = drain_of_old({.at_deadline = AtDeadline::undo, .timeout = milliseconds(0)});
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 1);
  EXPECT_EQ(drain.step().action, Action::done);
  EXPECT_TRUE(drain.report().timed_out);
}

// ---- Ownership ----

class DrainInput : public test::NetNsTest {
 protected:
  // An error, and the caller still owns the descriptor.
  static int add_error(int number) {
    Fd fd(number < 0 ? number : ::dup(number));
    const int mine = fd.get();
    Drain drain;
    const auto added = drain.add(std::move(fd));
    // NOLINTNEXTLINE(bugprone-use-after-move): what is tested
    EXPECT_EQ(fd.get(), added ? Fd::none : mine);
    return added ? 0 : added.error().errnum;
  }
};

TEST_F(DrainInput, only_listeners_are_added) {
  const Fd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const Fd local(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd raw(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
  const Fd idle(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Fd unbound(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(add_error(-1), EBADF);
  EXPECT_EQ(add_error(file.get()), ENOTSOCK);
  for (const Fd* fd : {&local, &raw, &idle, &unbound}) {
    EXPECT_EQ(add_error(fd->get()), EINVAL);
  }
}

TEST_F(DrainInput, connected_sockets_are_no_listeners) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(listener.get()));
  const Fd child = test::accept_one(listener.get(), seconds(5));
  EXPECT_EQ(add_error(client.get()), EINVAL);
  EXPECT_EQ(add_error(child.get()), EINVAL);
  const Fd datagrams = test::open_listener(test::address("127.0.0.1"), SOCK_DGRAM);
  const test::Address self = test::local_address(datagrams.get());
  ASSERT_EQ(::connect(datagrams.get(), self.get(), self.len), 0);
  EXPECT_EQ(add_error(datagrams.get()), EINVAL);
}

TEST_F(DrainInput, reuseport_is_needed) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  EXPECT_EQ(add_error(fd.get()), 0);
  const int zero = 0;
  ASSERT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &zero, sizeof(zero)), 0);
  EXPECT_EQ(add_error(fd.get()), EINVAL);
}

TEST_F(DrainInput, calls_in_the_wrong_order) {
  Drain drain({.policy = Policy::close_only});
  EXPECT_EQ(drain.start().error().errnum, EINVAL) << "nothing added";
  EXPECT_EQ(drain.step().action, Action::done) << "not started";
  EXPECT_EQ(drain.undo().error().errnum, ESTALE);
  Fd fd = test::open_listener(test::address("127.0.0.1"));
  Fd other = test::open_listener(test::address("127.0.0.1"));
  ASSERT_TRUE(drain.add(std::move(fd)));
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
  EXPECT_EQ(drain.add(std::move(other)).error().errnum, EBUSY);
  EXPECT_TRUE(drain.undo());
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
}

TEST_F(DrainInput, what_a_drain_owns_it_closes_unless_taken_back) {
  Fd fd = test::open_listener(test::address("127.0.0.1"));
  const int number = fd.get();
  {
    Drain drain;
    ASSERT_TRUE(drain.add(std::move(fd)));
    EXPECT_EQ(drain.open_fds(), std::vector<int>{number});
    std::vector<Fd> back = drain.take_back();
    ASSERT_EQ(back.size(), 1U);
    fd = std::move(back[0]);
    EXPECT_TRUE(drain.take_back().empty()) << "once";
    EXPECT_EQ(drain.start().error().errnum, EINVAL);
  }
  EXPECT_TRUE(test::is_open(number));
  {
    Drain drain;
    ASSERT_TRUE(drain.add(std::move(fd)));
  }
  EXPECT_FALSE(test::is_open(number));
}

TEST_F(DrainInput, a_moved_from_drain_is_safe) {
  Drain drain;
  Drain taken = std::move(drain);
  // NOLINTBEGIN(bugprone-use-after-move, clang-analyzer-cplusplus.Move): what is tested
  Fd fd = test::open_listener(test::address("127.0.0.1"));
  EXPECT_EQ(drain.add(std::move(fd)).error().errnum, EINVAL);
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(drain.start().error().errnum, EINVAL);
  EXPECT_EQ(drain.undo().error().errnum, EINVAL);
  EXPECT_EQ(drain.step().action, Action::done);
  EXPECT_EQ(drain.report().outcome, Outcome::not_started);
  EXPECT_TRUE(drain.take_back().empty());
  EXPECT_TRUE(drain.open_fds().empty());
  EXPECT_EQ(run(drain, [](int) {}).error().errnum, EINVAL);
  // NOLINTEND(bugprone-use-after-move, clang-analyzer-cplusplus.Move)
  ASSERT_TRUE(taken.add(std::move(fd)));
}

TEST_F(DrainInput, a_closer_gets_the_listener) {
  std::vector<Fd> closed;
  Drain drain(
      {.policy = Policy::close_only, .close = [&](Fd fd) { closed.push_back(std::move(fd)); }});
  Fd fd = test::open_listener(test::address("127.0.0.1"));
  const int number = fd.get();
  ASSERT_TRUE(drain.add(std::move(fd)));
  ASSERT_TRUE(run(drain, [](int) {}));
  ASSERT_EQ(closed.size(), 1U);
  EXPECT_EQ(closed[0].get(), number);
  EXPECT_TRUE(test::is_open(number));
}

TEST_F(DrainRules, who_cannot_accept_is_never_asked_to_and_never_falls_back) {
  EXPECT_EQ(test::try_connect(at_), 0);
  Drain drain = drain_of_old({.no_accept = true});
  ASSERT_TRUE(drain.start());
  provider_.say(fd_, 1, 0, 1);
  const Step step = drain.step();
  EXPECT_EQ(step.action, Action::wait_until);
  EXPECT_TRUE(step.fds.empty()) << "they would be readable all the time";
  ASSERT_TRUE(drain.undo());
  old_ = std::move(drain.take_back()[0]);
  provider_.say(fd_, 2);
  provider_.set_error[fd_] = ENOPROTOOPT;
  Drain again = drain_of_old({.no_accept = true});
  EXPECT_EQ(again.start().error().errnum, ENOPROTOOPT);
}

// The second listener cannot be switched, nor the first one set back.
TEST_F(DrainRules, a_start_whose_way_back_fails_says_so_and_can_be_undone) {
  Fd second = test::open_listener(at_);
  const int other = second.get();
  provider_.say(fd_, 3);
  provider_.say(other, 3);
  bool well = false;
  DrainOptions options = provider_.options({.policy = Policy::require});
  options.set_mode = [&, set = options.set_mode](int fd, Mode mode) -> Expected<void> {
    if (fd == other || (mode == Mode::on && !well)) {
      return Error{"set_mode", fd == other ? EPERM : EAGAIN, ""};
    }
    return set(fd, mode);
  };
  Drain drain(std::move(options));
  ASSERT_TRUE(drain.add(std::move(old_)));
  ASSERT_TRUE(drain.add(std::move(second)));
  const auto started = drain.start();
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().errnum, EPERM);
  EXPECT_NE(started.error().message().find("could not be set back"), std::string::npos)
      << started.error().message();
  EXPECT_EQ(provider_.mode(fd_), Mode::standby);
  well = true;
  EXPECT_TRUE(drain.undo());
  EXPECT_EQ(provider_.mode(fd_), Mode::on);
}

// ---- Sharing ----

class DrainShared : public DrainRules {
 protected:
  // Starts a drain that scans /proc itself; returns its errno.
  int start_error() {
    DrainOptions options = provider_.options();
    options.is_shared = {};
    Drain drain(std::move(options));
    EXPECT_TRUE(drain.add(std::move(old_)));
    const auto started = drain.start();
    old_ = std::move(drain.take_back()[0]);
    return started ? 0 : started.error().errnum;
  }
  /// That of an orphan in another session, which is not related to this process, after @p first.
  template <typename First>
  int in_an_orphan(First first) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const Fd reader(ends[0]);
    Fd writer(ends[1]);
    EXPECT_TRUE(test::in_child([&] {
      const pid_t parent = ::getpid();
      if (::fork() == 0) {
        const bool free =
            ::setsid() > 0 && test::eventually([&] { return ::getppid() != parent; }) && first();
        const char answer = free ? static_cast<char>(start_error()) : 'x';
        (void)!::write(ends[1], &answer, 1);
        ::_exit(0);
      }
      return true;
    }));
    writer.reset();
    char answer = 'y';
    EXPECT_EQ(::read(reader.get(), &answer, 1), 1);
    return answer;
  }
};

TEST_F(DrainShared, the_callers_word_is_taken) {
  DrainOptions options = provider_.options();
  Expected<bool> answer = true;
  options.is_shared = [&](int) { return answer; };
  Drain drain(std::move(options));
  ASSERT_TRUE(drain.add(std::move(old_)));
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
  answer = Error{"open(/proc/1/fd)", EACCES, "run as root"};
  EXPECT_EQ(drain.start().error().errnum, EACCES);
  EXPECT_TRUE(provider_.set.empty());
  answer = false;
  EXPECT_TRUE(drain.start());
}

TEST_F(DrainShared, another_holder_is_found) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();  // inherits the listener, and waits to be told to end
  if (child == 0) {
    ::close(ends[1]);
    char byte = 0;
    ::_exit(::read(ends[0], &byte, 1) == 0 ? 0 : 1);
  }
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  EXPECT_EQ(start_error(), EBUSY);
  EXPECT_TRUE(provider_.set.empty());
  writer.reset();
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(start_error(), 0);
}

// The descriptors of such a process are those of its other threads.
TEST_F(DrainShared, a_holder_whose_first_thread_has_ended_is_found) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[1]);
    std::thread([from = ends[0]] {
      char byte = 0;
      ::_exit(::read(from, &byte, 1) == 0 ? 0 : 1);
    }).detach();
    ::syscall(SYS_exit, 0);  // of this thread alone
  }
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  ASSERT_TRUE(test::eventually([&] {
    std::ifstream stat("/proc/" + std::to_string(child) + "/stat");
    std::string text;
    std::getline(stat, text);
    return text.find(") Z ") != std::string::npos;
  }));
  EXPECT_EQ(start_error(), EBUSY);
  writer.reset();
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
}

// A worker that gave up its privileges may not inspect its master, which holds the listener too.
TEST_F(DrainShared, who_may_not_be_looked_into_counts_if_it_is_an_ancestor) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  EXPECT_TRUE(test::in_child([&] {
    EXPECT_EQ(::setsid(), ::getpid());
    EXPECT_EQ(::setresuid(65534, 65534, 65534), 0);
    EXPECT_EQ(start_error(), EBUSY);
    return true;
  }));
}

// The same, where /proc does not even list it.
TEST_F(DrainShared, a_parent_that_proc_hides_counts) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  EXPECT_TRUE(test::in_child([&] {
    EXPECT_EQ(::setsid(), ::getpid());
    EXPECT_TRUE(test::hide_processes());
    EXPECT_EQ(::setresuid(65534, 65534, 65534), 0);
    EXPECT_EQ(start_error(), EBUSY);
    return true;
  }));
}

TEST_F(DrainShared, strangers_who_may_not_be_looked_into_are_passed_over) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  EXPECT_EQ(in_an_orphan([] { return ::setresuid(65534, 65534, 65534) == 0; }), 0);
}

// Of a process with more capabilities the descriptors can be listed, but not read.
TEST_F(DrainShared, who_has_more_capabilities_counts_if_it_is_an_ancestor) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const auto fork_without = [] {
    if (::prctl(PR_SET_KEEPCAPS, 1) != 0 || ::setresuid(65534, 65534, 65534) != 0 ||
        ::prctl(PR_SET_DUMPABLE, 1) != 0) {
      return false;
    }
    if (const pid_t child = ::fork(); child != 0) {
      ::waitpid(child, nullptr, 0);
      ::_exit(0);
    }
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    const std::array<__user_cap_data_struct, 2> none{};
    return ::syscall(SYS_capset, &header, none.data()) == 0;
  };
  EXPECT_EQ(in_an_orphan(fork_without), EBUSY);
}

}  // namespace
}  // namespace reuseport
