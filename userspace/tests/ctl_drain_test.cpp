// SPDX-License-Identifier: Apache-2.0
// reuseportctl drain.
#include <linux/filter.h>
#include <sys/resource.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <thread>

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
  EXPECT_EQ(ran.doc()["drain"]["method"], best());
  EXPECT_EQ(ran.doc()["drain"]["dry_run"], true);
  EXPECT_EQ(modes(), before);
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
    EXPECT_EQ(d["method"], best());
    ASSERT_TRUE(test::eventually([&] { return old->ended(); }));
    old.emplace(std::move(fresh));
  }
  const auto [answered, failed] = load.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(failed, 0);
}

TEST_F(CtlTest, drain_without_signal_leaves_the_old_one_standby_or_waits_for_its_close) {
  Running old = server(1);
  const Running fresh = server(1);
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old)});
  if (test::expect_supported()) {
    EXPECT_EQ(drain.result().code, 0);
    const auto now = modes();
    EXPECT_EQ(std::count(now.begin(), now.end(), "standby"), 1);
    EXPECT_EQ(::kill(old.pid(), 0), 0);
    return;
  }
  ASSERT_TRUE(test::eventually(
      [&] { return drain.peek().err.find("waiting for the server") != std::string::npos; }));
  old.signal(SIGTERM);
  EXPECT_EQ(drain.result().code, 0);
}

TEST_F(CtlTest, deadline_with_a_half_open_request_and_a_server_that_never_accepts) {
  const Running old = server(1, "idle");
  const std::vector<Fd> clients = connected(3);
  const Running fresh = server(1);
  auto ran =
      run({"drain", "--json", "--timeout", "300ms", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6) << ran.out;
  EXPECT_EQ(ran.doc()["error"]["detail"]["queued_left"], 3);
  EXPECT_EQ(ran.doc()["error"]["detail"]["signalled"], false);
  EXPECT_EQ(::kill(old.pid(), 0), 0) << "not signalled";
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

TEST_F(CtlTest, with_timeout_0_it_looks_once_and_waits_for_nothing) {
  const Running fresh = server(1);
  {
    const Running old = server(1, "idle");
    const std::vector<Fd> clients = connected(test::spread_over);
    const auto ran =
        run({"drain", "--json", "--timeout", "0", "--pid", pid_of(old), "--signal", "TERM"});
    EXPECT_EQ(ran.code, 6) << ran.err;
    EXPECT_GT(ran.doc()["error"]["detail"]["queued_left"], 0) << ran.out;
    EXPECT_EQ(ran.doc()["error"]["detail"]["signalled"], false);
    EXPECT_LT(ran.doc()["error"]["detail"]["took_ms"], 15'000) << "as without --timeout";
    expect_refused({{"drain", "--timeout", "0", "--ready", "false", "--pid", pid_of(old)},
                    6,
                    "nothing was changed"});
    EXPECT_EQ(::kill(old.pid(), 0), 0);
  }
  if (test::expect_supported()) {
    const Running old = server(1);
    EXPECT_EQ(run({"drain", "--pid", pid_of(old)}).code, 0);
    const auto ran = run({"drain", "--timeout", "0", "--pid", pid_of(old), "--signal", "TERM"});
    EXPECT_EQ(ran.code, 0) << "drained before: " << ran.err;
  }
}

TEST_F(CtlTest, a_half_open_request_is_waited_for) {
  const Running old = server(1, "defer");
  const Fd client = connected();
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
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  for (const int s : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
    ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
    drain.signal(s);
    const auto ran = drain.result();
    EXPECT_EQ(ran.code, 1) << ran.err;
    EXPECT_NE(ran.err.find("stopped by SIG"), std::string::npos) << ran.err;
    EXPECT_EQ(modes(), before);
    EXPECT_EQ(::kill(old.pid(), 0), 0);
  }
}

TEST_F(CtlTest, a_listener_that_cannot_be_set_back_is_reported) {
  if (!test::expect_supported()) {
    return;  // by BPF the mode of each ends with the drain
  }
  const Running old = server(1, "defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old)});
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
  const auto process = Process::open(old.pid());
  ASSERT_TRUE(process);
  const auto sockets = process->sockets();
  ASSERT_TRUE(sockets && !sockets->empty());
  for (const SocketRef& ref : *sockets) {
    const int no = 0;  // the option needs it
    const auto copy = process->duplicate(ref.fd, ref.inode);
    ASSERT_TRUE(copy);
    ASSERT_EQ(::setsockopt(copy->get(), SOL_SOCKET, SO_REUSEPORT, &no, sizeof(no)), 0);
  }
  drain.signal(SIGTERM);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.out;
  const auto hint = ran.doc()["error"]["hint"].get<std::string>();
  EXPECT_NE(hint.find("1 of 1 listeners may still be STANDBY"), std::string::npos) << hint;
}

TEST_F(CtlTest, stopped_after_the_signal_it_says_so) {
  const Running old = server(1);
  const Running fresh = server(1);
  ::kill(old.pid(), SIGSTOP);  // so the signal stays pending
  auto drain = start_tool({"drain", "--json", "--wait", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] {
    std::ifstream status("/proc/" + pid_of(old) + "/status");
    const std::string text(std::istreambuf_iterator<char>(status), {});
    return text.find("ShdPnd:\t0000000000004000") != std::string::npos;
  })) << drain.peek().err;
  drain.signal(SIGINT);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.out;
  const json error = ran.doc()["error"];
  EXPECT_EQ(error["hint"], "SIGTERM was sent before");
  EXPECT_EQ(error["detail"]["signalled"], true);
  EXPECT_EQ(error["detail"]["drained"], true);
  EXPECT_EQ(error["detail"]["ended"], false);
}

TEST_F(CtlTest, a_recycled_number_is_neither_drained_nor_signalled) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to choose a process id";
  }
  Running old = server(1);
  const pid_t number = old.pid();
  auto drain = start_tool(
      {"drain", "--await-newcomer", "--timeout", "10", "--pid", pid_of(old), "--signal", "KILL"});
  ASSERT_TRUE(
      test::eventually([&] { return fdinfo_has(drain.pid(), "Pid:\t" + std::to_string(number)); }));
  drain.signal(SIGSTOP);
  old.kill(SIGKILL);
  Namesake namesake(number, port() + " 1");
  // not by their number: the stopped drain may hold a copy of the old one's listener
  ASSERT_TRUE(test::eventually([&] { return listens(number); }));
  const Running fresh = server(1);
  drain.signal(SIGCONT);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.out << ran.err;
  EXPECT_NE(ran.err.find("process " + std::to_string(number) + " has ended"), std::string::npos)
      << ran.err;
  EXPECT_TRUE(namesake.lives()) << "the stranger got the signal";
}

// A limit: the kernel does not tell how many hold a socket, and /proc shows those of its own
// namespace.
TEST_F(CtlTest, a_holder_outside_of_the_pid_namespace_is_not_seen) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to make a PID namespace";
  }
  const Fd shared = test::open_listener(address("127.0.0.1", port_));
  const Running fresh = server(1);
  constexpr int known = 9;
  const auto inherit = [&] { ::dup2(shared.get(), known); };
  const Running beside({"sleep", "60"}, inherit);
  const auto refused = run({"drain", "--dry-run", "--pid", pid_of(beside), "--signal", "TERM"});
  EXPECT_EQ(refused.code, 5) << refused.err;
  EXPECT_NE(refused.err.find("shared with process"), std::string::npos) << refused.err;

  const auto within = [&](const std::string& script) {
    return Running({"unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                    "sleep 60 & exec 9>&-; " + script},
                   inherit)
        .result();
  };
  const auto drained = within(tool() + " drain --dry-run --pid $! --signal TERM");
  EXPECT_EQ(drained.code, 0) << drained.err;
  EXPECT_NE(drained.out.find("would drain by"), std::string::npos) << drained.out;
  const auto listed = within(tool() + " list --port " + port());
  EXPECT_NE(listed.out.find("sleep["), std::string::npos) << listed.out;
  EXPECT_NE(listed.out.find(" -\n"), std::string::npos) << "the newcomer's\n" << listed.out;
  if (test::expect_supported()) {
    const auto off = within(tool() + " off --port " + port() + " --allow-last --allow-shared");
    EXPECT_EQ(off.code, 1) << off.err;
    EXPECT_NE(off.err.find("outside of this pid namespace"), std::string::npos) << off.err;
    EXPECT_EQ(modes(), (std::vector<std::string>{"on", "on"}));
  }
}

