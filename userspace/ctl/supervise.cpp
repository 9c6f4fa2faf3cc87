// SPDX-License-Identifier: Apache-2.0
#include "supervise.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <utility>

#include "mode.hpp"
#include "notify.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

namespace {

constexpr auto poll_every = 20ms;

/// A child process. Not ended by the destructor: that is the supervisor's decision.
struct Child {
  pid_t pid = -1;
  std::optional<int> status;  // as waitpid() gave it, once it has ended

  [[nodiscard]] bool running() const { return pid > 0 && !status; }

  bool reap() {
    int raw = 0;
    if (running() && ::waitpid(pid, &raw, WNOHANG) == pid) {
      status = raw;
    }
    return !running();
  }
  void signal(int signum) const {
    if (running()) {
      ::kill(pid, signum);
    }
  }
  [[nodiscard]] int exit_code() const {
    return WIFEXITED(*status) ? WEXITSTATUS(*status) : 128 + WTERMSIG(*status);
  }
  [[nodiscard]] std::string how() const {
    return WIFEXITED(*status) ? fmt::format("exited with {}", WEXITSTATUS(*status))
                              : "was killed by " + signal_name(WTERMSIG(*status));
  }
};

/// Starts a program; a failing exec is an error here and no dead child.
Outcome<Child> spawn(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& arg : command) {
    argv.push_back(const_cast<char*>(arg.c_str()));
  }
  argv.push_back(nullptr);

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return failed(Error{"pipe2", errno, {}});
  }
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) {
    return failed(Error{"fork", errno, {}});
  }
  if (pid == 0) {
    Signals::restore_mask();
    ::execvp(argv[0], argv.data());
    const int err = errno;
    ::_exit(::write(write_end.get(), &err, sizeof(err)) > 0 ? 127 : 126);
  }
  write_end.reset();
  int err = 0;
  if (::read(read_end.get(), &err, sizeof(err)) == static_cast<ssize_t>(sizeof(err))) {
    ::waitpid(pid, nullptr, 0);
    return failed(Error{"exec " + command.front(), err, {}});
  }
  return Child{pid, {}};
}

