// SPDX-License-Identifier: Apache-2.0
// on, off, standby.
#ifndef REUSEPORTCTL_MODE_HPP
#define REUSEPORTCTL_MODE_HPP

#include "failure.hpp"
#include "output.hpp"
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

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_MODE_HPP
