// SPDX-License-Identifier: Apache-2.0
// Which listener serves an address once the old ones are gone, by the rules of the kernel's lookup
// (inet_lookup_listener(), inet6_lookup_listener(), and the same for UDP).
#ifndef REUSEPORTCTL_NEWCOMER_HPP
#define REUSEPORTCTL_NEWCOMER_HPP

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "failure.hpp"
#include "select.hpp"

namespace reuseport::ctl {

enum class Cover : std::uint8_t {
  none,   ///< none, or only for a part of it: connections would be refused
  route,  ///< a listener on a wider address, such as [::]: lookups find it once the old one is OFF
  group,  ///< one in the same group, which gets all that is new while the old one is STANDBY
};

/// Whether two sockets with SO_REUSEPORT are in one group.
[[nodiscard]] bool same_group(const DiagSocket& a, const DiagSocket& b);

/// learn_modes() of the listeners on the ports of @p leaving. One that stays unknown counts as ON.
void learn_modes(View& view, const std::vector<Target>& leaving, Processes& processes);

struct Successor {
  Cover cover = Cover::none;
  const DiagSocket* who = nullptr;  ///< in View::sockets
  std::string why;                  ///< for Cover::none: the reason
};

/// What becomes of the other listeners of a process that leaves with its targets.
enum class Siblings : std::uint8_t {
  stay,
  leave,  ///< those that nobody else holds: no successors
};

/// Finds successors: listeners with SO_REUSEPORT, of the same user, ON as far as the kernel tells,
/// and not leaving themselves.
class Newcomers {
 public:
  Newcomers(const View& view, const std::vector<Target>& leaving, Processes& processes,
            Siblings siblings = Siblings::stay);

  [[nodiscard]] Successor of(const Target& target) const;

 private:
  struct Candidate {
    const DiagSocket* socket;
    bool reuseport;
  };
  using Candidates = std::vector<Candidate>;  // one of each kind
  using Address = std::array<std::uint8_t, 16>;
  struct Port {
    Candidates wide;  // wildcard addresses
    std::map<Address, Candidates> at;
  };
  [[nodiscard]] static bool reuseport(const DiagSocket& s, Processes& processes, const View& view);
  [[nodiscard]] std::array<const Candidates*, 2> beside(const DiagSocket& old) const;
  std::unordered_map<std::uint32_t, Port> by_port_;  // protocol and port
};

/// Exit::last_on for a target without a successor, and the reason.
[[nodiscard]] Failure nobody_takes_over(const Target& target, const Successor& successor);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_NEWCOMER_HPP
