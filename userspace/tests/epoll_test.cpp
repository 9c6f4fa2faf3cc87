// SPDX-License-Identifier: Apache-2.0
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include <vector>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class Epoll : public test::NetNsTest {
 protected:
  static bool is_ready(int fd, int wait_ms) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&ready, 1, wait_ms) == 1;
  }
  static Method expected_method() {
    return test::expect_supported() ? Method::option : Method::sweep;
  }
};

class OptionEpoll : public Epoll {};

// The drain and another descriptor in one loop, as in a server.
TEST_F(Epoll, runs_inside_a_loop) {
  Fd listener = test::open_listener(test::address("127.0.0.1"));
  const int number = listener.get();
  std::vector<Fd> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(test::open_client(test::local_address(number)));
    ASSERT_EQ(test::connect_result(clients.back().get()), 0);
  }
  ASSERT_TRUE(test::wait_queued(number, 3));
  Drain drain({.last_on = LastOn::leave});
  ASSERT_TRUE(drain.add(std::move(listener)));
  int accepted = 0;
  Expected<EpollDrain> running = EpollDrain::start(
      std::move(drain), [&](int fd) { accepted += test::accept_one(fd).valid() ? 1 : 0; });
  ASSERT_TRUE(running) << running.error().message();

  const Fd loop(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  ASSERT_EQ(::epoll_ctl(loop.get(), EPOLL_CTL_ADD, running->fd(), &event), 0);
  int turns = 0;
  Action action = Action::wait_until;
  while (action != Action::done && ++turns < 1000) {
    ASSERT_EQ(::epoll_wait(loop.get(), &event, 1, 5000), 1) << "the drain forgot to wake the loop";
    action = running->dispatch();
  }
  EXPECT_EQ(action, Action::done);
  EXPECT_EQ(accepted, 3);
  EXPECT_FALSE(test::is_open(number));
  EXPECT_EQ(running->report().method, expected_method());
  EXPECT_EQ(running->report().outcome,
            test::expect_supported() ? Outcome::drained : Outcome::swept_and_closed);
  EXPECT_EQ(running->dispatch(), Action::done) << "done stays done";
}

TEST_F(OptionEpoll, sleeps_while_there_is_nothing_to_do) {
  Drain drain({.last_on = LastOn::wait, .poll_interval = milliseconds(500)});
  Fd listener = test::open_listener(test::address("127.0.0.1"));
  ASSERT_TRUE(drain.add(std::move(listener)));
  Expected<EpollDrain> running = EpollDrain::start(std::move(drain), [](int) {});
  ASSERT_TRUE(running);
  int wakes = 0;
  const auto end = Clock::now() + milliseconds(300);
  while (Clock::now() < end) {
    if (is_ready(running->fd(), 50)) {
      ++wakes;
      EXPECT_EQ(running->dispatch(), Action::wait_until);
    }
  }
  EXPECT_LT(wakes, 15);
  EXPECT_TRUE(running->undo());
  EXPECT_EQ(Mode{get_info(running->take_back()[0].get())->mode}, Mode::on);
}

TEST_F(OptionEpoll, listener_ready_wakes_the_loop) {
  Drain drain({.last_on = LastOn::wait, .poll_interval = seconds(20)});
  Fd listener = test::open_listener(test::address("127.0.0.1"));
  const test::Address at = test::local_address(listener.get());
  ASSERT_TRUE(drain.add(std::move(listener)));
  int accepted = 0;
  Expected<EpollDrain> running =
      EpollDrain::start(std::move(drain), [&](int fd) { accepted += test::accept_all(fd); });
  ASSERT_TRUE(running);
  while (is_ready(running->fd(), 100)) {  // the pause grows until it is longer than this
    ASSERT_EQ(running->dispatch(), Action::wait_until);
  }
  EXPECT_EQ(test::try_connect(at), 0);
  ASSERT_TRUE(is_ready(running->fd(), 1000));
  EXPECT_EQ(running->dispatch(), Action::wait_until);
  EXPECT_EQ(accepted, 1);
}

TEST_F(Epoll, a_copy_kept_open_does_not_spin_the_loop) {
  Fd first = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(first.get()));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  ASSERT_TRUE(test::wait_queued(first.get(), 1));
  Fd kept;
  Drain drain({.policy = Policy::close_only, .close = [&](Fd fd) { kept = std::move(fd); }});
  ASSERT_TRUE(drain.add(std::move(first)));
  Expected<EpollDrain> running = EpollDrain::start(std::move(drain), [](int) {});
  ASSERT_TRUE(running);
  ASSERT_TRUE(is_ready(running->fd(), 1000));
  EXPECT_EQ(running->dispatch(), Action::done);
  EXPECT_FALSE(test::is_open(running->fd()));
  EXPECT_TRUE(test::is_open(kept.get()));
}

TEST_F(Epoll, failure_switches_nothing_and_leaves_the_drain) {
  Fd listener = test::open_listener(test::address("127.0.0.1"));
  const int number = listener.get();
  EXPECT_TRUE(test::in_child([&] {
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(listener)));
    rlimit limit{};
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = 0;
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    const Expected<EpollDrain> running = EpollDrain::start(std::move(drain), [](int) {});
    EXPECT_FALSE(running);
    EXPECT_EQ(running.error().errnum, EMFILE);
    EXPECT_EQ(drain.take_back().size(), 1U);  // NOLINT(bugprone-use-after-move): not moved
    return true;
  }));
  if (test::expect_supported()) {
    EXPECT_EQ(Mode{get_info(number)->mode}, Mode::on);
  }
}

}  // namespace
}  // namespace reuseport
