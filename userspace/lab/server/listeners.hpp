// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_SERVER_LISTENERS_HPP
#define LAB_SERVER_LISTENERS_HPP

#include <vector>

#include "base.hpp"
#include "server/control.hpp"
#include "server/server.hpp"

namespace lab {

/// TCP listeners, or UDP sockets, in one reuseport group on the address of the options.
Result<std::vector<Fd>> open_listeners(const ServerOptions& options);

/// The listeners of a generation, by its method:
/// - with most methods, its own, opened here;
/// - `fd-pass`: those that the previous generation passes on; the first opens its own;
/// - `socket-server`: those it was started with, LISTEN_FDS of them from 3 on (sd_listen_fds(3));
/// - `uds-rename`: one Unix socket, renamed over ServerOptions::unix_path.
Result<std::vector<Fd>> obtain_listeners(const ServerOptions& options);

/// fd-pass, the passing side: a SOCK_SEQPACKET listener in the abstract namespace, named after
/// the generation. Protocol version 1, which every later version must go on answering: the newcomer
/// sends {"want": "listeners", "version": 1} and gets {"version": 1, "listeners": n} with n
/// descriptors (SCM_RIGHTS).
Result<Fd> open_handover(std::uint32_t generation);
/// Serves one newcomer on a handover listener that is readable.
Result<void> hand_over(int handover, const std::vector<int>& listeners);

}  // namespace lab

#endif  // LAB_SERVER_LISTENERS_HPP
