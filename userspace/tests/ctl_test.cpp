// SPDX-License-Identifier: Apache-2.0
// reuseportctl as a person runs it: the built program, real processes, a network namespace of its
// own. On a kernel without the option the same drains must work by steering.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill(), which csignal lacks
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "reuseport/listener.hpp"
#include "host/steer.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using test::address;

// --- the server under test: this program again, see Server ---

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
    fds.push_back(test::open_listener(address(v6 ? "::1" : "127.0.0.1", port),
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

// --- running things ---

std::string self() {
  std::array<char, 4096> path{};
  const ssize_t n = ::readlink("/proc/self/exe", path.data(), path.size());
  return {path.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0))};
}

std::string tool() {
  const std::string me = self();
  return me.substr(0, me.rfind("/tests/")) + "/reuseportctl";
}

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
  [[nodiscard]] json doc() const { return json::parse(out, nullptr, false); }
};

/// A program with its output in pipes. Killed by the destructor.
class Running {
 public:
  explicit Running(std::vector<std::string> argv, const std::function<void()>& before = {},
                   const std::vector<std::string>& env = {}) {
    int out[2];
    int err[2];
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(err, O_CLOEXEC), 0);
    // opened while we still may: another user need not be able to walk to the build directory
    const Fd program(argv[0].front() == '/' ? ::open(argv[0].c_str(), O_PATH | O_CLOEXEC) : -1);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(out[1], STDOUT_FILENO);
      ::dup2(err[1], STDERR_FILENO);
      for (const std::string& e : env) {
        ::putenv(const_cast<char*>(e.c_str()));
      }
      if (before) {
        before();
      }
      std::vector<char*> args;
      args.reserve(argv.size() + 1);
      for (std::string& a : argv) {
        args.push_back(a.data());
      }
      args.push_back(nullptr);
      if (program) {
        ::execveat(program.get(), "", args.data(), environ, AT_EMPTY_PATH);
      } else {
        ::execvp(args[0], args.data());
      }
      ::_exit(126);
    }
    ::close(out[1]);
    ::close(err[1]);
    out_.reset(out[0]);
    err_.reset(err[0]);
    for (const Fd* fd : {&out_, &err_}) {
      ::fcntl(fd->get(), F_SETFL, O_NONBLOCK);
    }
  }
  Running(Running&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)),
        out_(std::move(other.out_)),
        err_(std::move(other.err_)),
        ran_(std::move(other.ran_)) {}
  Running& operator=(Running&&) = delete;
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;
  ~Running() { kill(SIGKILL); }

  [[nodiscard]] pid_t pid() const { return pid_; }
  void signal(int s) const { ::kill(pid_, s); }
  void kill(int s) {
    if (pid_ > 0) {
      ::kill(pid_, s);
      ::kill(pid_, SIGCONT);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  /// Its output so far.
  const Ran& peek() {
    std::array<char, 65536> buf{};
    for (auto [fd, into] : {std::pair{&out_, &ran_.out}, std::pair{&err_, &ran_.err}}) {
      ssize_t n = 0;
      while ((n = ::read(fd->get(), buf.data(), buf.size())) > 0) {
        into->append(buf.data(), static_cast<std::size_t>(n));
      }
    }
    return ran_;
  }
  bool ended() {
    int status = 0;
    peek();
    if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      ran_.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      peek();
    }
    return pid_ < 0;
  }
  Ran result(std::chrono::milliseconds wait = 60s) {
    EXPECT_TRUE(test::eventually([this] { return ended(); }, wait)) << "still running";
    return ran_;
  }

 private:
  pid_t pid_ = -1;
  Fd out_;
  Fd err_;
  Ran ran_;
};

Running start_tool(std::vector<std::string> args, const std::function<void()>& before = {},
                   const std::vector<std::string>& env = {}) {
  args.insert(args.begin(), tool());
  return Running(std::move(args), before, env);
}

Ran run(std::vector<std::string> args, const std::function<void()>& before = {}) {
  return start_tool(std::move(args), before).result();
}

void become_nobody() {
  if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) {
    ::_exit(125);
  }
}

