// SPDX-License-Identifier: Apache-2.0
// Is the option available, and does it work? Exits 0 if it does, 3 if it does not.
#include <cstdio>

#include <reuseport/probe.hpp>

int main() {
  const reuseport::ProbeResult found = reuseport::probe_behaviour();
  std::printf("%s: %s\n", to_string(found.support), found.why());
  return found.supported() ? 0 : 3;
}
