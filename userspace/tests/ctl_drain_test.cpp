// SPDX-License-Identifier: Apache-2.0
// reuseportctl drain.
#include <linux/filter.h>
#include <linux/sched.h>
#include <sys/syscall.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

TEST_F(CtlTest, drain_refuses_without_a_newcomer) {
  const Running old = server(2);
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 7, "without"});
  EXPECT_EQ(ask(), old.pid());
}

TEST_F(CtlTest, drain_dry_run_changes_nothing) {
  const Running old = server(1);
  const Running fresh = server(1);
  const auto before = modes();
  const auto ran = run({"drain", "--json", "--dry-run", "--pid", pid_of(old), "--signal", "KILL"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], test::expect_supported() ? "option" : "steer");
  EXPECT_EQ(ran.doc()["drain"]["dry_run"], true);
  EXPECT_EQ(modes(), before);
  EXPECT_FALSE(program_attached());
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

TEST_F(CtlTest, restarts_under_load_lose_nothing) {
  auto old = std::make_optional<Running>(server(2));
  Load load([&] { return ask() != 0; });
  for (int i = 0; i < 5; i++) {
    Running fresh = server(2);
    const auto ran = run({"drain", "--json", "--pid", pid_of(*old), "--signal", "TERM", "--wait"});
    ASSERT_EQ(ran.code, 0) << ran.err;
    const json d = ran.doc()["drain"];
    EXPECT_EQ(d["drained"], true);
    EXPECT_EQ(d["ended"], true);
    EXPECT_EQ(d["method"], test::expect_supported() ? "option" : "steer");
    EXPECT_FALSE(program_attached());
    ASSERT_TRUE(test::eventually([&] { return old->ended(); }));
    old.emplace(std::move(fresh));
  }
  const auto [answered, failed] = load.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(failed, 0);
}

TEST_F(CtlTest, drain_without_signal_leaves_the_old_one_off_or_waits_for_its_close) {
  Running old = server(1);
  const Running fresh = server(1);
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old)});
  if (test::expect_supported()) {
    EXPECT_EQ(drain.result().code, 0);
    EXPECT_NE(std::find(modes().begin(), modes().end(), "off"), modes().end());
    EXPECT_EQ(::kill(old.pid(), 0), 0);
    return;
  }
  ASSERT_TRUE(test::eventually(
      [&] { return drain.peek().err.find("waiting for the server") != std::string::npos; }));
  EXPECT_TRUE(program_attached());
  old.signal(SIGTERM);
  EXPECT_EQ(drain.result().code, 0);
  EXPECT_FALSE(program_attached());
}

TEST_F(CtlTest, deadline_with_a_half_open_request_and_a_server_that_never_accepts) {
  const Running old = server(1, "idle");
  std::vector<Fd> clients;
  for (int i = 0; i < 3; i++) {
    clients.push_back(test::open_client(address("127.0.0.1", port_)));
    ASSERT_EQ(test::connect_result(clients.back().get()), 0);
  }
  const Running fresh = server(1);
  auto ran =
      run({"drain", "--json", "--timeout", "300ms", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6) << ran.out;
  EXPECT_EQ(ran.doc()["error"]["detail"]["queued_left"], 3);
  EXPECT_EQ(ran.doc()["error"]["detail"]["signalled"], false);
  EXPECT_EQ(::kill(old.pid(), 0), 0) << "not signalled";
  EXPECT_FALSE(program_attached());
  if (test::expect_supported()) {
    auto now = modes();
    std::sort(now.begin(), now.end());
    EXPECT_EQ(now, (std::vector<std::string>{"on", "standby"}));
    ran = run({"drain", "--timeout", "300ms", "--on-deadline", "restore", "--pid", pid_of(old)});
    EXPECT_EQ(ran.code, 6);
    now = modes();
    std::sort(now.begin(), now.end());
    EXPECT_EQ(now, (std::vector<std::string>{"on", "standby"})) << "what it had before this drain";
  }
  ran = run({"drain", "--json", "--timeout", "300ms", "--on-deadline", "signal", "--pid",
             pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6);
  EXPECT_EQ(ran.doc()["error"]["detail"]["signalled"], true);
  EXPECT_EQ(ran.doc()["error"]["detail"]["queued_left"], 3);
}

TEST_F(CtlTest, a_half_open_request_is_waited_for) {
  const Running old = server(1, "defer");
  const Fd client = test::open_client(address("127.0.0.1", port_));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  const Running fresh = server(1, "defer");
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 500ms));
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["drained"], true);
  std::array<char, 16> text{};
  ASSERT_TRUE(test::eventually(
      [&] { return ::recv(client.get(), text.data(), text.size() - 1, MSG_DONTWAIT) > 0; }));
  EXPECT_EQ(std::atoi(text.data()), old.pid()) << "by the one that began the handshake";
}

