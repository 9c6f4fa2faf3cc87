// SPDX-License-Identifier: Apache-2.0
// reuseportctl with UDP flows: enable --udp-flows, what tells of them, and who waits for them.
#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "option/option.hpp"
#include "support/ctl.hpp"
#include "support/scope.hpp"

namespace reuseport::option {
namespace {

using namespace test::ctl;

/// Servers that answer each datagram with their pid.
class CtlFlowsTest : public ScopeTest {
 protected:
  void SetUp() override {
    ScopeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    ASSERT_EQ(::access(tool().c_str(), X_OK), 0) << tool() << " is not built";
    const Fd any = open_listener(address("127.0.0.1"), SOCK_DGRAM);
    port_ = local_address(any.get()).port();
  }
  void enable_flows(const std::string& idle = "120") {
    const auto ran = run({"enable", "--cgroup", cgroup_, "--udp-flows", "--idle", idle});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_NE(ran.out.find("UDP flows are recorded"), std::string::npos) << ran.out;
  }
  [[nodiscard]] std::string how(int sockets) const {
    return "CTL_TEST_SERVER=" + std::to_string(port_) + " " + std::to_string(sockets) + " udp";
  }
  [[nodiscard]] std::vector<json> listed() const {
    const auto doc = run({"list", "--json", "--udp", "--port", std::to_string(port_)}).doc();
    return doc.contains("listeners") ? doc["listeners"].get<std::vector<json>>()
                                     : std::vector<json>();
  }
  Running server(int sockets = 1) {
    const std::size_t before = listed().size();
    Running started({self()}, {}, {how(sockets)});
    EXPECT_TRUE(eventually([&] {
      return listed().size() == before + static_cast<std::size_t>(sockets);
    })) << started.peek().err;
    return started;
  }
  /// One whose sockets are known from its start on.
  Running known_server(int sockets = 1) {
    Running started = server(sockets);
    EXPECT_EQ(run({"enable", "--cgroup", cgroup_}).code, 0);
    return started;
  }
  [[nodiscard]] Fd client() const { return open_client(address("127.0.0.1", port_), SOCK_DGRAM); }
  /// Who answers; 0: nobody.
  static pid_t ask(const Fd& client) {
    return ::send(client.get(), "x", 1, 0) == 1 ? answer_of(client) : 0;
  }
  static bool all_answered_by(const std::vector<Fd>& clients, pid_t pid) {
    return std::ranges::all_of(clients, [&](const Fd& each) { return ask(each) == pid; });
  }
  [[nodiscard]] std::vector<Fd> clients_of(pid_t pid, std::size_t count) const {
    std::vector<Fd> clients(count);
    std::ranges::generate(clients, [this] { return client(); });
    for (int i = 0; i < 3; i++) {
      EXPECT_TRUE(all_answered_by(clients, pid));
    }
    return clients;
  }
  /// Asks @p clients for 3 s, and on until somebody else than @p old answers a new one: all of them
  /// stay with @p old. The pid that answered the new one; @p old if that took more than a minute.
  [[nodiscard]] pid_t taken_over_beside(std::span<const Fd> clients, pid_t old) const {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      for (const Fd& each : clients) {
        EXPECT_EQ(ask(each), old);
      }
      const auto passed = std::chrono::steady_clock::now() - start;
      if (const pid_t now = passed > 3s ? ask(client()) : old; now != old || passed > 60s) {
        return now;
      }
      ::poll(nullptr, 0, 20);
    }
  }
  static std::string pid_of(const Running& r) { return std::to_string(r.pid()); }

