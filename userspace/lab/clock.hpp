// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <ctime>

namespace lab {

/// Nanoseconds of CLOCK_MONOTONIC: one time line for every process of a run.
inline std::int64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * 1'000'000'000LL + ts.tv_nsec;
}

inline constexpr std::int64_t one_ms = 1'000'000;
inline constexpr std::int64_t one_second = 1'000'000'000;

inline timespec to_timespec(std::int64_t ns) {
  if (ns < 0) {
    ns = 0;
  }
  return {static_cast<time_t>(ns / one_second), static_cast<long>(ns % one_second)};
}

}  // namespace lab
