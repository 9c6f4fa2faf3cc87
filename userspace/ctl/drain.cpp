// SPDX-License-Identifier: Apache-2.0
#include "drain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <iterator>
#include <map>

#include "host/steer.hpp"
#include "mode.hpp"
#include "probe.hpp"
#include "reuseport/probe.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto poll_first = 2ms;
constexpr auto poll_most = 20ms;

/// The listeners of an option drain and the modes to give back.
class Modes {
 public:
  explicit Modes(std::vector<Target>& targets) : targets_(targets) {}

  Done read() {
    for (const Target& t : targets_) {
      const auto info = get_info(t.fd.get());
      if (!info) {
        return failed(info.error(), t.str());
      }
      before_.push_back(Mode{info->mode});
    }
    return {};
  }
  /// All that are still open; on error all get back what they had.
  Done set(Mode mode) {
    for (const Target& t : targets_) {
      if (!t.fd) {
        continue;
      }
      if (const auto ok = reuseport::set_mode(t.fd.get(), mode); !ok) {
        Failure failure(ok.error(), t.str());
        restore();
        return failed(failure);
      }
    }
    return {};
  }
  void restore() {
    for (std::size_t i = 0; i < targets_.size(); i++) {
      if (targets_[i].fd) {
        static_cast<void>(reuseport::set_mode(targets_[i].fd.get(), before_[i]));
      }
    }
  }
  [[nodiscard]] Mode before(std::size_t i) const { return before_[i]; }

 private:
  std::vector<Target>& targets_;
  std::vector<Mode> before_;
};

struct Look {
  bool all_drained = true;   // every one that is open: OFF, SETTLED, 0, 0
  bool all_empty = true;     // SETTLED, 0, 0 in whatever mode
  bool newcomers_on = true;  // each group has an ON member that is none of ours
  bool any_open = false;
  std::string without;  // the address that has none
};

/// Asks every listener for its counts. One that its server has closed is let go of at once, for our
/// duplicate would keep its port open with nobody to accept.
Outcome<Look> look_at(std::vector<Target>& targets, const Modes& modes, DrainResult& result) {
  Look seen;
  result.listeners.resize(targets.size());
  result.handshakes = result.queued = 0;
  for (std::size_t i = 0; i < targets.size(); i++) {
    Target& t = targets[i];
    Drained& d = result.listeners[i];
    if (d.what.empty()) {
      d.what = t.str();
      d.address = t.socket.local.str();
      d.inode = t.socket.inode;
      d.before = modes.before(i);
    }
    if (t.fd && !t.still_held()) {
      d.closed = true;
      t.fd.reset();
    }
    if (t.fd) {
      const auto info = get_info(t.fd.get());
      if (!info) {
        return failed(info.error(), t.str());
      }
      d.mode = Mode{info->mode};
      d.handshakes = info->handshakes;
      d.queued = info->queued;
      seen.any_open = true;
      seen.all_drained = seen.all_drained && info->drained();
      seen.all_empty =
          seen.all_empty && info->settled() && info->handshakes == 0 && info->queued == 0;
      if (info->group_on == 0) {
        seen.newcomers_on = false;
        seen.without = d.address;
      }
    }
    result.handshakes += d.handshakes;
    result.queued += d.queued;
  }
  return seen;
}

/// Without counts, by address: does every target have a listener beside it?
Done refuse_without_others(const View& view, const std::vector<Target>& targets) {
  for (const Target& t : targets) {
    if (others_at(t.socket, view, targets).empty()) {
      Failure failure(Exit::last_on,
                      fmt::format("{} {} would be left without a listener",
                                  to_string(t.socket.protocol), t.socket.local.str()),
                      "start the newcomer first, name the port with --port, or --allow-last");
      failure.detail = {{"address", t.socket.local.str()}};
      return failed(failure);
    }
  }
  return {};
}

Done refuse_last(Method method, const View& view, const std::vector<Target>& targets) {
  return method == Method::option ? refuse_last_on(targets) : refuse_without_others(view, targets);
}

