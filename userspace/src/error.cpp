// SPDX-License-Identifier: Apache-2.0
#include "reuseport/error.hpp"

namespace reuseport {

std::string Error::message() const {
  std::string text = call + ": " + code().message();
  if (!hint.empty()) {
    text += ": " + hint;
  }
  return text;
}

}  // namespace reuseport
