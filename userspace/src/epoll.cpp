// SPDX-License-Identifier: Apache-2.0
#include "reuseport/epoll.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

namespace reuseport {
namespace {

Status watch(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail("epoll_ctl(EPOLL_CTL_ADD)", errno);
  }
  return {};
}

}  // namespace

Result<EpollDrain> EpollDrain::start(Drain drain, std::function<void(int fd)> accept) {
  Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) {
    return fail("epoll_create1", errno, "raise RLIMIT_NOFILE or close descriptors");
  }
  Fd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!timer) {
    return fail("timerfd_create", errno, "raise RLIMIT_NOFILE or close descriptors");
  }
  Status watched = watch(epoll.get(), timer.get());
  for (const int fd : drain.open_fds()) {
    if (watched) {
      watched = watch(epoll.get(), fd);
    }
  }
  if (!watched) {
    return tl::unexpected(watched.error());
  }
  if (Status started = drain.start(); !started) {
    return tl::unexpected(started.error());
  }
  EpollDrain result(std::move(drain), std::move(accept), std::move(epoll), std::move(timer));
  result.wake_at(Clock::now());
  return result;
}

// An absolute time that has passed fires at once; Clock is CLOCK_MONOTONIC.
void EpollDrain::wake_at(Clock::time_point when) const {
  const auto since = when.time_since_epoch();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
  itimerspec spec{};
  spec.it_value.tv_sec = seconds.count();
  spec.it_value.tv_nsec = std::chrono::nanoseconds(since - seconds).count();
  (void)::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

// Steps, and stops watching what that closed: a copy of it may stay open elsewhere and ready.
Step EpollDrain::step(Clock::time_point now) {
  const std::vector<int> before(drain_.open_fds().begin(), drain_.open_fds().end());
  const Step step = drain_.step(now);
  for (const int fd : before) {
    if (std::ranges::find(drain_.open_fds(), fd) == drain_.open_fds().end()) {
      (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    }
  }
  return step;
}

Action EpollDrain::dispatch(Clock::time_point now) {
  Step next = step(now);
  if (next.action == Action::accept_more) {
    // One round, then the loop's other events get their turn.
    const std::vector<int> fds(next.fds.begin(), next.fds.end());
    for (const int fd : fds) {
      accept_(fd);
    }
    next = step(now);
  }
  switch (next.action) {
    case Action::accept_more: wake_at(now); break;
    case Action::wait_until: wake_at(next.when); break;
    case Action::done:
      epoll_.reset();
      timer_.reset();
      break;
  }
  return next.action;
}

Status EpollDrain::undo() {
  epoll_.reset();
  timer_.reset();
  return drain_.undo();
}

}  // namespace reuseport
