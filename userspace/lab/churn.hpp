// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "server.hpp"

namespace lab {

/// A process of its own that never wants a connection, beside the server under test: as fast as it
/// can, sockets of the same address join the group OFF or STANDBY, switch between the two, and
/// leave. Until the lab goes away or says {"do": "drain"}; then it answers {"event": "bye",
/// "accepted": n, "changes": n}, where anything but 0 accepted is the kernel's mistake: an ON
/// member was there at every instant. Needs the option. @return the exit code of the process.
int run_churn(const ServerOptions& options);

}  // namespace lab
