// SPDX-License-Identifier: Apache-2.0
// What a supervisor does while it waits: it handles signals, reaps children, and tells the service
// manager that it is alive.
#ifndef REUSEPORTCTL_LOOKING_AFTER_HPP
#define REUSEPORTCTL_LOOKING_AFTER_HPP

#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "child.hpp"
#include "notify.hpp"
#include "output.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// Base of a supervisor: wait() does all of that.
class LookingAfter : public Waiter {
 public:
  /// False once it is asked to stop.
  bool wait(std::chrono::milliseconds time) override;

 protected:
  /// The longest single wait.
  static constexpr std::chrono::milliseconds idle = std::chrono::hours(1);

  LookingAfter(const Output& out, Signals signals) : out_(out), signals_(std::move(signals)) {}

  /// Time until @p until: 0 if that has passed, at most idle.
  [[nodiscard]] static std::chrono::milliseconds remaining(Clock::time_point until);
  /// Handles a signal, after ended children are reaped.
  virtual void take(const Signals::Signal& signal) = 0;
  /// With --json, logs an event as one line.
  void event(const char* what, nlohmann::json facts) const;

  const Output& out_;
  Signals signals_;
  Notify notify_;
  Children children_;
  bool stopping_ = false;
};

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_LOOKING_AFTER_HPP
