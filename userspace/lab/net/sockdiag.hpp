// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "base.hpp"

namespace lab {

/// How many IPv4 TCP sockets a network namespace has in one state on one local port, by
/// sock_diag(7). @param state of <netinet/tcp.h>: TCP_LISTEN; TCP_SYN_RECV for half-open requests
Result<unsigned> count_sockets(int ns, int state, std::uint16_t port);

}  // namespace lab
