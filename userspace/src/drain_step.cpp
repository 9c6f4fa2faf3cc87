// SPDX-License-Identifier: Apache-2.0
// The machine between start() and done.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "drain_state.hpp"
#include "socket_look.hpp"

namespace reuseport {

void Drain::State::look_at(Entry& entry, ListenerReport& seen) const {
  switch (method) {
    case Method::option: {
      const Result<Info> info = Listener(entry.fd).info();
      if (!info) {
        seen.error = info.error();
        return;
      }
      seen.left = {info->handshakes, info->queued};
      entry.drained = info->drained();
      entry.has_newcomer = info->group_on > 0;
      return;
    }
    case Method::steer: {
      const Result<Left> left = options.steering->left(entry.fd);
      if (!left) {
        seen.error = left.error();
        return;
      }
      seen.left = *left;
      entry.drained = left->nothing();
      return;
    }
    case Method::migrate:
    case Method::sweep:
    case Method::close: break;
  }
  if (entry.datagram) {
    seen.left.handshakes = 0;
    seen.left.queued.reset();  // there are datagrams; how many bytes is not known
  } else {
    seen.left.queued = detail::accept_queue(entry.fd);
  }
}

// Looks at every listener that is still open; `readable` holds those with something to take.
void Drain::State::look() {
  readable.clear();
  for (std::size_t i = 0; i < entries.size(); ++i) {
    Entry& entry = entries[i];
    if (entry.closed) {
      continue;
    }
    ListenerReport& seen = report.listeners[i];
    seen.error.reset();
    entry.drained = false;
    look_at(entry, seen);
    if (detail::is_readable(entry.fd)) {
      entry.drained = false;  // a datagram of no bytes is still one to read
      readable.push_back(entry.fd);
    } else if (entry.datagram && !seen.left.queued) {
      seen.left.queued = 0;
    }
  }
}

void Drain::State::close_entry(std::size_t index, Outcome outcome) {
  Entry& entry = entries[index];
  entry.closed = true;
  std::erase(open, entry.fd);
  report.listeners[index].outcome = outcome;
  if (options.close) {
    options.close(entry.fd);
  } else {
    ::close(entry.fd);
  }
}

// What closing a listener that is not drained amounts to.
Outcome Drain::State::outcome_late(std::size_t index) const {
  const Entry& entry = entries[index];
  if (entry.drained) {
    return Outcome::drained;
  }
  const bool moves = migrates && method == Method::option && entry.has_newcomer;
  return moves && !entry.datagram ? Outcome::migrated : Outcome::deadline_hit;
}

Step Drain::State::finish(Clock::time_point now) {
  if (method == Method::steer) {
    options.steering->stop();
  }
  report.outcome = Outcome::drained;
  report.method = Method::option;
  for (const ListenerReport& listener : report.listeners) {
    report.outcome = std::max(report.outcome, listener.outcome);
    report.method = std::max(report.method, listener.method);
  }
  report.took = now - started;
  phase = Phase::done;
  open.clear();
  return {};
}

Step Drain::State::at_deadline(Clock::time_point now) {
  report.timed_out = true;
  if (options.at_deadline == AtDeadline::undo || phase == Phase::waiting_for_newcomer) {
    (void)undo(now);
    return {};
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].closed) {
      close_entry(i, outcome_late(i));
    }
  }
  return finish(now);
}

Step Drain::State::accept_or_wait(Clock::time_point now) {
  if (!readable.empty()) {
    pause = first_pause;
    return {.action = Action::accept_more, .when = now, .fds = readable};
  }
  const Clock::time_point when = std::min(now + pause, deadline);
  pause = std::min(pause * 2, std::max(options.poll_interval, first_pause));
  return {.action = Action::wait_until, .when = when, .fds = {}};
}

Step Drain::State::await_newcomer(Clock::time_point now) {
  if (!std::ranges::all_of(entries, &Entry::has_newcomer)) {
    return now >= deadline ? at_deadline(now) : accept_or_wait(now);
  }
  if (Status set = switch_all(Mode::off); !set) {
    (void)undo(now);
    report.listeners.front().error = std::move(set.error());
    return {};
  }
  phase = Phase::running;
  return {.action = Action::wait_until, .when = std::min(now + pause, deadline), .fds = {}};
}

Step Drain::State::drain_all(Clock::time_point now) {
  if (!std::ranges::all_of(entries, &Entry::drained)) {
    return now >= deadline ? at_deadline(now) : accept_or_wait(now);
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    close_entry(i, Outcome::drained);
  }
  return finish(now);
}

// Without a way to keep new connections out, a listener is closed as soon as its queue is empty.
Step Drain::State::close_swept(Clock::time_point now) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    // Asked again right before close(): what comes in between is lost.
    if (!entries[i].closed && !detail::is_readable(entries[i].fd)) {
      report.listeners[i].left.queued = 0;
      close_entry(i, report.listeners[i].method == Method::migrate ? Outcome::migrated
                                                                   : Outcome::swept_and_closed);
    }
  }
  if (open.empty()) {
    return finish(now);
  }
  std::erase_if(readable, [this](int fd) { return std::ranges::find(open, fd) == open.end(); });
  return now >= deadline ? at_deadline(now) : accept_or_wait(now);
}

Step Drain::State::step(Clock::time_point now) {
  if (!in_progress()) {
    return {};
  }
  look();
  if (phase == Phase::waiting_for_newcomer) {
    return await_newcomer(now);
  }
  switch (method) {
    case Method::option:
    case Method::steer: return drain_all(now);
    case Method::migrate:
    case Method::sweep: return close_swept(now);
    case Method::close: break;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    close_entry(i, Outcome::closed);
  }
  return finish(now);
}

}  // namespace reuseport
