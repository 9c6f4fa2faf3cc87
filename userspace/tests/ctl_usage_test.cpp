// SPDX-License-Identifier: Apache-2.0
// reuseportctl: bad input, and help.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstddef>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

TEST_F(CtlTest, usage_errors) {
  for (const Bad& bad : std::vector<Bad>{
           {{}, 2, "subcommand"},
           {{"frobnicate"}, 2, "frobnicate"},
           {{"drian"}, 2, "did you mean drain?"},
           {{"drain", "--pid", "1", "--tmeout", "3"}, 2, "did you mean --timeout?"},
           {{"drain", "--singal=TERM"}, 2, "did you mean --signal?"},
           {{"restart", "--redy", "true", "--", "sh"}, 2, "did you mean --ready?"},
           {{"help", "darin"}, 2, "did you mean drain?"},
           {{"drain", "--pid", "1", "--connections", "-1"}, 2, "--connections"},
           {{"list", "--pid", "abc"}, 2, "abc"},
           {{"list", "--pid", "0"}, 2, "--pid"},
           {{"list", "--pid", "-3"}, 2, "--pid"},
           {{"list", "--pid", "99999999999999999999"}, 2, "--pid"},
           {{"list", "--port", "0"}, 2, "--port"},
           {{"list", "--port", "65536"}, 2, "--port"},
           {{"list", "--addr", "localhost"}, 2, "localhost"},
           {{"list", "--inode", "x"}, 2, "--inode"},
           {{"on"}, 2, "needs --pid"},
           {{"off", "--tcp"}, 2, "needs --pid"},
           {{"standby"}, 2, "needs --pid"},
           {{"drain"}, 2, "--pid"},
           {{"drain", "--pid", "1", "--signal", "NOPE"}, 2, "NOPE"},
           {{"drain", "--pid", "1", "--method", "magic"}, 2, "magic"},
           {{"drain", "--pid", "1", "--require", "--method", "close"}, 2, "--require"},
           {{"restart", "--require", "--method", "close", "--", "true"}, 2, "--require"},
           {{"drain", "--pid", "1", "--on-deadline", "panic"}, 2, "panic"},
           {{"drain", "--pid", "1", "--wait"}, 2, "--signal"},
           {{"watch", "--count", "0"}, 2, "--count"},
           {{"watch", "--interval", "soon"}, 2, "--interval"},
           {{"restart"}, 2, "command"},
       }) {
    expect_refused(bad);
  }
  for (const char* time : {"",     "-1",    "1 fortnight", "1d",   "1S",    "1s2",   " 1",  "1 ",
                           "+1",   "0x10",  "s",           "ms",   ".",     "1e",    "nan", "inf",
                           "-inf", "1e300", "1e400",       "1e9h", "2778h", "-0.1ms"}) {
    for (const char* option : {"--timeout", "--ready-timeout", "--stop-timeout"}) {
      const bool of_drain = std::string(option) == "--timeout";
      expect_refused({of_drain ? std::vector<std::string>{"drain", "--pid", "1", option, time}
                               : std::vector<std::string>{"restart", option, time, "--", "true"},
                      2, option});
    }
  }
}

TEST_F(CtlTest, no_such_thing) {
  Running dead = server(1);
  const std::string pid = pid_of(dead);
  dead.kill(SIGKILL);
  const Running none({"sleep", "60"});
  const Fd server_fd = test::open_listener(address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(server_fd.get()));
  struct stat st {};
  ASSERT_EQ(::fstat(client.get(), &st), 0);
  const std::string no_listener = std::to_string(st.st_ino);

  for (const char* command : {"list", "show", "watch", "drain"}) {
    expect_refused({{command, "--pid", pid}, 1, pid});
    expect_refused({{command, "--pid", pid_of(none)}, 1, "no listener"});
  }
  for (const char* command : {"list", "show", "watch"}) {
    expect_refused({{command, "--port", "1"}, 1, "no listener with port 1"});
    expect_refused({{command, "--inode", no_listener}, 1, "no listener"});
    expect_refused({{command, "--addr", "198.51.100.1:1"}, 1, "no listener"});
  }
  for (const char* command : {"on", "off", "standby"}) {
    const int code = test::expect_supported() ? 1 : 3;
    expect_refused({{command, "--pid", pid}, code, ""});
    expect_refused({{command, "--port", "1"}, code, ""});
    expect_refused({{command, "--inode", no_listener}, code, ""});
  }
  expect_refused({{"restart", "--", "/no/such/program"}, 1, "/no/such/program"});
}

