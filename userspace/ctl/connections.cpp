// SPDX-License-Identifier: Apache-2.0
#include "connections.hpp"

#include <cerrno>
#include <unordered_set>

namespace reuseport::ctl {

Expected<std::optional<std::size_t>> connections_of(const Process& server,
                                                    const std::set<std::uint16_t>& ports) {
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
  if (!tree && !server.ending()) {
    return failed(tree.error());
  }
  for (const pid_t pid : tree.value_or(std::vector<pid_t>{})) {
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
  // Asked last: one that ends has let go of its descriptors, which the look may have missed.
  return server.ending() ? std::optional<std::size_t>() : held.size();
}

}  // namespace reuseport::ctl
