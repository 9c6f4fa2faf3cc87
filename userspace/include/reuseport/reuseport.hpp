// SPDX-License-Identifier: Apache-2.0
//
// libreuseport for C++20: a thin, header-only layer over the C functions of reuseport.h, so that
// only the C ABI crosses a library boundary. Errors are values. See libreuseport(3).
//
// Threads: use a Drain or EpollDrain from one thread at a time; other threads may go on accepting.
// Everything else may be called from any thread. Functions passed as options run in the thread that
// drives the drain, and must not throw.
#ifndef REUSEPORT_REUSEPORT_HPP
#define REUSEPORT_REUSEPORT_HPP

#include <poll.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

#include "reuseport/probe.hpp"
#include "reuseport/reuseport.h"

namespace reuseport {
inline namespace v1 {

// ---- Values and errors -----------------------------------------------------------------------

/// Owns a file descriptor and closes it. Move-only.
class Fd {
 public:
  static constexpr int none = -1;

  Fd() noexcept = default;
  /// Takes ownership of @p fd; a negative number owns nothing.
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset(other.release());
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  explicit operator bool() const noexcept { return valid(); }

  /// Gives up ownership.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, none); }

  /// Closes the owned descriptor and takes @p fd instead. Does not repeat close() on EINTR: Linux
  /// has released the number by then (close(2)).
  void reset(int fd = none) noexcept {
    if (valid()) {
      ::close(fd_);
    }
    fd_ = fd;
  }

 private:
  int fd_ = none;
};

/// Why a call failed: which call, its errno, and how to fix it.
struct Error {
  std::string call;  ///< the failing call, e.g. "setsockopt(SO_REUSEPORT_LISTEN_OFF)"
  int errnum = 0;    ///< errno(3) value, never 0
  std::string hint;  ///< how to fix it; may be empty

  [[nodiscard]] std::error_code code() const noexcept { return {errnum, std::generic_category()}; }
  /// One line: "call: strerror: hint".
  [[nodiscard]] std::string message() const {
    return call + ": " + code().message() + (hint.empty() ? "" : ": ") + hint;
  }
};

/// A value or an Error: the part of std::expected (C++23) that is needed here.
template <typename T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : held_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit
  Expected(Error error) : held_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  [[nodiscard]] bool has_value() const noexcept { return held_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }
  /// Only if there is a value.
  [[nodiscard]] T& operator*() & noexcept { return *std::get_if<0>(&held_); }
  [[nodiscard]] const T& operator*() const& noexcept { return *std::get_if<0>(&held_); }
  [[nodiscard]] T&& operator*() && noexcept { return std::move(*std::get_if<0>(&held_)); }
  [[nodiscard]] T* operator->() noexcept { return std::get_if<0>(&held_); }
  [[nodiscard]] const T* operator->() const noexcept { return std::get_if<0>(&held_); }
  [[nodiscard]] T value_or(T otherwise) const { return has_value() ? **this : otherwise; }
  /// Only if there is no value.
  [[nodiscard]] const Error& error() const noexcept { return *std::get_if<1>(&held_); }

 private:
  std::variant<T, Error> held_;
};

template <>
class [[nodiscard]] Expected<void> {
 public:
  Expected() = default;
  Expected(Error error) : error_(std::move(error)) {}  // NOLINT: implicit

  [[nodiscard]] bool has_value() const noexcept { return !error_; }
  explicit operator bool() const noexcept { return has_value(); }
  [[nodiscard]] const Error& error() const noexcept { return *error_; }

