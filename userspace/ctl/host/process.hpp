// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_PROCESS_HPP
#define REUSEPORT_PROCESS_HPP

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "host/result.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport {

/// A descriptor of some process that is a socket.
struct SocketRef {
  int fd = -1;
  std::uint64_t inode = 0;  ///< the N of "socket:[N]"
};

/// Another process, held by a pidfd, so that a recycled PID can never be mistaken for it. Any
/// thread.
class Process {
 public:
  /// ESRCH: no such process. EINVAL: no process id, or the id of a thread.
  [[nodiscard]] static Result<Process> open(pid_t pid);

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// Becomes readable when the process ends (pidfd_open(2)).
  [[nodiscard]] int pidfd() const noexcept { return pidfd_.get(); }

  /// Its sockets, by descriptor. ESRCH: it died; EACCES: see the hint.
  [[nodiscard]] Result<std::vector<SocketRef>> sockets() const;

  /// A duplicate of its descriptor @p fd: the same socket (pidfd_getfd(2)). EPERM: the hint says
  /// what denies it; EBADF: it has no such descriptor; ESRCH: it died.
  /// @param inode  the socket expected behind the descriptor; ESTALE when it is another by now
  [[nodiscard]] Result<Fd> duplicate(int fd, std::uint64_t inode) const;

  /// pidfd_send_signal(2); EPERM, ESRCH.
  [[nodiscard]] Status signal(int signum) const;

  /// Whether it has ended (a zombie has), waiting up to @p timeout.
  [[nodiscard]] bool ended(std::chrono::milliseconds timeout = {}) const;

  /// Whether its descriptor @p fd is still socket @p inode. False once it has ended. A process
  /// whose first thread has ended is asked through another, and one that is about to end, whose
  /// threads have let go of their descriptors already, counts as a holder until it has.
  [[nodiscard]] bool still_holds(int fd, std::uint64_t inode) const;

  /// The network namespace it is in, to compare or to enter. EACCES: see the hint.
  [[nodiscard]] Result<Fd> network_namespace() const;

  /// Its parent (/proc/PID/stat). ESRCH: it ended.
  [[nodiscard]] Result<pid_t> parent() const;

 private:
  Process(pid_t pid, Fd pidfd, Fd proc) noexcept
      : pid_(pid), pidfd_(std::move(pidfd)), proc_(std::move(proc)) {}

  pid_t pid_;
  Fd pidfd_;
  Fd proc_;  ///< /proc/PID of this very process; none where it cannot be opened
};

struct Holder {
  pid_t pid = 0;
  int fd = -1;
  std::optional<bool> reuseport = {};  ///< SO_REUSEPORT is set, where the look told
};

/// Who holds which socket.
struct Holders {
  std::unordered_map<std::uint64_t, std::vector<Holder>> by_inode;  ///< each list sorted by pid, fd
  std::size_t unreadable = 0;  ///< processes whose descriptors this user must not see

  [[nodiscard]] const std::vector<Holder>& of(std::uint64_t inode) const;
};

/// Goes through /proc/*/fd for the sockets named; for thousands of them, where it may, through a
/// BPF iterator (Linux 5.11 with BTF, CAP_BPF and CAP_PERFMON). Processes that come and go
/// meanwhile may be missed, those of other users are counted as unreadable.
/// @param inodes  sorted; empty: every socket there is
[[nodiscard]] Result<Holders> find_holders(const std::vector<std::uint64_t>& inodes);

/// @p root and all its descendants, sorted: a server with its workers. A descendant that was
/// reparented (a daemon's double fork) is not among them. ESRCH: no such process.
[[nodiscard]] Result<std::vector<pid_t>> process_tree(pid_t root);

/// The command name (/proc/PID/comm), "?" when it cannot be read. Any bytes: not fit for a
/// terminal.
[[nodiscard]] std::string command_name(pid_t pid);

/// Whether @p child is @p root or below it, each step of the way held by a pidfd while it is looked
/// at.
[[nodiscard]] bool descends(const Process& child, const Process& root);

/// The users a process may act as: real, effective, saved (/proc/PID/status). Empty when it ended.
[[nodiscard]] std::vector<uid_t> users_of(const Process& process);

/// Number of the network namespace a process is in (the N of "net:[N]").
[[nodiscard]] Result<std::uint64_t> network_namespace(pid_t pid);

namespace detail {
/// The N of "socket:[N]".
[[nodiscard]] std::optional<std::uint64_t> parse_socket_link(std::string_view link) noexcept;
/// Field 4 of /proc/PID/stat, whatever the command's name holds.
[[nodiscard]] std::optional<pid_t> parse_stat_parent(std::string_view stat) noexcept;
/// Whether /proc/PID/stat is of a thread that ends: it has let go of its descriptors, or is about
/// to.
[[nodiscard]] bool parse_stat_ends(std::string_view stat) noexcept;
/// The real uid of /proc/PID/status.
[[nodiscard]] std::optional<uid_t> parse_status_uid(std::string_view status) noexcept;
/// The real, effective and saved uid of /proc/PID/status.
[[nodiscard]] std::vector<uid_t> parse_status_uids(std::string_view status) noexcept;
}  // namespace detail

}  // namespace reuseport

#endif  // REUSEPORT_PROCESS_HPP
