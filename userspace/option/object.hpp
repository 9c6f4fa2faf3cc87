// SPDX-License-Identifier: Apache-2.0
// Internal: the BPF object, from the skeleton to running programs.
#ifndef REUSEPORT_OPTION_OBJECT_HPP
#define REUSEPORT_OPTION_OBJECT_HPP

#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <linux/reuseport.h>
#include <linux/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "option/option.hpp"

namespace reuseport::option::table {
#include "option/table.h"
}

namespace reuseport::option {
/// `flow_table` is the last to be pinned and the first to go: where it is, the others are, too.
inline constexpr std::array flow_maps = {"flows",      "flow_places", "unconfirmed_flows",
                                         "flow_users", "flow_counts", "flow_table"};
}  // namespace reuseport::option

namespace reuseport::option {

/// An Error of a BPF call, with what to do about it where that is known.
[[nodiscard]] tl::unexpected<Error> bpf_fail(std::string call, int errnum);

/// The hint of the error that refuse_own_option() gives.
inline constexpr const char* own_option = "the kernel has SO_REUSEPORT_LISTEN_OFF itself";
/// EEXIST where the kernel has the option itself: that one wins.
[[nodiscard]] Status refuse_own_option();

/// Runs @p body in the network namespace @p netns; -1: where the caller is. In a thread of its own,
/// so the caller's namespace does not change.
[[nodiscard]] Status in_netns(int netns, const std::function<Status()>& body);

/// SO_COOKIE
[[nodiscard]] Result<std::uint64_t> cookie_of(int fd);

/// Tells one build of the object from another.
[[nodiscard]] std::uint64_t build_of(GroupSize size);

/// The object of one group size; loaded, or put together of maps and programs that were pinned.
class Object {
 public:
  /// What is pinned comes by hold_map() and hold_program().
  Object() = default;
  /// Opens it; nothing is in the kernel yet.
  /// @p sees_closing  the programs will be told when a member closes
  /// @p flows         room for so many UDP flows; 0: without the programs that want their tables
  [[nodiscard]] static Result<Object> open(GroupSize size, bool sees_closing,
                                           std::uint32_t flows = 0);
  /// Programs that are not needed stay out.
  void only(const std::vector<std::string>& programs);
  /// Uses the pinned map of that name instead of one of its own.
  [[nodiscard]] Status reuse(const std::string& map, int fd);
  [[nodiscard]] Status load();

  void hold_map(const std::string& name, Fd fd) { held_maps_[name] = std::move(fd); }
  void hold_program(const std::string& name, Fd fd) { held_programs_[name] = std::move(fd); }

  /// Descriptors; negative where there is none of that name.
  [[nodiscard]] int map(const std::string& name) const;
  [[nodiscard]] int program(const std::string& name) const;

  /// For the network namespace that the caller is in: what choose() needs to know of it.
  [[nodiscard]] Result<table::look> find_namespace() const;
  /// Lets choose() of this object work in that namespace. Before it is attached.
  [[nodiscard]] Status look_at(const table::look& look) const;
  /// Puts the listeners on `wanted` ports into `listeners`; their cookies.
  [[nodiscard]] Result<std::vector<std::uint64_t>> find_listeners() const;
  /// Run in the namespace: its UDP sockets on `wanted` ports and in the
  /// cgroups. Those that take_datagram() was given are taken in, and what connected or disconnected
  /// since is noted.
  [[nodiscard]] Result<std::vector<table::datagram>> find_datagrams() const;
  /// Gives a bound UDP socket to the programs, and its group our program. EBUSY: its group has
  /// another one, or the socket is in another REUSEPORT_SOCKARRAY.
  [[nodiscard]] Status take_datagram(int fd, std::uint64_t cookie) const;
  /// The last of that alone.
  [[nodiscard]] Status attach_stub(int fd) const;
  /// Puts the choice for UDP where the program of the groups calls it.
  [[nodiscard]] Status set_datagram_chooser(bool flows = false) const;

  /// Readies the tables of a new scope, or for the programs of this build.
  [[nodiscard]] Status begin() const;

  /// Readies the tables of flows.
  [[nodiscard]] Status begin_flows(const FlowOptions& options) const;

  /// Runs a call_* program. Its own answer is in call.error.
  [[nodiscard]] Status run(const char* program, table::call& call) const;

  /// Makes sure that the programs can see grace periods pass by themselves, as setsockopt() and
  /// getsockopt() of others need it. ENOTSUP: they cannot.
  [[nodiscard]] Status see_grace_periods() const;

  /// Waits until all CPUs have left what they are in, and says so to the programs.
  [[nodiscard]] Status wait_grace_period();

 private:
  struct Close {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
  };
  std::unique_ptr<bpf_object, Close> object_;
  std::map<std::string, Fd> held_maps_;
  std::map<std::string, Fd> held_programs_;
  GroupSize size_ = GroupSize::normal;
  mutable std::uint32_t next_index_ = 0;  // in `datagrams`, where a free one is looked for
  Fd waiter_;                             // see wait_grace_period()
  Fd waiter_inner_;
  table::grace_periods waited_{};
};

[[nodiscard]] Result<table::flow_table> read_flow_table(int map);

/// The clock of flow::last and member::taken_in, in ns.
[[nodiscard]] Result<std::uint64_t> flow_clock(const Object& object);

/// For how long flows of a member are confirmed, at @p now of flow_clock(); @p all are flows_of().
[[nodiscard]] Result<std::chrono::milliseconds> known_for(const Object& object,
                                                          std::uint64_t cookie, std::uint64_t now,
                                                          const Flows& all);

/// Live flows of all members.
[[nodiscard]] Result<Flows> flows_of(const Object& object);

/// find_namespace() of @p netns; -1: the caller's own.
[[nodiscard]] Result<table::look> look_of(const Object& object, int netns);

/// Run in the namespace: takes in the UDP sockets there that are of an enabled cgroup, or in a
/// group with one that is known, as far as @p find gives their descriptors. A group with a program
/// of somebody else's stays as it is.
[[nodiscard]] Status adopt_datagrams(const Object& object, const FindDescriptors& find);

}  // namespace reuseport::option

#endif  // REUSEPORT_OPTION_OBJECT_HPP
