// SPDX-License-Identifier: Apache-2.0
#include "connections.hpp"

#include <cerrno>
#include <unordered_set>

namespace reuseport::ctl {

Outcome<std::size_t> connections_of(const Process& server, const std::set<std::uint16_t>& ports) {
  auto diag = SockDiag::open();
  if (!diag) {
    return failed(diag.error());
  }
  const auto all = diag->connections();
  if (!all) {
    return failed(all.error());
  }
  std::unordered_set<std::uint64_t> open;
  for (const DiagSocket& s : *all) {
    if (s.inode != 0 && ports.contains(s.local.port)) {
      open.insert(s.inode);
    }
  }
  std::unordered_set<std::uint64_t> held;
  const auto tree =
      open.empty() ? Result<std::vector<pid_t>>(std::vector<pid_t>{}) : process_tree(server.pid());
  if (server.ended()) {
    return 0;
  }
  if (!tree) {
    return failed(tree.error());
  }
  for (const pid_t pid : *tree) {
    const auto process = Process::open(pid);
    const auto sockets = process ? process->sockets() : tl::unexpected(process.error());
    if (!sockets) {
      if (sockets.error().errnum == ESRCH) {
        continue;  // it has ended
      }
      return failed(sockets.error());
    }
    for (const SocketRef& s : *sockets) {
      if (open.contains(s.inode)) {
        held.insert(s.inode);
      }
    }
  }
  return held.size();
}

}  // namespace reuseport::ctl