Outcome<DrainResult> dry_run(DrainContext& context, Method method, const std::string& reason) {
  DrainResult result;
  result.method = method;
  result.reason = reason;
  for (const Target& t : context.targets) {
    Drained d{t.str(), t.socket.local.str(), t.socket.inode, {}, {}, 0, t.socket.queued, false};
    if (const auto info = get_info(t.fd.get())) {
      d.before = d.mode = Mode{info->mode};
      d.handshakes = info->handshakes;
    }
    result.handshakes += d.handshakes;
    result.queued += d.queued;
    result.listeners.push_back(d);
  }
  return result;
}

/// migrate and close: there is no way to close the descriptors of another process, so its own
/// shutdown does.
Outcome<DrainResult> drain_by_signal(DrainContext& context, Method method,
                                     const std::string& reason) {
  if (!context.options.signal) {
    Failure failure(context.options.method == Method::automatic ? Exit::unsupported : Exit::usage,
                    fmt::format("method {} means the server's own shutdown: say which signal asks "
                                "for it with --signal",
                                to_string(method)),
                    reason);
    return failed(failure);
  }
  auto result = dry_run(context, method, reason);
  for (Target& t : context.targets) {
    t.fd.reset();  // before the signal: ours would keep them open
  }
  if (auto ok = finish(context, *result); !ok) {
    return tl::unexpected(ok.error());
  }
  result->took = since(context.start);
  return result;
}

}  // namespace

Outcome<Method> choose_method(const DrainOptions& options, std::string& reason) {
  switch (options.method) {
    case Method::option:
      if (auto ok = require_option(); !ok) {
        return tl::unexpected(ok.error());
      }
      return Method::option;
    case Method::steer:
      if (const auto ok = SteerProgram::probe(); !ok) {
        Failure failure(ok.error(), "steering");
        if (failure.exit != Exit::permission) {
          failure.exit = Exit::unsupported;
        }
        return failed(failure);
      }
      return Method::steer;
    case Method::migrate:
    case Method::close: return migrates_requests() ? Method::migrate : Method::close;
    case Method::automatic: break;
  }
  const ProbeResult found = probe();
  if (found.supported()) {
    return Method::option;
  }
  reason = found.why();
  if (const auto ok = SteerProgram::probe(); !ok) {
    reason += "; steering: " + ok.error().message();
    return migrates_requests() ? Method::migrate : Method::close;
  }
  return Method::steer;
}

const char* to_string(Method method) {
  switch (method) {
    case Method::automatic: return "auto";
    case Method::option: return "option";
    case Method::steer: return "steer";
    case Method::migrate: return "migrate";
    case Method::close: break;
  }
  return "close";
}

std::string DrainResult::left() const {
  return fmt::format("{} half-open request{} and {} queued", handshakes, handshakes == 1 ? "" : "s",
                     queued);
}

json DrainResult::json() const {
  nlohmann::json all = nlohmann::json::array();
  for (const Drained& d : listeners) {
    all.push_back({{"address", d.address},
                   {"inode", d.inode},
                   {"before", d.before ? nlohmann::json(to_string(*d.before)) : nullptr},
                   {"mode", d.mode ? nlohmann::json(to_string(*d.mode)) : nullptr},
                   {"handshakes", d.handshakes},
                   {"queued", d.queued},
                   {"closed_by_server", d.closed}});
  }
  nlohmann::json out = {{"method", to_string(method)}, {"drained", drained},
                        {"signalled", signalled},      {"ended", ended},
                        {"took_ms", took.count()},     {"handshakes_left", handshakes},
                        {"queued_left", queued},       {"listeners", all}};
  out["reason"] = reason.empty() ? nlohmann::json(nullptr) : nlohmann::json(reason);
  return out;
}

