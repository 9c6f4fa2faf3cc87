// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
// Internal: writing BPF programs by instruction, with offsets from the kernel's BTF.
#ifndef REUSEPORT_BPF_CODE_HPP
#define REUSEPORT_BPF_CODE_HPP

#include <bpf/btf.h>
#include <linux/bpf.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

namespace reuseport::detail {

/// The helpers the iterators need are open to GPL-compatible programs only; the files that hold our
/// programs are so licensed.
inline constexpr char bpf_licence[] = "GPL";

/// Appends instructions; names follow the kernel's include/linux/filter.h.
class Code {
 public:
  // NOLINTBEGIN(misc-redundant-expression): several of the kernel's names stand for 0
  void mov(int dst, int src) { add(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0); }
  void mov_imm(int dst, int imm) { add(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, imm); }
  void add_imm(int dst, int imm) { add(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, imm); }
  void and_imm(int dst, int imm) { add(BPF_ALU64 | BPF_AND | BPF_K, dst, 0, 0, imm); }
  void add32_imm(int dst, int imm) { add(BPF_ALU | BPF_ADD | BPF_K, dst, 0, 0, imm); }
  void mov32(int dst, int src) { add(BPF_ALU | BPF_MOV | BPF_X, dst, src, 0, 0); }
  void mod32(int dst, int src) { add(BPF_ALU | BPF_MOD | BPF_X, dst, src, 0, 0); }
  void load(int size, int dst, int src, std::size_t off) {
    add(BPF_LDX | size | BPF_MEM, dst, src, static_cast<std::int16_t>(off), 0);
  }
  void store(int size, int dst, int off, int src) {
    add(BPF_STX | size | BPF_MEM, dst, src, static_cast<std::int16_t>(off), 0);
  }
  void store_imm(int size, int dst, int off, int imm) {
    add(BPF_ST | size | BPF_MEM, dst, 0, static_cast<std::int16_t>(off), imm);
  }
  void map(int dst, int fd) {
    add(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, fd);
    add(0, 0, 0, 0, 0);
  }
  // NOLINTEND(misc-redundant-expression)
  /// bpf_probe_read_kernel() of @p size bytes at @p base + @p off to the stack at @p to; on a fault
  /// the program ends. Clobbers r0 to r5.
  void read_kernel(int to, int size, int base, std::uint32_t off) {
    mov(BPF_REG_1, BPF_REG_10);
    add_imm(BPF_REG_1, to);
    mov_imm(BPF_REG_2, size);
    mov(BPF_REG_3, base);
    add_imm(BPF_REG_3, static_cast<int>(off));
    call(BPF_FUNC_probe_read_kernel);
    to_end_if_imm(BPF_JNE, BPF_REG_0, 0);
  }
  /// seq->write of @p size bytes of the stack at @p from. r6 holds an iterator's context.
  void seq_write(int from, int size) {
    load(BPF_DW, BPF_REG_1, BPF_REG_6, 0);  // every iterator's context begins with meta
    load(BPF_DW, BPF_REG_1, BPF_REG_1, 0);  // meta->seq
    mov(BPF_REG_2, BPF_REG_10);
    add_imm(BPF_REG_2, from);
    mov_imm(BPF_REG_3, size);
    call(BPF_FUNC_seq_write);
  }
  void call(int helper) { add(BPF_JMP | BPF_CALL, 0, 0, 0, helper); }
  /// Jumps to where end() is put.
  void to_end_if_imm(int op, int dst, int imm) {
    jumps_.push_back(insns_.size());
    add(BPF_JMP | op | BPF_K, dst, 0, 0, imm);
  }
  void to_end_if(int op, int dst, int src) {
    jumps_.push_back(insns_.size());
    add(BPF_JMP | op | BPF_X, dst, src, 0, 0);
  }
  std::vector<bpf_insn> end(int result) {
    for (const std::size_t at : jumps_) {
      insns_[at].off = static_cast<std::int16_t>(insns_.size() - at - 1);
    }
    mov_imm(BPF_REG_0, result);
    add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    return std::move(insns_);
  }