TEST_F(CtlTest, killed_by_sigkill_the_old_one_still_serves_when_the_newcomer_goes) {
  const Running old = server(1);
  Running fresh = server(1);
  // held back by a server that is stopped with a connection in its queue
  ::kill(old.pid(), SIGSTOP);
  const std::vector<Fd> clients = connected(32);
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
  drain.kill(SIGKILL);
  ::kill(old.pid(), SIGCONT);
  fresh.kill(SIGKILL);
  int error = 0;
  EXPECT_EQ(ask(&error), old.pid()) << std::strerror(error);
  // and the next drain is not in the way of what was left behind
  const Running next = server(1);
  EXPECT_EQ(run({"drain", "--pid", pid_of(old), "--signal", "TERM", "--wait"}).code, 0);
}

/// By BPF nothing shows from outside whether the drain had switched already.
void expect_newcomer_gone(const Ran& ran) {
  EXPECT_TRUE(ran.code == 1 || (ran.code == 7 && !test::expect_supported())) << ran.err;
  EXPECT_TRUE(ran.code == 7 || ran.err.find("the newcomer is gone") != std::string::npos)
      << ran.err;
}

TEST_F(CtlTest, when_the_newcomer_dies_the_old_one_goes_on) {
  const Running old = server(1, "defer");
  const Fd client = connected();
  Running fresh = server(1, "defer");
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); }));
  fresh.kill(SIGKILL);
  expect_newcomer_gone(drain.result());
  EXPECT_EQ(::kill(old.pid(), 0), 0);
  if (test::expect_supported()) {
    EXPECT_EQ(modes(), (std::vector<std::string>{"on"}));
  }
}

