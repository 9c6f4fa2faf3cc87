// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_HOST_RESULT_HPP
#define REUSEPORT_HOST_RESULT_HPP

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "reuseport/reuseport.hpp"

namespace reuseport {

/// A value or an Error, for the tools: tl::expected has what the library's Expected does without.
template <typename T>
using Result = tl::expected<T, Error>;

using Status = Result<void>;

/// An Error ready to be returned from a function that gives a Result.
[[nodiscard]] inline tl::unexpected<Error> fail(std::string call, int errnum,
                                                std::string hint = {}) {
  return tl::unexpected<Error>(Error{std::move(call), errnum, std::move(hint)});
}

}  // namespace reuseport

#endif  // REUSEPORT_HOST_RESULT_HPP
