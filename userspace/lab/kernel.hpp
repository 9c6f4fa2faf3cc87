// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace lab {

/// What the library says about the running kernel.
struct KernelAnswer {
  bool supported = false;
  bool in_doubt = false;  ///< neither supported nor plainly missing: number taken, blocked, error
  std::string word;       ///< `supported`, `not in this kernel`, ...
  std::string why;
};

KernelAnswer ask_kernel();

}  // namespace lab
