// SPDX-License-Identifier: Apache-2.0
// Internal: keeps libbpf's warnings instead of printing them.
#ifndef REUSEPORT_LIBBPF_QUIET_HPP
#define REUSEPORT_LIBBPF_QUIET_HPP

#include <bpf/libbpf.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <string>

namespace reuseport::detail {

/// libbpf prints warnings on stderr by default. While this object lives, said() of the thread holds
/// the last warning instead, which usually names what is missing.
class LibbpfQuiet {
 public:
  LibbpfQuiet() : before_(libbpf_set_print(keep_last)) { said().clear(); }
  ~LibbpfQuiet() { libbpf_set_print(before_); }
  LibbpfQuiet(const LibbpfQuiet&) = delete;
  LibbpfQuiet& operator=(const LibbpfQuiet&) = delete;
  LibbpfQuiet(LibbpfQuiet&&) = delete;
  LibbpfQuiet& operator=(LibbpfQuiet&&) = delete;

  static std::string& said() {
    thread_local std::string last;
    return last;
  }

 private:
  static int keep_last(libbpf_print_level level, const char* format, va_list args) {
    if (level == LIBBPF_WARN) {
      std::array<char, 256> line{};
      std::vsnprintf(line.data(), line.size(), format, args);
      said() = line.data();
      while (!said().empty() && said().back() == '\n') {
        said().pop_back();
      }
    }
    return 0;
  }

  libbpf_print_fn_t before_;
};

}  // namespace reuseport::detail

#endif  // REUSEPORT_LIBBPF_QUIET_HPP
