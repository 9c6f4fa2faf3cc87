// SPDX-License-Identifier: Apache-2.0
#include "wait.hpp"

#include <poll.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

namespace reuseport::ctl {

Outcome<Signals> Signals::open(std::initializer_list<int> signals) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int s : signals) {
    ::sigaddset(&set, s);
  }
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) {
    return failed(Error{"sigprocmask", errno, {}});
  }
  Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) {
    return failed(Error{"signalfd", errno, {}});
  }
  return Signals(std::move(fd));
}

std::optional<int> Signals::wait(std::chrono::milliseconds time) {
  const auto until = Clock::now() + time;
  for (;;) {
    signalfd_siginfo info{};
    if (::read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      return static_cast<int>(info.ssi_signo);
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) {
      return std::nullopt;
    }
    pollfd p{fd_.get(), POLLIN, 0};
    ::poll(&p, 1, static_cast<int>(std::min<long long>(left, 1 << 30)));
  }
}

void Signals::restore_mask() {
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

bool SignalWaiter::wait(std::chrono::milliseconds time) {
  if (const auto got = signals_.wait(time)) {
    signal_ = *got;
    return false;
  }
  return true;
}

Failure SignalWaiter::why() const {
  const char* name = ::sigabbrev_np(signal_);
  return {Exit::error, std::string("stopped by SIG") + (name != nullptr ? name : "?") +
                           "; every listener has the mode it had before"};
}

}  // namespace reuseport::ctl
