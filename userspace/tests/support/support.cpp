// SPDX-License-Identifier: Apache-2.0
#include "support/support.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>
#include <thread>

#include "reuseport/linux/reuseport.h"
#include "reuseport/probe.hpp"

namespace reuseport::test {
namespace {

bool write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  return file.good();
}

// Without root a user namespace gives the right to make a network namespace.
bool new_net_ns() {
  if (::unshare(CLONE_NEWNET) == 0) {
    return true;
  }
  const uid_t uid = ::getuid();
  const gid_t gid = ::getgid();
  return ::unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 &&
         write_file("/proc/self/setgroups", "deny") &&
         write_file("/proc/self/uid_map", "0 " + std::to_string(uid) + " 1") &&
         write_file("/proc/self/gid_map", "0 " + std::to_string(gid) + " 1");
}

}  // namespace

std::string expected_support() {
  const char* expect = std::getenv("REUSEPORT_EXPECT");
  return expect != nullptr ? expect : "not_in_kernel";
}

bool expect_supported() {
  return expected_support() != "not_in_kernel";
}

void NetNsTest::SetUp() {
  ASSERT_TRUE(new_net_ns()) << "unshare(CLONE_NEWNET): " << std::strerror(errno)
                            << "; run as root or allow user namespaces";
  ASSERT_TRUE(set_lo(true)) << "lo up: " << std::strerror(errno);
  // By BPF the option is one of a network namespace.
  const char* enable = std::getenv("REUSEPORT_ENABLE");
  ASSERT_TRUE(enable == nullptr || std::system(enable) == 0) << enable;  // NOLINT(cert-env33-c)
}

const sockaddr* Address::get() const {
  return static_cast<const sockaddr*>(static_cast<const void*>(&storage));
}

std::uint16_t Address::port() const {
  sockaddr_in in{};  // the port is at the same place in sockaddr_in6
  std::memcpy(&in, &storage, sizeof(in));
  return ntohs(in.sin_port);
}

Address address(const std::string& ip, std::uint16_t port) {
  Address result;
  sockaddr_in in{};
  sockaddr_in6 in6{};
  if (::inet_pton(AF_INET, ip.c_str(), &in.sin_addr) == 1) {
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    result.len = sizeof(in);
    std::memcpy(&result.storage, &in, sizeof(in));
  } else if (::inet_pton(AF_INET6, ip.c_str(), &in6.sin6_addr) == 1) {
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(port);
    result.len = sizeof(in6);
    std::memcpy(&result.storage, &in6, sizeof(in6));
  } else {
    ADD_FAILURE() << "not an address: " << ip;
  }
  return result;
}

Address local_address(int fd) {
  Address result;
  result.len = sizeof(result.storage);
  EXPECT_EQ(
      ::getsockname(fd, static_cast<sockaddr*>(static_cast<void*>(&result.storage)), &result.len),
      0)
      << std::strerror(errno);
  return result;
}

Fd open_listener(const Address& at, int type, int protocol, int backlog) {
  Fd fd(::socket(at.family(), type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol));
  const int one = 1;
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(fd.get(), at.get(), at.len) != 0 ||
      (type == SOCK_STREAM && ::listen(fd.get(), backlog) != 0)) {
    ADD_FAILURE() << "open_listener: " << std::strerror(errno);
    return {};
  }
  return fd;
}

