// SPDX-License-Identifier: Apache-2.0
// Processes that the tool starts: each held by a pidfd, each in a process group of its own, and the
// statuses of all that end here, orphans included.
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

/// A process started by Children::start(). Copies are the same process. Nothing is ended by the
/// destructor: that is the owner's decision.
class Child {
 public:
  [[nodiscard]] pid_t pid() const { return state_->process.pid(); }
  [[nodiscard]] ProcessPtr process() const { return {state_, &state_->process}; }
  /// Not yet reaped, that is.
  [[nodiscard]] bool running() const { return !state_->status; }

  /// To the process, or to nobody once it has ended.
  void signal(int signum) const;
  /// To its process group too. Does nothing once it was reaped: the number may be another's then.
  void signal_group(int signum) const;

  /// What a shell would say: the exit code, or 128 plus the signal. Only once it has ended.
  [[nodiscard]] int exit_code() const;
  /// "exited with 3", "was killed by SIGKILL"
  [[nodiscard]] std::string how() const;

 private:
  friend class Children;
  struct State {
    Process process;
    std::optional<int> status;  // as waitpid() gave it
  };
  explicit Child(std::shared_ptr<State> state) : state_(std::move(state)) {}

  std::shared_ptr<State> state_;
};

/// All of them. One object a program, for it reaps whatever ends below this process.
class Children {
 public:
  using Environment = std::vector<std::pair<std::string, std::string>>;

  /// Takes SIGCHLD back to its default: a caller that ignores it would have the kernel reap.
  Children();

  /// Starts a program, with every signal at its default and none blocked, @p more in its
  /// environment and nothing of what a service manager told us. A failing exec is an error here and
  /// no dead child.
  [[nodiscard]] Outcome<Child> start(const std::vector<std::string>& command,
                                     const Environment& more = {});

  /// Collects whoever has ended: ours, and orphans that became ours (PID 1, subreaper).
  void reap();

 private:
  std::map<pid_t, std::weak_ptr<Child::State>> known_;
};

/// Kills @p child with its process group, and waits a moment for its end.
void end_group(const Child& child, Children& children, Waiter& waiter);

/// Programs that are run on the way, by /bin/sh.
[[nodiscard]] std::vector<std::string> shell(const std::string& command);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_CHILD_HPP
