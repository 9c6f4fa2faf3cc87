// SPDX-License-Identifier: Apache-2.0
// Internal: the BPF iterators of iterators.bpf.c, which walk the kernel's objects and write a
// record for each.
#ifndef REUSEPORT_BPF_ITERATOR_HPP
#define REUSEPORT_BPF_ITERATOR_HPP

#include <linux/types.h>

#include <cstring>
#include <functional>
#include <vector>

#include "host/result.hpp"

namespace reuseport::detail {

#include "host/iterators.h"

enum class Iterator {
  tcp_groups,  ///< group_record, of listeners
  udp_groups,  ///< group_record, of unconnected sockets
  holders,     ///< holder_record
};

/// Loads an iterator and runs it to its end. Calls @p each with every record of @p size bytes that
/// it writes. ENOENT: no BTF, or BTF lacks what the iterator reads; EPERM: the hint names the
/// capabilities.
Status run_iterator(Iterator which, std::size_t size, const std::function<void(const char*)>& each);

/// The same with a loaded program, by its descriptor.
Status run_iterator(int program, std::size_t size, const std::function<void(const char*)>& each);

/// All its records.
template <typename Record>
Result<std::vector<Record>> run_iterator(auto which) {
  std::vector<Record> out;
  const Status ran = run_iterator(which, sizeof(Record), [&out](const char* bytes) {
    std::memcpy(&out.emplace_back(), bytes, sizeof(Record));
  });
  if (!ran) {
    return tl::unexpected(ran.error());
  }
  return out;
}

}  // namespace reuseport::detail

#endif  // REUSEPORT_BPF_ITERATOR_HPP
