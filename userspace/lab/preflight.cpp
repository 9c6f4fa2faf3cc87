// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>

#include "commands.hpp"

namespace lab {
namespace {

bool is_expected(Expect expect, const KernelAnswer& kernel) {
  switch (expect) {
    case Expect::supported: return kernel.supported;
    case Expect::not_in_kernel: return !kernel.supported && !kernel.in_doubt;
    case Expect::anything: break;
  }
  return true;
}

}  // namespace

tl::expected<void, ExitCode> require_root() {
  if (geteuid() != 0) {
    fmt::print(stderr, "restart-lab: makes network namespaces; run it as root\n");
    return tl::unexpected(exit_permission);
  }
  return {};
}

tl::expected<KernelAnswer, ExitCode> preflight(Expect expect) {
  auto kernel = ask_kernel();
  fmt::print("kernel: SO_REUSEPORT_LISTEN_OFF is {} ({})\n", kernel.word, kernel.why);
  std::fflush(stdout);
  if (!is_expected(expect, kernel)) {
    fmt::print(stderr, "restart-lab: this is not the kernel that is wanted: {}\n", kernel.word);
    return tl::unexpected(exit_unexpected);
  }
  return require_root().map([&] { return kernel; });
}

}  // namespace lab
