// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
#include "attached_bpf.hpp"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <string>

#include "bpf_code.hpp"
#include "bpf_iterator.hpp"

namespace reuseport {

namespace {

using namespace detail;

/// What the iterator writes for each socket of a group with a program.
struct GroupRecord {
  std::uint64_t cookie = 0;
  std::uint32_t attached = 0;
  std::uint32_t program_id = 0;
};

/// Writes a GroupRecord for every listener whose reuseport group has a program. Offsets come from
/// the running kernel's BTF. ENOENT: there is none, or it lacks a field.
Result<IteratorProgram> group_iterator(Protocol protocol) {
  const Btf kernel = kernel_btf();
  if (!kernel) {
    return fail("BTF of the kernel", ENOENT,
                "needs a kernel with CONFIG_DEBUG_INFO_BTF to see what is attached to a group");
  }
  const char* target = protocol == Protocol::udp ? "bpf_iter_udp" : "bpf_iter_tcp";
  const int id = btf__find_by_name_kind(kernel.get(), target, BTF_KIND_FUNC);
  const auto state = field(kernel.get(), "sock_common", "skc_state");
  const auto cookie = field(kernel.get(), "sock_common", "skc_cookie");
  const auto group = field(kernel.get(), "sock", "sk_reuseport_cb");
  const auto program = field(kernel.get(), "sock_reuseport", "prog");
  const auto aux = field(kernel.get(), "bpf_prog", "aux");
  const auto program_id = field(kernel.get(), "bpf_prog_aux", "id");
  if (id < 0 || !state || !cookie || !group || !program || !aux || !program_id) {
    return fail("BTF of the kernel", ENOENT, std::string("needs Linux 5.9 with ") + target);
  }

  // the second pointer of struct bpf_iter__tcp and bpf_iter__udp
  constexpr std::size_t ctx_socket = 8;
  // stack: a GroupRecord, and a pointer to read into
  constexpr int record = -24;
  constexpr int pointer = -8;
  Code c;

  c.mov(BPF_REG_6, BPF_REG_1);
  c.load(BPF_DW, BPF_REG_7, BPF_REG_6, ctx_socket);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_7, 0);
  c.store_imm(BPF_DW, BPF_REG_10, record, 0);
  c.store_imm(BPF_DW, BPF_REG_10, record + 8, 0);
  c.store_imm(BPF_DW, BPF_REG_10, pointer, 0);
  // requests and time-wait sockets end before sk_reuseport_cb: only listeners are whole here
  c.read_kernel(pointer, 1, BPF_REG_7, *state);
  c.load(BPF_B, BPF_REG_1, BPF_REG_10, static_cast<std::size_t>(pointer));
  c.to_end_if_imm(BPF_JNE, BPF_REG_1, protocol == Protocol::udp ? TCP_CLOSE : TCP_LISTEN);
  c.read_kernel(record + static_cast<int>(offsetof(GroupRecord, cookie)), 8, BPF_REG_7, *cookie);
  c.read_kernel(pointer, 8, BPF_REG_7, *group);
  c.load(BPF_DW, BPF_REG_8, BPF_REG_10, static_cast<std::size_t>(pointer));
  c.to_end_if_imm(BPF_JEQ, BPF_REG_8, 0);
  c.read_kernel(pointer, 8, BPF_REG_8, *program);
  c.load(BPF_DW, BPF_REG_8, BPF_REG_10, static_cast<std::size_t>(pointer));
  c.to_end_if_imm(BPF_JEQ, BPF_REG_8, 0);
  c.store_imm(BPF_W, BPF_REG_10, record + static_cast<int>(offsetof(GroupRecord, attached)), 1);
  c.read_kernel(pointer, 8, BPF_REG_8, *aux);
  c.load(BPF_DW, BPF_REG_8, BPF_REG_10, static_cast<std::size_t>(pointer));
  c.read_kernel(record + static_cast<int>(offsetof(GroupRecord, program_id)), 4, BPF_REG_8,
                *program_id);
  c.seq_write(record, sizeof(GroupRecord));
  return IteratorProgram{c.end(0), static_cast<std::uint32_t>(id)};
}

}  // namespace

Result<std::uint64_t> socket_cookie(int fd) {
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) != 0) {
    return fail("getsockopt(SO_COOKIE)", errno);
  }
  return cookie;
}

Result<std::optional<AttachedProgram>> attached_program(Protocol protocol, std::uint64_t cookie) {
  const auto code = group_iterator(protocol);
  if (!code) {
    return tl::unexpected(code.error());
  }
  const auto program = load_iterator(*code, "reuseport_seen");
  if (!program) {
    return tl::unexpected(program.error());
  }
  const auto records = run_iterator<GroupRecord>(program->get());
  if (!records) {
    return tl::unexpected(records.error());
  }
  const auto found = std::ranges::find(*records, cookie, &GroupRecord::cookie);
  return found != records->end()
             ? std::optional<AttachedProgram>{AttachedProgram{found->program_id}}
             : std::nullopt;
}

}  // namespace reuseport
