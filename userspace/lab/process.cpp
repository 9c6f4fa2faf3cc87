// SPDX-License-Identifier: Apache-2.0
#include "process.hpp"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace lab {
namespace {

constexpr int first_fd = 3;
constexpr int exec_failed = 127;

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

/// The program of the generations, in the same directory as this one (restart-lab, or the socket
/// server).
Result<std::string> server_program() {
  std::error_code code;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", code);
  if (code) {
    return error(fmt::format("readlink /proc/self/exe: {}", code.message()));
  }
  const auto beside = self.parent_path() / "restart-lab-server";
  if (access(beside.c_str(), X_OK) != 0) {
    return sys_error(fmt::format("{}", beside.string()), errno,
                     "it must be in the same directory as restart-lab");
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

/// The whole file, from its beginning.
std::string contents(const Fd& file) {
  std::string text;
  char block[4096];
  for (off_t at = 0;;) {
    const auto size = pread(file.get(), static_cast<char*>(block), sizeof block, at);
    if (size <= 0) {
      return text;
    }
    text.append(static_cast<char*>(block), static_cast<std::size_t>(size));
    at += size;
  }
}

}  // namespace

Result<pid_t> spawn(const ChildSpec& spec) {
  // Allocate everything before fork(): the child of a threaded process must not.
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

  const pid_t pid = fork();
  if (pid < 0) {
    return sys_error("fork", errno);
  }
  if (pid > 0) {
    return pid;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(spec.input < 0 ? null.get() : spec.input, STDIN_FILENO);
  if (spec.output >= 0) {
    dup2(spec.output, STDOUT_FILENO);
    dup2(spec.output, STDERR_FILENO);
  }
  if (spec.cgroup >= 0 && write(spec.cgroup, "0", 1) != 1) {
    _exit(exec_failed);
  }
  if (place(fds) && (spec.ns < 0 || setns(spec.ns, CLONE_NEWNET) == 0)) {
    execvpe(program->c_str(), arguments.data(), environment.data());
  }
  _exit(exec_failed);
}

Result<void> run_tool(const std::vector<std::string>& words, const std::string& input, int ns,
                      const std::vector<int>& fds, const std::string& hint) {
  // Files rather than pipes: neither side can wait for the other.
  const Fd in{memfd_create("input", MFD_CLOEXEC)};
  const Fd out{memfd_create("output", MFD_CLOEXEC)};
  if (!in || !out) {
    return sys_error("memfd_create", errno);
  }
  if (pwrite(in.get(), input.data(), input.size(), 0) != static_cast<ssize_t>(input.size())) {
    return sys_error("write(memfd)", errno);
  }
  ChildSpec spec;
  spec.program = words.front();
  spec.arguments.assign(words.begin() + 1, words.end());
  spec.fds = fds;
  spec.ns = ns;
  spec.input = in.get();
  spec.output = out.get();
  const auto pid = spawn(spec);
  if (!pid) {
    return tl::unexpected(pid.error());
  }
  int status = 0;
  while (waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    return {};
  }
  auto said = contents(out);
  said.resize(std::min(said.find('\n'), said.size()));
  for (const std::string_view prefix : {"Error: ", "RTNETLINK answers: "}) {
    said.erase(0, said.starts_with(prefix) ? prefix.size() : 0);
  }
  said.resize(said.ends_with('.') ? said.size() - 1 : said.size());
  if (said.empty()) {
    said = WIFEXITED(status) && WEXITSTATUS(status) == exec_failed
               ? "cannot be started; is its package installed?"
               : "failed without a message";
  }
  return error(fmt::format("{}: {}{}{}", words.front(), said, hint.empty() ? "" : "; ", hint));
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

Usage own_usage() {
  Usage usage;
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) {
      std::istringstream{line.substr(6)} >> usage.rss_kb;
    }
  }
  status.close();
  std::error_code ignored;
  usage.descriptors =
      std::distance(std::filesystem::directory_iterator{"/proc/self/fd", ignored}, {});
  return usage;
}

}  // namespace lab
