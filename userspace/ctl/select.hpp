// SPDX-License-Identifier: Apache-2.0
// Which sockets a command means, and hands on them.
#ifndef REUSEPORTCTL_SELECT_HPP
#define REUSEPORTCTL_SELECT_HPP

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "failure.hpp"
#include "host/endpoint.hpp"
#include "host/process.hpp"
#include "host/sockdiag.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::ctl {

/// A process that is held: its number cannot become another's.
using ProcessPtr = std::shared_ptr<const Process>;

/// Processes by number, each opened once: many sockets may have the same many holders.
class Processes {
 public:
  [[nodiscard]] Result<ProcessPtr> of(pid_t pid);
  void add(const ProcessPtr& process) { open_[process->pid()] = process; }
  /// descends(), asked once a process.
  [[nodiscard]] bool below(const ProcessPtr& process, const ProcessPtr& root);

 private:
  std::unordered_map<pid_t, ProcessPtr> open_;
  std::unordered_map<const Process*, bool> below_;
};

/// --pid, --port, --addr, --inode, --tcp, --udp. Each narrows the choice.
struct Selection {
  std::optional<pid_t> pid;  ///< with all its descendants
  std::optional<std::uint16_t> port;
  std::optional<EndpointPattern> address;
  std::optional<std::uint64_t> inode;
  bool tcp = false;  ///< neither: both
  bool udp = false;
  bool reuseport_only = false;  ///< take_selected(): leave those without SO_REUSEPORT out

  /// Nothing was said, so everything is meant: fit for reading, not for changing.
  [[nodiscard]] bool everything() const { return !pid && !port && !address && !inode; }
  /// More than a process: these very sockets.
  [[nodiscard]] bool named() const { return port || address || inode; }
  [[nodiscard]] bool wants(Protocol protocol) const;
  [[nodiscard]] bool matches(const DiagSocket& s) const;
  [[nodiscard]] std::string str() const;
};

/// What the kernel and /proc said at one moment.
struct View {
  std::vector<DiagSocket> sockets;  ///< all listeners of the protocols asked, sorted
  Holders holders;
  ProcessPtr server;         ///< of Selection::pid; none without
  std::vector<pid_t> tree;   ///< it and its descendants, sorted
  std::vector<uid_t> users;  ///< that the server may act as
  std::string missing;       ///< protocols the kernel cannot list, for a note

  [[nodiscard]] bool in_tree(std::uint64_t inode) const;
  /// Made by another user than the server's, and not held by the server itself: something that runs
  /// below it has opened a listener of its own.
  [[nodiscard]] bool of_stranger(const DiagSocket& s) const;
};

/// Looks. With a pid, in the network namespace of that process, which the tool then stays in.
/// @param server  the process of Selection::pid where it is held already; a failure when it ended
[[nodiscard]] Outcome<View> look(const Selection& selection, ProcessPtr server = {});

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
  std::vector<std::pair<ProcessPtr, int>> holders;  ///< the first is the one it was taken from
  Fd fd;
  bool reuseport = false;  ///< SO_REUSEPORT is set

  [[nodiscard]] pid_t pid() const { return holders.front().first->pid(); }
  /// Whether its server still has it open. A master may close it before its workers do.
  [[nodiscard]] bool still_held() const;
  /// "tcp 127.0.0.1:80 (socket 4711, pid 12)"
  [[nodiscard]] std::string str() const;
};

/// Takes a duplicate of @p socket from a holder, one of the view's tree if possible.
[[nodiscard]] Outcome<Target> take(const DiagSocket& socket, const View& view,
                                   Processes& processes);

/// Takes hold of all selected sockets. Left out, unless @p selection names them by more than a
/// process: UDP sockets without SO_REUSEPORT, which are clients, and listeners of strangers. With
/// Selection::reuseport_only, all without SO_REUSEPORT are.
[[nodiscard]] Outcome<std::vector<Target>> take_selected(const Selection& selection,
                                                         const View& view, Processes& processes);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SELECT_HPP
