// SPDX-License-Identifier: Apache-2.0
#include "datagrams.hpp"

#include <algorithm>
#include <unordered_map>

#include "host/process.hpp"
#include "host/sockdiag.hpp"
#include "select.hpp"

namespace reuseport::ctl {

namespace {

Fd from_a_holder(std::uint64_t inode, const Holders& holders, Processes& processes) {
  for (const Holder& holder : holders.of(inode)) {
    const auto process = processes.of(holder.pid);
    if (!process) {
      continue;
    }
    if (auto fd = (*process)->duplicate(holder.fd, inode)) {
      return std::move(*fd);
    }
  }
  return {};
}

}  // namespace

std::vector<Fd> datagrams_by_cookie(const std::vector<std::uint64_t>& cookies) {
  std::vector<Fd> fds(cookies.size());
  auto diag = SockDiag::open();
  const auto sockets = diag ? diag->listeners(Protocol::udp)
                            : Result<std::vector<DiagSocket>>(tl::unexpected(diag.error()));
  if (!sockets) {
    return fds;
  }
  std::unordered_map<std::uint64_t, std::uint64_t> inode_of;
  std::vector<std::uint64_t> inodes;
  for (const DiagSocket& s : *sockets) {
    if (std::ranges::find(cookies, s.cookie) != cookies.end()) {
      inode_of[s.cookie] = s.inode;
      inodes.push_back(s.inode);
    }
  }
  std::ranges::sort(inodes);
  const auto holders = inodes.empty() ? Result<Holders>() : find_holders(inodes);
  if (!holders) {
    return fds;
  }
  Processes processes;
  for (std::size_t i = 0; i < cookies.size(); i++) {
    if (const auto at = inode_of.find(cookies[i]); at != inode_of.end()) {
      fds[i] = from_a_holder(at->second, *holders, processes);
    }
  }
  return fds;
}

}  // namespace reuseport::ctl
