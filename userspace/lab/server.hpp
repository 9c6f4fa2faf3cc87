// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <string>

#include <reuseport/listener.hpp>

#include "method.hpp"

namespace lab {

struct ServerOptions {
  Method method = Method::close;
  std::uint32_t generation = 0;
  in_addr address{};
  std::uint16_t port = 0;
  int listeners = 4;
  int backlog = 4096;
  reuseport::Mode mode = reuseport::Mode::on;  ///< set before bind(); needs the option if not on
  std::string unix_path;                       ///< uds-rename: the path the proxy connects to
  int control_fd = -1;                         ///< see Control
};

/// One generation of the server: a process of its own, started with exec. Gets its listeners, says
/// it is ready, answers every Request with a Reply, and once told to drain, lets its listeners go
/// by the method, finishes the connections it accepted and returns.
/// @return the exit code of the process.
int run_server(const ServerOptions& options);

}  // namespace lab
