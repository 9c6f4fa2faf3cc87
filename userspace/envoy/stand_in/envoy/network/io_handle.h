// SPDX-License-Identifier: Apache-2.0
// Stands in for the header of this name where no Envoy tree is named: as much as listen_off.h uses.
#pragma once

#include <sys/socket.h>

#include "envoy/api/os_sys_calls_common.h"

namespace Envoy {
namespace Network {

class IoHandle {
public:
  virtual ~IoHandle() = default;
  virtual Api::SysCallIntResult setOption(int level, int optname, const void* optval,
                                          socklen_t optlen) = 0;
  virtual Api::SysCallIntResult getOption(int level, int optname, void* optval,
                                          socklen_t* optlen) = 0;
};

} // namespace Network
} // namespace Envoy
