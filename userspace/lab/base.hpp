// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_BASE_HPP
#define LAB_BASE_HPP

#include <fmt/format.h>

#include <cstdint>
#include <cstring>
#include <ctime>
#include <string>
#include <tl/expected.hpp>
#include <utility>

#include <reuseport/reuseport.hpp>

/// What every part of the lab uses: descriptors, errors, the clock.
namespace lab {

using reuseport::Fd;

/// What failed, why, and how to fix it, as one line for stderr.
struct Error {
  std::string text;
};

template <class T>
using Result = tl::expected<T, Error>;

/// An error of a system call. @param code a positive errno. @param hint how the user can fix it,
/// may be empty.
inline tl::unexpected<Error> sys_error(const std::string& call, int code,
                                       const std::string& hint = {}) {
  return tl::unexpected<Error>{
      Error{fmt::format("{}: {}{}{}", call, std::strerror(code), hint.empty() ? "" : "; ", hint)}};
}

inline tl::unexpected<Error> error(std::string text) {
  return tl::unexpected<Error>{Error{std::move(text)}};
}

inline constexpr std::int64_t one_ms = 1'000'000;
inline constexpr std::int64_t one_second = 1'000'000'000;

/// Nanoseconds of a clock. All timing uses CLOCK_MONOTONIC, which is the same for every process of
/// a run.
inline std::int64_t now_ns(clockid_t clock = CLOCK_MONOTONIC) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return ts.tv_sec * one_second + ts.tv_nsec;
}

inline timespec to_timespec(std::int64_t ns) {
  if (ns < 0) {
    ns = 0;
  }
  return {static_cast<time_t>(ns / one_second), static_cast<long>(ns % one_second)};
}

/// Sleeps `ns`, or less when a signal comes.
inline void pause_ns(std::int64_t ns) {
  const auto time = to_timespec(ns);
  clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

inline double to_ms(std::int64_t ns) {
  return static_cast<double>(ns) / static_cast<double>(one_ms);
}
inline double to_seconds(std::int64_t ns) {
  return static_cast<double>(ns) / static_cast<double>(one_second);
}

}  // namespace lab

#endif  // LAB_BASE_HPP
