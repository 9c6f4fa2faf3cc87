// SPDX-License-Identifier: Apache-2.0
#include "notify.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <optional>
#include <string_view>

#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

namespace {

constexpr int patience_s = 30;

std::optional<std::int64_t> number_in(const char* variable) {
  const char* text = std::getenv(variable);
  std::int64_t value = 0;
  const std::string_view all = text != nullptr ? text : "";
  const auto [stop, ec] = std::from_chars(all.data(), all.data() + all.size(), value);
  return !all.empty() && ec == std::errc{} && stop == all.data() + all.size() ? std::optional(value)
                                                                              : std::nullopt;
}

}  // namespace

Notify::Notify() {
  if (const char* path = std::getenv("NOTIFY_SOCKET")) {
    path_ = path;
  }
  const auto every = number_in("WATCHDOG_USEC");
  if (every && *every > 0 && number_in("WATCHDOG_PID").value_or(::getpid()) == ::getpid()) {
    beat_ = std::chrono::milliseconds(std::max<std::int64_t>(*every / 2000, 1));
    next_beat_ = Clock::now();
  }
}

void Notify::send(const std::string& state, const std::vector<int>& fds) const {
  sockaddr_un un{};
  if (path_.size() < 2 || path_.size() >= sizeof(un.sun_path) ||
      (path_[0] != '/' && path_[0] != '@')) {
    if (!path_.empty() && unsent_.empty()) {
      unsent_ = fmt::format("NOTIFY_SOCKET={}: not the name of a socket", path_);
    }
    return;
  }
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, path_.data(), path_.size());
  if (un.sun_path[0] == '@') {
    un.sun_path[0] = '\0';  // an abstract socket
  }
  const Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  // Who did not read one message gets little time for the others.
  const timeval patience{unsent_.empty() ? patience_s : 1, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  std::string text = state;
  iovec part{text.data(), text.size()};
  msghdr message{};
  message.msg_name = &un;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  const std::size_t size = fds.size() * sizeof(int);
  std::vector<cmsghdr> control(fds.empty() ? 0 : CMSG_SPACE(size) / sizeof(cmsghdr) + 1);
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), fds.data(), size);
  }
  if (::sendmsg(fd.get(), &message, MSG_NOSIGNAL) < 0 && unsent_.empty()) {
    unsent_ = fmt::format("sendmsg({}): {}", path_, std::strerror(errno));
  }
}

void Notify::ready(const std::string& status, pid_t main_process) const {
  send((main_process != 0 ? fmt::format("MAINPID={}\n", main_process) : "") +
       "READY=1\nSTATUS=" + status);
}

void Notify::reloading() const {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  send(fmt::format("RELOADING=1\nMONOTONIC_USEC={}",
                   std::int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000));
}

void Notify::stopping() const {
  send("STOPPING=1");
}

void Notify::alive() {
  if (Clock::now() >= next_beat_) {
    send("WATCHDOG=1");
    next_beat_ = after(beat_);
  }
}

void Notify::status(const std::string& text) const {
  send("STATUS=" + text);
}

void Notify::main_process(pid_t pid) const {
  send(fmt::format("MAINPID={}", pid));
}

void Notify::store(const std::vector<int>& fds) const {
  constexpr std::size_t most = 253;  // SCM_MAX_FD
  send("FDSTOREREMOVE=1\nFDNAME=listeners");
  for (std::size_t i = 0; i < fds.size(); i += most) {
    const auto first = fds.begin() + static_cast<std::ptrdiff_t>(i);
    const auto count = static_cast<std::ptrdiff_t>(std::min(most, fds.size() - i));
    send("FDSTORE=1\nFDNAME=listeners", {first, first + count});
  }
}

void Notify::flush() const {
  int ends[2];
  if (path_.empty() || !unsent_.empty() || ::pipe2(ends, O_CLOEXEC) != 0) {
    return;
  }
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  send("BARRIER=1", {write_end.get()});  // the manager closes it
  write_end.reset();
  pollfd p{read_end.get(), 0, 0};
  if (::poll(&p, 1, patience_s * 1000) != 1 && unsent_.empty()) {
    unsent_ = "the service manager has not read the messages";
  }
}

std::vector<Fd> passed_sockets() {
  std::vector<Fd> sockets;
  constexpr int first = 3;  // SD_LISTEN_FDS_START
  constexpr std::int64_t many = 65536;
  if (number_in("LISTEN_PID") == std::optional<std::int64_t>(::getpid())) {
    const auto count = std::clamp<std::int64_t>(number_in("LISTEN_FDS").value_or(0), 0, many);
    for (int fd = first; fd < first + count; fd++) {
      if (::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) {
        sockets.emplace_back(fd);
      }
    }
  }
  return sockets;
}

}  // namespace reuseport::ctl
