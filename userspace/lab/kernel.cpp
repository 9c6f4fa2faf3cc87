// SPDX-License-Identifier: Apache-2.0
#include "kernel.hpp"

#include <reuseport/probe.hpp>

namespace lab {

KernelAnswer ask_kernel() {
  const auto result = reuseport::probe();
  KernelAnswer answer;
  answer.supported = result.supported();
  answer.word = reuseport::to_string(result.support);
  for (auto& letter : answer.word) {
    if (letter == '_') {
      letter = ' ';
    }
  }
  if (result.support == reuseport::Support::not_in_kernel) {
    answer.word = "not in this kernel";
  } else {
    answer.in_doubt = !answer.supported;
  }
  answer.why = result.why();
  return answer;
}

}  // namespace lab