// Beside it the old one is OFF, and no mode shows that the newcomer is gone.
TEST_F(CtlTest, when_a_newcomer_of_a_wider_address_dies_the_old_one_goes_on) {
  for (const std::string how : {"defer", "keep"}) {
    const Running old = server(1, how);
    const Fd client = connected();
    std::array<char, 16> text{};
    ASSERT_TRUE(how == "defer" || test::eventually([&] {
                  return ::recv(client.get(), text.data(), text.size(), MSG_DONTWAIT) > 0;
                }));
    Running fresh = server(1, "ip=::");
    const auto before = modes();
    auto drain = start_tool({"drain", "--pid", pid_of(old), "--connections", "0", "--timeout",
                             "60s", "--signal", "TERM"});
    ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
    fresh.kill(SIGKILL);
    expect_newcomer_gone(drain.result());
    EXPECT_EQ(::kill(old.pid(), 0), 0);
    int error = 0;
    EXPECT_TRUE(how == "defer" || ask(&error) == old.pid()) << std::strerror(error);
  }
}

// Nobody notices when that newcomer dies too: see reuseportctl(8) for what helps.
TEST_F(OptionCtlTest, off_beside_a_wider_newcomer_does_not_take_over_until_somebody_says_so) {
  for (const int s : {SIGKILL, SIGSTOP}) {
    const Running old = server(1, "keep");
    const Fd client = connected();
    EXPECT_EQ(answer_of(client), old.pid());
    Running fresh = server(1, "ip=::");
    auto drain = start_tool({"drain", "--pid", pid_of(old), "--connections", "0", "--timeout",
                             "60s", "--signal", "TERM"});
    ASSERT_TRUE(test::eventually([&] { return ask() == fresh.pid(); })) << drain.peek().err;
    if (s == SIGKILL) {
      drain.kill(s);
    } else {
      drain.signal(s);
      ASSERT_EQ(::waitpid(drain.pid(), nullptr, WUNTRACED), drain.pid());
    }
    EXPECT_EQ(ask(), fresh.pid());
    fresh.kill(SIGKILL);
    int error = 0;
    EXPECT_EQ(ask(&error), 0);
    EXPECT_EQ(error, ECONNREFUSED);
    if (s == SIGKILL) {
      EXPECT_EQ(run({"on", "--pid", pid_of(old)}).code, 0);
    } else {
      drain.signal(SIGCONT);
      expect_newcomer_gone(drain.result());
    }
    EXPECT_EQ(ask(&error), old.pid()) << std::strerror(error);
  }
}

TEST_F(CtlTest, nohup_is_heeded) {
  const Running old = server(1, "defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"},
                          [] { ::signal(SIGHUP, SIG_IGN); });
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
  drain.signal(SIGHUP);
  EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 300ms)) << drain.peek().err;
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  EXPECT_EQ(drain.result().code, 0) << drain.peek().err;
}

TEST_F(StockCtl, a_shortage_is_waited_for_and_no_reason_to_close) {
  const Running old = server(1);
  const Running fresh = server(1);
  for (const int errnum : {ENOMEM, ENFILE}) {
    const auto ran = run({"drain", "--timeout", "300ms", "--pid", pid_of(old), "--signal", "TERM"},
                         [errnum] { refuse_bpf(errnum); });
    EXPECT_EQ(ran.code, 1) << ran.err;
    EXPECT_NE(ran.err.find(errnum == ENOMEM ? "Cannot allocate memory" : "Too many open files"),
              std::string::npos)
        << ran.err;
    EXPECT_EQ(::kill(old.pid(), 0), 0);
    expect_refused({{"drain", "--dry-run", "--pid", pid_of(old), "--signal", "TERM"}, 1, "BPF"},
                   [errnum] { refuse_bpf(errnum); });
  }
}

TEST_F(OptionCtlTest, a_table_that_is_not_ready_is_waited_for_and_no_reason_to_close) {
  for (const bool for_good : {false, true}) {
    SCOPED_TRACE(for_good);
    const Running old = server(1);
    const Running fresh = server(1);
    const auto before = modes();
    auto drain = start_tool({"drain", "--json", "--timeout", for_good ? "500ms" : "20s", "--pid",
                             pid_of(old), "--signal", "TERM"},
                            NotReady::begin);
    const NotReady table(drain.pid(), port_, for_good ? INT_MAX : 2);
    const auto ran = drain.result();
    EXPECT_GT(table.seen(), 2) << ran.err;
    EXPECT_EQ(ran.code, for_good ? 1 : 0) << ran.err;
    if (for_good) {
      EXPECT_NE(ran.err.find("serves as before"), std::string::npos) << ran.err;
      EXPECT_EQ(modes(), before);
      EXPECT_EQ(::kill(old.pid(), 0), 0);
    } else {
      EXPECT_EQ(ran.doc()["drain"]["method"], "option") << ran.out;
      EXPECT_EQ(ran.doc()["drain"]["drained"], true) << ran.out;
    }
  }
}

