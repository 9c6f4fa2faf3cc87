// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "load/load.hpp"

namespace lab {

/// The UDP workload: short flows and long ones; the next datagram of a flow follows a while after
/// the answer to the last.
inline constexpr std::uint32_t short_flow = 2;  ///< datagrams
inline constexpr std::uint32_t long_flow = 20;
inline constexpr double share_of_long_flows = 0.2;
inline constexpr std::int64_t flow_gap_ns = 100 * one_ms;
/// A flow that is silent for longer is over, to who keeps flows with their server.
inline constexpr std::int64_t flow_idle_ns = 2 * one_second;

/// What has become of a flow.
enum class FlowState : std::uint8_t {
  going,
  whole,    ///< all its datagrams were answered, by one generation
  moved,    ///< another generation answered than the first time: a session would be broken
  garbled,  ///< an answer to another question
};

/// One flow, as its client counts it. It ends with the first thing that goes wrong.
class Flow {
 public:
  Flow() = default;
  Flow(std::uint64_t id, std::uint32_t datagrams) : id_(id), datagrams_(datagrams) {}

  /// The next datagram, to be sent now.
  Request next() { return {id_ * (long_flow + 1) + ++sent_}; }
  [[nodiscard]] std::uint32_t sent() const { return sent_; }
  /// What an answer to it makes of the flow.
  FlowState take(const Reply& reply);
  /// Who answered first; 0: nobody yet.
  [[nodiscard]] std::uint32_t generation() const { return generation_; }

 private:
  std::uint64_t id_ = 0;
  std::uint32_t datagrams_ = 0;
  std::uint32_t sent_ = 0;
  std::uint32_t generation_ = 0;
};

}  // namespace lab
