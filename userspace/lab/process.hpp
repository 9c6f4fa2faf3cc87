// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_PROCESS_HPP
#define LAB_PROCESS_HPP

#include <sys/types.h>

#include <string>
#include <vector>

#include "base.hpp"

namespace lab {

/// How to start a child. Descriptors are moved to the numbers 3, 4, ... in their order; besides
/// them only 0, 1 and 2 are open.
struct ChildSpec {
  std::string program;                   ///< as execvp(3); empty: restart-lab-server
  std::vector<std::string> arguments;    ///< without argv[0]
  std::vector<std::string> environment;  ///< NAME=VALUE, in addition to the inherited ones
  std::vector<int> fds;
  int ns = -1;      ///< network namespace to start in; -1: the caller's
  int input = -1;   ///< stdin; -1: /dev/null
  int output = -1;  ///< stdout and stderr; -1: the caller's
  int cgroup = -1;  ///< cgroup.procs of the cgroup to start in; -1: the caller's
};

/// Forks and executes. The child gets SIGKILL when the calling thread ends (PR_SET_PDEATHSIG).
/// @return the process id
Result<pid_t> spawn(const ChildSpec& spec);

/// Runs a tool to its end, with `input` as its stdin. If it fails, the error is its first line of
/// output and `hint`. @param fds as ChildSpec::fds
Result<void> run_tool(const std::vector<std::string>& words, const std::string& input, int ns = -1,
                      const std::vector<int>& fds = {}, const std::string& hint = {});

/// A child process; killed and reaped with the object if it is still there.
class Child {
 public:
  Child() = default;
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&& other) noexcept;
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { kill_and_reap(); }

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// True once the process has ended (or there never was one); reaps it.
  bool gone();

 private:
  void kill_and_reap();
  pid_t pid_ = -1;
};

/// The resources of this process.
struct Usage {
  std::int64_t rss_kb = 0;
  std::int64_t descriptors = 0;  ///< open ones, that which reads /proc/self/fd included
};
Usage own_usage();

}  // namespace lab

#endif  // LAB_PROCESS_HPP
