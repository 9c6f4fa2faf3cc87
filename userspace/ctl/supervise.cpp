// SPDX-License-Identifier: Apache-2.0
#include "supervise.hpp"

#include <fcntl.h>
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
#include "probe.hpp"
#include "provider.hpp"
#include "select.hpp"
#include "served.hpp"
#include "unit.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto poll_first = 20ms;
constexpr auto poll_most = 200ms;
/// Between two restarts: all SIGHUPs in this time cause one.
constexpr auto storm_pause = 1000ms;
/// For a newcomer that failed to give back what it has. One that does not accept needs all of it.
constexpr auto way_back = 15s;

DrainCommandOptions drain_options(const RestartOptions& options) {
  DrainCommandOptions o;
  o.method = options.method;
  o.timeout = options.drain_timeout;
  o.signal = options.signal;
  o.allow_shared = options.allow_shared;
  o.allow_last = options.allow_last;
  o.require = options.require;
  o.before_signal = options.before_signal;
  o.connections = options.connections;
  o.selection.reuseport_only = options.reuseport_only;
  o.flows = options.flows;
  o.on_deadline = OnDeadline::signal;  // while BPF still provides the option
  return o;
}

/// Whether a SIGHUP means that the terminal is gone: the kernel sends it to the foreground, and a
/// shell passes it on to all its jobs.
class Terminal {
 public:
  [[nodiscard]] bool is_lost(const Signals::Signal& hangup) const {
    if (!had_ || opens()) {
      return hangup.from_kernel;
    }
    const pid_t from = hangup.sender;
    return hangup.from_kernel ||
           (from > 0 && session_ > 0 &&
            (from == session_ || from == shell_ || ::getsid(from) == session_));
  }

