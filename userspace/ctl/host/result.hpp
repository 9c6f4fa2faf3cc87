// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_HOST_RESULT_HPP
#define REUSEPORT_HOST_RESULT_HPP

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "reuseport/reuseport.hpp"

namespace reuseport {

/// A value or an Error, for the tools: tl::expected has more than the library's Expected.
template <typename T>
using Result = tl::expected<T, Error>;

using Status = Result<void>;

/// An Error to return from a function that returns a Result.
[[nodiscard]] inline tl::unexpected<Error> fail(std::string call, int errnum,
                                                std::string hint = {}) {
  return tl::unexpected<Error>(Error{std::move(call), errnum, std::move(hint)});
}

}  // namespace reuseport

#endif  // REUSEPORT_HOST_RESULT_HPP
