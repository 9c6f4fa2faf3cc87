// SPDX-License-Identifier: Apache-2.0
#include "child.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>

namespace lab {
namespace {

constexpr int first_fd = 3;

/// Puts `fds` at 3, 4, ...: first out of the way, then into place. Async-signal-safe.
bool place(std::vector<int>& fds) {
  const int above = first_fd + static_cast<int>(fds.size());
  for (auto& fd : fds) {
    fd = fcntl(fd, F_DUPFD_CLOEXEC, above);
    if (fd < 0) {
      return false;
    }
  }
  for (std::size_t i = 0; i < fds.size(); ++i) {
    if (dup2(fds[i], first_fd + static_cast<int>(i)) < 0) {
      return false;
    }
  }
  return true;
}

/// The program of the generations, which lies beside this one: restart-lab, or the socket
/// server.
Result<std::string> server_program() {
  std::error_code code;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", code);
  if (code) {
    return error(fmt::format("readlink /proc/self/exe: {}", code.message()));
  }
  const auto beside = self.parent_path() / "restart-lab-server";
  if (access(beside.c_str(), X_OK) != 0) {
    return sys_error(fmt::format("{}", beside.string()), errno, "it belongs beside restart-lab");
  }
  return beside.string();
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  result.reserve(words.size() + 1);
  for (auto& word : words) {
    result.push_back(word.data());
  }
  result.push_back(nullptr);
  return result;
}

}  // namespace

Result<pid_t> spawn(const ChildSpec& spec) {
  // Everything is made before fork(): the child of a threaded process must not allocate.
  auto program = spec.program.empty() ? server_program() : Result<std::string>{spec.program};
  if (!program) {
    return tl::unexpected(program.error());
  }
  std::vector<std::string> words{*program};
  words.insert(words.end(), spec.arguments.begin(), spec.arguments.end());
  const auto arguments = pointers(words);
  std::vector<std::string> variables = spec.environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    variables.emplace_back(*entry);
  }
  const auto environment = pointers(variables);
  auto fds = spec.fds;
  const Fd null{open("/dev/null", O_RDWR | O_CLOEXEC)};
  if (!null) {
    return sys_error("open /dev/null", errno);
  }

  Fd log;
  if (!spec.log.empty()) {
    log.reset(open(spec.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!log) {
      return sys_error(fmt::format("open {}", spec.log), errno);
    }
  }

  const pid_t pid = fork();
  if (pid < 0) {
    return sys_error("fork", errno);
  }
  if (pid > 0) {
    return pid;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(null.get(), STDIN_FILENO);
  if (log) {
    dup2(log.get(), STDOUT_FILENO);
    dup2(log.get(), STDERR_FILENO);
  }
  if (place(fds) && (spec.ns < 0 || setns(spec.ns, CLONE_NEWNET) == 0)) {
    execvpe(program->c_str(), arguments.data(), environment.data());
  }
  _exit(127);
}

Child& Child::operator=(Child&& other) noexcept {
  if (this != &other) {
    kill_and_reap();
    pid_ = std::exchange(other.pid_, -1);
  }
  return *this;
}

bool Child::gone() {
  if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == pid_) {
    pid_ = -1;
  }
  return pid_ < 0;
}

void Child::kill_and_reap() {
  if (pid_ <= 0) {
    return;
  }
  kill(pid_, SIGKILL);
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

}  // namespace lab
