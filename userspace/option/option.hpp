// SPDX-License-Identifier: Apache-2.0
// SO_REUSEPORT_LISTEN_OFF on a stock kernel, by BPF: what loads, pins, adopts and removes it.
//
// One set of programs (option.bpf.c), two uses:
//
//   Session   for a tool that drains listeners by their descriptors. Hooks only the listener lookup
//             of one network namespace; modes are set and read through the Session. When the object
//             or the process ends, every listener gets connections again.
//   Scope     makes setsockopt() and getsockopt() work for the processes of a cgroup in the enabled
//             network namespaces. Pinned in /sys/fs/bpf/reuseport/ until disable().
//
// Needs Linux 6.1 with BTF, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; every error says what is
// missing.
#ifndef REUSEPORT_OPTION_OPTION_HPP
#define REUSEPORT_OPTION_OPTION_HPP

#include <linux/reuseport.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "host/result.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::option {

/// The cause of a failure, for an exit code; the Error explains it.
enum class Need {
  nothing,     ///< some call failed
  privilege,   ///< CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
  kernel,      ///< BTF, a kernel from 6.1 on, no lockdown, cgroup2
  not_by_bpf,  ///< the kernel has the option itself, and no BPF_SK_REUSEPORT_F_FLOW if that is
               ///< needed
};
/// The cause of @p error, returned by a function declared here.
[[nodiscard]] Need need(const Error& error);

/// Whether a Session can be started here: loads the programs, checks that they can read the
/// kernel's listeners and its grace periods, and unloads them.
[[nodiscard]] Status probe();

/// Group sizes the programs are built for: members a group may have.
enum class GroupSize : std::uint16_t { normal = 512, large = 4096 };

/// Finds sockets by their cookies and returns a duplicate descriptor of each, or none. UDP sockets
/// can only be adopted by a descriptor, also newcomers that were not passed to adopt().
using FindDescriptors = std::function<std::vector<Fd>(const std::vector<std::uint64_t>& cookies)>;

/// The option for the adopted listeners of one network namespace, and for no others.
/// Not thread-safe. Move-only.
class Session {
 public:
  /// @p netns: a descriptor of the namespace (/proc/PID/ns/net), or -1 for the caller's own. The
  /// calling thread may be in that namespace for the time of a call.
  /// Without @p find, UDP sockets that are not passed to adopt() stay unknown.
  [[nodiscard]] static Result<Session> start(int netns = -1, GroupSize size = GroupSize::normal,
                                             FindDescriptors find = {});

  Session(Session&& other) noexcept;
  Session& operator=(Session&& other) noexcept;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  /// Adopts a TCP listener or a bound UDP socket as ON, and all others on its port. It is known
  /// until it closes. Adopting it again is not an error. ENOSPC: the group or the tables are full;
  /// EBUSY: the group has its own BPF program; EINVAL: not a SO_REUSEPORT listener in this
  /// namespace; EOPNOTSUPP: MPTCP or another protocol.
  [[nodiscard]] Status adopt(int fd);
  /// Many at once, which searches for the others once instead of once per socket.
  [[nodiscard]] Status adopt(const std::vector<int>& fds);

  /// Adopts sockets that have joined the ports of adopted listeners since. A drain calls this now
  /// and then: with an unknown listener in the group, lookups are left to the kernel, and SETTLED
  /// is not set.
  [[nodiscard]] Status refresh();

  /// REUSEPORT_LISTEN_*. EINVAL: unknown mode, or a socket that was not adopted. EAGAIN: try again.
  [[nodiscard]] Status set_mode(int fd, int mode);

  /// What getsockopt(SO_REUSEPORT_LISTEN_OFF) would return, with REUSEPORT_LISTEN_F_BPF set. If the
  /// socket was not SETTLED last time, first waits for a grace period, some milliseconds: one for
  /// all sockets queried before. EINVAL: not adopted, or closed.
  [[nodiscard]] Result<reuseport_listen_info> get_info(int fd);

  /// The same by the socket's cookie (SO_COOKIE), for a tool that has closed its descriptor.
  [[nodiscard]] Status set_mode_of(std::uint64_t cookie, int mode);
  [[nodiscard]] Result<reuseport_listen_info> get_info_of(std::uint64_t cookie);

 private:
  struct Parts;
  explicit Session(std::unique_ptr<Parts> parts);
  using Datagrams = std::unordered_map<std::uint64_t, int>;  // by cookie, descriptors
  [[nodiscard]] Status adopt_one(int fd, Datagrams& datagrams);
  [[nodiscard]] Status adopt_datagrams(Datagrams datagrams);
  std::unique_ptr<Parts> parts_;
};

/// The directory where a Scope is pinned.
inline constexpr const char* pins = "/sys/fs/bpf/reuseport";

/// Whether the option may be enabled in some cgroup: false only if nothing is pinned.
[[nodiscard]] bool enabled_somewhere() noexcept;

