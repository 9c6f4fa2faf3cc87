// SPDX-License-Identifier: Apache-2.0
// list, show, watch: commands that only read.
#ifndef REUSEPORTCTL_LIST_HPP
#define REUSEPORTCTL_LIST_HPP

#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "failure.hpp"
#include "output.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// Command names, cached per process.
class Names {
 public:
  const std::string& of(pid_t pid);

 private:
  std::unordered_map<pid_t, std::string> names_;
};

/// Live UDP flows of sockets of this network namespace.
class FlowCounts {
 public:
  /// Reads the flow table only if a UDP socket is chosen.
  FlowCounts(const View& view, const std::vector<std::size_t>& chosen);
  /// Empty if flows are not recorded, or this user may not see them.
  [[nodiscard]] std::optional<std::size_t> of(const DiagSocket& s) const;

 private:
  std::unordered_map<std::uint64_t, std::size_t> by_cookie_;
};

/// A listener as --json shows it. What the kernel does not report is null.
[[nodiscard]] nlohmann::json to_json(const DiagSocket& s, const View& view, Names& names,
                                     Processes& processes, const FlowCounts& flows);

/// The table of `list`, header included.
[[nodiscard]] std::string table(const View& view, const std::vector<std::size_t>& chosen,
                                Names& names, const FlowCounts& flows);

[[nodiscard]] Done list(const Selection& selection, const Output& out);
[[nodiscard]] Done show(const Selection& selection, const Output& out);

struct WatchOptions {
  std::chrono::milliseconds interval{1000};
  unsigned count = 0;  ///< tables to show; 0: until a signal
};
[[nodiscard]] Done watch(const Selection& selection, const WatchOptions& options,
                         const Output& out);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_LIST_HPP
