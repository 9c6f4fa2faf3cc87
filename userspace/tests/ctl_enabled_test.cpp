// SPDX-License-Identifier: Apache-2.0
// reuseportctl beside "reuseportctl enable": modes that last, and that sock_diag(7) does not tell.
#include <poll.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>

#include "option/option.hpp"
#include "support/ctl.hpp"
#include "support/scope.hpp"

namespace reuseport::option {
namespace {

using namespace test::ctl;

/// Servers on TCP, on a kernel without the option.
class StockCtlEnabled : public ScopeTest {
 protected:
  void SetUp() override {
    ScopeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    ASSERT_EQ(::access(tool().c_str(), X_OK), 0) << tool() << " is not built";
    const Fd any = open_listener(address("127.0.0.1"));
    port_ = local_address(any.get()).port();
    enable_here();
  }
  [[nodiscard]] std::size_t listening() const {
    return SockDiag::open()->listeners(Protocol::tcp, port_)->size();
  }
  Running server(const std::string& how = "", const std::function<void()>& before = {}) {
    const std::size_t so_far = listening();
    Running started({self()}, before, {"CTL_TEST_SERVER=" + std::to_string(port_) + " 1 " + how});
    EXPECT_TRUE(eventually([&] { return listening() == so_far + 1; })) << started.peek().err;
    return started;
  }
  static std::string pid_of(const Running& r) { return std::to_string(r.pid()); }
  static void expect_set(const Running& server, const std::string& mode) {
    const auto ran = run({mode, "--allow-last", "--pid", pid_of(server)});
    EXPECT_EQ(ran.code, 0) << ran.err;
  }
  static Ran dry(const Running& old) {
    return run({"drain", "--dry-run", "--pid", pid_of(old), "--signal", "TERM"});
  }
  [[nodiscard]] Fd connected() const {
    Fd client = open_client(address("127.0.0.1", port_));
    EXPECT_EQ(connect_result(client.get()), 0);
    return client;
  }

  std::uint16_t port_ = 0;
};

TEST_F(StockCtlEnabled, list_shows_the_mode_to_whoever_may_ask_for_it) {
  const Running old = server();
  const Running fresh = server();
  expect_set(old, "off");
  const auto mode = [](const Running& server) {
    return run({"list", "--json", "--pid", pid_of(server)}).doc()["listeners"][0]["mode"];
  };
  EXPECT_EQ(mode(old), "off");
  EXPECT_EQ(mode(fresh), "on");
  EXPECT_NE(run({"show", "--pid", pid_of(old)}).out.find("mode        off"), std::string::npos);
  const auto shown = run({"show", "--port", std::to_string(port_)}, become_nobody);
  EXPECT_NE(shown.out.find("unknown"), std::string::npos) << shown.out;
  EXPECT_EQ(shown.out.find("not supported"), std::string::npos) << shown.out;
}

// Wherever it listens.
TEST_F(StockCtlEnabled, one_that_is_off_is_no_newcomer) {
  const Running old = server();
  for (const char* how : {"", "ip=0.0.0.0", "ip=::"}) {
    const Running fresh = server(how);
    EXPECT_EQ(dry(old).code, 0) << how << ": " << dry(old).err;
    expect_set(fresh, "off");
    const auto ran = dry(old);
    EXPECT_EQ(ran.code, 7) << how << ": " << ran.err;
    EXPECT_NE(ran.err.find("is off"), std::string::npos) << ran.err;
    auto drain = start_tool({"drain", "--await-newcomer", "--pid", pid_of(old)});
    EXPECT_FALSE(eventually([&] { return drain.ended(); }, 300ms)) << drain.peek().err;
    expect_set(fresh, "on");
    EXPECT_EQ(drain.result().code, 0) << drain.peek().err;
    expect_set(old, "on");
  }
}

// Nor if the newcomer dies after the signal, before the old one closes.
TEST_F(StockCtlEnabled, when_only_one_that_is_off_is_left_the_newcomer_is_gone) {
  const TempDir dir;
  const std::string file = dir.file("signal");
  const Running older = server();
  Running old = server("stubborn");
  expect_set(older, "off");
  Running fresh = server();
  auto drain = start_tool({"drain", "--pid", pid_of(old), "--signal", "TERM", "--wait",
                           "--before-signal", "touch " + file});
  ASSERT_TRUE(eventually([&] { return std::filesystem::exists(file); })) << drain.peek().err;
  EXPECT_FALSE(eventually([&] { return drain.ended(); }, 500ms));
  fresh.kill(SIGKILL);
  old.kill(SIGKILL);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 1) << ran.err;
  EXPECT_NE(ran.err.find("the newcomer is gone"), std::string::npos) << ran.err;
}

// The other one waits, and holds the listener only while it looks.
TEST_F(StockCtlEnabled, of_two_drains_that_wait_for_ready_one_goes_on) {
  const TempDir dir;
  const std::string file = dir.file("ready");
  const Running old = server("defer");
  const Fd client = connected();
  const Running fresh = server("defer");
  const std::uint64_t inode = Process::open(old.pid())->sockets()->front().inode;
  const std::vector<std::string> args = {"drain",           "--timeout", "20",       "--ready",
                                         "test -e " + file, "--pid",     pid_of(old)};
  std::array<Running, 2> drains = {start_tool(args), start_tool(args)};
  const auto holding = [&] {
    return std::ranges::count_if(drains, [&](const Running& drain) {
      const auto sockets = Process::open(drain.pid())->sockets();
      return sockets && std::ranges::any_of(
                            *sockets, [&](const SocketRef& ref) { return ref.inode == inode; });
    });
  };
  std::ofstream(file) << "yes";
  EXPECT_TRUE(eventually([&] { return holding() > 0; }));
  ::poll(nullptr, 0, 1500);  // longer than two that began together need to settle it
  EXPECT_TRUE(eventually([&] { return holding() == 1; }, 5s)) << "both drain it";
}

TEST_F(StockCtlEnabled, at_the_deadline_it_says_what_the_old_ones_are) {
  const Running old = server("defer");
  const Fd client = connected();
  const Running wider = server("ip=0.0.0.0 defer");
  const auto late = run({"drain", "--timeout", "300ms", "--pid", pid_of(old)});
  EXPECT_EQ(late.code, 6) << late.err;
  EXPECT_NE(late.err.find("the old listeners are off"), std::string::npos) << late.err;
  expect_set(old, "on");
  const Running same = server("defer");
  const auto again = run({"drain", "--timeout", "300ms", "--pid", pid_of(old)});
  EXPECT_EQ(again.code, 6) << again.err;
  EXPECT_NE(again.err.find("the old listeners are standby:"), std::string::npos) << again.err;
}

// It goes undumpable meanwhile, so that this user may not look any more.
TEST_F(StockCtlEnabled, what_may_not_be_looked_at_is_not_closed) {
  const Running old = server("defer", become_nobody);
  const Fd client = connected();
  const Running fresh = server("defer", become_nobody);
  auto drain = start_tool({"drain", "--timeout", "2", "--allow-shared", "--pid", pid_of(old)},
                          become_nobody);
  EXPECT_FALSE(eventually([&] { return drain.ended(); }, 500ms)) << drain.peek().err;
  old.signal(SIGUSR1);
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 6) << ran.err;
  EXPECT_EQ(ran.err.find("closed its listeners"), std::string::npos) << ran.err;
}

}  // namespace
}  // namespace reuseport::option