TEST_F(CtlTest, datagrams_do_not_go_on_to_a_wider_newcomer_by_bpf) {
  const Running old = server(1, "udp");
  const Running fresh = server(1, "udp ip=0.0.0.0");
  const std::vector<std::string> drain = {"drain", "--pid", pid_of(old), "--signal", "TERM"};
  if (test::expect_supported()) {
    EXPECT_EQ(run(drain).code, 0);
    return;
  }
  expect_refused({drain, 7, "wider address"});
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

TEST_F(CtlTest, an_old_one_that_ignores_the_signal_is_reported) {
  const Running old = server(1, "stubborn");
  const Running fresh = server(1);
  const auto ran = run(
      {"drain", "--json", "--timeout", "1", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  EXPECT_EQ(ran.code, 6) << ran.out << ran.err;
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

TEST_F(CtlTest, somebody_elses_program_is_left_alone_and_reported) {
  if (test::expect_supported()) {
    return;  // with the option in the kernel nothing is in its way
  }
  const Running old = server(1);
  const Running fresh = server(1);
  const Fd member = test::open_listener(address("127.0.0.1", port_));
  std::array<sock_filter, 1> code = {{{BPF_RET | BPF_K, 0, 0, 0}}};
  const sock_fprog prog{code.size(), code.data()};
  ASSERT_EQ(::setsockopt(member.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog, sizeof(prog)),
            0);
  expect_refused({{"drain", "--method", "option", "--pid", pid_of(old)}, 1, "program"});
  expect_refused({{"drain", "--require", "--pid", pid_of(old), "--signal", "TERM"}, 1, "program"});
  EXPECT_TRUE(program_attached());
  const auto ran = run({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 8) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], "close") << "auto falls back, and says so";
  EXPECT_EQ(ran.doc()["drain"]["drained"], false);
  EXPECT_NE(ran.doc()["drain"]["reason"].get<std::string>().find("program"), std::string::npos);
}

TEST_F(CtlTest, what_cannot_drain_is_never_exit_0) {
  const Running old = server(1);
  const Running fresh = server(1);
  if (!test::expect_supported()) {
    expect_refused({{"drain", "--method", "option", "--pid", pid_of(old)}, 4, "BPF"}, forbid_bpf);
    expect_refused({{"drain", "--require", "--pid", pid_of(old), "--signal", "TERM"}, 4, "BPF"},
                   forbid_bpf);
    EXPECT_EQ(::kill(old.pid(), 0), 0);
  }
  expect_refused({{"drain", "--method", "close", "--pid", pid_of(old)}, 2, "--signal"});
  const auto ran =
      run({"drain", "--json", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 8) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["drained"], false) << "close is never called a drain";
}

TEST_F(CtlTest, a_server_that_closes_with_connections_left_was_not_drained) {
  const Running old = server(1, "idle");
  const std::vector<Fd> clients = connected(6);
  const Running fresh = server(1);
  const auto before = modes();
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old)});
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
  EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 500ms)) << drain.peek().err;
  old.signal(SIGTERM);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.out << ran.err;
  // or, on a slow machine that has not begun by then, that there is no such process any more
  if (ran.err.find("has ended") == std::string::npos) {
    EXPECT_NE(ran.err.find("closed its listeners with 0 half-open requests and 6 queued left"),
              std::string::npos)
        << ran.err;
    EXPECT_EQ(ran.doc()["error"]["detail"]["drained"], false) << ran.out;
  }
}

TEST_F(CtlTest, a_drain_whose_output_nobody_reads_goes_on) {
  Running old = server(1, "defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  ASSERT_TRUE(test::eventually([&] { return at_work(drain, before); })) << drain.peek().err;
  drain.stop_reading();
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  EXPECT_TRUE(test::eventually([&] { return old.ended(); }, 60s));
  EXPECT_EQ(drain.result().code, 1) << "it could not be said";
}

TEST_F(CtlTest, a_log_that_takes_nothing_more_does_not_stop_it) {
  const Running old = server(1);
  const Running fresh = server(1);
  auto drain = start_tool({"drain", "--pid", pid_of(old)}, [] {
    int ends[2] = {-1, -1};
    std::array<char, 4096> some{};
    if (::pipe2(ends, O_NONBLOCK) != 0) {
      ::_exit(125);
    }
    while (::write(ends[1], some.data(), some.size()) > 0) {
    }
    ::fcntl(ends[1], F_SETFL, 0);
    ::dup2(ends[1], STDERR_FILENO);
  });
  // by BPF it says what it waits for, and then does so
  if (!test::eventually([&] { return drain.ended(); }, 2s)) {
    drain.signal(SIGTERM);
  }
  EXPECT_TRUE(test::eventually([&] { return drain.ended(); }, 20s));
}

// Of UDP, for of TCP the kernel lets another user in on other devices alone.
TEST_F(CtlTest, another_users_socket_is_no_newcomer) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const Running old = server(1, "udp idle reuseaddr");
  const Running stranger({self()}, become_nobody,
                         {"CTL_TEST_SERVER=" + port() + " 1 udp idle reuseaddr"});
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 7, "belongs to uid 65534"});
  Running own({self()}, {}, {"CTL_TEST_SERVER=" + port() + " 1 udp idle reuseaddr plain"});
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 3; }));
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 7, "would be left without"});
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

TEST_F(StockCtl, in_a_time_namespace) {
  const Running old = server(1);
  const Running fresh = server(1);
  const auto ran = Running({"unshare", "--time", "--fork", "--monotonic", "1000000", "--boottime",
                            "1000000", tool(), "drain", "--timeout", "30", "--pid", pid_of(old),
                            "--signal", "TERM", "--wait"})
                       .result(20s);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ask(), fresh.pid());
}

TEST_F(CtlTest, a_server_whose_first_thread_has_ended_is_not_closed) {
  const Running old = server(1, "threads defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 500ms)) << drain.peek().err;
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  const auto ran = drain.result();
  if (ran.err.find("needs Linux 6.9") != std::string::npos) {
    EXPECT_NE(ran.code, 0);
    return;
  }
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["drained"], true);
  EXPECT_EQ(ran.doc()["drain"]["listeners"][0]["closed_by_server"], false);
  std::array<char, 16> text{};
  ASSERT_TRUE(test::eventually(
      [&] { return ::recv(client.get(), text.data(), text.size() - 1, MSG_DONTWAIT) > 0; }));
  EXPECT_EQ(std::atoi(text.data()), old.pid());
}

