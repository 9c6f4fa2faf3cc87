// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <reuseport/fd.hpp>

namespace lab {

using reuseport::Fd;

}  // namespace lab
