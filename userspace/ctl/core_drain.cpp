// SPDX-License-Identifier: Apache-2.0
#include "core_drain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace reuseport::ctl {

using namespace std::chrono_literals;

CoreDrain::CoreDrain(std::vector<Target>& targets, const std::vector<Cover>& covers,
                     Provider& provider)
    : targets_(targets), covers_(covers), provider_(provider), seen_(targets.size()) {
  Part beside{{}, REUSEPORT_LAST_REFUSE, {}};
  Part away{{}, REUSEPORT_LAST_LEAVE, {}};
  for (std::size_t i = 0; i < targets.size(); i++) {
    by_fd_[targets[i].fd.get()] = i;
    (covers[i] == Cover::group ? beside : away).members.push_back(i);
  }
  for (Part* part : {&beside, &away}) {
    if (!part->members.empty()) {
      parts_.push_back(std::move(*part));
    }
  }
}

CoreDrain::~CoreDrain() = default;

int CoreDrain::set_mode(int fd, int mode, void* user) noexcept try {
  return static_cast<CoreDrain*>(user)->provider_.set_mode(fd, mode);
} catch (...) {
  return -ENOMEM;  // temporary; nothing but bad_alloc can be thrown
}

int CoreDrain::get_info(int fd, reuseport_listen_info* info, void* user) noexcept try {
  auto* self = static_cast<CoreDrain*>(user);
  return self->ask(self->by_fd_.at(fd), info);
} catch (...) {
  return -ENOMEM;
}

/// Lets go of listeners that the server has closed; keeps all others for the way back.
void CoreDrain::close(int fd, void* user) noexcept try {
  auto* self = static_cast<CoreDrain*>(user);
  const std::size_t i = self->by_fd_.at(fd);
  if (self->seen_[i].closed) {
    self->targets_[i].fd.reset();
  }
} catch (...) {
}

/// After the server has closed it, checks once more: what our duplicate has then is lost with it.
int CoreDrain::ask(std::size_t i, reuseport_listen_info* info) {
  Seen& seen = seen_[i];
  if (seen.closed) {
    return -EBADF;
  }
  const bool held = targets_[i].still_held();
  const int got = provider_.get_info(targets_[i].fd.get(), info);
  seen.closed = !held;
  if (got == 0) {
    seen.info = *info;
    seen.looked = true;
    seen.drained = reuseport_drained(info) == 1;
  }
  return got;
}

Failure CoreDrain::failure_of(const Part& part) const {
  reuseport_error error{};
  error.size = sizeof(error);
  static_cast<void>(reuseport_drain_get_error(part.drain.get(), &error));
  const auto at = by_fd_.find(error.fd);
  const std::string call = error.call != nullptr ? error.call : "drain";
  const std::string hint = error.hint != nullptr ? error.hint : "";
  return Failure(Error{call, error.error != 0 ? -error.error : EIO, hint},
                 at != by_fd_.end() ? targets_[at->second].str() : "");
}

Done CoreDrain::start(Clock::time_point deadline) {
  std::vector<int> fds;
  for (const Target& t : targets_) {
    fds.push_back(t.fd.get());
  }
  if (const auto ok = provider_.adopt(fds); !ok) {
    return failed(ok.error(), targets_.front().str());
  }
  for (std::size_t i = 0; i < targets_.size(); i++) {
    reuseport_listen_info info{};
    const int got = ask(i, &info);
    if (got == 0) {
      seen_[i].before = info.mode;
    } else if (!seen_[i].closed) {  // nothing is switched before each old mode is known
      return failed(Error{"get the listener's mode", -got, {}}, targets_[i].str());
    }
  }
  for (Part& part : parts_) {
    reuseport_drain_options options{};
    options.size = sizeof(options);
    options.policy = REUSEPORT_REQUIRE;
    options.last_on = part.last_on;
    options.at_deadline = REUSEPORT_DEADLINE_KEEP;
    options.flags = REUSEPORT_DRAIN_NO_ACCEPT;
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now());
    options.timeout_ns = deadline == Clock::time_point::max()
                             ? REUSEPORT_FOREVER
                             : std::max<std::int64_t>(left.count(), 1);
    options.user = this;
    options.set_mode = &CoreDrain::set_mode;
    options.get_info = &CoreDrain::get_info;
    options.is_shared = [](int, void*) { return 0; };  // already checked, see sharing.hpp
    options.close = &CoreDrain::close;
    reuseport_drain* drain = nullptr;
    int got = reuseport_drain_new(&options, &drain);
    part.drain.reset(drain);
    for (std::size_t n = 0; got == 0 && n < part.members.size(); n++) {
      got = reuseport_drain_add(drain, targets_[part.members[n]].fd.get());
    }
    got = got == 0 ? reuseport_drain_start(drain) : got;
    if (got != 0) {
      Failure failure = drain != nullptr ? failure_of(part) : Failure(Error{"drain", -got, {}});
      if (auto back = undo(); !back) {
        failure.hint = back.error().line();
      }
      return failed(failure);
    }
  }
  return {};
}

