// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <cstdint>

#include "envoy/api/os_sys_calls_common.h"
#include "envoy/network/io_handle.h"

#if defined(__linux__)
#include "reuseport/linux/reuseport.h"
#endif

namespace Envoy {
namespace Network {

/**
 * What a listener with SO_REUSEPORT gets: see SO_REUSEPORT_LISTEN_OFF(7). Ask
 * Api::OsSysCalls::supportsReusePortListenOff() first.
 */
enum class ListenMode : uint32_t { On = 0, Off = 1, Standby = 2 };

#if defined(__linux__)

using ListenInfo = ::reuseport_listen_info;

/**
 * @return 0; or -1 and ENOPROTOOPT (not in this kernel), EINVAL (no SO_REUSEPORT), EOPNOTSUPP (not
 * TCP, MPTCP or UDP), EAGAIN (BPF does not know this UDP socket yet) or EPERM (blocked).
 */
inline Api::SysCallIntResult setListenMode(IoHandle& io_handle, ListenMode mode) {
  const int value = static_cast<int>(mode);
  return io_handle.setOption(SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &value, sizeof(value));
}

/**
 * What the listener has left, and its group. Errors are those of setListenMode(), and EPROTO where
 * the answer is not this option's: another may have its number.
 */
inline Api::SysCallIntResult getListenInfo(IoHandle& io_handle, ListenInfo& info) {
  socklen_t length = sizeof(info);
  const Api::SysCallIntResult result =
      io_handle.getOption(SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &length);
  if (result.return_value_ == 0 && length != sizeof(info)) {
    return {-1, EPROTO};
  }
  return result;
}

/**
 * Whether close() would reset nothing.
 */
inline bool drained(const ListenInfo& info) {
  const bool away = info.mode == REUSEPORT_LISTEN_OFF ||
                    (info.mode == REUSEPORT_LISTEN_STANDBY && info.group_on > 0);
  return away && (info.flags & REUSEPORT_LISTEN_F_SETTLED) != 0 &&
         (info.flags & REUSEPORT_LISTEN_F_COOKIES) == 0 && info.handshakes == 0 && info.queued == 0;
}

#endif

} // namespace Network
} // namespace Envoy