 private:
  static bool opens() {
    const Fd tty(::open("/dev/tty", O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
    return tty || (errno != ENXIO && errno != EIO);
  }
  bool had_ = opens();
  pid_t session_ = ::getsid(0);
  /// The parent, if it is of the session: it may have ended when its signal is read.
  pid_t shell_ = ::getsid(::getppid()) == session_ ? ::getppid() : -1;
};

class Supervisor final : public LookingAfter {
 public:
  Supervisor(const RestartOptions& options, const Output& out, Signals signals)
      : LookingAfter(out, std::move(signals)), options_(options) {}

  Expected<int> run() {
    const auto first = replace({});
    if (!first) {
      end_all();
      return stopping_ ? Expected<int>(0) : Expected<int>(tl::unexpected(first.error()));
    }
    notify_.ready(serving());
    while (!stopping_ && current_->running()) {
      if (reload_ && Clock::now() >= next_restart_) {
        reload_ = false;
        notify_.reloading();
        const auto done = replace({*current_});
        notify_.ready(serving(done));
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

  /// Once, for a unit: the service manager looks after the server from then on.
  /// @param left  listeners of a server that has crashed
  Expected<int> run_in_unit(std::vector<Fd> left) {
    left_ = std::move(left);
    auto servers = servers_of_unit();
    if (!servers) {
      return tl::unexpected(servers.error());
    }
    std::vector<Child> olds;
    for (Process& process : *servers) {
      olds.push_back(Children::adopt(std::move(process)));
    }
    const auto done = replace(olds);
    if (olds.empty() && !done) {
      end_all();
      return stopping_ ? Expected<int>(0) : Expected<int>(tl::unexpected(done.error()));
    }
    if (olds.empty()) {
      keep_listeners();
      notify_.ready(serving(), current_->pid());  // the last message that is taken from us
    } else {
      notify_.status(serving(done));
    }
    notify_.flush();
    if (!leaving_.empty() && ::fork() == 0) {
      for (const Leaving& l : leaving_) {
        l.child.disown();
      }
      end_all();
      ::_exit(0);
    }
    if (done && !notify_.unsent().empty()) {
      return failed(Failure(
          Exit::error,
          fmt::format("process {} serves, but the service manager was not told", current_->pid()),
          notify_.unsent()));
    }
    return done ? Expected<int>(static_cast<int>(loss_)) : tl::unexpected(done.error());
  }

  [[nodiscard]] Failure why() const override {
    return {Exit::error, "asked to stop during a restart"};
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
        if (terminal_.is_lost(signal)) {
          out_.note("the terminal is gone; the server continues");
        } else {
          reload_ = true;
        }
        break;
      case SIGCHLD: break;  // wait() has reaped
      default: stopping_ = true;
    }
  }

  /// Runs --ready once, no longer than until @p deadline and the end of @p child.
  Expected<bool> ask_ready(const Child& child, Clock::time_point deadline) {
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

  /// Waits until @p child serves every address that @p olds serve, or any if none of them runs, and
  /// --ready succeeds.
  Done until_ready(const Child& child, const std::vector<Child>& olds) {
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
      for (const Child& old : olds) {
        if (all && old.running() && !options_.allow_last) {
          const auto before = served_by(old.process(), options_.reuseport_only);
          const std::string gap = before ? lacks(*before, *now) : before.error().line();
          all = gap.empty();
          lacking = gap.empty() ? lacking : gap;
        }
      }
      if (all) {
        let_go_of_left();
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

  /// Closes the listeners of a crashed server, before --ready: that could connect to one of them.
  /// The kernel moves their connections to the newcomer.
  void let_go_of_left() {
    if (!left_.empty()) {
      notify_.store({});
      notify_.flush();
      left_.clear();
    }
  }

  /// Tells the service manager which process is the unit's. Whether it was told all so far.
  bool name_main_process(const Child& server) const {
    notify_.main_process(server.pid());
    notify_.flush();
    return notify_.unsent().empty();
  }

  /// Stores the listeners of the server with the service manager: they outlive a crash of the
  /// server. Only where the kernel then moves what they hold to the next server: elsewhere
  /// connections would wait there and be reset, and a refused one is better.
  void keep_listeners() const {
    if (!migrates_requests()) {
      return;
    }
    const auto served = served_by(current_->process(), true);
    if (!served) {
      out_.note("the listeners are not stored: " + served.error().line());
      return;
    }
    std::vector<int> fds;
    for (const Target& t : served->targets) {
      if (t.socket.protocol == Protocol::tcp && t.reuseport) {
        fds.push_back(t.fd.get());
      }
    }
    notify_.store(fds);
    notify_.flush();
  }

  /// If UDP flows are recorded: a socket that joins others which BPF does not know yet takes their
  /// flows.
  void take_in_datagrams() const {
    if (!option::records_flows()) {
      return;
    }
    if (const auto ok = option::adopt_newcomers(datagrams_by_cookie); !ok) {
      out_.note("UDP sockets are not known, so their flows do not stay: " + ok.error().message());
    }
  }

  /// Starts a server and, when it is ready, drains and ends @p olds in their order. On success
  /// current_ is the new server, on failure the last of @p olds.
  Done replace(const std::vector<Child>& olds) {
    const auto start = Clock::now();
    if (!olds.empty()) {
      current_ = olds.back();
      take_in_datagrams();
    }
    const auto next = children_.start(options_.command);
    if (!next && olds.empty()) {
      return tl::unexpected(next.error());
    }
    Done ok = next ? Done{} : Done{tl::unexpected(next.error())};
    if (ok) {
      out_.progress(fmt::format("process {} starts", next->pid()));
      ok = until_ready(*next, olds);
    }
    const bool drains = ok.has_value() && !olds.empty();
    if (drains && options_.unit) {
      notify_.store({});  // a stored listener stays open when its server closes it
      notify_.flush();
    }
    std::optional<DrainResult> drained;
    for (const Child& old : olds) {
      ok = ok ? retire(old, *next, drained) : ok;
    }
    out_.end_progress();
    if (!ok) {
      if (drains && options_.unit) {
        keep_listeners();
      }
      if (next && (!current_ || current_->pid() != next->pid())) {
        give_back(*next);
      }
      if (!olds.empty()) {
        if (!options_.unit) {
          out_.failure(ok.error());
        }
        event("restart_failed", {{"pid", current_->pid()}, {"message", ok.error().line()}});
      }
      return ok;
    }
    current_ = *next;
    if (olds.empty()) {
      take_in_datagrams();
      event("started", {{"pid", next->pid()}});
      return {};
    }
    const pid_t old = olds.back().pid();
    json facts = {{"old", old}, {"pid", next->pid()}, {"took_ms", since(start).count()}};
    facts["drain"] = drained ? drained->json() : json(nullptr);
    event("restarted", facts);
    out_.note(fmt::format(
        "restarted: {} -> {}, {}", old, next->pid(),
        !drained ? "its drain did not finish"
        : drained->drained
            ? fmt::format("drained by {}", to_string(drained->method))
            : fmt::format("not drained ({}): {}", to_string(drained->method), drained->reason)));
    return {};
  }

  /// Drains @p old beside @p next and ends it.
  Done retire(const Child& old, const Child& next, std::optional<DrainResult>& drained) {
    drained.reset();
    // The service manager ends the unit with the old server if it does not know the new one.
    const auto hand_over = [&](bool only_if_told = false) -> Done {
      if (!options_.unit || old.pid() != current_->pid()) {
        return {};
      }
      const bool told = name_main_process(next);
      const bool gone = next.process()->ended();  // telling takes its time
      if (only_if_told && (!told || gone)) {
        name_main_process(old);
        return failed(gone ? Failure(Exit::error, "the new process has ended")
                           : Failure(Exit::error,
                                     "the service manager was not told of the new process",
                                     notify_.unsent()));
      }
      current_ = next;
      children_.give_away(next);
      return {};
    };
    const bool main = old.pid() == current_->pid();
    if (old.running()) {
      auto result = drain(drain_options(options_), old.process(),
                          {*this, children_, out_, [&] { return hand_over(true); }});
      if (result) {
        drained = std::move(*result);
        loss_ = drained->drained ? loss_ : Exit::undrained;
      } else if (was_signalled(result.error()) || old.process()->ending()) {
        // The newcomer serves. Report what the old one had left, or that nobody waited for its end.
        out_.failure(result.error());
        if (!was_signalled(result.error())) {
          note_undrained_end(old);
        }
        loss_ = result.error().exit == Exit::deadline ? Exit::deadline
                : was_drained(result.error())         ? loss_
                                                      : Exit::undrained;
      } else {
        if (options_.unit && main && current_->pid() == next.pid() && next.process()->ended()) {
          current_ = old;  // the newcomer has ended after the service manager was told of it
          name_main_process(old);
        }
        return tl::unexpected(result.error());
      }
    } else {
      note_undrained_end(old);
      loss_ = Exit::undrained;
    }
    static_cast<void>(hand_over());
    if (options_.unit && main) {
      keep_listeners();
    }
    leaving_.push_back({old, kill_time(), true});
    return {};
  }

  void note_undrained_end(const Child& old) {
    out_.note(fmt::format("process {} ended before it was drained", old.pid()));
  }

  [[nodiscard]] std::string serving(const Done& restart = {}) const {
    return fmt::format("serving, pid {}{}", current_->pid(),
                       restart ? "" : "; restart failed: " + restart.error().line());
  }

  /// Drains a newcomer that failed, because it may have connections already, and ends it.
  void give_back(const Child& next) {
    if (next.running() && current_ && current_->running() && !stopping_) {
      DrainCommandOptions o;
      o.method = options_.method;
      // It ends in any case, so its listeners without SO_REUSEPORT are no reason to refuse.
      o.selection.reuseport_only = true;
      o.timeout = std::min<std::chrono::milliseconds>(options_.drain_timeout, way_back);
      // The drain sends the signal: BPF must provide the option until the listeners are closed.
      o.signal = options_.signal;
      o.on_deadline = OnDeadline::signal;
      const auto back = drain(o, next.process(), {*this, children_, out_});
      out_.end_progress();
      if (back ? !back->drained : !was_drained(back.error())) {
        out_.note(fmt::format("process {} is ended undrained: {}", next.pid(),
                              back ? back->left() + " left" : back.error().line()));
      }
      // Not twice: some servers take a second signal for an order to hurry.
      if (back ? back->signalled : was_signalled(back.error())) {
        leaving_.push_back({next, kill_time(), false});
        return;
      }
    }
    dismiss(next);
  }

  [[nodiscard]] Clock::time_point kill_time() const {
    return options_.stop_timeout > 0ms ? after(options_.stop_timeout) : Clock::time_point::max();
  }

  /// Asks a process to end. look_after_leaving() kills it if it does not.
  void dismiss(const Child& child) {
    child.signal(options_.signal);
    child.signal(SIGCONT);
    leaving_.push_back({child, kill_time(), false});
  }

  void look_after_leaving() {
    for (auto& [child, kill_at, served] : leaving_) {
      if (!child.running() && served) {
        const auto status = child.status();
        event("old_ended",
              {{"pid", child.pid()}, {"status", status ? json(*status) : json(nullptr)}});
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

  /// Waits until all that were asked to end have ended. Their timeouts run at the same time.
  void end_all() {
    for (Leaving& l : leaving_) {
      l.kill_at = std::min(l.kill_at, kill_time());
    }
    for (look_after_leaving(); !leaving_.empty(); look_after_leaving()) {
      // No SIGCHLD tells the end of a process that is not our child. A second SIGTERM changes
      // nothing.
      wait(
          std::min<std::chrono::milliseconds>(until_next_kill(), options_.unit ? poll_most : idle));
    }
  }

  Terminal terminal_;
  const RestartOptions& options_;
  std::optional<Child> current_;
  std::vector<Leaving> leaving_;
  std::vector<Fd> left_;
  Exit loss_ = Exit::done;  ///< whether connections may have been lost though the newcomer serves
  Clock::time_point next_restart_ = Clock::time_point::min();
  bool reload_ = false;
};

/// The program that execvp(3) would run.
Expected<std::string> find_program(const std::string& name) {
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
  return err == 0 ? Expected<std::string>(found) : failed(Error{"exec " + name, err, {}});
}

Expected<int> dry_run(const RestartOptions& options, const Output& out) {
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

Expected<int> supervise(const RestartOptions& options, const Output& out) {
  if (options.dry_run) {
    return dry_run(options, out);
  }
  if (options.method == DrainMethod::option || options.require) {
    if (const auto ok = try_provider(); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  if (options.unit && std::getenv("NOTIFY_SOCKET") == nullptr) {
    return failed(Failure(Exit::usage, "--unit: no service manager has started this process",
                          "see reuseport-restart@.service"));
  }
  if (options.flows && !option::records_flows()) {
    return failed(Failure(Exit::unsupported, "--flows: nobody records UDP flows",
                          "reuseportctl enable --udp-flows"));
  }
  auto passed = passed_sockets();
  if (!options.unit) {
    passed.clear();  // nobody here would accept from them
  }
  auto signals = Signals::open({SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGCHLD});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  Supervisor supervisor(options, out, std::move(*signals));
  return options.unit ? supervisor.run_in_unit(std::move(passed)) : supervisor.run();
}

}  // namespace reuseport::ctl
