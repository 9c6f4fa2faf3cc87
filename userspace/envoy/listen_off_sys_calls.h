// SPDX-License-Identifier: Apache-2.0
//
// SO_REUSEPORT_LISTEN_OFF in the manner of Envoy's Api::OsSysCalls: results are {rc, errno},
// nothing is thrown, the answer of the probe is kept. To vendor: this file, reuseport/probe.hpp
// and, as reuseport/linux/reuseport.h, the header of the option (MIT). Inside Envoy the two structs
// below are those of envoy/api/os_sys_calls_common.h: define REUSEPORT_ENVOY_HAS_SYS_CALL_RESULT
// and include that first.
#pragma once

#include <cerrno>
#include <cstdint>

#include "reuseport/probe.hpp"

#if defined(__linux__)
#include <sys/socket.h>

#include "reuseport/linux/reuseport.h"
#else
struct reuseport_listen_info;
#endif

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

using ListenInfo = ::reuseport_listen_info;

#if defined(__linux__)
// close() would reset nothing: as the option's header has it.
inline bool drained(const ListenInfo& info) {
  const bool away = info.mode == REUSEPORT_LISTEN_OFF ||
                    (info.mode == REUSEPORT_LISTEN_STANDBY && info.group_on > 0);
  return away && (info.flags & REUSEPORT_LISTEN_F_SETTLED) != 0 &&
         (info.flags & REUSEPORT_LISTEN_F_COOKIES) == 0 && info.handshakes == 0 && info.queued == 0;
}
#endif

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
