// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_EPOLL_HPP
#define REUSEPORT_EPOLL_HPP

#include <functional>
#include <utility>

#include "reuseport/drain.hpp"
#include "reuseport/error.hpp"
#include "reuseport/export.h"
#include "reuseport/fd.hpp"

namespace reuseport {

/// A drain as one pollable descriptor, for epoll(7) and every loop that can watch a descriptor
/// (libevent, libuv, asio, poll). It becomes readable when the drain has something to do:
///
///     auto drain = EpollDrain::start(Drain(options), [&](int fd) { accept_all(fd); });
///     epoll_ctl(loop, EPOLL_CTL_ADD, drain->fd(), &event);         // EPOLLIN, level-triggered
///     ... on that event:  if (drain->dispatch() == Action::done) log(drain->report());
///
/// The loop may keep its own registrations of the listeners; a listener that the drain closes
/// leaves every epoll set by itself unless a copy of it stays open (epoll(7)). One thread at a
/// time.
class EpollDrain {
 public:
  /// Starts @p drain. @p accept is called from dispatch() with a listener that has something to
  /// take; it may take one connection or all. Errors: as Drain::start(), and those of
  /// epoll_create1(2), timerfd_create(2), epoll_ctl(2); then nothing is switched.
  [[nodiscard]] static REUSEPORT_API Result<EpollDrain> start(Drain drain,
                                                              std::function<void(int fd)> accept);

  /// The descriptor to watch for reading. Owned by this object.
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

  /// Does what is due and arms the next wake-up. Never blocks. accept_more: the queue was longer
  /// than one round; the descriptor stays readable, so other events get their turn.
  [[nodiscard]] REUSEPORT_API Action dispatch(Clock::time_point now = Clock::now());

  /// As Drain::undo(). The descriptor is never readable again.
  [[nodiscard]] REUSEPORT_API Status undo();

  [[nodiscard]] const Report& report() const noexcept { return drain_.report(); }

 private:
  EpollDrain(Drain drain, std::function<void(int fd)> accept, Fd epoll, Fd timer)
      : drain_(std::move(drain)),
        accept_(std::move(accept)),
        epoll_(std::move(epoll)),
        timer_(std::move(timer)) {}

  Step step(Clock::time_point now);
  void wake_at(Clock::time_point when) const;

  Drain drain_;
  std::function<void(int fd)> accept_;
  Fd epoll_;
  Fd timer_;
};

}  // namespace reuseport

#endif  // REUSEPORT_EPOLL_HPP
