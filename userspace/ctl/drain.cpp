// SPDX-License-Identifier: Apache-2.0
#include "drain.hpp"

#include <fmt/format.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "connections.hpp"
#include "core_drain.hpp"
#include "newcomer.hpp"
#include "option/option.hpp"
#include "probe.hpp"
#include "provider.hpp"
#include "sharing.hpp"

namespace reuseport::ctl {

using namespace std::chrono_literals;

namespace {

constexpr auto obstacle_pause = 50ms;  // between two checks of a temporary obstacle
constexpr int fleeting_looks = 10;     // checks of an obstacle that should be gone at once
constexpr auto refresh_every = 200ms;  // to adopt newcomers that join during a drain
constexpr auto poll_first = 5ms;
constexpr auto poll_most = 20ms;
constexpr auto count_every = 100ms;  // between two counts of connections; or four times their cost
constexpr auto close_grace = 500ms;  // for a server to close its listeners, without --wait

/// Why a drain cannot begin now, and for how long.
struct Obstacle {
  Failure failure;
  enum class Lasts : std::uint8_t { for_good, to_the_deadline, a_moment } lasts;
};
using Lasts = Obstacle::Lasts;

/// A shortage that others may end, no answer about the option.
bool is_shortage(int errnum) {
  return errnum == ENOMEM || errnum == ENOBUFS || errnum == ENFILE || errnum == EAGAIN ||
         errnum == EINTR;
}

/// Does not tell that the option cannot be had.
bool tells_nothing(const Failure& failure) {
  return is_shortage(failure.errnum) || failure.errnum == EMFILE;
}

class Drain {
 public:
  Drain(const DrainCommandOptions& options, ProcessPtr server, Surroundings around)
      : options_(options), server_(std::move(server)), around_(std::move(around)) {
    selection_ = options.selection;
    selection_.pid = server_->pid();
  }

  Expected<DrainResult> run() {
    auto ok = choose_and_check();
    if (ok && !options_.dry_run) {
      if (!core_) {
        for (Target& t : targets_) {
          t.fd.reset();  // our copies would keep them open with nobody to accept
        }
      }
      ok = core_ ? run_core() : Done{};
      ok = ok ? leave() : ok;
      ok = ok ? signal_and_wait() : ok;
    }
    around_.out.end_progress();
    result_.took = since(start_);
    if (!ok) {
      return tl::unexpected(ok.error());
    }
    return result_;
  }

 private:
  // --- choose the targets, check ---

  /// Retries until there is no obstacle, or one that will not go away in time. Holds no descriptor
  /// in between.
  Done choose_and_check() {
    for (int fleeting = 0;;) {
      auto obstacle = try_to_begin();
      if (!obstacle) {
        return {};
      }
      core_.reset();
      provider_.reset();
      targets_.clear();
      fleeting += obstacle->lasts == Lasts::a_moment ? 1 : 0;
      if (obstacle->lasts == Lasts::for_good || fleeting > fleeting_looks ||
          Clock::now() >= deadline_) {
        return failed(std::move(obstacle->failure));
      }
      around_.out.progress("waiting: " + obstacle->failure.message);
      if (!wait(obstacle_pause)) {
        return failed(nothing_changed(around_.waiter.why()));
      }
    }
  }

  std::optional<Obstacle> try_to_begin() {
    auto view = look(selection_, server_);
    if (!view) {
      const bool passes = view.error().errnum == EAGAIN;
      return Obstacle{view.error(), passes ? Lasts::to_the_deadline : Lasts::for_good};
    }
    view_ = std::move(*view);
    Processes processes;
    processes.add(server_);
    auto targets = take_selected(selection_, view_, processes);
    if (!targets) {
      const int err = targets.error().errnum;
      const bool passes = err == ESTALE || err == EBADF || err == ESRCH;
      return Obstacle{targets.error(), passes ? Lasts::a_moment : Lasts::for_good};
    }
    targets_ = std::move(*targets);
    tell_strangers();
    tell_undrained();
    std::vector<std::uint64_t> inodes;
    std::set<uid_t> users;
    for (const Target& t : targets_) {
      inodes.push_back(t.socket.inode);
      users.insert(t.socket.uid);
    }
    if (const auto other = other_run(inodes, view_.holders, users)) {
      return taken_by(*other);
    }
    if (!options_.allow_shared) {
      if (auto ok = refuse_shared(targets_, view_, processes); !ok) {
        return Obstacle{ok.error(), Lasts::a_moment};  // e.g. a child that is about to exec
      }
    }
    learn_modes(view_, targets_, processes);
    if (auto obstacle = find_newcomers(processes)) {
      ready_ = false;  // the next one is asked, too
      return obstacle;
    }
    if (auto ok = choose(); !ok) {
      return Obstacle{ok.error(),
                      is_shortage(ok.error().errnum) ? Lasts::to_the_deadline : Lasts::for_good};
    }
    if (result_.method == DrainMethod::option_bpf && !options_.allow_last) {
      if (auto stays = wider_by_bpf()) {
        return Obstacle{std::move(*stays), Lasts::for_good};
      }
    }
    if (!options_.ready.empty() && !ready_ && !options_.dry_run) {
      // hold nothing while the user's command runs
      provider_.reset();
      targets_.clear();
      if (auto ok = ask_ready(); !ok) {
        return Obstacle{ok.error(), Lasts::for_good};
      }
      return try_to_begin();  // all of it may have changed meanwhile
    }
    preview();
    if (options_.dry_run) {
      static_cast<void>(count_flows());  // of sockets that are not known yet it tells nothing
    }
    if (!provider_ || options_.dry_run) {
      return std::nullopt;
    }
    if (auto obstacle = other_drain()) {
      return obstacle;
    }
    return start_core();
  }