  std::uint16_t port_ = 0;
};

/// On a kernel without the option.
class StockCtlFlows : public CtlFlowsTest {};
/// On one that has it.
class PatchedCtlFlows : public CtlFlowsTest {};

TEST_F(CtlFlowsTest, are_told_of) {
  const Running old = server();
  EXPECT_TRUE(listed()[0]["flows"].is_null());
  enable_flows();
  EXPECT_EQ(listed()[0]["flows"], 0);
  const auto clients = clients_of(old.pid(), 3);
  EXPECT_EQ(listed()[0]["flows"], 3);
  const std::string port = std::to_string(port_);
  EXPECT_NE(run({"list", "--udp", "--port", port}).out.find(" FLOWS "), std::string::npos);
  EXPECT_NE(run({"show", "--port", port}).out.find("flows       3 live"), std::string::npos);
  const auto status = run({"status", "--json"}).doc();
  EXPECT_EQ(status["udp_flows"]["live"], 3);
  EXPECT_EQ(status["udp_flows"]["idle_ms"], 120'000);
  EXPECT_EQ(status["groups"][0]["flows"], 3);
  EXPECT_NE(run({"status"}).out.find("UDP flows: 3 live, room for 131072"), std::string::npos);
  // another user sees no more than before
  const auto other = run({"list", "--json", "--udp", "--port", port}, become_nobody).doc();
  EXPECT_TRUE(other["listeners"][0]["flows"].is_null());
}

// Whose clock is another one.
TEST_F(StockCtlFlows, are_told_of_in_a_time_namespace) {
  const Running old = server();
  enable_flows();
  const auto clients = clients_of(old.pid(), 3);
  Running elsewhere({"unshare", "--time", "--monotonic", "100000", tool(), "status", "--json"});
  EXPECT_EQ(elsewhere.result().doc()["udp_flows"]["live"], 3);
}

TEST_F(CtlFlowsTest, drain_waits_for_them) {
  enable_flows("15");  // longer than the tool takes to start on a slow machine
  Running old = known_server(2);
  const auto clients = clients_of(old.pid(), 4);
  const Running fresh = server(2);
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old), "--flows", "0", "--timeout",
                           "60", "--signal", "TERM", "--wait"});
  EXPECT_EQ(taken_over_beside(clients, old.pid()), fresh.pid());
  EXPECT_FALSE(drain.ended()) << drain.peek().out << drain.peek().err;
  const auto ran = drain.result();
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], "option");
  EXPECT_EQ(ran.doc()["drain"]["flows_left"], 0);
  EXPECT_EQ(ran.doc()["drain"]["ended"], true);
  EXPECT_TRUE(old.ended() || test::eventually([&] { return old.ended(); }));
  EXPECT_TRUE(all_answered_by(clients, fresh.pid())) << "they were over";
}

TEST_F(CtlFlowsTest, a_dry_run_tells_of_them) {
  enable_flows();
  const Running old = known_server();
  const auto clients = clients_of(old.pid(), 3);
  const Running fresh = server();
  std::vector<std::string> drain = {"drain", "--pid", pid_of(old), "--flows", "0", "--dry-run"};
  auto ran = run(drain);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("3 UDP flows live now"), std::string::npos) << ran.out;
  drain.emplace_back("--json");
  EXPECT_EQ(run(drain).doc()["drain"]["flows_left"], 3);
  EXPECT_TRUE(all_answered_by(clients, old.pid()));
  EXPECT_NE(listed()[0]["mode"], "standby");
}

TEST_F(CtlFlowsTest, deadline_with_flows_left) {
  enable_flows();
  const Running old = known_server();
  const auto clients = clients_of(old.pid(), 3);
  const Running fresh = server();
  auto ran = run({"drain", "--json", "--pid", pid_of(old), "--flows", "1", "--timeout", "1",
                  "--signal", "TERM"});
  EXPECT_EQ(ran.code, 6) << ran.out;
  EXPECT_EQ(ran.doc()["error"]["detail"]["flows_left"], 3);
  EXPECT_EQ(ran.doc()["error"]["detail"]["signalled"], false);
  EXPECT_TRUE(all_answered_by(clients, old.pid())) << "it goes on with them";
  EXPECT_EQ(ask(client()), fresh.pid());
  ran = run({"drain", "--pid", pid_of(old)});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("not counted: UDP flows that have been silent"), std::string::npos)
      << ran.out;
  EXPECT_NE(ran.out.find("closing loses 3 live UDP flows"), std::string::npos) << ran.out;
}

