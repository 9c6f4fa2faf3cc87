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

#include "datagrams.hpp"
#include "looking_after.hpp"
#include "option/option.hpp"
#include "provider.hpp"
#include "select.hpp"
#include "served.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto poll_first = 20ms;
constexpr auto poll_most = 200ms;
/// After a restart, before the next: what comes meanwhile is one wish, not several.
constexpr auto storm_pause = 1000ms;
constexpr auto way_back = 5000ms;  // for a newcomer that failed to give back what it has

DrainOptions drain_options(const RestartOptions& options) {
  DrainOptions o;
  o.method = options.method;
  o.timeout = options.drain_timeout;
  o.signal = options.signal;
  o.allow_last = options.allow_last;
  o.require = options.require;
  o.before_signal = options.before_signal;
  o.connections = options.connections;
  o.selection.reuseport_only = options.reuseport_only;
  o.flows = options.flows;
  o.at_deadline = AtDeadline::signal;  // while what provides the option by BPF is still there
  return o;
}

class Supervisor final : public LookingAfter {
 public:
  Supervisor(const RestartOptions& options, const Output& out, Signals signals)
      : LookingAfter(out, std::move(signals)), options_(options) {}

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
    take_in_datagrams();
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

  [[nodiscard]] Failure why() const override {
    return {Exit::error, "asked to stop during a restart; the old server has its listeners back"};
  }

 private:
  struct Leaving {
    Child child;
    Clock::time_point kill_at;
    bool served = false;
  };

  void take(const Signals::Signal& signal) override {
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
        end_group(*asked, children_, *this);
        return false;
      }
    }
    return asked->exit_code() == 0;
  }

  /// Until @p child serves every address that @p old serves, or any without an @p old that runs,
  /// and --ready says yes.
  Done until_ready(const Child& child, const Child* old) {
    const auto deadline = after(options_.ready_timeout);
    std::string lacking = "does not serve any address with SO_REUSEPORT";
    std::chrono::milliseconds pause = poll_first;
    for (;;) {
      if (!child.running()) {
        return failed(Failure(Exit::error, fmt::format("process {} {} before it was ready",
                                                       child.pid(), child.how())));
      }
      const auto now = served_by(child.process(), options_.reuseport_only);
      if (!now && (now.error().exit == Exit::unsupported || now.error().exit == Exit::permission)) {
        return tl::unexpected(now.error());  // waiting will not help
      }
      bool all = now && std::any_of(now->targets.begin(), now->targets.end(),
                                    [](const Target& t) { return t.reuseport; });
      if (all && old != nullptr && old->running() && !options_.allow_last) {
        const auto before = served_by(old->process(), options_.reuseport_only);
        const std::string gap = before ? lacks(*before, *now) : before.error().line();
        all = gap.empty();
        lacking = gap.empty() ? lacking : gap;
      }
      if (all) {
        const auto ready = ask_ready(child, deadline);
        if (!ready) {
          return tl::unexpected(ready.error());
        }
        if (*ready) {
          return {};
        }
        lacking = "--ready says no";
      }
      if (Clock::now() >= deadline) {
        return failed(Failure(Exit::error, fmt::format("process {} was not ready in time ({})",
                                                       child.pid(), lacking)));
      }
      if (!wait(pause)) {
        return failed(why());
      }
      pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
    }
  }

  /// Where UDP flows are recorded: until the sockets are known, who joins them moves their flows.
  void take_in_datagrams() const {
    if (!option::records_flows()) {
      return;
    }
    if (const auto ok = option::adopt_newcomers(datagrams_by_cookie); !ok) {
      out_.note("UDP sockets are not known, so their flows do not stay: " + ok.error().message());
    }
  }

  /// One SIGHUP, or a storm of them.
  void restart() {
    const auto start = Clock::now();
    notify_.reloading();
    take_in_datagrams();
    const auto next = children_.start(options_.command);
    Done ok = next ? Done{} : Done{tl::unexpected(next.error())};
    if (ok) {
      out_.progress(fmt::format("process {} starts beside {}", next->pid(), current_->pid()));
      ok = until_ready(*next, &*current_);
    }
    std::optional<DrainResult> drained;
    if (ok && current_->running()) {
      auto result = drain(drain_options(options_), current_->process(), {*this, children_, out_});
      if (result) {
        drained = std::move(*result);
      } else if (result.error().exit == Exit::deadline || !current_->running()) {
        // the newcomer serves and the old one has something left: end it all the same, and say so
        out_.failure(result.error());
        if (!was_signalled(result.error())) {
          current_->signal(options_.signal);
        }
      } else {
        ok = tl::unexpected(result.error());
      }
    }
    out_.end_progress();
    if (!ok) {
      out_.failure(ok.error());
      if (next) {
        give_back(*next);
      }
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

  /// A newcomer that failed may have got connections already: it is drained, and then ended.
  void give_back(const Child& next) {
    if (next.running() && current_->running() && !stopping_) {
      DrainOptions o;
      o.method = options_.method;
      // It ends in any case: a listener without SO_REUSEPORT is no reason to drain none.
      o.selection.reuseport_only = true;
      o.timeout = std::min<std::chrono::milliseconds>(options_.drain_timeout, way_back);
      // signalled by the drain: what provides the option by BPF must stay until the listeners close
      o.signal = options_.signal;
      o.at_deadline = AtDeadline::signal;
      const auto back = drain(o, next.process(), {*this, children_, out_});
      out_.end_progress();
      if (back && back->signalled) {
        leaving_.push_back({next, kill_time(), false});
        return;
      }
    }
    dismiss(next);
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
  std::optional<Child> current_;
  std::vector<Leaving> leaving_;
  Clock::time_point next_restart_ = Clock::time_point::min();
  bool reload_ = false;
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
  if (options.method == Method::option || options.require) {
    if (const auto ok = try_provider(); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  if (options.flows && !option::records_flows()) {
    return failed(Failure(Exit::unsupported, "--flows: nobody records UDP flows",
                          "reuseportctl enable --udp-flows"));
  }
  close_passed_sockets();
  auto signals = Signals::open({SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGCHLD});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  return Supervisor(options, out, std::move(*signals)).run();
}

}  // namespace reuseport::ctl
