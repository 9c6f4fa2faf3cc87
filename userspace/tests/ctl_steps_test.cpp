// SPDX-License-Identifier: Apache-2.0
// reuseportctl drain and restart, stopped and killed at each system call that they make: see
// ptrace(2), seccomp(2). REUSEPORT_STEP: see README.md of userspace.
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <string_view>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;

/// One way to retire a server.
struct Form {
  const char* name;
  std::vector<std::string> args;  ///< of drain; restart has none
  const char* server = "";        ///< how it is started, see support/ctl.cpp
  const char* newcomer = "";      ///< the same, if it is not a server as the old one
  bool restart = false;           ///< by a supervisor
  bool client = false;            ///< one stays connected for a while

  [[nodiscard]] bool wider() const { return *newcomer != '\0'; }
  [[nodiscard]] bool udp() const { return std::string_view(server) == "udp"; }
};

std::ostream& operator<<(std::ostream& out, const Form& form) {
  return out << form.name;
}

const std::array forms{
    Form{.name = "plain", .args = {}},
    Form{.name = "connections", .args = {"--connections", "0"}, .server = "keep", .client = true},
    Form{.name = "before_signal", .args = {"--before-signal", "true"}},
    Form{.name = "ready", .args = {"--ready", "true"}},
    Form{.name = "udp", .args = {}, .server = "udp"},
    Form{.name = "restart", .args = {}, .restart = true},
    Form{.name = "wider", .args = {}, .newcomer = "ip=0.0.0.0"},
    Form{.name = "dual_stack", .args = {}, .newcomer = "ip=::"},
};

/// Where the tool is to be stopped.
struct Point {
  int step = 0;      ///< counted from 0
  int children = 0;  ///< counts from this child of the tool on
  int client = -1;   ///< a connection that ends when the tool has counted connections a few times
};

/// What its watcher tells.
struct Event {
  enum class Kind : std::uint8_t { started, stopped, signals, ended } kind;
  pid_t child = 0;  ///< started: the tool; stopped, signals: its last child
  bool entering = false;
  std::uint64_t call = 0;
};

