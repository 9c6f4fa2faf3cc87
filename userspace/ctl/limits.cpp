// SPDX-License-Identifier: Apache-2.0
#include "limits.hpp"

#include <sys/resource.h>

namespace reuseport::ctl {

namespace {

rlimit before{};  // rlim_max 0: never raised

}  // namespace

void raise_open_files() {
  rlimit now{};
  if (::getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur < now.rlim_max) {
    before = now;
    now.rlim_cur = now.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &now);
  }
}

void restore_open_files() {
  if (before.rlim_max != 0) {
    ::setrlimit(RLIMIT_NOFILE, &before);
  }
}

}  // namespace reuseport::ctl
