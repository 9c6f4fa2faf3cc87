// SPDX-License-Identifier: Apache-2.0
// on, off, standby.
#ifndef REUSEPORTCTL_MODE_HPP
#define REUSEPORTCTL_MODE_HPP

#include "failure.hpp"
#include "output.hpp"
#include "reuseport/reuseport.hpp"
#include "select.hpp"

namespace reuseport::ctl {

struct ModeOptions {
  bool allow_shared = false;
  bool allow_last = false;
  bool dry_run = false;
};

/// Sets the mode of all selected listeners, or of none.
[[nodiscard]] Done set_mode(Mode mode, const Selection& selection, const ModeOptions& options,
                            const Output& out);

/// Exit::unsupported with the probe's reason unless the kernel has the option.
[[nodiscard]] Done require_option();

/// Exit::shared when a process outside the server holds one of the targets.
[[nodiscard]] Done refuse_shared(const std::vector<Target>& targets, const View& view);

/// Exit::last_on when an address would be left without an ON listener by switching the targets
/// off.
[[nodiscard]] Done refuse_last_on(const std::vector<Target>& targets);

/// Takes hold of all selected sockets. UDP sockets without SO_REUSEPORT are clients, not
/// listeners: they are left out unless @p selection names them by more than a process.
[[nodiscard]] Outcome<std::vector<Target>> take_selected(const Selection& selection,
                                                         const View& view);

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_MODE_HPP