 private:
  std::optional<Error> error_;
};

// ---- One listener ----------------------------------------------------------------------------

/// Whether a listener gets new connections or datagrams.
enum class Mode : std::uint32_t {
  on = REUSEPORT_LISTEN_ON,            ///< the default
  off = REUSEPORT_LISTEN_OFF,          ///< closed to every lookup, open to what is on its way
  standby = REUSEPORT_LISTEN_STANDBY,  ///< chosen only while the group has no ON member
};

/// "on", "off", "standby"; "unknown" for any other value.
[[nodiscard]] constexpr std::string_view to_string(Mode mode) noexcept {
  switch (mode) {
    case Mode::on: return "on";
    case Mode::off: return "off";
    case Mode::standby: return "standby";
  }
  return "unknown";
}

/// The reverse of to_string(); empty for any other text.
[[nodiscard]] constexpr std::optional<Mode> parse_mode(std::string_view text) noexcept {
  for (const Mode mode : {Mode::on, Mode::off, Mode::standby}) {
    if (text == to_string(mode)) {
      return mode;
    }
  }
  return std::nullopt;
}

/// struct reuseport_listen_info of <linux/reuseport.h>, and what it means.
struct Info : reuseport_listen_info {
  /// Not derived from group_id: the first group has the id 0.
  [[nodiscard]] bool in_group() const noexcept { return group_on + group_standby + group_off > 0; }
  /// Every choice that began while this listener could be chosen has finished.
  [[nodiscard]] bool settled() const noexcept { return (flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }
  /// BPF provides the option, not the kernel.
  [[nodiscard]] bool by_bpf() const noexcept { return (flags & REUSEPORT_LISTEN_F_BPF) != 0; }
  /// close() loses nothing.
  [[nodiscard]] bool drained() const noexcept { return reuseport_drained(this) == 1; }
};

/// getsockopt(SO_REUSEPORT_LISTEN_OFF). ENOPROTOOPT: the kernel lacks the option. EOPNOTSUPP:
/// not TCP, MPTCP or UDP. EPROTO: the number means something else on this kernel.
[[nodiscard]] inline Expected<Info> get_info(int fd) {
  Info info{};
  if (const int result = reuseport_get_info(fd, &info); result < 0) {
    return Error{"getsockopt(SO_REUSEPORT_LISTEN_OFF)", -result, reuseport_hint(result)};
  }
  return info;
}

/// setsockopt(SO_REUSEPORT_LISTEN_OFF). Every process that holds the socket sees the change. Errors
/// as get_info(), and EINVAL: no SO_REUSEPORT, or a connected TCP socket.
[[nodiscard]] inline Expected<void> set_mode(int fd, Mode mode) {
  if (const int result = reuseport_set_mode(fd, static_cast<int>(mode)); result < 0) {
    return Error{"setsockopt(SO_REUSEPORT_LISTEN_OFF)", -result, reuseport_hint(result)};
  }
  return {};
}

// ---- The drain: options and results -----------------------------------------------------------

using Clock = std::chrono::steady_clock;

/// What a drain may do if the option is not available.
enum class Policy : std::uint32_t {
  prefer = REUSEPORT_PREFER,          ///< the best available method
  require = REUSEPORT_REQUIRE,        ///< the option, or start() fails
  close_only = REUSEPORT_CLOSE_ONLY,  ///< plain close(), the baseline for comparisons
};

/// What to do if the drain would leave a group without an ON member.
enum class LastOn : std::uint32_t {
  refuse = REUSEPORT_LAST_REFUSE,  ///< start() fails with EADDRNOTAVAIL; a running drain is undone
  wait = REUSEPORT_LAST_WAIT,      ///< keep serving until one appears; at the deadline undo
  leave = REUSEPORT_LAST_LEAVE,    ///< OFF: give up the address
};

/// What to do with a listener that is not drained at the deadline.
enum class AtDeadline : std::uint32_t {
  close = REUSEPORT_DEADLINE_CLOSE,  ///< close it; the report counts what was left
  undo = REUSEPORT_DEADLINE_UNDO,    ///< restore the modes of all open listeners
  keep = REUSEPORT_DEADLINE_KEEP,    ///< leave them open, in STANDBY
};

/// How the drain kept new connections away. From best to worst.
enum class Method : std::uint32_t {
  none = REUSEPORT_METHOD_NONE,
  option = REUSEPORT_METHOD_OPTION,    ///< SO_REUSEPORT_LISTEN_OFF
  migrate = REUSEPORT_METHOD_MIGRATE,  ///< sweep, then close() with net.ipv4.tcp_migrate_req=1
  sweep = REUSEPORT_METHOD_SWEEP,      ///< accept until EAGAIN, then close()
  close = REUSEPORT_METHOD_CLOSE,      ///< close() alone
};

/// What happened to a listener. After the first two, from best to worst: the worst of several is
/// their maximum.
enum class Outcome : std::uint32_t {
  not_started = REUSEPORT_NOT_STARTED,
  running = REUSEPORT_RUNNING,
  drained = REUSEPORT_DRAINED,    ///< nothing was left, and an ON member was seen after close()
  migrated = REUSEPORT_MIGRATED,  ///< closed; the kernel moved what was left
  unconfirmed =
      REUSEPORT_UNCONFIRMED,  ///< drained and closed, but no ON member was seen afterwards
  swept_and_closed = REUSEPORT_SWEPT_AND_CLOSED,  ///< half-open requests were reset
  closed = REUSEPORT_CLOSED,                      ///< closed with whatever it had
  deadline_hit = REUSEPORT_DEADLINE_HIT,          ///< time ran out with connections left
  vanished = REUSEPORT_VANISHED,                  ///< closed by someone else before it was drained
  undone = REUSEPORT_UNDONE,                      ///< open, in its old mode
};

/// What the server must do before the next step().
enum class Action : std::uint32_t {
  done = REUSEPORT_DONE,                ///< see Drain::report()
  accept_more = REUSEPORT_ACCEPT_MORE,  ///< accept (UDP: receive) on each of fds until EAGAIN, then
                                        ///< step() at once
  wait_until = REUSEPORT_WAIT,          ///< keep serving; step() at `when`, or when one of fds is
                                        ///< readable
};

[[nodiscard]] inline std::string_view to_string(Method method) noexcept {
  return reuseport_method_name(static_cast<std::uint32_t>(method));
}
[[nodiscard]] inline std::string_view to_string(Outcome outcome) noexcept {
  return reuseport_outcome_name(static_cast<std::uint32_t>(outcome));
}

struct DrainOptions {
  Policy policy = Policy::prefer;
  LastOn last_on = LastOn::refuse;
  AtDeadline at_deadline = AtDeadline::close;
  /// The caller cannot accept: the sockets are copies of another process's (pidfd_getfd(2)).
  bool no_accept = false;
  /// Time from start() to the deadline; milliseconds::max(): no deadline; negative: EINVAL. See
  /// reuseport_drain_options::timeout_ns.
  std::chrono::milliseconds timeout{30'000};
  /// The longest pause between two checks; the first are shorter.
  std::chrono::milliseconds poll_interval{20};
  /// Whether another process holds the socket too. Empty: start() scans /proc; see
  /// reuseport_drain_options::is_shared. To skip the check: `[](int) { return false; }`.
  std::function<Expected<bool>(int fd)> is_shared = {};
  /// Closes a listener, e.g. after taking it out of tables. Empty: ~Fd().
  std::function<void(Fd listener)> close = {};
  /// Replace reuseport::set_mode() and get_info(): set both or neither. EBADF, ENOTSOCK or ESTALE
  /// means that the listener is gone.
  std::function<Expected<void>(int fd, Mode mode)> set_mode = {};
  std::function<Expected<Info>(int fd)> get_info = {};
};

struct Step {
  Action action = Action::done;
  Clock::time_point when{};  ///< for wait_until
  std::span<const int> fds;  ///< listeners to accept from, or to watch; valid until the next call
};

/// What a listener still has. Empty: this kernel does not report it.
struct Left {
  std::optional<std::uint32_t> handshakes;  ///< TCP: half-open requests; UDP: 0
  std::optional<std::uint32_t> queued;      ///< TCP: connections in the accept queue; UDP: bytes

