// SPDX-License-Identifier: Apache-2.0
#include "supervise.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <utility>

#include "child.hpp"
#include "mode.hpp"
#include "notify.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto poll_first = 20ms;
constexpr auto poll_most = 200ms;
/// After a restart, before the next: what comes meanwhile is one wish, not several.
constexpr auto storm_pause = 1000ms;
constexpr auto kill_grace = 1000ms;  // for the kernel to end what was killed

DrainOptions drain_options(const RestartOptions& options) {
  DrainOptions o;
  o.method = options.method;
  o.timeout = options.drain_timeout;
  o.signal = options.signal;
  o.allow_last = options.allow_last;
  return o;
}

class Supervisor final : public Waiter {
 public:
  Supervisor(const RestartOptions& options, const Output& out, Signals signals)
      : options_(options), out_(out), signals_(std::move(signals)) {}

  Outcome<int> run() {
    auto first = children_.start(options_.command);
    if (!first) {
      return tl::unexpected(first.error());
    }
    const auto ok = until_ready(*first, nullptr);
    if (!ok) {
      dismiss(*first);
      end_all();
      return stopping_ ? Outcome<int>(0) : Outcome<int>(tl::unexpected(ok.error()));
    }
    current_ = *first;
    event("started", {{"pid", current_->pid()}});
    notify_.ready(fmt::format("serving, pid {}", current_->pid()));
    while (!stopping_ && current_->running()) {
      if (reload_ && Clock::now() >= next_restart_) {
        reload_ = false;
        restart();
        next_restart_ = after(storm_pause);
        continue;
      }
      look_after_leaving();
      wait(std::min(until_next_kill(), reload_ ? remaining(next_restart_) : idle));
    }
    notify_.stopping();
    int code = 0;
    if (!current_->running()) {
      out_.note(fmt::format("process {} {}", current_->pid(), current_->how()));
      event("ended", {{"pid", current_->pid()}, {"status", current_->exit_code()}});
      code = stopping_ ? 0 : current_->exit_code();
    } else {
      dismiss(*current_);
    }
    end_all();
    return code;
  }

  // Waiter: signals are taken here wherever we wait, and whoever ended is reaped
  bool wait(std::chrono::milliseconds time) override {
    const auto until = after(time);
    do {
      notify_.alive();
      const auto got = signals_.wait(std::min(remaining(until), notify_.beat()));
      children_.reap();
      if (got) {
        take(*got);
        break;
      }
    } while (Clock::now() < until);
    notify_.alive();
    return !stopping_;
  }
  [[nodiscard]] Failure why() const override {
    return {Exit::error, "asked to stop during a restart; the old server has its listeners back"};
  }

 private:
  static constexpr std::chrono::milliseconds idle = 1h;

  struct Leaving {
    Child child;
    Clock::time_point kill_at;
    bool served = false;
  };

