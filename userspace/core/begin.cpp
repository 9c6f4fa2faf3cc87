// SPDX-License-Identifier: Apache-2.0
// Choosing a method, switching the listeners, and undoing that.
#include <algorithm>
#include <cerrno>
#include <limits>

#include "engine.hpp"
#include "reuseport/probe.hpp"

namespace reuseport::core {
namespace {

// The option is not available for this listener. EBUSY: BPF would bypass another program.
// ENOSPC: its tables are full.
bool is_unusable(int errnum) {
  switch (errnum) {
    case EACCES:
    case EAFNOSUPPORT:
    case EBUSY:
    case ENOPROTOOPT:
    case ENOSPC:
    case ENOSYS:
    case EOPNOTSUPP:
    case EPERM:
    case EPROTO: return true;
    default: return false;
  }
}

}  // namespace

bool in_group(const reuseport_listen_info& info) noexcept {
  return info.group_on + info.group_standby + info.group_off > 0;
}

bool is_passing(int errnum) noexcept {
  switch (errnum) {
    case EAGAIN:
    case EINTR:
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM: return true;
    default: return false;
  }
}

int Drain::fail(const Fault& fault) noexcept {
  fault_ = fault;
  return -fault.errnum;
}

std::uint32_t Drain::method_of(const Entry& entry) const noexcept {
  if (method_ == REUSEPORT_METHOD_MIGRATE && !entry.listener.migrates()) {
    return REUSEPORT_METHOD_SWEEP;
  }
  return method_;
}

int Drain::add(int fd) noexcept {
  if (phase_ != Phase::idle) {
    return fail({EBUSY, "add", "add listeners before start", fd});
  }
  for (const Entry& entry : entries_) {
    if (entry.fd == fd) {
      return fail({EEXIST, "add", "this descriptor was already added", fd});
    }
  }
  Entry entry;
  entry.fd = fd;
  if (const Fault fault = examine(fd, entry.listener); fault) {
    return fail(fault);
  }
  // Reserve all the memory that the drain will need: it allocates nothing later.
  const std::size_t count = entries_.size() + 1;
  if (!entries_.reserve(count) || !inodes_.reserve(count) || !on_.reserve(count) ||
      !fds_.reserve(count)) {
    return fail({ENOMEM, "add", "", fd});
  }
  entries_.push(entry);
  fault_ = {};
  return 0;
}

Fault Drain::get_info(const Entry& entry, reuseport_listen_info& info) const noexcept {
  const int got = options_.get_info != nullptr ? options_.get_info(entry.fd, &info, options_.user)
                                               : reuseport_get_info(entry.fd, &info);
  return got == 0
             ? Fault{}
             : Fault{-got, "getsockopt(SO_REUSEPORT_LISTEN_OFF)", reuseport_hint(got), entry.fd};
}

Fault Drain::set_mode(Entry& entry, std::uint32_t mode) const noexcept {
  const int value = static_cast<int>(mode);
  const int set = options_.set_mode != nullptr ? options_.set_mode(entry.fd, value, options_.user)
                                               : reuseport_set_mode(entry.fd, value);
  if (set != 0) {
    return {-set, "setsockopt(SO_REUSEPORT_LISTEN_OFF)", reuseport_hint(set), entry.fd};
  }
  entry.switched = mode != entry.before;
  entry.info.mode = mode;
  return {};
}

// Not cached: BPF may have come or gone since the first probe.
Fault Drain::probe() noexcept {
  if (options_.get_info != nullptr) {
    return {};
  }
  const ProbeResult found = probe_now();
  support_ = static_cast<std::uint32_t>(found.support);
  if (found.supported()) {
    return {};
  }
  return {found.support == Support::number_taken ? EPROTO : found.errnum,
          "probe(SO_REUSEPORT_LISTEN_OFF)", found.why()};
}

Fault Drain::look_before() noexcept {
  on_.clear();
  for (Entry& entry : entries_) {
    if (identify(entry.fd) != entry.listener.identity) {
      return {EBADF, "start", "the descriptor was closed after it was added", entry.fd};
    }
    if (const Fault fault = get_info(entry, entry.info); fault) {
      return fault;
    }
    if (!entry.switched) {
      entry.before = entry.info.mode;
    }
    if (entry.info.mode == REUSEPORT_LISTEN_ON && in_group(entry.info)) {
      on_.push(entry.group());
    }
    if (options_.get_info != nullptr) {
      support_ = (entry.info.flags & REUSEPORT_LISTEN_F_BPF) != 0 ? REUSEPORT_SUPPORTED_BY_BPF
                                                                  : REUSEPORT_SUPPORTED;
    }
  }
  std::sort(on_.begin(), on_.end());
  return {};
}

// Whether its group keeps an ON member after all of ours have left. An OFF listener serves nobody.
bool Drain::stays_served(const Entry& entry) const noexcept {
  const auto [first, last] = std::equal_range(on_.begin(), on_.end(), entry.group());
  return entry.info.mode == REUSEPORT_LISTEN_OFF ||
         entry.info.group_on > static_cast<std::uint32_t>(last - first);
}

Fault Drain::refuse_last() const noexcept {
  for (const Entry& entry : entries_) {
    // BPF does not know it yet: set_mode() says so.
    const bool unknown = entry.listener.datagram() && !in_group(entry.info) &&
                         (entry.info.flags & REUSEPORT_LISTEN_F_BPF) != 0;
    if (options_.last_on == REUSEPORT_LAST_REFUSE && !unknown && !stays_served(entry)) {
      return {EADDRNOTAVAIL, "start",
              "no ON listener would remain at this address, device and family: start the newcomer "
              "first, or allow the address to be given up",
              entry.fd};
    }
  }
  return {};
}

Fault Drain::refuse_shared() noexcept {
  int shared = 0;
  int fd = -1;
  if (unshared_) {
    return {};
  }
  if (options_.is_shared == nullptr) {
    shared = held_elsewhere({inodes_.begin(), inodes_.end()});
  } else {
    for (std::size_t i = 0; i < entries_.size() && shared == 0; ++i) {
      fd = entries_[i].fd;
      shared = options_.is_shared(fd, options_.user);
    }
  }
  if (shared < 0) {
    return {-shared, "is_shared", "mount /proc, or set is_shared", fd};
  }
  if (shared > 0) {
    return {EBUSY, "start",
            "another process holds, or may hold, this listener too and would stop getting "
            "connections; to leave the listener to it, just close() your copy",
            fd};
  }
  unshared_ = true;
  return {};
}

Fault Drain::switch_over() noexcept {
  for (Entry& entry : entries_) {
    const bool goes = entry.before == REUSEPORT_LISTEN_OFF ||
                      (options_.last_on == REUSEPORT_LAST_LEAVE && !stays_served(entry));
    const Fault fault = set_mode(entry, goes ? REUSEPORT_LISTEN_OFF : REUSEPORT_LISTEN_STANDBY);
    if (fault) {
      (void)restore();
      return fault;
    }
  }
  return {};
}

// Restores the mode of every open listener. Tries all of them and returns the first fault.
Fault Drain::restore() noexcept {
  Fault first;
  for (Entry& entry : entries_) {
    if (entry.open && identify(entry.fd) != entry.listener.identity) {
      vanish(entry, false);
    } else if (entry.open && entry.switched) {
      const Fault fault = set_mode(entry, entry.before);
      entry.error = -fault.errnum;
      first = first ? first : fault;
    }
  }
  return first;
}

// Chooses the method and applies it; on a fault nothing has changed.
Fault Drain::begin() noexcept {
  if (options_.policy == REUSEPORT_CLOSE_ONLY) {
    method_ = REUSEPORT_METHOD_CLOSE;
    return {};
  }
  Fault fault = probe();
  fault = fault ? fault : look_before();
  bool of_the_option = static_cast<bool>(fault);
  fault = fault ? fault : refuse_last();
  fault = fault ? fault : refuse_shared();
  if (!fault) {
    fault = switch_over();
    of_the_option = static_cast<bool>(fault);
  }
  if (!fault) {
    method_ = REUSEPORT_METHOD_OPTION;
  } else if (of_the_option && is_unusable(fault.errnum) && options_.policy == REUSEPORT_PREFER) {
    // Only the last close() of a socket migrates anything.
    method_ = migrates_ && !refuse_shared() ? REUSEPORT_METHOD_MIGRATE : REUSEPORT_METHOD_SWEEP;
    fault_ = fault;  // the report says why no better method was used
    return {};
  }
  return fault;
}

int Drain::start(Time now) noexcept {
  if (phase_ != Phase::idle) {
    return fail({EBUSY, "start", "this drain has already started; create a new one"});
  }
  if (entries_.size() == 0) {
    return fail({EINVAL, "start", "add a listener first"});
  }
  inodes_.clear();
  for (Entry& entry : entries_) {
    inodes_.push(entry.listener.identity.inode);
  }
  std::sort(inodes_.begin(), inodes_.end());
  migrates_ = migrate_req_is_on() && all_open([netns = own_netns()](const Entry& entry) {
                return entry.listener.netns == netns;
              });
  unshared_ = false;
  fault_ = {};
  const Fault fault = begin();
  if (fault && !is_passing(fault.errnum) && !stuck()) {
    return fail(fault);
  }
  const bool back = fault && !is_passing(fault.errnum);
  phase_ = back ? Phase::undoing : fault ? Phase::switching : Phase::draining;
  if (fault) {
    fault_ = fault;
  }
  for (Entry& entry : entries_) {
    if (entry.open) {
      entry.outcome = REUSEPORT_RUNNING;
    }
  }
  started_ = now;
  constexpr Time never = std::numeric_limits<Time>::max();
  deadline_ = options_.timeout_ns > never - now ? never : now + options_.timeout_ns;
  if (back) {
    give_up_ = now + REUSEPORT_MS(1000);
    return fail({fault.errnum, fault.call,
                 "a listener could not be set back: step or undo tries that again", fault.fd});
  }
  return 0;
}

bool Drain::stuck() const noexcept {
  return std::any_of(entries_.begin(), entries_.end(),
                     [](const Entry& e) { return e.open && e.switched; });
}

Fault Drain::end_undone(Time now) noexcept {
  const Fault fault = restore();
  if (phase_ != Phase::undoing) {
    give_up_ = now + REUSEPORT_MS(1000);
    phase_ = Phase::undoing;
  }
  if (is_passing(fault.errnum) && now < give_up_) {
    return fault;  // step tries again
  }
  for (Entry& entry : entries_) {
    if (entry.open) {
      entry.outcome = REUSEPORT_UNDONE;
    }
  }
  finish(now);
  return fault;
}

int Drain::undo(Time now) noexcept {
  if (!in_progress()) {
    return fail({ESTALE, "undo", "no drain is running"});
  }
  if (const Fault fault = end_undone(now); fault) {
    return fail(fault);
  }
  const bool all =
      std::all_of(entries_.begin(), entries_.end(), [](const Entry& e) { return e.open; });
  return all ? 0
             : fail({ECANCELED, "undo",
                     "some listeners were already closed; the others are restored"});
}

}  // namespace reuseport::core
