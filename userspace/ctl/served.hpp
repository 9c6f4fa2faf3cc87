// SPDX-License-Identifier: Apache-2.0
// What a server serves, and what its replacement lacks.
#ifndef REUSEPORTCTL_SERVED_HPP
#define REUSEPORTCTL_SERVED_HPP

#include <string>
#include <vector>

#include "failure.hpp"
#include "select.hpp"

namespace reuseport::ctl {

struct Served {
  View view;  ///< only the sockets of the process and its descendants
  std::vector<Target> targets;
};

/// What @p server and its descendants listen on.
/// @param reuseport_only  skip listeners without SO_REUSEPORT
[[nodiscard]] Expected<Served> served_by(const ProcessPtr& server, bool reuseport_only);

/// What keeps @p now from taking over from @p old; empty: nothing.
[[nodiscard]] std::string lacks(const Served& old, const Served& now);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SERVED_HPP
