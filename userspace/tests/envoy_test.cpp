// SPDX-License-Identifier: Apache-2.0
// Envoy's restarts: examples/envoy/restarter and the recipe by hand, with the stand-in
// support/envoy.cpp instead of Envoy.
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>

#include "support/ctl.hpp"

namespace reuseport {
namespace {

using namespace test::ctl;
using test::address;

std::string build_file(const std::string& name) {
  const std::string me = self();
  return me.substr(0, me.rfind("/tests/")) + "/" + name;
}

std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// One connection, and what came back on it.
struct Answer {
  pid_t pid = 0;       ///< 0: none
  bool close = false;  ///< the server said that it will close
};

/// A request on @p client, which is connected and blocking for 20 s at most.
Answer request(int client) {
  const std::string text = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
  if (::send(client, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) {
    return {};
  }
  std::string got;
  for (;;) {
    const auto end = got.find("\r\n\r\n");
    const auto length = got.find("content-length: ");
    if (end != std::string::npos && length != std::string::npos) {
      const auto size = static_cast<std::size_t>(std::atoi(got.c_str() + length + 16));
      if (got.size() >= end + 4 + size) {
        return {std::atoi(got.c_str() + end + 4),
                got.find("connection: close") != std::string::npos};
      }
    }
    pollfd p{client, POLLIN, 0};
    std::array<char, 1024> some{};
    const ssize_t n = ::poll(&p, 1, 20'000) == 1 ? ::recv(client, some.data(), some.size(), 0) : -1;
    if (n <= 0) {
      return {};
    }
    got.append(some.data(), static_cast<std::size_t>(n));
  }
}

class EnvoyTest : public CtlTest {
 protected:
  void SetUp() override {
    CtlTest::SetUp();
    const json at = {{"address", "127.0.0.1"}, {"port_value", port_}};
    const json admin = {{"address", "127.0.0.1"}, {"port_value", 0}};
    std::ofstream(dir_.file("envoy.json"))
        << json{{"admin", {{"address", {{"socket_address", admin}}}}},
                {"static_resources", {{"listeners", {{{"address", {{"socket_address", at}}}}}}}}};
    install("11.104");
  }
  /// Installs a new Envoy.
  void install(const std::string& build) const {
    const std::string next = dir_.file("envoy.new");
    std::filesystem::copy_file(build_file("support/envoy"), next);
    std::ofstream(next, std::ios::app | std::ios::binary) << "\nSTANDIN version=" << build << "\n"
                                                          << std::flush;
    ::chmod(next.c_str(), 0755);
    std::filesystem::rename(next, program());
  }
  [[nodiscard]] std::string program() const { return dir_.file("envoy"); }
  [[nodiscard]] std::vector<std::string> envoy(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {program(), "-c", dir_.file("envoy.json"), "--concurrency",
                                      "2"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  Running restarter(std::vector<std::string> options = {},
                    const std::vector<std::string>& more = {"--parent-shutdown-time-s", "1"}) {
    std::vector<std::string> args = {build_file("examples/envoy/restarter"), "--json"};
    args.insert(args.end(), options.begin(), options.end());
    args.emplace_back("--");
    for (const std::string& word : envoy(more)) {
      args.push_back(word);
    }
    return Running(std::move(args), [] { ::prctl(PR_SET_PDEATHSIG, SIGTERM); },
                   {"RUNTIME_DIRECTORY=" + dir_.path()});
  }

  /// The facts of the @p nth event of this name; null if it has not come within a minute.
  static json saw(Running& r, const std::string& name, int nth = 1) {
    json found;
    (void)test::eventually(
        [&] {
          std::istringstream lines(r.peek().out);
          int count = 0;
          for (std::string line; std::getline(lines, line);) {
            const json doc = json::parse(line, nullptr, false);
            if (doc.is_object() && doc.value("event", "") == name && ++count == nth) {
              found = doc;
              return true;
            }
          }
          return r.ended();
        },
        60s);
    return found;
  }
  static pid_t pid_in(const json& event) { return event.value("pid", 0); }

  /// The admin address of the first Envoy of a restarter.
  [[nodiscard]] std::string first_admin() const {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.path())) {
      if (entry.path().filename() == "admin.0") {
        return read(entry.path());
      }
    }
    return "";
  }

  /// The pid that answers a new connection; 0 if none does.
  [[nodiscard]] pid_t get() const {
    const Fd client = test::open_client(address("127.0.0.1", port_));
    return test::connect_result(client.get()) == 0 ? request(client.get()).pid : 0;
  }
  /// Clients that keep their connections and close them when the server asks for it. A connection
  /// that ends in another way was cut.
  [[nodiscard]] std::function<bool()> keeps() const {
    const auto client = std::make_shared<Fd>();
    return [this, client] {
      if (!*client) {
        *client = test::open_client(address("127.0.0.1", port_));
        if (test::connect_result(client->get()) != 0) {
          client->reset();
          return false;
        }
      }
      const Answer answer = request(client->get());
      if (answer.pid == 0 || answer.close) {
        client->reset();
      }
      std::this_thread::sleep_for(2ms);
      return answer.pid != 0;
    };
  }
  static bool alive(pid_t pid) {
    const auto process = Process::open(pid);
    return process && !process->ended();
  }
  static bool ends(pid_t pid) {
    return test::eventually([&] { return !alive(pid); });
  }
  /// Requests on one connection, all answered by @p server, until it announces that it will close.
  static bool answers_until_it_is_asked_to_leave(const Fd& client, pid_t server) {
    Answer last;
    (void)test::eventually(
        [&] {
          std::this_thread::sleep_for(100ms);
          last = request(client.get());
          return last.close || last.pid != server;
        },
        60s);
    return last.close && last.pid == server;
  }
  /// Whether the server has closed it.
  static bool cut(const Fd& client) {
    char byte = 0;
    const ssize_t n = ::recv(client.get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }

  const test::TempDir dir_;
};

void expect_lossless(Load& fresh, Load& kept) {
  const auto [answered, refused] = fresh.stop();
  EXPECT_GT(answered, 0);
  EXPECT_EQ(refused, 0) << "new connections lost";
  const auto [requests, cut] = kept.stop();
  EXPECT_GT(requests, 0);
  EXPECT_EQ(cut, 0) << "established connections cut";
}

TEST_F(EnvoyTest, equal_versions_are_a_hot_restart) {
  const std::string log = dir_.file("log");
  Running r = restarter({}, {"--parent-shutdown-time-s", "10", "--log-path", log});
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  Load load([&] { return get() != 0; });
  Load kept(keeps());
  r.signal(SIGHUP);
  const json restarted = saw(r, "restarted");
  ASSERT_TRUE(restarted.is_object()) << r.peek().err;
  EXPECT_EQ(restarted["how"], "hot restart");
  EXPECT_EQ(restarted["epoch"], 1);
  EXPECT_EQ(restarted["old"], first);
  EXPECT_EQ(listeners().size(), 2U) << "they are the parent's own";

  std::filesystem::rename(log, log + ".1");
  r.signal(SIGUSR1);
  const auto named = [&](pid_t pid) {
    return read(log).find(std::to_string(pid)) != std::string::npos;
  };
  EXPECT_TRUE(test::eventually([&] { return named(first) && named(pid_in(restarted)); }))
      << read(log);

  EXPECT_TRUE(saw(r, "old_ended").is_object()) << "by its child, after --parent-shutdown-time-s";
  r.signal(SIGHUP);
  const json again = saw(r, "restarted", 2);
  EXPECT_EQ(again["epoch"], 2) << r.peek().err;
  EXPECT_TRUE(saw(r, "old_ended", 2).is_object());
  expect_lossless(load, kept);
  EXPECT_EQ(get(), pid_in(again));
  r.signal(SIGTERM);
  EXPECT_EQ(r.result().code, 0);
  EXPECT_FALSE(alive(pid_in(again)));
}

TEST_F(EnvoyTest, different_versions_go_side_by_side) {
  Running r = restarter();
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  Load load([&] { return get() != 0; });
  Load kept(keeps());
  for (int i = 1; i <= 3; i++) {
    install("12.10" + std::to_string(i));
    r.signal(SIGHUP);
    const json restarted = saw(r, "restarted", i);
    ASSERT_TRUE(restarted.is_object()) << r.peek().err;
    EXPECT_EQ(restarted["how"], "side by side");
    EXPECT_EQ(restarted["epoch"], 0) << "of a base id of its own";
    EXPECT_EQ(restarted["drain"]["drained"], true) << restarted;
    EXPECT_EQ(restarted["drain"]["connections_left"], 0);
    EXPECT_TRUE(saw(r, "old_ended", i).is_object());
  }
  EXPECT_FALSE(alive(first));
  r.signal(SIGHUP);
  EXPECT_EQ(saw(r, "restarted", 4)["how"], "hot restart") << "of what is there by now";
  EXPECT_TRUE(saw(r, "old_ended", 4).is_object());
  expect_lossless(load, kept);
}

TEST_F(EnvoyTest, an_established_connection_is_waited_for) {
  Running r = restarter();
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, first);
  install("12.1");
  r.signal(SIGHUP);
  ASSERT_TRUE(test::eventually([&] {
    const pid_t now = get();
    return now != 0 && now != first;
  })) << r.peek().err;
  EXPECT_FALSE(test::eventually([&] { return cut(client) || !alive(first); }, 1s));
  EXPECT_TRUE(answers_until_it_is_asked_to_leave(client, first));
  EXPECT_TRUE(saw(r, "restarted").is_object()) << r.peek().err;
  EXPECT_TRUE(ends(first));
}

TEST_F(EnvoyTest, a_connection_that_stays_is_cut_at_the_limit_and_told) {
  Running r = restarter({"--drain-timeout", "8"});
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, first);
  Load load([&] { return get() != 0; });
  install("12.1");
  r.signal(SIGHUP);
  EXPECT_EQ(saw(r, "restarted")["drain"]["drained"], false) << r.peek().err;
  EXPECT_TRUE(ends(first));
  EXPECT_EQ(load.stop()[1], 0);
  EXPECT_TRUE(cut(client));
  EXPECT_NE(r.peek().err.find("1 connection"), std::string::npos) << r.peek().err;
}

/// What a newcomer does wrong, and the expected message.
struct Fault {
  const char* name;
  const char* build;
  const char* told;
};
class EnvoyFaultTest : public EnvoyTest, public ::testing::WithParamInterface<Fault> {};

TEST_P(EnvoyFaultTest, the_old_one_serves_on) {
  // waited for in full only where a newcomer is never ready
  const bool waits = std::string(GetParam().name).ends_with("never_ready");
  Running r = restarter({"--ready-timeout", waits ? "6" : "30", "--drain-timeout", "60"});
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  std::string build = GetParam().build;
  const bool hot = build.starts_with("11.104");
  if (build.ends_with("=")) {
    build += first_admin();  // which answers
  }
  Load load([&] { return get() != 0; });
  Load kept(keeps());
  install(build);
  r.signal(SIGHUP);
  const json failed = saw(r, "restart_failed");
  ASSERT_TRUE(failed.is_object()) << r.peek().err;
  EXPECT_NE(failed["message"].get<std::string>().find(GetParam().told), std::string::npos)
      << failed;
  EXPECT_EQ(failed["pid"], first);
  EXPECT_TRUE(test::eventually([&] { return listeners().size() == 2; }));
  EXPECT_EQ(get(), first);
  if (hot) {
    // its admin interface went to the child: there is no way to tell it to end its connections
    EXPECT_EQ(kept.stop()[1], 0);
  }
  install(build.substr(0, build.find(' ')));
  r.signal(SIGHUP);
  const json restarted = saw(r, "restarted");
  ASSERT_TRUE(restarted.is_object()) << "the next one works: " << r.peek().err;
  EXPECT_EQ(restarted["how"], "side by side");
  EXPECT_EQ(restarted["drain"]["drained"], true) << restarted;
  EXPECT_EQ(r.peek().err.find("without telling it to end them") != std::string::npos, hot);
  EXPECT_TRUE(saw(r, "old_ended").is_object());
  expect_lossless(load, kept);
  EXPECT_EQ(get(), pid_in(restarted));
}

INSTANTIATE_TEST_SUITE_P(
    newcomer, EnvoyFaultTest,
    ::testing::Values(Fault{"dies", "12.1 dies", "exited with 1 before it was ready"},
                      Fault{"never_ready", "12.1 never-ready", "503 at /ready"},
                      Fault{"wrong_admin", "12.1 wrong-admin=", "is not listening on the admin"},
                      Fault{"no_version", "12.1 no-version", "--hot-restart-version"},
                      Fault{"child_dies", "11.104 dies", "exited with 1 before it was ready"},
                      Fault{"child_never_ready", "11.104 never-ready", "not ready in time"}),
    [](const auto& fault) { return std::string(fault.param.name); });

TEST_F(EnvoyTest, a_child_that_has_the_listeners_is_kept_whatever_it_says) {
  Running r = restarter({"--ready-timeout", "6"});
  ASSERT_TRUE(saw(r, "started").is_object()) << r.peek().err;
  install("11.104 wrong-admin=" + first_admin());
  Load load([&] { return get() != 0; });
  Load kept(keeps());
  r.signal(SIGHUP);
  const json restarted = saw(r, "restarted");
  ASSERT_TRUE(restarted.is_object()) << r.peek().err;
  EXPECT_EQ(restarted["ready"], false);
  EXPECT_NE(r.peek().err.find("admin address"), std::string::npos) << r.peek().err;
  EXPECT_EQ(get(), pid_in(restarted));
  expect_lossless(load, kept);
}

TEST_F(EnvoyTest, a_child_that_dies_with_the_listeners_is_replaced) {
  Running r = restarter({}, {"--parent-shutdown-time-s", "900"});
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, first);
  install("11.104 dies-late");
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed").is_object()) << r.peek().err;
  // the one started instead dies late only in a hot restart
  const json replaced = saw(r, "replaced");
  ASSERT_TRUE(replaced.is_object()) << r.peek().err;
  EXPECT_EQ(get(), pid_in(replaced));
  EXPECT_EQ(request(client.get()).pid, first) << "it finishes what it has";
}

TEST_F(EnvoyTest, a_hot_restart_waits_for_the_parent_of_the_last_one) {
  Running r = restarter({}, {"--parent-shutdown-time-s", "12"});
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, first);
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restarted").is_object()) << r.peek().err;
  std::this_thread::sleep_for(1100ms);
  r.signal(SIGHUP);
  EXPECT_TRUE(test::eventually(
      [&] { return r.peek().err.find("waiting for the parent") != std::string::npos; }));
  EXPECT_TRUE(alive(first));
  EXPECT_EQ(request(client.get()).pid, first) << "not cut by the second restart";
  EXPECT_EQ(saw(r, "restarted", 2)["epoch"], 2) << r.peek().err;
  EXPECT_FALSE(alive(first));
}

TEST_F(EnvoyTest, nothing_is_left_when_it_ends) {
  Running r = restarter({}, {"--parent-shutdown-time-s", "900"});
  ASSERT_TRUE(saw(r, "started").is_object()) << r.peek().err;
  r.signal(SIGHUP);
  const json restarted = saw(r, "restarted");
  ASSERT_TRUE(restarted.is_object()) << r.peek().err;
  r.signal(SIGTERM);
  EXPECT_EQ(r.result().code, 0);
  EXPECT_FALSE(alive(restarted["old"].get<pid_t>()));
  EXPECT_FALSE(alive(pid_in(restarted)));
  EXPECT_TRUE(listeners().empty());
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    EXPECT_FALSE(entry.is_directory()) << entry.path();
  }
}

