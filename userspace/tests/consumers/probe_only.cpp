// SPDX-License-Identifier: Apache-2.0
// The probe alone, as a project that vendors the one file has it: C++17, no library.
#include <cstdio>

#include <reuseport/probe.hpp>

int main() {
  std::puts(reuseport::to_string(reuseport::probe().support));
}
