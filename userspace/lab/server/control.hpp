// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_SERVER_CONTROL_HPP
#define LAB_SERVER_CONTROL_HPP

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base.hpp"
#include "process.hpp"
#include "server/server.hpp"

namespace lab {

/// One end of a SOCK_SEQPACKET pair between the lab and a server process: one JSON object per
/// message, with file descriptors if a method passes sockets (SCM_RIGHTS, unix(7)).
///
/// Lab to server:   {"do": "drain"}
/// Server to lab:   {"event": "ready"} · {"event": "failed", "why": text}
///                  {"event": "may-close", "cut_over": ns, "outcome": text, "left": n}
///                  {"event": "bye", "accepted": n, "answered": n}
class Control {
 public:
  struct Pair;
  struct Message {  // NOLINT(bugprone-exception-escape): the move of json does not throw
    nlohmann::json json;
    std::vector<Fd> fds;
  };

  Control() = default;
  explicit Control(Fd fd) : fd_(std::move(fd)) {}
  static Result<Pair> pair();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] Result<void> send(const nlohmann::json& json,
                                  const std::vector<int>& fds = {}) const;
  /// The next message; empty if none came by `deadline_ns` (CLOCK_MONOTONIC); an error if the other
  /// end is gone.
  [[nodiscard]] Result<std::optional<Message>> receive(std::int64_t deadline_ns) const;

 private:
  Fd fd_;
};

struct Control::Pair {
  Control lab;
  Fd server;  ///< for the child, not close-on-exec there
};

/// The command line of a server process.
std::vector<std::string> server_arguments(const ServerOptions& options);

/// A server process, held by the lab. Destroying it kills the process if it is still there.
class Generation {
 public:
  /// Starts (exec) a server in the network namespace `ns`; returns at once.
  /// @param role the hidden subcommand: `server`, `churn` or `socket-server`
  /// @param cgroup as ChildSpec::cgroup
  static Result<Generation> spawn(ServerOptions options, int ns, const char* role = "server",
                                  int cgroup = -1);
  /// For a server that the socket server has started; the process is its child.
  Generation(std::uint32_t number, Control control)
      : number_(number), control_(std::move(control)) {}

  [[nodiscard]] std::uint32_t number() const { return number_; }
  [[nodiscard]] Result<void> tell(const nlohmann::json& message,
                                  const std::vector<int>& fds = {}) const {
    return control_.send(message, fds);
  }
  /// The next event of the server, or nothing by the deadline. {"event": "failed"} is an error.
  [[nodiscard]] Result<std::optional<Control::Message>> event(std::int64_t deadline_ns) const;
  /// Waits until it listens.
  Result<void> wait_ready(std::int64_t bound_ns);

  [[nodiscard]] pid_t pid() const { return child_.pid(); }
  /// True once the process has ended and was reaped.
  bool gone() { return child_.gone(); }
  /// It has sent its last message: nothing more is read from it.
  void said_bye() { done_ = true; }
  [[nodiscard]] bool done() const { return done_; }

 private:
  Child child_;
  std::uint32_t number_ = 0;
  Control control_;
  bool done_ = false;
};

}  // namespace lab

#endif  // LAB_SERVER_CONTROL_HPP
