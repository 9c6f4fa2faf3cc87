// SPDX-License-Identifier: Apache-2.0
#include "child.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <string_view>

#include "limits.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

namespace {

/// Variables that a service manager sets for this process alone: sd_notify(3), sd_listen_fds(3),
/// sd_watchdog_enabled(3).
constexpr std::array<std::string_view, 6> ours_alone = {
    "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID", "WATCHDOG_USEC"};

std::vector<std::string> environment(const Children::Environment& more) {
  std::vector<std::string> out;
  for (char** e = environ; *e != nullptr; e++) {
    const std::string_view entry(*e);
    const std::string_view name = entry.substr(0, entry.find('='));
    bool keep = true;
    for (const std::string_view ours : ours_alone) {
      keep = keep && name != ours;
    }
    for (const auto& [key, value] : more) {
      keep = keep && name != key;
    }
    if (keep) {
      out.emplace_back(entry);
    }
  }
  for (const auto& [key, value] : more) {
    out.emplace_back(key).append("=").append(value);
  }
  return out;
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> out;
  out.reserve(words.size() + 1);
  for (const std::string& word : words) {
    out.push_back(const_cast<char*>(word.c_str()));
  }
  out.push_back(nullptr);
  return out;
}

}  // namespace

void Child::signal(int signum) const {
  if (running()) {
    static_cast<void>(state_->process.signal(signum));  // it may have ended by now
  }
}

void Child::signal_group(int signum) const {
  if (running()) {
    ::kill(-pid(), signum);
  }
}

int Child::exit_code() const {
  const int status = *state_->status;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string Child::how() const {
  const int status = *state_->status;
  return WIFEXITED(status) ? fmt::format("exited with {}", WEXITSTATUS(status))
                           : "was killed by " + signal_name(WTERMSIG(status));
}

Children::Children() {
  ::signal(SIGCHLD, SIG_DFL);
}

Expected<Child> Children::start(const std::vector<std::string>& command, const Environment& more) {
  const std::vector<std::string> words = environment(more);
  const std::vector<char*> argv = pointers(command);
  const std::vector<char*> envp = pointers(words);

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return failed(Error{"pipe2", errno, {}});
  }
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) {
    return failed(Error{"fork", errno, {}});
  }
  if (pid == 0) {
    // Its own group: a signal from the terminal reaches only us, and we can end the whole group.
    ::setpgid(0, 0);
    restore_open_files();
    Signals::restore();
    ::execvpe(argv[0], argv.data(), envp.data());
    const int err = errno;
    ::_exit(::write(write_end.get(), &err, sizeof(err)) > 0 ? 127 : 126);
  }
  auto process = Process::open(pid);  // not reaped yet, so the number is still its own
  write_end.reset();
  int err = 0;
  ssize_t n = 0;
  do {
    n = ::read(read_end.get(), &err, sizeof(err));
  } while (n < 0 && errno == EINTR);
  if (n == static_cast<ssize_t>(sizeof(err)) || !process) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return process ? failed(Error{"exec " + command.front(), err, {}}) : failed(process.error());
  }
  auto state = std::make_shared<Child::State>(Child::State{.process = std::move(*process)});
  known_[pid] = state;
  return Child(std::move(state));
}

Child Children::adopt(Process process) {
  return Child(std::make_shared<Child::State>(
      Child::State{.process = std::move(process), .status = {}, .adopted = true}));
}

void Children::give_away(const Child& child) {
  child.disown();
  known_.erase(child.pid());
  only_known_ = true;
}

void Children::reap() {
  int status = 0;
  const auto reaped = [&](pid_t pid) {
    const auto it = known_.find(pid);
    if (it == known_.end()) {
      return;  // an orphan
    }
    if (const auto state = it->second.lock()) {
      state->status = status;
    }
    known_.erase(it);
  };
  if (!only_known_) {
    for (pid_t pid = 0; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      reaped(pid);
    }
    return;
  }
  for (auto it = known_.begin(); it != known_.end();) {
    const pid_t pid = (it++)->first;
    if (::waitpid(pid, &status, WNOHANG) > 0) {
      reaped(pid);
    }
  }
}

void end_group(const Child& child, Children& children, Waiter& waiter) {
  constexpr auto pause = std::chrono::milliseconds(20);
  constexpr auto grace = std::chrono::milliseconds(1000);
  child.signal_group(SIGKILL);
  for (const auto until = after(grace); child.running() && Clock::now() < until;) {
    static_cast<void>(waiter.wait(pause));
    children.reap();
  }
}

std::vector<std::string> shell(const std::string& command) {
  return {"/bin/sh", "-c", command};
}

}  // namespace reuseport::ctl
