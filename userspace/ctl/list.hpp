// SPDX-License-Identifier: Apache-2.0
// list, show, watch: they only read.
#ifndef REUSEPORTCTL_LIST_HPP
#define REUSEPORTCTL_LIST_HPP

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "failure.hpp"
#include "output.hpp"
#include "select.hpp"
#include "wait.hpp"

namespace reuseport::ctl {

/// Command names, asked once a process.
class Names {
 public:
  const std::string& of(pid_t pid);

 private:
  std::unordered_map<pid_t, std::string> names_;
};

/// A listener as --json shows it. What the kernel does not tell is null.
[[nodiscard]] nlohmann::json to_json(const DiagSocket& s, const View& view, Names& names,
                                     Processes& processes);

/// The table of `list`, header included.
[[nodiscard]] std::string table(const View& view, const std::vector<std::size_t>& chosen,
                                Names& names);

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