/// The tool, run up to a step. A step is the entry to, or the return from, a system call that
/// others can notice: a mode, BPF, a descriptor of a socket or of BPF that is opened or closed; up
/// to the signal it sends. A process of its own watches it and all that it starts, because whoever
/// has such a filter and no tracer fails at the traced calls. They all end with that process.
class Watcher {
 public:
  /// In a child of the test. Never returns.
  [[noreturn]] static void watch(std::vector<std::string> args, const Point& point, int events) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const pid_t tool_pid = ::fork();
    if (tool_pid == 0) {
      exec(std::move(args));
    }
    int status = 0;
    constexpr long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL |
                             PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
                             PTRACE_O_TRACEEXEC;
    if (::waitpid(tool_pid, &status, 0) != tool_pid || !WIFSTOPPED(status) ||
        ::ptrace(PTRACE_SETOPTIONS, tool_pid, nullptr, options) != 0) {
      ::_exit(125);
    }
    Watcher watcher(tool_pid, point, events);
    watcher.tell({Event::Kind::started, tool_pid});
    ::ptrace(PTRACE_CONT, tool_pid, nullptr, 0);
    for (pid_t pid = 0; (pid = ::waitpid(-1, &status, __WALL)) > 0;) {
      watcher.take(pid, status);
    }
    ::_exit(0);
  }

 private:
  using Call = __ptrace_syscall_info;
  struct Thread {
    bool counts = false;
    bool loads_set_mode = false;
    std::uint64_t number = 0;
  };

  /// The calls that can be steps: few of the thousands that a program makes while it starts.
  static constexpr std::array traced{SYS_setsockopt, SYS_bpf, SYS_pidfd_getfd,
                                     SYS_pidfd_send_signal, SYS_close};

  Watcher(pid_t tool, const Point& point, int events)
      : tool_(tool), point_(point), events_(events), threads_{{tool, {}}}, seen_{tool} {}

  [[noreturn]] static void exec(std::vector<std::string> args) {
    std::vector<char*> argv;
    argv.reserve(args.size() + 1);
    for (std::string& a : args) {
      argv.push_back(a.data());
    }
    argv.push_back(nullptr);
    const int null = ::open("/dev/null", O_WRONLY);
    ::dup2(null, STDOUT_FILENO);
    ::dup2(null, STDERR_FILENO);
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    trace_some();
    ::execv(argv[0], argv.data());
    ::_exit(126);
  }
  /// Stops only at the traced calls.
  static void trace_some() {
    constexpr auto size = traced.size();
    std::array<sock_filter, size + 3> program{};
    program[0] = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr));
    for (std::size_t i = 0; i < size; i++) {
      program[i + 1] = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(traced[i]),
                                static_cast<unsigned char>(size - i), 0);
    }
    program[size + 1] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[size + 2] = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    const sock_fprog filter{program.size(), program.data()};
    if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0) {
      ::_exit(126);
    }
  }

  void tell(const Event& event) const {
    if (::write(events_, &event, sizeof(event)) != sizeof(event)) {
      ::_exit(125);
    }
  }
  /// What @p pid, the tool or one that it has started, does; lets it go on unless that is the step.
  void take(pid_t pid, int status) {
    if (!WIFSTOPPED(status)) {
      threads_.erase(pid);
      if (pid == tool_) {
        tell({Event::Kind::ended});
      }
      return;
    }
    const int event = status >> 16;
    const int signal = WSTOPSIG(status);
    const bool is_new = seen_.insert(pid).second;
    const bool returns = signal == (SIGTRAP | 0x80);  // PTRACE_O_TRACESYSGOOD
    const auto thread = threads_.find(pid);
    bool see_return = false;
    if (thread != threads_.end()) {
      if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK ||
          event == PTRACE_EVENT_CLONE) {
        take_child(pid, event == PTRACE_EVENT_CLONE);
      } else if (event == PTRACE_EVENT_SECCOMP || returns) {
        if (is_the_step(pid, thread->second, returns)) {
          tell({Event::Kind::stopped, child_, !returns, thread->second.number});
          return;
        }
        see_return = !returns && (thread->second.counts || thread->second.loads_set_mode);
      }
    }
    const bool ours = event != 0 || returns || (is_new && signal == SIGSTOP);
    ::ptrace(see_return ? PTRACE_SYSCALL : PTRACE_CONT, pid, nullptr, ours ? 0 : signal);
  }
  void take_child(pid_t of, bool thread) {
    unsigned long child = 0;
    ::ptrace(PTRACE_GETEVENTMSG, of, nullptr, &child);
    if (thread) {
      threads_[static_cast<pid_t>(child)] = {};
    } else {
      child_ = static_cast<pid_t>(child);
      children_++;
    }
  }
  bool is_the_step(pid_t pid, Thread& thread, bool returns) {
    Call call{};
    if (over_ || ::ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(call), &call) <= 0) {
      thread.counts = false;
      return false;
    }
    if (returns) {
      set_mode_ = thread.loads_set_mode ? static_cast<int>(call.exit.rval) : set_mode_;
      thread.loads_set_mode = false;
    } else {
      thread.number = call.seccomp.nr;
      thread.counts = changes(thread, call);
      over_ = thread.number == SYS_pidfd_send_signal && call.seccomp.args[1] != 0;
    }
    if (!thread.counts || children_ < point_.children) {
      return false;
    }
    if (steps_++ == point_.step) {
      return true;
    }
    if (over_) {
      tell({Event::Kind::signals, child_});
    }
    return false;
  }
  [[nodiscard]] bool changes(Thread& thread, const Call& call) {
    switch (call.seccomp.nr) {
      case SYS_setsockopt:
        switched_ = switched_ || call.seccomp.args[2] == SO_REUSEPORT_LISTEN_OFF;
        return call.seccomp.args[2] == SO_REUSEPORT_LISTEN_OFF;
      case SYS_bpf: return changes_bpf(thread, call);
      case SYS_pidfd_getfd:
      case SYS_pidfd_send_signal: return true;
      case SYS_close: {
        std::error_code gone;
        const std::string what = std::filesystem::read_symlink(
                                     "/proc/" + std::to_string(tool_) + "/fd/" +
                                         std::to_string(static_cast<int>(call.seccomp.args[0])),
                                     gone)
                                     .string();
        const bool socket = what.starts_with("socket:");
        counts_ += switched_ && socket ? 1 : 0;  // each by a socket of sock_diag(7)
        if (counts_ == 5 && point_.client >= 0) {
          ::shutdown(point_.client, SHUT_RDWR);
        }
        return socket || what.starts_with("anon_inode:bpf");
      }
      default: return false;
    }
  }
  [[nodiscard]] bool changes_bpf(Thread& thread, const Call& call) {
    bpf_attr attr{};
    const std::size_t size = std::min<std::size_t>(call.seccomp.args[2], sizeof(attr));
    const iovec to{&attr, size};
    const iovec from{reinterpret_cast<void*>(call.seccomp.args[1]), size};  // NOLINT: not ours
    static_cast<void>(::process_vm_readv(tool_, &to, 1, &from, 1, 0));
    switch (call.seccomp.args[0]) {
      case BPF_LINK_CREATE:
      case BPF_LINK_UPDATE:
      case BPF_LINK_DETACH:
      case BPF_PROG_ATTACH:
      case BPF_PROG_DETACH:
      case BPF_MAP_UPDATE_ELEM:
      case BPF_MAP_DELETE_ELEM: return true;
      case BPF_PROG_LOAD:  // disturbs nobody
        thread.loads_set_mode = std::string_view(attr.prog_name) == "call_set_mode";
        return false;
      case BPF_PROG_TEST_RUN: {
        const bool sets = static_cast<int>(attr.test.prog_fd) == set_mode_;
        switched_ = switched_ || sets;
        return sets;
      }
      default: return false;
    }
  }

  const pid_t tool_;
  const Point point_;
  const int events_;
  std::map<pid_t, Thread> threads_;  ///< of the tool
  std::set<pid_t> seen_;
  pid_t child_ = 0;
  int children_ = 0;
  int steps_ = 0;
  int counts_ = 0;
  int set_mode_ = -1;  ///< the tool's descriptor of the program that sets a mode
  bool switched_ = false;
  bool over_ = false;
};

