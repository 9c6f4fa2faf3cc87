// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_SERVER_STAGE_HPP
#define LAB_SERVER_STAGE_HPP

#include <memory>

#include "base.hpp"
#include "method.hpp"
#include "net/link.hpp"
#include "server/control.hpp"
#include "server/server.hpp"

namespace lab {

/// What a method needs besides the two generations: sysctls, qdiscs, other processes. This one
/// needs nothing; the others are in stage.cpp.
class Stage {
 public:
  static std::unique_ptr<Stage> make(RestartMethod method);

  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  Stage(Stage&&) = delete;
  Stage& operator=(Stage&&) = delete;
  virtual ~Stage() = default;

  /// Before the first generation. May change the options with which all generations are started.
  virtual Result<void> prepare(const Link& /*link*/, ServerOptions& /*options*/) { return {}; }
  virtual Result<Generation> start(const ServerOptions& options, const Link& link) {
    return Generation::spawn(options, link.server_ns());
  }
  /// Once the first generation is ready.
  virtual Result<void> open(const Link& /*link*/) { return {}; }
  /// Before and after the old generation's drain; both count in the time from drain to may close.
  virtual Result<void> before_drain() { return {}; }
  virtual Result<void> after_drain() { return {}; }
};

}  // namespace lab

#endif  // LAB_SERVER_STAGE_HPP
