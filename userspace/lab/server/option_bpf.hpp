// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_SERVER_OPTION_BPF_HPP
#define LAB_SERVER_OPTION_BPF_HPP

#include <memory>
#include <option/option.hpp>
#include <optional>
#include <string>

#include "base.hpp"

namespace lab {

/// Methods option-bpf and option-flows: the option provided by BPF, as `reuseportctl enable` does
/// it, for a cgroup made for this purpose and one network namespace. Servers in that cgroup call
/// setsockopt(2) as on a patched kernel. The pins are in a BPF file system of the lab's own, which
/// ends with its processes; what is enabled on the machine is not touched. The cgroup is removed
/// with the object.
class OptionByBpf {
 public:
  /// @param flows UDP flows are recorded, too
  static Result<std::unique_ptr<OptionByBpf>> enable(
      int server_ns, const std::optional<reuseport::option::FlowOptions>& flows = {});
  OptionByBpf(const OptionByBpf&) = delete;
  OptionByBpf& operator=(const OptionByBpf&) = delete;
  OptionByBpf(OptionByBpf&&) = delete;
  OptionByBpf& operator=(OptionByBpf&&) = delete;
  /// After the servers have ended.
  ~OptionByBpf();

  /// cgroup.procs: a process that writes 0 to it joins the cgroup.
  [[nodiscard]] int procs() const { return procs_.get(); }

 private:
  explicit OptionByBpf(std::string cgroup) : cgroup_(std::move(cgroup)) {}

  std::string cgroup_;
  Fd procs_;
};

}  // namespace lab

#endif  // LAB_SERVER_OPTION_BPF_HPP
