// SPDX-License-Identifier: Apache-2.0
#include "support/ctl.hpp"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>
#include <thread>

namespace reuseport::test::ctl {

namespace {

volatile sig_atomic_t asked_to_end = 0;
volatile sig_atomic_t terms_file = -1;  ///< where each SIGTERM leaves a byte

/// Bound; a TCP socket is yet to listen.
Fd bound_socket(const Address& at, int type, bool reuseport, bool reuseaddr, bool v6only,
                const std::string& device = {}) {
  Fd fd(::socket(at.family(), type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  const int alone = v6only ? 1 : 0;
  if (at.family() == AF_INET6) {
    ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &alone, sizeof(alone));
  }
  if (reuseaddr) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  }
  const auto len = static_cast<socklen_t>(device.size());
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device.data(), len) != 0 ||
      (reuseport && ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0) ||
      ::bind(fd.get(), at.get(), at.len) != 0) {
    return {};
  }
  return fd;
}

/// A child that lives a few milliseconds and holds all that its parent holds.
void fork_one() {
  if (::fork() == 0) {
    ::usleep(5000);
    ::_exit(0);
  }
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {
  }
}

/// Each with @p answer.
void answer_datagrams(int fd, const std::string& answer) {
  char byte = 0;
  Address from;
  for (from.len = sizeof(from.storage);
       ::recvfrom(fd, &byte, 1, 0, reinterpret_cast<sockaddr*>(&from.storage), &from.len) >= 0;
       from.len = sizeof(from.storage)) {
    ::sendto(fd, answer.data(), answer.size(), 0, from.get(), from.len);
  }
}

/// Another user's process below ours, with a listener of its own.
void fork_stranger(const Address& at) {
  if (::fork() == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) {
      ::_exit(7);
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // a change of the user clears it
    const Fd own = open_listener(at);
    while (own) {
      ::pause();
    }
    ::_exit(8);
  }
}

/// CTL_TEST_SERVER="PORT LISTENERS [ip=ADDRESS] [v6only] [plain] [idle] [stubborn] [terms=FILE]
/// [defer] [v6] [udp] [reuseaddr] [fails] [keep] [threads] [forks] [stranger] [apart] [admin]
/// [stays] [workers=N] [device=NAME]": answers each connection or datagram with its pid; on TERM
/// closes at once, without looking at its queue.
///   plain     no SO_REUSEPORT
///   keep      connections stay open until the client closes them, or TERM cuts them
///   terms     each SIGTERM leaves a byte there, and ends nothing
///   threads   the first thread ends, another serves
///   forks     a new child all the time
///   stranger  has a child of another user that listens on the next port
///   apart     each listener on an address of its own
///   admin     one more listener, without SO_REUSEPORT and on any port
///   stays     outlives its parent
///   USR1      makes it one that its own user may not look into
///   workers   so many children that hold the listeners too
int serve(const std::string& how) {
  std::istringstream in(how);
  std::uint16_t port = 0;
  int count = 0;
  in >> port >> count;
  const std::set<std::string> words{std::istream_iterator<std::string>(in), {}};
  const auto has = [&](const char* word) { return words.contains(word); };
  const auto value = [&](const std::string& name, const std::string& otherwise) {
    const auto at = words.lower_bound(name + "=");
    return at != words.end() && at->starts_with(name + "=") ? at->substr(name.size() + 1)
                                                            : otherwise;
  };
  if (has("fails")) {
    return 3;
  }
  const bool forks = has("forks");
  const bool keep = has("keep");
  std::string ip = value("ip", has("v6") ? "::1" : "127.0.0.1");
  if (!has("stays")) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  }
  struct sigaction action {};
  action.sa_handler = [](int) { asked_to_end = 1; };
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGUSR1, [](int) { ::prctl(PR_SET_DUMPABLE, 0); });
  if (has("stubborn")) {
    ::signal(SIGTERM, SIG_IGN);
  }
  if (const std::string terms = value("terms", ""); !terms.empty()) {
    terms_file = ::open(terms.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    ::signal(SIGTERM, [](int) { asked_to_end = ::write(terms_file, "T", 1) == 1 ? 0 : 1; });
  }
  std::vector<Fd> fds;
  std::vector<pollfd> polls;
  const rlimit enough{static_cast<rlim_t>(count) + 100, static_cast<rlim_t>(count) + 100};
  if (count > 900 && ::setrlimit(RLIMIT_NOFILE, &enough) != 0) {
    return 8;
  }
  for (int i = 0; i < count; i++) {
    if (has("apart")) {
      ip = "127.1." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1);
    }
    fds.push_back(bound_socket(address(ip, port), has("udp") ? SOCK_DGRAM : SOCK_STREAM,
                               !has("plain"), has("reuseaddr"), has("v6only"),
                               value("device", "")));
    if (!fds.back()) {
      return 4;
    }
    const int seconds = 60;
    if (has("defer") && ::setsockopt(fds.back().get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds,
                                     sizeof(seconds)) != 0) {
      return 5;
    }
    polls.push_back({fds.back().get(), POLLIN, 0});
  }
  const Fd admin =
      has("admin") ? bound_socket(address(ip), SOCK_STREAM, false, false, false) : Fd();
  if (admin && ::listen(admin.get(), 4096) != 0) {
    return 4;
  }
  for (int i = std::stoi(value("workers", "0")); i > 0; i--) {
    if (::fork() == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) {
        ::pause();
      }
    }
  }
  if (has("stranger")) {
    fork_stranger(address(ip, static_cast<std::uint16_t>(port + 1)));
  }
  // Last: whoever sees all listeners may connect, and counts on what was asked for.
  if (!has("udp") && std::any_of(fds.begin(), fds.end(),
                                 [](const Fd& fd) { return ::listen(fd.get(), 4096) != 0; })) {
    return 4;
  }
  const std::string pid = std::to_string(::getpid());
  const auto loop = [&] {
    std::vector<Fd> kept;
    while (asked_to_end == 0) {
      if (forks) {
        fork_one();
      }
      std::erase_if(kept, [](const Fd& fd) {
        char byte = 0;
        return ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) == 0;
      });
      if (::poll(polls.data(), has("idle") ? 0 : polls.size(), forks ? 1 : 20) <= 0) {
        continue;
      }
      for (const pollfd& p : polls) {
        if (has("udp")) {
          answer_datagrams(p.fd, pid);
          continue;
        }
        Fd got(::accept4(p.fd, nullptr, nullptr, SOCK_CLOEXEC));
        if (got && ::send(got.get(), pid.data(), pid.size(), MSG_NOSIGNAL) < 0) {
          ::_exit(6);
        }
        if (keep && got) {
          kept.push_back(std::move(got));
        }
      }
    }
    ::_exit(0);
  };
  if (has("threads")) {
    std::thread(loop).detach();
    ::syscall(SYS_exit, 0);  // the first thread alone; its locals stay where they are
  }
  loop();
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

