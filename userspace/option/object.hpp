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
/// `flow_table` is pinned last and unpinned first: if it is there, the others are too.
inline constexpr std::array flow_maps = {"flows",      "flow_places", "unconfirmed_flows",
                                         "flow_users", "flow_counts", "flow_table"};
}  // namespace reuseport::option

namespace reuseport::option {

/// An Error of a BPF call, with a hint if there is one.
[[nodiscard]] tl::unexpected<Error> bpf_fail(std::string call, int errnum);

/// The hints of the errors of refuse_own_option() and try_flow_flag().
inline constexpr const char* own_option = "the kernel has SO_REUSEPORT_LISTEN_OFF itself";
inline constexpr const char* no_flow_flag =
    "the kernel has SO_REUSEPORT_LISTEN_OFF itself, but lets no BPF program select a socket that "
    "is not ON (BPF_SK_REUSEPORT_F_FLOW): UDP flows cannot be kept there";
/// Whether this kernel has the option itself.
[[nodiscard]] bool has_own_option();
/// EEXIST if the kernel has the option itself, which takes precedence.
[[nodiscard]] Status refuse_own_option();
/// On a kernel with the option itself: tests whether a program may select a UDP socket that is not
/// ON (BPF_SK_REUSEPORT_F_FLOW). EEXIST: it may not.
[[nodiscard]] Status try_flow_flag();

/// Runs @p body in the network namespace @p netns (-1: the caller's), in its own thread, so that
/// the caller's namespace does not change.
[[nodiscard]] Status in_netns(int netns, const std::function<Status()>& body);

/// SO_COOKIE
[[nodiscard]] Result<std::uint64_t> cookie_of(int fd);

/// Identifies the build of the object.
[[nodiscard]] std::uint64_t build_of(GroupSize size);

/// The object for one group size: loaded, or assembled from pinned maps and programs.
class Object {
 public:
  /// For pinned maps and programs, see hold_map() and hold_program().
  Object() = default;
  /// Opens it; nothing is loaded into the kernel yet.
  /// @p sees_closing  see_closing() will be attached and notice when a member closes
  /// @p flows         room for this many UDP flows; 0: without the programs that need their tables
  [[nodiscard]] static Result<Object> open(GroupSize size, bool sees_closing,
                                           std::uint32_t flows = 0);
  /// Does not load programs that are not needed.
  void only(const std::vector<std::string>& programs);
  /// Uses the pinned map of that name instead of a new one.
  [[nodiscard]] Status reuse(const std::string& map, int fd);
  [[nodiscard]] Status load();

  void hold_map(const std::string& name, Fd fd) { held_maps_[name] = std::move(fd); }
  void hold_program(const std::string& name, Fd fd) { held_programs_[name] = std::move(fd); }

  /// Descriptors; negative if there is none of that name.
  [[nodiscard]] int map(const std::string& name) const;
  [[nodiscard]] int program(const std::string& name) const;

  /// What choose() needs to know about the caller's network namespace.
  [[nodiscard]] Result<table::look> find_namespace() const;
  /// Whether a namespace that find_namespace() described still exists.
  [[nodiscard]] Result<bool> is_there(const table::look& look) const;
  /// Prepares choose() of this object for that namespace. Call before attaching it.
  [[nodiscard]] Status look_at(const table::look& look) const;
  /// Puts the listeners on `wanted` ports into `listeners`; their cookies.
  [[nodiscard]] Result<std::vector<std::uint64_t>> find_listeners() const;
  /// Run in the namespace: its UDP sockets on `wanted` ports and in the cgroups. Adopts those
  /// passed to take_datagram(), and notices sockets that have connected or disconnected since.
  [[nodiscard]] Result<std::vector<table::datagram>> find_datagrams() const;
  /// Passes a bound UDP socket to the programs, and attaches our program to its group. EBUSY: its
  /// group has another one, or the socket is in another REUSEPORT_SOCKARRAY. ENOSPC: the table is
  /// full.
  [[nodiscard]] Status take_datagram(int fd, std::uint64_t cookie) const;
  /// What take_datagram() did, for a socket that could not be adopted.
  void forget_datagram(std::uint64_t cookie) const;
  /// Only attaches our program to its group.
  [[nodiscard]] Status attach_stub(int fd) const;
  /// Installs the selection for UDP where the program of the groups calls it.
  [[nodiscard]] Status set_datagram_chooser(bool flows = false) const;

  /// Prepares the tables of a new scope, or for the programs of this build.
  [[nodiscard]] Status begin() const;

  /// Prepares the tables of flows.
  [[nodiscard]] Status begin_flows(const FlowOptions& options) const;

  /// Runs a call_* program. The program's result is in call.error.
  [[nodiscard]] Status run(const char* program, table::call& call) const;

  /// Makes sure that the programs can observe grace periods, as setsockopt() and getsockopt() of
  /// other processes need it. ENOTSUP: they cannot.
  [[nodiscard]] Status see_grace_periods() const;

  /// Waits for a grace period, and tells the programs.
  [[nodiscard]] Status wait_grace_period();

 private:
  [[nodiscard]] Status note_place(std::uint64_t cookie, std::uint32_t index) const;
  struct Close {
    void operator()(bpf_object* o) const { bpf_object__close(o); }
  };
  std::unique_ptr<bpf_object, Close> object_;
  std::map<std::string, Fd> held_maps_;
  std::map<std::string, Fd> held_programs_;
  GroupSize size_ = GroupSize::normal;
  mutable std::uint32_t next_index_ = 0;  // in `datagrams`: where to search for a free one
  mutable bool full_ = false;             // no place was free
  mutable std::optional<std::unordered_map<std::uint64_t, std::uint32_t>> places_;  // by cookie
  Fd waiter_;  // see wait_grace_period()
  Fd waiter_inner_;
  table::grace_periods waited_{};
};

[[nodiscard]] Result<table::flow_table> read_flow_table(int map);
[[nodiscard]] Status write_flow_table(int map, const table::flow_table& t);

/// The clocks of programs, in ns.
struct FlowClock {
  std::uint64_t now = 0;     ///< of flow_table::since, full_last and member::taken_in
  std::uint64_t coarse = 0;  ///< of flow::last: never ahead of `now`, a tick or more behind it
};
[[nodiscard]] Result<FlowClock> flow_clock(const Object& object);

/// How long all flows of a member have been known, at @p now, FlowClock::coarse; @p all is
/// flows_of(). Never too long.
[[nodiscard]] Result<std::chrono::milliseconds> known_for(const Object& object,
                                                          std::uint64_t cookie, std::uint64_t now,
                                                          const Flows& all);

/// Live flows of all members.
[[nodiscard]] Result<Flows> flows_of(const Object& object);

/// find_namespace() of @p netns; -1: the caller's own.
[[nodiscard]] Result<table::look> look_of(const Object& object, int netns);

/// Run in the namespace: adopts its UDP sockets that are in an enabled cgroup, or in a group with a
/// known member, if @p find returns their descriptors; one user's up to half of the table. Leaves
/// groups with another program alone.
[[nodiscard]] Status adopt_datagrams(const Object& object, const FindDescriptors& find);

}  // namespace reuseport::option

#endif  // REUSEPORT_OPTION_OBJECT_HPP
