// SPDX-License-Identifier: Apache-2.0
#include <linux/reuseport.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>
#include <new>
#include <string>
#include <utility>

#include "reuseport/drain.hpp"
#include "reuseport/listener.hpp"
#include "reuseport/probe.hpp"
#include "reuseport/reuseport.h"

using reuseport::Drain;
using reuseport::DrainOptions;
using reuseport::Listener;
using reuseport::Result;
using reuseport::Status;

namespace {

template <typename Enum>
constexpr bool same(Enum cpp, int c) {
  return static_cast<int>(cpp) == c;
}

static_assert(sizeof(reuseport_info) == sizeof(reuseport_listen_info));
static_assert(offsetof(reuseport_info, group_off) == offsetof(reuseport_listen_info, group_off));
static_assert(REUSEPORT_SETTLED == REUSEPORT_LISTEN_F_SETTLED);
static_assert(same(reuseport::Support::supported, REUSEPORT_SUPPORTED));
static_assert(same(reuseport::Support::error, REUSEPORT_PROBE_ERROR));
static_assert(same(reuseport::Mode::standby, REUSEPORT_MODE_STANDBY));
static_assert(same(reuseport::LastOn::wait, REUSEPORT_LAST_WAIT));
static_assert(same(reuseport::Method::option, REUSEPORT_METHOD_OPTION));
static_assert(same(reuseport::Method::close, REUSEPORT_METHOD_CLOSE));
static_assert(same(reuseport::Outcome::drained, REUSEPORT_DRAINED));
static_assert(same(reuseport::Outcome::undone, REUSEPORT_UNDONE));
static_assert(same(reuseport::Action::accept_more, REUSEPORT_ACCEPT_MORE));
static_assert(same(reuseport::Action::done, REUSEPORT_DONE));

int answer(const reuseport::ProbeResult& found, const char** why) {
  if (why != nullptr) {
    *why = found.why();
  }
  return static_cast<int>(found.support);
}

std::uint32_t count(const std::optional<std::uint32_t>& known) {
  return known.value_or(REUSEPORT_UNKNOWN);
}

// The policies are numbered so that 0 is the default.
std::optional<reuseport::Policy> policy_of(std::uint32_t number) {
  switch (number) {
    case REUSEPORT_PREFER: return reuseport::Policy::prefer;
    case REUSEPORT_REQUIRE: return reuseport::Policy::require;
    case REUSEPORT_CLOSE_ONLY: return reuseport::Policy::close_only;
    default: return std::nullopt;
  }
}

std::optional<DrainOptions> options_of(const reuseport_drain_options& given) {
  const std::optional<reuseport::Policy> policy = policy_of(given.policy);
  if (given.size != sizeof(given) || !policy || given.last_on > REUSEPORT_LAST_WAIT ||
      given.undo_at_deadline > 1 || given.reserved != 0) {
    return std::nullopt;
  }
  DrainOptions options;
  options.policy = *policy;
  options.last_on = static_cast<reuseport::LastOn>(given.last_on);
  options.at_deadline =
      given.undo_at_deadline != 0 ? reuseport::AtDeadline::undo : reuseport::AtDeadline::close;
  if (given.timeout_ms != 0) {
    options.timeout = std::chrono::milliseconds(given.timeout_ms);
  }
  if (given.poll_ms != 0) {
    options.poll_interval = std::chrono::milliseconds(given.poll_ms);
  }
  void* user = given.user;
  if (given.is_shared != nullptr) {
    options.is_shared = [ask = given.is_shared, user](int fd) -> Result<bool> {
      const int shared = ask(fd, user);
      if (shared < 0) {
        return reuseport::fail("is_shared", -shared);
      }
      return shared != 0;
    };
  }
  if (given.close != nullptr) {
    options.close = [close = given.close, user](int fd) { close(fd, user); };
  }
  return options;
}

}  // namespace

struct reuseport_drain {
  explicit reuseport_drain(DrainOptions options) : drain(std::move(options)) {}

  // Keeps the text, gives the number.
  int result(const Status& status) {
    error = status ? std::string() : status.error().message();
    return status ? 0 : -status.error().errnum;
  }

