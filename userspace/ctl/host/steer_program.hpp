// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
// Internal: the BPF programs, as instructions. They are a few dozen each, so no BPF compiler is
// asked of those who build this library.
#ifndef REUSEPORT_STEER_PROGRAM_HPP
#define REUSEPORT_STEER_PROGRAM_HPP

#include <linux/bpf.h>

#include <cstdint>
#include <vector>

#include "bpf_iterator.hpp"
#include "host/result.hpp"
#include "host/sockdiag.hpp"

namespace reuseport::detail {

constexpr std::uint32_t steer_slots = 1024;
/// As bpftool shows it; also how a program left behind by a killed tool is known.
constexpr char steer_name[] = "reuseport_steer";

/// The one element of the control map.
struct SteerControl {
  std::uint64_t deadline_ns = 0;  // CLOCK_MONOTONIC; later than this the kernel's hash chooses
  std::uint32_t count = 0;        // slots in use
  std::uint32_t pad = 0;
};

/// Chooses slot hash % count, or the next ones when it is empty.
std::vector<bpf_insn> steer_program(int array_fd, int control_fd);

/// What the iterator writes for each socket of a group with a program.
struct GroupRecord {
  std::uint64_t cookie = 0;
  std::uint32_t attached = 0;
  std::uint32_t program_id = 0;
};

/// Writes a GroupRecord for every listener whose reuseport group has a program. Offsets come from
/// the running kernel's BTF. ENOENT: there is none, or it lacks a field.
Result<IteratorProgram> group_iterator(Protocol protocol);

}  // namespace reuseport::detail

#endif  // REUSEPORT_STEER_PROGRAM_HPP
