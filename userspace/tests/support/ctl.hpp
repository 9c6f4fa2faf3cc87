// SPDX-License-Identifier: Apache-2.0
// reuseportctl as a person runs it: the built program, real processes, a network namespace of its
// own. The server under test is the test program itself, see serve() in ctl.cpp.
#ifndef REUSEPORT_TESTS_CTL_HPP
#define REUSEPORT_TESTS_CTL_HPP

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill(), which csignal lacks
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "host/attached_bpf.hpp"
#include "host/process.hpp"
#include "host/sockdiag.hpp"
#include "support/support.hpp"

namespace reuseport::test::ctl {

using namespace std::chrono_literals;
using nlohmann::json;

/// The path of this program.
[[nodiscard]] std::string self();
/// build/bin/reuseportctl; CTL_TEST_TOOL names another.
[[nodiscard]] std::string tool();

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
      ::signal(SIGHUP, SIG_DFL);  // whatever nohup(1) started the tests
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
  /// Nothing if it has ended: -1 would be everybody.
  void signal(int s) const {
    if (pid_ > 0) {
      ::kill(pid_, s);
    }
  }
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
  /// Nobody reads its output any more.
  void stop_reading() {
    out_.reset();
    err_.reset();
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

/// The tool with @p args, still running.
[[nodiscard]] Running start_tool(std::vector<std::string> args,
                                 const std::function<void()>& before = {},
                                 const std::vector<std::string>& env = {});
/// The same until its end.
Ran run(std::vector<std::string> args, const std::function<void()>& before = {});

/// In a child, before exec: another user from here on.
void become_nobody();

/// In a child, before exec: a kernel that lets nobody load BPF, or fails to with @p errnum.
void forbid_bpf();
void refuse_bpf(int errnum);

/// Answers with EAGAIN, instead of the kernel, where a process changes the mode of a socket of
/// @p port; the first @p times. seccomp_unotify(2).
class NotReady {
 public:
  /// In that process, before exec.
  static void begin();
  NotReady(pid_t pid, std::uint16_t port, int times);
  NotReady(const NotReady&) = delete;
  NotReady(NotReady&&) = delete;
  NotReady& operator=(const NotReady&) = delete;
  NotReady& operator=(NotReady&&) = delete;
  ~NotReady();
  /// How many such calls there were.
  [[nodiscard]] int seen() const { return seen_; }

 private:
  void answer(std::uint16_t port, int times);

  Fd process_;
  Fd calls_;
  std::atomic<int> seen_ = 0;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

/// The pid that a server answers @p client with; 0, with the errno in @p error, if none comes.
pid_t answer_of(const Fd& client, int* error = nullptr);

/// Whether a line of /proc/PID/fdinfo/* begins with @p text.
[[nodiscard]] bool fdinfo_has(pid_t pid, const std::string& text);

/// A server, see serve() in ctl.cpp, that has the number of a process that has ended and was
/// reaped: nothing that is meant for the other one may reach it. Killed by the destructor. Root
/// alone may choose a number.
class Namesake {
 public:
  Namesake(pid_t number, const std::string& how);
  Namesake(const Namesake&) = delete;
  Namesake(Namesake&&) = delete;
  Namesake& operator=(const Namesake&) = delete;
  Namesake& operator=(Namesake&&) = delete;
  ~Namesake();
  [[nodiscard]] bool lives();

 private:
  pid_t pid_ = -1;
};

/// Bad input: what is said, the exit code, and the same in JSON.
struct Bad {
  std::vector<std::string> args;
  int code;
  std::string says;
};
void expect_refused(const Bad& bad, const std::function<void()>& before = {});

class CtlTest : public NetNsTest {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    ASSERT_EQ(::access(tool().c_str(), X_OK), 0) << tool() << " is not built";
    const Fd probe = open_listener(address("127.0.0.1"));
    port_ = local_address(probe.get()).port();
  }

  /// A server with @p count listeners, all of them up.
  Running server(int count = 2, const std::string& how = "") {
    const std::size_t before = listeners().size();
    Running started(
        {self()}, {},
        {"CTL_TEST_SERVER=" + std::to_string(port_) + " " + std::to_string(count) + " " + how});
    EXPECT_TRUE(eventually([&] {
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
  /// Whether @p pid holds one of them.
  [[nodiscard]] bool listens(pid_t pid) const {
    const auto process = Process::open(pid);
    const auto held = process ? process->sockets() : Result<std::vector<SocketRef>>{};
    const auto all = listeners();
    return held && std::any_of(held->begin(), held->end(), [&](const SocketRef& ref) {
             return std::any_of(all.begin(), all.end(),
                                [&](const DiagSocket& s) { return s.inode == ref.inode; });
           });
  }
  [[nodiscard]] std::vector<std::string> modes() const {
    std::vector<std::string> out;
    for (const DiagSocket& s : listeners()) {
      out.emplace_back(s.info ? to_string(Mode{s.info->mode}) : "none");
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
  /// A drain has begun to change something: a mode, or the listeners by BPF.
  [[nodiscard]] bool at_work(const Running& drain, const std::vector<std::string>& before) const {
    return modes() != before || fdinfo_has(drain.pid(), "link_type:");
  }
  /// The method that auto comes to, as root.
  [[nodiscard]] static std::string best() { return expect_supported() ? "option" : "option-bpf"; }
  /// A client of the server.
  [[nodiscard]] Fd connected() const {
    Fd client = open_client(address("127.0.0.1", port_));
    EXPECT_EQ(connect_result(client.get()), 0);
    return client;
  }
  [[nodiscard]] std::vector<Fd> connected(std::size_t count) const {
    std::vector<Fd> clients(count);
    std::ranges::generate(clients, [this] { return connected(); });
    return clients;
  }
  /// The pid that answers a new connection or, of a @p type SOCK_DGRAM, a datagram; 0 with the
  /// errno in @p error otherwise.
  pid_t ask(int* error = nullptr, const char* ip = "127.0.0.1", int type = SOCK_STREAM) const {
    const Fd client = open_client(address(ip, port_), type);
    const int e = connect_result(client.get());
    if (e == 0 && type == SOCK_DGRAM) {
      ::send(client.get(), "x", 1, 0);
    }
    if (e != 0 && error != nullptr) {
      *error = e;
    }
    return e == 0 ? answer_of(client, error) : 0;
  }
  [[nodiscard]] static std::string pid_of(const Running& r) { return std::to_string(r.pid()); }
  [[nodiscard]] std::string port() const { return std::to_string(port_); }

  std::uint16_t port_ = 0;
};

/// Cases of the option itself: tests/run leaves them out where this kernel is to lack it.
class OptionCtlTest : public CtlTest {};
/// Cases of what distributions' kernels have and a small one lacks: BTF, time namespaces.
class StockCtl : public CtlTest {};

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

}  // namespace reuseport::test::ctl

#endif  // REUSEPORT_TESTS_CTL_HPP