  /// Both are known and 0.
  [[nodiscard]] bool nothing() const noexcept { return handshakes == 0U && queued == 0U; }
};

struct ListenerReport {
  int fd = -1;  ///< as given to add()
  Outcome outcome = Outcome::not_started;
  Method method = Method::none;
  Mode before = Mode::on;  ///< its old mode
  Left left;               ///< at the last check before close()
  int errnum = 0;          ///< why that check failed, or 0
  bool open = false;       ///< the drain has neither closed it nor seen it closed
};

/// What a drain did.
struct Report {
  Outcome outcome = Outcome::not_started;  ///< the worst of all listeners, at the end
  Method method = Method::none;            ///< the weakest of all listeners
  Support support = Support::error;        ///< as found by start()
  std::optional<Error>
      error;               ///< why it did not start or was undone, or why it used no better method
  Left left;               ///< all listeners together
  bool timed_out = false;  ///< the deadline passed first
  std::vector<ListenerReport> listeners;
  Clock::duration took{};

  /// The drain has ended and, as far as the kernel can tell, lost no connection.
  [[nodiscard]] bool lossless() const noexcept {
    return outcome == Outcome::drained || outcome == Outcome::migrated;
  }
};

// ---- The drain -------------------------------------------------------------------------------

/// Retires listeners without losing connections, driven by the server's own event loop:
///
///     reuseport::Drain drain;
///     for (Fd& listener : listeners)
///       if (auto added = drain.add(std::move(listener)); !added) ...   // still in `listener`
///     if (auto ok = drain.start(); !ok) listeners = drain.take_back();  // nothing has changed
///     for (auto step = drain.step(); step.action != Action::done; step = drain.step())
///     serve(step); log(drain.report());
///
/// Every listener goes to STANDBY and stays there until it is drained, then the drain closes it. A
/// drain owns its listeners. If it is destroyed early, it restores every mode and closes the
/// listeners that take_back() did not take. A moved-from drain returns EINVAL, `done` and
/// `not_started`.
class Drain {
 public:
  explicit Drain(DrainOptions options = {}) : state_(std::make_unique<State>(std::move(options))) {}
  Drain(Drain&&) noexcept = default;
  Drain& operator=(Drain&&) noexcept = default;
  Drain(const Drain&) = delete;
  Drain& operator=(const Drain&) = delete;
  ~Drain() = default;

