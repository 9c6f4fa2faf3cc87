// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_NET_RELAY_HPP
#define LAB_NET_RELAY_HPP

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "base.hpp"

namespace lab {

/// A link with delay and loss for kernels without netem: two TUN devices, one in each namespace,
/// and a thread that carries packets between them. Same delay in each direction, no reordering.
class Relay {
 public:
  /// Makes device `name` in both namespaces and starts the thread. @param loss 0 to 1, each
  /// direction.
  static Result<std::unique_ptr<Relay>> start(const std::string& name, int ns_a, int ns_b,
                                              std::int64_t delay_ns, double loss,
                                              std::uint64_t seed);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  Relay(Relay&&) = delete;
  Relay& operator=(Relay&&) = delete;

 private:
  Relay(Fd a, Fd b) : a_(std::move(a)), b_(std::move(b)) {}
  void carry(std::int64_t delay_ns, double loss, std::uint64_t seed);

  Fd a_;
  Fd b_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace lab

#endif  // LAB_NET_RELAY_HPP
