// SPDX-License-Identifier: Apache-2.0
// How many files this process may have open: a drain holds a descriptor a listener.
#ifndef REUSEPORTCTL_LIMITS_HPP
#define REUSEPORTCTL_LIMITS_HPP

namespace reuseport::ctl {

/// Raises the soft limit to the hard one.
void raise_open_files();
/// Back to what it was. For a forked child: programs that use select(2) rely on the old limit.
void restore_open_files();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_LIMITS_HPP
