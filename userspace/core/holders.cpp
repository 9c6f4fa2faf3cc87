// SPDX-License-Identifier: Apache-2.0
// Who else holds a socket: /proc/PID/fd.
#include <dirent.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "socket.hpp"

namespace reuseport::core {
namespace {

class Directory {
 public:
  // Takes ownership of @p fd.
  explicit Directory(int fd) noexcept : dir_(fd < 0 ? nullptr : ::fdopendir(fd)) {
    if (fd >= 0 && dir_ == nullptr) {
      ::close(fd);
    }
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  Directory(Directory&&) = delete;
  Directory& operator=(Directory&&) = delete;
  ~Directory() {
    if (dir_ != nullptr) {
      ::closedir(dir_);
    }
  }
  [[nodiscard]] bool open() const noexcept { return dir_ != nullptr; }
  [[nodiscard]] int fd() const noexcept { return ::dirfd(dir_); }
  /// The next name; null at the end (errno 0) or on an error (errno set).
  [[nodiscard]] const char* next() noexcept {
    errno = 0;
    const dirent* entry = ::readdir(dir_);  // NOLINT(concurrency-mt-unsafe): a stream of our own
    return entry == nullptr ? nullptr : entry->d_name;
  }

 private:
  DIR* dir_;
};

int open_directory(int at, const char* name) noexcept {
  return ::openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

// Parent and session of a process, from /proc/PID/stat, which any user may read.
struct Kin {
  pid_t parent = 0;
  pid_t session = 0;
};

Kin kin_of(int process) noexcept {
  Kin kin;
  const int file = ::openat(process, "stat", O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return kin;
  }
  std::array<char, 512> text{};
  const ssize_t got = ::read(file, text.data(), text.size());
  ::close(file);
  const std::string_view stat(text.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  // After the command name, which may contain anything: state, parent, process group, session.
  std::size_t at = stat.rfind(") ");
  if (at == std::string_view::npos || at + 4 > stat.size()) {
    return kin;
  }
  at += 4;
  pid_t group = 0;
  for (pid_t* field : {&kin.parent, &group, &kin.session}) {
    const auto [end, error] =
        std::from_chars(stat.data() + std::min(at, stat.size()), stat.data() + stat.size(), *field);
    at = static_cast<std::size_t>(end - stat.data()) + 1;
  }
  return kin;
}

// 0: not a socket; errno tells whether it could be read.
std::uint64_t socket_inode(int directory, const char* name) noexcept {
  constexpr std::string_view prefix = "socket:[";
  std::array<char, 64> link{};
  errno = 0;
  const ssize_t got = ::readlinkat(directory, name, link.data(), link.size());
  const std::string_view text(link.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
  std::uint64_t inode = 0;
  if (text.starts_with(prefix)) {
    std::from_chars(text.data() + prefix.size(), text.data() + text.size(), inode);
  }
  return inode;
}

class Search {
 public:
  Search(int proc, std::span<const std::uint64_t> inodes) noexcept
      : proc_(proc), inodes_(inodes), session_(::getsid(0)) {}

  /// 1, 0, or a negative errno.
  [[nodiscard]] int process(const char* name) const noexcept {
    const int process = open_directory(proc_, name);
    const int held = process < 0 ? no_look(errno, process, name) : look_into(process, name);
    if (process >= 0) {
      ::close(process);
    }
    return held;
  }

  /// With hidepid=2, proc(5) does not even list what may not be inspected, but a parent is there.
  [[nodiscard]] bool parent_is_hidden() const noexcept {
    const pid_t parent = ::getppid();
    const int directory = parent > 1 ? open_numbered(parent) : -1;
    const bool hidden = parent > 1 && directory < 0 && errno == ENOENT;
    if (directory >= 0) {
      ::close(directory);
    }
    return hidden && ::getppid() == parent;
  }

 private:
  [[nodiscard]] int open_numbered(pid_t pid) const noexcept {
    std::array<char, 16> text{};
    std::to_chars(text.data(), text.data() + text.size() - 1, pid);
    return open_directory(proc_, text.data());
  }

  // The process has ended, may not be inspected, or an error occurred.
  [[nodiscard]] int no_look(int errnum, int process, const char* name) const noexcept {
    if (errnum == EACCES || errnum == EPERM) {
      return is_kin(process, name);
    }
    return errnum == ENOENT || errnum == ESRCH ? 0 : -errnum;
  }

  [[nodiscard]] int look_into(int process, const char* name) const noexcept {
    bool any = false;
    const int held = look_at(process, "fd", name, any);
    if (held != 0 || any) {
      return held;
    }
    // Where the first thread has ended, the others have the descriptors.
    Directory tasks(open_directory(process, "task"));
    if (!tasks.open()) {
      return no_look(errno, process, name);
    }
    while (const char* task = tasks.next()) {
      std::array<char, 64> fds{};
      (void)std::snprintf(fds.data(), fds.size(), "task/%.40s/fd", task);
      if (const int other = *task == '.' ? 0 : look_at(process, fds.data(), name, any);
          other != 0 || any) {
        return other;
      }
    }
    return errno == 0 ? 0 : no_look(errno, process, name);
  }

  // @p any: set if there is a descriptor.
  [[nodiscard]] int look_at(int process, const char* path, const char* name,
                            bool& any) const noexcept {
    Directory fds(open_directory(process, path));
    if (!fds.open()) {
      any = errno == EACCES || errno == EPERM;  // nor may its threads be looked at
      return no_look(errno, process, name);
    }
    while (const char* entry = fds.next()) {
      any = any || *entry != '.';
      const std::uint64_t inode = socket_inode(fds.fd(), entry);
      if (inode != 0 && std::binary_search(inodes_.begin(), inodes_.end(), inode)) {
        return 1;
      }
      if (errno == EACCES || errno == EPERM) {  // of a process that may be listed, but not traced
        return no_look(errno, process, name);
      }
    }
    return errno == 0 ? 0 : no_look(errno, process, name);
  }

  // An ancestor, or in our session: a master and its workers.
  [[nodiscard]] int is_kin(int process, const char* name) const noexcept {
    const auto pid = static_cast<pid_t>(std::strtol(name, nullptr, 10));
    if (session_ > 0 && kin_of(process).session == session_) {
      return 1;
    }
    pid_t ancestor = ::getppid();
    for (int generations = 0; ancestor > 1 && generations < 64; ++generations) {
      if (ancestor == pid) {
        return 1;
      }
      const int directory = open_numbered(ancestor);
      ancestor = directory < 0 ? 0 : kin_of(directory).parent;
      if (directory >= 0) {
        ::close(directory);
      }
    }
    return 0;
  }

  int proc_;
  std::span<const std::uint64_t> inodes_;
  pid_t session_;
};

}  // namespace

int held_elsewhere(std::span<const std::uint64_t> inodes) noexcept {
  Directory proc(open_directory(AT_FDCWD, "/proc"));
  if (!proc.open()) {
    return -errno;
  }
  const Search search(proc.fd(), inodes);
  const pid_t self = ::getpid();
  while (const char* name = proc.next()) {
    const long pid = std::strtol(name, nullptr, 10);
    if (pid <= 0 || pid == self) {
      continue;
    }
    if (const int held = search.process(name); held != 0) {
      return held;
    }
  }
  const int unread = errno;  // what readdir() said, before the next calls say something else
  return unread == 0 && search.parent_is_hidden() ? 1 : -unread;
}

}  // namespace reuseport::core
