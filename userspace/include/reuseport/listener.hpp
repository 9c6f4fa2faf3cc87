// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_LISTENER_HPP
#define REUSEPORT_LISTENER_HPP

#include <cstdint>
#include <optional>
#include <string_view>

#include "reuseport/error.hpp"
#include "reuseport/export.h"

namespace reuseport {

/// Whether a listener gets new connections or datagrams: REUSEPORT_LISTEN_* of
/// <linux/reuseport.h>.
enum class Mode : std::uint32_t {
  on = 0,       ///< as ever
  off = 1,      ///< closed to every lookup, open to what is already on its way
  standby = 2,  ///< chosen only while the group has no ON member
};

/// "on", "off", "standby", or "unknown" for a mode this library does not know.
[[nodiscard]] REUSEPORT_API std::string_view to_string(Mode mode) noexcept;
/// The reverse of to_string(); empty for any other text.
[[nodiscard]] REUSEPORT_API std::optional<Mode> parse_mode(std::string_view text) noexcept;

/// struct reuseport_listen_info of <linux/reuseport.h>, and what it means.
struct Info {
  Mode mode = Mode::on;
  std::uint32_t flags = 0;       ///< REUSEPORT_LISTEN_F_*
  std::uint32_t handshakes = 0;  ///< TCP: half-open requests that will still land here; UDP: 0
  std::uint32_t queued = 0;      ///< TCP: connections in the accept queue; UDP: bytes to read
  std::uint32_t group_id = 0;    ///< reuseport group; 0, as all below, where not in_group()
  std::uint32_t group_on = 0;
  std::uint32_t group_standby = 0;
  std::uint32_t group_off = 0;

  /// The socket is in a reuseport group. The id does not tell: a kernel's first group has the id 0.
  [[nodiscard]] bool in_group() const noexcept { return group_on + group_standby + group_off > 0; }
  /// Every lookup that began before the last mode change of the group is over, so handshakes and
  /// queued of an OFF listener can only fall from here on.
  [[nodiscard]] bool settled() const noexcept { return (flags & 1U) != 0; }
  /// close() loses nothing.
  [[nodiscard]] bool drained() const noexcept {
    return mode == Mode::off && settled() && handshakes == 0 && queued == 0;
  }
};

/// A view of a listening TCP or MPTCP socket or a bound UDP socket. Owns nothing: the descriptor
/// must stay open while the view is used. Calls go straight to the kernel, so views may be used
/// from any thread.
class Listener {
 public:
  explicit Listener(int fd) noexcept : fd_(fd) {}

  [[nodiscard]] int fd() const noexcept { return fd_; }

  /// getsockopt(SO_REUSEPORT_LISTEN_OFF). ENOPROTOOPT: the kernel lacks the option. EOPNOTSUPP:
  /// neither TCP, MPTCP nor UDP. EPROTO: the number belongs to something else on this kernel.
  [[nodiscard]] REUSEPORT_API Result<Info> info() const;
  /// The mode alone; errors as info().
  [[nodiscard]] REUSEPORT_API Result<Mode> mode() const;
  /// setsockopt(SO_REUSEPORT_LISTEN_OFF). Any process holding the socket sees the change. Errors
  /// as info(), and EINVAL: no SO_REUSEPORT, or a TCP socket that is connected.
  [[nodiscard]] REUSEPORT_API Status set_mode(Mode mode) const;

 private:
  int fd_;
};

}  // namespace reuseport

#endif  // REUSEPORT_LISTENER_HPP
