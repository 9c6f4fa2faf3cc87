// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_DRAIN_STATE_HPP
#define REUSEPORT_DRAIN_STATE_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "reuseport/drain.hpp"

namespace reuseport {

// drain_start.cpp: add, start, undo. drain_step.cpp: what happens in between.
struct Drain::State {
  enum class Phase : std::uint8_t { idle, waiting_for_newcomer, running, done };

  struct Entry {
    int fd = -1;
    bool datagram = false;
    Mode before = Mode::on;  // what undo restores
    bool switched = false;   // the mode is no longer `before`
    bool closed = false;
    bool drained = false;       // at the last look, as all below
    bool has_newcomer = false;  // the group has an ON member
  };

  static constexpr std::chrono::milliseconds first_pause{1};

  explicit State(DrainOptions given);
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  State(State&&) = delete;
  State& operator=(State&&) = delete;
  ~State();

  [[nodiscard]] bool in_progress() const {
    return phase == Phase::waiting_for_newcomer || phase == Phase::running;
  }

  Status add(int fd);
  Status start(Clock::time_point now);
  Result<Method> choose();
  Status start_option();
  Status start_steering();
  Result<bool> leaves_a_group_empty();
  [[nodiscard]] Status refuse_shared() const;
  Status switch_all(Mode mode);
  Status restore();
  Status undo(Clock::time_point now);

  Step step(Clock::time_point now);
  void look();
  void look_at(Entry& entry, ListenerReport& seen) const;
  Step await_newcomer(Clock::time_point now);
  Step drain_all(Clock::time_point now);
  Step close_swept(Clock::time_point now);
  Step at_deadline(Clock::time_point now);
  Step accept_or_wait(Clock::time_point now);
  void close_entry(std::size_t index, Outcome outcome);
  [[nodiscard]] Outcome outcome_late(std::size_t index) const;
  Step finish(Clock::time_point now);

  DrainOptions options;
  Phase phase = Phase::idle;
  Method method = Method::close;
  bool migrates = false;  // tcp_migrate_req, as found at start()
  Clock::time_point started;
  Clock::time_point deadline;
  std::chrono::milliseconds pause = first_pause;
  std::vector<Entry> entries;
  std::vector<int> open;
  std::vector<int> readable;  // of the last look
  Report report;
};

}  // namespace reuseport

#endif  // REUSEPORT_DRAIN_STATE_HPP