TEST_F(CtlTest, a_server_that_forks_is_not_shared_with_its_children) {
  const Running old = server(1, "forks");
  const Running fresh = server(1);
  for (int i = 0; i < 25; i++) {
    const auto ran =
        run({"drain", "--dry-run", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
    ASSERT_EQ(ran.code, 0) << "turn " << i << ": " << ran.err;
  }
}

TEST_F(CtlTest, a_strangers_listener_below_the_server_is_left_alone) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const Running old = server(1, "stranger");
  ASSERT_TRUE(test::eventually([&] {
    auto diag = SockDiag::open();
    return diag->listeners(Protocol::tcp, static_cast<std::uint16_t>(port_ + 1))->size() == 1;
  }));
  const Running fresh = server(1);
  const auto ran =
      run({"drain", "--dry-run", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("skipped: "), std::string::npos) << ran.err;
}

TEST_F(CtlTest, what_must_not_be_looked_into_counts_as_shared) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const auto nobody = [&] {
    Running started({self()}, become_nobody, {"CTL_TEST_SERVER=" + port() + " 1"});
    return started;
  };
  const Running old = nobody();
  const Running fresh = nobody();
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
  const std::vector<std::string> args = {"drain", "--dry-run", "--method", "close",
                                         "--pid", pid_of(old), "--signal", "TERM"};
  expect_refused({args, 5, "run as root"}, become_nobody);
  auto allowed = args;
  allowed.emplace_back("--allow-shared");
  EXPECT_EQ(run(allowed, become_nobody).code, 0);
  const auto hidden = [] {
    if (!test::hide_processes()) {
      ::_exit(125);
    }
    become_nobody();
  };
  expect_refused({args, 5, "may not see"}, hidden);
  EXPECT_EQ(run(allowed, hidden).code, 0);
}

TEST_F(CtlTest, a_second_drain_says_who_is_at_it) {
  const Running old = server(1, "defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  auto first = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  ASSERT_TRUE(test::eventually([&] { return at_work(first, before); })) << first.peek().err;
  const auto second =
      run({"drain", "--timeout", "300ms", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(second.code, 6) << second.err;
  EXPECT_NE(second.err.find("process " + pid_of(first) + " (reuseportctl)"), std::string::npos)
      << second.err;
  EXPECT_EQ(second.err.find("allow-shared"), std::string::npos) << second.err;
  EXPECT_FALSE(first.ended());
  // and it is waited for
  auto third = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_FALSE(test::eventually([&] { return third.ended(); }, 300ms));
  first.signal(SIGTERM);
  EXPECT_EQ(first.result().code, 1);
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  EXPECT_EQ(third.result().code, 0) << third.peek().err;
}

TEST_F(CtlTest, a_drain_by_another_build_is_known_as_one) {
  const Running old = server(1, "defer");
  const Fd client = connected();
  const Running fresh = server(1, "defer");
  const auto before = modes();
  const std::string other = std::filesystem::temp_directory_path() / ("other" + pid_of(old));
  std::filesystem::create_directory(other);
  std::filesystem::copy(tool(), other + "/reuseportctl");
  // by the shell, so that the process is called as the file is
  const Running first(
      {"/bin/sh", "-c", "exec \"$0\" drain --pid $1", other + "/reuseportctl", pid_of(old)});
  EXPECT_TRUE(test::eventually([&] { return at_work(first, before); }));
  const auto second =
      run({"drain", "--timeout", "300ms", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(second.code, 6) << second.err;
  EXPECT_NE(second.err.find("process " + pid_of(first) + " (reuseportctl)"), std::string::npos)
      << second.err;
  std::filesystem::remove_all(other);
}

// Its effective uid is root's, as that of any setuid program.
TEST_F(CtlTest, a_stranger_with_the_tools_name_is_no_drain) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const std::string dir = std::filesystem::temp_directory_path() / ("stranger" + port());
  const std::string path = dir + "/reuseportctl";
  std::filesystem::create_directory(dir);
  // for nobody alone, and never longer than the test
  const std::shared_ptr<void> removed(nullptr, [&](void*) { std::filesystem::remove_all(dir); });
  ASSERT_EQ(::chown(dir.c_str(), 0, 65534), 0);
  ASSERT_EQ(::chmod(dir.c_str(), 0710), 0);
  std::filesystem::copy(self(), path);
  ASSERT_EQ(::chmod(path.c_str(), 04755), 0);
  const Running old = server(1);
  const Running fresh = server(1);
  const Running stranger({"/bin/sh", "-c", "exec \"$0\"", path}, become_nobody,
                         {"CTL_TEST_SERVER=" + port() + " 1 ip=127.0.0.2"});
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 3; }));
  const auto ran = run({"drain", "--timeout", "2", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 0) << ran.err;
}

TEST_F(CtlTest, a_newcomer_of_a_wider_address_is_judged_as_the_kernel_routes) {
  const auto dry = [&](const Running& old) {
    return run(
        {"drain", "--dry-run", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
  };
  const Running old = server(1);
  {
    const Running any = server(1, "ip=0.0.0.0");
    EXPECT_EQ(dry(old).code, 0) << dry(old).err;
    EXPECT_EQ(dry(any).code, 7) << "127.0.0.1 is only a part of 0.0.0.0";
    EXPECT_NE(dry(any).err.find("only a part"), std::string::npos) << dry(any).err;
  }
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 1; }));
  {
    const Running dual = server(1, "ip=::");
    EXPECT_EQ(dry(old).code, 0) << dry(old).err;
    EXPECT_EQ(dry(dual).code, 7);
  }
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 1; }));
  const Running six = server(1, "ip=:: v6only");
  const auto ran = dry(old);
  EXPECT_EQ(ran.code, 7) << ran.err;
  EXPECT_NE(ran.err.find("IPV6_V6ONLY"), std::string::npos) << ran.err;
}

