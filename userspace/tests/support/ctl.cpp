// SPDX-License-Identifier: Apache-2.0
#include "support/ctl.hpp"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <csignal>
#include <cstdlib>
#include <sstream>

namespace reuseport::test::ctl {

namespace {

volatile sig_atomic_t asked_to_end = 0;

/// CTL_TEST_SERVER="PORT LISTENERS [idle] [stubborn] [defer] [v6] [udp] [fails]": answers each
/// connection with its pid; on TERM closes at once, without looking at its queue.
int serve(const std::string& how) {
  std::istringstream in(how);
  std::uint16_t port = 0;
  int count = 0;
  bool idle = false;
  bool stubborn = false;
  bool defer = false;
  bool v6 = false;
  bool udp = false;
  in >> port >> count;
  for (std::string word; in >> word;) {
    idle = idle || word == "idle";
    stubborn = stubborn || word == "stubborn";
    defer = defer || word == "defer";
    v6 = v6 || word == "v6";
    udp = udp || word == "udp";
    if (word == "fails") {
      return 3;
    }
  }
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  struct sigaction action {};
  action.sa_handler = [](int) { asked_to_end = 1; };
  ::sigaction(SIGTERM, &action, nullptr);
  if (stubborn) {
    ::signal(SIGTERM, SIG_IGN);
  }
  std::vector<Fd> fds;
  std::vector<pollfd> polls;
  for (int i = 0; i < count; i++) {
    fds.push_back(open_listener(address(v6 ? "::1" : "127.0.0.1", port),
                                udp ? SOCK_DGRAM : SOCK_STREAM, 0, 4096));
    if (!fds.back()) {
      return 4;
    }
    const int seconds = 60;
    if (defer && ::setsockopt(fds.back().get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds,
                              sizeof(seconds)) != 0) {
      return 5;
    }
    polls.push_back({fds.back().get(), POLLIN, 0});
  }
  const std::string pid = std::to_string(::getpid());
  while (asked_to_end == 0) {
    if (::poll(polls.data(), idle ? 0 : polls.size(), 20) <= 0) {
      continue;
    }
    for (const pollfd& p : polls) {
      const Fd got(::accept4(p.fd, nullptr, nullptr, SOCK_CLOEXEC));
      if (got && ::send(got.get(), pid.data(), pid.size(), MSG_NOSIGNAL) < 0) {
        return 6;
      }
    }
  }
  return 0;
}

struct ServeInstead {
  ServeInstead() {
    if (const char* how = std::getenv("CTL_TEST_SERVER")) {
      ::_exit(serve(how));
    }
  }
} const serve_instead;

}  // namespace

std::string self() {
  std::array<char, 4096> path{};
  const ssize_t n = ::readlink("/proc/self/exe", path.data(), path.size());
  return {path.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
}

std::string tool() {
  if (const char* other = std::getenv("CTL_TEST_TOOL")) {
    return other;
  }
  const std::string me = self();
  return me.substr(0, me.rfind("/tests/")) + "/reuseportctl";
}

Running start_tool(std::vector<std::string> args, const std::function<void()>& before,
                   const std::vector<std::string>& env) {
  args.insert(args.begin(), tool());
  return Running(std::move(args), before, env);
}

Ran run(std::vector<std::string> args, const std::function<void()>& before) {
  return start_tool(std::move(args), before).result();
}

void become_nobody() {
  if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) {
    ::_exit(125);
  }
}

void expect_refused(const Bad& bad, const std::function<void()>& before) {
  std::string line;
  for (const auto& a : bad.args) {
    line += a + " ";
  }
  const auto plain = run(bad.args, before);
  EXPECT_EQ(plain.code, bad.code) << line << plain.err;
  EXPECT_NE(plain.err.find(bad.says), std::string::npos) << line << plain.err;
  EXPECT_EQ(std::count(plain.err.begin(), plain.err.end(), '\n'), 1) << line << plain.err;
  EXPECT_EQ(plain.out, "") << line;
  auto args = bad.args;
  args.insert(args.begin(), "--json");
  const auto as_json = run(args, before);
  EXPECT_EQ(as_json.code, bad.code) << line;
  const json doc = as_json.doc();
  ASSERT_TRUE(doc.is_object()) << line << as_json.out;
  EXPECT_EQ(doc["error"]["exit"], bad.code) << line;
  EXPECT_TRUE(doc["error"]["message"].is_string()) << line;
}

}  // namespace reuseport::test::ctl