  static std::chrono::milliseconds remaining(Clock::time_point until) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
    return std::clamp<std::chrono::milliseconds>(left, 0ms, idle);
  }

  void take(const Signals::Signal& signal) {
    switch (signal.number) {
      case SIGHUP:
        if (signal.from_kernel) {
          out_.note("the terminal is gone: serving on");
        } else {
          reload_ = true;
        }
        break;
      case SIGCHLD: break;  // reaped already
      default: stopping_ = true;
    }
  }

  void event(const char* what, json facts) const {
    if (out_.json) {
      facts["event"] = what;
      out_.document(facts);
    }
  }

  /// Addresses on which @p child or its descendants listen with SO_REUSEPORT, and are ON.
  static Outcome<std::vector<DiagSocket>> serving(const Child& child) {
    Selection selection;
    selection.pid = child.pid();
    const auto view = look(selection, &child.process());
    if (!view) {
      return tl::unexpected(view.error());
    }
    std::vector<DiagSocket> out;
    for (const DiagSocket& s : view->sockets) {
      if (!view->in_tree(s.inode) || (s.info && Mode{s.info->mode} != Mode::on)) {
        continue;
      }
      const auto target = ctl::take(s, view->holders, view->tree);
      if (target && has_reuseport(target->fd.get())) {
        out.push_back(s);
      }
    }
    return out;
  }

  /// The first address of @p old that @p now does not serve with a socket of its own.
  static std::optional<std::string> missing(const std::vector<DiagSocket>& old,
                                            const std::vector<DiagSocket>& now) {
    for (const DiagSocket& o : old) {
      if (std::none_of(now.begin(), now.end(), [&](const DiagSocket& n) {
            return n.same_address(o) && n.v6only == o.v6only && n.cookie != o.cookie;
          })) {
        return o.local.str();
      }
    }
    return std::nullopt;
  }

  /// Runs --ready once, no longer than until @p deadline and the end of @p child.
  Outcome<bool> ask_ready(const Child& child, Clock::time_point deadline) {
    if (options_.ready.empty()) {
      return true;
    }
    const auto asked =
        children_.start(shell(options_.ready), {{"REUSEPORT_PID", std::to_string(child.pid())}});
    if (!asked) {
      return tl::unexpected(asked.error());
    }
    while (asked->running()) {
      if (Clock::now() >= deadline || !child.running() || !wait(poll_first)) {
        asked->signal_group(SIGKILL);
        const auto grace = after(kill_grace);
        while (asked->running() && Clock::now() < grace) {
          wait(poll_first);
        }
        return false;
      }
    }
    return asked->exit_code() == 0;
  }

  /// Until @p child serves every address that @p old serves, or any without an @p old that runs,
  /// and
  /// --ready says yes.
  Done until_ready(const Child& child, const Child* old) {
    const auto deadline = after(options_.ready_timeout);
    std::string lacks = "any address with SO_REUSEPORT";
    std::chrono::milliseconds pause = poll_first;
    for (;;) {
      if (!child.running()) {
        return failed(Failure(Exit::error, fmt::format("process {} {} before it was ready",
                                                       child.pid(), child.how())));
      }
      const auto now = serving(child);
      if (!now && (now.error().exit == Exit::unsupported || now.error().exit == Exit::permission)) {
        return tl::unexpected(now.error());  // waiting will not help
      }
      bool all = now && !now->empty();
      if (all && old != nullptr && old->running()) {
        const auto before = serving(*old);
        const auto gap = before ? missing(*before, *now) : std::nullopt;
        all = before && !gap;
        lacks = gap ? *gap : lacks;
      }
      if (all) {
        lacks = "--ready says no";
        const auto ready = ask_ready(child, deadline);
        if (!ready) {
          return tl::unexpected(ready.error());
        }
        if (*ready) {
          return {};
        }
      }
      if (Clock::now() >= deadline) {
        return failed(
            Failure(Exit::error, fmt::format("process {} was not ready in time ({})", child.pid(),
                                             options_.ready.empty() || lacks != "--ready says no"
                                                 ? "does not serve " + lacks
                                                 : lacks)));
      }
      if (!wait(pause)) {
        return failed(why());
      }
      pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
    }
  }

  /// One SIGHUP, or a storm of them.
  void restart() {
    const auto start = Clock::now();
    notify_.reloading();
    const auto next = children_.start(options_.command);
    Done ok = next ? Done{} : Done{tl::unexpected(next.error())};
    if (ok) {
      out_.progress(fmt::format("process {} starts beside {}", next->pid(), current_->pid()));
      ok = until_ready(*next, &*current_);
    }
    std::optional<DrainResult> drained;
    if (ok && current_->running()) {
      auto result = drain(drain_options(options_), current_->process(), *this, out_);
      if (result) {
        drained = std::move(*result);
      } else if (result.error().exit == Exit::deadline || !current_->running()) {
        // the newcomer serves and the old one has something left: end it all the same, and say so
        out_.failure(result.error());
        current_->signal(options_.signal);
      } else {
        ok = tl::unexpected(result.error());
      }
    }
    out_.end_progress();
    if (!ok) {
      if (next) {
        dismiss(*next);
      }
      out_.failure(ok.error());
      event("restart_failed", {{"pid", current_->pid()}, {"message", ok.error().line()}});
      notify_.ready(
          fmt::format("serving, pid {}; restart failed: {}", current_->pid(), ok.error().line()));
      return;
    }
    const pid_t old = current_->pid();
    leaving_.push_back({*current_, kill_time(), true});
    current_ = *next;
    json facts = {{"old", old}, {"pid", current_->pid()}, {"took_ms", since(start).count()}};
    facts["drain"] = drained ? drained->json() : json(nullptr);
    event("restarted", facts);
    out_.note(fmt::format(
        "restarted: {} -> {}, {}", old, current_->pid(),
        !drained ? "not drained in time"
        : drained->drained
            ? fmt::format("drained by {}", to_string(drained->method))
            : fmt::format("not drained ({}): {}", to_string(drained->method), drained->reason)));
    notify_.ready(fmt::format("serving, pid {}", current_->pid()));
  }

  [[nodiscard]] Clock::time_point kill_time() const {
    return options_.stop_timeout > 0ms ? after(options_.stop_timeout) : Clock::time_point::max();
  }

  /// Asks a process to end; look_after_leaving() kills it when it does not.
  void dismiss(const Child& child) {
    child.signal(options_.signal);
    child.signal(SIGCONT);
    leaving_.push_back({child, kill_time(), false});
  }

  void look_after_leaving() {
    for (auto& [child, kill_at, served] : leaving_) {
      if (!child.running() && served) {
        event("old_ended", {{"pid", child.pid()}, {"status", child.exit_code()}});
      } else if (child.running() && Clock::now() >= kill_at) {
        out_.note(fmt::format("process {} ignores {}: killed", child.pid(),
                              signal_name(options_.signal)));
        event("old_killed", {{"pid", child.pid()}});
        child.signal(SIGKILL);
        kill_at = Clock::time_point::max();
      }
    }
    std::erase_if(leaving_, [](const Leaving& l) { return !l.child.running(); });
  }

  [[nodiscard]] std::chrono::milliseconds until_next_kill() const {
    auto next = Clock::time_point::max();
    for (const Leaving& l : leaving_) {
      next = std::min(next, l.kill_at);
    }
    return remaining(next);
  }

  /// Waits for all that were dismissed, the timeout running for them side by side.
  void end_all() {
    for (Leaving& l : leaving_) {
      l.kill_at = std::min(l.kill_at, kill_time());
    }
    for (look_after_leaving(); !leaving_.empty(); look_after_leaving()) {
      wait(until_next_kill());  // a second SIGTERM changes nothing
    }
  }

  const RestartOptions& options_;
  const Output& out_;
  Signals signals_;
  Notify notify_;
  Children children_;
  std::optional<Child> current_;
  std::vector<Leaving> leaving_;
  Clock::time_point next_restart_ = Clock::time_point::min();
  bool reload_ = false;
  bool stopping_ = false;
};

