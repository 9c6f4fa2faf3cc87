// SPDX-License-Identifier: Apache-2.0
// Text of other processes, fit for a terminal.
#ifndef REUSEPORTCTL_TEXT_HPP
#define REUSEPORTCTL_TEXT_HPP

#include <string>
#include <string_view>
#include <vector>

namespace reuseport::ctl {

/// @p text with everything a terminal would act on, or that is no UTF-8, written as \xNN or \uNNNN:
/// C0, DEL, C1, separators of lines and paragraphs, and what turns the direction of writing.
[[nodiscard]] std::string visible(std::string_view text);

/// The one of @p known that @p word was probably meant to be; empty where none is near.
[[nodiscard]] std::string nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_TEXT_HPP
