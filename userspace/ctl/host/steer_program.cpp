// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
#include "steer_program.hpp"

#include <netinet/tcp.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "bpf_code.hpp"

namespace reuseport::detail {

namespace {

constexpr int steer_tries = 32;  // listeners that vanished in a row before the hash is used

}  // namespace

std::vector<bpf_insn> steer_program(int array_fd, int control_fd) {
  constexpr int key = -4;
  Code c;

  c.mov(BPF_REG_6, BPF_REG_1);
  c.store_imm(BPF_W, BPF_REG_10, key, 0);
  c.map(BPF_REG_1, control_fd);
  c.mov(BPF_REG_2, BPF_REG_10);
  c.add_imm(BPF_REG_2, key);
  c.call(BPF_FUNC_map_lookup_elem);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_0, 0);
  c.mov(BPF_REG_7, BPF_REG_0);
  c.call(BPF_FUNC_ktime_get_ns);
  c.load(BPF_DW, BPF_REG_1, BPF_REG_7, offsetof(SteerControl, deadline_ns));
  c.to_end_if(BPF_JGT, BPF_REG_0, BPF_REG_1);
  c.load(BPF_W, BPF_REG_8, BPF_REG_7, offsetof(SteerControl, count));
  c.load(BPF_W, BPF_REG_9, BPF_REG_6, offsetof(sk_reuseport_md, hash));
  for (int i = 0; i < steer_tries; i++) {
    c.to_end_if_imm(BPF_JLE, BPF_REG_8, i);
    c.mov32(BPF_REG_1, BPF_REG_9);
    c.add32_imm(BPF_REG_1, i);
    c.mod32(BPF_REG_1, BPF_REG_8);
    c.store(BPF_W, BPF_REG_10, key, BPF_REG_1);
    c.mov(BPF_REG_1, BPF_REG_6);
    c.map(BPF_REG_2, array_fd);
    c.mov(BPF_REG_3, BPF_REG_10);
    c.add_imm(BPF_REG_3, key);
    c.mov_imm(BPF_REG_4, 0);
    c.call(BPF_FUNC_sk_select_reuseport);
    c.to_end_if_imm(BPF_JEQ, BPF_REG_0, 0);
  }
  // never SK_DROP: without a choice of ours the kernel's hash chooses
  return c.end(SK_PASS);
}

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

}  // namespace reuseport::detail
