// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace lab {

/// What this process holds.
struct Usage {
  std::int64_t rss_kb = 0;
  std::int64_t descriptors = 0;  ///< open ones, that which reads /proc/self/fd included
};

Usage own_usage();

}  // namespace lab
