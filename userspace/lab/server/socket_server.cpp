// SPDX-License-Identifier: Apache-2.0
#include <csignal>

#include "process.hpp"
#include "server/control.hpp"
#include "server/listeners.hpp"

namespace lab {
namespace {

Result<void> start_one(const Control::Message& order, const std::vector<int>& sockets) {
  if (order.fds.size() != 1 || !order.json.contains("arguments")) {
    return error("socket server: a command without arguments or control descriptor");
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
  std::signal(SIGCHLD, SIG_IGN);  // the kernel reaps the servers
  const Control control{Fd{options.control_fd}};
  if (auto done = hold_sockets(options, control); !done) {
    static_cast<void>(control.send({{"event", "failed"}, {"why", done.error().text}}));
    return 1;
  }
  return 0;
}

}  // namespace lab