  /// Takes a non-blocking socket with SO_REUSEPORT: a listening TCP or MPTCP socket, or a bound UDP
  /// socket. On failure @p listener keeps it. EBADF, ENOTSOCK, EINVAL: no such socket, or invalid
  /// options; EBUSY: the drain has started.
  [[nodiscard]] Expected<void> add(Fd&& listener) {
    auto added =
        call([&](reuseport_drain* drain) { return reuseport_drain_add(drain, listener.get()); });
    if (added) {
      (void)listener.release();
    }
    return added;
  }

  /// Switches all listeners or, on failure, none. EBUSY: a listener is shared, or the drain has
  /// started; EADDRNOTAVAIL: see LastOn; EINVAL: no listener added; with Policy::require, the
  /// reason why the option cannot be used.
  [[nodiscard]] Expected<void> start() { return call(reuseport_drain_start); }

  /// What to do next. Once it has returned done it always does. Never blocks.
  [[nodiscard]] Step step() {
    reuseport_step next{};
    next.size = sizeof(next);
    if (!state_ || reuseport_drain_step(state_->drain, &next) <= 0) {
      return {};
    }
    return {Action{next.action}, Clock::now() + std::chrono::nanoseconds(next.wait_ns),
            std::span(next.fds, next.n_fds)};
  }

  /// Restores the modes of the open listeners and ends the drain. ESTALE: no drain is running.
  /// ECANCELED: undone, but some listeners were already closed. Or the first error of
  /// setsockopt(2).
  [[nodiscard]] Expected<void> undo() { return call(reuseport_drain_undo); }