TEST_F(EnvoyTest, it_ends_with_the_status_of_envoy) {
  Running r = restarter();
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  ::kill(first, SIGKILL);
  EXPECT_EQ(r.result().code, 128 + SIGKILL);
}

TEST_F(EnvoyTest, a_supervisor_that_is_killed_takes_envoy_along) {
  Running r = restarter();
  const pid_t first = pid_in(saw(r, "started"));
  ASSERT_NE(first, 0) << r.peek().err;
  r.signal(SIGKILL);
  EXPECT_TRUE(ends(first)) << "as Envoy asks for: PR_SET_PDEATHSIG";
}

TEST_F(EnvoyTest, flags_of_the_restarters_own_are_refused) {
  for (const char* flag : {"--restart-epoch", "--base-id=3", "--admin-address-path"}) {
    Running r = restarter({}, {flag, "1"});
    EXPECT_EQ(r.result().code, 2);
    EXPECT_NE(r.peek().err.find("is set by the restarter"), std::string::npos) << r.peek().err;
  }
}

/// An Envoy without a restarter, ready.
struct Alone {
  Running process;
  std::string admin;
};

class EnvoyByHandTest : public EnvoyTest {
 protected:
  Alone start() {
    const std::string admin = dir_.file("admin." + std::to_string(++started_));
    Running process(envoy({"--use-dynamic-base-id", "--admin-address-path", admin}));
    EXPECT_TRUE(test::eventually([&] { return !read(admin).empty() && listens(process.pid()); }))
        << process.peek().err;
    return {std::move(process), read(admin)};
  }
  [[nodiscard]] static std::string ask_to_drain(const Alone& envoy) {
    return build_file("examples/envoy/restarter") + " --post " + envoy.admin;
  }
  int started_ = 0;
};