class CtlTest : public test::NetNsTest {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    ASSERT_EQ(::access(tool().c_str(), X_OK), 0) << tool() << " is not built";
    const Fd probe = test::open_listener(address("127.0.0.1"));
    port_ = test::local_address(probe.get()).port();
  }

  /// A server with @p count listeners, all of them up.
  Running server(int count = 2, const std::string& how = "") {
    const std::size_t before = listeners().size();
    Running started(
        {self()}, {},
        {"CTL_TEST_SERVER=" + std::to_string(port_) + " " + std::to_string(count) + " " + how});
    EXPECT_TRUE(test::eventually([&] {
      return listeners().size() == before + static_cast<std::size_t>(count);
    })) << started.peek().err;
    return started;
  }
  [[nodiscard]] std::vector<DiagSocket> listeners() const {
    std::vector<DiagSocket> all;
    auto diag = SockDiag::open();
    for (const Protocol p : {Protocol::tcp, Protocol::udp}) {
      const auto some = diag->listeners(p, port_);
      all.insert(all.end(), some->begin(), some->end());
    }
    return all;
  }
  [[nodiscard]] std::vector<std::string> modes() const {
    std::vector<std::string> out;
    for (const DiagSocket& s : listeners()) {
      out.emplace_back(s.info ? to_string(s.info->mode) : "none");
    }
    return out;
  }
  [[nodiscard]] bool program_attached() const {
    const auto all = listeners();
    return std::any_of(all.begin(), all.end(), [](const DiagSocket& s) {
      const auto p = attached_program(s.protocol, s.cookie);
      return p && p->has_value();
    });
  }
  /// The pid that answers a new connection; 0 with the errno in @p error otherwise.
  pid_t ask(int* error = nullptr, const char* ip = "127.0.0.1") const {
    const Fd client = test::open_client(address(ip, port_));
    int e = test::connect_result(client.get());
    std::array<char, 16> text{};
    pollfd p{client.get(), POLLIN, 0};
    if (e == 0 && ::poll(&p, 1, 5000) == 1) {
      e = ::recv(client.get(), text.data(), text.size() - 1, 0) > 0 ? 0 : errno;
    }
    if (error != nullptr) {
      *error = e;
    }
    return e == 0 ? std::atoi(text.data()) : 0;
  }
  [[nodiscard]] static std::string pid_of(const Running& r) { return std::to_string(r.pid()); }
  [[nodiscard]] std::string port() const { return std::to_string(port_); }

  std::uint16_t port_ = 0;
};

// --- reading ---

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
  const std::string state = test::expect_supported() ? "on 0 0/4096 GROUP:2/0/0" : "- - 0/4096 -";
  const std::string uid = std::to_string(::geteuid());
  EXPECT_EQ(text,
            "PROTO ADDRESS MODE HANDSHAKES QUEUE GROUP UID INODE PROCESS\n"
            "tcp 127.0.0.1:PORT " +
                state + " " + uid +
                " INODE0 ctl_test[PID]\n"
                "tcp 127.0.0.1:PORT " +
                state + " " + uid + " INODE1 ctl_test[PID]\n");
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
    EXPECT_EQ(s["processes"][0]["command"], "ctl_test");
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
    // null where it cannot be seen: a patched kernel built without BTF
    EXPECT_TRUE(one["bpf_program"] == json({{"attached", false}}) ||
                (test::expect_supported() && one["bpf_program"].is_null()));
    EXPECT_EQ(one["half_open_at_address"], 0);
    EXPECT_EQ(one["listeners_at_address"], 2);
    EXPECT_EQ(one["processes"][0]["command_line"], self());
  }
  const auto text = run({"show", "--port", port()});
  EXPECT_NE(text.out.find("  inode       "), std::string::npos) << text.out;
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

// --- bad input: what is said, the exit code, and the same in JSON ---

struct Bad {
  std::vector<std::string> args;
  int code;
  std::string says;
};

