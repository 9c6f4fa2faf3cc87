// SPDX-License-Identifier: Apache-2.0
// The limit of open files: a drain holds a descriptor per listener.
#ifndef REUSEPORTCTL_LIMITS_HPP
#define REUSEPORTCTL_LIMITS_HPP

namespace reuseport::ctl {

/// Raises the soft limit to the hard one.
void raise_open_files();
/// Restores the old limit, in a forked child: programs that use select(2) rely on it.
void restore_open_files();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_LIMITS_HPP
