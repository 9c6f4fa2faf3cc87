// SPDX-License-Identifier: Apache-2.0
// Who else is there: other holders of a listener, other listeners on its address.
#ifndef REUSEPORT_NEIGHBOURS_HPP
#define REUSEPORT_NEIGHBOURS_HPP

#include <span>

#include "reuseport/error.hpp"

namespace reuseport::detail {

/// Whether another process holds one of @p fds, in one pass over /proc. Processes this user must
/// not look into are passed over.
[[nodiscard]] Result<bool> held_elsewhere(std::span<const int> fds);

/// Whether each TCP listener of @p fds has another beside it, on the same address, that is not one
/// of @p fds: somebody its connections can migrate to. False where sock_diag cannot tell.
[[nodiscard]] bool someone_stays(std::span<const int> fds);

}  // namespace reuseport::detail

#endif  // REUSEPORT_NEIGHBOURS_HPP
