// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
// Internal: who holds which listener, asked in one pass of a BPF iterator.
#ifndef REUSEPORT_HOLDERS_BPF_HPP
#define REUSEPORT_HOLDERS_BPF_HPP

#include <cstdint>
#include <vector>

#include "host/result.hpp"

namespace reuseport::detail {

struct HolderRecord {
  std::uint64_t inode = 0;
  std::int32_t pid = 0;
  std::uint32_t fd = 0;
  std::uint32_t reuseport = 0;  // not 0: SO_REUSEPORT is set
  std::uint32_t zero = 0;
};

/// Every descriptor of every process that is a listening TCP or an unconnected socket. Ten times
/// faster than reading as many links below /proc. ENOENT: no BTF; EPERM; EXDEV: this process is in
/// a PID namespace of its own, where the kernel's numbers mean nothing.
[[nodiscard]] Result<std::vector<HolderRecord>> holders_by_bpf();

}  // namespace reuseport::detail

#endif  // REUSEPORT_HOLDERS_BPF_HPP
