// SPDX-License-Identifier: Apache-2.0
#include "holders_bpf.hpp"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>

namespace reuseport::detail {

namespace {

constexpr std::string_view initial_pid_namespace = "pid:[4026531836]";  // PROC_PID_INIT_INO

}  // namespace

Result<std::vector<holder_record>> holders_by_bpf() {
  std::array<char, 32> ns{};
  const ssize_t len = ::readlink("/proc/self/ns/pid", ns.data(), ns.size());
  if (len < 0 ||
      std::string_view(ns.data(), static_cast<std::size_t>(len)) != initial_pid_namespace) {
    return fail("readlink(/proc/self/ns/pid)", EXDEV);
  }
  return run_iterator<holder_record>(Iterator::holders);
}

}  // namespace reuseport::detail
