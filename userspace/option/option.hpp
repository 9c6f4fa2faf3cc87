// SPDX-License-Identifier: Apache-2.0
// SO_REUSEPORT_LISTEN_OFF on a stock kernel, by BPF: what loads, pins, adopts and removes it.
//
// One set of programs (option.bpf.c), two uses:
//
//   Session   a tool drains listeners it has descriptors of. Nothing is hooked but the lookup of
//             listeners in one network namespace; modes are set and read through the Session. It
//             ends with the object or the process, and then every listener is chosen again.
//   Scope     setsockopt() and getsockopt() themselves work, for the processes of a cgroup in the
//             network namespaces that were enabled. Pinned below /sys/fs/bpf/reuseport/: it stays
//             until disable().
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

/// What a failure is about, for an exit code; the Error says it in words.
enum class Need {
  nothing,     ///< some call failed
  privilege,   ///< CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
  kernel,      ///< BTF, a kernel from 6.1 on, no lockdown, cgroup2
  not_by_bpf,  ///< the kernel has the option itself
};
/// What @p error, of a function declared here, is about.
[[nodiscard]] Need need(const Error& error);

/// Whether a Session can be started here: loads the programs, checks that they see what they need
/// to see (listeners where the kernel keeps them, grace periods), and unloads them.
[[nodiscard]] Status probe();

/// Group sizes the programs are built for: members a group may have.
enum class GroupSize : std::uint16_t { normal = 512, large = 4096 };

/// Finds descriptors of sockets, by their cookies: a duplicate each, or none. UDP sockets get into
/// the tables by a descriptor alone, so also those that nobody adopted by name: newcomers.
using FindDescriptors = std::function<std::vector<Fd>(const std::vector<std::uint64_t>& cookies)>;

/// The option for the listeners of one network namespace that were adopted, and for nobody else.
/// Not thread-safe. Move-only.
class Session {
 public:
  /// @p netns: a descriptor of the namespace (/proc/PID/ns/net), or -1 for the caller's own. The
  /// calling thread may be in that namespace for the time of a call.
  /// Without @p find, UDP sockets that are not adopted by name stay unknown.
  [[nodiscard]] static Result<Session> start(int netns = -1, GroupSize size = GroupSize::normal,
                                             FindDescriptors find = {});

  Session(Session&& other) noexcept;
  Session& operator=(Session&& other) noexcept;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  /// Takes a TCP listener or a bound UDP socket in, ON, and all others of its port with it. It is
  /// known until it closes. Adopting it again is no error. ENOSPC: the group or the tables are
  /// full; EBUSY: the group has a BPF program of its own; EINVAL: not a SO_REUSEPORT listener of
  /// this namespace; EOPNOTSUPP: MPTCP or another protocol.
  [[nodiscard]] Status adopt(int fd);
  /// Many at once, for one look at the others instead of one each.
  [[nodiscard]] Status adopt(const std::vector<int>& fds);

  /// Takes in what has joined the ports of adopted listeners since. A drain calls this now and
  /// then: beside a listener that is not known, lookups are left to the kernel, and SETTLED is not
  /// set.
  [[nodiscard]] Status refresh();

  /// REUSEPORT_LISTEN_*. EINVAL: unknown mode, or a socket that was not adopted. EAGAIN: try again.
  [[nodiscard]] Status set_mode(int fd, int mode);

  /// What getsockopt(SO_REUSEPORT_LISTEN_OFF) would give, REUSEPORT_LISTEN_F_BPF set. Asked again
  /// for a socket that was not SETTLED, it first waits for a grace period, some milliseconds: one
  /// for all that were asked for before. EINVAL: not adopted, or closed.
  [[nodiscard]] Result<reuseport_listen_info> get_info(int fd);

