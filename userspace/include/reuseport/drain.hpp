// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_DRAIN_HPP
#define REUSEPORT_DRAIN_HPP

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "reuseport/error.hpp"
#include "reuseport/export.h"
#include "reuseport/listener.hpp"
#include "reuseport/probe.hpp"

namespace reuseport {

using Clock = std::chrono::steady_clock;

/// How much a drain may fall back.
enum class Policy : std::uint8_t {
  require,     ///< a way that loses nothing (the option, or steering if given), or start() fails
  prefer,      ///< the best there is: option, steering, migration if it is on, sweep and close
  close_only,  ///< plain close(), the baseline others are compared with
};

/// By what means new connections were kept away from a listener.
enum class Method : std::uint8_t {
  option,   ///< SO_REUSEPORT_LISTEN_OFF
  steer,    ///< a Steering given by the caller
  migrate,  ///< sweep, then close() with net.ipv4.tcp_migrate_req=1, which someone else had set
  sweep,    ///< accept until EAGAIN, then close(): half-open requests are reset
  close,    ///< close() alone: half-open requests and the accept queue are reset
};

/// What became of a listener. From best to worst, so the worst of several is their maximum.
enum class Outcome : std::uint8_t {
  drained,           ///< nothing was left; close() lost nothing
  migrated,          ///< closed; the kernel moved what was left to another member of the group
  swept_and_closed,  ///< queue emptied, then closed; half-open requests were reset
  closed,            ///< closed with whatever it had
  deadline_hit,      ///< time ran out with connections left; see ListenerReport::left
  undone,            ///< still open, in the mode it had before the drain
};

[[nodiscard]] REUSEPORT_API std::string_view to_string(Policy policy) noexcept;
[[nodiscard]] REUSEPORT_API std::string_view to_string(Method method) noexcept;
[[nodiscard]] REUSEPORT_API std::string_view to_string(Outcome outcome) noexcept;

/// What a listener still has. Empty: this kernel cannot tell.
struct Left {
  std::optional<std::uint32_t> handshakes;  ///< TCP: half-open requests; UDP: 0
  std::optional<std::uint32_t> queued;      ///< TCP: connections in the accept queue; UDP: bytes

  /// Both are known, and 0.
  [[nodiscard]] bool nothing() const noexcept { return handshakes == 0U && queued == 0U; }
};

/// What was really done with one listener.
struct ListenerReport {
  int fd = -1;  ///< as given to add(); closed by now unless outcome is undone
  Outcome outcome = Outcome::undone;
  Method method = Method::close;
  Left left;                   ///< at the last look before close()
  std::optional<Error> error;  ///< why the last look failed, where it did
};

/// What was really done.
struct Report {
  Outcome outcome = Outcome::drained;  ///< the worst of all listeners
  Method method = Method::option;      ///< the weakest of all listeners
  ProbeResult probe;                   ///< why the option was used, or why not
  std::optional<Error> not_steered;    ///< why a Steering that was given was not used
  bool timed_out = false;              ///< the deadline passed before all listeners were drained
  std::vector<ListenerReport> listeners;
  Clock::duration took{};

  /// No connection was lost by this drain, as far as the kernel can tell.
  [[nodiscard]] bool lossless() const noexcept { return outcome <= Outcome::migrated; }
  /// Sum over the listeners that can tell.
  [[nodiscard]] REUSEPORT_API Left left() const noexcept;
};

/// Sends new connections elsewhere without the option (see steer.hpp for the one with BPF).
/// One object serves one drain. Calls come from the thread that drives the drain.
class Steering {
 public:
  Steering() = default;
  Steering(const Steering&) = delete;
  Steering& operator=(const Steering&) = delete;
  Steering(Steering&&) = delete;
  Steering& operator=(Steering&&) = delete;
  virtual ~Steering() = default;

