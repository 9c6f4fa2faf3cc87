// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_LOAD_FLOWS_HPP
#define LAB_LOAD_FLOWS_HPP

#include <cstdint>

#include "load/load.hpp"

namespace lab {

/// The UDP workload: short and long flows; a flow sends its next datagram some time after the
/// answer to the last.
inline constexpr std::uint32_t short_flow = 2;  ///< datagrams
inline constexpr std::uint32_t long_flow = 20;
inline constexpr double share_of_long_flows = 0.2;
inline constexpr std::int64_t flow_gap_ns = 100 * one_ms;
/// The idle timeout of flows that are kept with their server.
inline constexpr std::int64_t flow_idle_ns = 2 * one_second;

/// The result of a flow.
enum class FlowState : std::uint8_t {
  going,
  whole,    ///< all its datagrams were answered, by one generation
  moved,    ///< another generation answered than the first time: a session would be broken
  garbled,  ///< an answer to another request
};

/// One flow, as its client counts it. It ends with the first failure.
class Flow {
 public:
  Flow() = default;
  Flow(std::uint64_t id, std::uint32_t datagrams) : id_(id), datagrams_(datagrams) {}

  /// The next datagram, to be sent now.
  Request next() { return {id_ * (long_flow + 1) + ++sent_}; }
  [[nodiscard]] std::uint32_t sent() const { return sent_; }
  /// The state of the flow after an answer.
  FlowState take(const Reply& reply);
  /// The generation that answered first; 0: none yet.
  [[nodiscard]] std::uint32_t generation() const { return generation_; }

 private:
  std::uint64_t id_ = 0;
  std::uint32_t datagrams_ = 0;
  std::uint32_t sent_ = 0;
  std::uint32_t generation_ = 0;
};

}  // namespace lab

#endif  // LAB_LOAD_FLOWS_HPP
