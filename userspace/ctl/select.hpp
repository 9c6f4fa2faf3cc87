// SPDX-License-Identifier: Apache-2.0
// Which sockets a command means, and hands on them.
#ifndef REUSEPORTCTL_SELECT_HPP
#define REUSEPORTCTL_SELECT_HPP

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "failure.hpp"
#include "host/endpoint.hpp"
#include "host/process.hpp"
#include "host/sockdiag.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

/// --pid, --port, --addr, --inode, --tcp, --udp. Each narrows the choice.
struct Selection {
  std::optional<pid_t> pid;  ///< with all its descendants
  std::optional<std::uint16_t> port;
  std::optional<EndpointPattern> address;
  std::optional<std::uint64_t> inode;
  bool tcp = false;  ///< neither: both
  bool udp = false;

  /// Nothing was said, so everything is meant: fit for reading, not for changing.
  [[nodiscard]] bool everything() const { return !pid && !port && !address && !inode; }
  [[nodiscard]] bool wants(Protocol protocol) const;
  [[nodiscard]] bool matches(const DiagSocket& s) const;
  [[nodiscard]] std::string str() const;
};

/// What the kernel and /proc said at one moment.
struct View {
  std::vector<DiagSocket> sockets;  ///< all listeners of the protocols asked, sorted
  Holders holders;
  std::vector<pid_t> tree;  ///< of Selection::pid, sorted; empty without
  std::string missing;      ///< protocols the kernel cannot list, for a note

  [[nodiscard]] bool in_tree(std::uint64_t inode) const;
};

/// Looks. With a pid, in the network namespace of that process, which the tool then stays in.
/// @param server  the process of Selection::pid where it is held already; a failure when it ended
[[nodiscard]] Outcome<View> look(const Selection& selection, const Process* server = nullptr);

/// Indices into View::sockets of those that are meant; a failure when there are none and a
/// selection was given.
[[nodiscard]] Outcome<std::vector<std::size_t>> select(const Selection& selection,
                                                       const View& view);

struct Chosen {
  View view;
  std::vector<std::size_t> sockets;  ///< indices into View::sockets
};

/// look() and select() in one, for commands that only read.
[[nodiscard]] Outcome<Chosen> look_and_select(const Selection& selection);

/// A socket of another process in our hands.
struct Target {
  DiagSocket socket;
  Process process;  ///< one that holds it
  int remote_fd = -1;
  Fd fd;
  std::vector<std::pair<Process, int>> others = {};  ///< further processes that hold it: workers

  /// Whether its server still has it open. A master may close it before its workers do.
  [[nodiscard]] bool still_held() const;
  /// "tcp 127.0.0.1:80 (socket 4711, pid 12)"
  [[nodiscard]] std::string str() const;
};

/// Takes a duplicate of @p socket from a holder, one of @p prefer if possible.
[[nodiscard]] Outcome<Target> take(const DiagSocket& socket, const Holders& holders,
                                   const std::vector<pid_t>& prefer);

/// Processes that hold @p inode and are not one server: outside of @p tree, or, without a tree,
/// outside of the process tree of every holder.
[[nodiscard]] std::vector<pid_t> foreign_holders(std::uint64_t inode, const View& view);

/// Whether SO_REUSEPORT is set on it.
[[nodiscard]] bool has_reuseport(int fd);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SELECT_HPP
