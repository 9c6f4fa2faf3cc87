// SPDX-License-Identifier: Apache-2.0
// Processes that the tool starts. Each is held by a pidfd and has its own process group. The tool
// reaps them, and orphans too.
#ifndef REUSEPORTCTL_CHILD_HPP
#define REUSEPORTCTL_CHILD_HPP

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "failure.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// A process from Children::start() or Children::adopt(). Copies are the same process. The
/// destructor does not end it.
class Child {
 public:
  [[nodiscard]] pid_t pid() const { return state_->process.pid(); }
  [[nodiscard]] ProcessPtr process() const { return {state_, &state_->process}; }
  /// A child runs until it is reaped, an adopted process until it ends.
  [[nodiscard]] bool running() const {
    return !state_->status && !(state_->adopted && state_->process.ended());
  }

  /// Does nothing if the process has ended.
  void signal(int signum) const;
  /// Signals its process group too. Does nothing after the process was reaped: another process may
  /// have its number by then.
  void signal_group(int signum) const;

  /// The exit code, or 128 plus the signal, as in a shell. Only for a child that has ended.
  [[nodiscard]] int exit_code() const;
  /// The same, but empty for an adopted process: only its parent knows it.
  [[nodiscard]] std::optional<int> status() const {
    return state_->adopted ? std::nullopt : std::optional(exit_code());
  }
  /// It is not our child any more: this process is a fork of its parent.
  void disown() const { state_->adopted = true; }
  /// "exited with 3", "was killed by SIGKILL"
  [[nodiscard]] std::string how() const;

 private:
  friend class Children;
  struct State {
    Process process;
    std::optional<int> status = {};  // of waitpid()
    bool adopted = false;
  };
  explicit Child(std::shared_ptr<State> state) : state_(std::move(state)) {}

  std::shared_ptr<State> state_;
};

/// Starts and reaps processes. Reaps every child of this process, so a program has one object.
class Children {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;

  /// Sets SIGCHLD to its default: if the caller ignored it, the kernel would reap.
  Children();

  /// Starts a program with @p more in its environment, every signal at its default and none
  /// blocked. Removes the variables that a service manager has set for us. Fails if exec fails.
  [[nodiscard]] Expected<Child> start(const std::vector<std::string>& command,
                                      const Environment& more = {});

  /// A process that somebody else has started.
  [[nodiscard]] static Child adopt(Process process);

  /// Leaves @p child to the service manager, which gets it and its status when this process ends.
  /// From then on reaps no orphans.
  void give_away(const Child& child);

  /// Reaps what has ended: our children, and orphans (as PID 1 or subreaper).
  void reap();

 private:
  std::map<pid_t, std::weak_ptr<Child::State>> known_;
  bool only_known_ = false;
};

/// Kills @p child and its process group, and waits up to a second for its end.
void end_group(const Child& child, Children& children, Waiter& waiter);

/// The command line that runs @p command by /bin/sh.
[[nodiscard]] std::vector<std::string> shell(const std::string& command);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_CHILD_HPP
