// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_SERVER_SERVER_HPP
#define LAB_SERVER_SERVER_HPP

#include <cstdint>
#include <string>

#include <reuseport/reuseport.hpp>

#include "method.hpp"

namespace lab {

struct ServerOptions {
  RestartMethod method = RestartMethod::close;
  bool udp = false;  ///< sockets for datagrams instead of listeners
  std::uint32_t generation = 0;
  std::string address;  ///< IPv4, dotted
  std::uint16_t port = 0;
  int listeners = 4;
  int backlog = 4096;
  reuseport::Mode mode = reuseport::Mode::on;  ///< set before bind(); needs the option if not on
  std::string unix_path;                       ///< uds-rename: the path the proxy connects to
  int control_fd = -1;                         ///< see Control
};

/// One generation of the server, a separate process started with exec. Gets its listeners, reports
/// that it is ready, answers every Request with a Reply and, once told to drain, retires its
/// listeners by the method, finishes the accepted connections and returns.
/// @return the exit code of the process.
int run_server(const ServerOptions& options);

/// A separate process beside the server under test that must never get a connection: as fast as it
/// can, sockets of the same address join the group OFF or STANDBY, switch between the two, and
/// leave, until the lab ends or sends {"do": "drain"}. It answers {"event": "bye", "accepted": n,
/// "changes": n}; any accepted connection is a kernel bug, because there was an ON member at every
/// instant. Needs the option. @return the exit code of the process.
int run_churn(const ServerOptions& options);

/// The process that owns the sockets (method socket-server): opens them, then starts a server for
/// each {"do": "start", "arguments": [...]} that comes with the server's control descriptor, with
/// the sockets as LISTEN_FDS. Ends when the lab does. @return the exit code of the process.
int run_socket_server(const ServerOptions& options);

}  // namespace lab

#endif  // LAB_SERVER_SERVER_HPP
