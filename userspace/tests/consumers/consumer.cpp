// SPDX-License-Identifier: Apache-2.0
// Uses every public header; prints the probe's answer.
#include <cstdio>
#include <cstring>

#include <reuseport/linux/reuseport.h>
#include <reuseport/probe.hpp>
#include <reuseport/reuseport.h>
#include <reuseport/reuseport.hpp>

int main() {
  reuseport::Drain drain;
  reuseport::Fd none;
  if (drain.add(std::move(none)) || reuseport::get_info(-1)) {
    return 1;
  }
  if (reuseport::EpollDrain::start(std::move(drain), [](int) {})) {
    return 1;
  }
  std::puts(reuseport::to_string(reuseport::probe().support));
  return std::strcmp(reuseport_version(), VERSION) == 0 ? 0 : 1;
}
