// SPDX-License-Identifier: Apache-2.0
#include "reuseport/drain.hpp"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "drain_state.hpp"

namespace reuseport {
namespace {

// As long as every listener can tell, their sum.
void add_up(std::optional<std::uint32_t>& sum, const std::optional<std::uint32_t>& part) {
  sum = sum && part ? std::optional(*sum + *part) : std::nullopt;
}

timespec until(Clock::time_point when) {
  const auto rest = std::max(when - Clock::now(), Clock::duration::zero());
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(rest);
  return {.tv_sec = seconds.count(), .tv_nsec = std::chrono::nanoseconds(rest - seconds).count()};
}

// Sleeps until one of @p fds is readable, or @p when.
void sleep_on(std::span<const int> fds, Clock::time_point when) {
  std::vector<pollfd> waits;
  waits.reserve(fds.size());
  for (const int fd : fds) {
    waits.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  }
  timespec rest = until(when);
  if (::ppoll(waits.data(), waits.size(), &rest, nullptr) > 0 &&
      std::ranges::none_of(waits,
                           [](const pollfd& wait) { return (wait.revents & POLLIN) != 0; })) {
    rest = until(when);  // POLLERR or POLLHUP alone: nothing to accept, so do not spin on it
    (void)::ppoll(nullptr, 0, &rest, nullptr);
  }
}

}  // namespace

std::string_view to_string(Policy policy) noexcept {
  switch (policy) {
    case Policy::require: return "require";
    case Policy::prefer: return "prefer";
    case Policy::close_only: return "close_only";
  }
  return "unknown";
}

std::string_view to_string(Method method) noexcept {
  switch (method) {
    case Method::option: return "option";
    case Method::steer: return "steer";
    case Method::migrate: return "migrate";
    case Method::sweep: return "sweep";
    case Method::close: return "close";
  }
  return "unknown";
}

std::string_view to_string(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::drained: return "drained";
    case Outcome::migrated: return "migrated";
    case Outcome::swept_and_closed: return "swept_and_closed";
    case Outcome::closed: return "closed";
    case Outcome::deadline_hit: return "deadline_hit";
    case Outcome::undone: return "undone";
  }
  return "unknown";
}

Left Report::left() const noexcept {
  Left sum{0, 0};
  for (const ListenerReport& listener : listeners) {
    add_up(sum.handshakes, listener.left.handshakes);
    add_up(sum.queued, listener.left.queued);
  }
  return sum;
}

Drain::Drain(DrainOptions options) : state_(std::make_unique<State>(std::move(options))) {}
Drain::Drain(Drain&&) noexcept = default;
Drain& Drain::operator=(Drain&&) noexcept = default;
Drain::~Drain() = default;

Status Drain::add(int fd) {
  return state_->add(fd);
}
Status Drain::start(Clock::time_point now) {
  return state_->start(now);
}
Step Drain::step(Clock::time_point now) {
  return state_->step(now);
}
Status Drain::undo() {
  return state_->undo(Clock::now());
}
const Report& Drain::report() const noexcept {
  return state_->report;
}
std::span<const int> Drain::open_fds() const noexcept {
  return state_->open;
}

Result<Report> run(Drain& drain, const std::function<void(int fd)>& accept) {
  if (Status started = drain.start(); !started) {
    return tl::unexpected(started.error());
  }
  for (Step step = drain.step(); step.action != Action::done; step = drain.step()) {
    if (step.action == Action::accept_more) {
      for (const int fd : step.fds) {
        accept(fd);
      }
    } else {
      sleep_on(drain.open_fds(), step.when);
    }
  }
  return drain.report();
}

}  // namespace reuseport
