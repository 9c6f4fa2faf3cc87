// SPDX-License-Identifier: Apache-2.0
#include "host/process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
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
int pidfd_of_thread(pid_t tid) {
  constexpr unsigned pidfd_thread = O_EXCL;  // PIDFD_THREAD
  return static_cast<int>(::syscall(SYS_pidfd_open, tid, pidfd_thread));
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

/// Why the kernel may have denied access to a process, and how to fix it.
std::string denied_hint(pid_t pid) {
  const auto uid = owner(pid);
  if (uid && *uid != ::geteuid() && ::geteuid() != 0) {
    return "process " + std::to_string(pid) + " belongs to uid " + std::to_string(*uid) +
           "; run as root or with CAP_SYS_PTRACE";
  }
  const auto scope = detail::read_file("/proc/sys/kernel/yama/ptrace_scope");
  if (scope && !scope->empty() && scope->front() != '0') {
    return std::string("kernel.yama.ptrace_scope is ") + scope->front() +
           (scope->front() == '3' ? "; no process may inspect others on this machine"
                                  : "; run with CAP_SYS_PTRACE");
  }
  return "needs CAP_SYS_PTRACE over process " + std::to_string(pid) +
         ": it is not dumpable, has more capabilities, or is in another user namespace";
}

constexpr const char* too_few_files = "raise the limit of open files (ulimit -n)";

/// Too many open files, or another shortage: then "not found" does not mean "not there".
bool is_shortage(int errnum) {
  return errnum == EMFILE || errnum == ENFILE || errnum == ENOMEM;
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

enum class Look { done, empty, denied, failed };

/// Calls @p f(fd, inode) for every socket in the descriptor directory @p path below @p dirfd.
/// empty: there was no descriptor. errno says why it failed.
template <typename F>
Look each_socket_in(int dirfd, const char* path, F&& f) {
  const int opened = ::openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const Dir dir(opened >= 0 ? ::fdopendir(opened) : nullptr);
  if (!dir) {
    return errno == EACCES || errno == EPERM ? Look::denied : Look::failed;
  }
  Look result = Look::empty;
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (const auto fd = parse_number<int>(entry->d_name)) {
      result = Look::done;
      if (const auto inode = socket_behind(::dirfd(dir.get()), entry->d_name)) {
        f(*fd, *inode);
      }
    }
    errno = 0;
  }
  // if the process was not dumpable from the start, reading the directory fails, not opening it
  return errno == 0 ? result : errno == EACCES || errno == EPERM ? Look::denied : Look::failed;
}

/// The threads of the process whose /proc/PID is @p proc, except exiting ones. One that cannot be
/// looked at may be live. Nothing: the list cannot be read.
std::optional<std::vector<std::string>> look_for_threads(int proc) {
  std::vector<std::string> out;
  const int opened = ::openat(proc, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const Dir dir(opened >= 0 ? ::fdopendir(opened) : nullptr);
  if (!dir) {
    return std::nullopt;
  }
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (!entry) {
      return errno == 0 ? std::optional(std::move(out)) : std::nullopt;
    }
    if (!parse_number<pid_t>(entry->d_name)) {
      continue;
    }
    std::string task = std::string("task/") + entry->d_name;
    const auto stat = detail::read_file_at(proc, task + "/stat");
    const bool gone = stat ? detail::parse_stat_ends(*stat)
                           : stat.error().errnum == ENOENT || stat.error().errnum == ESRCH;
    if (!gone) {
      out.push_back(std::move(task));
    }
  }
}

/// The same; none if the list cannot be read.
std::vector<std::string> live_threads(int proc) {
  return look_for_threads(proc).value_or(std::vector<std::string>{});
}

/// Like each_socket_in(), for a process. If its first thread has ended, that one shows no
/// descriptors: read another thread's, which are the same.
template <typename F>
Look each_socket(int proc, F&& f) {
  const Look first = each_socket_in(proc, "fd", f);
  if (first != Look::empty) {
    return first;
  }
  const auto threads = look_for_threads(proc);
  if (!threads) {
    return Look::failed;  // not "no sockets"
  }
  for (const std::string& task : *threads) {
    const Look look = each_socket_in(proc, (task + "/fd").c_str(), f);
    if (look != Look::empty) {
      return look;
    }
  }
  return Look::empty;
}

Fd open_proc(pid_t pid) {
  return Fd(::open(("/proc/" + std::to_string(pid)).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
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

bool parse_stat_ends(std::string_view stat) noexcept {
  constexpr unsigned long exiting = 0x4;  // PF_EXITING
  constexpr int flags_after_state = 6;    // field 9; STATE is field 3
  const auto close = stat.rfind(')');
  if (close == std::string_view::npos || stat.size() < close + 3) {
    return true;
  }
  auto rest = stat.substr(close + 2);
  if (rest.front() == 'Z' || rest.front() == 'X') {
    return true;
  }
  for (int i = 0; i < flags_after_state; i++) {
    const auto space = rest.find(' ');
    if (space == std::string_view::npos) {
      return true;
    }
    rest.remove_prefix(space + 1);
  }
  const auto flags = parse_number<unsigned long>(rest.substr(0, rest.find(' ')));
  return !flags || (*flags & exiting) != 0;
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

std::vector<uid_t> parse_status_uids(std::string_view status) noexcept {
  constexpr std::string_view key = "\nUid:\t";
  constexpr int wanted = 3;  // real, effective, saved
  std::vector<uid_t> out;
  const auto at = status.find(key);
  auto rest = at == std::string_view::npos ? std::string_view{} : status.substr(at + key.size());
  rest = rest.substr(0, rest.find('\n'));
  for (int i = 0; i < wanted && !rest.empty(); i++) {
    const auto tab = rest.find('\t');
    if (const auto uid = parse_number<uid_t>(rest.substr(0, tab))) {
      out.push_back(*uid);
    }
    rest = tab == std::string_view::npos ? std::string_view{} : rest.substr(tab + 1);
  }
  return out;
}

}  // namespace detail

Result<Process> Process::open(pid_t pid) {
  if (pid <= 0) {
    return fail("pidfd_open", EINVAL, "a process id must be a positive number");
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
  Process process(pid, std::move(fd), open_proc(pid));
  // /proc/PID is certainly this process, not a later one, only if it is still alive
  if (process.ended()) {
    process.proc_.reset();
  }
  return process;
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

bool Process::ending() const {
  if (ended()) {
    return true;
  }
  const auto threads = proc_ ? look_for_threads(proc_.get()) : std::nullopt;
  return threads ? threads->empty() : ended();  // it may have been reaped since
}

Result<std::vector<SocketRef>> Process::sockets() const {
  std::vector<SocketRef> out;
  const Look look = each_socket(proc_.get(), [&](int fd, std::uint64_t inode) {
    out.push_back({fd, inode});
  });
  const int err = errno;
  if (ended()) {
    return fail("opendir(/proc/PID/fd)", ESRCH, gone_hint(pid_));
  }
  if (look == Look::denied || look == Look::failed) {
    return fail("opendir(/proc/PID/fd)", err, look == Look::denied ? denied_hint(pid_) : "");
  }
  std::sort(out.begin(), out.end(),
            [](const SocketRef& a, const SocketRef& b) { return a.fd < b.fd; });
  return out;
}

Result<Fd> Process::duplicate(int fd, std::uint64_t inode) const {
  Fd copy(pidfd_getfd(pidfd_.get(), fd));
  std::string hint;
  if (!copy && (errno == EBADF || errno == ESRCH) && proc_ && !ended()) {
    // its first thread may have ended
    const int err = errno;
    for (const std::string& task : live_threads(proc_.get())) {
      const auto tid = parse_number<pid_t>(std::string_view(task).substr(5));
      const Fd thread(tid && *tid != pid_ ? pidfd_of_thread(*tid) : -1);
      if (thread) {
        copy.reset(pidfd_getfd(thread.get(), fd));
        break;
      }
      if (tid && *tid != pid_) {
        hint = "the first thread of process " + std::to_string(pid_) +
               " has ended; reaching the descriptors of its other threads needs Linux 6.9";
      }
    }
    errno = copy ? 0 : err;
  }
  if (!copy) {
    const int err = errno;
    switch (err) {
      case EPERM: hint = denied_hint(pid_); break;
      case ESRCH: hint = ended() || hint.empty() ? gone_hint(pid_) : hint; break;
      case EBADF:
        hint = !hint.empty() ? hint
                             : "process " + std::to_string(pid_) + " has closed descriptor " +
                                   std::to_string(fd);
        break;
      case EMFILE: hint = too_few_files; break;
      case ENOSYS: hint = "needs Linux 5.6"; break;
      default: break;
    }
    return fail("pidfd_getfd", err, hint);
  }
  struct stat seen {};
  if (::fstat(copy.get(), &seen) != 0 || !S_ISSOCK(seen.st_mode) || seen.st_ino != inode) {
    return fail("pidfd_getfd", ESTALE,
                "descriptor " + std::to_string(fd) + " of process " + std::to_string(pid_) +
                    " is another socket by now; try again");
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
  const std::string name = "fd/" + std::to_string(fd);
  // what cannot be looked at may still be there
  const auto may_be = [&](const std::string& path) {
    errno = 0;
    const auto behind = socket_behind(proc_.get(), path.c_str());
    return behind ? *behind == inode : errno != 0 && errno != ENOENT && errno != ESRCH;
  };
  if (proc_ && may_be(name)) {
    return !ended();
  }
  if (!proc_ || ended()) {
    return false;
  }
  const auto threads = live_threads(proc_.get());
  return threads.empty() || std::any_of(threads.begin(), threads.end(), [&](const auto& task) {
           return may_be(task + "/" + name);
         });
}

Result<Fd> Process::network_namespace() const {
  Fd ns(::openat(proc_.get(), "ns/net", O_RDONLY | O_CLOEXEC));
  int err = errno;
  if (!ns && err == ENOENT && !ended()) {
    // its first thread has ended
    for (const std::string& task : live_threads(proc_.get())) {
      ns.reset(::openat(proc_.get(), (task + "/ns/net").c_str(), O_RDONLY | O_CLOEXEC));
      err = errno;
      break;
    }
  }
  if (!ns && ending()) {  // an exiting process gives its namespaces up before it has ended
    return fail("open(/proc/PID/ns/net)", ESRCH, gone_hint(pid_));
  }
  if (!ns) {
    return fail("open(/proc/PID/ns/net)", err,
                err == EACCES || err == EPERM ? denied_hint(pid_)
                : err == ENOENT               ? "no process " + std::to_string(pid_)
                                              : "");
  }
  return ns;
}

Result<pid_t> Process::parent() const {
  const auto stat = detail::read_file_at(proc_.get(), "stat");
  const auto parent = stat ? detail::parse_stat_parent(*stat) : std::nullopt;
  if (!parent) {
    return fail("read(/proc/PID/stat)", ESRCH, gone_hint(pid_));
  }
  return *parent;
}

const std::vector<Holder>& Holders::of(std::uint64_t inode) const {
  static const std::vector<Holder> none;
  const auto it = by_inode.find(inode);
  return it == by_inode.end() ? none : it->second;
}

Result<Holders> find_holders(const std::vector<std::uint64_t>& inodes) {
  // setting up the iterator costs as much as reading some thousand links
  constexpr std::size_t worth_it = 2000;
  if (inodes.size() >= worth_it) {
    if (const auto records = detail::holders_by_bpf()) {
      Holders out;
      out.by_inode.reserve(inodes.size());
      for (const auto& r : *records) {
        if (std::binary_search(inodes.begin(), inodes.end(), r.inode)) {
          out.by_inode[r.inode].push_back({r.pid, static_cast<int>(r.fd), r.reuseport != 0});
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
  out.hidden = pids->empty() || pids->front() != 1;  // which every pid namespace has
  out.by_inode.reserve(inodes.size());
  for (const pid_t pid : *pids) {
    const Fd proc = open_proc(pid);
    const Look look =
        !proc ? Look::failed : each_socket(proc.get(), [&](int fd, std::uint64_t inode) {
          if (inodes.empty() || std::binary_search(inodes.begin(), inodes.end(), inode)) {
            out.by_inode[inode].push_back({pid, fd, {}});
          }
        });
    if (look == Look::failed && is_shortage(errno)) {
      return fail("open(" + proc_path(pid, "fd") + ")", errno, too_few_files);
    }
    if (look == Look::denied) {
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
    if (!stat && is_shortage(stat.error().errnum)) {
      return fail(stat.error().call, stat.error().errnum, too_few_files);
    }
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
      // removed from the map, so that a PID recycled during the scan cannot make a cycle
      const auto kids = std::move(it->second);
      children.erase(it);
      out.insert(out.end(), kids.begin(), kids.end());
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

bool descends(const Process& child, const Process& root) {
  constexpr int deep = 100;
  if (child.pid() == root.pid()) {
    return true;
  }
  std::optional<Process> above;
  for (int i = 0; i < deep; i++) {
    const Process& at = above ? *above : child;
    const auto parent = at.parent();
    if (!parent || *parent <= 1) {
      return false;
    }
    if (*parent == root.pid()) {
      return !root.ended();
    }
    auto next = Process::open(*parent);
    // the process we hold now is the parent if the parent has not changed
    const auto again = at.parent();
    if (!next || !again || *again != *parent) {
      return false;
    }
    above = std::move(*next);
  }
  return false;
}

std::vector<uid_t> users_of(const Process& process) {
  const auto status = detail::read_file(proc_path(process.pid(), "status"));
  if (!status || process.ended()) {
    return {};
  }
  return detail::parse_status_uids(*status);
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