TEST_F(CtlTest, a_newcomer_without_the_device_is_judged_as_the_kernel_routes) {
  const Running fresh = server(1, "ip=0.0.0.0");
  const auto dry = [&](const Running& old) {
    return run(
        {"drain", "--dry-run", "--method", "close", "--pid", pid_of(old), "--signal", "TERM"});
  };
  const auto reached = [&] {
    const std::string device = "red";
    const Fd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const test::Address to = address("192.0.2.1", port_);
    EXPECT_EQ(::setsockopt(client.get(), SOL_SOCKET, SO_BINDTODEVICE, device.data(),
                           static_cast<socklen_t>(device.size())),
              0);
    return ::connect(client.get(), to.get(), to.len) == 0 ? 0 : errno;
  };
  {
    const Running old = server(1, "ip=0.0.0.0 device=lo");
    EXPECT_EQ(dry(old).code, 0) << dry(old).err;
  }
  if (::access("/sys/module/vrf", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no VRF";
  }
  ASSERT_EQ(std::system("ip link add red type vrf table 10 && ip address add 192.0.2.1/24 dev red "
                        "&& ip link set red up && ip link add port type dummy && "
                        "ip link set port master red up"),
            0);
  {
    const Running at_port = server(1, "ip=0.0.0.0 device=port");
    EXPECT_EQ(dry(at_port).code, 7);
  }
  std::optional<Running> old(server(1, "ip=0.0.0.0 device=red"));
  EXPECT_EQ(reached(), 0);
  const auto refused = dry(*old);
  EXPECT_EQ(refused.code, 7) << refused.out;
  EXPECT_NE(refused.err.find("tcp_l3mdev_accept is 0"), std::string::npos) << refused.err;
  old.reset();
  EXPECT_EQ(reached(), ECONNREFUSED);

  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_l3mdev_accept", "1"));
  old.emplace(server(1, "ip=0.0.0.0 device=red"));
  EXPECT_EQ(dry(*old).code, 0) << dry(*old).err;
  old.reset();
  EXPECT_EQ(reached(), 0);
}

TEST_F(CtlTest, lookups_go_on_to_a_newcomer_of_a_wider_address) {
  auto old = std::make_optional<Running>(server(1));
  const Running fresh = server(1, "ip=::");
  Load load([&] { return ask() != 0; });
  const auto ran = run({"drain", "--json", "--pid", pid_of(*old), "--signal", "TERM", "--wait"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], best());
  EXPECT_EQ(ask(), fresh.pid());
  const auto [answered, failed] = load.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(failed, 0);
}

TEST_F(CtlTest, a_listener_without_reuseport_is_told_so) {
  const Running old = server(1, "plain");
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 7, "has no SO_REUSEPORT"});
  const auto ran = run({"drain", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.err.find("start the newcomer"), std::string::npos) << ran.err;
  EXPECT_EQ(ask(), old.pid());
}

TEST_F(CtlTest, reuseport_only_leaves_an_admin_port_alone) {
  Running old = server(1, "admin");
  const Running fresh = server(1);
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 7, "has no SO_REUSEPORT"});
  EXPECT_EQ(::kill(old.pid(), 0), 0);
  const auto ran = run(
      {"drain", "--json", "--reuseport-only", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), 1U) << ran.out;
  EXPECT_EQ(ask(), fresh.pid());
  const Running plain = server(1, "plain apart");
  expect_refused({{"drain", "--reuseport-only", "--pid", pid_of(plain), "--signal", "TERM"},
                  1,
                  "and SO_REUSEPORT"});
}

TEST_F(CtlTest, allow_last_works_with_every_method) {
  for (const char* method : {"auto", "option", "close"}) {
    Running old = server(1);
    const auto ran = run({"drain", "--method", method, "--allow-last", "--pid", pid_of(old),
                          "--signal", "TERM", "--wait"});
    EXPECT_EQ(ran.code, std::string(method) == "close" ? 8 : 0) << method << ran.err;
    EXPECT_TRUE(test::eventually([&] { return old.ended(); }));
  }
}

