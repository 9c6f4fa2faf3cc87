// SPDX-License-Identifier: Apache-2.0
// Internal: BPF iterators (bpf_iter), which walk the kernel's objects and write a record for each.
#ifndef REUSEPORT_BPF_ITERATOR_HPP
#define REUSEPORT_BPF_ITERATOR_HPP

#include <linux/bpf.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "host/result.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::detail {

struct IteratorProgram {
  std::vector<bpf_insn> insns;
  std::uint32_t attach_btf_id = 0;
};

/// What to do about a failed BPF call; "" where there is nothing to say.
std::string bpf_hint(int err);
tl::unexpected<Error> bpf_fail(const char* call, int err);

/// Loads @p code. @p name is what bpftool shows.
Result<Fd> load_iterator(const IteratorProgram& code, const char* name);

/// Runs a loaded iterator to its end. What it writes comes in records of @p size bytes, each given
/// to @p each.
Status run_iterator(int program, std::size_t size, const std::function<void(const char*)>& each);

/// All its records.
template <typename Record>
Result<std::vector<Record>> run_iterator(int program) {
  std::vector<Record> out;
  const Status ran = run_iterator(program, sizeof(Record), [&out](const char* bytes) {
    std::memcpy(&out.emplace_back(), bytes, sizeof(Record));
  });
  if (!ran) {
    return tl::unexpected(ran.error());
  }
  return out;
}

}  // namespace reuseport::detail

#endif  // REUSEPORT_BPF_ITERATOR_HPP
