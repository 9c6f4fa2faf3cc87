// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_FD_HPP
#define REUSEPORT_FD_HPP

#include <unistd.h>

#include <utility>

namespace reuseport {

/// Owns a file descriptor and closes it. Move-only.
class Fd {
 public:
  static constexpr int none = -1;

  Fd() noexcept = default;
  /// Takes ownership of @p fd; a negative number owns nothing.
  explicit Fd(int fd) noexcept : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset(other.release());
    }
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  explicit operator bool() const noexcept { return valid(); }

  /// Gives ownership away.
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, none); }

  /// Closes what is owned and owns @p fd instead. close() is not repeated on EINTR: Linux has
  /// released the number by then (close(2)).
  void reset(int fd = none) noexcept {
    if (valid()) {
      ::close(fd_);
    }
    fd_ = fd;
  }

 private:
  int fd_ = none;
};

}  // namespace reuseport

#endif  // REUSEPORT_FD_HPP
