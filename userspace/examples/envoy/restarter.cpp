// SPDX-License-Identifier: Apache-2.0
// restarter [OPTION...] -- ENVOY [ARG...]: runs Envoy, and on SIGHUP replaces it with the program
// that ENVOY is then.
//
//   SIGHUP --> ENVOY --hot-restart-version, of the file and of the process that runs
//     equal     --> hot restart: the next epoch of the same base id; Envoy passes its sockets on
//     different --> side by side: a new base id, new listeners
//                   --> ready --> the old one's listeners STANDBY until empty
//                   --> drain_listeners?graceful&skip_exit --> no connection is left --> TERM
//
// A newcomer that dies, is late or has a wrong admin address is ended, and the old one keeps
// serving. SIGUSR1 (reopen the logs) goes to every Envoy, SIGTERM ends all.
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "drain.hpp"
#include "host/endpoint.hpp"
#include "looking_after.hpp"
#include "served.hpp"

namespace reuseport::ctl {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

constexpr auto poll_first = 20ms;
constexpr auto poll_most = 200ms;
constexpr auto storm_pause = 1000ms;  // several SIGHUPs within it count as one
constexpr auto way_back = 5000ms;     // to drain a newcomer that failed
constexpr auto version_limit = 10s;   // for --hot-restart-version
constexpr auto admin_limit = 2000ms;  // for one request to the admin interface

struct Options {
  std::vector<std::string> command;
  std::chrono::milliseconds ready_timeout{30'000};
  std::chrono::milliseconds drain_timeout{900'000};  ///< as Envoy's --parent-shutdown-time-s
  std::chrono::milliseconds stop_timeout{90'000};
  std::string directory;  ///< for the files that Envoy writes
};

/// Options that the restarter adds to Envoy's command line.
constexpr std::array<std::string_view, 5> ours = {"--restart-epoch", "--base-id", "--base-id-path",
                                                  "--use-dynamic-base-id", "--admin-address-path"};

std::string contents(const std::string& path) {
  std::ifstream file(path);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
    text.pop_back();
  }
  return text;
}

// --- Envoy's admin interface ---

/// "127.0.0.1:9901" or "[::1]:9901", as Envoy writes it.
std::optional<Endpoint> parse_address(const std::string& text) {
  const auto pattern = EndpointPattern::parse(text);
  if (!pattern || !pattern->address || !pattern->port) {
    return std::nullopt;
  }
  Endpoint at = *pattern->address;
  at.port = *pattern->port;
  return at;
}

sockaddr_storage to_sockaddr(const Endpoint& at) {
  sockaddr_storage storage{};
  if (at.family == AF_INET) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(at.port);
    std::memcpy(&in.sin_addr, at.addr.data(), sizeof(in.sin_addr));
    std::memcpy(&storage, &in, sizeof(in));
  } else {
    sockaddr_in6 in{};
    in.sin6_family = AF_INET6;
    in.sin6_port = htons(at.port);
    std::memcpy(&in.sin6_addr, at.addr.data(), sizeof(in.sin6_addr));
    std::memcpy(&storage, &in, sizeof(in));
  }
  return storage;
}

/// The HTTP status of a request without a body; 0: no answer within admin_limit.
int ask_admin(const Endpoint& at, const std::string& method, const std::string& target) {
  const sockaddr_storage storage = to_sockaddr(at);
  const socklen_t length = at.family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  const Fd fd(::socket(at.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto until = after(admin_limit);
  const auto ready = [&](short events) {
    pollfd p{fd.get(), events, 0};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    return left > 0 && ::poll(&p, 1, static_cast<int>(left)) == 1;
  };
  const auto* address = static_cast<const sockaddr*>(static_cast<const void*>(&storage));
  if (!fd || (::connect(fd.get(), address, length) != 0 && errno != EINPROGRESS) ||
      !ready(POLLOUT)) {
    return 0;
  }
  const std::string request =
      fmt::format("{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                  method, target, at.str());
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return 0;
  }
  std::string answer;
  const std::string begins = "HTTP/1.1 ";
  while (answer.find("\r\n") == std::string::npos && ready(POLLIN)) {
    std::array<char, 4096> some{};
    const ssize_t n = ::recv(fd.get(), some.data(), some.size(), 0);
    if (n <= 0) {
      break;
    }
    answer.append(some.data(), static_cast<std::size_t>(n));
  }
  int status = 0;
  if (answer.starts_with(begins)) {
    std::from_chars(answer.data() + begins.size(), answer.data() + answer.size(), status);
  }
  return status;
}

// --- one Envoy ---

struct Envoy {
  Child child;
  int epoch = 0;
  std::string admin_path;  ///< where it writes its admin address
  std::string base_path;   ///< where the first Envoy of its base id wrote that

  [[nodiscard]] pid_t pid() const { return child.pid(); }
};

/// The admin address of @p envoy, and the state it reports there. The listener there must be its
/// own: the answer of another process does not count.
struct Admin {
  std::optional<Endpoint> at;
  std::string lacks = "has written no admin address";  ///< empty: it is ready
};
Admin admin_of(const Envoy& envoy, const View& own) {
  Admin admin;
  const std::string text = contents(envoy.admin_path);
  const auto at = parse_address(text);
  if (!at) {
    admin.lacks =
        text.empty() ? admin.lacks : fmt::format("has no IP address for its admin: {}", text);
    return admin;
  }
  if (std::ranges::none_of(own.sockets, [&](const DiagSocket& s) {
        return s.protocol == Protocol::tcp && s.local == *at;
      })) {
    admin.lacks = fmt::format("is not listening on the admin address it wrote, {}", at->str());
    return admin;
  }
  admin.at = at;
  const int status = ask_admin(*at, "GET", "/ready");
  admin.lacks = status == 200 ? ""
                : status == 0 ? "does not answer at /ready"
                              : fmt::format("says {} at /ready", status);
  return admin;
}

/// The same, but holds no duplicate of a listener when it returns.
Admin admin_of(const Envoy& envoy) {
  const auto own = served_by(envoy.child.process(), false);
  return own ? admin_of(envoy, own->view) : Admin{};
}

class Restarter final : public LookingAfter {
 public:
  Restarter(const Options& options, const Output& out, Signals signals)
      : LookingAfter(out, std::move(signals)), options_(options) {}

  Expected<int> run() {
    auto first = start(nullptr);
    Done ok = first ? until_ready(*first, nullptr) : Done{tl::unexpected(first.error())};
    if (!ok) {
      if (first) {
        dismiss(first->child);
      }
      end_all();
      return stopping_ ? Expected<int>(0) : Expected<int>(tl::unexpected(ok.error()));
    }
    current_ = *first;
    event("started", {{"pid", current_->pid()}, {"epoch", 0}});
    notify_.ready(fmt::format("serving, pid {}", current_->pid()));
    while (!stopping_ && current_->child.running()) {
      look_after_leaving();
      if (reload_ && Clock::now() >= next_restart_ && !held()) {
        reload_ = false;
        restart();
        next_restart_ = after(storm_pause);
        continue;
      }
      wait(std::min(until_next_limit(), reload_ && !held() ? remaining(next_restart_) : idle));
    }
    notify_.stopping();
    int code = 0;
    if (!current_->child.running()) {
      out_.note(fmt::format("process {} {}", current_->pid(), current_->child.how()));
      event("ended", {{"pid", current_->pid()}, {"status", current_->child.exit_code()}});
      code = stopping_ ? 0 : current_->child.exit_code();
    } else {
      dismiss(current_->child);
    }
    end_all();
    return code;
  }

  [[nodiscard]] Failure why() const override { return {Exit::error, "stopped during a restart"}; }

 private:
  struct Leaving {
    Child child;
    Clock::time_point limit;  ///< of SIGTERM and, once that was sent, of SIGKILL
    bool asked = false;       ///< SIGTERM was sent
    bool served = false;
    bool parent = false;  ///< of a hot restart: its child ends it
  };

  void take(const Signals::Signal& signal) override {
    switch (signal.number) {
      case SIGHUP:
        reload_ = reload_ || !signal.from_kernel;
        waits_for_parent_ = waits_for_parent_ && signal.from_kernel;
        break;
      case SIGUSR1:
        for (const Child& child : all_) {
          child.signal(SIGUSR1);
        }
        break;
      case SIGCHLD: std::erase_if(all_, [](const Child& c) { return !c.running(); }); break;
      default: stopping_ = true;
    }
  }

  // --- start ---

  /// The next epoch of @p parent or, without one, the first of a new base id.
  Expected<Envoy> start(const Envoy* parent) {
    const std::string number = std::to_string(started_++);
    const int epoch = parent != nullptr ? parent->epoch + 1 : 0;
    std::vector<std::string> command = options_.command;
    const auto add = [&command](std::initializer_list<std::string> words) {
      command.insert(command.end(), words);
    };
    const std::string admin_path = options_.directory + "/admin." + number;
    const std::string base_path =
        parent != nullptr ? parent->base_path : options_.directory + "/base-id." + number;
    add({"--restart-epoch", std::to_string(epoch), "--admin-address-path", admin_path});
    if (parent != nullptr) {
      add({"--base-id", contents(base_path)});
    } else {
      add({"--use-dynamic-base-id", "--base-id-path", base_path});
    }
    auto child = children_.start(command, {{"RESTART_EPOCH", std::to_string(epoch)}});
    if (!child) {
      return tl::unexpected(child.error());
    }
    all_.push_back(*child);
    return Envoy{std::move(*child), epoch, admin_path, base_path};
  }

  /// Waits until @p envoy reports that it is ready and, side by side with @p old, has a listener on
  /// every address of @p old.
  Done until_ready(const Envoy& envoy, const Envoy* old) {
    const auto deadline = after(options_.ready_timeout);
    std::chrono::milliseconds pause = poll_first;
    for (;;) {
      if (!envoy.child.running()) {
        return failed(Failure(Exit::error, fmt::format("process {} {} before it was ready",
                                                       envoy.pid(), envoy.child.how())));
      }
      const std::string lacking = lacks_yet(envoy, old);
      if (lacking.empty()) {
        return {};
      }
      if (Clock::now() >= deadline) {
        return failed(Failure(Exit::error, fmt::format("process {} was not ready in time: it {}",
                                                       envoy.pid(), lacking)));
      }
      if (!wait(pause)) {
        return failed(why());
      }
      pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
    }
  }

  static std::string lacks_yet(const Envoy& envoy, const Envoy* old) {
    auto now = served_by(envoy.child.process(), false);
    if (!now) {
      return "has no listener: " + now.error().line();
    }
    if (std::ranges::none_of(now->targets, [](const Target& t) { return t.reuseport; })) {
      return "has no listener with SO_REUSEPORT (enable_reuse_port)";
    }
    if (old != nullptr && old->child.running()) {
      const auto before = served_by(old->child.process(), true);
      std::string gap = before ? lacks(*before, *now) : before.error().line();
      if (!gap.empty()) {
        return gap;
      }
    }
    now->targets.clear();  // hold none of its listeners while querying it
    return admin_of(envoy, now->view).lacks;
  }

  static bool listens(const Envoy& envoy) {
    return envoy.child.running() && served_by(envoy.child.process(), true).has_value();
  }

  // --- the version ---

  /// The output of @p program --hot-restart-version; "disabled" if it has no hot restart.
  Expected<std::string> version_of(const std::string& program) {
    const std::string said = options_.directory + "/version";
    std::vector<std::string> command = shell(R"(exec "$@" >"$0" 2>&1)");
    command.insert(command.end(), {said, program});
    command.insert(command.end(), options_.command.begin() + 1, options_.command.end());
    command.emplace_back("--hot-restart-version");
    const auto child = children_.start(command);
    if (!child) {
      return tl::unexpected(child.error());
    }
    for (const auto deadline = after(version_limit); child->running();) {
      if (Clock::now() >= deadline || !wait(poll_first)) {
        end_group(*child, children_, *this);
        return stopping_ ? failed(why())
                         : failed(Failure(Exit::error, program + " --hot-restart-version hangs"));
      }
    }
    std::string text = contents(said);
    text.erase(0, text.rfind('\n') + 1);
    ::unlink(said.c_str());
    if (child->exit_code() != 0 || text.empty()) {
      return failed(Failure(Exit::error, fmt::format("{} --hot-restart-version {}: {}", program,
                                                     child->how(), text)));
    }
    return text;
  }

  /// Whether the running process can pass its sockets to the program that would be started now.
  Expected<bool> same_version() {
    const auto next = version_of(options_.command.front());
    if (!next) {
      return tl::unexpected(next.error());
    }
    const auto now = version_of(fmt::format("/proc/{}/exe", current_->pid()));
    if (!now) {
      out_.note(now.error().line() + ": side by side");
      return stopping_ ? Expected<bool>(tl::unexpected(why())) : Expected<bool>(false);
    }
    return *next == *now && *next != "disabled";
  }

  // --- restart ---

  /// Envoy allows two processes: a hot restart while the parent of the last one is still there
  /// would end that parent at once, with all its connections.
  [[nodiscard]] bool held() const {
    return waits_for_parent_ && std::ranges::any_of(leaving_, [](const Leaving& l) {
             return l.parent && l.child.running();
           });
  }

  void restart() {
    waits_for_parent_ = false;
    notify_.reloading();
    const auto same = same_version();
    if (!same) {
      failed_restart(same.error());
      return;
    }
    const bool hot = *same && !no_hot_restart_;
    if (hot) {
      waits_for_parent_ = true;
      if (held()) {
        reload_ = true;
        out_.note("waiting for the parent of the last hot restart to end");
        notify_.ready(fmt::format("serving, pid {}; a restart is waiting", current_->pid()));
        return;
      }
      waits_for_parent_ = false;
    }
    const auto next = start(hot ? &*current_ : nullptr);
    Done ok =
        next ? until_ready(*next, hot ? nullptr : &*current_) : Done{tl::unexpected(next.error())};
    std::optional<DrainResult> drained;
    if (ok && !hot) {
      auto result = retire();
      if (result) {
        drained = std::move(*result);
      } else {
        ok = tl::unexpected(result.error());
      }
    }
    const bool ready = ok.has_value();
    if (!ok && hot && next && next->child.running() && !stopping_ && !listens(*current_) &&
        listens(*next)) {
      out_.failure(ok.error());
      out_.note(fmt::format("process {} already has the listeners and is kept", next->pid()));
      ok = {};
    }
    if (!ok) {
      if (next) {
        give_back(*next, hot);
      }
      failed_restart(ok.error());
      if (hot) {
        after_failed_hot_restart();
      }
      return;
    }
    const Envoy old = *current_;
    leaving_.push_back({old.child, hot ? Clock::time_point::max() : kill_time(), !hot, true, hot});
    current_ = *next;
    no_hot_restart_ = false;
    json facts = {{"old", old.pid()},
                  {"pid", current_->pid()},
                  {"epoch", current_->epoch},
                  {"ready", ready},
                  {"how", hot ? "hot restart" : "side by side"}};
    facts["drain"] = drained ? drained->json() : json(nullptr);
    event("restarted", facts);
    out_.note(fmt::format(
        "restarted: {} -> {}, {}", old.pid(), current_->pid(),
        hot                ? "hot restart"
        : drained->drained ? fmt::format("side by side, drained by {}", to_string(drained->method))
                           : fmt::format("side by side, not drained: {}", drained->reason)));
    notify_.ready(fmt::format("serving, pid {}", current_->pid()));
  }

  /// For /bin/sh; empty if there is no admin interface, or it is not Envoy's own.
  static std::string ask_to_drain(const Admin& admin) {
    return admin.at ? fmt::format("exec /proc/{}/exe --post '{}'", ::getpid(), admin.at->str())
                    : std::string();
  }

  /// Drains the old one's listeners beside the newcomer's, waits for its connections, then sends
  /// TERM. At the deadline it sends TERM anyway, like Envoy's own hot restart, and reports that.
  Expected<DrainResult> retire() {
    DrainCommandOptions o;
    o.selection.reuseport_only = true;
    o.timeout = options_.drain_timeout;
    o.signal = SIGTERM;
    o.connections = 0;
    o.on_deadline = OnDeadline::signal;
    const Admin admin = admin_of(*current_);
    o.before_signal = ask_to_drain(admin);
    if (o.before_signal.empty()) {
      out_.note(
          fmt::format("process {} {}: waiting for its connections without telling it to end them",
                      current_->pid(), admin.lacks));
    }
    auto result = drain(o, current_->child.process(), {*this, children_, out_});
    out_.end_progress();
    if (result || stopping_ ||
        (result.error().exit != Exit::deadline && current_->child.running())) {
      return result;
    }
    out_.failure(result.error());
    DrainResult undone;
    undone.signalled = was_signalled(result.error());
    if (!undone.signalled && current_->child.running()) {
      current_->child.signal(SIGTERM);
      undone.signalled = true;
    }
    undone.reason = result.error().line();
    return undone;
  }

  void failed_restart(const Failure& failure) {
    out_.failure(failure);
    event("restart_failed", {{"pid", current_->pid()}, {"message", failure.line()}});
    notify_.ready(
        fmt::format("serving, pid {}; restart failed: {}", current_->pid(), failure.line()));
  }

  /// A newcomer with its own listeners may already have connections: drain it before ending it.
  void give_back(const Envoy& next, bool hot) {
    if (!hot && next.child.running() && current_->child.running() && !stopping_) {
      DrainCommandOptions o;
      o.selection.reuseport_only = true;
      o.timeout = way_back;
      o.connections = 0;
      o.signal = SIGTERM;
      o.on_deadline = OnDeadline::signal;
      o.before_signal = ask_to_drain(admin_of(next));
      const auto back = drain(o, next.child.process(), {*this, children_, out_});
      out_.end_progress();
      if (back && back->signalled) {
        leaving_.push_back({next.child, kill_time(), true});
        return;
      }
    }
    dismiss(next.child);
  }

  /// What a child that died during a hot restart leaves behind: a base id that stays marked as
  /// initializing, no admin interface and, if the parent was told to drain, no listener.
  void after_failed_hot_restart() {
    no_hot_restart_ = true;
    if (!current_->child.running() || stopping_ || listens(*current_)) {
      return;
    }
    out_.note(
        fmt::format("process {} has passed its listeners on: starting another", current_->pid()));
    const auto fresh = start(nullptr);
    const Done ok = fresh ? until_ready(*fresh, nullptr) : Done{tl::unexpected(fresh.error())};
    if (!ok) {
      if (fresh) {
        dismiss(fresh->child);
      }
      out_.failure(ok.error());
      return;
    }
    // the old one has connections, but no admin interface to end them by
    leaving_.push_back({current_->child, after(options_.drain_timeout), false, true});
    event("replaced", {{"old", current_->pid()}, {"pid", fresh->pid()}});
    current_ = *fresh;
    no_hot_restart_ = false;
    notify_.ready(fmt::format("serving, pid {}", current_->pid()));
  }

  // --- end ---

  [[nodiscard]] Clock::time_point kill_time() const { return after(options_.stop_timeout); }

  void dismiss(const Child& child) {
    child.signal(SIGTERM);
    child.signal(SIGCONT);
    leaving_.push_back({child, kill_time(), true});
  }

  void look_after_leaving() {
    for (Leaving& l : leaving_) {
      if (!l.child.running() && l.served) {
        event("old_ended", {{"pid", l.child.pid()}, {"status", l.child.exit_code()}});
      } else if (l.child.running() && Clock::now() >= l.limit) {
        if (l.asked) {
          out_.note(fmt::format("process {} ignores SIGTERM: killed", l.child.pid()));
        }
        l.child.signal(l.asked ? SIGKILL : SIGTERM);
        l.limit = l.asked ? Clock::time_point::max() : kill_time();
        l.asked = true;
      }
    }
    std::erase_if(leaving_, [](const Leaving& l) { return !l.child.running(); });
  }

  [[nodiscard]] std::chrono::milliseconds until_next_limit() const {
    auto next = Clock::time_point::max();
    for (const Leaving& l : leaving_) {
      next = std::min(next, l.limit);
    }
    return remaining(next);
  }

  void end_all() {
    for (Leaving& l : leaving_) {
      l.limit = std::min(l.limit, l.asked ? kill_time() : Clock::now());
    }
    for (look_after_leaving(); !leaving_.empty(); look_after_leaving()) {
      wait(until_next_limit());
    }
  }

  const Options& options_;
  std::vector<Child> all_;
  std::optional<Envoy> current_;
  std::vector<Leaving> leaving_;
  Clock::time_point next_restart_ = Clock::time_point::min();
  unsigned started_ = 0;
  bool reload_ = false;
  bool waits_for_parent_ = false;
  bool no_hot_restart_ = false;  ///< one has failed: the base id is unusable
};

// --- the command line ---

/// restarter --post ADDRESS: the drain runs it when the listeners are empty.
int post_drain(const std::string& address) {
  const auto at = parse_address(address);
  const bool done = at && ask_admin(*at, "POST", "/drain_listeners?graceful&skip_exit") == 200;
  return static_cast<int>(done ? Exit::done : Exit::error);
}

int main_of(int argc, char** argv) try {
  fill_standard_descriptors();
  CLI::App app("Run Envoy; SIGHUP replaces it without losing a connection.", "restarter");
  Options options;
  Output out;
  std::string post;
  const auto seconds = [&app](const char* name, std::chrono::milliseconds& into, const char* what) {
    app.add_option_function<double>(
           name,
           [&into](const double& s) {
             into = std::chrono::milliseconds(static_cast<std::int64_t>(s * 1e3));
           },
           what)
        ->type_name("SECONDS")
        ->check(CLI::Range(0.0, 1e7));
  };
  seconds("--ready-timeout", options.ready_timeout,
          "how long a new Envoy may take to get ready (30)");
  seconds("--drain-timeout", options.drain_timeout,
          "side by side: how long the old one's connections may last (900)");
  seconds("--stop-timeout", options.stop_timeout, "SIGKILL this long after SIGTERM (90)");
  app.add_flag("--json", out.json, "print events as JSON");
  app.add_option("--post", post, "only tell the Envoy with this admin address to drain")
      ->type_name("ADDR:PORT");
  app.add_option("command", options.command,
                 "Envoy, or a script that ends with: exec envoy ... \"$@\"")
      ->type_name("-- ENVOY ARG...");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(Exit::usage);
  }
  if (!post.empty()) {
    return post_drain(post);
  }
  const auto fail = [&out](const Failure& failure) {
    out.failure(failure);
    return static_cast<int>(failure.exit);
  };
  if (options.command.empty()) {
    return fail(Failure(Exit::usage, "no command", "restarter [OPTION...] -- ENVOY [ARG...]"));
  }
  for (const std::string& word : options.command) {
    if (std::ranges::find(ours, std::string_view(word).substr(0, word.find('='))) != ours.end()) {
      return fail(Failure(Exit::usage, fmt::format("{} is set by the restarter", word)));
    }
  }
  const char* runtime = std::getenv("RUNTIME_DIRECTORY");  // systemd.exec(5)
  std::string directory =
      std::string(runtime != nullptr ? runtime : "/tmp") + "/envoy-restarter.XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) {
    return fail(Failure(Error{"mkdtemp " + directory, errno, {}}));
  }
  options.directory = directory;
  auto signals = Signals::open({SIGHUP, SIGUSR1, SIGTERM, SIGINT, SIGQUIT, SIGCHLD});
  const auto code = signals ? Restarter(options, out, std::move(*signals)).run()
                            : Expected<int>(tl::unexpected(signals.error()));
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return code ? *code : fail(code.error());
} catch (const std::exception& e) {
  Output().note(e.what());
  return static_cast<int>(Exit::error);
}

}  // namespace
}  // namespace reuseport::ctl

int main(int argc, char** argv) {
  return reuseport::ctl::main_of(argc, argv);
}
