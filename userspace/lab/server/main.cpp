// SPDX-License-Identifier: Apache-2.0
//
// restart-lab-server: the program that restart-lab starts for every generation. A separate program,
// because a restart is as slow as its exec.
#include <fmt/core.h>

#include <CLI/CLI.hpp>

#include "run.hpp"
#include "server/server.hpp"

// NOLINTNEXTLINE(bugprone-exception-escape): without memory there is nothing to save
int main(int argc, char** argv) {
  using namespace lab;
  CLI::App app{"A helper process of restart-lab: see restart-lab --help."};
  app.require_subcommand(1);

  ServerOptions server;
  std::string method_name;
  std::string mode_name = "on";
  const auto add = [&](const char* name, const char* what) {
    auto* command = app.add_subcommand(name, what);
    command->add_option("--method", method_name)->required();
    command->add_option("--generation", server.generation)->required();
    command->add_option("--address", server.address)->required();
    command->add_option("--port", server.port)->required();
    command->add_option("--listeners", server.listeners)->required();
    command->add_option("--backlog", server.backlog)->required();
    command->add_option("--mode", mode_name);
    command->add_flag("--udp", server.udp);
    command->add_option("--unix-path", server.unix_path);
    command->add_option("--control-fd", server.control_fd)->required();
    return command;
  };
  const auto* generation = add("server", "one generation");
  const auto* churn = add("churn", "sockets that join, change mode and leave");
  add("socket-server", "holds the sockets and starts the generations");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? exit_passed : exit_usage;
  }
  const auto method = parse_method(method_name);
  const auto mode = reuseport::parse_mode(mode_name);
  if (!method || !mode) {
    fmt::print(stderr, "restart-lab-server: bad method or mode\n");
    return exit_usage;
  }
  server.method = *method;
  server.mode = *mode;
  if (generation->parsed()) {
    return run_server(server);
  }
  return churn->parsed() ? run_churn(server) : run_socket_server(server);
}
