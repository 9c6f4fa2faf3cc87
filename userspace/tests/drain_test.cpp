// SPDX-License-Identifier: Apache-2.0
// What a drain does on every kernel: bad input, order of calls, steering plugged in.
#include "reuseport/drain.hpp"

#include <fcntl.h>

#include <vector>

#include "support/support.hpp"

namespace reuseport {
namespace {

using std::chrono::seconds;

class DrainInput : public test::NetNsTest {
 protected:
  static int add_error(int fd) {
    Drain drain;
    const Status added = drain.add(fd);
    return added ? 0 : added.error().errnum;
  }
};

TEST_F(DrainInput, OnlyListenersAreAdded) {
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

TEST_F(DrainInput, ConnectedSocketsAreNoListeners) {
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

TEST_F(DrainInput, ReuseportIsNeeded) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  EXPECT_EQ(add_error(fd.get()), 0);
  const int zero = 0;
  ASSERT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &zero, sizeof(zero)), 0);
  EXPECT_EQ(add_error(fd.get()), EINVAL);
}

TEST_F(DrainInput, CallsInTheWrongOrder) {
  Drain drain({.close = [](int) {}});
  EXPECT_EQ(drain.start().error().errnum, EINVAL) << "nothing added";
  EXPECT_EQ(drain.step().action, Action::done) << "not started";
  EXPECT_EQ(drain.undo().error().errnum, ESTALE);
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  const Fd other = test::open_listener(test::address("127.0.0.1"));
  ASSERT_TRUE(drain.add(fd.get()));
  EXPECT_EQ(drain.add(fd.get()).error().errnum, EEXIST);
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
  EXPECT_EQ(drain.add(other.get()).error().errnum, EBUSY);
  EXPECT_TRUE(drain.undo());
  EXPECT_EQ(drain.start().error().errnum, EBUSY);
}

TEST_F(DrainInput, NothingIsOwnedBeforeStart) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  {
    Drain drain;
    ASSERT_TRUE(drain.add(fd.get()));
    EXPECT_EQ(drain.open_fds().size(), 1U);
  }
  EXPECT_TRUE(test::is_open(fd.get()));
}

TEST_F(DrainInput, UndoLeavesOpenAndServing) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(fd.get()));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  ASSERT_TRUE(test::wait_queued(fd.get(), 1));
  Drain drain;
  ASSERT_TRUE(drain.add(fd.get()));
  ASSERT_TRUE(drain.start());
  EXPECT_EQ(drain.step().action, Action::accept_more);
  ASSERT_TRUE(drain.undo());
  EXPECT_EQ(drain.report().outcome, Outcome::undone);
  EXPECT_EQ(test::try_connect(test::local_address(fd.get())), 0);
  EXPECT_EQ(test::accept_count(fd.get(), 2), 2);
}

// Steering that answers as told and notes what it was asked.
class FakeSteering : public Steering {
 public:
  Status start(std::span<const int> leaving) override {
    fds.assign(leaving.begin(), leaving.end());
    return start_status;
  }
  Result<Left> left(int /*fd*/) override { return answer; }
  void stop() noexcept override { ++stops; }

  Status start_status;
  Result<Left> answer = Left{0, 0};
  std::vector<int> fds;
  int stops = 0;
};

class DrainSteered : public test::NetNsTest {};

TEST_F(DrainSteered, WaitsForHandshakesThenCloses) {
  test::without_option([] {
    FakeSteering steering;
    steering.answer = Left{2, 0};
    Fd fd = test::open_listener(test::address("127.0.0.1"));
    const int number = fd.get();
    Drain drain({.policy = Policy::require, .steering = &steering});
    EXPECT_TRUE(drain.add(fd.release()));
    EXPECT_TRUE(drain.start());
    EXPECT_EQ(steering.fds, std::vector<int>{number});
    EXPECT_EQ(drain.step().action, Action::wait_until);
    EXPECT_EQ(drain.report().left().handshakes, 2U);
    steering.answer = fail("recvmsg(netlink)", ENOBUFS);
    EXPECT_EQ(drain.step().action, Action::wait_until) << "not knowing is not drained";
    EXPECT_EQ(drain.report().listeners[0].error->errnum, ENOBUFS);
    EXPECT_EQ(steering.stops, 0);
    steering.answer = Left{0, 0};
    EXPECT_EQ(drain.step().action, Action::done);
    EXPECT_EQ(steering.stops, 1);
    EXPECT_FALSE(test::is_open(number));
    EXPECT_EQ(drain.report().outcome, Outcome::drained);
    EXPECT_EQ(drain.report().method, Method::steer);
    return true;
  });
}