std::optional<std::chrono::milliseconds> CoreDrain::step() {
  std::optional<std::chrono::milliseconds> pause;
  const auto start = Clock::now();
  for (Part& part : parts_) {
    if (part.done) {
      continue;
    }
    reuseport_step step{};
    step.size = sizeof(step);
    part.done = reuseport_drain_step(part.drain.get(), &step) != REUSEPORT_WAIT;
    if (!part.done) {
      const auto wait =
          std::chrono::ceil<std::chrono::milliseconds>(std::chrono::nanoseconds(step.wait_ns));
      pause = std::min(pause.value_or(wait), wait);
    }
  }
  // checking thousands of listeners takes time: leave most of the CPU to others
  return pause ? std::optional(std::max(*pause, since(start) * 2)) : pause;
}

CoreDrain::End CoreDrain::end() const {
  End worst = End::drained;
  for (const Part& part : parts_) {
    for (std::size_t n = 0; n < part.members.size(); n++) {
      reuseport_listener_report report{};
      report.size = sizeof(report);
      static_cast<void>(reuseport_drain_get_listener(part.drain.get(), n, &report));
      switch (report.outcome) {
        case REUSEPORT_DRAINED:
        case REUSEPORT_UNCONFIRMED:
          break;  // nothing is closed yet: the newcomer is checked after that
        case REUSEPORT_UNDONE: worst = std::max(worst, End::undone); break;
        case REUSEPORT_DEADLINE_HIT: worst = std::max(worst, End::deadline); break;
        default: worst = std::max(worst, End::vanished);
      }
    }
  }
  return worst;
}

std::string CoreDrain::why() const {
  for (const Part& part : parts_) {
    reuseport_error error{};
    error.size = sizeof(error);
    if (reuseport_drain_get_error(part.drain.get(), &error) == 0 && error.error != 0) {
      return failure_of(part).line();
    }
  }
  return "undone";
}

bool CoreDrain::look() {
  bool all = true;
  deserted_.clear();
  for (std::size_t i = 0; i < targets_.size(); i++) {
    Seen& seen = seen_[i];
    reuseport_listen_info info{};
    if (!seen.closed && ask(i, &info) != 0) {
      seen.drained = false;
    }
    if (seen.closed) {
      targets_[i].fd.reset();
    }
    all = all && seen.drained;
    if (!seen.closed && covers_[i] == Cover::group && seen.info.group_on == 0) {
      deserted_ = targets_[i].socket.local.str();
    }
  }
  return all;
}

Done CoreDrain::undo() {
  std::optional<Failure> first;
  std::size_t stuck = 0;
  for (Part& part : parts_) {
    if (part.drain) {
      static_cast<void>(reuseport_drain_undo(part.drain.get()));  // fails if done: see below
    }
  }
  for (std::size_t i = 0; i < targets_.size(); i++) {
    if (seen_[i].closed || !targets_[i].fd || !seen_[i].looked) {
      continue;
    }
    const int got = provider_.set_mode(targets_[i].fd.get(), static_cast<int>(seen_[i].before));
    reuseport_listen_info now{};
    if (got == 0 ||
        (provider_.get_info(targets_[i].fd.get(), &now) == 0 && now.mode == seen_[i].before)) {
      seen_[i].info.mode = seen_[i].before;
      continue;
    }
    stuck++;
    if (!first) {
      first = Failure(Error{"set the old mode again", -got, {}}, targets_[i].str());
    }
  }
  stuck_ = stuck != 0;
  if (!first) {
    return {};
  }
  first->hint = fmt::format("{} of {} listeners may still be STANDBY or OFF: see reuseportctl list",
                            stuck, targets_.size());
  return failed(std::move(*first));
}

}  // namespace reuseport::ctl
