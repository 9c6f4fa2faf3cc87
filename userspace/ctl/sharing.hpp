// SPDX-License-Identifier: Apache-2.0
// Which other processes hold a listener. A listener has one mode for all of them.
#ifndef REUSEPORTCTL_SHARING_HPP
#define REUSEPORTCTL_SHARING_HPP

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "failure.hpp"
#include "select.hpp"

namespace reuseport::ctl {

/// Exit::shared if a process outside the server holds one of the targets, or may hold it and cannot
/// be inspected by this user. The server includes its descendants.
[[nodiscard]] Done refuse_shared(const std::vector<Target>& targets, const View& view,
                                 Processes& processes);

/// Another run of this program that holds one of the sockets: it drains them, or sets their mode.
/// @param inodes  of the sockets, as in @p holders
/// @param users   whose run counts, beside root's and our own: a stranger's could go on for ever
[[nodiscard]] std::optional<pid_t> other_run(const std::vector<std::uint64_t>& inodes,
                                             const Holders& holders,
                                             const std::set<uid_t>& users = {});

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SHARING_HPP
