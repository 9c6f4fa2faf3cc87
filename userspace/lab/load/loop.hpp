// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_LOAD_LOOP_HPP
#define LAB_LOAD_LOOP_HPP

#include <netinet/in.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "load/load.hpp"

namespace lab {

/// The clients' event loop, owned and run by one thread; read the results after it has ended.
class LoadLoop {
 public:
  LoadLoop(const LoadSpec& spec, Load& load) : spec_(spec), random_(spec.seed), load_(load) {}
  LoadLoop(const LoadLoop&) = delete;
  LoadLoop& operator=(const LoadLoop&) = delete;
  LoadLoop(LoadLoop&&) = delete;
  LoadLoop& operator=(LoadLoop&&) = delete;
  virtual ~LoadLoop() = default;

  /// Finds the server and makes what run() waits on.
  virtual Result<void> prepare();
  virtual void run() = 0;

  LoadResult result;
  std::vector<Answer> answers;
  std::optional<Error> failure;

 protected:
  static constexpr std::int64_t stop_poll = 20 * one_ms;

  [[nodiscard]] bool may_begin() const {
    return !failure && !load_.stop_ &&
           (spec_.connections == 0 || result.connections < spec_.connections);
  }
  void begin_no_more() { load_.stop_ = true; }
  /// For progress lines.
  void publish() {
    load_.begun_.store(result.connections, std::memory_order_relaxed);
    load_.lost_.store(result.lost(), std::memory_order_relaxed);
  }
  /// Time to the next arrival, open loop.
  std::int64_t gap() {
    std::exponential_distribution<double> distribution{spec_.rate};
    return static_cast<std::int64_t>(distribution(random_) * static_cast<double>(one_second));
  }
  /// Calls `begin` with the planned instant of each due connection. @return nanoseconds until the
  /// next
  template <class Begin>
  std::int64_t begin_due(std::int64_t now, Begin begin) {
    // Bound the burst after a stall, so that answers are read in between.
    for (int burst = 0; burst < 256 && next_start_ <= now && may_begin(); ++burst) {
      begin(next_start_);
      next_start_ += gap();
    }
    return may_begin() ? std::max<std::int64_t>(next_start_ - now, 0)
                       : std::numeric_limits<std::int64_t>::max();
  }
  void fail(const std::string& call, int code, const std::string& hint) {
    if (!failure) {
      failure = sys_error("load: " + call, code, hint).value();
    }
  }
  /// Handles a failed socket(2). After a stall, more may be due than there are descriptors: then
  /// the run is disturbed, see disturbance().
  void no_socket(int code, std::int64_t intended) {
    const auto behind = now_ns() - intended;
    if (code == EMFILE && behind > one_second) {
      result.longest_stall_ns = std::max(result.longest_stall_ns, behind);
      begin_no_more();
      return;
    }
    fail("socket", code, "raise ulimit -n or lower --rate");
  }

  LoadSpec spec_;
  std::mt19937_64 random_;
  std::int64_t next_start_ = 0;
  Fd epoll_;
  sockaddr_in server_{};

 private:
  Load& load_;
};

/// The clients of UDP flows, see load/flows.hpp.
std::unique_ptr<LoadLoop> make_flow_loop(const LoadSpec& spec, Load& load);

}  // namespace lab

#endif  // LAB_LOAD_LOOP_HPP
