// SPDX-License-Identifier: Apache-2.0
// Stands in for the header of this name where no Envoy tree is named: as much as listen_off.h uses.
#pragma once

namespace Envoy {
namespace Api {

struct SysCallIntResult {
  int return_value_;
  int errno_;
};

} // namespace Api
} // namespace Envoy
