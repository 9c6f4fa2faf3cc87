// SPDX-License-Identifier: Apache-2.0
// reuseportctl probe, list, show, watch.
#include <regex>
#include <sstream>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

TEST_F(CtlTest, probe_gives_the_expected_answer_and_code) {
  const auto ran = run({"probe", "--json"});
  const json doc = ran.doc();
  EXPECT_EQ(doc["support"], test::expect_supported() ? "supported" : "not_in_kernel") << ran.out;
  EXPECT_EQ(ran.code, test::expect_supported() ? 0 : 3);
  EXPECT_EQ(doc["works"]["option"]["works"], test::expect_supported());
  EXPECT_EQ(doc["works"]["sock_diag_tcp"]["works"], true);
  EXPECT_EQ(doc["works"]["pidfd_getfd"]["works"], true);
  EXPECT_EQ(run({"probe", "--behaviour"}).code, ran.code);
}

TEST_F(CtlTest, list_golden) {
  const Running s = server(2);
  const auto all = listeners();
  const auto ran = run({"list", "--port", port()});
  ASSERT_EQ(ran.code, 0) << ran.err;
  // what differs between runs and kernels, by name
  std::string text = std::regex_replace(ran.out, std::regex(" +"), " ");
  for (std::size_t i = 0; i < all.size(); i++) {
    text = std::regex_replace(text, std::regex(" " + std::to_string(all[i].inode) + " "),
                              " INODE" + std::to_string(i) + " ");
  }
  text = std::regex_replace(text, std::regex("\\[" + pid_of(s) + "\\]"), "[PID]");
  text = std::regex_replace(text, std::regex(":" + port() + " "), ":PORT ");
  text = std::regex_replace(text, std::regex(" [0-9]+:2/0/0 "), " GROUP:2/0/0 ");
  const std::string state =
      test::expect_supported() ? "on 0 0/4096 - GROUP:2/0/0" : "- - 0/4096 - -";
  const std::string uid = std::to_string(::geteuid());
  EXPECT_EQ(text,
            "PROTO ADDRESS MODE HANDSHAKES QUEUE FLOWS GROUP UID INODE PROCESS\n"
            "tcp 127.0.0.1:PORT " +
                state + " " + uid +
                " INODE0 ctl_list_test[PID]\n"
                "tcp 127.0.0.1:PORT " +
                state + " " + uid + " INODE1 ctl_list_test[PID]\n");
}

TEST_F(CtlTest, list_json_is_sorted_and_complete) {
  const Running a = server(2);
  const Running b = server(1, "v6");
  const Running c = server(1, "udp");
  const auto ran = run({"list", "--json", "--port", port()});
  const json all = ran.doc()["listeners"];
  ASSERT_EQ(all.size(), 4U) << ran.out;
  EXPECT_LT(all[0]["inode"], all[1]["inode"]);
  EXPECT_EQ(all[2]["address"], "::1");
  EXPECT_EQ(all[3]["protocol"], "udp");
  for (const json& s : all) {
    EXPECT_EQ(s["port"], port_);
    EXPECT_EQ(s["mode"], test::expect_supported() ? json("on") : json(nullptr));
    EXPECT_EQ(s["group"].is_null(), !test::expect_supported());
    ASSERT_EQ(s["processes"].size(), 1U);
    EXPECT_EQ(s["processes"][0]["command"], "ctl_list_test");
  }
  EXPECT_EQ(all[0]["processes"][0]["pid"], a.pid());
  EXPECT_EQ(run({"--pretty", "list", "--udp", "--port", port()}).doc()["listeners"].size(), 1U);
  EXPECT_EQ(run({"list", "--json", "--pid", pid_of(b)}).doc()["listeners"].size(), 1U);
  EXPECT_EQ(run({"list", "--json", "--addr", "[::1]:" + port()}).doc()["listeners"].size(), 1U);
}

TEST_F(CtlTest, show_tells_more) {
  const Running s = server(2);
  const auto ran = run({"show", "--json", "--port", port()});
  ASSERT_EQ(ran.code, 0) << ran.err;
  const json all = ran.doc()["listeners"];
  for (const json& one : all) {
    EXPECT_EQ(one["reuseport"], true);
    // null if it cannot be read: a patched kernel built without BTF
    EXPECT_TRUE(one["bpf_program"] == json({{"attached", false}}) ||
                (test::expect_supported() && one["bpf_program"].is_null()));
    EXPECT_EQ(one["half_open_at_address"], 0);
    EXPECT_EQ(one["listeners_at_address"], 2);
    EXPECT_EQ(one["processes"][0]["command_line"], self());
  }
  const auto text = run({"show", "--port", port()});
  EXPECT_NE(text.out.find("  inode       "), std::string::npos) << text.out;
}

