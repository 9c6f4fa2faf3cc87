// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_ERROR_HPP
#define REUSEPORT_ERROR_HPP

#include <string>
#include <system_error>
#include <tl/expected.hpp>

#include "reuseport/export.h"

namespace reuseport {

/// Why a call failed: which call, its errno, and what to do next. Only failures have one; success
/// is the value of a Result.
struct Error {
  std::string call;  ///< the failing call, e.g. "setsockopt(SO_REUSEPORT_LISTEN_OFF)"
  int errnum = 0;    ///< errno(3) value, never 0
  std::string hint;  ///< what to do next; may be empty

  [[nodiscard]] std::error_code code() const noexcept { return {errnum, std::generic_category()}; }
  /// One line: "call: strerror: hint".
  [[nodiscard]] std::string message() const {
    return call + ": " + code().message() + (hint.empty() ? "" : ": ") + hint;
  }
};

/// A value or an Error. tl::expected stands in for C++23's std::expected.
template <typename T>
using Result = tl::expected<T, Error>;

using Status = Result<void>;

/// An Error ready to be returned from a function that gives a Result.
[[nodiscard]] inline tl::unexpected<Error> fail(std::string call, int errnum,
                                                std::string hint = {}) {
  return tl::unexpected<Error>(Error{std::move(call), errnum, std::move(hint)});
}

}  // namespace reuseport

#endif  // REUSEPORT_ERROR_HPP
