// SPDX-License-Identifier: Apache-2.0
// status: what enable has set up, since when, for which cgroups and namespaces; its groups.
#ifndef REUSEPORTCTL_STATUS_HPP
#define REUSEPORTCTL_STATUS_HPP

#include "failure.hpp"
#include "output.hpp"

namespace reuseport::ctl {

[[nodiscard]] Done status_command(const Output& out);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_STATUS_HPP