TEST_F(CtlTest, somebody_elses_process) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const Running old = server(1);
  const Running fresh = server(1);
  expect_refused({{"list", "--pid", pid_of(old)}, 4, "uid 0"}, become_nobody);
  expect_refused({{"show", "--pid", pid_of(old)}, 4, "uid 0"}, become_nobody);
  expect_refused({{"watch", "--pid", pid_of(old)}, 4, "uid 0"}, become_nobody);
  expect_refused({{"drain", "--pid", pid_of(old), "--signal", "TERM"}, 4, "uid 0"}, become_nobody);
  for (const char* command : {"on", "off", "standby"}) {
    expect_refused({{command, "--port", port()}, test::expect_supported() ? 4 : 3, ""},
                   become_nobody);
  }
  // reading what everybody may read works, without the processes
  const auto ran = run({"list", "--json", "--port", port()}, become_nobody);
  ASSERT_EQ(ran.doc()["listeners"].size(), 2U) << ran.err;
  EXPECT_TRUE(ran.doc()["listeners"][0]["processes"].empty());
}

/// The tool finds a kernel without netlink sockets.
void forbid_netlink() {
  std::array<sock_filter, 6> code = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_NETLINK, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPROTONOSUPPORT),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog prog{code.size(), code.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0) {
    ::_exit(125);
  }
}

TEST_F(CtlTest, kernel_without_sock_diag) {
  const Running s = server(1);
  expect_refused({{"list"}, 3, "sock_diag"}, forbid_netlink);
  for (const char* command : {"show", "watch"}) {
    expect_refused({{command, "--pid", pid_of(s)}, 3, "sock_diag"}, forbid_netlink);
  }
  for (const char* command : {"drain", "on", "off", "standby"}) {
    expect_refused({{command, "--pid", pid_of(s)}, 3, ""}, forbid_netlink);
  }
  expect_refused({{"restart", "--", "sleep", "60"}, 3, "sock_diag"}, forbid_netlink);
  const auto probe = run({"probe", "--json"}, forbid_netlink);
  EXPECT_EQ(probe.doc()["works"]["sock_diag_tcp"]["works"], false) << probe.out;
}

TEST_F(CtlTest, what_cannot_be_written_is_an_error) {
  const Running s = server(1);
  const auto full = [] { ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO); };
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{"list"},
                                             {"--json", "list"},
                                             {"show", "--port", port()},
                                             {"watch", "--port", port()},
                                             {"restart", "--dry-run", "--", "sleep", "1"},
                                             {"--help"},
                                             {"--version"}}) {
    const auto ran = run(args, full);
    EXPECT_EQ(ran.code, 1) << args[0] << ran.err;
    EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << args[0] << ran.err;
  }
  EXPECT_NE(run({"probe"}, full).err.find("No space left"), std::string::npos);
  EXPECT_EQ(run({"list"}, [] { ::close(STDOUT_FILENO); }).code, 1);
  EXPECT_EQ(run({"list"}, [] { ::close(STDIN_FILENO); }).code, 0);
}

TEST_F(CtlTest, a_full_pipe_that_does_not_block_loses_nothing) {
  const Running s = server(100);
  const auto ran = run({"list"}, [] {
    ::fcntl(STDOUT_FILENO, F_SETPIPE_SZ, 4096);
    ::fcntl(STDOUT_FILENO, F_SETFL, O_WRONLY | O_NONBLOCK);
  });
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(std::count(ran.out.begin(), ran.out.end(), '\n'), 101);
}

TEST_F(CtlTest, help_is_there_for_each_command) {
  for (const char* command :
       {"probe", "list", "show", "watch", "on", "off", "standby", "drain", "restart", "help"}) {
    const auto ran = run({command, "--help"});
    EXPECT_EQ(ran.code, 0) << command;
    EXPECT_NE(ran.out.find("--help"), std::string::npos) << command;
    EXPECT_EQ(ran.err, "") << command;
  }
  EXPECT_EQ(run({"--help"}).code, 0);
  EXPECT_EQ(run({"--version"}).code, 0);
  EXPECT_EQ(run({"-V"}).out, run({"--version"}).out);
  EXPECT_EQ(run({"help"}).out, run({"--help"}).out);
  EXPECT_EQ(run({"help", "drain"}).out, run({"drain", "--help"}).out);
}

}  // namespace
}  // namespace reuseport