DrainOptions drain_options(const RestartOptions& options, pid_t old) {
  DrainOptions o;
  o.selection.pid = old;
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
    auto first = spawn(options_.command);
    if (!first) {
      return tl::unexpected(first.error());
    }
    current_ = *first;
    if (auto ok = until_ready(current_, nullptr); !ok) {
      end(current_);
      if (stopping_) {
        return 0;
      }
      return tl::unexpected(ok.error());
    }
    event("started", {{"pid", current_.pid}});
    notify_.ready(fmt::format("serving, pid {}", current_.pid));
    while (!stopping_) {
      if (current_.reap()) {
        out_.note(fmt::format("process {} {}", current_.pid, current_.how()));
        event("ended", {{"pid", current_.pid}, {"status", current_.exit_code()}});
        notify_.stopping();
        end_leaving();
        return current_.exit_code();
      }
      if (std::exchange(reload_, false)) {
        restart();
        continue;
      }
      look_after_leaving();
      wait(leaving_.empty() ? 1000ms : 100ms);
    }
    notify_.stopping();
    end(current_);
    end_leaving();
    return 0;
  }

  // Waiter: signals are taken here wherever we wait
  bool wait(std::chrono::milliseconds time) override {
    if (const auto got = signals_.wait(time)) {
      switch (*got) {
        case SIGHUP: reload_ = true; break;
        case SIGCHLD: break;  // who it was is asked where it matters
        default: stopping_ = true;
      }
    }
    return !stopping_;
  }
  [[nodiscard]] Failure why() const override {
    return {Exit::error, "asked to stop during a restart; the old server has its listeners back"};
  }

 private:
  void event(const char* what, json facts) const {
    if (out_.json) {
      facts["event"] = what;
      out_.document(facts);
    }
  }

  /// Addresses on which @p child or its descendants listen with SO_REUSEPORT, and are ON.
  static Outcome<std::vector<DiagSocket>> serving(const Child& child) {
    Selection selection;
    selection.pid = child.pid;
    const auto view = look(selection);
    if (!view) {
      return tl::unexpected(view.error());
    }
    std::vector<DiagSocket> out;
    for (const DiagSocket& s : view->sockets) {
      if (!view->in_tree(s.inode) || (s.info && s.info->mode != Mode::on)) {
        continue;
      }
      const auto target = take(s, view->holders, view->tree);
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

  /// Runs --ready once; bounded by the time left.
  Outcome<bool> ask_ready(const Child& child, Clock::time_point deadline) {
    if (options_.ready.empty()) {
      return true;
    }
    ::setenv("REUSEPORT_PID", std::to_string(child.pid).c_str(), 1);
    auto asked = spawn({"/bin/sh", "-c", options_.ready});
    ::unsetenv("REUSEPORT_PID");
    if (!asked) {
      return tl::unexpected(asked.error());
    }
    while (!asked->reap()) {
      if (Clock::now() >= deadline || !wait(poll_every)) {
        asked->signal(SIGKILL);
        ::waitpid(asked->pid, nullptr, 0);
        return false;
      }
    }
    return asked->exit_code() == 0;
  }

  /// Until @p child serves every address that @p old serves, or any without @p old, and --ready
  /// says yes.
  Done until_ready(Child& child, const Child* old) {
    const auto deadline = Clock::now() + options_.ready_timeout;
    std::string lacks = "any address with SO_REUSEPORT";
    for (;;) {
      if (child.reap()) {
        return failed(Failure(
            Exit::error, fmt::format("process {} {} before it was ready", child.pid, child.how())));
      }
      const auto now = serving(child);
      if (!now && (now.error().exit == Exit::unsupported || now.error().exit == Exit::permission)) {
        return tl::unexpected(now.error());  // waiting will not help
      }
      bool all = now && !now->empty();
      if (all && old != nullptr) {
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
            Failure(Exit::error, fmt::format("process {} was not ready in time ({})", child.pid,
                                             options_.ready.empty() || lacks != "--ready says no"
                                                 ? "does not serve " + lacks
                                                 : lacks)));
      }
      if (!wait(poll_every)) {
        return failed(why());
      }
    }
  }

  /// One SIGHUP.
  void restart() {
    const auto start = Clock::now();
    notify_.reloading();
    auto next = spawn(options_.command);
    Done ok = next ? Done{} : Done{tl::unexpected(next.error())};
    if (ok) {
      out_.progress(fmt::format("process {} starts beside {}", next->pid, current_.pid));
      ok = until_ready(*next, &current_);
    }
    std::optional<DrainResult> drained;
    if (ok) {
      auto result = drain_old();
      if (result) {
        drained = std::move(*result);
      } else if (result.error().exit == Exit::deadline || next_must_stay(result.error())) {
        // the newcomer serves and the old one has something left: end it all the same, and say so
        out_.failure(result.error());
        current_.signal(options_.signal);
      } else {
        ok = tl::unexpected(result.error());
      }
    }
    if (!ok) {
      if (next) {
        end(*next);
      }
      out_.failure(ok.error());
      event("restart_failed", {{"pid", current_.pid}, {"message", ok.error().line()}});
      notify_.ready(
          fmt::format("serving, pid {}; restart failed: {}", current_.pid, ok.error().line()));
      return;
    }
    out_.end_progress();
    const pid_t old = current_.pid;
    leaving_.emplace_back(current_, options_.stop_timeout > 0ms
                                        ? Clock::now() + options_.stop_timeout
                                        : Clock::time_point::max());
    current_ = *next;
    json facts = {
        {"old", old},
        {"pid", current_.pid},
        {"took_ms",
         std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count()}};
    facts["drain"] = drained ? drained->json() : json(nullptr);
    event("restarted", facts);
    out_.note(fmt::format(
        "restarted: {} -> {}, {}", old, current_.pid,
        !drained ? "not drained in time"
        : drained->drained
            ? fmt::format("drained by {}", to_string(drained->method))
            : fmt::format("not drained ({}): {}", to_string(drained->method), drained->reason)));
    notify_.ready(fmt::format("serving, pid {}", current_.pid));
  }

  /// The old one is past the point of return: asked to end, or ended.
  bool next_must_stay(const Failure& /*failure*/) { return current_.reap(); }

  Outcome<DrainResult> drain_old() {
    // only what the newcomer also serves: a port of the old one's own is closed with it
    return drain(drain_options(options_, current_.pid), *this, out_);
  }

  void look_after_leaving() {
    for (auto& [child, kill_at] : leaving_) {
      if (child.reap()) {
        event("old_ended", {{"pid", child.pid}, {"status", child.exit_code()}});
      } else if (Clock::now() >= kill_at) {
        out_.note(
            fmt::format("process {} ignores {}: killed", child.pid, signal_name(options_.signal)));
        event("old_killed", {{"pid", child.pid}});
        child.signal(SIGKILL);
        kill_at = Clock::time_point::max();
      }
    }
    leaving_.erase(std::remove_if(leaving_.begin(), leaving_.end(),
                                  [](const auto& l) { return !l.first.running(); }),
                   leaving_.end());
  }

  /// Asks a child to end, kills it when it does not, and waits.
  void end(Child& child) {
    child.signal(options_.signal);
    child.signal(SIGCONT);
    const auto kill_at = options_.stop_timeout > 0ms ? Clock::now() + options_.stop_timeout
                                                     : Clock::time_point::max();
    bool killed = false;
    while (!child.reap()) {
      if (!killed && Clock::now() >= kill_at) {
        child.signal(SIGKILL);
        killed = true;
      }
      signals_.wait(poll_every);  // a second SIGTERM changes nothing
    }
  }
  void end_leaving() {
    for (auto& [child, kill_at] : leaving_) {
      end(child);
    }
  }

  const RestartOptions& options_;
  const Output& out_;
  Signals signals_;
  Notify notify_;
  Child current_;
  std::vector<std::pair<Child, Clock::time_point>> leaving_;
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
  const auto method = choose_method(drain_options(options, 0), reason);
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
  auto signals = Signals::open({SIGHUP, SIGTERM, SIGINT, SIGCHLD});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  return Supervisor(options, out, std::move(*signals)).run();
}

}  // namespace reuseport::ctl