  /// Returns the open listeners, once, to a caller that goes on serving: after a failed start(), an
  /// undo(), or a deadline that left them open. Undoes a running drain. After it the drain returns
  /// EINVAL.
  [[nodiscard]] std::vector<Fd> take_back() {
    std::vector<Fd> listeners;
    if (state_ && !state_->taken_back) {
      if (report().outcome == Outcome::running) {
        (void)undo();
      }
      listeners.reserve(open_fds().size());  // nothing below throws
      state_->taken_back = true;
      state_->for_each_open([&](int fd) { listeners.emplace_back(fd); });
    }
    return listeners;
  }

  /// What the drain has done so far; final once step() has returned done or undo() has returned.
  [[nodiscard]] Report report() const {
    Report report;
    reuseport_drain_report seen{};
    seen.size = sizeof(seen);
    if (!state_ || reuseport_drain_get_report(state_->drain, &seen) < 0) {
      return report;
    }
    report.outcome = Outcome{seen.outcome};
    report.method = Method{seen.method};
    report.support = static_cast<Support>(seen.support);
    report.error = state_->error();
    report.left = left(seen.handshakes, seen.queued);
    report.timed_out = seen.timed_out != 0;
    report.took = std::chrono::nanoseconds(seen.took_ns);
    state_->for_each([&](const reuseport_listener_report& each) {
      report.listeners.push_back({each.fd, Outcome{each.outcome}, Method{each.method},
                                  Mode{each.before}, left(each.handshakes, each.queued),
                                  -each.error, each.open != 0});
    });
    return report;
  }

  /// Descriptors of the open listeners.
  [[nodiscard]] std::vector<int> open_fds() const {
    std::vector<int> fds;
    if (state_) {
      state_->for_each_open([&](int fd) { fds.push_back(fd); });
    }
    return fds;
  }

 private:
  friend class EpollDrain;
  [[nodiscard]] bool accepts() const { return !state_ || !state_->options.no_accept; }

  // Does not move with the Drain: the callbacks point here.
  struct State {
    explicit State(DrainOptions given) : options(std::move(given)) {
      reuseport_drain_options plain{};
      plain.size = sizeof(plain);
      plain.policy = static_cast<std::uint32_t>(options.policy);
      plain.last_on = static_cast<std::uint32_t>(options.last_on);
      plain.at_deadline = static_cast<std::uint32_t>(options.at_deadline);
      plain.flags = options.no_accept ? REUSEPORT_DRAIN_NO_ACCEPT : 0U;
      plain.timeout_ns = to_ns(options.timeout);
      plain.poll_ns = to_ns(options.poll_interval);
      plain.user = this;
      plain.is_shared = options.is_shared ? &State::is_shared : nullptr;
      plain.close = options.close ? &State::close : nullptr;
      plain.set_mode = options.set_mode ? &State::set_mode : nullptr;
      plain.get_info = options.get_info ? &State::get_info : nullptr;
      failed = reuseport_drain_new(&plain, &drain);
    }
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    State(State&&) = delete;
    State& operator=(State&&) = delete;
    ~State() {
      (void)reuseport_drain_undo(drain);
      if (!taken_back) {
        for_each_open([](int fd) { Fd{fd}.reset(); });
      }
      reuseport_drain_free(drain);
    }

    // In C, 0 means the default.
    static std::int64_t to_ns(std::chrono::milliseconds time) {
      constexpr std::int64_t most = REUSEPORT_FOREVER / REUSEPORT_MS(1);
      if (time.count() <= 0) {
        return time.count() == 0 ? 1 : -1;
      }
      return time.count() > most ? REUSEPORT_FOREVER : REUSEPORT_MS(time.count());
    }

    static int is_shared(int fd, void* user) noexcept {
      const Expected<bool> shared = static_cast<State*>(user)->options.is_shared(fd);
      return shared ? static_cast<int>(*shared) : -shared.error().errnum;
    }
    static void close(int fd, void* user) noexcept {
      static_cast<State*>(user)->options.close(Fd{fd});
    }
    static int set_mode(int fd, int mode, void* user) noexcept {
      const auto set = static_cast<State*>(user)->options.set_mode(fd, Mode(mode));
      return set ? 0 : -set.error().errnum;
    }
    static int get_info(int fd, reuseport_listen_info* info, void* user) noexcept {
      const auto got = static_cast<State*>(user)->options.get_info(fd);
      if (!got) {
        return -got.error().errnum;
      }
      *info = *got;
      return 0;
    }

