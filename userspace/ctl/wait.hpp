// SPDX-License-Identifier: Apache-2.0
// Bounded waiting that ends early when a signal asks the tool to stop.
#ifndef REUSEPORTCTL_WAIT_HPP
#define REUSEPORTCTL_WAIT_HPP

#include <chrono>
#include <initializer_list>
#include <optional>

#include "failure.hpp"
#include "reuseport/fd.hpp"

namespace reuseport::ctl {

using Clock = std::chrono::steady_clock;

/// SIGINT and SIGTERM (and others asked for) as events instead of interruptions. Blocks them for
/// the thread; children must get the mask back, see restore_mask().
class Signals {
 public:
  static Outcome<Signals> open(std::initializer_list<int> signals);

  /// Waits up to @p time; tells the signal that came, or nothing.
  std::optional<int> wait(std::chrono::milliseconds time);

  /// In a forked child, before exec: no signal blocked, each with its default action.
  static void restore_mask();

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