std::string DrainResult::text() const {
  std::string out;
  for (const Drained& d : listeners) {
    fmt::format_to(std::back_inserter(out), "{}{}\n", d.what,
                   d.closed ? ": closed by its server" : "");
  }
  if (drained) {
    fmt::format_to(std::back_inserter(out), "drained by {} in {} ms: closing loses nothing\n",
                   to_string(method), took.count());
  } else if (method == Method::migrate) {
    out += "not drained: the kernel moves what is left to the others (tcp_migrate_req)\n";
  } else {
    fmt::format_to(std::back_inserter(out),
                   "not drained ({}): connections in the queue or half-open may have been reset\n",
                   to_string(method));
  }
  if (!reason.empty()) {
    fmt::format_to(std::back_inserter(out), "why not better: {}\n", reason);
  }
  if (ended) {
    out += "the process has ended\n";
  } else if (signalled) {
    out += "signal sent\n";
  }
  return out;
}

std::vector<const DiagSocket*> others_at(const DiagSocket& target, const View& view,
                                         const std::vector<Target>& targets) {
  std::vector<const DiagSocket*> out;
  for (const DiagSocket& s : view.sockets) {
    if (s.same_address(target) && s.v6only == target.v6only &&
        std::none_of(targets.begin(), targets.end(),
                     [&](const Target& t) { return t.socket.cookie == s.cookie; })) {
      out.push_back(&s);
    }
  }
  return out;
}

std::string progress_line(const DrainResult& result, Clock::time_point start) {
  return fmt::format("draining ({}): {}, {:.1f} s", to_string(result.method), result.left(),
                     static_cast<double>(since(start).count()) / 1000.0);
}

Failure deadline_failure(const DrainResult& result, const std::string& now) {
  Failure failure(Exit::deadline, fmt::format("deadline hit with {} left", result.left()), now);
  failure.detail = result.json();
  return failure;
}

Done finish(DrainContext& context, DrainResult& result) {
  if (!context.options.signal) {
    return {};
  }
  const Process& server = context.server;
  const auto ok = server.signal(*context.options.signal);
  if (!ok && ok.error().errnum != ESRCH) {
    return failed(ok.error());
  }
  result.signalled = ok.has_value();
  if (!context.options.wait) {
    result.ended = server.ended();
    return {};
  }
  while (!server.ended()) {
    if (Clock::now() >= context.deadline) {
      Failure failure(Exit::deadline,
                      fmt::format("process {} has not ended after {}", server.pid(),
                                  signal_name(*context.options.signal)),
                      result.drained ? "its listeners are drained and get nothing new" : "");
      failure.detail = result.json();
      return failed(failure);
    }
    if (!context.waiter.wait(poll_most)) {
      return failed(Failure(Exit::error, "stopped; the signal was sent already"));
    }
  }
  result.ended = true;
  return {};
}

Outcome<DrainResult> drain_by_option(DrainContext& context) {
  auto& targets = context.targets;
  DrainResult result;
  result.method = Method::option;
  Modes modes(targets);
  if (auto ok = modes.read(); !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = modes.set(Mode::standby); !ok) {
    return tl::unexpected(ok.error());
  }
  const auto undo = [&](Failure failure) {
    modes.restore();
    context.out.end_progress();
    return failed(std::move(failure));
  };

  bool off = false;
  auto pause = poll_first;
  for (;;) {
    const auto seen = look_at(targets, modes, result);
    if (!seen) {
      return undo(seen.error());
    }
    result.took = since(context.start);
    if (!seen->any_open) {
      // gone before it was drained; what was left at the last look went with it
      result.drained = result.handshakes == 0 && result.queued == 0;
      if (!result.drained) {
        Failure failure(Exit::error,
                        fmt::format("the server closed its listeners with {} left", result.left()));
        failure.detail = result.json();
        return undo(failure);
      }
      break;
    }
    if (!seen->newcomers_on && !context.options.allow_last) {
      return undo(
          Failure(Exit::error,
                  fmt::format("the newcomer is gone: {} has no other ON listener", seen->without),
                  "the old server serves as before"));
    }
    if (!off && seen->all_empty) {
      if (auto ok = modes.set(Mode::off); !ok) {
        return undo(ok.error());
      }
      off = true;
      pause = poll_first;
      continue;
    }
    if (off && seen->all_drained) {
      result.drained = true;
      break;
    }
    if (Clock::now() >= context.deadline) {
      if (context.options.at_deadline == AtDeadline::restore) {
        return undo(deadline_failure(result, "every listener has the mode it had before"));
      }
      if (context.options.at_deadline == AtDeadline::standby) {
        static_cast<void>(modes.set(Mode::standby));
        context.out.end_progress();
        return failed(deadline_failure(
            result, "the old listeners are STANDBY: drain again, or switch them on"));
      }
      break;
    }
    context.out.progress(progress_line(result, context.start));
    if (!context.waiter.wait(pause)) {
      return undo(context.waiter.why());
    }
    pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
  }
  context.out.end_progress();
  for (Target& t : targets) {
    t.fd.reset();  // before the signal: ours would keep them open
  }
  if (auto ok = finish(context, result); !ok) {
    return tl::unexpected(ok.error());
  }
  if (!result.drained) {
    return failed(deadline_failure(result, "the signal was sent all the same"));
  }
  return result;
}

