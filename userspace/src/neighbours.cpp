// SPDX-License-Identifier: Apache-2.0
#include "neighbours.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "host/process.hpp"
#include "host/sockdiag.hpp"

namespace reuseport::detail {
namespace {

Result<std::vector<std::uint64_t>> inodes_of(std::span<const int> fds) {
  std::vector<std::uint64_t> inodes;
  for (const int fd : fds) {
    struct stat seen {};
    if (::fstat(fd, &seen) != 0) {
      return fail("fstat", errno);
    }
    inodes.push_back(seen.st_ino);
  }
  std::ranges::sort(inodes);
  return inodes;
}

}  // namespace

Result<bool> held_elsewhere(std::span<const int> fds) {
  const Result<std::vector<std::uint64_t>> inodes = inodes_of(fds);
  if (!inodes) {
    return tl::unexpected(inodes.error());
  }
  const Result<Holders> holders = find_holders(*inodes);
  if (!holders) {
    return tl::unexpected(holders.error());
  }
  const pid_t self = ::getpid();
  return std::ranges::any_of(*inodes, [&](std::uint64_t inode) {
    return std::ranges::any_of(holders->of(inode),
                               [self](const Holder& holder) { return holder.pid != self; });
  });
}

bool someone_stays(std::span<const int> fds) {
  Result<SockDiag> diag = SockDiag::open();
  const Result<std::vector<std::uint64_t>> ours = inodes_of(fds);
  if (!diag || !ours) {
    return false;
  }
  const Result<std::vector<DiagSocket>> all = diag->listeners(Protocol::tcp);
  if (!all) {
    return false;
  }
  const auto leaves = [&](const DiagSocket& socket) {
    return std::ranges::binary_search(*ours, socket.inode);
  };
  return std::ranges::all_of(*all, [&](const DiagSocket& old) {
    return !leaves(old) || std::ranges::any_of(*all, [&](const DiagSocket& other) {
      return !leaves(other) && old.same_address(other);
    });
  });
}

}  // namespace reuseport::detail
