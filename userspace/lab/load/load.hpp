// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_LOAD_LOAD_HPP
#define LAB_LOAD_LOAD_HPP

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base.hpp"
#include "load/histogram.hpp"

namespace lab {

/// What a client sends on each connection, and what the server answers: the same number, and who
/// answered. Host byte order: both ends run on one machine.
struct Request {
  std::uint64_t id;
};
struct Reply {
  std::uint64_t id;
  std::uint32_t generation;
  std::uint32_t pid;
};
static_assert(sizeof(Request) == 8 && sizeof(Reply) == 16);

struct LoadSpec {
  bool udp = false;           ///< flows instead of connections, see load/flows.hpp; open loop alone
  std::string address;        ///< IPv4, dotted
  std::uint16_t port = 0;     ///< host byte order
  double rate = 300;          ///< open loop: new connections per second; 0 selects the closed loop
  unsigned concurrency = 64;  ///< closed loop: connections at a time
  std::uint64_t connections = 0;  ///< stop after this many; 0: until told
  std::int64_t timeout_ns = 0;    ///< from the intended start to the answer
  std::uint64_t seed = 1;
};

/// What clients saw. Every connection, or UDP flow, ends in exactly one of the counts.
struct LoadResult {
  std::uint64_t connections = 0;  ///< connections begun
  std::uint64_t answered = 0;     ///< UDP: each datagram of the flow, all by one generation
  std::uint64_t refused = 0;  ///< ECONNREFUSED: the SYN was answered by a RST; UDP: an ICMP message
  std::uint64_t reset = 0;    ///< RST after the handshake
  std::uint64_t timed_out = 0;         ///< no answer in LoadSpec::timeout_ns, or ETIMEDOUT
  std::uint64_t moved = 0;             ///< UDP: answered by another generation than before
  std::uint64_t unanswered = 0;        ///< closed by the server without an answer
  std::uint64_t garbled = 0;           ///< an answer to another request
  std::uint64_t wrong_generation = 0;  ///< see count_wrong_generation()
  Histogram connect;                   ///< intended start to established; UDP: first answer
  Histogram first_byte;                ///< intended start to the first byte of the answer
  /// Open loop: from the intended start of each connection to the call of connect(2).
  Histogram late;
  /// The longest time for which the clients' thread did nothing although something was due.
  std::int64_t longest_stall_ns = 0;

  [[nodiscard]] std::uint64_t lost() const {
    return refused + reset + timed_out + unanswered + garbled;
  }
};

/// One answered connection: when its connect(2) was called, and which generation answered.
struct Answer {
  std::int64_t started_ns;
  std::uint32_t generation;
};

/// Answers by a generation to connections that began after its cut-over.
/// @param cut_over generation to the instant (CLOCK_MONOTONIC) from which it may get nothing new.
std::uint64_t count_wrong_generation(const std::vector<Answer>& answers,
                                     const std::map<std::uint32_t, std::int64_t>& cut_over);

class LoadLoop;

/// Clients in their own thread: connect, send a Request, read the Reply, close. UDP: see
/// load/flows.hpp.
///
/// Open loop: arrivals are a Poisson process of the given rate, drawn from the seed and independent
/// of how the server does; latency counts from the planned instant, so a stall of the server or of
/// this client is charged to every connection it delays (no coordinated omission). Closed loop:
/// each of N clients begins anew as soon as its last connection ended; latency counts from there.
class Load {
 public:
  static constexpr const char* thread_name = "load";

  /// Starts the clients in the network namespace `ns`.
  static Result<std::unique_ptr<Load>> start(const LoadSpec& spec, int ns);
  ~Load();
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  Load(Load&&) = delete;
  Load& operator=(Load&&) = delete;

  /// Starts no more connections and waits until all have ended (LoadSpec::timeout_ns bounds that).
  /// An error: the load itself failed (no fd, no port), so its counts mean nothing.
  Result<LoadResult> finish(const std::map<std::uint32_t, std::int64_t>& cut_over);

  /// Live figures, for a progress line and for pacing. Any thread.
  [[nodiscard]] std::uint64_t begun() const { return begun_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  /// LoadSpec::connections were begun and have ended, or the load failed.
  [[nodiscard]] bool done() const { return done_.load(std::memory_order_acquire); }

 private:
  friend LoadLoop;
  Load();

  std::unique_ptr<LoadLoop> loop_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> done_{false};
  std::atomic<std::uint64_t> begun_{0};
  std::atomic<std::uint64_t> lost_{0};
  std::thread thread_;
};

}  // namespace lab

#endif  // LAB_LOAD_LOAD_HPP