TEST_F(CtlTest, list_tells_dual_stack) {
  const Running dual = server(1, "ip=::");
  const Running six = server(1, "ip=::1");
  const auto text = run({"list", "--port", port()}).out;
  EXPECT_TRUE(std::regex_search(text, std::regex("tcp46 +\\[::\\]"))) << text;
  EXPECT_TRUE(std::regex_search(text, std::regex("tcp6 +\\[::1\\]"))) << text;
  const json all = run({"list", "--json", "--port", port()}).doc()["listeners"];
  ASSERT_EQ(all.size(), 2U);
  EXPECT_EQ(all[0]["dual_stack"], true);
  EXPECT_EQ(all[1]["dual_stack"], false);
  EXPECT_EQ(all[1]["reuseport"], true);
}

// IPV6_V6ONLY alone makes the difference.
TEST_F(CtlTest, list_tells_v6only) {
  const Running only = server(1, "ip=:: v6only");
  const auto text = run({"list", "--port", port()}).out;
  EXPECT_TRUE(std::regex_search(text, std::regex("tcp6 +\\[::\\]"))) << text;
  const json all = run({"list", "--json", "--port", port()}).doc()["listeners"];
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["dual_stack"], false);
}

TEST_F(CtlTest, list_tells_what_cannot_be_drained) {
  const Running plain = server(1, "plain");
  const auto text = run({"list", "--port", port()}).out;
  EXPECT_TRUE(std::regex_search(text, std::regex("tcp +127.0.0.1:[0-9]+ +no-reuseport"))) << text;
  const json all = run({"list", "--json", "--port", port()}).doc()["listeners"];
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["reuseport"], false);
}

TEST_F(OptionCtlTest, list_shows_standby_beside_on_as_drained) {
  const Running old = server(1);
  const Running fresh = server(1);
  EXPECT_EQ(run({"standby", "--pid", pid_of(old)}).code, 0);
  EXPECT_TRUE(test::eventually([&] {
    return run({"list", "--port", port()}).out.find("standby,drained") != std::string::npos;
  }));
}

TEST_F(CtlTest, show_without_a_selection_shows_all) {
  const Running a = server(1);
  const Running b = server(1, "v6");
  const auto ran = run({"show", "--json"});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_EQ(ran.doc()["listeners"].size(), 2U) << ran.out;
}

TEST_F(CtlTest, text_of_other_processes_is_made_visible) {
  // C0, a C1 in UTF-8, a byte that is not UTF-8, and letters that are
  const std::string name = "\x1b[31m\xc2\x9b\xff\xc3\xa4";
  const Running holder({"never run"}, [&] {
    const Fd listener = test::open_listener(address("127.0.0.1", port_));
    ::prctl(PR_SET_NAME, name.c_str());
    for (;;) {
      ::pause();
    }
  });
  ASSERT_TRUE(test::eventually([&] {
    return run({"list", "--port", port()}).out.find("31m") != std::string::npos;
  }));
  const std::string shown = "\\x1b[31m\\u009b\\xff\xc3\xa4";
  EXPECT_NE(run({"list", "--port", port()}).out.find(shown), std::string::npos);
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"list", "--port", port()}, {"show", "--port", port()}, {"--json", "list"}}) {
    const auto ran = run(args);
    for (const char* bad : {"\x1b", "\xc2\x9b", "\xff"}) {
      EXPECT_EQ(ran.out.find(bad), std::string::npos) << args[0];
    }
  }
}

TEST_F(CtlTest, a_command_line_of_another_process_is_made_visible) {
  std::string bad = "\x1b]0;owned\x07\xc2\x9b\xff\n";
  const Running holder({self()}, [&] {
    const std::string program = self();
    std::string server = "CTL_TEST_SERVER=" + port() + " 1";
    std::array<char*, 2> argv = {bad.data(), nullptr};
    std::array<char*, 2> env = {server.data(), nullptr};
    ::execve(program.c_str(), argv.data(), env.data());
  });
  ASSERT_TRUE(test::eventually([&] { return listeners().size() == 1; }));
  for (const char* how : {"--quiet", "--json"}) {
    const auto ran = run({"show", how, "--port", port()});
    EXPECT_EQ(ran.code, 0) << ran.err;
    EXPECT_NE(ran.out.find("0;owned"), std::string::npos) << ran.out;
    for (const char* raw : {"\x1b", "\x07", "\xc2\x9b", "\xff"}) {
      EXPECT_EQ(ran.out.find(raw), std::string::npos) << how << ran.out;
    }
  }
}

TEST_F(CtlTest, watch_shows_as_many_tables_as_asked) {
  const Running s = server(1);
  const auto ran = run({"watch", "--json", "--count", "3", "--interval", "10ms", "--port", port()});
  EXPECT_EQ(ran.code, 0) << ran.err;
  std::istringstream lines(ran.out);
  int n = 0;
  for (std::string line; std::getline(lines, line); n++) {
    EXPECT_EQ(json::parse(line)["listeners"].size(), 1U);
  }
  EXPECT_EQ(n, 3);
  auto endless = start_tool({"watch", "--port", port()});
  ASSERT_TRUE(test::eventually([&] { return !endless.peek().out.empty(); }));
  endless.signal(SIGINT);
  EXPECT_EQ(endless.result().code, 0);
}

}  // namespace
}  // namespace reuseport
