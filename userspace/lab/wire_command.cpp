// SPDX-License-Identifier: Apache-2.0
#include <arpa/inet.h>
#include <fmt/core.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>

#include "child.hpp"
#include "commands.hpp"
#include "link.hpp"

namespace lab {

int run_wire(const WireOptions& options) {
  if (const auto root = require_root(); !root) {
    return root.error();
  }
  auto link = Link::make(options.link, Link::Wire::automatic, options.seed);
  if (!link) {
    fmt::print(stderr, "restart-lab: {}\n", link.error().text);
    return exit_not_measured;
  }
  const in_addr server = link->server_address();
  std::array<char, INET_ADDRSTRLEN> address{};
  inet_ntop(AF_INET, &server, address.data(), address.size());

  ChildSpec spec;
  spec.program = options.command.front();
  spec.arguments.assign(options.command.begin() + 1, options.command.end());
  spec.fds = {link->server_ns()};
  spec.ns = link->client_ns();
  spec.environment = {fmt::format("LAB_ADDRESS={}", address.data()),
                      "LAB_SERVER_NS=/proc/self/fd/3"};
  const auto pid = spawn(spec);
  if (!pid) {
    fmt::print(stderr, "restart-lab: {}\n", pid.error().text);
    return exit_not_measured;
  }
  int status = 0;
  while (waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace lab
