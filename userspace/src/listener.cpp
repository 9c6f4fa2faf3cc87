// SPDX-License-Identifier: Apache-2.0
#include "reuseport/listener.hpp"

#include <linux/reuseport.h>
#include <sys/socket.h>

#include <cerrno>

#include "reuseport/probe.hpp"

namespace reuseport {
namespace {

static_assert(static_cast<int>(Mode::on) == REUSEPORT_LISTEN_ON);
static_assert(static_cast<int>(Mode::off) == REUSEPORT_LISTEN_OFF);
static_assert(static_cast<int>(Mode::standby) == REUSEPORT_LISTEN_STANDBY);
static_assert(REUSEPORT_LISTEN_F_SETTLED == 1U);

constexpr const char* number_taken_hint =
    "the option number belongs to something else on this kernel; do not use it";

// A stranger's option must be neither read nor set: no telling what it would do.
bool number_taken() {
  return probe().support == Support::number_taken;
}

const char* hint_for(int errnum) {
  switch (errnum) {
    case ENOPROTOOPT: return "this kernel lacks the option; boot one built with the patches";
    case EOPNOTSUPP: return "only TCP, MPTCP and UDP sockets over IPv4 or IPv6 have it";
    case EINVAL: return "set SO_REUSEPORT first; a connected socket has no mode";
    case EPERM:
    case EACCES:
    case ENOSYS: return "a seccomp filter, LSM or cgroup program blocks the option";
    case EBADF:
    case ENOTSOCK: return "give an open socket";
    default: return "";
  }
}

}  // namespace

std::string_view to_string(Mode mode) noexcept {
  switch (mode) {
    case Mode::on: return "on";
    case Mode::off: return "off";
    case Mode::standby: return "standby";
  }
  return "unknown";
}

std::optional<Mode> parse_mode(std::string_view text) noexcept {
  for (const Mode mode : {Mode::on, Mode::off, Mode::standby}) {
    if (text == to_string(mode)) {
      return mode;
    }
  }
  return std::nullopt;
}

Result<Info> Listener::info() const {
  if (number_taken()) {
    return fail("getsockopt(SO_REUSEPORT_LISTEN_OFF)", EPROTO, number_taken_hint);
  }
  reuseport_listen_info raw{};
  socklen_t len = sizeof(raw);
  if (::getsockopt(fd_, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &raw, &len) != 0) {
    const int errnum = errno;
    return fail("getsockopt(SO_REUSEPORT_LISTEN_OFF)", errnum, hint_for(errnum));
  }
  if (len != sizeof(raw)) {
    return fail("getsockopt(SO_REUSEPORT_LISTEN_OFF)", EPROTO, number_taken_hint);
  }
  return Info{static_cast<Mode>(raw.mode),
              raw.flags,
              raw.handshakes,
              raw.queued,
              raw.group_id,
              raw.group_on,
              raw.group_standby,
              raw.group_off};
}

Result<Mode> Listener::mode() const {
  return info().map([](const Info& seen) { return seen.mode; });
}

Status Listener::set_mode(Mode mode) const {
  if (number_taken()) {
    return fail("setsockopt(SO_REUSEPORT_LISTEN_OFF)", EPROTO, number_taken_hint);
  }
  const int value = static_cast<int>(mode);
  if (::setsockopt(fd_, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &value, sizeof(value)) != 0) {
    const int errnum = errno;
    return fail("setsockopt(SO_REUSEPORT_LISTEN_OFF)", errnum, hint_for(errnum));
  }
  return {};
}

}  // namespace reuseport
