// SPDX-License-Identifier: Apache-2.0
// Whose business a listener is besides its server's. A mode is one and the same for all who hold
// it.
#ifndef REUSEPORTCTL_SHARING_HPP
#define REUSEPORTCTL_SHARING_HPP

#include <cstdint>
#include <optional>
#include <vector>

#include "failure.hpp"
#include "select.hpp"

namespace reuseport::ctl {

/// Exit::shared when a process outside the server holds one of the targets, or may hold it because
/// this user must not look into it. The server and all below it are one.
[[nodiscard]] Done refuse_shared(const std::vector<Target>& targets, const View& view,
                                 Processes& processes);

/// Another run of this program that holds one of the sockets: it drains them, or sets their mode.
/// @param inodes  of the sockets, as @p holders has them
[[nodiscard]] std::optional<pid_t> other_run(const std::vector<std::uint64_t>& inodes,
                                             const Holders& holders);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SHARING_HPP
