// SPDX-License-Identifier: Apache-2.0
// The state machine between start and done.
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "engine.hpp"

namespace reuseport::core {
namespace {

constexpr Time first_pause = REUSEPORT_MS(1);

// The errors of a check that mean that the listener is gone.
bool says_gone(int errnum) {
  return errnum == EBADF || errnum == ENOTSOCK || errnum == ESTALE;
}

bool listens(const Listener& listener, int fd) {
  int listening = 0;
  socklen_t len = sizeof(listening);
  return listener.datagram() ||
         (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 && listening == 1);
}

bool same_place(const Listener& one, const Listener& other) {
  const Place& a = one.place;
  const Place& b = other.place;
  return one.netns == other.netns && a.family == b.family && a.protocol == b.protocol &&
         a.v6only == b.v6only && a.port == b.port && a.device == b.device && a.uid == b.uid &&
         a.address == b.address;
}

// A STANDBY listener that serves because no other member is ON.
bool stands_alone(const reuseport_listen_info& info) {
  return info.mode == REUSEPORT_LISTEN_STANDBY && info.group_on == 0;
}

void add_up(std::uint32_t& sum, std::uint32_t part) {
  const bool known = sum != REUSEPORT_UNKNOWN && part != REUSEPORT_UNKNOWN;
  sum = known ? sum + std::min(part, REUSEPORT_UNKNOWN - 1 - sum) : REUSEPORT_UNKNOWN;
}

}  // namespace

Time now() noexcept {
  timespec time{};
  (void)::clock_gettime(CLOCK_MONOTONIC, &time);
  return Time{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// Marks listeners with something to accept. In parts: poll(2) takes at most RLIMIT_NOFILE entries.
void Drain::poll_all() noexcept {
  constexpr std::size_t most = 64;
  for (std::size_t begin = 0; begin < entries_.size(); begin += most) {
    const std::span part{&entries_[begin], std::min(most, entries_.size() - begin)};
    std::array<pollfd, most> waits{};
    for (std::size_t i = 0; i < part.size(); ++i) {
      waits[i] = {.fd = part[i].open ? part[i].fd : -1, .events = POLLIN, .revents = 0};
    }
    const bool polled = ::poll(waits.data(), part.size(), 0) >= 0;
    for (std::size_t i = 0; i < part.size(); ++i) {
      part[i].readable = polled ? (waits[i].revents & POLLIN) != 0 : is_readable(part[i].fd);
    }
  }
}

void Drain::look_at_queue(Entry& entry) noexcept {
  if (entry.listener.datagram()) {
    entry.info.handshakes = 0;
    // There are datagrams, but the number of bytes is unknown.
    entry.info.queued = entry.readable ? REUSEPORT_UNKNOWN : 0;
  } else {
    entry.info.queued = accept_queue(entry.fd);
  }
}

void Drain::look_at(Entry& entry) noexcept {
  if (identify(entry.fd) != entry.listener.identity) {
    vanish(entry, false);
    return;
  }
  if (!listens(entry.listener, entry.fd)) {
    vanish(entry, true);
    return;
  }
  entry.error = 0;
  if (method_ != REUSEPORT_METHOD_OPTION) {
    look_at_queue(entry);
    return;
  }
  reuseport_listen_info info{};
  if (const Fault fault = get_info(entry, info); fault) {
    if (says_gone(fault.errnum)) {
      vanish(entry, true);
      return;
    }
    entry.error = -fault.errnum;
    entry.drained = false;
    return;
  }
  if (in_group(entry.info) && !in_group(info)) {
    vanish(entry, true);  // it has left its group, e.g. by connect()
    return;
  }
  entry.info = info;
  entry.drained = reuseport_drained(&info) == 1 && !entry.readable;
}

// Someone else has closed it or shut it down. The previous check decides its outcome.
void Drain::vanish(Entry& entry, bool still_ours) noexcept {
  end_entry(entry, entry.drained ? REUSEPORT_DRAINED : REUSEPORT_VANISHED);
  if (still_ours) {
    close_fd(entry);
  }
}

void Drain::close_entry(Entry& entry, std::uint32_t outcome) noexcept {
  end_entry(entry, outcome);
  close_fd(entry);
}

void Drain::end_entry(Entry& entry, std::uint32_t outcome) noexcept {
  entry.open = entry.readable = false;
  entry.outcome = outcome;
  entry.unconfirmed = outcome == REUSEPORT_MIGRATED ||
                      (outcome == REUSEPORT_DRAINED && entry.info.mode == REUSEPORT_LISTEN_STANDBY);
}

void Drain::close_fd(const Entry& entry) const noexcept {
  if (options_.close != nullptr) {
    options_.close(entry.fd, options_.user);
  } else {
    ::close(entry.fd);
  }
}

// Check each once more: the last ON member may have left since.
void Drain::close_drained() noexcept {
  for (Entry& entry : entries_) {
    if (entry.open) {
      entry.readable = is_readable(entry.fd);
      look_at(entry);
      if (entry.open && entry.drained) {
        close_entry(entry, REUSEPORT_DRAINED);
      }
    }
  }
}

// New connections cannot be kept out, so close a listener as soon as its queue is empty.
void Drain::close_swept() noexcept {
  for (Entry& entry : entries_) {
    if (!entry.open) {
      continue;
    }
    look_at(entry);
    if (!entry.open) {
      continue;
    }
    if (method_ == REUSEPORT_METHOD_CLOSE) {
      close_entry(entry, REUSEPORT_CLOSED);
      continue;
    }
    entry.readable = is_readable(entry.fd);
    if (!entry.readable) {
      entry.info.queued = 0;
      close_entry(entry, method_of(entry) == REUSEPORT_METHOD_MIGRATE ? REUSEPORT_MIGRATED
                                                                      : REUSEPORT_SWEPT_AND_CLOSED);
    }
  }
}

// Were other members there to the end? A listener that was closed relying on them keeps its outcome
// only if one is seen now.
void Drain::look_again() noexcept {
  const Entry* last = nullptr;
  bool seen = false;
  for (Entry& entry : entries_) {
    if (!entry.unconfirmed) {
      continue;
    }
    entry.unconfirmed = false;
    if (last == nullptr || !same_place(last->listener, entry.listener)) {
      seen = others_are_on(entry.listener, {inodes_.begin(), inodes_.end()});
    }
    last = &entry;
    if (seen) {
      continue;
    }
    if (entry.outcome == REUSEPORT_DRAINED) {
      entry.outcome = REUSEPORT_UNCONFIRMED;
    } else {
      entry.outcome =
          method_ == REUSEPORT_METHOD_OPTION ? REUSEPORT_DEADLINE_HIT : REUSEPORT_SWEPT_AND_CLOSED;
    }
  }
}

// Whether a group has lost its last ON member and the drain must be undone. With LAST_LEAVE the
// listener goes OFF instead.
bool Drain::newcomer_is_gone() noexcept {
  for (Entry& entry : entries_) {
    if (!entry.open || entry.error != 0 || !stands_alone(entry.info)) {
      continue;
    }
    if (options_.last_on == REUSEPORT_LAST_REFUSE) {
      fault_ = {EADDRNOTAVAIL, "step",
                "the newcomer is gone: no other member of the group is ON; the listeners serve as "
                "before",
                entry.fd};
      return true;
    }
    if (options_.last_on == REUSEPORT_LAST_LEAVE) {
      const Fault fault = set_mode(entry, REUSEPORT_LISTEN_OFF);
      entry.error = -fault.errnum;
      entry.drained = false;
    }
  }
  return false;
}

// The outcome of closing a listener at the deadline.
std::uint32_t Drain::outcome_late(const Entry& entry) const noexcept {
  if (entry.drained) {
    return REUSEPORT_DRAINED;
  }
  // BPF cannot tell the kernel which listener to migrate to. Who does not accept here may hold
  // other descriptors of it: this close() is not the last one, then.
  const bool by_option = method_ == REUSEPORT_METHOD_OPTION && migrates_ && may_accept() &&
                         entry.listener.migrates() && entry.info.group_on > 0 &&
                         (entry.info.flags & REUSEPORT_LISTEN_F_BPF) == 0;
  return by_option || method_of(entry) == REUSEPORT_METHOD_MIGRATE ? REUSEPORT_MIGRATED
                                                                   : REUSEPORT_DEADLINE_HIT;
}

void Drain::end_late(Time now) noexcept {
  timed_out_ = true;
  const bool nobody_came = method_ == REUSEPORT_METHOD_OPTION &&
                           options_.last_on == REUSEPORT_LAST_WAIT &&
                           !all_open([](const Entry& entry) { return !stands_alone(entry.info); });
  if (options_.at_deadline == REUSEPORT_DEADLINE_UNDO || nobody_came) {
    (void)end_undone(now);
    return;
  }
  for (Entry& entry : entries_) {
    if (!entry.open) {
      continue;
    }
    look_at(entry);
    if (entry.open && options_.at_deadline == REUSEPORT_DEADLINE_KEEP) {
      entry.outcome = REUSEPORT_DEADLINE_HIT;
    } else if (entry.open) {
      close_entry(entry, outcome_late(entry));
    }
  }
  finish(now);
}

void Drain::finish(Time now) noexcept {
  look_again();
  ended_ = now;
  phase_ = Phase::done;
}

void Drain::accept_or_wait(Time now, reuseport_step& step) noexcept {
  fds_.clear();
  for (const Entry& entry : entries_) {
    if (entry.open && entry.readable && may_accept()) {
      fds_.push(entry.fd);
    }
  }
  step.action = fds_.size() > 0 ? REUSEPORT_ACCEPT_MORE : REUSEPORT_WAIT;
  if (step.action == REUSEPORT_ACCEPT_MORE) {
    pause_ = first_pause;
  } else {
    const Time end = phase_ == Phase::undoing ? give_up_ : deadline_;
    const Time most = std::max(options_.poll_ns, first_pause);
    step.wait_ns = std::clamp<Time>(end - now, 0, pause_);
    pause_ = pause_ > most / 2 ? most : pause_ * 2;
    for (const Entry& entry : entries_) {
      if (entry.open && may_accept()) {
        fds_.push(entry.fd);
      }
    }
  }
  step.fds = fds_.data();
  step.n_fds = static_cast<std::uint32_t>(fds_.size());
}

// A temporary error kept the listeners from being switched: retry until the deadline.
void Drain::try_again(Time now) noexcept {
  fault_ = {};
  const Fault fault = begin();
  if (!fault) {
    phase_ = Phase::draining;
    return;
  }
  fault_ = fault;
  timed_out_ = now >= deadline_;
  if (timed_out_ || !is_passing(fault.errnum)) {
    (void)end_undone(now);
  }
}

void Drain::get_on(Time now) noexcept {
  if (method_ != REUSEPORT_METHOD_OPTION) {
    close_swept();
  } else {
    // A drained listener stays drained while the newcomer lives; close_drained() checks it again.
    for (Entry& entry : entries_) {
      if (entry.open && (!entry.drained || entry.readable || now >= deadline_)) {
        look_at(entry);
      }
    }
    if (newcomer_is_gone()) {
      (void)end_undone(now);
      return;
    }
    if (all_open([](const Entry& entry) { return entry.drained; })) {
      close_drained();
    }
  }
  look_again();
  if (all_open([](const Entry&) { return false; })) {
    finish(now);
  } else if (now >= deadline_) {
    end_late(now);
  }
}

int Drain::step(Time now, reuseport_step& step) noexcept {
  if (phase_ == Phase::idle) {
    return fail({EINVAL, "step", "start the drain first"});
  }
  if (phase_ == Phase::switching) {
    try_again(now);
  }
  poll_all();
  if (phase_ == Phase::draining) {
    get_on(now);
  } else if (phase_ == Phase::undoing) {
    (void)end_undone(now);
  }
  step.action = REUSEPORT_DONE;
  if (in_progress()) {
    accept_or_wait(now, step);
  }
  return static_cast<int>(step.action);
}

void Drain::report(Time now, reuseport_drain_report& report) const noexcept {
  report.support = support_;
  report.listeners = static_cast<std::uint32_t>(entries_.size());
  report.outcome = in_progress() ? REUSEPORT_RUNNING : REUSEPORT_NOT_STARTED;
  if (phase_ != Phase::idle) {
    report.took_ns = (in_progress() ? now : ended_) - started_;
    report.timed_out = timed_out_ ? 1 : 0;
  }
  for (const Entry& entry : entries_) {
    add_up(report.handshakes, entry.info.handshakes);
    add_up(report.queued, entry.info.queued);
    report.method = std::max(report.method, method_of(entry));
    if (phase_ == Phase::done) {
      report.outcome = std::max(report.outcome, entry.outcome);
    }
  }
  report.lossless =
      report.outcome == REUSEPORT_DRAINED || report.outcome == REUSEPORT_MIGRATED ? 1 : 0;
}

int Drain::listener(std::size_t index, reuseport_listener_report& report) const noexcept {
  if (index >= entries_.size()) {
    return -ENOENT;
  }
  const Entry& entry = entries_[index];
  report.fd = entry.fd;
  report.outcome = entry.outcome;
  report.method = method_of(entry);
  report.before = entry.before;
  report.handshakes = entry.info.handshakes;
  report.queued = entry.info.queued;
  report.group_on = entry.info.group_on;
  report.error = entry.error;
  report.open = entry.open ? 1 : 0;
  return 0;
}

}  // namespace reuseport::core
