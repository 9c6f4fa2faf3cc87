// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "child.hpp"
#include "control.hpp"
#include "result.hpp"
#include "server.hpp"

namespace lab {

/// The command line of a server process.
std::vector<std::string> server_arguments(const ServerOptions& options);

/// A server process as the lab holds it. Destroying it kills the process if it is still there.
class Generation {
 public:
  /// Starts this program anew (exec) as a server in the network namespace `ns`; returns at once.
  /// @param role the hidden subcommand: `server` or `churn`
  static Result<Generation> spawn(ServerOptions options, int ns, const char* role = "server");
  /// One that a socket server started; its process is a child of that.
  Generation(std::uint32_t number, Control control)
      : number_(number), control_(std::move(control)) {}

  [[nodiscard]] std::uint32_t number() const { return number_; }
  [[nodiscard]] Result<void> tell(const nlohmann::json& message,
                                  const std::vector<int>& fds = {}) const {
    return control_.send(message, fds);
  }
  /// The next event of the server, or nothing by the deadline. {"event": "failed"} is an error.
  [[nodiscard]] Result<std::optional<Control::Message>> event(std::int64_t deadline_ns) const;
  /// Waits until it listens. Its listeners come along where its method needs others to know them.
  Result<void> wait_ready(std::int64_t bound_ns);
  [[nodiscard]] std::vector<Fd> take_listeners() { return std::move(listeners_); }

  [[nodiscard]] pid_t pid() const { return child_.pid(); }
  /// True once the process has ended and was reaped.
  bool gone() { return child_.gone(); }
  /// It said its last word: nothing more is read from it.
  void said_bye() { done_ = true; }
  [[nodiscard]] bool done() const { return done_; }

 private:
  Child child_;
  std::uint32_t number_ = 0;
  Control control_;
  std::vector<Fd> listeners_;
  bool done_ = false;
};

}  // namespace lab
