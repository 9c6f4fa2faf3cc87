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

/// Another process, held by a pidfd, so that a recycled PID is never mistaken for it. Safe from any
/// thread.
class Process {
 public:
  /// ESRCH: no such process. EINVAL: not a process id, or the id of a thread.
  [[nodiscard]] static Result<Process> open(pid_t pid);

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// Becomes readable when the process ends (pidfd_open(2)).
  [[nodiscard]] int pidfd() const noexcept { return pidfd_.get(); }

  /// Its sockets, sorted by descriptor. ESRCH: it has ended; EACCES: see the hint.
  [[nodiscard]] Result<std::vector<SocketRef>> sockets() const;

  /// A duplicate of its descriptor @p fd: the same socket (pidfd_getfd(2)). EPERM: the hint says
  /// what denies it; EBADF: it has no such descriptor; ESRCH: it has ended.
  /// @param inode  the expected socket; ESTALE if the descriptor is another one by now
  [[nodiscard]] Result<Fd> duplicate(int fd, std::uint64_t inode) const;

  /// pidfd_send_signal(2); EPERM, ESRCH.
  [[nodiscard]] Status signal(int signum) const;

  /// Whether it has ended (a zombie has), waiting up to @p timeout.
  [[nodiscard]] bool ended(std::chrono::milliseconds timeout = {}) const;

  /// Whether it has ended or is about to: its descriptors may be closed already. False if that
  /// cannot be found out.
  [[nodiscard]] bool ending() const;

  /// Whether its descriptor @p fd is still socket @p inode. False once it has ended. If its first
  /// thread has ended, reads another thread's descriptors. A process that is exiting, whose threads
  /// have already released their descriptors, counts as a holder until it has ended.
  [[nodiscard]] bool still_holds(int fd, std::uint64_t inode) const;

  /// The network namespace it is in, to compare or to enter. EACCES: see the hint.
  [[nodiscard]] Result<Fd> network_namespace() const;

  /// Its parent (/proc/PID/stat). ESRCH: it has ended.
  [[nodiscard]] Result<pid_t> parent() const;

 private:
  Process(pid_t pid, Fd pidfd, Fd proc) noexcept
      : pid_(pid), pidfd_(std::move(pidfd)), proc_(std::move(proc)) {}

  pid_t pid_;
  Fd pidfd_;
  Fd proc_;  ///< /proc/PID of this very process; empty if it cannot be opened
};

struct Holder {
  pid_t pid = 0;
  int fd = -1;
  std::optional<bool> reuseport = {};  ///< whether SO_REUSEPORT is set, if known
};

/// Who holds which socket.
struct Holders {
  std::unordered_map<std::uint64_t, std::vector<Holder>> by_inode;  ///< each list sorted by pid, fd
  std::size_t unreadable = 0;  ///< processes whose descriptors this user may not see
  /// This user does not even see the processes of others (hidepid=): process 1 is not listed. Not
  /// noticed where that one is this user's own.
  bool hidden = false;

  /// Whether a socket may have holders that are not listed here.
  [[nodiscard]] bool may_be_more() const { return unreadable > 0 || hidden; }

  [[nodiscard]] const std::vector<Holder>& of(std::uint64_t inode) const;
};

/// Scans /proc/*/fd for the given sockets; for thousands of them, uses a BPF iterator if possible
/// (Linux 5.11 with BTF, CAP_BPF and CAP_PERFMON). May miss processes that start or end during the
/// scan; counts those of other users as unreadable.
/// @param inodes  sorted; empty: every socket
[[nodiscard]] Result<Holders> find_holders(const std::vector<std::uint64_t>& inodes);

/// @p root and all its descendants, sorted: a server with its workers. Does not include descendants
/// that were reparented (a daemon's double fork). ESRCH: no such process.
[[nodiscard]] Result<std::vector<pid_t>> process_tree(pid_t root);

/// The command name (/proc/PID/comm), "?" if it cannot be read. May contain any bytes: not safe to
/// print as is.
[[nodiscard]] std::string command_name(pid_t pid);

/// Whether @p child is @p root or a descendant. Holds each process on the way by a pidfd while it
/// checks it.
[[nodiscard]] bool descends(const Process& child, const Process& root);

/// The users a process may act as: real, effective, saved (/proc/PID/status). Empty if it has
/// ended.
[[nodiscard]] std::vector<uid_t> users_of(const Process& process);

/// Number of the network namespace a process is in (the N of "net:[N]").
[[nodiscard]] Result<std::uint64_t> network_namespace(pid_t pid);

namespace detail {
/// The N of "socket:[N]".
[[nodiscard]] std::optional<std::uint64_t> parse_socket_link(std::string_view link) noexcept;
/// Field 4 of /proc/PID/stat, whatever the command name contains.
[[nodiscard]] std::optional<pid_t> parse_stat_parent(std::string_view stat) noexcept;
/// Whether /proc/PID/stat shows an exiting thread: it has released its descriptors, or is about to.
[[nodiscard]] bool parse_stat_ends(std::string_view stat) noexcept;
/// The real uid of /proc/PID/status.
[[nodiscard]] std::optional<uid_t> parse_status_uid(std::string_view status) noexcept;
/// The real, effective and saved uid of /proc/PID/status.
[[nodiscard]] std::vector<uid_t> parse_status_uids(std::string_view status) noexcept;
}  // namespace detail

}  // namespace reuseport

#endif  // REUSEPORT_PROCESS_HPP