Fd open_client(const Address& to, int type, int* error) {
  Fd fd(::socket(to.family(), type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const bool started = ::connect(fd.get(), to.get(), to.len) == 0 || errno == EINPROGRESS;
  if (error != nullptr) {
    *error = started ? 0 : errno;
  }
  return fd;
}

int connect_result(int client, std::chrono::milliseconds wait) {
  pollfd ready{.fd = client, .events = POLLOUT, .revents = 0};
  if (::poll(&ready, 1, static_cast<int>(wait.count())) != 1) {
    return ETIMEDOUT;
  }
  int error = 0;
  socklen_t len = sizeof(error);
  return ::getsockopt(client, SOL_SOCKET, SO_ERROR, &error, &len) == 0 ? error : errno;
}

bool wait_queued(int listener, unsigned count, std::chrono::milliseconds wait) {
  return eventually(
      [&] {
        tcp_info info{};
        socklen_t len = sizeof(info);
        return ::getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
               info.tcpi_unacked >= count;  // of a listener: its accept queue
      },
      wait);
}

int try_connect(const Address& to) {
  int error = 0;
  const Fd client = open_client(to, SOCK_STREAM, &error);
  return error != 0 ? error : connect_result(client.get());
}

Fd accept_one(int listener, std::chrono::milliseconds wait) {
  pollfd ready{.fd = listener, .events = POLLIN, .revents = 0};
  if (::poll(&ready, 1, static_cast<int>(wait.count())) != 1) {
    return {};
  }
  return Fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

int count_listeners(std::uint16_t port) {
  std::ifstream file(
      "/proc/thread-self/net/tcp");  // columns: see proc_net_tcp in the kernel's docs
  int count = 0;
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string slot;
    std::string local;
    std::string remote;
    std::string state;
    words >> slot >> local >> remote >> state;
    const std::size_t colon = local.find(':');
    if (state == "0A" && colon != std::string::npos &&
        std::stoi(local.substr(colon + 1), nullptr, 16) == port) {
      ++count;
    }
  }
  return count;
}

int accept_all(int listener) {
  int count = 0;
  while (accept_one(listener).valid()) {
    ++count;
  }
  return count;
}

int accept_count(int listener, unsigned count) {
  EXPECT_TRUE(wait_queued(listener, count));
  return accept_all(listener);
}

std::vector<int> spread(const Address& to, const std::vector<const Fd*>& listeners) {
  std::vector<Fd> clients;
  for (int i = 0; i < spread_over; i++) {
    clients.push_back(open_client(to));
    EXPECT_EQ(connect_result(clients.back().get()), 0);
  }
  std::vector<int> got(listeners.size());
  EXPECT_TRUE(eventually([&] {
    for (std::size_t i = 0; i < listeners.size(); i++) {
      got[i] += accept_all(listeners[i]->get());
    }
    return std::accumulate(got.begin(), got.end(), 0) >= spread_over;
  }));
  return got;
}

bool eventually(const std::function<bool()>& what, std::chrono::milliseconds wait) {
  const auto end = std::chrono::steady_clock::now() + wait;
  while (!what()) {
    if (std::chrono::steady_clock::now() >= end) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

bool set_lo(bool up) {
  const Fd sock(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, "lo", sizeof(request.ifr_name) - 1);
  request.ifr_flags = up ? IFF_UP : 0;
  return ::ioctl(sock.get(), SIOCSIFFLAGS, &request) == 0;
}

bool set_sysctl(const std::string& name, const std::string& value) {
  std::string path = name;
  std::ranges::replace(path, '.', '/');
  return write_file("/proc/sys/" + path, value);
}

bool deny_option(int errnum) {
  constexpr auto load = [](std::size_t offset) {
    return sock_filter BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<__u32>(offset));
  };
  // On a little-endian machine the low half of a 64-bit argument comes first.
  std::array filter{
      load(offsetof(seccomp_data, nr)),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_getsockopt, 1, 0),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_setsockopt, 0, 3),
      load(offsetof(seccomp_data, args[2])),
      sock_filter BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SO_REUSEPORT_LISTEN_OFF, 0, 1),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<__u32>(errnum)),
      sock_filter BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{.len = filter.size(), .filter = filter.data()};
  detail::probe_cache = 0;  // what was asked before does not hold any more
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool hide_processes() {
  return ::unshare(CLONE_NEWNS) == 0 &&
         ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
         ::mount("proc", "/proc", "proc", 0, "hidepid=2") == 0;
}

bool in_child(const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(body() && !::testing::Test::HasFailure() ? 0 : 1);
  }
  int status = -1;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

pid_t start_program(std::vector<std::string> argv) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  argv[0] = self.parent_path().parent_path() / argv[0];
  std::vector<char*> words;
  words.reserve(argv.size() + 1);
  for (std::string& word : argv) {
    words.push_back(word.data());
  }
  words.push_back(nullptr);
  pid_t pid = -1;
  const int failed = ::posix_spawn(&pid, words[0], nullptr, nullptr, words.data(), environ);
  EXPECT_EQ(failed, 0) << argv[0] << ": " << std::strerror(failed);
  return failed == 0 ? pid : -1;
}

int exit_code(pid_t pid, std::chrono::milliseconds wait) {
  int status = 0;
  if (!eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }, wait)) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, &status, 0);
    return -1;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void without_option(const std::function<bool()>& body) {
  EXPECT_TRUE(in_child([&] { return deny_option(ENOPROTOOPT) && body(); }));
}

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TempDir::TempDir() : path_("/tmp/reuseport_test.XXXXXX") {
  // Servers of another user read there.
  if (::mkdtemp(path_.data()) == nullptr || ::chmod(path_.c_str(), 0755) != 0) {
    ADD_FAILURE() << path_ << ": " << std::strerror(errno);
    path_ = "/proc/none";  // nobody can make it, unlike the name that was asked for
  }
}

TempDir::~TempDir() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace reuseport::test
