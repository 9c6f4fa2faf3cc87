// SPDX-License-Identifier: Apache-2.0
// reuseportctl drain, stopped and killed at each system call it makes: see ptrace(2), seccomp(2).
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <optional>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;

/// The tool, run step by step. A step is the entry to, or the return from, a system call that
/// others can notice: a mode, BPF, a descriptor of a socket or of BPF that is opened or closed; up
/// to the signal it sends.
class Stepped {
 public:
  explicit Stepped(std::vector<std::string> args) {
    args.insert(args.begin(), tool());
    std::vector<char*> argv;
    argv.reserve(args.size() + 1);
    for (std::string& a : args) {
      argv.push_back(a.data());
    }
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, STDOUT_FILENO);
      ::dup2(null, STDERR_FILENO);
      ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
      trace_some();
      ::execv(argv[0], argv.data());
      ::_exit(126);
    }
    running_ = stopped_at_exec();
  }
  Stepped(const Stepped&) = delete;
  Stepped(Stepped&&) = delete;
  Stepped& operator=(const Stepped&) = delete;
  Stepped& operator=(Stepped&&) = delete;
  ~Stepped() { kill(); }

  /// Runs to step @p nth, from 0, and stops there. False: it has fewer.
  bool run_to(int nth) {
    for (int step = -1; step < nth;) {
      const auto call = next();
      if (!call || over_) {
        return false;
      }
      if (entering_) {
        number_ = call->seccomp.nr;
        counts_ = changes(*call);
        over_ = number_ == SYS_pidfd_send_signal && call->seccomp.args[1] != 0;
      }
      step += counts_ ? 1 : 0;
    }
    return true;
  }
  void kill() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  /// Where it is stopped, for messages.
  [[nodiscard]] std::string where() const {
    return (entering_ ? "before call " : "after call ") + std::to_string(number_);
  }

 private:
  using Call = __ptrace_syscall_info;

  /// The calls that can be steps: few of the thousands that a program makes while it starts.
  static constexpr std::array traced{SYS_setsockopt, SYS_bpf, SYS_pidfd_getfd,
                                     SYS_pidfd_send_signal, SYS_close};

  /// In the child: stops only at the traced calls.
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
  [[nodiscard]] bool stopped_at_exec() const {
    int status = 0;
    constexpr long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL;
    return ::waitpid(pid_, &status, 0) == pid_ && WIFSTOPPED(status) &&
           ::ptrace(PTRACE_SETOPTIONS, pid_, nullptr, options) == 0;
  }
  [[nodiscard]] bool changes(const Call& call) const {
    switch (call.seccomp.nr) {
      case SYS_setsockopt: return call.seccomp.args[2] == SO_REUSEPORT_LISTEN_OFF;
      case SYS_bpf:
        switch (call.seccomp.args[0]) {
          case BPF_LINK_CREATE:
          case BPF_LINK_UPDATE:
          case BPF_LINK_DETACH:
          case BPF_PROG_ATTACH:
          case BPF_PROG_DETACH:
          case BPF_MAP_UPDATE_ELEM:
          case BPF_MAP_DELETE_ELEM: return true;
          default: return false;  // loading disturbs nobody
        }
      case SYS_pidfd_getfd:
      case SYS_pidfd_send_signal: return true;
      case SYS_close: {
        std::error_code gone;
        const std::string what = std::filesystem::read_symlink(
                                     "/proc/" + std::to_string(pid_) + "/fd/" +
                                         std::to_string(static_cast<int>(call.seccomp.args[0])),
                                     gone)
                                     .string();
        return what.starts_with("socket:") || what.starts_with("anon_inode:bpf");
      }
      default: return false;
    }
  }
  /// The next entry to such a call, or the return from the current one; empty: it has ended.
  std::optional<Call> next() {
    constexpr int syscall_stop = SIGTRAP | 0x80;  // PTRACE_O_TRACESYSGOOD
    constexpr int seccomp_stop = SIGTRAP | (PTRACE_EVENT_SECCOMP << 8);
    const bool inside = entering_;
    int pass_on = 0;
    while (running_) {
      int status = 0;
      if (::ptrace(inside ? PTRACE_SYSCALL : PTRACE_CONT, pid_, nullptr, pass_on) != 0 ||
          ::waitpid(pid_, &status, 0) != pid_ || !WIFSTOPPED(status)) {
        running_ = false;
        pid_ = -1;
        break;
      }
      entering_ = status >> 8 == seccomp_stop;
      if (entering_ || WSTOPSIG(status) == syscall_stop) {
        Call call{};
        if (::ptrace(PTRACE_GET_SYSCALL_INFO, pid_, sizeof(call), &call) > 0) {
          return call;
        }
      }
      pass_on = entering_ || WSTOPSIG(status) == syscall_stop ? 0 : WSTOPSIG(status);
    }
    return std::nullopt;
  }

  pid_t pid_ = -1;
  bool running_ = false;
  bool counts_ = false;
  bool over_ = false;
  bool entering_ = false;
  std::uint64_t number_ = 0;
};

class StepsTest : public CtlTest {
 protected:
  /// Clients are always answered, by @p old or, if it is there, by @p fresh.
  void expect_served(const Running& old, const Running& fresh, const std::string& when) const {
    for (int i = 0; i < 6; i++) {
      int error = 0;
      const pid_t who = ask(&error);
      EXPECT_TRUE(who == old.pid() || (fresh.pid() > 0 && who == fresh.pid()))
          << when << ": answered by " << who << ", " << std::strerror(error);
    }
  }
};

TEST_F(StepsTest, a_drain_stopped_or_killed_at_any_call_leaves_listeners_that_serve) {
  constexpr int most = 1000;
  int steps = 0;
  for (; steps < most && !HasFailure(); steps++) {
    const Running old = server(2);
    Running fresh = server(2);
    Stepped drain({"drain", "--pid", pid_of(old), "--signal", "KILL"});
    if (!drain.run_to(steps)) {
      break;
    }
    const std::string at = "step " + std::to_string(steps) + ", " + drain.where();
    // alternately: what holds after a call holds before the next one
    if (steps % 2 == 0) {
      expect_served(old, fresh, at + ", stopped");
      fresh.kill(SIGKILL);
      expect_served(old, fresh, at + ", stopped, without the newcomer");
      drain.kill();
    } else {
      drain.kill();
      expect_served(old, fresh, at + ", killed");
      fresh.kill(SIGKILL);
    }
    expect_served(old, fresh, at + ", killed, without the newcomer");
  }
  EXPECT_LT(steps, most);
  EXPECT_GT(steps, 4) << "the tool did not even begin";
  RecordProperty("steps", steps);
}

}  // namespace
}  // namespace reuseport
