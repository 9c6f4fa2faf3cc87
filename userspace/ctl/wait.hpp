// SPDX-License-Identifier: Apache-2.0
// Signals, and bounded waiting that ends early when one asks the tool to stop.
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

/// Now and @p time, or the end of time where that is beyond it.
[[nodiscard]] Clock::time_point after(std::chrono::milliseconds time);
/// Since @p start, in full milliseconds.
[[nodiscard]] std::chrono::milliseconds since(Clock::time_point start);

/// "TERM", "SIGTERM" or "15".
[[nodiscard]] std::optional<int> parse_signal(std::string_view text);
[[nodiscard]] std::string signal_name(int signum);

/// Signals as events instead of interruptions: those asked for are blocked, and SIGPIPE is ignored,
/// for a reader of our output that is gone must not stop a drain half-way.
class Signals {
 public:
  static Outcome<Signals> open(std::initializer_list<int> signals);

  struct Signal {
    int number = 0;
    bool from_kernel = false;  ///< no process sent it: a terminal that is gone, say
  };
  /// Waits up to @p time; tells the signal that came, or nothing.
  std::optional<Signal> wait(std::chrono::milliseconds time);

  /// In a forked child, before exec: no signal blocked, each with its default action.
  static void restore();

 private:
  explicit Signals(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

/// How a drain waits, so that a supervisor can look after its own affairs meanwhile.
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
  /// What made wait() say false.
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
