// SPDX-License-Identifier: Apache-2.0
// The drain as a state machine. begin.cpp: add, start, undo; step.cpp: everything in between.
#ifndef REUSEPORT_CORE_ENGINE_HPP
#define REUSEPORT_CORE_ENGINE_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "array.hpp"
#include "reuseport/reuseport.h"
#include "socket.hpp"

namespace reuseport::core {

/// CLOCK_MONOTONIC in ns. Every entry point takes the time, so that tests need not wait.
using Time = std::int64_t;
[[nodiscard]] Time now() noexcept;

/// Not derived from group_id: the first group has the id 0.
[[nodiscard]] bool in_group(const reuseport_listen_info& info) noexcept;

/// A temporary error: no reason to fall back to a worse method.
[[nodiscard]] bool is_passing(int errnum) noexcept;

class Drain {
 public:
  explicit Drain(const reuseport_drain_options& options) noexcept : options_(options) {}

  [[nodiscard]] int add(int fd) noexcept;
  [[nodiscard]] int start(Time now) noexcept;
  [[nodiscard]] int step(Time now, reuseport_step& step) noexcept;
  [[nodiscard]] int undo(Time now) noexcept;

  void report(Time now, reuseport_drain_report& report) const noexcept;
  [[nodiscard]] int listener(std::size_t index, reuseport_listener_report& report) const noexcept;
  [[nodiscard]] const Fault& fault() const noexcept { return fault_; }
  [[nodiscard]] bool in_progress() const noexcept {
    return phase_ != Phase::idle && phase_ != Phase::done;
  }

 private:
  enum class Phase : std::uint8_t {
    idle,
    switching,  ///< started, but a temporary error keeps it from switching the listeners
    draining,
    undoing,  ///< ending, but a temporary error keeps it from restoring the modes
    done,
  };

  /// group_id is unique within a network namespace only.
  struct Group {
    std::uint64_t netns = 0;
    std::uint32_t id = 0;

    friend bool operator<(const Group& a, const Group& b) noexcept {
      return a.netns != b.netns ? a.netns < b.netns : a.id < b.id;
    }
  };

  struct Entry {
    int fd = -1;
    Listener listener{};
    bool open = true;          ///< ours to check and to close
    bool switched = false;     ///< its mode is no longer `before`
    bool readable = false;     ///< at the last check, as the members below
    bool drained = false;      ///< close() loses nothing
    bool unconfirmed = false;  ///< closed relying on other members, not checked since
    int error = 0;             ///< negative errno if that check failed
    std::uint32_t before = REUSEPORT_LISTEN_ON;
    std::uint32_t outcome = REUSEPORT_NOT_STARTED;
    reuseport_listen_info info{.mode = REUSEPORT_LISTEN_ON,
                               .flags = 0,
                               .handshakes = REUSEPORT_UNKNOWN,
                               .queued = REUSEPORT_UNKNOWN,
                               .group_id = 0,
                               .group_on = 0,
                               .group_standby = 0,
                               .group_off = 0};

    [[nodiscard]] Group group() const noexcept { return {listener.netns, info.group_id}; }
  };

  // begin.cpp
  int fail(const Fault& fault) noexcept;
  [[nodiscard]] Fault get_info(const Entry& entry, reuseport_listen_info& info) const noexcept;
  [[nodiscard]] Fault set_mode(Entry& entry, std::uint32_t mode) const noexcept;
  [[nodiscard]] Fault begin() noexcept;
  [[nodiscard]] Fault probe() noexcept;
  [[nodiscard]] Fault look_before() noexcept;
  [[nodiscard]] Fault refuse_last() const noexcept;
  [[nodiscard]] Fault refuse_shared() noexcept;
  [[nodiscard]] Fault switch_over() noexcept;
  [[nodiscard]] bool stays_served(const Entry& entry) const noexcept;
  Fault restore() noexcept;
  [[nodiscard]] bool stuck() const noexcept;  ///< a listener has not its old mode
  Fault end_undone(Time now) noexcept;

  // step.cpp
  void poll_all() noexcept;
  void look_at(Entry& entry) noexcept;
  static void look_at_queue(Entry& entry) noexcept;
  void vanish(Entry& entry, bool still_ours) noexcept;
  void close_entry(Entry& entry, std::uint32_t outcome) noexcept;
  static void end_entry(Entry& entry, std::uint32_t outcome) noexcept;
  void close_fd(const Entry& entry) const noexcept;
  void close_drained() noexcept;
  void close_swept() noexcept;
  void look_again() noexcept;
  [[nodiscard]] bool newcomer_is_gone() noexcept;
  [[nodiscard]] std::uint32_t outcome_late(const Entry& entry) const noexcept;
  void end_late(Time now) noexcept;
  void try_again(Time now) noexcept;
  void get_on(Time now) noexcept;
  void finish(Time now) noexcept;
  void accept_or_wait(Time now, reuseport_step& step) noexcept;

  [[nodiscard]] bool may_accept() const noexcept {
    return (options_.flags & REUSEPORT_DRAIN_NO_ACCEPT) == 0;
  }
  [[nodiscard]] std::uint32_t method_of(const Entry& entry) const noexcept;
  template <typename What>
  [[nodiscard]] bool all_open(What what) const noexcept {
    return std::ranges::all_of(entries_,
                               [&](const Entry& entry) { return !entry.open || what(entry); });
  }

  reuseport_drain_options options_;
  Phase phase_ = Phase::idle;
  std::uint32_t method_ = REUSEPORT_METHOD_NONE;
  std::uint32_t support_ = REUSEPORT_PROBE_ERROR;
  bool migrates_ = false;  ///< tcp_migrate_req, as found by start
  bool unshared_ = false;  ///< searched for other holders, found none
  bool timed_out_ = false;
  Time started_ = 0;
  Time deadline_ = 0;
  Time ended_ = 0;
  Time give_up_ = 0;  ///< while undoing
  Time pause_ = REUSEPORT_MS(1);
  Fault fault_;
  Array<Entry> entries_;
  Array<std::uint64_t> inodes_;  ///< of all entries, sorted
  Array<Group> on_;              ///< of each entry that was ON, sorted
  Array<int> fds_;               ///< returned by step
};

}  // namespace reuseport::core

#endif  // REUSEPORT_CORE_ENGINE_HPP
