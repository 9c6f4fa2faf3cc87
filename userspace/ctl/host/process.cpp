// SPDX-License-Identifier: Apache-2.0
#include "host/process.hpp"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>

#include "holders_bpf.hpp"
#include "procfs.hpp"

namespace reuseport {

namespace {

// glibc 2.36 declares these without extern "C", and older ones not at all
int pidfd_open(pid_t pid) {
  return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0U));
}
int pidfd_getfd(int pidfd, int fd) {
  return static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, fd, 0U));
}
int pidfd_send_signal(int pidfd, int signum) {
  return static_cast<int>(::syscall(SYS_pidfd_send_signal, pidfd, signum, nullptr, 0U));
}

using detail::Dir;
using detail::parse_number;

std::string proc_path(pid_t pid, const char* leaf) {
  return "/proc/" + std::to_string(pid) + "/" + leaf;
}

std::optional<uid_t> owner(pid_t pid) {
  const auto status = detail::read_file(proc_path(pid, "status"));
  return status ? detail::parse_status_uid(*status) : std::nullopt;
}

/// Why the kernel may have said no to looking into a process, as a person can act on it.
std::string denied_hint(pid_t pid) {
  const auto uid = owner(pid);
  if (uid && *uid != ::geteuid() && ::geteuid() != 0) {
    return "process " + std::to_string(pid) + " belongs to uid " + std::to_string(*uid) +
           "; run as root or with CAP_SYS_PTRACE";
  }
  const auto scope = detail::read_file("/proc/sys/kernel/yama/ptrace_scope");
  if (scope && !scope->empty() && scope->front() != '0') {
    return std::string("kernel.yama.ptrace_scope is ") + scope->front() +
           (scope->front() == '3' ? "; nothing may look into other processes on this machine"
                                  : "; run with CAP_SYS_PTRACE");
  }
  return "needs CAP_SYS_PTRACE over process " + std::to_string(pid) +
         ": it is not dumpable, has more capabilities, or is in another user namespace";
}

std::string gone_hint(pid_t pid) {
  return "process " + std::to_string(pid) + " has ended";
}

std::optional<std::uint64_t> socket_behind(int dirfd, const char* name) {
  std::array<char, 32> link{};  // "socket:[" and twenty digits fit
  const ssize_t n = ::readlinkat(dirfd, name, link.data(), link.size());
  if (n <= 0) {
    return std::nullopt;
  }
  return detail::parse_socket_link({link.data(), static_cast<std::size_t>(n)});
}

/// Calls @p f(fd, inode) for every socket of @p pid; false with errno set when it cannot look.
template <typename F>
bool each_socket(pid_t pid, F&& f) {
  const Dir dir(::opendir(proc_path(pid, "fd").c_str()));
  if (!dir) {
    return false;
  }
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    const auto fd = parse_number<int>(entry->d_name);
    if (fd) {
      if (const auto inode = socket_behind(::dirfd(dir.get()), entry->d_name)) {
        f(*fd, *inode);
      }
    }
    errno = 0;
  }
  return errno == 0;
}

Result<std::vector<pid_t>> all_pids() {
  const Dir proc(::opendir("/proc"));
  if (!proc) {
    return fail("opendir(/proc)", errno, "mount procfs");
  }
  std::vector<pid_t> out;
  while (const dirent* entry = ::readdir(proc.get())) {
    if (const auto pid = parse_number<pid_t>(entry->d_name)) {
      out.push_back(*pid);
    }
  }
  return out;
}

void sort_holders(Holders& out) {
  for (auto& [inode, holders] : out.by_inode) {
    std::sort(holders.begin(), holders.end(), [](const Holder& a, const Holder& b) {
      return std::pair(a.pid, a.fd) < std::pair(b.pid, b.fd);
    });
  }
}

}  // namespace