Outcome<DrainResult> drain(const DrainOptions& options, const Process& server, Waiter& waiter,
                           const Output& out) {
  const auto start = Clock::now();
  const auto deadline = after(options.timeout);
  std::string reason;
  auto method = choose_method(options, reason);
  if (!method) {
    return tl::unexpected(method.error());
  }

  Selection selection = options.selection;
  selection.pid = server.pid();
  for (;;) {
    const auto view = look(selection, &server);
    if (!view) {
      return tl::unexpected(view.error());
    }
    auto targets = take_selected(selection, *view);
    if (!targets) {
      return tl::unexpected(targets.error());
    }
    if (!options.allow_shared) {
      if (auto ok = refuse_shared(*targets, *view); !ok) {
        return tl::unexpected(ok.error());
      }
    }
    if (!options.allow_last) {
      if (auto ok = refuse_last(*method, *view, *targets); !ok) {
        if (ok.error().exit != Exit::last_on || !options.await_newcomer ||
            Clock::now() >= deadline) {
          return tl::unexpected(ok.error());
        }
        targets->clear();  // hold nothing while waiting
        out.progress("waiting for the newcomer");
        if (!waiter.wait(50ms)) {
          return failed(waiter.why());
        }
        continue;
      }
    }
    DrainContext context{options, server, *view, *targets, waiter, out, start, deadline};
    if (options.dry_run) {
      return dry_run(context, *method, reason);
    }
    if (*method == Method::option) {
      return drain_by_option(context);
    }
    if (*method == Method::steer) {
      auto result = drain_by_steering(context);
      // somebody else's program, found only on attaching: auto goes on with what is left
      if (!result && options.method == Method::automatic && result.error().errnum == EBUSY &&
          options.signal) {
        reason += "; steering: " + result.error().line();
        method = migrates_requests() ? Method::migrate : Method::close;
        continue;
      }
      if (result) {
        result->reason = reason;
      }
      return result;
    }
    return drain_by_signal(context, *method, reason);
  }
}

Done drain_command(const DrainOptions& options, const Output& out) {
  const auto server = Process::open(*options.selection.pid);
  if (!server) {
    return failed(server.error());
  }
  auto signals = Signals::open({SIGINT, SIGTERM, SIGHUP, SIGQUIT});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  SignalWaiter waiter(*signals);
  const auto result = drain(options, *server, waiter, out);
  if (!result) {
    return tl::unexpected(result.error());
  }
  if (out.json) {
    auto doc = result->json();
    doc["dry_run"] = options.dry_run;
    out.document({{"drain", doc}});
  } else if (options.dry_run) {
    std::string text;
    for (const Drained& d : result->listeners) {
      fmt::format_to(std::back_inserter(text), "would drain by {}: {}\n", to_string(result->method),
                     d.what);
    }
    out.text(text);
  } else {
    out.text(result->text());
  }
  return {};
}

}  // namespace reuseport::ctl
