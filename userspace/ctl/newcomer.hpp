// SPDX-License-Identifier: Apache-2.0
// Who gets what comes for an address once its old listeners are gone: judged as the kernel looks
// listeners up (inet_lookup_listener(), inet6_lookup_listener(), and the same for UDP).
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
  none,   ///< nobody, or not for all of it: connections would be refused
  route,  ///< a listener of a wider address, such as [::]: once the old one is OFF, lookups go on
          ///< to it
  group,  ///< one in the same group, to which STANDBY leaves all that is new
};

struct Successor {
  Cover cover = Cover::none;
  const DiagSocket* who = nullptr;  ///< of View::sockets
  std::string why;                  ///< for none: what stands in the way
};

/// Finds successors. Only listeners with SO_REUSEPORT of the old one's user count, ON as far as the
/// kernel tells, and none that leaves too.
class Newcomers {
 public:
  Newcomers(const View& view, const std::vector<Target>& leaving, Processes& processes);

  [[nodiscard]] Successor of(const Target& target) const;

 private:
  struct Candidate {
    const DiagSocket* socket;
    bool reuseport;
  };
  using Candidates = std::vector<Candidate>;  // of those that say the same, one
  using Address = std::array<std::uint8_t, 16>;
  struct Port {
    Candidates wide;  // of every address
    std::map<Address, Candidates> at;
  };
  [[nodiscard]] static bool reuseport(const DiagSocket& s, Processes& processes, const View& view);
  [[nodiscard]] std::array<const Candidates*, 2> beside(const DiagSocket& old) const;
  std::unordered_map<std::uint32_t, Port> by_port_;  // protocol and port
};

/// Exit::last_on with the first target that nobody takes over, and the reason.
[[nodiscard]] Failure nobody_takes_over(const Target& target, const Successor& successor);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_NEWCOMER_HPP
