// SPDX-License-Identifier: Apache-2.0
// Signals, and bounded waits that a signal ends early.
#ifndef REUSEPORTCTL_WAIT_HPP
#define REUSEPORTCTL_WAIT_HPP

#include <chrono>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "failure.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

using Clock = std::chrono::steady_clock;

/// Now plus @p time, or time_point::max() if that overflows.
[[nodiscard]] Clock::time_point after(std::chrono::milliseconds time);
/// Since @p start, in whole milliseconds.
[[nodiscard]] std::chrono::milliseconds since(Clock::time_point start);

/// "TERM", "SIGTERM" or "15".
[[nodiscard]] std::optional<int> parse_signal(std::string_view text);
[[nodiscard]] std::string signal_name(int signum);

/// Signals as events instead of interruptions: blocks the given ones and ignores SIGPIPE, so that a
/// closed output pipe does not stop a drain half-way.
class Signals {
 public:
  static Expected<Signals> open(std::initializer_list<int> signals);

  struct Signal {
    int number = 0;
    bool from_kernel = false;  ///< no process sent it, e.g. a terminal hangup
    pid_t sender = 0;          ///< 0: also one in another pid namespace
  };
  /// Waits up to @p time; returns the signal that came, or nothing.
  std::optional<Signal> wait(std::chrono::milliseconds time);

  /// In a forked child, before exec: no signal blocked, each with its default action.
  static void restore();

 private:
  explicit Signals(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

/// How a drain waits, so that a supervisor can do its own work in the meantime.
class Waiter {
 public:
  Waiter() = default;
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  Waiter(Waiter&&) = delete;
  Waiter& operator=(Waiter&&) = delete;
  virtual ~Waiter() = default;
  /// False when the work must stop and be undone.
  virtual bool wait(std::chrono::milliseconds time) = 0;
  /// Why wait() returned false.
  [[nodiscard]] virtual Failure why() const = 0;
};

/// Waits until a signal comes.
class SignalWaiter final : public Waiter {
 public:
  explicit SignalWaiter(Signals& signals) : signals_(signals) {}
  bool wait(std::chrono::milliseconds time) override;
  [[nodiscard]] Failure why() const override;

 private:
  Signals& signals_;
  int signal_ = 0;
};

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_WAIT_HPP