/// Room for flows in the table; at most half of it for one uid.
inline constexpr std::uint32_t default_flows = 131072;
inline constexpr std::uint32_t least_flows = 1024;
inline constexpr std::uint32_t most_flows = 4194304;
/// RFC 4787, REQ-5: a NAT keeps a UDP mapping at least as long.
inline constexpr std::chrono::milliseconds default_idle{120'000};

/// How UDP flows are kept; empty members keep their value, or the default.
struct FlowOptions {
  std::optional<std::chrono::milliseconds> idle;  ///< the idle timeout
  std::optional<std::uint32_t> max;               ///< once, until disable()
};

/// What enable() did.
struct Enabled {
  bool first = false;     ///< nothing was enabled before
  bool replaced = false;  ///< the programs of another build were replaced
  bool new_cgroup = false;
  bool new_namespace = false;
  std::size_t listeners = 0;  ///< known in this namespace now
  std::size_t datagrams = 0;  ///< UDP sockets known in this namespace now
  std::size_t refused = 0;    ///< listeners that could not be adopted: they stay unknown
  std::size_t foreign = 0;    ///< other sk_lookup programs: their choice takes precedence
  bool flows = false;         ///< UDP flows are recorded
  bool own_option = false;    ///< the kernel has the option itself: only flows are by BPF
};

/// Makes setsockopt() and getsockopt() of SO_REUSEPORT_LISTEN_OFF work for sockets created in
/// @p cgroup (a descriptor of its cgroup2 directory) and below, in network namespace @p netns (-1:
/// the caller's own). Adopts the existing listeners; later ones are adopted automatically. What is
/// already enabled stays enabled, with its programs replaced by these, and new sockets are adopted.
/// UDP sockets are adopted only if @p find returns their descriptors, so later ones need another
/// call. With @p flows, UDP flows are recorded from here on, in everything that is enabled. On
/// failure, what was enabled before is unchanged. EBUSY: the table of flows has another size.
/// On a kernel that has the option itself, only flows can be enabled, and only if a BPF program may
/// select a socket that is not ON there (BPF_SK_REUSEPORT_F_FLOW); otherwise EEXIST. The kernel
/// keeps handling the modes.
[[nodiscard]] Result<Enabled> enable(int cgroup, int netns = -1, GroupSize size = GroupSize::normal,
                                     const FindDescriptors& find = {},
                                     const std::optional<FlowOptions>& flows = {});

/// Adopts the UDP sockets of this thread's network namespace that were bound since, if @p find
/// returns their descriptors. Does nothing in a namespace that is not enabled. ENOENT: nothing is
/// enabled.
[[nodiscard]] Status adopt_newcomers(const FindDescriptors& find);

/// Removes everything. EBUSY: sockets that are not ON would get connections again or, if the kernel
/// has the option itself, their live flows would go to others; @p force overrides that. ENOENT:
/// nothing is enabled. A program that does nothing stays on a group of UDP sockets as long as one
/// of them is open.
[[nodiscard]] Status disable(bool force = false);

/// UDP flows.
struct Flows {
  std::chrono::milliseconds idle{};
  std::chrono::milliseconds recorded_for{};
  std::uint32_t max = 0;
  std::uint64_t full = 0;           ///< datagrams whose flow got no place
  std::uint64_t short_headers = 0;  ///< datagrams without a flow but with a short QUIC header
  std::unordered_map<std::uint64_t, std::size_t> of;  ///< live flows, by the cookie of their socket
  /// flows_here(): how long ago each socket was adopted; flows silent all that time are unknown.
  std::unordered_map<std::uint64_t, std::chrono::milliseconds> known_for;
};

/// Whether flows are recorded, as far as this user can see.
[[nodiscard]] bool records_flows();

/// Live flows of the UDP sockets in this thread's network namespace whose answers are recorded:
/// `of` has exactly these sockets, also with 0 flows. Empty if flows are not recorded.
[[nodiscard]] Result<std::optional<Flows>> flows_here();

/// A group as `status` shows it.
struct GroupState {
  std::string address;   ///< "127.0.0.1:80", "[::]:80"
  std::string protocol;  ///< "tcp", "udp"
  std::uint32_t id = 0;
  std::uint32_t uid = 0;
  std::uint32_t device = 0;
  std::uint64_t netns = 0;  ///< cookie
  std::uint32_t on = 0, standby = 0, off = 0;
  std::uint32_t aside = 0;           ///< about to listen, or closing
  std::uint32_t unknown = 0;         ///< listeners of the kernel's group that are not in this one
  std::optional<std::size_t> flows;  ///< UDP: live flows of its members, if recorded
};

struct ScopeState {
  bool enabled = false;
  bool own_option = false;  ///< the kernel has the option itself: only UDP flows are by BPF
  std::chrono::system_clock::time_point since;
  GroupSize size = GroupSize::normal;
  struct Cgroup {
    std::uint64_t id = 0;
    std::string path;  ///< empty: it was removed; where it cannot be looked for, why
  };
  struct Namespace {
    std::uint64_t cookie = 0;
    std::uint64_t inode = 0;  ///< of /proc/PID/ns/net; 0: it was removed
  };
  std::vector<Cgroup> cgroups;
  std::vector<Namespace> namespaces;
  std::vector<GroupState> groups;
  /// Lookups left to the kernel since enable(), although some group on their port has a member that
  /// is not ON.
  struct Left {
    std::uint64_t unknown_listener = 0;  ///< they found a listener that is not in the table
    std::uint64_t unknown_member = 0;    ///< its group has unknown members, or its own program
    std::uint64_t no_member = 0;         ///< none of the members tried could be assigned
    std::uint64_t too_long = 0;          ///< too many listeners closed during the lookup
  } left;
  std::optional<Flows> flows;  ///< if recorded
  /// A cgroup whose answers are not all recorded, because a program is missing: then no count of
  /// flows is true. Empty: none.
  std::string unrecorded;
};

/// What is enabled. Needs the same privileges as enable().
[[nodiscard]] Result<ScopeState> state();

/// The mount point of cgroup2, from mountinfo. ENOENT: not mounted.
[[nodiscard]] Result<std::string> cgroup2_mount();
/// The cgroup2 directory of a process.
[[nodiscard]] Result<std::string> cgroup_of(pid_t pid);

}  // namespace reuseport::option

#endif  // REUSEPORT_OPTION_OPTION_HPP