    template <typename What>
    void for_each(What what) const {
      reuseport_listener_report each{};
      each.size = sizeof(each);
      for (std::size_t i = 0; reuseport_drain_get_listener(drain, i, &each) == 0; ++i) {
        what(each);
      }
    }
    template <typename What>
    void for_each_open(What what) const {
      for_each([&](const reuseport_listener_report& each) {
        if (each.open != 0) {
          what(each.fd);
        }
      });
    }
    [[nodiscard]] std::optional<Error> error() const {
      reuseport_error seen{};
      seen.size = sizeof(seen);
      if (reuseport_drain_get_error(drain, &seen) != 0 || seen.error == 0) {
        return std::nullopt;
      }
      return Error{seen.call, -seen.error, seen.hint};
    }

    DrainOptions options;
    reuseport_drain* drain = nullptr;
    int failed = 0;
    bool taken_back = false;
  };

  static Left left(std::uint32_t handshakes, std::uint32_t queued) {
    const auto known = [](std::uint32_t count) {
      return count == REUSEPORT_UNKNOWN ? std::nullopt : std::optional(count);
    };
    return {known(handshakes), known(queued)};
  }

  template <typename Call>
  Expected<void> call(Call what) {
    if (!state_) {
      return Error{"Drain", EINVAL, "this drain was moved from"};
    }
    if (state_->failed != 0) {
      return Error{"Drain", -state_->failed, "check the options"};
    }
    if (state_->taken_back) {
      return Error{"Drain", EINVAL, "the listeners were taken back"};
    }
    if (const int result = what(state_->drain); result < 0) {
      return state_->error().value_or(Error{"Drain", -result, ""});
    }
    return {};
  }

  std::unique_ptr<State> state_;
};

/// Starts a drain and drives it to its end: calls @p accept with each listener that has something
/// to accept, and otherwise sleeps in ppoll(2). @p accept may take one connection or all. Returns
/// the report, or why the drain did not start.
template <typename Accept>
[[nodiscard]] Expected<Report> run(Drain& drain, Accept accept) {
  if (auto started = drain.start(); !started) {
    return started.error();
  }
  for (Step step = drain.step(); step.action != Action::done; step = drain.step()) {
    if (step.action == Action::accept_more) {
      for (const int fd : step.fds) {
        accept(fd);
      }
      continue;
    }
    std::vector<pollfd> waits;
    for (const int fd : step.fds) {
      waits.push_back({fd, POLLIN, 0});
    }
    const auto sleep = [&](std::size_t count) {
      const auto rest = std::max(step.when - Clock::now(), Clock::duration::zero());
      const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(rest);
      const timespec time{seconds.count(), std::chrono::nanoseconds(rest - seconds).count()};
      return ::ppoll(waits.data(), count, &time, nullptr);
    };
    // POLLERR or POLLHUP alone: nothing to accept; do not spin.
    if (sleep(waits.size()) != 0 &&
        std::none_of(waits.begin(), waits.end(),
                     [](const pollfd& wait) { return (wait.revents & POLLIN) != 0; })) {
      (void)sleep(0);
    }
  }
  return drain.report();
}

/// A drain as one pollable descriptor, for epoll(7) and any loop that can watch a descriptor. It
/// becomes readable when the drain has something to do:
///
///     auto drain = EpollDrain::start(std::move(prepared), accept_all);  // a Drain
///     epoll_ctl(loop, EPOLL_CTL_ADD, drain->fd(), &event);         // EPOLLIN, level-triggered
///     ... on that event:  if (drain->dispatch() == Action::done) log(drain->report());
///
/// The loop may keep its own registrations of the listeners. The kernel removes a closed listener
/// from every epoll set unless a copy of it stays open (epoll(7)).
class EpollDrain {
 public:
  /// Starts @p drain. dispatch() calls @p accept with each listener that has something to accept;
  /// it may take one connection or all. Errors: as Drain::start(), and those of epoll_create1(2),
  /// timerfd_create(2), epoll_ctl(2). On error no listener is switched, and @p drain is unchanged.
  [[nodiscard]] static Expected<EpollDrain> start(Drain&& drain,
                                                  std::function<void(int fd)> accept) {
    Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
    Fd timer(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    if (!epoll || !timer) {
      return Error{epoll ? "timerfd_create" : "epoll_create1", errno, "raise RLIMIT_NOFILE"};
    }
    // Without accepting, a queue is no event: the timer alone wakes it.
    std::vector<int> watched = drain.accepts() ? drain.open_fds() : std::vector<int>();
    watched.push_back(timer.get());
    for (const int fd : watched) {
      epoll_event event{};
      event.events = EPOLLIN;
      if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        return Error{"epoll_ctl(EPOLL_CTL_ADD)", errno, ""};
      }
    }
    if (auto started = drain.start(); !started) {
      return started.error();
    }
    EpollDrain result(std::move(drain), std::move(accept), std::move(epoll), std::move(timer));
    result.wake_at(Clock::now());
    return result;
  }