  [[nodiscard]] Obstacle taken_by(pid_t other) const {
    return {Failure(Exit::deadline,
                    fmt::format("process {} (reuseportctl) is already working on {}", other,
                                targets_.front().str()),
                    "wait until it has ended"),
            Lasts::to_the_deadline};
  }

  /// Of two drains that began together, both hold their listeners by now, so at least one sees the
  /// other. The younger one lets go then; if it does not, it has looked before, and is at work.
  /// With BPF each knows only the modes it has set itself: two on one port would choose each
  /// other's old listeners.
  [[nodiscard]] std::optional<Obstacle> other_drain() {
    std::set<std::pair<Protocol, std::uint16_t>> at;
    std::vector<std::uint64_t> inodes;
    std::set<uid_t> users;
    for (const Target& t : targets_) {
      at.emplace(t.socket.protocol, t.socket.local.port);
      inodes.push_back(t.socket.inode);
      users.insert(t.socket.uid);
    }
    if (provider_->by_bpf()) {
      inodes.clear();
      users.clear();
      for (const DiagSocket& s : view_.sockets) {
        if (at.contains({s.protocol, s.local.port})) {
          inodes.push_back(s.inode);
        }
      }
    }
    std::sort(inodes.begin(), inodes.end());
    for (const auto until = std::min(deadline_, after(obstacle_pause * 20));;) {
      const auto now = find_holders(inodes);
      if (!now) {
        return Obstacle{Failure(now.error()), Lasts::to_the_deadline};
      }
      const auto seen = other_run(inodes, *now, users);
      if (!seen) {
        return std::nullopt;
      }
      if (!std::ranges::all_of(targets_, [](const Target& t) { return t.still_held(); })) {
        return Obstacle{taken_by(*seen).failure, Lasts::a_moment};  // do not keep it open
      }
      if (*seen < ::getpid() || Clock::now() >= until) {
        return taken_by(*seen);
      }
      if (!wait(poll_most)) {
        return Obstacle{nothing_changed(around_.waiter.why()), Lasts::for_good};
      }
    }
  }

  /// By BPF, lookups of datagrams do not go on from a group that is OFF: option/README.md.
  [[nodiscard]] std::optional<Failure> wider_by_bpf() const {
    for (std::size_t i = 0; i < targets_.size(); i++) {
      if (targets_[i].socket.protocol == Protocol::udp && covers_[i] == Cover::route) {
        return Failure(Exit::last_on,
                       fmt::format("udp {}: the newcomer is on a wider address, where by BPF no "
                                   "datagram would go while the old socket is open",
                                   targets_[i].socket.local.str()),
                       "let the newcomer bind to the same address");
      }
    }
    return std::nullopt;
  }

  void tell_strangers() {
    if (told_strangers_ || selection_.named()) {
      return;
    }
    told_strangers_ = true;
    for (const DiagSocket& s : view_.sockets) {
      if (view_.in_tree(s.inode) && view_.of_stranger(s)) {
        around_.out.note(
            fmt::format("skipped: {} {} (socket {}), created by uid {} below process {}",
                        to_string(s.protocol), s.local.str(), s.inode, s.uid, server_->pid()));
      }
    }
  }

  /// Listeners that the signal ends, too, though nobody drains them.
  void tell_undrained() {
    if (told_undrained_ || !options_.signal || selection_.reuseport_only) {
      return;
    }
    told_undrained_ = true;
    for (const DiagSocket& s : view_.sockets) {
      if (view_.in_tree(s.inode) && !view_.of_stranger(s) &&
          std::ranges::none_of(targets_,
                               [&](const Target& t) { return t.socket.cookie == s.cookie; })) {
        around_.out.note(fmt::format("not drained, but ends with its server: {} {} (socket {})",
                                     to_string(s.protocol), s.local.str(), s.inode));
      }
    }
  }

