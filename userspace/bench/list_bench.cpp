// SPDX-License-Identifier: Apache-2.0
// `make bench`. What `reuseportctl list` costs for 20,000 listeners, and ss(8) beside it: the CPU
// time of the program, which a busy machine has little effect on. In a network namespace of its
// own.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace {

constexpr int holders = 4;  // none of them reaches a limit of open files
constexpr int each = 5000;
constexpr int first_port = 10000;

/// Listens on @p each ports from @p port on and says so on @p ready, until its parent ends.
[[noreturn]] void hold(int port, int ready) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  rlimit files{each + 16, each + 16};
  bool ok = ::setrlimit(RLIMIT_NOFILE, &files) == 0 || errno == EPERM;
  for (int i = 0; ok && i < each; i++) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(static_cast<std::uint16_t>(port + i));
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    const auto* address = static_cast<const sockaddr*>(static_cast<const void*>(&at));
    ok = fd >= 0 && ::bind(fd, address, sizeof(at)) == 0 && ::listen(fd, 1) == 0;
  }
  const char answer = ok ? 'y' : 'n';
  if (::write(ready, &answer, 1) != 1 || !ok) {
    ::_exit(1);
  }
  for (;;) {
    ::pause();
  }
}

/// Opens the listeners once. False: that failed.
bool listeners() {
  static const bool all = [] {
    std::array<int, 2> ends{};
    if ((::unshare(CLONE_NEWNET) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) ||
        ::pipe(ends.data()) != 0) {
      return false;
    }
    for (int i = 0; i < holders; i++) {
      if (::fork() == 0) {
        hold(first_port + i * each, ends[1]);
      }
    }
    ::close(ends[1]);
    std::array<char, 1> answer{};
    int up = 0;
    while (up < holders && ::read(ends[0], answer.data(), 1) == 1 && answer[0] == 'y') {
      up++;
    }
    return up == holders;
  }();
  return all;
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

void run(benchmark::State& state, std::vector<const char*> argv) {
  if (!listeners()) {
    state.SkipWithError("no 20,000 listeners: run as root, or raise ulimit -n");
    return;
  }
  argv.push_back(nullptr);
  for ([[maybe_unused]] auto _ : state) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
      ::execvp(argv[0], const_cast<char**>(argv.data()));
      ::_exit(127);
    }
    int status = 0;
    rusage used{};
    if (pid < 0 || ::wait4(pid, &status, 0, &used) != pid || status != 0) {
      state.SkipWithError("the program failed");
      return;
    }
    state.SetIterationTime(seconds(used.ru_utime) + seconds(used.ru_stime));
  }
}

void ss(benchmark::State& state) {
  run(state, {"ss", "-ltn"});
}

void list(benchmark::State& state) {
  const auto self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string tool = self.parent_path().parent_path() / "reuseportctl";
  run(state, {tool.c_str(), "list", "--tcp"});
}

BENCHMARK(ss)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(list)->UseManualTime()->Unit(benchmark::kMillisecond);

}  // namespace
