// SPDX-License-Identifier: Apache-2.0
// Which sockets a command selects, and duplicates of them.
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

/// A process held by a pidfd.
using ProcessPtr = std::shared_ptr<const Process>;

/// Whether Process::open() failed because there is no such process: the number may be a thread's by
/// now.
[[nodiscard]] inline bool has_ended(const Error& error) {
  return error.errnum == ESRCH || error.errnum == EINVAL;
}

/// Processes by number, each opened once: many sockets may share many holders.
class Processes {
 public:
  [[nodiscard]] Result<ProcessPtr> of(pid_t pid);
  void add(const ProcessPtr& process) { open_[process->pid()] = process; }
  /// descends(), cached per process.
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
  bool reuseport_only = false;  ///< take_selected(): skip those without SO_REUSEPORT

  /// Empty, so everything is selected: fine for reading, not for changing.
  [[nodiscard]] bool everything() const { return !pid && !port && !address && !inode; }
  /// Selects by more than a process.
  [[nodiscard]] bool named() const { return port || address || inode; }
  [[nodiscard]] bool wants(Protocol protocol) const;
  [[nodiscard]] bool matches(const DiagSocket& s) const;
  [[nodiscard]] std::string str() const;
};

/// A snapshot of what the kernel and /proc report.
struct View {
  std::vector<DiagSocket> sockets;  ///< all listeners of the selected protocols, sorted
  Holders holders;
  ProcessPtr server;         ///< the process of Selection::pid, if any
  std::vector<pid_t> tree;   ///< it and its descendants, sorted
  std::vector<uid_t> users;  ///< users the server may act as
  std::string missing;       ///< protocols the kernel cannot list, for a note

  [[nodiscard]] bool in_tree(std::uint64_t inode) const;
  /// Created by another user than the server's, and not held by the server itself: a program that
  /// runs below it has opened its own listener.
  [[nodiscard]] bool of_stranger(const DiagSocket& s) const;
};

/// Takes a snapshot. With a pid, enters the network namespace of that process and stays in it.
/// @param server  the process of Selection::pid if it is already held; fails if it has ended
[[nodiscard]] Expected<View> look(const Selection& selection, ProcessPtr server = {});

/// Indices into View::sockets of the selected ones; fails if a selection was given and matches
/// none.
[[nodiscard]] Expected<std::vector<std::size_t>> select(const Selection& selection,
                                                        const View& view);

struct Chosen {
  View view;
  std::vector<std::size_t> sockets;  ///< indices into View::sockets
};

/// look(), select() and learn_modes(), for commands that only read.
[[nodiscard]] Expected<Chosen> look_and_select(const Selection& selection);

/// A socket of another process, and our duplicate of it.
struct Target {
  DiagSocket socket;
  std::vector<std::pair<ProcessPtr, int>> holders;  ///< the first is the one it was taken from
  Fd fd;
  bool reuseport = false;  ///< SO_REUSEPORT is set

  [[nodiscard]] pid_t pid() const { return holders.front().first->pid(); }
  /// Whether its server still has it open. A master may close it before its workers.
  [[nodiscard]] bool still_held() const;
  /// "tcp 127.0.0.1:80 (socket 4711, pid 12)"
  [[nodiscard]] std::string str() const;
};

/// Duplicates @p socket from a holder, if possible one in the view's tree.
[[nodiscard]] Expected<Target> take(const DiagSocket& socket, const View& view,
                                    Processes& processes);

/// Duplicates all selected sockets. Unless @p selection names them by more than a process, skips
/// UDP sockets without SO_REUSEPORT, which are clients, and listeners of strangers. With
/// Selection::reuseport_only, skips every socket without SO_REUSEPORT.
[[nodiscard]] Expected<std::vector<Target>> take_selected(const Selection& selection,
                                                          const View& view, Processes& processes);

/// Fills in DiagSocket::info of the sockets at @p which that sock_diag(7) does not tell the mode
/// of: with the option by BPF only the listener itself does. One that cannot be asked stays
/// unknown.
/// @param held  those that need not be duplicated for it
void learn_modes(View& view, const std::vector<std::size_t>& which, Processes& processes,
                 const std::vector<Target>& held = {});

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_SELECT_HPP