/// The tool, run up to @p point.
class Stepped {
 public:
  Stepped(std::vector<std::string> args, const Point& point) {
    args.insert(args.begin(), tool());
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    events_.reset(ends[0]);
    watcher_ = ::fork();
    if (watcher_ == 0) {
      Watcher::watch(std::move(args), point, ends[1]);
    }
    ::close(ends[1]);
    const auto started = next();
    pid_ = started ? started->child : -1;
  }
  Stepped(const Stepped&) = delete;
  Stepped(Stepped&&) = delete;
  Stepped& operator=(const Stepped&) = delete;
  Stepped& operator=(Stepped&&) = delete;
  ~Stepped() {
    ::kill(watcher_, SIGKILL);  // PTRACE_O_EXITKILL
    ::waitpid(watcher_, nullptr, 0);
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// What it does next; empty: nothing any more.
  std::optional<Event> next() {
    Event event{};
    pollfd p{events_.get(), POLLIN, 0};
    if (::poll(&p, 1, 60'000) != 1 || ::read(events_.get(), &event, sizeof(event)) <= 0) {
      return std::nullopt;
    }
    return event;
  }
  /// Only while it is stopped.
  void kill() {
    ::kill(pid_, SIGKILL);
    const auto event = next();
    EXPECT_TRUE(event && event->kind == Event::Kind::ended);
  }

 private:
  Fd events_;
  pid_t watcher_ = -1;
  pid_t pid_ = -1;
};

class StepsTest : public CtlTest, public ::testing::WithParamInterface<Form> {
 protected:
  static int every() {
    const char* n = std::getenv("REUSEPORT_STEP");
    return n != nullptr ? std::max(std::atoi(n), 1) : 7;
  }
  [[nodiscard]] pid_t answers(int* error = nullptr) const {
    return ask(error, "127.0.0.1", GetParam().udp() ? SOCK_DGRAM : SOCK_STREAM);
  }
  /// Clients are always answered, by one of @p servers.
  void expect_served(const std::set<pid_t>& servers, const std::string& when) const {
    for (int i = 0; i < 6; i++) {
      int error = 0;
      const pid_t who = answers(&error);
      EXPECT_TRUE(servers.contains(who))
          << when << ": answered by " << who << ", " << std::strerror(error);
    }
  }
  static void end(pid_t pid) {
    const auto process = Process::open(pid);
    if (process) {
      static_cast<void>(process->signal(SIGKILL));
      EXPECT_TRUE(process->ended(20s));
    }
  }
  /// Whether two processes hold the same listener.
  [[nodiscard]] bool share_one(pid_t a, pid_t b) const {
    const auto all = listeners();
    return std::ranges::any_of(
        all, [&](const DiagSocket& s) { return holds(a, s.inode) && holds(b, s.inode); });
  }
  static bool holds(pid_t pid, std::uint64_t inode) {
    const auto process = Process::open(pid);
    const auto sockets = process ? process->sockets() : Result<std::vector<SocketRef>>{};
    return sockets && std::ranges::any_of(
                          *sockets, [inode](const SocketRef& ref) { return ref.inode == inode; });
  }

  /// Retires a server up to @p step, and stops there, or is killed. False: it takes fewer.
  bool one(int step, bool killed) {
    const Form& form = GetParam();
    EXPECT_TRUE(test::eventually([&] { return listeners().empty(); })) << "of the last one";
    std::optional<Running> old_server;
    std::optional<Running> newcomer;
    std::optional<Stepped> tool;
    Fd client;
    pid_t old = 0;
    pid_t fresh = 0;
    Point point{.step = step};
    if (form.restart) {
      point.children = 2;
      ::setenv("CTL_TEST_SERVER", (port() + " 2 stays " + form.server).c_str(), 1);
      tool.emplace(std::vector<std::string>{"restart", "--require", "--", self()}, point);
      ::unsetenv("CTL_TEST_SERVER");
      EXPECT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
      old = answers();
      ::kill(tool->pid(), SIGHUP);
    } else {
      old = old_server.emplace(server(2, form.server)).pid();
      if (form.client) {
        client = connected();
        EXPECT_EQ(answer_of(client), old);
        point.client = client.get();
      }
      fresh = newcomer.emplace(server(2, form.wider() ? form.newcomer : form.server)).pid();
      std::vector<std::string> args{"drain",     "--pid",    std::to_string(old),
                                    "--require", "--signal", "KILL"};
      args.insert(args.end(), form.args.begin(), form.args.end());
      tool.emplace(std::move(args), point);
    }
    const auto event = tool->next();
    fresh = event && form.restart ? event->child : fresh;
    if (!event || event->kind != Event::Kind::stopped) {
      EXPECT_TRUE(event && event->kind == Event::Kind::signals) << "it did not drain";
      EXPECT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
      expect_served({fresh}, "retired");
      return false;
    }
    const std::string at = "step " + std::to_string(step) +
                           (event->entering ? ", before call " : ", after call ") +
                           std::to_string(event->call);
    const auto look = [&](const std::string& how) {
      expect_served({old, fresh}, at + how);
      if (form.wider()) {
        return;  // without it the old one, which is OFF, gets nothing: reuseportctl(8)
      }
      // What a stopped tool has duplicates of stays open without a server: ctl/README.md.
      if (killed || !share_one(tool->pid(), fresh)) {
        end(fresh);
        expect_served({old}, at + how + ", without the newcomer");
        stopped_alone_ += killed ? 0 : 1;
      }
    };
    if (!killed) {
      look(", stopped");
    }
    tool->kill();
    killed = true;
    look(", killed");
    return true;
  }

  int stopped_alone_ = 0;  ///< how often the newcomer died beside a stopped tool
};

INSTANTIATE_TEST_SUITE_P(Forms, StepsTest, ::testing::ValuesIn(forms),
                         [](const auto& form) { return std::string(form.param.name); });

TEST_P(StepsTest, stopped_or_killed_at_any_call_it_leaves_listeners_that_serve) {
  constexpr int most = 2000;
  int step = 0;
  int tries = 0;
  // alternately: what holds after a call holds before the next one
  while (step < most && !HasFailure() && one(step, tries % 2 == 1)) {
    step += every();
    tries++;
  }
  EXPECT_LT(step, most);
  EXPECT_GT(step, 4) << "the tool did not even begin";
  EXPECT_TRUE(GetParam().wider() || stopped_alone_ > 0);
  RecordProperty("steps", step);
}

}  // namespace
}  // namespace reuseport
