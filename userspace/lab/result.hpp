// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <cstring>
#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace lab {

/// What failed, why, and what to do next, as one line for stderr.
struct Error {
  std::string text;
};

template <class T>
using Result = tl::expected<T, Error>;

/// An error of a system call. @param code a positive errno. @param hint what the user can do about
/// it, may be empty.
inline tl::unexpected<Error> sys_error(const std::string& call, int code,
                                       const std::string& hint = {}) {
  return tl::unexpected<Error>{
      Error{fmt::format("{}: {}{}{}", call, std::strerror(code), hint.empty() ? "" : "; ", hint)}};
}

inline tl::unexpected<Error> error(std::string text) {
  return tl::unexpected<Error>{Error{std::move(text)}};
}

}  // namespace lab
