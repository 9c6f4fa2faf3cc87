// SPDX-License-Identifier: Apache-2.0
// The core's drain (reuseport.h) for listeners of another process. Our duplicates stay open to the
// end, for the way back; the core learns when the server has closed its own.
#ifndef REUSEPORTCTL_CORE_DRAIN_HPP
#define REUSEPORTCTL_CORE_DRAIN_HPP

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "newcomer.hpp"
#include "provider.hpp"
#include "reuseport/reuseport.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// One listener at its last check.
struct Seen {
  std::uint32_t before = REUSEPORT_LISTEN_ON;
  reuseport_listen_info info{};
  bool looked = false;
  bool closed = false;   ///< by its server
  bool drained = false;  ///< nothing was left
};

class CoreDrain {
 public:
  /// @param covers  who takes over, one per target: with Cover::group STANDBY, else OFF
  CoreDrain(std::vector<Target>& targets, const std::vector<Cover>& covers, Provider& provider);
  CoreDrain(const CoreDrain&) = delete;
  CoreDrain(CoreDrain&&) = delete;
  CoreDrain& operator=(const CoreDrain&) = delete;
  CoreDrain& operator=(CoreDrain&&) = delete;
  ~CoreDrain();

  /// Switches all or none. errnum EADDRNOTAVAIL: a group has no other ON member. If a listener
  /// could not be set back, the hint says so, and stuck() is true.
  [[nodiscard]] Done start(Clock::time_point deadline);

  /// One step. Returns how long to wait before the next, or nothing when done.
  [[nodiscard]] std::optional<std::chrono::milliseconds> step();

  enum class End : std::uint8_t { drained, deadline, vanished, undone };
  /// Only after step() has returned nothing.
  [[nodiscard]] End end() const;
  /// Why it was undone.
  [[nodiscard]] std::string why() const;

  /// Checks all once more after the core is done; false if one is no longer drained. If the server
  /// has closed a listener in the meantime, a last check of our duplicate decides.
  [[nodiscard]] bool look();
  /// An address whose newcomer is gone: its group has no ON member left. Empty: none.
  [[nodiscard]] const std::string& deserted() const { return deserted_; }

  /// Restores the mode of every listener that is still open. Fails with what could not be restored.
  [[nodiscard]] Done undo();
  [[nodiscard]] bool stuck() const { return stuck_; }

  [[nodiscard]] const std::vector<Seen>& seen() const { return seen_; }

 private:
  struct Free {
    void operator()(reuseport_drain* drain) const noexcept { reuseport_drain_free(drain); }
  };
  struct Part {
    std::unique_ptr<reuseport_drain, Free> drain;
    std::uint32_t last_on;
    std::vector<std::size_t> members;
    bool done = false;
  };

  static int set_mode(int fd, int mode, void* user) noexcept;
  static int get_info(int fd, reuseport_listen_info* info, void* user) noexcept;
  static void close(int fd, void* user) noexcept;
  int ask(std::size_t i, reuseport_listen_info* info);
  [[nodiscard]] Failure failure_of(const Part& part) const;

  std::vector<Target>& targets_;
  const std::vector<Cover>& covers_;
  Provider& provider_;
  std::vector<Part> parts_;
  std::vector<Seen> seen_;
  std::unordered_map<int, std::size_t> by_fd_;
  std::string deserted_;
  bool stuck_ = false;
};

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_CORE_DRAIN_HPP