  /// The descriptor to watch for reading. Owned by this object.
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

  /// Does what is due and arms the next wake-up. Never blocks. accept_more: one round did not empty
  /// the queue; the descriptor stays readable, so that other events get their turn.
  [[nodiscard]] Action dispatch() {
    Step next = drain_.step();
    if (next.action == Action::accept_more) {
      const std::vector<int> fds(next.fds.begin(), next.fds.end());
      std::for_each(fds.begin(), fds.end(), accept_);
      next = drain_.step();
    }
    if (next.action == Action::done) {
      stop();
    } else {
      forget_useless();
      wake_at(next.action == Action::accept_more ? Clock::now() : next.when);
    }
    return next.action;
  }

  /// As Drain::undo(). The descriptor never becomes readable again.
  [[nodiscard]] Expected<void> undo() {
    stop();
    return drain_.undo();
  }
  [[nodiscard]] std::vector<Fd> take_back() {
    stop();
    return drain_.take_back();
  }
  [[nodiscard]] Report report() const { return drain_.report(); }

 private:
  EpollDrain(Drain drain, std::function<void(int fd)> accept, Fd epoll, Fd timer)
      : drain_(std::move(drain)),
        accept_(std::move(accept)),
        epoll_(std::move(epoll)),
        timer_(std::move(timer)) {}

  // An absolute time in the past fires at once; Clock is CLOCK_MONOTONIC. 0 would disarm the timer.
  void wake_at(Clock::time_point when) const {
    const auto since = std::max(when.time_since_epoch(), Clock::duration(1));
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since);
    itimerspec spec{};
    spec.it_value.tv_sec = seconds.count();
    spec.it_value.tv_nsec = std::chrono::nanoseconds(since - seconds).count();
    (void)::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
  }
  // A listener that DrainOptions::close leaves open would stay readable here, and epoll(7) reports
  // EPOLLERR and EPOLLHUP for ever: the timer wakes for those.
  void forget_useless() const {
    for (const ListenerReport& listener : drain_.report().listeners) {
      pollfd now{listener.fd, POLLIN, 0};
      if (!listener.open || (::poll(&now, 1, 0) == 1 && (now.revents & (POLLIN | POLLNVAL)) == 0)) {
        (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener.fd, nullptr);
      }
    }
  }
  void stop() {
    epoll_.reset();
    timer_.reset();
  }

  Drain drain_;
  std::function<void(int fd)> accept_;
  Fd epoll_;
  Fd timer_;
};

}  // namespace v1
}  // namespace reuseport

#endif  // REUSEPORT_REUSEPORT_HPP