  [[nodiscard]] Newcomers newcomers_in(const View& view, Processes& processes) const {
    return {view, targets_, processes, options_.signal ? Siblings::leave : Siblings::stay};
  }

  std::optional<Obstacle> find_newcomers(Processes& processes) {
    const Newcomers newcomers = newcomers_in(view_, processes);
    covers_.clear();
    newcomer_ = 0;
    for (const Target& t : targets_) {
      const Successor successor = newcomers.of(t);
      if (successor.cover == Cover::none && !options_.allow_last) {
        const bool comes = options_.await_newcomer && t.reuseport;
        return Obstacle{nobody_takes_over(t, successor),
                        comes ? Lasts::to_the_deadline : Lasts::for_good};
      }
      covers_.push_back(successor.cover);
      if (successor.who != nullptr && newcomer_ == 0) {
        const auto& who = view_.holders.of(successor.who->inode);
        newcomer_ = who.empty() ? 0 : who.front().pid;
      }
    }
    return std::nullopt;
  }

  [[nodiscard]] std::vector<int> descriptors() const {
    std::vector<int> fds;
    for (const Target& t : targets_) {
      fds.push_back(t.fd.get());
    }
    return fds;
  }

  /// Room for as many newcomers again.
  [[nodiscard]] option::GroupSize group_size() const {
    std::map<std::pair<Protocol, std::uint16_t>, std::size_t> members;
    std::size_t most = 0;
    for (const DiagSocket& s : view_.sockets) {
      most = std::max(most, ++members[{s.protocol, s.local.port}]);
    }
    return most * 2 > static_cast<std::size_t>(option::GroupSize::normal)
               ? option::GroupSize::large
               : option::GroupSize::normal;
  }

  Done choose() {
    if (options_.flows && !has_datagrams()) {
      return failed(Failure(Exit::unsupported,
                            "--flows: there is no UDP socket with SO_REUSEPORT to drain",
                            "sockets without it cannot be drained"));
    }
    if (options_.flows && !option::records_flows()) {
      return failed(no_flows(targets_.front()));
    }
    result_.reason.clear();
    if (options_.method == DrainMethod::close) {
      result_.method = migrates_requests() ? DrainMethod::migrate : DrainMethod::close;
    } else if (options_.dry_run) {
      auto method = choose_method(options_, result_.reason);
      if (!method) {
        return tl::unexpected(method.error());
      }
      result_.method = *method;
    } else if (auto provider = Provider::find(descriptors(), group_size())) {
      provider_ = std::make_unique<Provider>(std::move(*provider));
      result_.method = provider_->by_bpf() ? DrainMethod::option_bpf : DrainMethod::option;
    } else if (tells_nothing(provider.error())) {
      return failed(provider.error());
    } else {
      return fall_back(provider.error());
    }
    return needs_signal();
  }

  Done fall_back(const Failure& why) {
    if (options_.method == DrainMethod::option || options_.require) {
      return failed(why);
    }
    provider_.reset();
    result_.reason = why.line();
    result_.method = migrates_requests() ? DrainMethod::migrate : DrainMethod::close;
    return needs_signal();
  }

  /// migrate and close: nothing can close the descriptors of another process, so its own shutdown
  /// has to.
  Done needs_signal() {
    if (drains(result_.method) || options_.signal) {
      return {};
    }
    return failed(
        Failure(options_.method == DrainMethod::automatic ? Exit::unsupported : Exit::usage,
                fmt::format("method {} relies on the server's own shutdown: name the "
                            "signal for it with --signal",
                            to_string(result_.method)),
                result_.reason));
  }

  [[nodiscard]] bool has_datagrams() const {
    return std::ranges::any_of(targets_,
                               [](const Target& t) { return t.socket.protocol == Protocol::udp; });
  }

  static Failure no_flows(const Target& target) {
    return {Exit::unsupported,
            fmt::format("--flows: the UDP flows of {} are not recorded", target.str()),
            "reuseportctl enable --udp-flows, for the cgroup and network namespace of the server"};
  }

