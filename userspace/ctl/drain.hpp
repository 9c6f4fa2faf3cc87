// SPDX-License-Identifier: Apache-2.0
// drain: retire the listeners of another process.
//
//   option   STANDBY ... nothing half-open, nothing queued ... OFF ... drained ... signal
//   steer    program attached ... snapshot gone, queue empty ... signal ... closed ... detached
//   migrate  signal; the kernel moves what close() finds (net.ipv4.tcp_migrate_req, set by others)
//   close    signal; what the server has not accepted is reset
//
// While in STANDBY the old server takes over by itself should the newcomer die, also when this tool
// is gone. OFF comes last and for as short as can be.
#ifndef REUSEPORTCTL_DRAIN_HPP
#define REUSEPORTCTL_DRAIN_HPP

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "failure.hpp"
#include "output.hpp"
#include "reuseport/reuseport.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

enum class Method : std::uint8_t { automatic, option, steer, migrate, close };
[[nodiscard]] const char* to_string(Method method);

/// What becomes of listeners that still have connections when time is out.
enum class AtDeadline : std::uint8_t {
  standby,  ///< stay in STANDBY: nothing new while the newcomer lives, a fallback if it dies
  restore,  ///< the mode they had
  signal,   ///< send the signal all the same; what is left is lost
};

struct DrainOptions {
  Selection selection;  ///< further narrows; its pid is the server's
  Method method = Method::automatic;
  std::chrono::milliseconds timeout{30'000};
  std::optional<int> signal;
  bool wait = false;            ///< after the signal, until the process has ended
  bool await_newcomer = false;  ///< wait for a newcomer instead of refusing (exit 7)
  bool allow_shared = false;
  bool allow_last = false;
  bool dry_run = false;
  AtDeadline at_deadline = AtDeadline::standby;
};

/// One listener, at the last look.
struct Drained {
  std::string what;
  std::string address;
  std::uint64_t inode = 0;
  std::optional<Mode> before;
  std::optional<Mode> mode;
  std::uint64_t handshakes = 0;
  std::uint64_t queued = 0;
  bool closed = false;  ///< by its server, before it was drained
};

struct DrainResult {
  Method method = Method::close;
  std::string reason;    ///< why no better method was used
  bool drained = false;  ///< nothing was left: closing loses nothing
  bool signalled = false;
  bool ended = false;  ///< the process was seen to end
  std::chrono::milliseconds took{};
  std::vector<Drained> listeners;
  std::uint64_t handshakes = 0;  ///< left, over all listeners
  std::uint64_t queued = 0;

  [[nodiscard]] nlohmann::json json() const;
  [[nodiscard]] std::string text() const;
  /// "2 half-open requests and 1 queued connection"
  [[nodiscard]] std::string left() const;
};

/// Does it. On failure everything has the mode it had before, except at the deadline (exit 6),
/// where DrainOptions::at_deadline says.
/// @param server  the old process: held since it was chosen, so no other can take its number
[[nodiscard]] Outcome<DrainResult> drain(const DrainOptions& options, const Process& server,
                                         Waiter& waiter, const Output& out);

/// The command: drain() until SIGINT or SIGTERM, and print the result.
[[nodiscard]] Done drain_command(const DrainOptions& options, const Output& out);

/// The method that @p options come to on this kernel, and in @p reason why no better one.
/// Exit::unsupported, Exit::permission: the one asked for does not work.
[[nodiscard]] Outcome<Method> choose_method(const DrainOptions& options, std::string& reason);

// --- for the parts of drain() ---

struct DrainContext {
  const DrainOptions& options;
  const Process& server;
  const View& view;
  std::vector<Target>& targets;
  Waiter& waiter;
  const Output& out;
  Clock::time_point start;
  Clock::time_point deadline;
};

[[nodiscard]] Outcome<DrainResult> drain_by_option(DrainContext& context);
[[nodiscard]] Outcome<DrainResult> drain_by_steering(DrainContext& context);

/// Sends the signal, if one was asked for, and waits if that was.
[[nodiscard]] Done finish(DrainContext& context, DrainResult& result);
/// Exit::deadline with what is left.
[[nodiscard]] Failure deadline_failure(const DrainResult& result, const std::string& now);
/// Listeners at the address of @p target that are none of @p targets.
[[nodiscard]] std::vector<const DiagSocket*> others_at(const DiagSocket& target, const View& view,
                                                       const std::vector<Target>& targets);
[[nodiscard]] std::string progress_line(const DrainResult& result, Clock::time_point start);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_DRAIN_HPP