  Drain drain;
  std::string error;
};

extern "C" {

int reuseport_probe(const char** why) {
  return answer(reuseport::probe(), why);
}

int reuseport_probe_behaviour(int connects, const char** why) {
  return answer(reuseport::probe_behaviour(connects), why);
}

const char* reuseport_support_name(int support) {
  if (support < REUSEPORT_SUPPORTED || support > REUSEPORT_PROBE_ERROR) {
    return "unknown";
  }
  return to_string(static_cast<reuseport::Support>(support));
}

int reuseport_get_info(int fd, reuseport_info* info) {
  const Result<reuseport::Info> seen = Listener(fd).info();
  if (!seen) {
    return -seen.error().errnum;
  }
  *info = {static_cast<std::uint32_t>(seen->mode),
           seen->flags,
           seen->handshakes,
           seen->queued,
           seen->group_id,
           seen->group_on,
           seen->group_standby,
           seen->group_off};
  return 0;
}

int reuseport_get_mode(int fd) {
  const Result<reuseport::Mode> mode = Listener(fd).mode();
  return mode ? static_cast<int>(*mode) : -mode.error().errnum;
}

int reuseport_set_mode(int fd, int mode) {
  const Status set = Listener(fd).set_mode(static_cast<reuseport::Mode>(mode));
  return set ? 0 : -set.error().errnum;
}

int reuseport_info_drained(const reuseport_info* info) {
  return static_cast<int>(info->mode == REUSEPORT_MODE_OFF &&
                          (info->flags & REUSEPORT_SETTLED) != 0 && info->handshakes == 0 &&
                          info->queued == 0);
}

reuseport_drain* reuseport_drain_new(const reuseport_drain_options* options) {
  std::optional<DrainOptions> understood =
      options == nullptr ? DrainOptions{} : options_of(*options);
  return understood ? new (std::nothrow) reuseport_drain(std::move(*understood)) : nullptr;
}

int reuseport_drain_add(reuseport_drain* drain, int fd) {
  return drain->result(drain->drain.add(fd));
}

int reuseport_drain_start(reuseport_drain* drain) {
  return drain->result(drain->drain.start());
}

int reuseport_drain_step(reuseport_drain* drain, std::uint32_t* wait_ms) {
  const reuseport::Clock::time_point now = reuseport::Clock::now();
  const reuseport::Step step = drain->drain.step(now);
  if (wait_ms != nullptr) {
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(step.when - now).count();
    *wait_ms = step.action == reuseport::Action::wait_until
                   ? static_cast<std::uint32_t>(std::clamp<std::int64_t>(
                         wait, 0, std::numeric_limits<std::int32_t>::max()))
                   : 0;
  }
  return static_cast<int>(step.action);
}

int reuseport_drain_undo(reuseport_drain* drain) {
  return drain->result(drain->drain.undo());
}

int reuseport_drain_get_report(const reuseport_drain* drain, reuseport_drain_report* report) {
  const reuseport::Report& seen = drain->drain.report();
  const reuseport::Left left = seen.left();
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(seen.took).count();
  *report = {static_cast<std::uint32_t>(seen.outcome),
             static_cast<std::uint32_t>(seen.method),
             static_cast<std::uint32_t>(seen.probe.support),
             static_cast<std::uint32_t>(seen.listeners.size()),
             count(left.handshakes),
             count(left.queued),
             static_cast<std::uint32_t>(took)};
  return 0;
}

const char* reuseport_drain_error(const reuseport_drain* drain) {
  return drain->error.c_str();
}

void reuseport_drain_free(reuseport_drain* drain) {
  delete drain;
}

const char* reuseport_method_name(std::uint32_t method) {
  return method > REUSEPORT_METHOD_CLOSE ? "unknown"
                                         : to_string(static_cast<reuseport::Method>(method)).data();
}

const char* reuseport_outcome_name(std::uint32_t outcome) {
  return outcome > REUSEPORT_UNDONE ? "unknown"
                                    : to_string(static_cast<reuseport::Outcome>(outcome)).data();
}

const char* reuseport_version(void) {
  return REUSEPORT_VERSION;
}

}  // extern "C"