namespace detail {

std::optional<std::uint64_t> parse_socket_link(std::string_view link) noexcept {
  constexpr std::string_view head = "socket:[";
  if (!link.starts_with(head) || !link.ends_with(']')) {
    return std::nullopt;
  }
  link.remove_prefix(head.size());
  link.remove_suffix(1);
  return parse_number<std::uint64_t>(link);
}

std::optional<pid_t> parse_stat_parent(std::string_view stat) noexcept {
  // "PID (NAME) STATE PPID ...": NAME may hold anything, the last ')' ends it
  const auto close = stat.rfind(')');
  if (close == std::string_view::npos || stat.size() < close + 5 || stat[close + 1] != ' ' ||
      stat[close + 3] != ' ') {
    return std::nullopt;
  }
  const auto rest = stat.substr(close + 4);
  const auto parent = parse_number<pid_t>(rest.substr(0, rest.find(' ')));
  return parent && *parent >= 0 ? parent : std::nullopt;
}

std::optional<uid_t> parse_status_uid(std::string_view status) noexcept {
  constexpr std::string_view key = "\nUid:\t";
  const auto at = status.find(key);
  if (at == std::string_view::npos) {
    return std::nullopt;
  }
  const auto rest = status.substr(at + key.size());
  return parse_number<uid_t>(rest.substr(0, rest.find('\t')));
}

}  // namespace detail

Result<Process> Process::open(pid_t pid) {
  if (pid <= 0) {
    return fail("pidfd_open", EINVAL, "a process id is a positive number");
  }
  Fd fd(pidfd_open(pid));
  if (!fd) {
    const int err = errno;
    std::string hint;
    if (err == ESRCH) {
      hint = "no process " + std::to_string(pid);
    } else if (err == EINVAL) {
      hint = std::to_string(pid) + " is a thread, not a process";
    } else if (err == ENOSYS) {
      hint = "needs Linux 5.3 and pidfd";
    }
    return fail("pidfd_open", err, hint);
  }
  return Process(pid, std::move(fd));
}

bool Process::ended(std::chrono::milliseconds timeout) const {
  using clock = std::chrono::steady_clock;
  const auto until = clock::now() + timeout;
  for (;;) {
    pollfd p{pidfd_.get(), POLLIN, 0};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - clock::now()).count();
    const int rc = ::poll(&p, 1, static_cast<int>(std::clamp<long long>(left, 0, 1 << 30)));
    if (rc > 0) {
      return true;
    }
    if (rc == 0 || errno != EINTR || left <= 0) {
      return false;
    }
  }
}

Result<std::vector<SocketRef>> Process::sockets() const {
  std::vector<SocketRef> out;
  const bool ok = each_socket(pid_, [&](int fd, std::uint64_t inode) {
    out.push_back({fd, inode});
  });
  const int err = errno;
  // only now is it sure that /proc/PID was this process and no later one of the same number
  if (ended()) {
    return fail("opendir(/proc/PID/fd)", ESRCH, gone_hint(pid_));
  }
  if (!ok) {
    return fail("opendir(/proc/PID/fd)", err,
                err == EACCES || err == EPERM ? denied_hint(pid_) : "");
  }
  std::sort(out.begin(), out.end(),
            [](const SocketRef& a, const SocketRef& b) { return a.fd < b.fd; });
  return out;
}

Result<Fd> Process::duplicate(int fd, std::uint64_t inode) const {
  Fd copy(pidfd_getfd(pidfd_.get(), fd));
  if (!copy) {
    const int err = errno;
    std::string hint;
    switch (err) {
      case EPERM: hint = denied_hint(pid_); break;
      case ESRCH: hint = gone_hint(pid_); break;
      case EBADF:
        hint = "process " + std::to_string(pid_) + " has closed descriptor " + std::to_string(fd);
        break;
      case EMFILE: hint = "raise the limit of open files (ulimit -n)"; break;
      case ENOSYS: hint = "needs Linux 5.6"; break;
      default: break;
    }
    return fail("pidfd_getfd", err, hint);
  }
  const auto name = std::to_string(copy.get());
  const Fd self(::open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!self || socket_behind(self.get(), name.c_str()) != inode) {
    return fail("pidfd_getfd", ESTALE,
                "descriptor " + std::to_string(fd) + " of process " + std::to_string(pid_) +
                    " is another socket by now, try again");
  }
  return copy;
}

