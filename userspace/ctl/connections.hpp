// SPDX-License-Identifier: Apache-2.0
// The last look at a server: how many connections it still has.
#ifndef REUSEPORTCTL_CONNECTIONS_HPP
#define REUSEPORTCTL_CONNECTIONS_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>

#include "failure.hpp"
#include "select.hpp"

namespace reuseport::ctl {

/// TCP connections that @p server or a process below it holds on these local ports, and that the
/// server has not closed. One that several processes hold is one. Nothing once the server ends: how
/// many it cuts then is not seen.
[[nodiscard]] Expected<std::optional<std::size_t>> connections_of(
    const Process& server, const std::set<std::uint16_t>& ports);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_CONNECTIONS_HPP