  /// Counts the targets' flows into the result. Empty if they are not recorded or this user may not
  /// see them; with --flows that is a failure.
  Done count_flows() {
    result_.flows.reset();
    result_.flows_uncounted.clear();
    if (!has_datagrams()) {
      return {};
    }
    const auto flows = option::records_flows() ? option::flows_here()
                                               : Result<std::optional<option::Flows>>(std::nullopt);
    if (!flows || !*flows) {
      result_.flows_uncounted = flows ? "" : flows.error().message();
      return !options_.flows ? Done{}
             : flows         ? failed(no_flows(targets_.front()))
                             : failed(flows.error());
    }
    std::size_t live = 0;
    auto known_for = (*flows)->recorded_for;
    for (const Target& t : targets_) {
      if (t.socket.protocol != Protocol::udp || closed(t)) {
        continue;
      }
      const auto own = (*flows)->of.find(t.socket.cookie);
      if (own == (*flows)->of.end()) {
        result_.flows_uncounted = fmt::format("those of {} are not recorded", t.str());
        return options_.flows ? failed(no_flows(t)) : Done{};
      }
      live += own->second;
      known_for = std::min(known_for, (*flows)->known_for.at(t.socket.cookie));
    }
    result_.flows = live;
    result_.flows_known_for = known_for;
    result_.flows_idle = (*flows)->idle;
    result_.flows_without_room = (*flows)->full > 0;
    return {};
  }

  [[nodiscard]] bool closed(const Target& t) const { return core_ ? !t.fd : !t.still_held(); }

  /// As was seen: while none were counted they may be many.
  [[nodiscard]] bool few_connections() const {
    return !options_.connections ||
           (result_.connections && *result_.connections <= *options_.connections);
  }

  /// The server ended before its connections were few.
  [[nodiscard]] std::optional<Failure> connections_cut() const {
    if (few_connections() || !server_->ended()) {
      return std::nullopt;
    }
    Failure failure(Exit::error,
                    result_.connections
                        ? fmt::format("the server ended with {} at the last count", result_.left())
                        : std::string("the server ended before its connections were counted"),
                    "what it had then may have been cut");
    failure.detail = detail();
    return failure;
  }

  /// Flows that are older than the adoption of their socket are over after the idle time.
  [[nodiscard]] bool few_flows() const {
    return !options_.flows || (result_.all_flows_known() && *result_.flows <= *options_.flows);
  }

  /// The server ended, or closed its UDP sockets, with too many flows left.
  [[nodiscard]] std::optional<Failure> flows_cut() const {
    const bool gone = server_->ended() || std::ranges::any_of(targets_, [&](const Target& t) {
                        return t.socket.protocol == Protocol::udp && closed(t);
                      });
    if (few_flows() || !gone) {
      return std::nullopt;
    }
    Failure failure(Exit::error,
                    fmt::format("the server closed its UDP sockets with {} left", result_.left()));
    failure.detail = detail();
    return failure;
  }

  Done ask_ready() {
    Children::Environment env = {{"REUSEPORT_OLD_PID", std::to_string(server_->pid())}};
    if (newcomer_ != 0) {
      env.emplace_back("REUSEPORT_PID", std::to_string(newcomer_));
    }
    for (;;) {
      const auto said = run_shell(options_.ready, env);
      if (!said) {
        return tl::unexpected(said.error());
      }
      if (*said == 0) {
        ready_ = true;
        return {};
      }
      if (Clock::now() >= deadline_) {
        return failed(Failure(Exit::deadline, "--ready has not succeeded", "nothing was changed"));
      }
      if (!wait(obstacle_pause)) {
        return failed(nothing_changed(around_.waiter.why()));
      }
    }
  }

  Done take_again() {
    Processes processes;
    processes.add(server_);
    for (Target& t : targets_) {
      auto again = take(t.socket, view_, processes);
      if (!again) {
        return tl::unexpected(again.error());
      }
      t = std::move(*again);
    }
    return {};
  }

  std::optional<Obstacle> start_core() {
    core_ = std::make_unique<CoreDrain>(targets_, covers_, *provider_);
    auto ok = core_->start(deadline_);
    if (ok) {
      ok = count_flows();
      if (ok) {
        return std::nullopt;
      }
      return Obstacle{set_back(ok.error()), Lasts::for_good};
    }
    const bool stuck = core_->stuck();
    core_.reset();
    Failure failure = ok.error();
    if (stuck) {
      return Obstacle{failure, Lasts::for_good};
    }
    if (failure.errnum == EADDRNOTAVAIL) {
      failure.exit = Exit::last_on;
      return Obstacle{failure, options_.await_newcomer ? Lasts::to_the_deadline : Lasts::for_good};
    }
    if (is_shortage(failure.errnum)) {
      return Obstacle{failure, Lasts::to_the_deadline};
    }
    if (failure.errnum == EBADF || failure.errnum == ESTALE) {
      return Obstacle{failure, Lasts::a_moment};  // closed in the meantime
    }
    if (failure.errnum == EBUSY || failure.exit == Exit::unsupported ||
        failure.exit == Exit::permission) {
      const auto fell = fall_back(failure);
      return fell ? std::nullopt : std::optional(Obstacle{fell.error(), Lasts::for_good});
    }
    return Obstacle{failure, Lasts::for_good};
  }