void refuse_bpf(int errnum) {
  std::array<sock_filter, 4> code = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bpf, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<std::uint32_t>(errnum)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog prog{code.size(), code.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0) {
    ::_exit(125);
  }
}

void forbid_bpf() {
  refuse_bpf(EPERM);
}

constexpr int calls_there = 200;  ///< the descriptor that begin() leaves

void NotReady::begin() {
  const auto option = static_cast<std::uint32_t>(SO_REUSEPORT_LISTEN_OFF);
  std::array<sock_filter, 6> code = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, option, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog prog{code.size(), code.data()};
  const auto flag = static_cast<unsigned>(SECCOMP_FILTER_FLAG_NEW_LISTENER);
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  const auto fd = static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flag, &prog));
  if (fd < 0 || ::dup2(fd, calls_there) != calls_there) {
    ::_exit(125);
  }
}

NotReady::NotReady(pid_t pid, std::uint16_t port, int times)
    : process_(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))) {
  EXPECT_TRUE(eventually([&] {
    calls_.reset(static_cast<int>(::syscall(SYS_pidfd_getfd, process_.get(), calls_there, 0)));
    return calls_.valid();
  })) << std::strerror(errno);
  thread_ = std::thread([this, port, times] { answer(port, times); });
}

NotReady::~NotReady() {
  over_ = true;
  thread_.join();
}

void NotReady::answer(std::uint16_t port, int times) {
  while (!over_) {
    pollfd p{calls_.get(), POLLIN, 0};
    seccomp_notif call{};
    if (::poll(&p, 1, 50) != 1) {
      continue;
    }
    // The process has ended: asked for a call now, Linux before 6.11 would wait for ever.
    if ((p.revents & POLLIN) == 0) {
      return;
    }
    if (::ioctl(calls_.get(), SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) {
      continue;
    }
    const Fd socket(static_cast<int>(
        ::syscall(SYS_pidfd_getfd, process_.get(), static_cast<int>(call.data.args[0]), 0)));
    seccomp_notif_resp reply{};
    reply.id = call.id;
    if (socket.valid() && local_address(socket.get()).port() == port && seen_++ < times) {
      reply.error = -EAGAIN;
    } else {
      reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    }
    ::ioctl(calls_.get(), SECCOMP_IOCTL_NOTIF_SEND, &reply);
  }
}

pid_t answer_of(const Fd& client, int* error) {
  std::array<char, 16> text{};
  pollfd p{client.get(), POLLIN, 0};
  const bool came = ::poll(&p, 1, 20'000) == 1;
  const bool answered = came && ::recv(client.get(), text.data(), text.size() - 1, 0) > 0;
  if (error != nullptr) {
    *error = answered ? 0 : came ? errno : ETIMEDOUT;
  }
  return answered ? std::atoi(text.data()) : 0;
}

bool fdinfo_has(pid_t pid, const std::string& text) {
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fdinfo", gone)) {
    std::ifstream info(entry.path());
    for (std::string line; std::getline(info, line);) {
      if (line.starts_with(text)) {
        return true;
      }
    }
  }
  return false;
}

Namesake::Namesake(pid_t number, const std::string& how) {
  clone_args args{};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<std::uint64_t>(&number);
  args.set_tid_size = 1;
  pid_ = static_cast<pid_t>(::syscall(SYS_clone3, &args, sizeof(args)));
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const std::string me = self();
    const std::string env = "CTL_TEST_SERVER=" + how;
    std::array<const char*, 2> argv = {me.c_str(), nullptr};
    std::array<const char*, 2> envp = {env.c_str(), nullptr};
    ::execve(me.c_str(), const_cast<char**>(argv.data()), const_cast<char**>(envp.data()));
    ::_exit(126);
  }
  EXPECT_EQ(pid_, number) << std::strerror(errno);
}

Namesake::~Namesake() {
  if (lives()) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
}

bool Namesake::lives() {
  if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) != 0) {
    pid_ = -1;
  }
  return pid_ > 0;
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
