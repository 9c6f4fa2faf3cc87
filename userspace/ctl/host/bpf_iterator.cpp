// SPDX-License-Identifier: Apache-2.0
#include "bpf_iterator.hpp"

#include <bpf/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "bpf_code.hpp"

namespace reuseport::detail {

std::string bpf_hint(int err) {
  switch (err) {
    case EPERM: return "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root)";
    case ENOSYS: return "this kernel has no BPF (CONFIG_BPF_SYSCALL)";
    case EINVAL: return "this kernel is too old for it";
    default: return {};
  }
}

tl::unexpected<Error> bpf_fail(const char* call, int err) {
  return fail(call, err, bpf_hint(err));
}

Result<Fd> load_iterator(const IteratorProgram& code, const char* name) {
  bpf_prog_load_opts opts{};
  opts.sz = sizeof(opts);
  opts.expected_attach_type = BPF_TRACE_ITER;
  opts.attach_btf_id = code.attach_btf_id;
  Fd program(bpf_prog_load(BPF_PROG_TYPE_TRACING, name, bpf_licence, code.insns.data(),
                           code.insns.size(), &opts));
  if (!program) {
    return bpf_fail("bpf(BPF_PROG_LOAD, iterator)", errno);
  }
  return program;
}

Status run_iterator(int program, std::size_t size, const std::function<void(const char*)>& each) {
  const Fd link(bpf_link_create(program, 0, BPF_TRACE_ITER, nullptr));
  if (!link) {
    return bpf_fail("bpf(BPF_LINK_CREATE)", errno);
  }
  const Fd iter(bpf_iter_create(link.get()));
  if (!iter) {
    return bpf_fail("bpf(BPF_ITER_CREATE)", errno);
  }
  std::vector<char> bytes(1U << 16);
  std::size_t have = 0;
  for (;;) {
    const ssize_t n = ::read(iter.get(), bytes.data() + have, bytes.size() - have);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
      continue;
    }
    if (n < 0) {
      return bpf_fail("read(BPF iterator)", errno);
    }
    if (n == 0) {
      return {};
    }
    // a read may end inside a record: keep the rest for the next one
    have += static_cast<std::size_t>(n);
    std::size_t at = 0;
    for (; at + size <= have; at += size) {
      each(bytes.data() + at);
    }
    have -= at;
    std::memmove(bytes.data(), bytes.data() + at, have);
  }
}

}  // namespace reuseport::detail
