// SPDX-License-Identifier: Apache-2.0
// Internal: what libbpf has to say, kept instead of printed.
#ifndef REUSEPORT_LIBBPF_QUIET_HPP
#define REUSEPORT_LIBBPF_QUIET_HPP

#include <bpf/libbpf.h>

#include <array>
#include <cstdarg>
#include <cstdio>
#include <string>

namespace reuseport::detail {

/// libbpf reports on stderr unless told otherwise. For as long as this lives, its last warning,
/// which says best what is missing, is kept in said() of the thread.
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