Status Process::signal(int signum) const {
  if (pidfd_send_signal(pidfd_.get(), signum) != 0) {
    const int err = errno;
    return fail("pidfd_send_signal", err,
                err == ESRCH   ? gone_hint(pid_)
                : err == EPERM ? "run as root or as the owner of the process"
                               : "");
  }
  return {};
}

bool Process::still_holds(int fd, std::uint64_t inode) const {
  const Fd dir(::open(proc_path(pid_, "fd").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return dir && socket_behind(dir.get(), std::to_string(fd).c_str()) == inode && !ended();
}

const std::vector<Holder>& Holders::of(std::uint64_t inode) const {
  static const std::vector<Holder> none;
  const auto it = by_inode.find(inode);
  return it == by_inode.end() ? none : it->second;
}

Result<Holders> find_holders(const std::vector<std::uint64_t>& inodes) {
  // setting the iterator up costs as much as some thousand links
  constexpr std::size_t worth_it = 2000;
  if (inodes.size() >= worth_it) {
    if (const auto records = detail::holders_by_bpf()) {
      Holders out;
      out.by_inode.reserve(inodes.size());
      for (const auto& r : *records) {
        if (std::binary_search(inodes.begin(), inodes.end(), r.inode)) {
          out.by_inode[r.inode].push_back({r.pid, static_cast<int>(r.fd)});
        }
      }
      sort_holders(out);
      return out;
    }
  }
  auto pids = all_pids();
  if (!pids) {
    return tl::unexpected(pids.error());
  }
  std::sort(pids->begin(), pids->end());
  Holders out;
  out.by_inode.reserve(inodes.size());
  for (const pid_t pid : *pids) {
    const bool ok = each_socket(pid, [&](int fd, std::uint64_t inode) {
      if (inodes.empty() || std::binary_search(inodes.begin(), inodes.end(), inode)) {
        out.by_inode[inode].push_back({pid, fd});
      }
    });
    if (!ok && (errno == EACCES || errno == EPERM)) {
      out.unreadable++;
    }
  }
  sort_holders(out);
  return out;
}

Result<std::vector<pid_t>> process_tree(pid_t root) {
  const auto pids = all_pids();
  if (!pids) {
    return tl::unexpected(pids.error());
  }
  std::unordered_map<pid_t, std::vector<pid_t>> children;
  bool found = false;
  for (const pid_t pid : *pids) {
    found = found || pid == root;
    const auto stat = detail::read_file(proc_path(pid, "stat"));
    if (const auto parent = stat ? detail::parse_stat_parent(*stat) : std::nullopt) {
      children[*parent].push_back(pid);
    }
  }
  if (!found) {
    return fail("process tree", ESRCH, "no process " + std::to_string(root));
  }
  std::vector<pid_t> out{root};
  for (std::size_t i = 0; i < out.size(); i++) {
    const auto it = children.find(out[i]);
    if (it != children.end()) {
      // taken out, so that a PID recycled under the scan cannot make a ring
      const auto kids = std::move(it->second);
      children.erase(it);
      out.insert(out.end(), kids.begin(), kids.end());
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::string command_name(pid_t pid) {
  auto text = detail::read_file(proc_path(pid, "comm"));
  if (!text || text->empty()) {
    return "?";
  }
  if (text->back() == '\n') {
    text->pop_back();
  }
  return *text;
}

Result<std::uint64_t> network_namespace(pid_t pid) {
  std::array<char, 32> link{};
  const auto path = proc_path(pid, "ns/net");
  const ssize_t n = ::readlink(path.c_str(), link.data(), link.size());
  if (n < 0) {
    const int err = errno;
    return fail("readlink(" + path + ")", err,
                err == EACCES || err == EPERM ? denied_hint(pid)
                : err == ENOENT               ? "no process " + std::to_string(pid)
                                              : "");
  }
  std::string_view text(link.data(), static_cast<std::size_t>(n));
  constexpr std::string_view head = "net:[";
  std::optional<std::uint64_t> number;
  if (text.starts_with(head) && text.ends_with(']')) {
    text.remove_prefix(head.size());
    text.remove_suffix(1);
    number = parse_number<std::uint64_t>(text);
  }
  if (!number) {
    return fail("readlink(" + path + ")", EBADMSG);
  }
  return *number;
}

}  // namespace reuseport
