// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "base.hpp"
#include "method.hpp"

namespace lab {

/// How an old generation lets its listeners go: a step machine the server's loop turns.
class Retire {
 public:
  /// What the server has to do, or has got, at one turn.
  struct Turn {
    /// Instant from which no new connection can reach these listeners; set once known.
    std::optional<std::int64_t> cut_over_ns;
    /// The listeners are closed and this is what was done: "outcome" and counts.
    std::optional<nlohmann::json> done;
    /// Otherwise: turn again by then, or earlier when a listener is readable.
    std::int64_t next_ns = 0;
  };
  /// The server's own accept path: takes in what waits on one listener, returns how many.
  using Accept = std::function<int(int listener)>;

  virtual ~Retire() = default;
  virtual Result<Turn> turn() = 0;

  /// Takes the listeners over; nothing is changed before the first turn().
  static std::unique_ptr<Retire> make(RestartMethod method, std::vector<Fd> listeners,
                                      Accept accept);
};

}  // namespace lab