TEST_F(CtlTest, connections_are_waited_for_and_none_is_cut) {
  const test::TempDir dir;
  const std::string said = dir.file("before");
  for (const char* method : {"close", "auto"}) {
    const Running old = server(1, "keep");
    std::vector<Fd> clients = connected(3);
    for (const Fd& client : clients) {
      std::array<char, 16> text{};
      ASSERT_TRUE(test::eventually(
          [&] { return ::recv(client.get(), text.data(), text.size(), MSG_DONTWAIT) > 0; }));
    }
    const Running fresh = server(1);
    auto drain = start_tool({"drain", "--json", "--method", method, "--pid", pid_of(old),
                             "--before-signal", "echo $REUSEPORT_PID >" + said, "--connections",
                             "1", "--signal", "TERM", "--wait"});
    ASSERT_TRUE(test::eventually([&] { return std::filesystem::exists(said); }))
        << drain.peek().err;
    EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 300ms)) << drain.peek().err;
    for (const Fd& client : clients) {
      char byte = 0;
      EXPECT_EQ(::recv(client.get(), &byte, 1, MSG_DONTWAIT), -1) << "cut";
    }
    clients.resize(1);
    const auto ran = drain.result();
    EXPECT_EQ(ran.code, std::string(method) == "close" ? 8 : 0) << ran.err;
    EXPECT_EQ(ran.doc()["drain"]["connections_left"], 1) << ran.out;
    std::ifstream file(said);
    pid_t pid = 0;
    EXPECT_TRUE(file >> pid);
    EXPECT_EQ(pid, old.pid());
    ::unlink(said.c_str());
  }
}

TEST_F(CtlTest, connections_that_stay_are_exit_6_and_no_signal) {
  const Running old = server(1, "keep");
  const Fd client = connected();
  const Running fresh = server(1);
  const auto ran = run({"drain", "--json", "--method", "close", "--timeout", "3", "--connections",
                        "0", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6) << ran.err;
  EXPECT_EQ(ran.doc()["error"]["detail"]["connections_left"], 1) << ran.out;
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

TEST_F(CtlTest, a_server_that_ends_with_connections_left_may_have_cut_them) {
  const test::TempDir dir;
  const std::string said = dir.file("before");
  for (const char* method : {"close", "auto"}) {
    for (const int signal : {SIGKILL, SIGTERM}) {
      Running old = server(1, "keep");
      const Fd client = connected();
      std::array<char, 16> text{};
      ASSERT_TRUE(test::eventually(
          [&] { return ::recv(client.get(), text.data(), text.size(), MSG_DONTWAIT) > 0; }));
      const Running fresh = server(1);
      auto drain =
          start_tool({"drain", "--json", "--method", method, "--connections", "0", "--pid",
                      pid_of(old), "--signal", "TERM", "--before-signal", "touch " + said});
      ASSERT_TRUE(test::eventually([&] { return std::filesystem::exists(said); }))
          << drain.peek().err;
      EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 300ms)) << drain.peek().err;
      old.kill(signal);
      const auto ran = drain.result();
      EXPECT_EQ(ran.code, 1) << method << ran.out << ran.err;
      EXPECT_NE(ran.err.find("the server ended "), std::string::npos) << ran.err;
      EXPECT_NE(ran.doc()["error"]["detail"]["connections_left"], 0) << ran.out;
      ::unlink(said.c_str());
    }
  }
}