  void preview() {
    result_.listeners.clear();
    result_.handshakes = result_.queued = 0;
    for (const Target& t : targets_) {
      Drained d{t.str(), t.socket.local.str(), t.socket.inode, {}, {}, 0, t.socket.queued, false};
      if (t.socket.info) {
        d.before = d.mode = Mode{t.socket.info->mode};
        d.handshakes = t.socket.info->handshakes;
      }
      result_.handshakes += d.handshakes;
      result_.queued += d.queued;
      result_.listeners.push_back(std::move(d));
    }
  }

  // --- run the core's drain ---

  Done run_core() {
    for (auto pause = core_->step(); pause; pause = core_->step()) {
      record();
      around_.out.progress(fmt::format("draining ({}): {}, {:.1f} s", to_string(result_.method),
                                       result_.left(),
                                       static_cast<double>(since(start_).count()) / 1000.0));
      refresh();
      if (auto gone = wider_newcomer_gone(After::some_time)) {
        return undone(std::move(*gone));
      }
      if (!wait(*pause)) {
        return undone(around_.waiter.why());
      }
    }
    static_cast<void>(core_->look());
    record();
    switch (core_->end()) {
      case CoreDrain::End::drained: result_.drained = true; return {};
      case CoreDrain::End::deadline: return at_deadline();
      case CoreDrain::End::vanished: {
        Failure failure(Exit::error, fmt::format("the server closed its listeners with {} left",
                                                 result_.left()));
        failure.detail = detail();
        return undone(std::move(failure));
      }
      case CoreDrain::End::undone: break;
    }
    return undone(Failure(Exit::error, core_->why(), "the old server serves as before"));
  }

  void record() {
    result_.handshakes = result_.queued = 0;
    for (std::size_t i = 0; i < result_.listeners.size(); i++) {
      const Seen& seen = core_->seen()[i];
      Drained& d = result_.listeners[i];
      d.before = static_cast<Mode>(seen.before);
      d.mode = static_cast<Mode>(seen.info.mode);
      d.handshakes = seen.info.handshakes;
      d.queued = seen.info.queued;
      d.closed = seen.closed;
      result_.handshakes += d.handshakes;
      result_.queued += d.queued;
    }
  }

  /// Time ran out with something left.
  Done at_deadline() {
    late_ = true;
    result_.drained = false;
    Failure failure(Exit::deadline, fmt::format("deadline hit with {} left", result_.left()));
    if (options_.on_deadline == OnDeadline::restore && core_) {
      failure = set_back(std::move(failure));
      record();
    } else if (options_.on_deadline == OnDeadline::signal && options_.signal) {
      return {};
    } else if (result_.method == DrainMethod::option_bpf) {
      failure.hint = "the old listeners get new connections again";
    } else if (const std::string modes = core_ ? modes_left() : ""; !modes.empty()) {
      failure.hint = fmt::format("the old listeners are {}: drain again, or switch them on", modes);
    }
    failure.detail = detail();
    return failed(std::move(failure));
  }

  /// "standby", "off (...)": of those that are open, as last seen.
  [[nodiscard]] std::string modes_left() const {
    std::set<std::string> modes;
    for (const Drained& d : result_.listeners) {
      if (!d.closed) {
        modes.insert(std::string(to_string(d.mode.value_or(Mode::on))) +
                     (d.mode == Mode::off ? " (they do not take over if the newcomer ends)" : ""));
      }
    }
    return fmt::format("{}", fmt::join(modes, " and "));
  }

  Done undone(Failure failure) { return failed(set_back(std::move(failure))); }

  /// Sets the listeners back, and returns @p failure with a hint that says what came of it.
  Failure set_back(Failure failure) {
    if (!core_) {
      return failure;
    }
    if (const auto back = core_->undo(); !back) {
      failure.hint = back.error().line();
    } else if (failure.hint.empty()) {
      failure.hint = "each listener that is still open has its old mode again";
    }
    return failure;
  }

  static Failure nothing_changed(Failure failure) {
    failure.hint = "nothing was changed";
    return failure;
  }

  // --- leave: between drained and the signal ---

