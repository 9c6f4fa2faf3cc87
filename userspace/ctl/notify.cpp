// SPDX-License-Identifier: Apache-2.0
#include "notify.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
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

void Notify::alive() {
  if (Clock::now() >= next_beat_) {
    send("WATCHDOG=1");
    next_beat_ = after(beat_);
  }
}

void Notify::status(const std::string& text) const {
  send("STATUS=" + text);
}

void close_passed_sockets() {
  constexpr int first = 3;  // SD_LISTEN_FDS_START
  constexpr std::int64_t many = 65536;
  if (number_in("LISTEN_PID") == std::optional<std::int64_t>(::getpid())) {
    const auto count = std::clamp<std::int64_t>(number_in("LISTEN_FDS").value_or(0), 0, many);
    for (int fd = first; fd < first + count; fd++) {
      ::close(fd);
    }
  }
}

}  // namespace reuseport::ctl
