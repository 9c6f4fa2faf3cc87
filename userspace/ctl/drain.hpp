// SPDX-License-Identifier: Apache-2.0
// drain: retire the listeners of another process, see reuseportctl(8):
//
//   choose the targets and the method, check, run the core's drain, leave, signal, wait
//
// clang-format off
//   option      STANDBY ... nothing half-open, nothing queued ... signal ... closed ... newcomer seen
//   option-bpf  the same, provided by BPF for the time of this drain
//   migrate     signal; the kernel moves what is left at close() (net.ipv4.tcp_migrate_req, never set by this tool)
//   close       signal; what the server has not accepted is reset
// clang-format on
//
// The listeners stay in STANDBY until their server closes them: if the newcomer dies, or this tool,
// or both, the old server serves again.
#ifndef REUSEPORTCTL_DRAIN_HPP
#define REUSEPORTCTL_DRAIN_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
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

enum class DrainMethod : std::uint8_t { automatic, option, option_bpf, migrate, close };
[[nodiscard]] const char* to_string(DrainMethod method);
/// Whether the method counts what is left and waits for it.
[[nodiscard]] constexpr bool drains(DrainMethod method) {
  return method == DrainMethod::option || method == DrainMethod::option_bpf;
}

/// --on-deadline: what to do with listeners that still have connections then.
enum class OnDeadline : std::uint8_t {
  standby,  ///< leave them in STANDBY: nothing new while the newcomer lives, a fallback if it dies
  restore,  ///< restore their old mode
  signal,   ///< send the signal anyway; what is left is lost
};

/// The options of the command, and what restart passes on of its own.
struct DrainCommandOptions {
  Selection selection;  ///< further narrows; its pid is the server's
  DrainMethod method = DrainMethod::automatic;
  bool require = false;  ///< do not fall back to a method that does not drain
  std::chrono::milliseconds timeout{30'000};
  std::string ready;                       ///< run by /bin/sh until it exits 0, before anything
  std::string before_signal;               ///< run by /bin/sh once the listeners are drained
  std::optional<std::size_t> connections;  ///< wait until the server has at most this many
  std::optional<std::size_t> flows;        ///< and its UDP sockets have at most this many
  std::optional<int> signal;
  bool wait = false;            ///< after the signal, until the process has ended
  bool await_newcomer = false;  ///< wait for a newcomer instead of refusing (exit 7)
  bool allow_shared = false;
  bool allow_last = false;
  bool dry_run = false;
  OnDeadline on_deadline = OnDeadline::standby;
};

/// One listener, at its last check.
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
  DrainMethod method = DrainMethod::close;
  std::string reason;    ///< why no better method was used
  bool drained = false;  ///< nothing was left: closing loses nothing
  bool signalled = false;
  bool ended = false;  ///< the process was seen to end
  std::chrono::milliseconds took{};
  std::vector<Drained> listeners;
  std::uint64_t handshakes = 0;  ///< left, over all listeners
  std::uint64_t queued = 0;
  std::optional<std::size_t> connections;       ///< established connections, if counted
  std::optional<std::size_t> flows;             ///< live UDP flows, if recorded
  std::chrono::milliseconds flows_known_for{};  ///< flows silent all that time are not counted
  std::chrono::milliseconds flows_idle{};       ///< idle timeout of a flow
  bool flows_without_room = false;              ///< some found no room and may not be counted
  std::string flows_uncounted;                  ///< why flows that are recorded were not counted

  [[nodiscard]] bool all_flows_known() const { return flows && flows_known_for >= flows_idle; }

  [[nodiscard]] nlohmann::json json() const;
  [[nodiscard]] std::string text() const;
  /// "2 half-open requests and 1 queued", with connections and flows if they were counted
  [[nodiscard]] std::string left() const;
};

/// Whether a drain that failed has sent its signal anyway.
[[nodiscard]] bool was_signalled(const Failure& failure);
/// Whether nothing was left when a drain failed.
[[nodiscard]] bool was_drained(const Failure& failure);

/// What a drain uses of its caller.
struct Surroundings {
  Waiter& waiter;
  Children& children;
  const Output& out;
  /// Called when all checks are passed; if it fails, there is no signal.
  std::function<Done()> before_signal = {};
};

/// Runs a drain. On failure every listener has its old mode again, except at the deadline (exit 6):
/// see DrainCommandOptions::on_deadline.
/// @param server  the old process, held by a pidfd since it was chosen
[[nodiscard]] Expected<DrainResult> drain(const DrainCommandOptions& options,
                                          const ProcessPtr& server, const Surroundings& around);

/// The command: runs drain(), stops on a signal, prints the result. Exit::undrained if the method
/// does not drain.
[[nodiscard]] Expected<Exit> drain_command(const DrainCommandOptions& options, const Output& out);

/// The method that @p options select in this network namespace, and in @p reason why no better one.
/// Exit::unsupported, Exit::permission: the requested method does not work.
[[nodiscard]] Expected<DrainMethod> choose_method(const DrainCommandOptions& options,
                                                  std::string& reason);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_DRAIN_HPP
