// SPDX-License-Identifier: Apache-2.0
#include "wait.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>

namespace reuseport::ctl {

Clock::time_point after(std::chrono::milliseconds time) {
  const auto now = Clock::now();
  return time < Clock::time_point::max() - now ? now + time : Clock::time_point::max();
}

std::chrono::milliseconds since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
}

std::optional<int> parse_signal(std::string_view text) {
  int number = 0;
  const auto [stop, ec] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (ec == std::errc{} && stop == text.data() + text.size()) {
    return number > 0 && number <= SIGRTMAX ? std::optional(number) : std::nullopt;
  }
  if (text.starts_with("SIG")) {
    text.remove_prefix(3);
  }
  for (int s = 1; s < NSIG; s++) {
    const char* name = ::sigabbrev_np(s);
    if (name != nullptr && text == name) {
      return s;
    }
  }
  return std::nullopt;
}

std::string signal_name(int signum) {
  const char* name = ::sigabbrev_np(signum);
  return name != nullptr ? std::string("SIG") + name : fmt::format("signal {}", signum);
}

Expected<Signals> Signals::open(std::initializer_list<int> signals) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int s : signals) {
    ::sigaddset(&set, s);
  }
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) {
    return failed(Error{"sigprocmask", errno, {}});
  }
  ::signal(SIGPIPE, SIG_IGN);
  Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) {
    return failed(Error{"signalfd", errno, {}});
  }
  return Signals(std::move(fd));
}

std::optional<Signals::Signal> Signals::wait(std::chrono::milliseconds time) {
  const auto until = after(time);
  for (;;) {
    signalfd_siginfo info{};
    if (::read(fd_.get(), &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
      return Signal{static_cast<int>(info.ssi_signo), info.ssi_code == SI_KERNEL,
                    static_cast<pid_t>(info.ssi_pid)};
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) {
      return std::nullopt;
    }
    pollfd p{fd_.get(), POLLIN, 0};
    ::poll(&p, 1, static_cast<int>(std::min<long long>(left, 1 << 30)));
  }
}

void Signals::restore() {
  for (int s = 1; s < NSIG; s++) {
    ::signal(s, SIG_DFL);  // fails for SIGKILL and SIGSTOP, which always have their default
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

bool SignalWaiter::wait(std::chrono::milliseconds time) {
  if (const auto got = signals_.wait(time)) {
    signal_ = got->number;
    return false;
  }
  return true;
}

Failure SignalWaiter::why() const {
  return {Exit::error, fmt::format("stopped by {}", signal_name(signal_))};
}

}  // namespace reuseport::ctl
