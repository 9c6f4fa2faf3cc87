// SPDX-License-Identifier: Apache-2.0
// Internal: small readers of /proc.
#ifndef REUSEPORT_PROCFS_HPP
#define REUSEPORT_PROCFS_HPP

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "host/result.hpp"
#include "reuseport/reuseport.hpp"

namespace reuseport::detail {

struct CloseDir {
  void operator()(DIR* d) const noexcept { ::closedir(d); }
};
using Dir = std::unique_ptr<DIR, CloseDir>;

template <typename T>
std::optional<T> parse_number(std::string_view text) noexcept {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, ec] = std::from_chars(text.data(), end, value);
  if (ec != std::errc{} || stop != end) {
    return std::nullopt;
  }
  return value;
}

/// The file's text, at most 64 KiB of it; @p path as openat(2) takes it.
inline Result<std::string> read_file_at(int dirfd, const std::string& path) {
  constexpr std::size_t limit = 65536;
  const Fd fd(::openat(dirfd, path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return fail("open(" + path + ")", errno);
  }
  constexpr std::size_t usual = 4096;
  std::string out(usual, '\0');
  std::size_t used = 0;
  while (used < limit) {
    if (used == out.size()) {
      out.resize(out.size() * 2);
    }
    const ssize_t n = ::read(fd.get(), out.data() + used, out.size() - used);
    if (n < 0) {
      return fail("read(" + path + ")", errno);
    }
    if (n == 0) {
      break;
    }
    used += static_cast<std::size_t>(n);
  }
  out.resize(used);
  return out;
}

inline Result<std::string> read_file(const std::string& path) {
  return read_file_at(AT_FDCWD, path);
}

}  // namespace reuseport::detail

#endif  // REUSEPORT_PROCFS_HPP