TEST_F(CtlTest, killed_half_way_by_a_signal_it_restores) {
  const Running old = server(2, "defer");
  const Fd client = test::open_client(address("127.0.0.1", port_));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  const Running fresh = server(1, "defer");
  const auto before = modes();
  for (const int s : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
    ASSERT_TRUE(test::eventually([&] { return modes() != before || program_attached(); }))
        << drain.peek().err;
    drain.signal(s);
    const auto ran = drain.result();
    EXPECT_EQ(ran.code, 1) << ran.err;
    EXPECT_NE(ran.err.find("stopped by SIG"), std::string::npos) << ran.err;
    EXPECT_EQ(modes(), before);
    EXPECT_FALSE(program_attached());
    EXPECT_EQ(::kill(old.pid(), 0), 0);
  }
}

/// A server again that has the number @p pid, which must be free.
pid_t server_with_number(pid_t pid, const std::string& how) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<std::uint64_t>(&pid);
  args.set_tid_size = 1;
  const auto got = static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof(args)));
  if (got == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const std::string me = self();
    const std::string env = "CTL_TEST_SERVER=" + how;
    std::array<const char*, 2> argv = {me.c_str(), nullptr};
    std::array<const char*, 2> envp = {env.c_str(), nullptr};
    ::execve(me.c_str(), const_cast<char**>(argv.data()), const_cast<char**>(envp.data()));
    ::_exit(126);
  }
  return got;
}

/// Whether @p pid has a pidfd of process @p of.
bool holds_pidfd_of(pid_t pid, pid_t of) {
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fdinfo", gone)) {
    std::ifstream info(entry.path());
    for (std::string line; std::getline(info, line);) {
      if (line == "Pid:\t" + std::to_string(of)) {
        return true;
      }
    }
  }
  return false;
}

TEST_F(CtlTest, a_recycled_number_is_neither_drained_nor_signalled) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to choose a process id";
  }
  Running old = server(1);
  const pid_t number = old.pid();
  auto drain = start_tool(
      {"drain", "--await-newcomer", "--timeout", "10", "--pid", pid_of(old), "--signal", "KILL"});
  ASSERT_TRUE(test::eventually([&] { return holds_pidfd_of(drain.pid(), number); }));
  drain.signal(SIGSTOP);
  old.kill(SIGKILL);
  ASSERT_EQ(server_with_number(number, port() + " 1"), number) << std::strerror(errno);
  const Running fresh = server(1);
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
  drain.signal(SIGCONT);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.out << ran.err;
  EXPECT_NE(ran.err.find("process " + std::to_string(number) + " has ended"), std::string::npos)
      << ran.err;
  int status = 0;
  EXPECT_EQ(::waitpid(number, &status, WNOHANG), 0) << "the stranger got the signal";
  ::kill(number, SIGKILL);
  ::waitpid(number, &status, 0);
}