 private:
  void add(int code, int dst, int src, std::int16_t off, std::int32_t imm) {
    bpf_insn insn{};
    insn.code = static_cast<std::uint8_t>(code);
    insn.dst_reg = static_cast<std::uint8_t>(dst & 0xf);
    insn.src_reg = static_cast<std::uint8_t>(src & 0xf);
    insn.off = off;
    insn.imm = imm;
    insns_.push_back(insn);
  }

  std::vector<bpf_insn> insns_;
  std::vector<std::size_t> jumps_;
};

struct FreeBtf {
  void operator()(btf* b) const noexcept { btf__free(b); }
};
using Btf = std::unique_ptr<btf, FreeBtf>;

/// BTF of the running kernel, or nothing.
inline Btf kernel_btf() {
  // asked first, because libbpf prints a complaint of its own
  const bool there = ::access("/sys/kernel/btf/vmlinux", R_OK) == 0;
  return Btf(there ? btf__load_vmlinux_btf() : nullptr);
}

/// Byte offset of a member, also one of an anonymous struct or union inside.
inline std::optional<std::uint32_t> member_offset(const btf* b, std::uint32_t type_id,
                                                  const char* name) {
  const btf_type* type = btf__type_by_id(b, type_id);
  while (type != nullptr && (btf_is_mod(type) || btf_is_typedef(type))) {
    type = btf__type_by_id(b, type->type);
  }
  if (type == nullptr || !btf_is_composite(type)) {
    return std::nullopt;
  }
  for (std::uint32_t i = 0; i < btf_vlen(type); i++) {
    const btf_member* member = btf_members(type) + i;
    const char* own = btf__name_by_offset(b, member->name_off);
    const std::uint32_t at = btf_member_bit_offset(type, i) / 8;
    if (own != nullptr && std::strcmp(own, name) == 0) {
      return at;
    }
    if (own == nullptr || *own == '\0') {
      if (const auto inner = member_offset(b, member->type, name)) {
        return at + *inner;
      }
    }
  }
  return std::nullopt;
}

struct BitField {
  std::uint32_t byte = 0;  ///< offset
  int mask = 0;
};

/// A bit-field of one bit, also one of an anonymous struct or union inside.
inline std::optional<BitField> bit_member(const btf* b, std::uint32_t type_id, const char* name) {
  constexpr std::uint32_t byte_bits = 8;
  const btf_type* type = btf__type_by_id(b, type_id);
  if (type == nullptr || !btf_is_composite(type)) {
    return std::nullopt;
  }
  for (std::uint32_t i = 0; i < btf_vlen(type); i++) {
    const btf_member* member = btf_members(type) + i;
    const char* own = btf__name_by_offset(b, member->name_off);
    const std::uint32_t at = btf_member_bit_offset(type, i);
    if (own != nullptr && std::strcmp(own, name) == 0 && btf_member_bitfield_size(type, i) == 1) {
      return BitField{at / byte_bits, 1 << (at % byte_bits)};
    }
    if (own == nullptr || *own == '\0') {
      if (const auto inner = bit_member(b, member->type, name)) {
        return BitField{at / byte_bits + inner->byte, inner->mask};
      }
    }
  }
  return std::nullopt;
}

inline std::optional<BitField> bit_field(const btf* b, const char* type, const char* name) {
  const int id = btf__find_by_name_kind(b, type, BTF_KIND_STRUCT);
  return id < 0 ? std::nullopt : bit_member(b, static_cast<std::uint32_t>(id), name);
}

inline std::optional<std::uint32_t> field(const btf* b, const char* type, const char* name) {
  const int id = btf__find_by_name_kind(b, type, BTF_KIND_STRUCT);
  return id < 0 ? std::nullopt : member_offset(b, static_cast<std::uint32_t>(id), name);
}

}  // namespace reuseport::detail

#endif  // REUSEPORT_BPF_CODE_HPP