  Done leave() {
    if (late_) {
      return {};
    }
    if (!options_.before_signal.empty()) {
      const auto said =
          run_shell(options_.before_signal, {{"REUSEPORT_PID", std::to_string(server_->pid())}});
      if (!said) {
        return undone(said.error());
      }
      if (*said != 0 && Clock::now() >= deadline_ && options_.on_deadline == OnDeadline::signal) {
        around_.out.note(fmt::format("--before-signal exited with {} at the deadline", *said));
        return at_deadline();
      }
      if (*said != 0) {
        return undone(
            Failure(Clock::now() >= deadline_ ? Exit::deadline : Exit::error,
                    fmt::format("--before-signal exited with {}: no signal sent", *said)));
      }
    }
    auto pause = std::chrono::milliseconds(poll_first);
    auto next_count = Clock::now();
    bool looked_again = false;
    for (;;) {
      const auto start = Clock::now();
      if (options_.connections && start >= next_count && !server_->ended()) {
        const auto count = connections_of(*server_, ports());
        if (!count) {
          return undone(count.error());
        }
        result_.connections = *count ? *count : result_.connections;
      }
      for (auto cut : {connections_cut(), flows_cut()}) {
        if (cut) {
          return undone(std::move(*cut));
        }
      }
      if (start >= next_count && !server_->ended()) {
        if (auto ok = count_flows(); !ok) {
          return undone(ok.error());
        }
        next_count = after(std::max<std::chrono::milliseconds>(since(start) * 4, count_every));
      }
      const bool few = few_connections() && few_flows();
      const bool drained = !core_ || core_->look();
      if (core_) {
        record();
        if (auto gone = newcomer_gone(After::some_time)) {
          return undone(std::move(*gone));
        }
        if (const auto lost = closed_undrained(); lost) {
          return undone(*lost);
        }
      }
      if (few && drained && ((!options_.flows && !options_.connections) || looked_again)) {
        return {};
      }
      if (few && drained && Clock::now() < deadline_) {
        // A datagram of a flow that has ended since may be on its way to the old socket: look again
        // when no CPU is in a lookup any more. The same for a connection that accept(2) has taken
        // from the queue, but nobody has a descriptor of yet.
        if (!wait_for_lookups() || (options_.connections && !wait(count_every))) {
          return undone(around_.waiter.why());
        }
        looked_again = true;
        next_count = Clock::now();
        continue;
      }
      looked_again = false;
      if (Clock::now() >= deadline_) {
        return at_deadline();
      }
      around_.out.progress(fmt::format("drained, waiting ({}): {}, {:.1f} s",
                                       to_string(result_.method), result_.left(),
                                       static_cast<double>(since(start_).count()) / 1000.0));
      refresh();
      if (!wait(std::max(pause, since(start) * 2))) {
        return undone(around_.waiter.why());
      }
      pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
    }
  }

  enum class After : std::uint8_t { some_time, nothing };  // when to list the sockets again

  [[nodiscard]] std::optional<Failure> newcomer_gone(After after) {
    if (!core_ || options_.allow_last) {
      return std::nullopt;
    }
    static_cast<void>(core_->look());
    return core_->deserted().empty() ? wider_newcomer_gone(after)
                                     : std::optional(no_other(core_->deserted()));
  }

  [[nodiscard]] static Failure no_other(const std::string& address) {
    return {Exit::error, fmt::format("the newcomer is gone: {} has no other ON listener", address)};
  }

  /// Beside a newcomer of a wider address the old listener is OFF, and no mode tells that the
  /// newcomer is there: only the list of sockets does.
  [[nodiscard]] std::optional<Failure> wider_newcomer_gone(After after) {
    const auto begun = Clock::now();
    if (std::ranges::count(covers_, Cover::route) == 0 || options_.allow_last ||
        (after == After::some_time && begun < next_list_)) {
      return std::nullopt;
    }
    const auto lost = uncovered();
    if (!lost) {
      return after == After::nothing ? std::optional(lost.error()) : std::nullopt;
    }
    next_list_ = ctl::after(std::max<std::chrono::milliseconds>(since(begun) * 4, count_every));
    return *lost ? std::optional(no_other((*lost)->address)) : std::nullopt;
  }

  /// An RCU grace period: membarrier(2) waits for one, except on one CPU, where no lookup is under
  /// way while this runs. With nohz_full it refuses; then far longer than a lookup takes.
  [[nodiscard]] bool wait_for_lookups() {
    return ::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 || wait(count_every);
  }

  [[nodiscard]] std::set<std::uint16_t> ports() const {
    std::set<std::uint16_t> out;
    for (const Target& t : targets_) {
      if (t.socket.protocol == Protocol::tcp) {
        out.insert(t.socket.local.port);
      }
    }
    return out;
  }

  [[nodiscard]] std::optional<Failure> closed_undrained() const {
    for (const Seen& seen : core_->seen()) {
      if (seen.closed && !seen.drained) {
        Failure failure(Exit::error, fmt::format("the server closed its listeners with {} left",
                                                 result_.left()));
        failure.detail = detail();
        return failure;
      }
    }
    return std::nullopt;
  }

