// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "child.hpp"
#include "control.hpp"
#include "generation.hpp"
#include "result.hpp"
#include "server.hpp"

namespace lab {

/// The process that owns the sockets (method socket-server): opens them, then starts a server for
/// each {"do": "start", "arguments": [...]} that comes with the server's control descriptor, with
/// the sockets as LISTEN_FDS. Ends when the lab does. @return the exit code of the process.
int run_socket_server(const ServerOptions& options);

/// That process as the lab holds it.
class SocketServer {
 public:
  static Result<SocketServer> spawn(ServerOptions options, int ns);
  /// Has it start one server; returns at once.
  [[nodiscard]] Result<Generation> start(ServerOptions options) const;

 private:
  SocketServer(Child child, Control control)
      : child_(std::move(child)), control_(std::move(control)) {}
  Child child_;
  Control control_;
};

}  // namespace lab