TEST_F(EnvoyByHandTest, the_recipe_cuts_nothing) {
  Alone old = start();
  Load load([&] { return get() != 0; });
  Load kept(keeps());
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, old.process.pid());
  const Alone fresh = start();
  Running drain = start_tool({"drain", "--json", "--pid", pid_of(old.process), "--reuseport-only",
                              "--connections", "0", "--timeout", "15m", "--signal", "TERM",
                              "--wait", "--before-signal", ask_to_drain(old)});
  EXPECT_FALSE(test::eventually([&] { return cut(client) || drain.ended(); }, 1s));
  EXPECT_TRUE(answers_until_it_is_asked_to_leave(client, old.process.pid()));
  EXPECT_EQ(drain.result().code, 0) << drain.peek().err;
  expect_lossless(load, kept);
  EXPECT_EQ(get(), fresh.process.pid());
}

// What these recipes did before, which was wrong: graceful returns at once, and TERM cuts.
TEST_F(EnvoyByHandTest, without_waiting_it_cuts) {
  Alone old = start();
  const Fd client = connected();
  ASSERT_EQ(request(client.get()).pid, old.process.pid());
  const Alone fresh = start();
  const auto ran = run({"drain", "--pid", pid_of(old.process), "--reuseport-only", "--signal",
                        "TERM", "--wait", "--before-signal", ask_to_drain(old)});
  EXPECT_EQ(ran.code, 0) << ran.err;
  EXPECT_TRUE(cut(client));
}

}  // namespace
}  // namespace reuseport