/// What execvp(3) would run.
Outcome<std::string> find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(name.find('/') != std::string::npos ? ""
                             : path != nullptr                   ? path
                                                                 : "/bin:/usr/bin");
  int err = name.find('/') == std::string::npos ? ENOENT
            : ::access(name.c_str(), X_OK) == 0 ? 0
                                                : errno;
  std::string found = name;
  for (std::string folder; err != 0 && std::getline(folders, folder, ':');) {
    found = (folder.empty() ? "." : folder) + "/" + name;
    err = ::access(found.c_str(), X_OK) == 0 ? 0 : err;
  }
  return err == 0 ? Outcome<std::string>(found) : failed(Error{"exec " + name, err, {}});
}

Outcome<int> dry_run(const RestartOptions& options, const Output& out) {
  const auto program = find_program(options.command.front());
  if (!program) {
    return tl::unexpected(program.error());
  }
  std::string reason;
  const auto method = choose_method(drain_options(options), reason);
  if (!method) {
    return tl::unexpected(method.error());
  }
  if (out.json) {
    out.document({{"restart",
                   {{"dry_run", true},
                    {"program", *program},
                    {"command", options.command},
                    {"method", to_string(*method)},
                    {"reason", reason.empty() ? json(nullptr) : json(reason)}}}});
  } else {
    out.text(fmt::format("would run {}\nwould drain by {}\n{}", *program, to_string(*method),
                         reason.empty() ? "" : "why not better: " + reason + "\n"));
  }
  return 0;
}

}  // namespace

Outcome<int> supervise(const RestartOptions& options, const Output& out) {
  if (options.dry_run) {
    return dry_run(options, out);
  }
  if (options.method == Method::option) {
    if (auto ok = require_option(); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  close_passed_sockets();
  auto signals = Signals::open({SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGCHLD});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  return Supervisor(options, out, std::move(*signals)).run();
}

}  // namespace reuseport::ctl
