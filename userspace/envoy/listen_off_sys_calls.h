// SPDX-License-Identifier: Apache-2.0
//
// SO_REUSEPORT_LISTEN_OFF in the manner of Envoy's Api::OsSysCalls: results are {rc, errno},
// nothing is thrown, the answer of the probe is kept. To vendor: this file and reuseport/probe.hpp.
// Inside Envoy the two structs below are those of envoy/api/os_sys_calls_common.h: define
// REUSEPORT_ENVOY_HAS_SYS_CALL_RESULT and include that first.
#pragma once

#include <cerrno>
#include <cstdint>

#if defined(__linux__)
#include <sys/socket.h>
#endif

#include "reuseport/probe.hpp"

#ifndef REUSEPORT_ENVOY_HAS_SYS_CALL_RESULT
namespace Envoy {
namespace Api {

template <typename T> struct SysCallResult {
  T return_value_;
  int errno_;
};

using SysCallIntResult = SysCallResult<int>;

} // namespace Api
} // namespace Envoy
#endif

namespace Envoy {
namespace Network {

enum class ListenMode : uint32_t { On = 0, Off = 1, Standby = 2 };

// struct reuseport_listen_info of <linux/reuseport.h>; no kernel header is needed.
struct ListenInfo {
  uint32_t mode;
  uint32_t flags;
  uint32_t handshakes;
  uint32_t queued;
  uint32_t group_id;
  uint32_t group_on;
  uint32_t group_standby;
  uint32_t group_off;

  // close() would reset nothing.
  bool drained() const {
    return mode == static_cast<uint32_t>(ListenMode::Off) && (flags & 1u) != 0 && handshakes == 0 &&
           queued == 0;
  }
};

// What would be added to Api::OsSysCalls and its Posix implementation.
class ListenOffSysCalls {
public:
  virtual ~ListenOffSysCalls() = default;

  /**
   * @see OsSysCalls::supportsUdpGro(): the kernel is asked once, with throw-away sockets.
   */
  virtual bool supportsReusePortListenOff() const { return reuseport::probe().supported(); }

  /**
   * @return 0 and no errno; -1 and ENOPROTOOPT (not in this kernel), EINVAL (no SO_REUSEPORT),
   * EOPNOTSUPP (not TCP, MPTCP or UDP) or EPERM (blocked).
   */
  virtual Api::SysCallIntResult setListenMode(int fd, ListenMode mode) const {
    if (!supportsReusePortListenOff()) {
      return {-1, unsupportedErrno()};
    }
    const int value = static_cast<int>(mode);
    return result(setOption(fd, value));
  }

  virtual Api::SysCallIntResult getListenInfo(int fd, ListenInfo& info) const {
    if (!supportsReusePortListenOff()) {
      return {-1, unsupportedErrno()};
    }
    return result(getOption(fd, info));
  }

private:
  static Api::SysCallIntResult result(int rc) { return {rc, rc == 0 ? 0 : errno}; }

  // The probe's own errno; a number that belongs to something else has none.
  static int unsupportedErrno() {
    const int error = reuseport::probe().errnum;
    return error != 0 ? error : ENOPROTOOPT;
  }

#if defined(__linux__)
  static int setOption(int fd, int value) {
    return ::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &value, sizeof(value));
  }
  static int getOption(int fd, ListenInfo& info) {
    socklen_t length = sizeof(info);
    return ::getsockopt(fd, SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &length);
  }
#else
  static int setOption(int, int) {
    errno = ENOPROTOOPT;
    return -1;
  }
  static int getOption(int, ListenInfo&) {
    errno = ENOPROTOOPT;
    return -1;
  }
#endif
};

} // namespace Network
} // namespace Envoy