  // --- signal, wait ---

  Done signal_and_wait() {
    const bool ends_with_us = result_.method == DrainMethod::option_bpf;
    if (!options_.signal && !ends_with_us) {
      return {};  // drained, and STANDBY: ending the server now loses nothing
    }
    if (options_.signal && around_.before_signal) {
      if (const auto ok = around_.before_signal(); !ok) {
        return undone(ok.error());
      }
    }
    if (options_.signal) {  // it all may have taken its time
      if (auto gone = newcomer_gone(After::nothing)) {
        return undone(std::move(*gone));
      }
    }
    for (Target& t : targets_) {
      t.fd.reset();  // our copies would keep them open with nobody to accept
    }
    if (options_.signal) {
      const auto ok = server_->signal(*options_.signal);
      if (!ok && ok.error().errnum != ESRCH) {
        return undone_without_fds(ok.error());
      }
      result_.signalled = ok.has_value();
    } else {
      around_.out.note("drained; waiting for the server to close its listeners (no --signal)");
    }
    const auto grace = after(close_grace);
    const auto until = late_                           ? grace
                       : options_.wait || ends_with_us ? deadline_
                                                       : std::min(deadline_, grace);
    std::chrono::milliseconds pause = poll_first;
    bool closed = false;
    for (;;) {
      result_.ended = server_->ended();
      closed = closed || std::none_of(targets_.begin(), targets_.end(),
                                      [](const Target& t) { return t.still_held(); });
      if ((closed || result_.ended) && (!options_.wait || result_.ended)) {
        closed = true;
        break;
      }
      if (Clock::now() >= until) {
        break;
      }
      refresh();
      if (!wait(pause)) {
        Failure failure = around_.waiter.why();
        if (result_.signalled) {
          failure.hint = fmt::format("{} was sent before", signal_name(*options_.signal));
        } else if (ends_with_us) {
          failure.hint = "listeners that are still open get new connections again";
        }
        failure.detail = detail();
        return failed(std::move(failure));
      }
      pause = std::min<std::chrono::milliseconds>(pause * 2, poll_most);
    }
    if (!closed && (options_.wait || ends_with_us)) {
      return failed(not_ended());
    }
    if (late_) {
      Failure failure(Exit::deadline, fmt::format("deadline hit with {} left", result_.left()),
                      "the signal was sent anyway");
      failure.detail = detail();
      return failed(std::move(failure));
    }
    return see_others();
  }

  [[nodiscard]] Failure not_ended() const {
    const bool listens = !result_.ended && result_.method == DrainMethod::option_bpf;
    Failure failure(Exit::deadline,
                    result_.signalled
                        ? fmt::format("process {} has not ended after {}", server_->pid(),
                                      signal_name(*options_.signal))
                        : std::string("drained, but the server has not closed its listeners"),
                    listens           ? "listeners that are still open get new connections again"
                    : result_.drained ? "its listeners are drained and get nothing new"
                                      : "");
    failure.detail = detail();
    return failure;
  }

  Done undone_without_fds(const Error& error) {
    if (core_) {
      if (auto again = take_again(); !again) {
        Failure failure(error);
        failure.hint = "the listeners were not set back: " + again.error().line();
        return failed(std::move(failure));
      }
    }
    return undone(Failure(error));
  }

  struct Uncovered {
    std::string address;
    std::string why;
  };

  /// An address for which the list of sockets, read anew, has no newcomer.
  [[nodiscard]] Expected<std::optional<Uncovered>> uncovered() const {
    Selection all = selection_;
    all.pid.reset();
    all.inode.reset();
    auto view = look(all);
    if (!view) {
      return tl::unexpected(view.error());
    }
    Processes processes;
    learn_modes(*view, targets_, processes);
    const Newcomers newcomers = newcomers_in(*view, processes);
    for (std::size_t i = 0; i < targets_.size(); i++) {
      if (covers_[i] == Cover::none) {
        continue;  // the address is given up
      }
      const Successor successor = newcomers.of(targets_[i]);
      if (successor.cover == Cover::none) {
        return std::optional(Uncovered{targets_[i].socket.local.str(), successor.why});
      }
    }
    return std::optional<Uncovered>();
  }

  /// Closing a drained STANDBY listener loses nothing if the newcomer stayed to the end.
  Done see_others() {
    if (!core_) {
      return {};
    }
    const auto lost = uncovered();
    if (!lost) {
      return tl::unexpected(lost.error());
    }
    if (*lost) {
      result_.drained = false;
      Failure failure(
          Exit::error,
          fmt::format("{} closes, and the newcomer is gone: the last connections may be lost",
                      (*lost)->address),
          (*lost)->why);
      failure.detail = detail();
      return failed(std::move(failure));
    }
    return {};
  }

