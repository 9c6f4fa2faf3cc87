// SPDX-License-Identifier: Apache-2.0
// Text from other processes, made safe for a terminal.
#ifndef REUSEPORTCTL_TEXT_HPP
#define REUSEPORTCTL_TEXT_HPP

#include <string>
#include <string_view>
#include <vector>

namespace reuseport::ctl {

/// @p text with everything a terminal would act on, or that is not UTF-8, written as \xNN or
/// \uNNNN: C0, DEL, C1, line and paragraph separators, and controls of the writing direction.
[[nodiscard]] std::string visible(std::string_view text);

/// The word in @p known that is closest to @p word; empty if none is close.
[[nodiscard]] std::string nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_TEXT_HPP
