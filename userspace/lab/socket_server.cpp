// SPDX-License-Identifier: Apache-2.0
#include "socket_server.hpp"

#include <csignal>

#include "clock.hpp"
#include "listeners.hpp"

namespace lab {
namespace {

// Generous: on an emulated, busy machine an exec alone takes seconds.
constexpr std::int64_t ready_bound = 180 * one_second;

Result<void> start_one(const Control::Message& order, const std::vector<int>& sockets) {
  if (order.fds.size() != 1 || !order.json.contains("arguments")) {
    return error("socket server: an order without arguments or control descriptor");
  }
  ChildSpec spec;
  for (const auto& word : order.json["arguments"]) {
    spec.arguments.push_back(word.get<std::string>());
  }
  spec.fds = sockets;
  spec.fds.push_back(order.fds.front().get());
  spec.environment = {fmt::format("LISTEN_FDS={}", sockets.size())};
  auto pid = spawn(spec);
  if (!pid) {
    return tl::unexpected(pid.error());
  }
  return {};
}

Result<void> hold_sockets(const ServerOptions& options, const Control& control) {
  auto listeners = open_listeners(options);
  if (!listeners) {
    return tl::unexpected(listeners.error());
  }
  std::vector<int> fds;
  for (const auto& listener : *listeners) {
    fds.push_back(listener.get());
  }
  if (auto ready = control.send({{"event", "ready"}}); !ready) {
    return ready;
  }
  for (;;) {
    auto order = control.receive(now_ns() + one_second);
    if (!order) {
      return {};  // the lab is gone, or done
    }
    if (*order) {
      if (auto started = start_one(**order, fds); !started) {
        return started;
      }
    }
  }
}

}  // namespace

int run_socket_server(const ServerOptions& options) {
  std::signal(SIGINT, SIG_IGN);
  std::signal(SIGCHLD, SIG_IGN);  // the servers are reaped by the kernel
  const Control control{Fd{options.control_fd}};
  if (auto done = hold_sockets(options, control); !done) {
    static_cast<void>(control.send({{"event", "failed"}, {"why", done.error().text}}));
    return 1;
  }
  return 0;
}

Result<SocketServer> SocketServer::spawn(ServerOptions options, int ns) {
  auto pair = Control::pair();
  if (!pair) {
    return tl::unexpected(pair.error());
  }
  options.control_fd = 3;
  ChildSpec spec;
  spec.arguments = server_arguments(options);
  spec.arguments.front() = "socket-server";
  spec.fds = {pair->server.get()};
  spec.ns = ns;
  auto pid = lab::spawn(spec);
  if (!pid) {
    return tl::unexpected(pid.error());
  }
  SocketServer server{Child{*pid}, std::move(pair->lab)};
  auto said = server.control_.receive(now_ns() + ready_bound);
  if (!said) {
    return error(fmt::format("socket server: {}", said.error().text));
  }
  if (!*said || (*said)->json.value("event", "") != "ready") {
    return error(fmt::format("socket server: {}",
                             *said ? (*said)->json.value("why", "not ready") : "not ready"));
  }
  return server;
}

Result<Generation> SocketServer::start(ServerOptions options) const {
  auto pair = Control::pair();
  if (!pair) {
    return tl::unexpected(pair.error());
  }
  options.control_fd = 3 + options.listeners;
  auto sent = control_.send({{"do", "start"}, {"arguments", server_arguments(options)}},
                            {pair->server.get()});
  if (!sent) {
    return tl::unexpected(sent.error());
  }
  return Generation{options.generation, std::move(pair->lab)};
}

}  // namespace lab
