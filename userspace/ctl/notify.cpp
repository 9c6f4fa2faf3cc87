// SPDX-License-Identifier: Apache-2.0
#include "notify.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "reuseport/fd.hpp"

namespace reuseport::ctl {

Notify::Notify() {
  if (const char* path = std::getenv("NOTIFY_SOCKET")) {
    path_ = path;
    ::unsetenv("NOTIFY_SOCKET");
  }
}

void Notify::send(const std::string& state) const {
  sockaddr_un un{};
  if (path_.size() < 2 || path_.size() >= sizeof(un.sun_path) ||
      (path_[0] != '/' && path_[0] != '@')) {
    return;
  }
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path, path_.data(), path_.size());
  if (un.sun_path[0] == '@') {
    un.sun_path[0] = '\0';  // an abstract socket
  }
  const Fd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd) {
    const auto len = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
    ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
             static_cast<const sockaddr*>(static_cast<const void*>(&un)), len);
  }
}

void Notify::ready(const std::string& status) const {
  send("READY=1\nSTATUS=" + status);
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

void Notify::status(const std::string& text) const {
  send("STATUS=" + text);
}

}  // namespace reuseport::ctl
