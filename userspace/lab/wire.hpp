// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace lab {

/// What a client sends on each connection, and what the server answers: the same number and who
/// answered. Host byte order: both ends run on one machine.
struct Request {
  std::uint64_t id;
};

struct Reply {
  std::uint64_t id;
  std::uint32_t generation;
  std::uint32_t pid;
};
static_assert(sizeof(Request) == 8 && sizeof(Reply) == 16);

}  // namespace lab
