// SPDX-License-Identifier: Apache-2.0
// reuseportctl restart.
#include <sys/ioctl.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "option/option.hpp"
#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

class RestartTest : public CtlTest {
 protected:
  /// The command line of a supervisor over this program as a server. @p how may name a file to read
  /// the rest from.
  std::vector<std::string> supervisor(const std::vector<std::string>& options,
                                      const std::string& how, const std::string& first = "") {
    std::vector<std::string> args = within_;
    args.insert(args.end(), {tool(), "restart", "--json"});
    args.insert(args.end(), options.begin(), options.end());
    say(how);
    for (const std::string& a :
         std::vector<std::string>{"--", "/bin/sh", "-c",
                                  first + "CTL_TEST_SERVER=\"" + port() + " $(cat " + how_name() +
                                      ")\" exec " + self()}) {
      args.push_back(a);
    }
    return args;
  }
  Running supervise(const std::vector<std::string>& options, const std::string& how = "2",
                    const std::function<void()>& before = {}, std::vector<std::string> env = {},
                    const std::string& first = "") {
    env.push_back("NOTIFY_SOCKET=" + notify_);
    return Running(supervisor(options, how, first), before, env);
  }
  /// $NOTIFY_SOCKET for what is started from here on.
  void listen_as_manager() {
    notify_ = dir_.file("notify");
    sockaddr_un un{};
    un.sun_family = AF_UNIX;
    notify_.copy(un.sun_path, sizeof(un.sun_path) - 1);
    manager_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::bind(manager_.get(), reinterpret_cast<sockaddr*>(&un), sizeof(un)), 0);
  }
  bool hear(const std::string& what, std::chrono::milliseconds wait = 60s) {
    return test::eventually(
        [&] {
          std::array<char, 4096> buf{};
          const ssize_t n = ::recv(manager_.get(), buf.data(), buf.size(), 0);
          if (n > 0) {
            heard_.append(buf.data(), static_cast<std::size_t>(n)).append("\n");
          }
          return heard_.find(what) != std::string::npos;
        },
        wait);
  }
  [[nodiscard]] std::string how_name() const { return dir_.file("how"); }
  void say(const std::string& how) const { std::ofstream(how_name()) << how << std::flush; }
  static bool saw(Running& r, const std::string& event) {
    return test::eventually(
        [&] { return r.peek().out.find(R"("event":")" + event + '"') != std::string::npos; }, 60s);
  }

  std::vector<std::string> within_;  ///< a command that runs the supervisor
  const test::TempDir dir_;
  std::string notify_;
  Fd manager_;
  std::string heard_;
};

TEST_F(RestartTest, sighup_replaces_the_server_and_loses_nothing) {
  Running r = supervise({});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  Load load([&] { return ask() != 0; });
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restarted")) << r.peek().err;
  ASSERT_TRUE(saw(r, "old_ended")) << r.peek().err;
  const pid_t second = ask();
  EXPECT_NE(first, second);
  const auto [answered, failed] = load.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(::kill(first, 0), -1);
  r.signal(SIGTERM);
  EXPECT_EQ(r.result().code, 0);
  EXPECT_TRUE(listeners().empty());
}

TEST_F(RestartTest, a_newcomer_that_fails_changes_nothing) {
  Running r = supervise({});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  say("2 fails");
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  EXPECT_NE(r.peek().err.find("exited with 3"), std::string::npos) << r.peek().err;
  EXPECT_EQ(ask(), first);
  say("2");
  r.signal(SIGHUP);
  EXPECT_TRUE(saw(r, "restarted")) << "and the next one works";
}

TEST_F(RestartTest, a_newcomer_that_is_not_ready_in_time_is_ended) {
  Running r = supervise({"--ready", "test ! -e " + dir_.file("no"), "--ready-timeout", "5"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  std::ofstream(dir_.file("no")) << "no";
  Load load([&] { return ask() != 0; });
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  ::unlink(dir_.file("no").c_str());
  EXPECT_NE(r.peek().err.find("--ready says no"), std::string::npos) << r.peek().err;
  EXPECT_TRUE(test::eventually([&] { return listeners().size() == 2; })) << "the newcomer is ended";
  EXPECT_EQ(load.stop()[1], 0) << "it gave back what it had";
  EXPECT_EQ(ask(), first);
}

// Some servers take a second signal for an order to hurry.
TEST_F(RestartTest, a_newcomer_that_fails_with_connections_left_is_named_and_signalled_once) {
  Running r = supervise(
      {"--ready", "test ! -e " + dir_.file("no"), "--ready-timeout", "5", "--timeout", "1"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  std::ofstream(dir_.file("no")) << "no";
  say("2 idle terms=" + dir_.file("terms"));
  r.signal(SIGHUP);
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 4; })) << r.peek().err;
  const std::vector<Fd> clients = connected(test::spread_over);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  EXPECT_NE(r.peek().err.find("is ended undrained: "), std::string::npos) << r.peek().err;
  const auto signals = [&] {
    std::error_code none;
    const auto bytes = std::filesystem::file_size(dir_.file("terms"), none);
    return none ? 0 : bytes;
  };
  EXPECT_TRUE(test::eventually([&] { return signals() > 0; }));
  EXPECT_FALSE(test::eventually([&] { return signals() > 1; }, 300ms));
}

TEST_F(RestartTest, ends_with_the_status_of_its_server) {
  Running r = supervise({});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  ::kill(ask(), SIGKILL);
  EXPECT_EQ(r.result().code, 128 + SIGKILL);
}

TEST_F(RestartTest, dry_run_runs_nothing) {
  const auto ran = run({"restart", "--json", "--dry-run", "--", "sh", "-c", "echo ran >&2"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  EXPECT_TRUE(ran.doc()["restart"]["program"].get<std::string>().ends_with("/sh")) << ran.out;
  EXPECT_EQ(ran.doc()["restart"]["command"].size(), 3U);
  EXPECT_NE(run({"restart", "--dry-run", "--", "sh"}).out.find("drain by "), std::string::npos);
  expect_refused({{"restart", "--dry-run", "--", "no-such-program"}, 1, "no-such-program"});
  expect_refused({{"restart", "--dry-run", "--", "/etc/passwd"}, 4, "Permission denied"});
  EXPECT_EQ(ran.doc()["restart"]["method"], best());
  if (!test::expect_supported()) {
    expect_refused({{"restart", "--dry-run", "--method", "option", "--", "sh"}, 4, "BPF"},
                   forbid_bpf);
  }
}

TEST_F(RestartTest, a_server_that_never_listens_is_an_error) {
  const auto ran =
      run({"restart", "--ready-timeout", "300ms", "--stop-timeout", "1", "--", "sleep", "60"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("not ready in time"), std::string::npos) << ran.err;
}

/// A process that is there and no zombie.
bool runs(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(stat, text);
  const auto end = text.rfind(')');
  return end != std::string::npos && text.size() > end + 2 && text[end + 2] != 'Z';
}

/// The children of @p parent, zombies among them.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> pids;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::ifstream stat(entry.path() / "stat");
    std::string text;
    std::getline(stat, text);
    const auto end = text.rfind(')');
    if (end != std::string::npos && std::atoi(text.c_str() + end + 4) == parent) {
      pids.push_back(std::atoi(text.c_str()));
    }
  }
  return pids;
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(RestartTest, a_caller_that_ignores_sigchld) {
  Running r = supervise({}, "2", [] { ::signal(SIGCHLD, SIG_IGN); });
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  ::kill(ask(), SIGKILL);
  EXPECT_EQ(r.result(10s).code, 128 + SIGKILL);
}

TEST_F(RestartTest, nobody_reads_the_log) {
  Running r = supervise({"--method", "close"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  r.stop_reading();
  r.signal(SIGHUP);
  EXPECT_TRUE(test::eventually([&] {
    const pid_t now = ask();
    return now != 0 && now != first && !runs(first);
  }));
  EXPECT_TRUE(runs(r.pid()));
  r.signal(SIGTERM);
  EXPECT_EQ(r.result().code, 0);
}

TEST_F(RestartTest, a_lost_terminal_is_no_order_to_restart) {
  const Fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_EQ(::grantpt(master.get()), 0);
  ASSERT_EQ(::unlockpt(master.get()), 0);
  const std::string name = ::ptsname(master.get());
  Running r = supervise({"--method", "close"}, "2", [&] {
    ::setsid();
    const int tty = ::open(name.c_str(), O_RDWR);
    if (::ioctl(tty, TIOCSCTTY, 0) != 0) {
      ::_exit(125);
    }
  });
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  const_cast<Fd&>(master).reset();
  ASSERT_TRUE(test::eventually([&] {
    return r.peek().err.find("terminal") != std::string::npos || ask() != first;
  })) << r.peek().err;
  EXPECT_EQ(ask(), first);
  EXPECT_EQ(r.peek().out.find("restarted"), std::string::npos) << r.peek().out;
  r.signal(SIGHUP);
  EXPECT_TRUE(saw(r, "restarted")) << "one that a process sends still is";
}

// An interactive shell passes it on to its jobs.
TEST_F(RestartTest, nor_is_what_a_shell_makes_of_it) {
  const Fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_EQ(::grantpt(master.get()), 0);
  ASSERT_EQ(::unlockpt(master.get()), 0);
  const std::string name = ::ptsname(master.get());
  std::string line;
  for (const std::string& word : supervisor({"--method", "close"}, "2")) {
    line += "'" + word + "' ";
  }
  line += "2>&9 & echo \"supervisor $!.\"\n";
  Running r({"bash", "--norc", "--noediting", "-i"}, [&] {
    ::setsid();
    const int tty = ::open(name.c_str(), O_RDWR);
    if (::ioctl(tty, TIOCSCTTY, 0) != 0 || ::dup2(STDERR_FILENO, 9) < 0 ||
        ::dup2(tty, STDIN_FILENO) < 0 || ::dup2(tty, STDERR_FILENO) < 0) {
      ::_exit(125);
    }
  });
  ASSERT_EQ(::write(master.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const std::string out = r.peek().out;
  const pid_t supervisor = std::atoi(out.c_str() + out.find("supervisor ") + 11);
  ASSERT_GT(supervisor, 1) << out;
  const pid_t first = ask();
  const_cast<Fd&>(master).reset();
  EXPECT_TRUE(test::eventually([&] {
    return r.peek().err.find("the terminal is gone") != std::string::npos || ask() != first;
  })) << r.peek().err;
  EXPECT_EQ(ask(), first);
  EXPECT_EQ(r.peek().out.find("restarted"), std::string::npos) << r.peek().out;
  EXPECT_EQ(::kill(supervisor, SIGTERM), 0);
  EXPECT_TRUE(test::eventually([&] { return listeners().empty(); }));
}

TEST_F(RestartTest, sigquit_leaves_no_server_behind) {
  Running r = supervise({});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  r.signal(SIGQUIT);
  EXPECT_EQ(r.result().code, 0);
  EXPECT_FALSE(runs(first));
}

TEST_F(RestartTest, children_start_with_nothing_of_ours) {
  const std::string said = dir_.file("child");
  Running r = supervise(
      {}, "2",
      [] {
        ::signal(SIGPIPE, SIG_IGN);
        ::signal(SIGUSR2, SIG_IGN);
        sigset_t set;
        ::sigemptyset(&set);
        ::sigaddset(&set, SIGUSR1);
        ::sigprocmask(SIG_BLOCK, &set, nullptr);
      },
      {"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=x", "WATCHDOG_PID=1",
       "WATCHDOG_USEC=3000000"},
      "cat /proc/self/status >" + said + "; env >>" + said + "; ");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const std::string text = read(said);
  EXPECT_NE(text.find("SigBlk:\t0000000000000000\n"), std::string::npos) << text;
  // 32 and 33 are libc's own: where the caller ignores them, no call of libc's can change that.
  EXPECT_TRUE(text.find("SigIgn:\t0000000000000000\n") != std::string::npos ||
              text.find("SigIgn:\t0000000180000000\n") != std::string::npos)
      << text;
  for (const char* name : {"NOTIFY_SOCKET=", "LISTEN_", "WATCHDOG_"}) {
    EXPECT_EQ(text.find(std::string("\n") + name), std::string::npos) << text;
  }
}

TEST_F(RestartTest, a_subreaper_reaps_orphans) {
  Running r = supervise(
      {}, "2", [] { ::prctl(PR_SET_CHILD_SUBREAPER, 1); }, {},
      "(sleep 0.2 & echo $! >" + dir_.file("orphan") + "); ");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t orphan = std::atoi(read(dir_.file("orphan")).c_str());
  ASSERT_GT(orphan, 0);
  EXPECT_TRUE(test::eventually([&] { return ::kill(orphan, 0) != 0; }, 30s));
  EXPECT_EQ(children_of(r.pid()).size(), 1U) << "the server alone";
}

TEST_F(RestartTest, as_pid_1_it_reaps_orphans_and_keeps_its_word) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to make a PID namespace";
  }
  within_ = {"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"};
  Running r = supervise({}, "2", {}, {}, "(sleep 0.2 &); ");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  ASSERT_EQ(children_of(r.pid()).size(), 1U);
  const pid_t init = children_of(r.pid()).front();
  EXPECT_TRUE(test::eventually([&] { return children_of(init).size() == 1; }, 30s));
  const pid_t first = ask();
  Load load([&] { return ask() != 0; });
  ::kill(init, SIGHUP);
  ASSERT_TRUE(saw(r, "old_ended")) << r.peek().err;
  const auto [answered, failed] = load.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(failed, 0);
  EXPECT_NE(ask(), first);
  EXPECT_TRUE(test::eventually([&] { return children_of(init).size() == 1; }, 30s));
  ::kill(init, SIGTERM);
  EXPECT_EQ(r.result().code, 0) << r.peek().err;
}

TEST_F(RestartTest, stop_timeouts_run_side_by_side) {
  Running r = supervise({"--method", "close", "--stop-timeout", "5"}, "2 stubborn");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restarted")) << r.peek().err;
  const auto start = std::chrono::steady_clock::now();
  r.signal(SIGTERM);
  EXPECT_TRUE(test::eventually([&] { return children_of(r.pid()).size() < 2; }, 60s));
  const auto one = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(r.result().code, 0);
  const auto both = std::chrono::steady_clock::now() - start;
  EXPECT_LT(both, one * 3 / 2) << "one after the other takes twice the time";
}

// 0 means never; what is less than the smallest unit does not.
TEST_F(RestartTest, the_shortest_stop_timeout_is_no_endless_one) {
  Running r = supervise({"--stop-timeout", "0.4ms"}, "1 stubborn");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  r.signal(SIGTERM);
  EXPECT_EQ(r.result(20s).code, 0);
}

TEST_F(RestartTest, a_storm_of_sighups_is_one_or_a_few_restarts) {
  Running r = supervise({"--method", "close", "--ready", "sleep 0.2"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  std::ptrdiff_t most = 0;  // servers at once: an old one and a newcomer
  const auto too_many = [&](std::chrono::milliseconds time) {
    return test::eventually(
        [&] {
          std::error_code gone;
          const auto now = std::ranges::count_if(children_of(r.pid()), [&](pid_t pid) {
            return std::filesystem::read_symlink("/proc/" + std::to_string(pid) + "/exe", gone) ==
                   self();
          });
          most = std::max(most, now);
          return most > 2;
        },
        time);
  };
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 40; i++) {
    r.signal(SIGHUP);
    ASSERT_FALSE(too_many(25ms)) << r.peek().err;
  }
  const std::chrono::duration<double> stormed = std::chrono::steady_clock::now() - start;
  ASSERT_TRUE(saw(r, "restarted")) << r.peek().err;
  EXPECT_FALSE(too_many(3s)) << r.peek().err;
  EXPECT_EQ(most, 2);
  const std::string& out = r.peek().out;
  int restarts = 0;
  for (auto at = out.find("\"restarted\""); at != std::string::npos;
       at = out.find("\"restarted\"", at + 1)) {
    restarts++;
  }
  EXPECT_LE(restarts, 2 + stormed.count()) << out;
  EXPECT_NE(ask(), first);
}

TEST_F(RestartTest, a_late_ready_command_is_ended_with_its_process_group) {
  const std::string said = dir_.file("ready");
  Running r =
      supervise({"--ready-timeout", "15", "--ready",
                 "test ! -e " + said + ".hang || { sleep 300 & echo $! >" + said + "; wait; }"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  std::ofstream(said + ".hang") << "yes";
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  const pid_t sleeper = std::atoi(read(said).c_str());
  ASSERT_GT(sleeper, 0);
  EXPECT_TRUE(test::eventually([&] { return !runs(sleeper); }, 30s));
}

TEST_F(RestartTest, a_stranger_below_the_server_does_not_block_it) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  Running r = supervise({"--ready-timeout", "30"}, "2 stranger");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  say("2");
  r.signal(SIGHUP);
  EXPECT_TRUE(saw(r, "restarted")) << r.peek().err;
  EXPECT_NE(ask(), first);
}

TEST_F(RestartTest, connections_are_waited_for) {
  Running r = supervise({"--connections", "0", "--before-signal", "true"}, "1 keep");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  Fd client = test::open_client(address("127.0.0.1", port_));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  std::array<char, 16> text{};
  ASSERT_TRUE(test::eventually(
      [&] { return ::recv(client.get(), text.data(), text.size(), MSG_DONTWAIT) > 0; }));
  r.signal(SIGHUP);
  EXPECT_FALSE(
      test::eventually([&] { return ::recv(client.get(), text.data(), 1, MSG_DONTWAIT) == 0; }, 1s))
      << "cut";
  client.reset();
  EXPECT_TRUE(saw(r, "restarted")) << r.peek().err;
}

// At the deadline the old server ends in any case: not ON, with connections that nobody accepts.
TEST_F(RestartTest, a_before_signal_that_hangs) {
  Running r = supervise({"--before-signal", "sleep 300", "--timeout", "15"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  Load load([&] { return ask() != 0; });
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restarted")) << r.peek().err;
  ASSERT_TRUE(test::eventually([&] { return !runs(first); }));
  EXPECT_EQ(load.stop()[1], 0);
  EXPECT_NE(ask(), 0);
  EXPECT_EQ(r.peek().err.find("no signal sent"), std::string::npos) << r.peek().err;
  EXPECT_NE(r.peek().err.find("exited with 124 at the deadline"), std::string::npos)
      << r.peek().err;
}

/// A command for --ready or --before-signal that says that it runs, and ends when it may.
class Hook {
 public:
  [[nodiscard]] std::string command() const {
    return "touch " + runs_ + "; while test -e " + hold_ + "; do sleep 0.1; done";
  }
  /// The next one.
  void hold() const {
    ::unlink(runs_.c_str());
    std::ofstream(hold_) << "hold";
  }
  [[nodiscard]] bool held() const {
    return test::eventually([&] { return std::filesystem::exists(runs_); }, 60s);
  }
  void release() const { ::unlink(hold_.c_str()); }

 private:
  const test::TempDir dir_;
  const std::string runs_ = dir_.file("runs");
  const std::string hold_ = dir_.file("hold");
};

// The old server ends before its drain or during it, and is reaped.
TEST_F(RestartTest, a_recycled_number_is_neither_drained_nor_signalled_nor_waited_for) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to choose a process id";
  }
  for (const std::string when : {"--ready", "--before-signal"}) {
    SCOPED_TRACE(when);
    const Hook hook;
    Running r = supervise({when, hook.command(), "--stop-timeout", "1"});
    ASSERT_TRUE(saw(r, "started")) << r.peek().err;
    const pid_t number = ask();
    hook.hold();
    r.signal(SIGHUP);
    ASSERT_TRUE(hook.held()) << r.peek().err;
    ASSERT_EQ(::kill(number, SIGKILL), 0);
    ASSERT_TRUE(test::eventually([&] { return ::kill(number, 0) != 0; })) << "not reaped";
    Namesake namesake(number, port() + " 1");
    ASSERT_TRUE(test::eventually([&] { return listens(number); }));
    hook.release();
    ASSERT_TRUE(saw(r, "restarted")) << r.peek().err;
    EXPECT_TRUE(saw(r, "old_ended")) << r.peek().out;
    EXPECT_EQ(r.peek().out.find("old_killed"), std::string::npos) << r.peek().out;
    EXPECT_TRUE(test::eventually([&] { return ask() == number; })) << "it gets connections";
    r.signal(SIGTERM);
    EXPECT_EQ(r.result().code, 0);
    EXPECT_TRUE(namesake.lives()) << "the stranger got a signal";
    EXPECT_EQ(ask(), number);
  }
}

class StockRestartTest : public RestartTest {};

// By BPF two drains on one port would choose each other's old listeners. A stranger's run could go
// on for ever, and drains nothing.
TEST_F(StockRestartTest, another_run_on_the_port_is_waited_for_but_not_a_strangers) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  Running r = supervise({"--timeout", "2"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  const Fd elsewhere = test::open_listener(address("127.0.0.2", port_));
  const auto watch = [&](const std::function<void()>& before) {
    return Running({tool(), "watch", "--interval", "3600"}, [&elsewhere, before] {
      ::fcntl(elsewhere.get(), F_SETFD, 0);
      before();
    });
  };
  {
    Running ours = watch([] {});
    ASSERT_TRUE(test::eventually([&] { return !ours.peek().out.empty(); }));
    r.signal(SIGHUP);
    ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
    EXPECT_NE(r.peek().err.find("is already working"), std::string::npos) << r.peek().err;
    EXPECT_TRUE(test::eventually([&] { return ask() == first; }));
    EXPECT_TRUE(runs(first));
  }
  Running strangers = watch(test::ctl::become_nobody);
  ASSERT_TRUE(test::eventually([&] { return !strangers.peek().out.empty(); }));
  r.signal(SIGHUP);
  EXPECT_TRUE(saw(r, "restarted")) << r.peek().err;
}

TEST_F(RestartTest, an_admin_port_without_reuseport_is_left_alone_if_asked) {
  Running r = supervise({"--ready-timeout", "15"}, "2 admin");
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  EXPECT_NE(r.peek().err.find("has no SO_REUSEPORT"), std::string::npos) << r.peek().err;
  // The newcomer that goes was drained, and loses nothing; without the option it can.
  EXPECT_TRUE(ask() == first ||
              (!test::expect_supported() && test::eventually([&] { return ask() == first; })));
  r.signal(SIGTERM);
  EXPECT_EQ(r.result().code, 0);

  Running other = supervise({"--reuseport-only"}, "2 admin");
  ASSERT_TRUE(saw(other, "started")) << other.peek().err;
  const pid_t old = ask();
  other.signal(SIGHUP);
  ASSERT_TRUE(saw(other, "restarted")) << other.peek().err;
  EXPECT_NE(ask(), old);
}

TEST_F(RestartTest, the_watchdog_is_fed) {
  listen_as_manager();
  Running r = supervise({}, "2", {}, {"WATCHDOG_USEC=200000"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  for (int i = 0; i < 3; i++) {
    heard_ = "";
    EXPECT_TRUE(hear("WATCHDOG=1", 30s)) << heard_;
  }
}

TEST_F(RestartTest, tells_the_service_manager) {
  listen_as_manager();
  Running r = supervise({});
  EXPECT_TRUE(hear("READY=1")) << heard_;
  heard_.clear();
  r.signal(SIGHUP);
  EXPECT_TRUE(hear("RELOADING=1\nMONOTONIC_USEC=")) << heard_;
  EXPECT_TRUE(hear("READY=1")) << heard_;
  r.signal(SIGTERM);
  EXPECT_TRUE(hear("STOPPING=1")) << heard_;
  EXPECT_EQ(r.result().code, 0);
}

/// As in a systemd unit: a cgroup of its own, and a service manager.
class UnitTest : public RestartTest {
 protected:
  void SetUp() override {
    RestartTest::SetUp();
    const auto mount = option::cgroup2_mount();
    cgroup_ = mount ? *mount + "/reuseport-unit-" + std::to_string(::getpid()) : "";
    if (cgroup_.empty() || ::mkdir(cgroup_.c_str(), 0755) != 0) {
      cgroup_.clear();
      GTEST_SKIP() << "needs a cgroup of its own";
    }
    listen_as_manager();
  }
  void TearDown() override {
    if (!cgroup_.empty()) {
      std::ifstream procs(cgroup_ + "/cgroup.procs");
      for (pid_t pid = 0; procs >> pid;) {
        ::kill(pid, SIGKILL);
      }
      EXPECT_TRUE(test::eventually([&] { return ::rmdir(cgroup_.c_str()) == 0; }));
    }
    RestartTest::TearDown();
  }
  /// ExecStart or, with the main process of the unit, ExecReload.
  Running begin_in_unit(pid_t main = 0, const std::string& how = "2 stays",
                        const std::vector<std::string>& more = {}) {
    heard_.clear();
    std::vector<std::string> options = {"--unit", "--ready-timeout", "20"};
    options.insert(options.end(), more.begin(), more.end());
    std::vector<std::string> env;
    if (main != 0) {
      env.push_back("MAINPID=" + std::to_string(main));
    }
    return supervise(
        options, how, [&] { std::ofstream(cgroup_ + "/cgroup.procs") << ::getpid() << std::flush; },
        env);
  }
  Ran finish(Running r) {
    EXPECT_TRUE(test::eventually(
        [&] {
          hear("\n\n", 0ms);  // the manager reads on
          return r.ended();
        },
        60s));
    return r.peek();
  }
  Ran in_unit(pid_t main = 0, const std::string& how = "2 stays",
              const std::vector<std::string>& more = {}) {
    return finish(begin_in_unit(main, how, more));
  }
  /// How many the unit has.
  [[nodiscard]] auto processes() const {
    std::ifstream procs(cgroup_ + "/cgroup.procs");
    return std::distance(std::istream_iterator<pid_t>(procs), {});
  }
  static std::string main_process(pid_t pid) { return "MAINPID=" + std::to_string(pid) + "\n"; }

  std::string cgroup_;
};

TEST_F(UnitTest, starts_and_replaces_the_main_process_and_ends) {
  ASSERT_EQ(in_unit().code, 0);
  const pid_t first = ask();
  ASSERT_NE(first, 0);
  EXPECT_NE(heard_.find(main_process(first) + "READY=1\n"), std::string::npos) << heard_;

  Load load([&] { return ask() != 0; });
  const Ran reload = in_unit(first);
  EXPECT_EQ(load.stop()[1], 0);
  EXPECT_EQ(reload.code, 0) << reload.err;
  const pid_t second = ask();
  EXPECT_NE(first, second);
  EXPECT_NE(heard_.find(main_process(second)), std::string::npos) << heard_;
  EXPECT_TRUE(test::eventually([&] { return !runs(first); }));

  const Ran failed = in_unit(second, "2 fails");
  EXPECT_EQ(failed.code, 1) << failed.err;
  EXPECT_EQ(heard_.find("MAINPID="), std::string::npos) << heard_;
  EXPECT_NE(heard_.find("restart failed"), std::string::npos) << heard_;
  EXPECT_EQ(ask(), second);
}

TEST_F(UnitTest, a_reload_replaces_what_an_interrupted_one_has_left) {
  ASSERT_EQ(in_unit().code, 0);
  const pid_t left = ask();
  ASSERT_EQ(in_unit().code, 0);
  pid_t main = 0;
  ASSERT_TRUE(test::eventually([&] {
    main = ask();
    return main != left;
  }));
  const Ran reload = in_unit(main);
  EXPECT_EQ(reload.code, 0) << reload.err;
  EXPECT_TRUE(test::eventually([&] { return !runs(left) && !runs(main); }));
  EXPECT_NE(ask(), 0);
  EXPECT_EQ(listeners().size(), 2U);
}

TEST_F(UnitTest, a_service_manager_that_was_not_told_is_an_error) {
  manager_.reset();
  const Ran alone = in_unit();
  EXPECT_EQ(alone.code, 1) << alone.err;
  EXPECT_NE(alone.err.find("the service manager was not told"), std::string::npos) << alone.err;
  EXPECT_NE(ask(), 0);
}

TEST_F(UnitTest, a_reload_that_the_service_manager_is_not_told_of_changes_nothing) {
  ASSERT_EQ(in_unit().code, 0);
  const pid_t first = ask();
  ASSERT_NE(first, 0);
  manager_.reset();
  Load load([&] { return ask() != 0; });
  const Ran reload = in_unit(first);
  EXPECT_EQ(load.stop()[1], 0);
  EXPECT_EQ(reload.code, 1) << reload.err;
  EXPECT_NE(reload.err.find("the service manager was not told"), std::string::npos) << reload.err;
  EXPECT_EQ(ask(), first);
  EXPECT_EQ(listeners().size(), 2U);
}

// Its connections may have been reset, whatever the newcomer does.
TEST_F(UnitTest, an_old_server_that_crashes_meanwhile_was_not_drained) {
  ASSERT_EQ(in_unit().code, 0);
  const pid_t first = ask();
  ASSERT_NE(first, 0);
  const Ran reload =
      in_unit(first, "2 stays", {"--ready", "kill -KILL " + std::to_string(first) + " || true"});
  EXPECT_EQ(reload.code, 8) << reload.err;
  EXPECT_NE(reload.err.find("ended before it was drained"), std::string::npos) << reload.err;
  EXPECT_NE(ask(), first);
}

// The main process ends during its reload, is reaped, and somebody else gets its number.
TEST_F(UnitTest, a_recycled_number_is_neither_drained_nor_signalled_nor_waited_for) {
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // who reaps is this process, as systemd would be
  ASSERT_EQ(in_unit().code, 0);
  const pid_t number = ask();
  ASSERT_NE(number, 0);
  const Hook hook;
  hook.hold();
  Running r = begin_in_unit(number, "2 stays", {"--ready", hook.command(), "--stop-timeout", "1"});
  ASSERT_TRUE(hook.held()) << r.peek().err;
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
  ASSERT_EQ(::kill(number, SIGKILL), 0);
  ASSERT_EQ(::waitpid(number, nullptr, 0), number);
  Namesake namesake(number, port() + " 1");
  ASSERT_TRUE(test::eventually([&] { return listens(number); }));
  hook.release();
  const Ran reload = finish(std::move(r));
  EXPECT_EQ(reload.code, 8) << reload.err;
  EXPECT_NE(reload.err.find("ended before it was drained"), std::string::npos) << reload.err;
  EXPECT_TRUE(test::eventually([&] { return processes() == 1; })) << "somebody waits for it";
  EXPECT_TRUE(namesake.lives()) << "the stranger got a signal";
  EXPECT_TRUE(test::eventually([&] { return ask() == number; })) << "it gets connections";

  // Nor by a reload that is told its number.
  const std::size_t before = listeners().size();
  const Ran next = in_unit(number);
  EXPECT_EQ(next.code, 1) << next.err;
  EXPECT_NE(next.err.find("MAINPID " + std::to_string(number) + " is not in this unit"),
            std::string::npos)
      << next.err;
  EXPECT_TRUE(namesake.lives());
  EXPECT_EQ(listeners().size(), before);
}

// Something of the same unit that listens elsewhere is none of its servers.
TEST_F(UnitTest, an_orphan_that_listens_elsewhere_is_left_alone) {
  ASSERT_EQ(in_unit().code, 0);
  const pid_t first = ask();
  ASSERT_NE(first, 0);
  const Fd elsewhere = test::open_listener(address("127.0.0.2"));
  const pid_t between = ::fork();
  if (between == 0) {
    std::ofstream(cgroup_ + "/cgroup.procs") << ::getpid() << std::flush;
    if (::fork() == 0) {
      ::pause();
    }
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(between, nullptr, 0), between);
  const Ran reload = in_unit(first);
  EXPECT_EQ(reload.code, 0) << reload.err;
  EXPECT_NE(ask(), first);
  EXPECT_TRUE(test::eventually([&] { return processes() == 2; })) << "the server and the orphan";
}

TEST_F(RestartTest, unit_needs_a_service_manager) {
  expect_refused({{"restart", "--unit", "--", "sh"}, 2, "--unit"},
                 [] { ::unsetenv("NOTIFY_SOCKET"); });
}

}  // namespace
}  // namespace reuseport