TEST_F(CtlTest, killed_by_sigkill_the_old_one_still_serves_when_the_newcomer_goes) {
  const Running old = server(1);
  Running fresh = server(1);
  // held back by a server that is stopped with a connection in its queue
  ::kill(old.pid(), SIGSTOP);
  std::vector<Fd> clients;
  for (int i = 0; i < 32; i++) {
    clients.push_back(test::open_client(address("127.0.0.1", port_)));
    ASSERT_EQ(test::connect_result(clients.back().get()), 0);
  }
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] { return modes() != before || program_attached(); }))
      << drain.peek().err;
  drain.kill(SIGKILL);
  ::kill(old.pid(), SIGCONT);
  fresh.kill(SIGKILL);
  int error = 0;
  EXPECT_EQ(ask(&error), old.pid()) << std::strerror(error);
  // and the next drain is not in the way of what was left behind
  const Running next = server(1);
  EXPECT_EQ(run({"drain", "--pid", pid_of(old), "--signal", "TERM", "--wait"}).code, 0);
}

TEST_F(CtlTest, when_the_newcomer_dies_the_old_one_goes_on) {
  const Running old = server(1, "defer");
  const Fd client = test::open_client(address("127.0.0.1", port_));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  Running fresh = server(1, "defer");
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] { return modes() != before || program_attached(); }));
  fresh.kill(SIGKILL);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.err;
  EXPECT_NE(ran.err.find("the newcomer is gone"), std::string::npos) << ran.err;
  EXPECT_EQ(::kill(old.pid(), 0), 0);
  EXPECT_FALSE(program_attached());
  if (test::expect_supported()) {
    EXPECT_EQ(modes(), (std::vector<std::string>{"on"}));
  }
}

TEST_F(CtlTest, an_old_one_that_ignores_the_signal_is_reported) {
  const Running old = server(1, "stubborn");
  const Running fresh = server(1);
  const auto ran = run(
      {"drain", "--json", "--timeout", "1", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  EXPECT_EQ(ran.code, 6) << ran.out << ran.err;
  EXPECT_EQ(::kill(old.pid(), 0), 0);
  EXPECT_FALSE(program_attached());
}

TEST_F(CtlTest, somebody_elses_program_is_left_alone_and_reported) {
  if (test::expect_supported()) {
    return;  // with the option nothing is attached
  }
  const Running old = server(1);
  const Running fresh = server(1);
  const Fd member = test::open_listener(address("127.0.0.1", port_));
  std::array<sock_filter, 1> code = {{{BPF_RET | BPF_K, 0, 0, 0}}};
  const sock_fprog prog{code.size(), code.data()};
  ASSERT_EQ(::setsockopt(member.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog, sizeof(prog)),
            0);
  expect_refused({{"drain", "--method", "steer", "--pid", pid_of(old)}, 1, "not replaced"});
  EXPECT_TRUE(program_attached());
  const auto ran = run({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], "close") << "auto falls back, and says so";
  EXPECT_EQ(ran.doc()["drain"]["drained"], false);
  EXPECT_NE(ran.doc()["drain"]["reason"].get<std::string>().find("not replaced"),
            std::string::npos);
}

TEST_F(CtlTest, method_option_on_a_kernel_without_it) {
  const Running old = server(1);
  const Running fresh = server(1);
  if (!test::expect_supported()) {
    expect_refused({{"drain", "--method", "option", "--pid", pid_of(old)}, 3, "lacks"});
  }
  expect_refused({{"drain", "--method", "close", "--pid", pid_of(old)}, 2, "--signal"});
  const auto ran =
      run({"drain", "--json", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(ran.doc()["drain"]["drained"], false) << "close is never called a drain";
}

TEST_F(CtlTest, udp_is_drained_too) {
  const Running old = server(1, "udp idle");
  const Running fresh = server(1, "udp idle");
  const auto ran = run({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), 1U);
  EXPECT_EQ(listeners().size(), 1U);
}

}  // namespace
}  // namespace reuseport