void expect_refused(const Bad& bad, const std::function<void()>& before = {}) {
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

TEST_F(CtlTest, usage_errors) {
  for (const Bad& bad : std::vector<Bad>{
           {{}, 2, "subcommand"},
           {{"frobnicate"}, 2, "frobnicate"},
           {{"list", "--pid", "abc"}, 2, "abc"},
           {{"list", "--pid", "0"}, 2, "--pid"},
           {{"list", "--pid", "-3"}, 2, "--pid"},
           {{"list", "--pid", "99999999999999999999"}, 2, "--pid"},
           {{"list", "--port", "0"}, 2, "--port"},
           {{"list", "--port", "65536"}, 2, "--port"},
           {{"list", "--addr", "localhost"}, 2, "localhost"},
           {{"list", "--inode", "x"}, 2, "--inode"},
           {{"show"}, 2, "needs --pid"},
           {{"on"}, 2, "needs --pid"},
           {{"off", "--tcp"}, 2, "needs --pid"},
           {{"standby"}, 2, "needs --pid"},
           {{"drain"}, 2, "--pid"},
           {{"drain", "--pid", "1", "--signal", "NOPE"}, 2, "NOPE"},
           {{"drain", "--pid", "1", "--timeout", "-1"}, 2, "--timeout"},
           {{"drain", "--pid", "1", "--timeout", "1 fortnight"}, 2, "--timeout"},
           {{"drain", "--pid", "1", "--method", "magic"}, 2, "magic"},
           {{"drain", "--pid", "1", "--on-deadline", "panic"}, 2, "panic"},
           {{"drain", "--pid", "1", "--wait"}, 2, "--signal"},
           {{"watch", "--count", "0"}, 2, "--count"},
           {{"watch", "--interval", "soon"}, 2, "--interval"},
           {{"restart"}, 2, "command"},
       }) {
    expect_refused(bad);
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

// --- on, off, standby ---

TEST_F(CtlTest, modes_are_set_on_another_process_or_refused_as_unsupported) {
  const Running old = server(1);
  const Running fresh = server(1);
  const auto off = run({"off", "--pid", pid_of(old)});
  if (!test::expect_supported()) {
    EXPECT_EQ(off.code, 3);
    EXPECT_EQ(modes(), (std::vector<std::string>{"none", "none"}));
    return;
  }
  EXPECT_EQ(off.code, 0) << off.err;
  for (int i = 0; i < 16; i++) {
    EXPECT_EQ(ask(), fresh.pid());
  }
  const auto again = run({"standby", "--json", "--pid", pid_of(old)}).doc();
  EXPECT_EQ(again["changed"][0]["before"], "off");
  EXPECT_EQ(again["changed"][0]["mode"], "standby");
  EXPECT_EQ(run({"on", "--dry-run", "--pid", pid_of(old)}).code, 0);
  EXPECT_NE(std::find(modes().begin(), modes().end(), "standby"), modes().end());
  EXPECT_EQ(run({"on", "--pid", pid_of(old)}).code, 0);
  EXPECT_EQ(modes(), (std::vector<std::string>{"on", "on"}));
}

TEST_F(CtlTest, off_refuses_the_last_and_the_shared) {
  REUSEPORT_ONLY_WHEN_SUPPORTED();
  const Running old = server(2);
  expect_refused({{"off", "--port", port()}, 7, "without an ON listener"});
  EXPECT_EQ(modes(), (std::vector<std::string>{"on", "on"}));
  const auto inode = std::to_string(listeners()[0].inode);
  EXPECT_EQ(run({"off", "--inode", inode}).code, 0) << "one of two may go";
  expect_refused({{"off", "--port", port()}, 7, "without an ON listener"});
  EXPECT_EQ(run({"off", "--allow-last", "--port", port()}).code, 0);
  EXPECT_EQ(modes(), (std::vector<std::string>{"off", "off"}));
}

TEST_F(CtlTest, a_socket_another_process_holds_is_refused) {
  const Fd shared = test::open_listener(address("127.0.0.1", port_));
  const Running holder({"sleep", "60"}, [&] { ::fcntl(shared.get(), F_SETFD, 0); });
  const Running fresh = server(1);
  ASSERT_TRUE(test::eventually([&] {
    return run({"list", "--json", "--pid", pid_of(holder)}).code == 0;
  }));
  expect_refused({{"drain", "--pid", pid_of(holder)}, 5, "shared with process"});
  if (test::expect_supported()) {
    expect_refused({{"off", "--pid", pid_of(holder)}, 5, "shared with process"});
    expect_refused({{"standby", "--pid", pid_of(holder)}, 5, "shared with process"});
    EXPECT_EQ(*Listener(shared.get()).mode(), Mode::on);
    EXPECT_EQ(run({"off", "--allow-shared", "--pid", pid_of(holder)}).code, 0);
    EXPECT_EQ(*Listener(shared.get()).mode(), Mode::off);
  }
}

// --- drain ---

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

/// Clients that connect without pause in a child; how many failed. Counts and the word to stop are
/// in shared memory: a signal would interrupt a client and look like a lost connection.
class Load {
 public:
  explicit Load(const std::function<bool()>& one)
      : shared_(static_cast<Shared*>(::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                                            MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (!shared_->stop) {
        (one() ? shared_->answered : shared_->failed)++;
      }
      ::_exit(0);
    }
  }
  Load(const Load&) = delete;
  Load(Load&&) = delete;
  Load& operator=(const Load&) = delete;
  Load& operator=(Load&&) = delete;
  ~Load() {
    stop();
    ::munmap(shared_, sizeof(Shared));
  }
  /// {answered, failed}
  std::array<int, 2> stop() {
    if (pid_ > 0) {
      shared_->stop = true;
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
    return {shared_->answered, shared_->failed};
  }

 private:
  struct Shared {
    std::atomic<bool> stop;
    std::atomic<int> answered;
    std::atomic<int> failed;
  };
  Shared* shared_;
  pid_t pid_;
};

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
  for (const int s : {SIGTERM, SIGINT}) {
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

// --- restart ---

class RestartTest : public CtlTest {
 protected:
  /// The supervisor over this program as a server. @p how may name a file to read the rest from.
  Running supervise(std::vector<std::string> options, const std::string& how = "2") {
    std::vector<std::string> args = {"restart", "--json"};
    args.insert(args.end(), options.begin(), options.end());
    std::array<char, 32> name = {"/tmp/ctl_test.XXXXXX"};
    const Fd file(::mkstemp(name.data()));
    how_ = name.data();
    say(how);
    for (const std::string& a : std::vector<std::string>{
             "--", "/bin/sh", "-c",
             "CTL_TEST_SERVER=\"" + port() + " $(cat " + how_ + ")\" exec " + self()}) {
      args.push_back(a);
    }
    return start_tool(args, {}, {"NOTIFY_SOCKET=" + notify_});
  }
  void TearDown() override {
    if (!how_.empty()) {
      ::unlink(how_.c_str());
    }
  }
  void say(const std::string& how) const { std::ofstream(how_) << how << std::flush; }
  static bool saw(Running& r, const std::string& event) {
    return test::eventually(
        [&] { return r.peek().out.find(R"("event":")" + event + '"') != std::string::npos; }, 60s);
  }

  std::string how_;
  std::string notify_;
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
  Running r = supervise(
      {"--ready",
       "test \"$(cat " + std::string("/dev/null") + ")\" = \"\" -a ! -e /tmp/ctl_test.no." + port(),
       "--ready-timeout", "1"});
  ASSERT_TRUE(saw(r, "started")) << r.peek().err;
  const pid_t first = ask();
  std::ofstream("/tmp/ctl_test.no." + port()) << "no";
  r.signal(SIGHUP);
  ASSERT_TRUE(saw(r, "restart_failed")) << r.peek().err;
  ::unlink(("/tmp/ctl_test.no." + port()).c_str());
  EXPECT_NE(r.peek().err.find("--ready says no"), std::string::npos) << r.peek().err;
  EXPECT_EQ(listeners().size(), 2U);
  EXPECT_EQ(ask(), first);
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
  if (!test::expect_supported()) {
    EXPECT_EQ(ran.doc()["restart"]["method"], "steer");
    expect_refused({{"restart", "--dry-run", "--method", "option", "--", "sh"}, 3, "lacks"});
  } else {
    EXPECT_EQ(ran.doc()["restart"]["method"], "option");
  }
}

TEST_F(RestartTest, a_server_that_never_listens_is_an_error) {
  const auto ran =
      run({"restart", "--ready-timeout", "300ms", "--stop-timeout", "1", "--", "sleep", "60"});
  EXPECT_EQ(ran.code, 1);
  EXPECT_NE(ran.err.find("not ready in time"), std::string::npos) << ran.err;
}

TEST_F(RestartTest, tells_the_service_manager) {
  std::string path = "/tmp/ctl_test.notify." + port();
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  path.copy(un.sun_path, sizeof(un.sun_path) - 1);
  const Fd manager(::socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(manager.get(), reinterpret_cast<sockaddr*>(&un), sizeof(un)), 0);
  notify_ = path;
  Running r = supervise({});
  std::string heard;
  const auto hear = [&](const std::string& what) {
    return test::eventually(
        [&] {
          std::array<char, 4096> buf{};
          const ssize_t n = ::recv(manager.get(), buf.data(), buf.size(), 0);
          if (n > 0) {
            heard.append(buf.data(), static_cast<std::size_t>(n)).append("\n");
          }
          return heard.find(what) != std::string::npos;
        },
        60s);
  };
  EXPECT_TRUE(hear("READY=1")) << heard;
  heard.clear();
  r.signal(SIGHUP);
  EXPECT_TRUE(hear("RELOADING=1\nMONOTONIC_USEC=")) << heard;
  EXPECT_TRUE(hear("READY=1")) << heard;
  r.signal(SIGTERM);
  EXPECT_TRUE(hear("STOPPING=1")) << heard;
  EXPECT_EQ(r.result().code, 0);
  ::unlink(path.c_str());
}

// --- what keeps docs and code together, and speed ---

TEST_F(CtlTest, help_is_there_for_each_command) {
  for (const char* command :
       {"probe", "list", "show", "watch", "on", "off", "standby", "drain", "restart"}) {
    const auto ran = run({command, "--help"});
    EXPECT_EQ(ran.code, 0) << command;
    EXPECT_NE(ran.out.find("--help"), std::string::npos) << command;
    EXPECT_EQ(ran.err, "") << command;
  }
  EXPECT_EQ(run({"--help"}).code, 0);
  EXPECT_EQ(run({"--version"}).code, 0);
}

/// Creates @p n listeners and waits. Two of them stay below anyone's limit of open files.
Running many_listeners(int first_port, int n) {
  return Running({"/bin/sh", "-c", "exec sleep 600"}, [=] {
    for (int i = 0; i < n; i++) {
      const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
      const auto at = address("127.0.0.1", static_cast<std::uint16_t>(first_port + i));
      if (fd < 0 || ::bind(fd, at.get(), at.len) != 0 || ::listen(fd, 1) != 0) {
        ::_exit(1);
      }
    }
  });
}

TEST_F(CtlTest, list_of_20000_takes_at_most_twice_the_time_of_ss) {
  ASSERT_EQ(::system("ss -V >/dev/null"), 0) << "needs ss(8), package iproute2";
  if (test::expect_supported() && !SteerProgram::probe()) {
    GTEST_SKIP() << "patched kernel without BTF";  // descriptors are read one by one then
  }
  constexpr int each = 5000;
  std::vector<Running> holders;
  holders.reserve(4);
  for (int i = 0; i < 4; i++) {
    holders.push_back(many_listeners(10000 + i * each, each));
  }
  auto diag = SockDiag::open();
  ASSERT_TRUE(
      test::eventually([&] { return diag->listeners(Protocol::tcp)->size() == 20000U; }, 60s));
  // Processor time, which a busy machine does not blur much; the least of several turns, taken
  // alternately, and a busy machine gets more of them.
  const auto used = [] {
    rusage u{};
    ::getrusage(RUSAGE_CHILDREN, &u);
    return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 +
           static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3;
  };
  const auto once = [&](const std::string& command) {
    const double before = used();
    EXPECT_EQ(::system((command + " >/dev/null").c_str()), 0);
    return used() - before;
  };
#ifdef __SANITIZE_ADDRESS__
  constexpr bool sanitized = true;  // which takes its own time
#else
  constexpr bool sanitized = false;
#endif
  double ss = 1e9;
  double list = 1e9;
  for (int turn = 0; turn < (sanitized ? 1 : 40) && (turn < 7 || list > 2 * ss); turn++) {
    ss = std::min(ss, once("ss -ltn"));
    list = std::min(list, once(tool() + " list --tcp"));
  }
  RecordProperty("ss_ms", std::to_string(ss));
  RecordProperty("list_ms", std::to_string(list));
  std::printf("20,000 listeners: ss -ltn %.0f ms, reuseportctl list %.0f ms, ratio %.2f\n", ss,
              list, list / ss);
  EXPECT_TRUE(sanitized || list <= 2 * ss);
}

}  // namespace
}  // namespace reuseport
