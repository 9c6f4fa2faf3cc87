// SPDX-License-Identifier: Apache-2.0
// The option: probe, get, set; and names for enum values.
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>

#include "reuseport/probe.hpp"
#include "reuseport/reuseport.h"

namespace {

using reuseport::Support;

static_assert(static_cast<int>(Support::error) == REUSEPORT_PROBE_ERROR);
static_assert(static_cast<int>(Support::supported) == REUSEPORT_SUPPORTED);
static_assert(static_cast<int>(Support::supported_by_bpf) == REUSEPORT_SUPPORTED_BY_BPF);
static_assert(static_cast<int>(Support::not_in_kernel) == REUSEPORT_NOT_IN_KERNEL);
static_assert(static_cast<int>(Support::number_taken) == REUSEPORT_NUMBER_TAKEN);
static_assert(static_cast<int>(Support::blocked) == REUSEPORT_BLOCKED);

// Restores errno at the end of the scope.
class KeepErrno {
 public:
  KeepErrno() noexcept : saved_(errno) {}
  KeepErrno(const KeepErrno&) = delete;
  KeepErrno& operator=(const KeepErrno&) = delete;
  KeepErrno(KeepErrno&&) = delete;
  KeepErrno& operator=(KeepErrno&&) = delete;
  ~KeepErrno() { errno = saved_; }

 private:
  int saved_;
};

int answer(const reuseport::ProbeResult& found, const char** why) {
  if (why != nullptr) {
    *why = found.why();
  }
  return static_cast<int>(found.support);
}

// Never get or set another option that has this number: its effect is unknown.
bool number_taken() {
  return reuseport::probe().support == Support::number_taken;
}

}  // namespace

extern "C" {

const char* reuseport_version(void) {
  return REUSEPORT_VERSION;
}

int reuseport_probe(const char** why) {
  const KeepErrno keep;
  return answer(reuseport::probe(), why);
}

int reuseport_probe_behaviour(int connects, const char** why) {
  const KeepErrno keep;
  return answer(reuseport::probe_behaviour(connects), why);
}

int reuseport_get_info(int fd, reuseport_listen_info* info) {
  const KeepErrno keep;
  if (info == nullptr) {
    return -EINVAL;
  }
  if (number_taken()) {
    return -EPROTO;
  }
  reuseport_listen_info seen{};
  socklen_t len = sizeof(seen);
  if (::getsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &seen, &len) != 0) {
    return -errno;
  }
  if (len != sizeof(seen)) {
    return -EPROTO;
  }
  *info = seen;
  return 0;
}

int reuseport_set_mode(int fd, int mode) {
  const KeepErrno keep;
  if (number_taken()) {
    return -EPROTO;
  }
  return ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, sizeof(mode)) == 0 ? 0
                                                                                         : -errno;
}

int reuseport_drained(const reuseport_listen_info* info) {
  const bool away = info->mode == REUSEPORT_LISTEN_OFF ||
                    (info->mode == REUSEPORT_LISTEN_STANDBY && info->group_on > 0);
  const bool settled = (info->flags & REUSEPORT_LISTEN_F_SETTLED) != 0;
  const bool cookies = (info->flags & REUSEPORT_LISTEN_F_COOKIES) != 0;
  return away && settled && !cookies && info->handshakes == 0 && info->queued == 0 ? 1 : 0;
}

const char* reuseport_hint(int error) {
  switch (std::abs(error)) {
    case ENOPROTOOPT:
      return "this kernel lacks the option; \"reuseportctl enable\" provides it by BPF, or boot a "
             "kernel built with the patches";
    case EOPNOTSUPP:
      return "only TCP, UDP and, on a patched kernel, MPTCP sockets over IPv4 or IPv6 have it";
    case EINVAL: return "set SO_REUSEPORT first; a connected socket has no mode";
    case EPROTO: return "the option number means something else on this kernel; do not use it";
    case EPERM:
    case EACCES:
    case ENOSYS: return "a seccomp filter, LSM or cgroup program blocks the option";
    case EBUSY: return "the group has its own BPF program, which would be bypassed";
    case EAGAIN: return "BPF is not ready for this socket yet; try again";
    case EBADF:
    case ENOTSOCK: return "pass an open socket";
    default: return "";
  }
}

const char* reuseport_support_name(uint32_t support) {
  return support > REUSEPORT_BLOCKED ? "unknown" : to_string(static_cast<Support>(support));
}

const char* reuseport_outcome_name(uint32_t outcome) {
  switch (outcome) {
    case REUSEPORT_NOT_STARTED: return "not_started";
    case REUSEPORT_RUNNING: return "running";
    case REUSEPORT_DRAINED: return "drained";
    case REUSEPORT_MIGRATED: return "migrated";
    case REUSEPORT_UNCONFIRMED: return "unconfirmed";
    case REUSEPORT_SWEPT_AND_CLOSED: return "swept_and_closed";
    case REUSEPORT_CLOSED: return "closed";
    case REUSEPORT_DEADLINE_HIT: return "deadline_hit";
    case REUSEPORT_VANISHED: return "vanished";
    case REUSEPORT_UNDONE: return "undone";
    default: return "unknown";
  }
}

const char* reuseport_method_name(uint32_t method) {
  switch (method) {
    case REUSEPORT_METHOD_NONE: return "none";
    case REUSEPORT_METHOD_OPTION: return "option";
    case REUSEPORT_METHOD_MIGRATE: return "migrate";
    case REUSEPORT_METHOD_SWEEP: return "sweep";
    case REUSEPORT_METHOD_CLOSE: return "close";
    default: return "unknown";
  }
}

}  // extern "C"
