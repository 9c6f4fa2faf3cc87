// SPDX-License-Identifier: Apache-2.0
#include "bpf_iterator.hpp"

#include <bpf/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>

#include "host/libbpf_quiet.hpp"
#include "iterators.skel.h"

namespace reuseport::detail {

namespace {

std::string hint_for(int err) {
  switch (err) {
    case EPERM:
    case EACCES: return "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root)";
    case ENOSYS: return "this kernel has no BPF (CONFIG_BPF_SYSCALL)";
    case EINVAL: return "this kernel is too old";
    default: return LibbpfQuiet::said();
  }
}

tl::unexpected<Error> bpf_fail(const char* call, int err) {
  return fail(call, err, hint_for(err));
}

struct Destroy {
  void operator()(iterators* all) const noexcept { iterators::destroy(all); }
};
using Skeleton = std::unique_ptr<iterators, Destroy>;

/// Loads only @p which: an older kernel may lack the others.
Result<Skeleton> load(Iterator which, bpf_program*& program) {
  if (::access("/sys/kernel/btf/vmlinux", R_OK) != 0) {
    return fail("BTF of the kernel", ENOENT, "needs a kernel with CONFIG_DEBUG_INFO_BTF");
  }
  Skeleton all(iterators::open());
  if (!all) {
    return bpf_fail("open the BPF object", errno);
  }
  for (bpf_program* each :
       {all->progs.reuseport_tcp, all->progs.reuseport_udp, all->progs.reuseport_held}) {
    bpf_program__set_autoload(each, false);
  }
  switch (which) {
    case Iterator::tcp_groups: program = all->progs.reuseport_tcp; break;
    case Iterator::udp_groups: program = all->progs.reuseport_udp; break;
    case Iterator::holders: program = all->progs.reuseport_held; break;
  }
  bpf_program__set_autoload(program, true);
  const int err = -iterators::load(all.get());
  if (err == ESRCH) {  // the kernel has no such iterator
    return fail("BTF of the kernel", ENOENT,
                std::string("needs Linux 5.9 with ") + bpf_program__section_name(program));
  }
  if (err != 0) {
    return bpf_fail("bpf(BPF_PROG_LOAD, iterator)", err);
  }
  return all;
}

}  // namespace

Status run_iterator(Iterator which, std::size_t size,
                    const std::function<void(const char*)>& each) {
  const LibbpfQuiet quiet;
  bpf_program* program = nullptr;
  const auto loaded = load(which, program);
  if (!loaded) {
    return tl::unexpected(loaded.error());
  }
  return run_iterator(bpf_program__fd(program), size, each);
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
