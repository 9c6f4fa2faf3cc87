// SPDX-License-Identifier: Apache-2.0
// drain: retire the listeners of another process, as reuseportctl(8) has it:
//
//   choose the targets and the method, check, run the core's drain, leave, signal, wait
//
//   option      STANDBY ... nothing half-open, nothing queued ... signal ... closed ... others seen
//   option-bpf  the same, provided by BPF for the time of this drain; ends with it
//   migrate     signal; the kernel moves what close() finds (net.ipv4.tcp_migrate_req, set by
//   others) close       signal; what the server has not accepted is reset
//
// The listeners stay in STANDBY until their server closes them: should the newcomer die, or this
// tool, or both, the old server serves again.
#ifndef REUSEPORTCTL_DRAIN_HPP
#define REUSEPORTCTL_DRAIN_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "child.hpp"
#include "failure.hpp"
#include "output.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

enum class Method : std::uint8_t { automatic, option, option_bpf, migrate, close };
[[nodiscard]] const char* to_string(Method method);
/// Counts what is left, and waits for it.
[[nodiscard]] constexpr bool drains(Method method) {
  return method == Method::option || method == Method::option_bpf;
}

/// What becomes of listeners that still have connections when time is out.
enum class AtDeadline : std::uint8_t {
  standby,  ///< stay in STANDBY: nothing new while the newcomer lives, a fallback if it dies
  restore,  ///< the mode they had
  signal,   ///< send the signal all the same; what is left is lost
};

struct DrainOptions {
  Selection selection;  ///< further narrows; its pid is the server's
  Method method = Method::automatic;
  bool require = false;  ///< no falling back to what does not drain
  std::chrono::milliseconds timeout{30'000};
  std::string ready;                       ///< run by /bin/sh until it says 0, before anything
  std::string before_signal;               ///< run by /bin/sh once the listeners are drained
  std::optional<std::size_t> connections;  ///< wait until the server has no more than these
  std::optional<std::size_t> flows;        ///< and until its UDP sockets have no more than these
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
  bool closed = false;  ///< by its server, before the signal
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
  std::optional<std::size_t> connections;       ///< established ones, where they were counted
  std::optional<std::size_t> flows;             ///< UDP flows that live, where they are recorded
  std::chrono::milliseconds flows_known_for{};  ///< what was silent all that time is not counted
  std::chrono::milliseconds flows_idle{};       ///< ... and would be over after this
  bool flows_without_room = false;              ///< some were not kept, and may not be counted

  [[nodiscard]] bool all_flows_known() const { return flows && flows_known_for >= flows_idle; }

  [[nodiscard]] nlohmann::json json() const;
  [[nodiscard]] std::string text() const;
  /// "2 half-open requests and 1 queued", and the connections where they were counted
  [[nodiscard]] std::string left() const;
};

/// Whether a drain that failed has sent its signal all the same.
[[nodiscard]] bool was_signalled(const Failure& failure);

/// What a drain lives in.
struct Surroundings {
  Waiter& waiter;
  Children& children;
  const Output& out;
};

/// Does it. On failure everything has the mode it had before, except at the deadline (exit 6),
/// where DrainOptions::at_deadline says.
/// @param server  the old process: held since it was chosen, so no other can take its number
[[nodiscard]] Outcome<DrainResult> drain(const DrainOptions& options, const ProcessPtr& server,
                                         const Surroundings& around);

/// The command: drain() until a signal asks to stop, and print the result. Exit::undrained where
/// the method does not drain.
[[nodiscard]] Outcome<Exit> drain_command(const DrainOptions& options, const Output& out);

/// The method that @p options come to in this network namespace, and in @p reason why no better
/// one. Exit::unsupported, Exit::permission: the one asked for does not work.
[[nodiscard]] Outcome<Method> choose_method(const DrainOptions& options, std::string& reason);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_DRAIN_HPP