  /// From its return on, no new connection comes to @p leaving. On error nothing has changed.
  [[nodiscard]] virtual Status start(std::span<const int> leaving) = 0;
  /// What may still come to, or is queued at, @p fd, one of those given to start(). Half-open
  /// requests: those which began before start() returned and are not complete.
  [[nodiscard]] virtual Result<Left> left(int fd) = 0;
  /// Takes everything back. Called once the listeners are closed, and on undo.
  virtual void stop() noexcept = 0;
};

/// What start() does where no ON member would remain in a group: new connections would be refused
/// (or come to a STANDBY member). Needs the option to tell; ignored without it.
enum class LastOn : std::uint8_t {
  allow,   ///< switch it off: a server that goes for good
  refuse,  ///< start() fails with EADDRNOTAVAIL and changes nothing
  wait,    ///< STANDBY until a newcomer is ON, then OFF; undone if the deadline comes first
};

/// What happens at the deadline to a listener that is not drained.
enum class AtDeadline : std::uint8_t {
  close,  ///< close it; what was left is in the report
  undo,   ///< give all listeners their modes back and leave them open
};

struct DrainOptions {
  Policy policy = Policy::prefer;
  LastOn last_on = LastOn::allow;
  AtDeadline at_deadline = AtDeadline::close;
  /// From start() on. It should outlast the SYN-ACK retries of clients that mean to come: 63 s with
  /// net.ipv4.tcp_synack_retries=5, while most handshakes take one round trip. A listener of the
  /// group that changes its mode without pause keeps a drain waiting, too: settled is the group's.
  std::chrono::milliseconds timeout{30'000};
  /// The longest pause between two looks; the first are shorter.
  std::chrono::milliseconds poll_interval{20};
  /// Whether another process holds the socket too: its mode is one and the same there, so a shared
  /// listener must not be switched off unasked. start() fails with EBUSY where this says true, and
  /// with its error where it fails. Empty: start() looks through /proc/*/fd once, which takes about
  /// 50 us a process and passes over those this user must not look into. To allow sharing, or where
  /// you know better: `[](int) { return false; }`. Asked only where the method is option or steer.
  std::function<Result<bool>(int fd)> is_shared = {};
  /// Closes @p fd, at the moment the drain has found nothing left, or the deadline. Empty:
  /// ::close(). Give one to take the descriptor out of tables first, or to leave a copy of someone
  /// else's listener open, but then the report's "closed" is yours to make true.
  std::function<void(int fd)> close = {};
  /// Used where the option is missing and policy is not close_only. Must outlive the drain.
  Steering* steering = nullptr;
};

/// What the server must do before the next step().
enum class Action : std::uint8_t {
  accept_more,  ///< accept (UDP: read) on each of Step::fds until EAGAIN, then step() at once
  wait_until,   ///< go on serving; step() at Step::when, or sooner when a listener is readable
  done,         ///< see Drain::report()
};

struct Step {
  Action action = Action::done;
  Clock::time_point when{};  ///< for wait_until
  std::span<const int> fds;  ///< for accept_more; valid until the next call
};

/// Retires listeners without losing connections, driven by the server's own event loop:
///
///     Drain drain({.policy = Policy::prefer});
///     for (int fd : listeners) drain.add(fd);
///     if (Status ok = drain.start(); !ok) return log(ok.error().message());   // nothing changed
///     for (Step step = drain.step(); step.action != Action::done; step = drain.step())
///       serve(step);
///     log(drain.report());
///
/// The descriptors given to add() belong to the drain from start() until it closes them; the server
/// goes on accepting from them meanwhile. They must be non-blocking. Destroying an unfinished drain
/// undoes it. Not thread-safe: one thread at a time; accepting may happen in others.
class Drain {
 public:
  explicit REUSEPORT_API Drain(DrainOptions options = {});
  REUSEPORT_API Drain(Drain&& other) noexcept;
  REUSEPORT_API Drain& operator=(Drain&& other) noexcept;
  Drain(const Drain&) = delete;
  Drain& operator=(const Drain&) = delete;
  REUSEPORT_API ~Drain();

  /// Adds a listening TCP or MPTCP socket or a bound UDP socket, before start(). EBADF, ENOTSOCK,
  /// EINVAL: not such a socket; EEXIST: added already; EBUSY: the drain has started.
  [[nodiscard]] REUSEPORT_API Status add(int fd);

  /// Keeps new connections away from all listeners, or from none: on error each has the mode it
  /// had. EBUSY: shared, or started before; EADDRNOTAVAIL: see LastOn; EINVAL: no listener added,
  /// or one without SO_REUSEPORT; with Policy::require, why the option cannot be used: ENOPROTOOPT,
  /// EPERM, EPROTO.
  [[nodiscard]] REUSEPORT_API Status start(Clock::time_point now = Clock::now());

  /// The next thing to do. After done it stays done. Never blocks.
  [[nodiscard]] REUSEPORT_API Step step(Clock::time_point now = Clock::now());

  /// Gives every listener that is still open the mode it had and forgets them. ESTALE: no drain is
  /// running. ECANCELED: some listeners were closed already; the others are restored. Otherwise the
  /// first failed setsockopt.
  [[nodiscard]] REUSEPORT_API Status undo();

  /// What was done so far; final once step() said done or undo() returned.
  [[nodiscard]] REUSEPORT_API const Report& report() const noexcept;

  /// The listeners that are still open and being drained.
  [[nodiscard]] REUSEPORT_API std::span<const int> open_fds() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Drives a drain to its end in an accept loop of one's own: calls @p accept with each listener
/// that has something to take, and sleeps in ppoll(2) on the listeners otherwise. @p accept may
/// take one connection or all. Starts the drain; the result is the report, or why it did not start.
[[nodiscard]] REUSEPORT_API Result<Report> run(Drain& drain,
                                               const std::function<void(int fd)>& accept);

}  // namespace reuseport

#endif  // REUSEPORT_DRAIN_HPP