// The scope of the sockets is what counts, not that of the tool.
TEST_F(CtlFlowsTest, drain_from_another_cgroup) {
  enable_flows();
  const Running old = known_server();
  const auto clients = clients_of(old.pid(), 3);
  const Running fresh = server();
  ASSERT_TRUE(enter(home_));
  const auto ran = run({"drain", "--json", "--pid", pid_of(old)});
  ASSERT_TRUE(enter(cgroup_));
  ASSERT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["flows_left"], 3);
  EXPECT_EQ(ran.doc()["drain"]["method"], "option");
  EXPECT_TRUE(all_answered_by(clients, old.pid()));
  EXPECT_EQ(ask(client()), fresh.pid());
}

// A program beside that of `enable` is not asked: the old one would go on to get connections.
TEST_F(StockCtlFlows, enabled_without_flows_and_used_from_another_cgroup) {
  ASSERT_EQ(run({"enable", "--cgroup", cgroup_}).code, 0);
  const std::string tcp = "CTL_TEST_SERVER=" + std::to_string(port_) + " 1";
  Running old({self()}, {}, {tcp});
  Running fresh({self()}, {}, {tcp});
  const auto listeners = [&] {
    const auto doc = run({"list", "--json", "--tcp", "--port", std::to_string(port_)}).doc();
    return doc.contains("listeners") ? doc["listeners"].size() : 0;
  };
  ASSERT_TRUE(eventually([&] { return listeners() == 2; })) << old.peek().err << fresh.peek().err;
  ASSERT_TRUE(enter(home_));
  const auto ran = run({"drain", "--json", "--pid", pid_of(old)});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["drain"]["method"], "option") << ran.out;
  const auto on = run({"on", "--pid", pid_of(old)});
  EXPECT_EQ(on.code, 0) << on.err;
  ASSERT_TRUE(enter(cgroup_));
}

// What was silent since before the sockets were known is not taken for none.
TEST_F(CtlFlowsTest, flows_from_before_the_sockets_were_known) {
  enable_flows("8");
  const Running old = server();
  const auto clients = clients_of(old.pid(), 3);
  const Running fresh = server();
  auto drain = start_tool({"drain", "--json", "--pid", pid_of(old), "--flows", "0"});
  EXPECT_FALSE(test::eventually([&] { return drain.ended(); }, 5s)) << drain.peek().out;
  const auto ran = drain.result();
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_GE(ran.doc()["drain"]["flows_known_for_ms"], 8000);
}

// The server ends, or its flows are counted no more, while it is waited for: no success.
TEST_F(CtlFlowsTest, waiting_in_vain) {
  enable_flows("8");
  Running old = known_server();
  const auto clients = clients_of(old.pid(), 3);
  const Running fresh = server();
  const std::vector<std::string> drain = {"drain", "--pid", pid_of(old), "--flows", "0"};
  auto first = start_tool(drain);
  EXPECT_FALSE(test::eventually([&] { return first.ended(); }, 1s));
  EXPECT_EQ(run({"disable", "--force"}).code, 0);
  EXPECT_EQ(first.result().code, 3) << first.peek().err;

  enable_flows("8");
  auto second = start_tool(drain);
  EXPECT_FALSE(test::eventually([&] { return second.ended(); }, 1s));
  old.kill(SIGKILL);
  EXPECT_EQ(second.result().code, 1) << second.peek().out;
}

TEST_F(CtlFlowsTest, no_udp_socket_to_wait_for) {
  enable_flows();
  const std::string tcp = "CTL_TEST_SERVER=" + std::to_string(port_) + " 1";
  Running old({self()}, {}, {tcp});
  Running fresh({self()}, {}, {tcp});
  ASSERT_TRUE(eventually([&] { return count_listeners(port_) == 2; }));
  expect_refused({{"drain", "--pid", pid_of(old), "--flows", "0"}, 3, "no UDP socket"});
}

