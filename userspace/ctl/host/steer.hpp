// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_STEER_HPP
#define REUSEPORT_STEER_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "host/result.hpp"
#include "host/sockdiag.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport {

/// Steering keeps new connections away from a listener on a kernel without the option: a BPF
/// program of type sk_reuseport, attached to the group, chooses among the listeners that stay.
///
///     SYN --> group --> program --> sockarray { new 0, new 1, ... }
///                          |
///                          +-- none of them there, or the lease is over: the kernel's own hash
///
/// A group has one program, so one that somebody else attached is never replaced. The program
/// belongs to the group, not to this process: it works only while its lease is renewed, so that a
/// tool killed half-way leaves listeners behind that work as before.
///
/// Needs Linux 5.9 with BTF (to see what is attached), CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
class SteerProgram {
 public:
  /// The program stops choosing when nobody has called renew() for this long.
  static constexpr std::chrono::milliseconds lease{3000};

  /// Can steering work here at all? Loads the programs and attaches nothing. EPERM: missing
  /// capabilities; ENOENT: no BTF; else what the BPF calls say.
  [[nodiscard]] static Status probe();

  /// From here on, new connections of @p group's reuseport group go to @p stay.
  /// @param group  any socket of the group: an old listener
  /// @param stay   at least one member of the same group, none of them old
  /// EBUSY: somebody else's program is attached, or a listener is in somebody else's map.
  /// EINVAL: not in a group, or nothing stays. On an error nothing is attached.
  [[nodiscard]] static Result<SteerProgram> start(Protocol protocol, int group,
                                                  const std::vector<int>& stay);

  SteerProgram(SteerProgram&&) noexcept = default;
  SteerProgram& operator=(SteerProgram&& other) noexcept;
  SteerProgram(const SteerProgram&) = delete;
  SteerProgram& operator=(const SteerProgram&) = delete;
  /// Detaches as stop() does.
  ~SteerProgram();

  /// Lets one more listener of the group be chosen; again: no change. The socket is not kept open:
  /// when its owner closes it, it leaves by itself. ENOSPC: more than the map holds (1024).
  [[nodiscard]] Status add(int fd);

  /// Renews the lease.
  /// @return  how many listeners can be chosen; 0: the kernel's hash works again, old ones included
  [[nodiscard]] Result<std::size_t> renew();

  /// Takes the program off, if it is still this one. EBUSY: another program is attached by now;
  /// it is left alone.
  /// @param via  a member of the group that stays, where the old listeners have been closed: the
  ///             duplicate of @p group from start() is then closed first, so that nothing comes to
  ///             it in the instant when the program is gone. -1: the old ones serve on.
  [[nodiscard]] Status stop(int via = -1);

 private:
  SteerProgram() noexcept = default;
  [[nodiscard]] std::uint64_t cookie_at(std::uint32_t slot) const;
  [[nodiscard]] Status write_control() const;

  Protocol protocol_ = Protocol::tcp;
  std::uint64_t group_cookie_ = 0;
  std::uint32_t program_id_ = 0;
  Fd lock_;
  Fd group_;
  Fd array_;
  Fd control_;
  Fd program_;
  std::uint32_t count_ = 0;  // slots the program looks at
};

/// The program attached to a reuseport group.
struct AttachedProgram {
  std::uint32_t id = 0;  ///< BPF program id; 0 for a classic (cBPF) program
};

/// What is attached to the group of the socket with this cookie; empty: nothing. Read with a BPF
/// iterator, changes nothing. ENOENT: no BTF; EPERM: the hint names the capabilities.
[[nodiscard]] Result<std::optional<AttachedProgram>> attached_program(Protocol protocol,
                                                                      std::uint64_t cookie);

/// SO_COOKIE of a socket: the name sock_diag knows it by.
[[nodiscard]] Result<std::uint64_t> socket_cookie(int fd);

/// Returns when every lookup under way at the call is over (an RCU grace period), through
/// membarrier(2). ENOSYS, or EINVAL on a kernel with nohz_full CPUs.
[[nodiscard]] Status wait_lookups();

/// Waits, step by step, until listeners that get nothing new have nothing left: every half-open
/// request there was at the start is gone, and the accept queues are empty. For kernels that count
/// neither per listener. Start it after the switch.
class QueueWatch {
 public:
  struct Remaining {
    std::size_t handshakes = 0;  ///< half-open requests of the snapshot still there
    std::size_t queued = 0;      ///< TCP: connections not accepted; UDP: bytes not read
    [[nodiscard]] bool none() const noexcept { return handshakes == 0 && queued == 0; }
  };

  /// Takes the snapshot, after wait_lookups().
  [[nodiscard]] static Result<QueueWatch> start(SockDiag& diag, std::vector<DiagSocket> old);
  /// Looks again. A listener that is gone counts as empty.
  [[nodiscard]] Result<Remaining> step(SockDiag& diag);

 private:
  std::vector<DiagSocket> old_;
  std::vector<std::uint64_t> requests_;  // cookies, sorted
  bool settled_ = false;                 // all that came of them is in the queues
};

}  // namespace reuseport

#endif  // REUSEPORT_STEER_HPP
