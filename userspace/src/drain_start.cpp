// SPDX-License-Identifier: Apache-2.0
// Choosing a method, switching listeners by it, and taking that back.
#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "drain_state.hpp"
#include "neighbours.hpp"
#include "socket_look.hpp"

namespace reuseport {
namespace {

Error probe_error(const ProbeResult& probe) {
  const bool taken = probe.support == Support::number_taken;
  return {"probe(SO_REUSEPORT_LISTEN_OFF)", taken ? EPROTO : probe.errnum, probe.why()};
}

}  // namespace

Drain::State::State(DrainOptions given) : options(std::move(given)) {}

Drain::State::~State() {
  if (in_progress()) {
    (void)undo(Clock::now());
  }
}

Status Drain::State::add(int fd) {
  if (phase != Phase::idle) {
    return fail("Drain::add", EBUSY, "add listeners before start()");
  }
  if (std::ranges::find(open, fd) != open.end()) {
    return fail("Drain::add", EEXIST, "this descriptor was added before");
  }
  const Result<bool> datagram = detail::check_listener(fd);
  if (!datagram) {
    return tl::unexpected(datagram.error());
  }
  entries.push_back(Entry{.fd = fd, .datagram = *datagram});
  open.push_back(fd);
  return {};
}

Status Drain::State::refuse_shared() const {
  Result<bool> shared = false;
  if (!options.is_shared) {
    shared = detail::held_elsewhere(open);
  }
  for (const int fd : open) {
    if (options.is_shared && shared && !*shared) {
      shared = options.is_shared(fd);
    }
  }
  if (!shared) {
    return tl::unexpected(shared.error());
  }
  if (*shared) {
    return fail("Drain::start", EBUSY,
                "another process holds this listener too and would lose new connections with it; "
                "to leave it to the other, just close() it");
  }
  return {};
}

Status Drain::State::switch_all(Mode mode) {
  for (Entry& entry : entries) {
    if (Status set = Listener(entry.fd).set_mode(mode); !set) {
      return set;
    }
    entry.switched = mode != entry.before;
  }
  return {};
}

// Gives every listener that is still open its mode back; the first error, but all are tried.
Status Drain::State::restore() {
  Status result;
  for (Entry& entry : entries) {
    if (entry.switched && !entry.closed) {
      Status set = Listener(entry.fd).set_mode(entry.before);
      entry.switched = !set.has_value();
      if (!set && result) {
        result = std::move(set);
      }
    }
  }
  return result;
}

// Whether some group would have no ON member once those of ours have left it.
Result<bool> Drain::State::leaves_a_group_empty() {
  std::map<std::uint32_t, std::uint32_t> staying;
  bool alone = false;
  for (Entry& entry : entries) {
    const Result<Info> info = Listener(entry.fd).info();
    if (!info) {
      return tl::unexpected(info.error());
    }
    entry.before = info->mode;
    if (!info->in_group()) {
      alone = true;
      continue;
    }
    std::uint32_t& on = staying.try_emplace(info->group_id, info->group_on).first->second;
    if (info->mode == Mode::on && on > 0) {
      --on;
    }
  }
  return alone || std::ranges::any_of(staying, [](const auto& group) { return group.second == 0; });
}

Status Drain::State::start_option() {
  const Result<bool> last = leaves_a_group_empty();
  if (!last) {
    return tl::unexpected(last.error());
  }
  if (*last && options.last_on == LastOn::refuse) {
    return fail("Drain::start", EADDRNOTAVAIL,
                "no ON listener would remain on this address; start the newcomer first");
  }
  if (Status unshared = refuse_shared(); !unshared) {
    return unshared;
  }
  const bool wait = *last && options.last_on == LastOn::wait;
  if (Status set = switch_all(wait ? Mode::standby : Mode::off); !set) {
    (void)restore();
    return set;
  }
  phase = wait ? Phase::waiting_for_newcomer : Phase::running;
  return {};
}

Status Drain::State::start_steering() {
  if (Status unshared = refuse_shared(); !unshared) {
    return unshared;
  }
  return options.steering->start(open);
}

// Picks the method and applies it; on error nothing has changed.
Result<Method> Drain::State::choose() {
  if (options.policy == Policy::close_only) {
    return Method::close;
  }
  if (report.probe.supported()) {
    return start_option().map([] { return Method::option; });
  }
  if (options.steering != nullptr) {
    Status steered = start_steering();
    if (steered) {
      return Method::steer;
    }
    if (options.policy == Policy::require) {
      return tl::unexpected(steered.error());
    }
    report.not_steered = std::move(steered.error());
  }
  if (options.policy == Policy::require) {
    return tl::unexpected(probe_error(report.probe));
  }
  // Where nobody stays to migrate to, the kernel resets.
  return migrates && detail::someone_stays(open) ? Method::migrate : Method::sweep;
}

Status Drain::State::start(Clock::time_point now) {
  if (phase != Phase::idle) {
    return fail("Drain::start", EBUSY, "a drain starts once; make another one");
  }
  if (entries.empty()) {
    return fail("Drain::start", EINVAL, "add a listener first");
  }
  report = Report{};
  report.probe = probe();
  migrates = detail::migrate_req_is_on();
  const Result<Method> chosen = choose();
  if (!chosen) {
    return tl::unexpected(chosen.error());
  }
  method = *chosen;
  if (phase == Phase::idle) {
    phase = Phase::running;
  }
  started = now;
  deadline = now + options.timeout;
  for (const Entry& entry : entries) {
    ListenerReport listener;
    listener.fd = entry.fd;
    // Nothing migrates datagrams.
    listener.method = method == Method::migrate && entry.datagram ? Method::sweep : method;
    report.listeners.push_back(std::move(listener));
  }
  return {};
}

Status Drain::State::undo(Clock::time_point now) {
  if (!in_progress()) {
    return fail("Drain::undo", ESTALE, "no drain is running");
  }
  const bool some_closed = open.size() != entries.size();
  Status restored = restore();
  (void)finish(now);
  if (restored && some_closed) {
    return fail("Drain::undo", ECANCELED, "some listeners were closed before; the others are back");
  }
  return restored;
}

}  // namespace reuseport