TEST_F(DrainSteered, QueueIsAcceptedFirst) {
  test::without_option([] {
    FakeSteering steering;
    Fd fd = test::open_listener(test::address("127.0.0.1"));
    const Fd client = test::open_client(test::local_address(fd.get()));
    EXPECT_EQ(test::connect_result(client.get()), 0);
    EXPECT_TRUE(test::wait_queued(fd.get(), 1));
    Drain drain({.steering = &steering});
    EXPECT_TRUE(drain.add(fd.release()));
    int accepted = 0;
    const Result<Report> report = run(drain, [&](int each) { accepted += test::accept_all(each); });
    EXPECT_EQ(accepted, 1);
    EXPECT_EQ(report->outcome, Outcome::drained);
    return true;
  });
}

TEST_F(DrainSteered, FailureIsReportedAndFallsBackOnlyUnderPrefer) {
  test::without_option([] {
    FakeSteering steering;
    steering.start_status = fail("bpf(BPF_PROG_LOAD)", EPERM, "needs CAP_BPF");
    for (const Policy policy : {Policy::require, Policy::prefer}) {
      Fd fd = test::open_listener(test::address("127.0.0.1"));
      Drain drain({.policy = policy, .steering = &steering});
      EXPECT_TRUE(drain.add(fd.release()));
      const Status started = drain.start();
      if (policy == Policy::require) {
        EXPECT_EQ(started.error().call, "bpf(BPF_PROG_LOAD)");
        continue;
      }
      EXPECT_TRUE(started);
      EXPECT_EQ(drain.step().action, Action::done);
      EXPECT_EQ(drain.report().method, Method::sweep);
      EXPECT_EQ(drain.report().not_steered->errnum, EPERM);
    }
    EXPECT_EQ(steering.stops, 0) << "what did not start is not stopped";
    return true;
  });
}

TEST_F(DrainSteered, SharedListenerIsNotSteeredAway) {
  test::without_option([] {
    FakeSteering steering;
    Fd fd = test::open_listener(test::address("127.0.0.1"));
    Drain drain({.policy = Policy::require,
                 .is_shared = [](int) -> Result<bool> { return true; },
                 .steering = &steering});
    EXPECT_TRUE(drain.add(fd.get()));
    EXPECT_EQ(drain.start().error().errnum, EBUSY);
    EXPECT_TRUE(steering.fds.empty());
    return true;
  });
}

TEST_F(DrainSteered, UndoStops) {
  test::without_option([] {
    FakeSteering steering;
    steering.answer = Left{1, 0};
    const Fd fd = test::open_listener(test::address("127.0.0.1"));
    {
      Drain drain({.steering = &steering});
      EXPECT_TRUE(drain.add(fd.get()));
      EXPECT_TRUE(drain.start());
    }
    EXPECT_EQ(steering.stops, 1);
    EXPECT_TRUE(test::is_open(fd.get()));
    return true;
  });
}

TEST(DrainReport, CountsAddUpOnlyWhereAllAreKnown) {
  Report report;
  EXPECT_TRUE(report.left().nothing());
  report.listeners.resize(2);
  report.listeners[0].left = {1, 2};
  report.listeners[1].left = {3, 4};
  EXPECT_EQ(report.left().handshakes, 4U);
  EXPECT_EQ(report.left().queued, 6U);
  report.listeners[1].left.handshakes.reset();
  EXPECT_EQ(report.left().handshakes, std::nullopt);
  EXPECT_EQ(report.left().queued, 6U);
  EXPECT_FALSE(report.left().nothing());
}

}  // namespace
}  // namespace reuseport
