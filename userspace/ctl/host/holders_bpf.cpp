// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
#include "holders_bpf.hpp"

#include <netinet/tcp.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "bpf_code.hpp"
#include "bpf_iterator.hpp"

namespace reuseport::detail {

namespace {

constexpr std::string_view initial_pid_namespace = "pid:[4026531836]";  // PROC_PID_INIT_INO

Result<IteratorProgram> task_file_program() {
  const Btf kernel = kernel_btf();
  if (!kernel) {
    return fail("BTF of the kernel", ENOENT);
  }
  const int id = btf__find_by_name_kind(kernel.get(), "bpf_iter_task_file", BTF_KIND_FUNC);
  const auto sk = field(kernel.get(), "socket", "sk");
  const auto state = field(kernel.get(), "sock_common", "skc_state");
  const auto inode = field(kernel.get(), "file", "f_inode");
  const auto number = field(kernel.get(), "inode", "i_ino");
  const auto tgid = field(kernel.get(), "task_struct", "tgid");
  const auto reuse = bit_field(kernel.get(), "sock_common", "skc_reuseport");
  if (id < 0 || !sk || !state || !inode || !number || !tgid || !reuse) {
    return fail("BTF of the kernel", ENOENT);
  }

  // struct bpf_iter__task_file: meta, task, fd, file
  constexpr std::size_t ctx_task = 8;
  constexpr std::size_t ctx_fd = 16;
  constexpr std::size_t ctx_file = 24;
  constexpr int record = -32;
  // Pointers are followed directly, as the types in the BTF allow: with ten thousands of
  // descriptors a call of bpf_probe_read_kernel() for each would be half of the work.
  Code c;
  c.mov(BPF_REG_6, BPF_REG_1);
  c.load(BPF_DW, BPF_REG_8, BPF_REG_6, ctx_task);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_8, 0);
  c.load(BPF_DW, BPF_REG_7, BPF_REG_6, ctx_file);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_7, 0);
  c.mov(BPF_REG_1, BPF_REG_7);
  c.call(BPF_FUNC_sock_from_file);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_0, 0);
  c.load(BPF_DW, BPF_REG_9, BPF_REG_0, *sk);
  c.to_end_if_imm(BPF_JEQ, BPF_REG_9, 0);
  // of what is connected there may be very many; TCP_CLOSE is 7, TCP_LISTEN 10, those between are
  // passing states
  c.load(BPF_B, BPF_REG_1, BPF_REG_9, *state);
  c.to_end_if_imm(BPF_JLT, BPF_REG_1, TCP_CLOSE);
  const auto keep = [&c](int size, std::size_t at) {
    c.store(size, BPF_REG_10, record + static_cast<int>(at), BPF_REG_1);
  };
  c.load(BPF_B, BPF_REG_1, BPF_REG_9, reuse->byte);
  c.and_imm(BPF_REG_1, reuse->mask);
  keep(BPF_W, offsetof(HolderRecord, reuseport));
  c.store_imm(BPF_W, BPF_REG_10, record + static_cast<int>(offsetof(HolderRecord, zero)), 0);
  c.load(BPF_DW, BPF_REG_1, BPF_REG_7, *inode);
  c.load(BPF_DW, BPF_REG_1, BPF_REG_1, *number);
  keep(BPF_DW, offsetof(HolderRecord, inode));
  c.load(BPF_W, BPF_REG_1, BPF_REG_8, *tgid);
  keep(BPF_W, offsetof(HolderRecord, pid));
  c.load(BPF_W, BPF_REG_1, BPF_REG_6, ctx_fd);
  keep(BPF_W, offsetof(HolderRecord, fd));
  c.seq_write(record, sizeof(HolderRecord));
  return IteratorProgram{c.end(0), static_cast<std::uint32_t>(id)};
}

}  // namespace

Result<std::vector<HolderRecord>> holders_by_bpf() {
  std::array<char, 32> ns{};
  const ssize_t len = ::readlink("/proc/self/ns/pid", ns.data(), ns.size());
  if (len < 0 ||
      std::string_view(ns.data(), static_cast<std::size_t>(len)) != initial_pid_namespace) {
    return fail("readlink(/proc/self/ns/pid)", EXDEV);
  }
  auto code = task_file_program();
  if (!code) {
    return tl::unexpected(code.error());
  }
  const auto program = load_iterator(*code, "reuseport_held");
  if (!program) {
    return tl::unexpected(program.error());
  }
  return run_iterator<HolderRecord>(program->get());
}

}  // namespace reuseport::detail