  /// The same by the socket's cookie (SO_COOKIE), for a tool that gave its descriptor back.
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

/// Where a Scope is pinned.
inline constexpr const char* pins = "/sys/fs/bpf/reuseport";

/// Flows the table has room for; of one uid at most half.
inline constexpr std::uint32_t default_flows = 131072;
inline constexpr std::uint32_t least_flows = 1024;
inline constexpr std::uint32_t most_flows = 4194304;
/// RFC 4787, REQ-5: a NAT keeps a UDP mapping at least as long.
inline constexpr std::chrono::milliseconds default_idle{120'000};

/// How UDP flows are kept; what is not given stays as it is, or is the default.
struct FlowOptions {
  std::optional<std::chrono::milliseconds> idle;  ///< silent for longer: over
  std::optional<std::uint32_t> max;               ///< once, until disable()
};

/// What enable() did.
struct Enabled {
  bool first = false;     ///< nothing was enabled before
  bool replaced = false;  ///< the programs were of another build, and are of this one now
  bool new_cgroup = false;
  bool new_namespace = false;
  std::size_t listeners = 0;  ///< known in this namespace now
  std::size_t datagrams = 0;  ///< UDP sockets known in this namespace now
  std::size_t refused = 0;    ///< listeners that could not be taken in: they stay unknown
  std::size_t foreign = 0;    ///< other sk_lookup programs: what they choose is obeyed
  bool flows = false;         ///< UDP flows are recorded
};

/// Makes setsockopt() and getsockopt() of SO_REUSEPORT_LISTEN_OFF work, for sockets made in
/// @p cgroup (a descriptor of its directory, cgroup2) and below, in network namespace @p netns (-1:
/// the caller's own). Adopts the listeners there are; later ones are seen by themselves. What is
/// enabled already stays so, its programs are replaced by these, and what is new is adopted: UDP
/// sockets as far as @p find gives their descriptors, so those that come later by another call.
/// With
/// @p flows UDP flows are recorded from here on, in all that is enabled. On failure what was
/// enabled before is as it was. EBUSY: the table of flows has another size.
[[nodiscard]] Result<Enabled> enable(int cgroup, int netns = -1, GroupSize size = GroupSize::normal,
                                     const FindDescriptors& find = {},
                                     const std::optional<FlowOptions>& flows = {});

/// Takes in the UDP sockets of this thread's network namespace that were bound since, as far as
/// @p find gives their descriptors. ENOENT: nothing is enabled.
[[nodiscard]] Status adopt_newcomers(const FindDescriptors& find);

/// Takes everything away. EBUSY: sockets that are not ON would get connections again; @p force does
/// it all the same. ENOENT: nothing is enabled. A program that does nothing stays on a group of UDP
/// sockets, for as long as one of them is open.
[[nodiscard]] Status disable(bool force = false);

/// UDP flows.
struct Flows {
  std::chrono::milliseconds idle{};
  std::chrono::milliseconds recorded_for{};
  std::uint32_t max = 0;
  std::uint64_t full = 0;           ///< datagrams whose flow got no place
  std::uint64_t short_headers = 0;  ///< datagrams of no flow, and QUIC within a connection
  std::unordered_map<std::uint64_t, std::size_t> of;  ///< live ones, by the cookie of their socket
  /// flows_here(): for how long each socket is taken in; what was silent all that time is not
  /// known.
  std::unordered_map<std::uint64_t, std::chrono::milliseconds> known_for;
};

/// Whether flows are recorded, as far as this user may see.
[[nodiscard]] bool records_flows();

/// Live flows of those UDP sockets of this thread's network namespace whose answers are recorded, 0
/// included: `of` has these sockets and no other. Nothing where no flows are recorded at all.
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
  std::optional<std::size_t> flows;  ///< UDP, where they are recorded: live ones of its members
};

struct ScopeState {
  bool enabled = false;
  std::chrono::system_clock::time_point since;
  GroupSize size = GroupSize::normal;
  struct Cgroup {
    std::uint64_t id = 0;
    std::string path;  ///< empty: it is gone
  };
  struct Namespace {
    std::uint64_t cookie = 0;
    std::uint64_t inode = 0;  ///< of /proc/PID/ns/net; 0: it is gone
  };
  std::vector<Cgroup> cgroups;
  std::vector<Namespace> namespaces;
  std::vector<GroupState> groups;
  /// Lookups left to the kernel although a member of some group of their port is not ON, since it
  /// was enabled.
  struct Left {
    std::uint64_t unknown_listener = 0;  ///< they came by a listener that is not in the table
    std::uint64_t unknown_member = 0;    ///< its group has others, or a program of its own
    std::uint64_t no_member = 0;         ///< none that was tried could be given
    std::uint64_t too_long = 0;          ///< too many listeners closed meanwhile
  } left;
  std::optional<Flows> flows;  ///< where they are recorded
};

/// What is enabled. Needs the same privileges.
[[nodiscard]] Result<ScopeState> state();

/// The directory where cgroup2 is mounted, from mountinfo. ENOENT: nowhere.
[[nodiscard]] Result<std::string> cgroup2_mount();
/// The cgroup2 directory of a process.
[[nodiscard]] Result<std::string> cgroup_of(pid_t pid);

}  // namespace reuseport::option

#endif  // REUSEPORT_OPTION_OPTION_HPP
