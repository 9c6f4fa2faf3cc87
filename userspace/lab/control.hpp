// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "fd.hpp"
#include "result.hpp"

namespace lab {

/// One end of a SOCK_SEQPACKET pair between the lab and a server process: one JSON object a
/// message, with file descriptors where a method hands sockets over (SCM_RIGHTS, unix(7)).
///
/// Lab to server:   {"do": "drain"}
/// Server to lab:   {"event": "ready"} · {"event": "cut-over", "at": ns}
///                  {"event": "may-close", "at": ns, "really": text, ...} · {"event": "failed",
///                  "why": text}
///                  {"event": "bye", "accepted": n, "answered": n}
class Control {
 public:
  struct Pair;
  struct Message {
    nlohmann::json json;
    std::vector<Fd> fds;
  };

  Control() = default;
  explicit Control(Fd fd) : fd_(std::move(fd)) {}
  static Result<Pair> pair();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] Result<void> send(const nlohmann::json& json,
                                  const std::vector<int>& fds = {}) const;
  /// The next message; nothing when none came by `deadline_ns` (CLOCK_MONOTONIC); an error when the
  /// other end is gone.
  [[nodiscard]] Result<std::optional<Message>> receive(std::int64_t deadline_ns) const;

 private:
  Fd fd_;
};

struct Control::Pair {
  Control lab;
  Fd server;  ///< for the child, not close-on-exec there
};

}  // namespace lab