TEST_F(CtlTest, a_before_signal_that_fails_or_hangs_changes_nothing) {
  const Running old = server(1);
  const Running fresh = server(1);
  const auto before = modes();
  auto ran = run({"drain", "--before-signal", "exit 3", "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_EQ(ran.code, 1) << ran.err;
  EXPECT_EQ(modes(), before);
  ran = run({"drain", "--timeout", "1", "--before-signal", "sleep 300", "--pid", pid_of(old),
             "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6) << ran.err;
  EXPECT_EQ(modes(), before);
  EXPECT_EQ(::kill(old.pid(), 0), 0);
}

// Its other listeners end with the same signal: they take nothing over.
TEST_F(CtlTest, a_listener_of_the_same_server_is_no_newcomer_for_a_signal) {
  const Running old = server(2);
  const json all = run({"list", "--json", "--pid", pid_of(old)}).doc()["listeners"];
  ASSERT_EQ(all.size(), 2U);
  const std::vector<std::string> drain = {"drain", "--inode", all[0]["inode"].dump(), "--pid",
                                          pid_of(old)};
  std::vector<std::string> signal = drain;
  signal.insert(signal.end(), {"--signal", "TERM"});
  auto ran = run(signal);
  EXPECT_EQ(ran.code, 7) << ran.err;
  EXPECT_EQ(::kill(old.pid(), 0), 0);

  const Running fresh = server(1);
  ran = run(signal);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.err.find("not drained, but ends with its server"), std::string::npos) << ran.err;
}

TEST_F(CtlTest, ready_is_asked_first) {
  const test::TempDir dir;
  const std::string file = dir.file("ready");
  const Running old = server(1);
  const Running fresh = server(1);
  const auto before = modes();
  auto drain =
      start_tool({"drain", "--ready", "test -e " + file + " -a $REUSEPORT_PID = " + pid_of(fresh),
                  "--pid", pid_of(old), "--signal", "TERM"});
  EXPECT_FALSE(test::eventually([&] { return drain.ended() || modes() != before; }, 500ms))
      << drain.peek().err;
  std::ofstream(file) << "yes";
  EXPECT_EQ(drain.result().code, 0) << drain.peek().err;
  const Running next = server(1);
  const auto never = run({"drain", "--timeout", "300ms", "--ready", "false", "--pid", pid_of(fresh),
                          "--signal", "TERM"});
  EXPECT_EQ(never.code, 6) << never.err;
  EXPECT_EQ(::kill(fresh.pid(), 0), 0);
}

/// So many open files for the tool, in a child before exec.
std::function<void()> files(rlim_t limit) {
  return [limit] {
    const rlimit few{limit, limit};
    ::setrlimit(RLIMIT_NOFILE, &few);
  };
}

/// What a drain of @p pid would do that may open so many files.
Ran dry_run_with_files(const std::string& pid, rlim_t limit) {
  return run({"drain", "--dry-run", "--method", "close", "--pid", pid, "--signal", "TERM"},
             files(limit));
}

TEST_F(CtlTest, many_holders_of_many_listeners_need_few_descriptors) {
  const Running old = server(32, "workers=32");
  const Running fresh = server(1);
  ASSERT_TRUE(test::eventually([&] {
    const json all = run({"list", "--json", "--pid", pid_of(old)}).doc()["listeners"];
    return all.is_array() && all.size() == 32 && all[0]["processes"].size() == 33;
  }));
  const auto ran = dry_run_with_files(pid_of(old), 256);
  EXPECT_EQ(ran.code, 0) << ran.err;
  const auto drained =
      run({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM", "--wait"}, files(256));
  EXPECT_EQ(drained.code, 0) << drained.err;
  EXPECT_EQ(drained.doc()["drain"]["method"], best());
  EXPECT_EQ(drained.doc()["drain"]["listeners"].size(), 32U);
  EXPECT_EQ(ask(), fresh.pid());
}

TEST_F(CtlTest, with_too_few_descriptors_nothing_is_said_not_to_be_there) {
  const Running old = server(4, "workers=4");
  const Running fresh = server(1);
  const auto before = modes();
  for (rlim_t limit = 5; limit < 40; limit++) {
    const auto ran = dry_run_with_files(pid_of(old), limit);
    EXPECT_TRUE(ran.code == 0 || ran.err.find("open files") != std::string::npos ||
                ran.err.find("cannot open shared object") != std::string::npos)
        << limit << ": " << ran.code << " " << ran.err;
  }
  EXPECT_EQ(modes(), before);
}

// The holder is this process, which is not below the server.
TEST_F(CtlTest, with_too_few_descriptors_a_foreign_holder_is_not_overlooked) {
  const Running old = server(1, "workers=12");
  const Running fresh = server(1);
  const auto process = Process::open(old.pid());
  ASSERT_TRUE(process);
  const auto held = process->sockets();
  ASSERT_TRUE(held && !held->empty());
  const auto own = process->duplicate(held->front().fd, held->front().inode);
  ASSERT_TRUE(own);
  for (rlim_t limit = 5; limit < 40; limit++) {
    const auto ran = dry_run_with_files(pid_of(old), limit);
    EXPECT_NE(ran.code, 0) << limit;
  }
}

/// Enough open files for the tool, in a child before exec.
void allow_20000_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max = std::max(limit.rlim_max, rlim_t{20000});
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

TEST_F(CtlTest, thousands_of_listeners_find_their_newcomers_in_time) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to open so many files";
  }
  constexpr int thousands = 4500;
  const Running old = server(thousands, "apart");
  const Running fresh = server(thousands, "apart");
  const auto ran = run({"drain", "--json", "--timeout", "60", "--dry-run", "--method", "close",
                        "--pid", pid_of(old), "--signal", "TERM"},
                       allow_20000_files);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), static_cast<std::size_t>(thousands));
}

// More than BPF has room for, if not told that groups are large.
TEST_F(CtlTest, a_thousand_listeners_of_one_group_are_drained_in_time) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to open so many files";
  }
  const Running old = server(1000);
  const Running fresh = server(2);
  const auto ran = run(
      {"drain", "--json", "--timeout", "60", "--pid", pid_of(old), "--signal", "TERM", "--wait"},
      allow_20000_files);
  EXPECT_EQ(ran.code, 0) << ran.err;
  // The kernels with the option run emulated here.
  EXPECT_LT(ran.doc()["drain"]["took_ms"], test::expect_supported() ? 60'000 : 5'000);
  EXPECT_EQ(ran.doc()["drain"]["method"], best());
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), 1000U);
  EXPECT_EQ(ask(), fresh.pid());
}

// 20,000 members of one user: more than one may have of those that are enabled for all.
TEST_F(StockCtl, ten_thousand_listeners_are_drained_in_time) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to open so many files";
  }
  const Running old = server(10000, "apart");
  const Running fresh = server(10000, "apart");
  auto drain = start_tool(
      {"drain", "--json", "--timeout", "60", "--pid", pid_of(old), "--signal", "TERM", "--wait"},
      allow_20000_files);
  const auto ran = drain.result(70s);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), 10000U);
}

TEST_F(CtlTest, udp_is_drained_too) {
  const Running old = server(1, "udp idle");
  const Running fresh = server(1, "udp idle");
  const auto ran = run({"drain", "--json", "--pid", pid_of(old), "--signal", "TERM", "--wait"});
  const json d = ran.doc()["drain"];
  if (test::expect_supported() || ::access("/sys/kernel/btf/vmlinux", R_OK) == 0) {
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_EQ(d["drained"], true);
  } else {
    EXPECT_EQ(ran.code, 8) << ran.err;
    EXPECT_TRUE(d["reason"].is_string()) << ran.out;
  }
  EXPECT_EQ(ran.doc()["drain"]["listeners"].size(), 1U);
  EXPECT_EQ(listeners().size(), 1U);
}

}  // namespace
}  // namespace reuseport