  // --- helpers ---

  [[nodiscard]] nlohmann::json detail() const {
    DrainResult now = result_;
    now.took = since(start_);
    return now.json();
  }

  bool wait(std::chrono::milliseconds time) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
    const bool go_on =
        around_.waiter.wait(std::min(time, std::max<std::chrono::milliseconds>(left, 1ms)));
    around_.children.reap();
    return go_on;
  }

  void refresh() {
    if (provider_ && Clock::now() >= next_refresh_) {
      provider_->refresh();
      next_refresh_ = after(refresh_every);
    }
  }

  /// The exit code of @p command; 124 if it was killed at the deadline, as with timeout(1).
  Expected<int> run_shell(const std::string& command, const Children::Environment& env) {
    constexpr int timed_out = 124;
    const auto child = around_.children.start(shell(command), env);
    if (!child) {
      return tl::unexpected(child.error());
    }
    while (child->running()) {
      const bool stop = !wait(poll_most);
      if (stop || (Clock::now() >= deadline_ && child->running())) {
        end_group(*child, around_.children, around_.waiter);
        return stop ? Expected<int>(tl::unexpected(around_.waiter.why()))
                    : Expected<int>(timed_out);
      }
      if (core_) {
        static_cast<void>(core_->look());  // lets go of what the server has closed
      }
      refresh();
    }
    return child->exit_code();
  }

  const DrainCommandOptions& options_;
  ProcessPtr server_;
  Surroundings around_;
  Selection selection_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point deadline_ = after(options_.timeout);
  Clock::time_point next_refresh_ = Clock::time_point::min();
  Clock::time_point next_list_ = Clock::time_point::min();  // see wider_newcomer_gone()
  View view_;
  std::vector<Target> targets_;
  std::vector<Cover> covers_;
  pid_t newcomer_ = 0;
  std::unique_ptr<Provider> provider_;
  std::unique_ptr<CoreDrain> core_;
  DrainResult result_;
  bool ready_ = false;
  bool told_undrained_ = false;
  bool told_strangers_ = false;
  bool late_ = false;
};

std::string would(const DrainResult& result) {
  std::string text;
  for (const Drained& d : result.listeners) {
    fmt::format_to(std::back_inserter(text), "would drain by {}: {}\n", to_string(result.method),
                   d.what);
  }
  if (result.flows) {
    fmt::format_to(std::back_inserter(text), "{} UDP flow{} live now{}\n", *result.flows,
                   *result.flows == 1 ? "" : "s",
                   result.all_flows_known() ? "" : ", as far as they are known");
  }
  return text;
}

}  // namespace

Expected<DrainMethod> choose_method(const DrainCommandOptions& options, std::string& reason) {
  if (options.method == DrainMethod::close) {
    return migrates_requests() ? DrainMethod::migrate : DrainMethod::close;
  }
  const auto by_bpf = try_provider();
  if (by_bpf) {
    return *by_bpf ? DrainMethod::option_bpf : DrainMethod::option;
  }
  if (options.method == DrainMethod::option || options.require || tells_nothing(by_bpf.error())) {
    return tl::unexpected(by_bpf.error());
  }
  reason = by_bpf.error().line();
  return migrates_requests() ? DrainMethod::migrate : DrainMethod::close;
}

Expected<DrainResult> drain(const DrainCommandOptions& options, const ProcessPtr& server,
                            const Surroundings& around) {
  return Drain(options, server, around).run();
}

Expected<Exit> drain_command(const DrainCommandOptions& options, const Output& out) {
  auto server = Process::open(*options.selection.pid);
  if (!server) {
    return failed(server.error());
  }
  struct sigaction hangup {};
  const bool nohup = ::sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler == SIG_IGN;
  auto signals = nohup ? Signals::open({SIGINT, SIGTERM, SIGQUIT})
                       : Signals::open({SIGINT, SIGTERM, SIGHUP, SIGQUIT});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  SignalWaiter waiter(*signals);
  Children children;
  const auto result =
      drain(options, std::make_shared<const Process>(std::move(*server)), {waiter, children, out});
  if (!result) {
    return tl::unexpected(result.error());
  }
  if (out.json) {
    auto doc = result->json();
    doc["dry_run"] = options.dry_run;
    out.document({{"drain", doc}});
  } else {
    out.text(options.dry_run ? would(*result) : result->text());
  }
  return options.dry_run || result->drained ? Exit::done : Exit::undrained;
}

}  // namespace reuseport::ctl