// What nobody records is not said to be none.
TEST_F(CtlFlowsTest, no_number_where_they_are_not_recorded) {
  const Running old = server();
  const Running fresh = server();
  const std::vector<std::string> drain = {"drain", "--pid", pid_of(old), "--flows", "0"};
  expect_refused({drain, 3, "enable --udp-flows"});
  ASSERT_TRUE(enter(home_));
  const std::string other = cgroup_ + "-other";
  ASSERT_EQ(::mkdir(other.c_str(), 0755), 0);
  EXPECT_EQ(run({"enable", "--cgroup", other, "--udp-flows"}).code, 0);
  expect_refused({drain, 3, "enable --udp-flows"});
  EXPECT_TRUE(listed()[0]["flows"].is_null());
  EXPECT_EQ(run({"disable"}).code, 0);
  EXPECT_EQ(::rmdir(other.c_str()), 0);
  ASSERT_TRUE(enter(cgroup_));
}

TEST_F(CtlFlowsTest, restart_waits_for_them) {
  enable_flows("15");  // longer than the tool takes to start on a slow machine
  Running tool = start_tool({"restart", "--json", "--flows", "0", "--timeout", "60", "--", self()},
                            {}, {how(2)});
  ASSERT_TRUE(eventually([&] { return tool.peek().out.find("started") != std::string::npos; }));
  const Fd first = client();
  const pid_t old = ask(first);
  ASSERT_NE(old, 0);
  const auto clients = clients_of(old, 4);
  for (int i = 0; i < 2; i++) {
    const pid_t now = ask(first);
    tool.signal(SIGHUP);
    const pid_t next = taken_over_beside({&first, 1}, now);
    EXPECT_NE(next, now);
    EXPECT_NE(next, 0);
    const auto text = std::to_string(now);
    EXPECT_TRUE(eventually(
        [&] { return tool.peek().out.find("\"old\":" + text) != std::string::npos; }, 60s))
        << tool.peek().out << tool.peek().err;
    EXPECT_NE(ask(first), now);
  }
  EXPECT_NE(tool.peek().out.find("\"flows_left\":0"), std::string::npos) << tool.peek().out;
}

// The modes stay the kernel's; what is by BPF says so.
TEST_F(PatchedCtlFlows, beside_the_option_of_the_kernel) {
  const std::vector<std::string> enable = {"enable", "--cgroup", cgroup_};
  expect_refused({enable, 3, "only UDP flows can be enabled"});
  EXPECT_EQ(run({"status", "--json"}).doc()["enabled"], false);
  const Running old = server();
  enable_flows();
  const auto ran = run(enable);
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_NE(ran.out.find("the modes are the kernel's own; 1 UDP socket known; UDP flows are"),
            std::string::npos)
      << ran.out;
  EXPECT_EQ(run({"probe", "--json"}).doc()["support"], "supported");
  const auto clients = clients_of(old.pid(), 2);
  EXPECT_EQ(run({"off", "--allow-last", "--pid", pid_of(old)}).code, 0);
  EXPECT_EQ(listed()[0]["mode"], "off");
  EXPECT_TRUE(all_answered_by(clients, old.pid()));
  const auto status = run({"status", "--json"}).doc();
  EXPECT_EQ(status["modes"], "kernel");
  EXPECT_TRUE(status["left_to_the_kernel"].is_null());
  EXPECT_EQ(status["udp_flows"]["live"], 2);
  EXPECT_NE(run({"status"}).out.find("the modes are the kernel's own\n"), std::string::npos);
  const auto refused = run({"disable"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.err.find("live flows"), std::string::npos) << refused.err;
  EXPECT_EQ(run({"disable", "--force"}).code, 0);
  EXPECT_TRUE(listed()[0]["flows"].is_null());
  EXPECT_EQ(listed()[0]["mode"], "off");
}

TEST_F(CtlFlowsTest, usage) {
  for (const Bad& bad : std::vector<Bad>{
           {{"enable", "--cgroup", cgroup_, "--idle", "5"}, 2, "--udp-flows"},
           {{"enable", "--cgroup", cgroup_, "--udp-flows", "--idle", "0"}, 2, "--idle"},
           {{"enable", "--cgroup", cgroup_, "--udp-flows", "--flows-max", "1000"},
            2,
            "--flows-max"},
           {{"drain", "--pid", "1", "--flows", "-1"}, 2, "--flows"},
       }) {
    expect_refused(bad);
  }
  EXPECT_FALSE(state()->enabled);
}

}  // namespace
}  // namespace reuseport::option
