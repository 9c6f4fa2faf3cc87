// SPDX-License-Identifier: Apache-2.0
// The states that the inputs of a fuzz target reach, by name. With REUSEPORT_FUZZ_TELL the target
// says which there are, and which it reaches: ./run compares them with the names of the corpus.
#ifndef REUSEPORT_FUZZ_STATES_HPP
#define REUSEPORT_FUZZ_STATES_HPP

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace reuseport::fuzz {

inline void require(bool what, const char* why) {
  if (!what) {
    std::fprintf(stderr, "%s\n", why);
    std::abort();
  }
}

class States {
 public:
  States(std::initializer_list<const char*> names) noexcept {
    if (std::getenv("REUSEPORT_FUZZ_TELL") != nullptr) {
      names_.assign(names.begin(), names.end());
    }
    for (const std::string_view name : names_) {
      std::fprintf(stderr, "state %s\n", name.data());
    }
  }
  void reached(const char* name) const {
    if (!names_.empty()) {
      require(std::ranges::find(names_, std::string_view(name)) != names_.end(), name);
      std::fprintf(stderr, "reached %s\n", name);
    }
  }

 private:
  std::vector<std::string_view> names_;  // none if nobody asks
};

}  // namespace reuseport::fuzz

#endif  // REUSEPORT_FUZZ_STATES_HPP
