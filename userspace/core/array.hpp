// SPDX-License-Identifier: Apache-2.0
#ifndef REUSEPORT_CORE_ARRAY_HPP
#define REUSEPORT_CORE_ARRAY_HPP

#include <cstddef>
#include <cstdlib>
#include <span>
#include <type_traits>

namespace reuseport::core {

/// An array of plain data that grows by realloc(3): std::vector needs libstdc++, and throws.
template <typename T>
class Array {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array(Array&&) = delete;
  Array& operator=(Array&&) = delete;
  ~Array() { std::free(items_); }

  /// Returns false, with nothing changed, if out of memory.
  [[nodiscard]] bool reserve(std::size_t room) noexcept {
    if (room <= room_) {
      return true;
    }
    const std::size_t wanted = room < 2 * room_ ? 2 * room_ : room;
    void* grown = ::reallocarray(items_, wanted, sizeof(T));
    if (grown == nullptr) {
      return false;
    }
    items_ = static_cast<T*>(grown);
    room_ = wanted;
    return true;
  }
  /// The caller has called reserve().
  void push(const T& item) noexcept { items_[size_++] = item; }
  void clear() noexcept { size_ = 0; }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] T* data() noexcept { return items_; }
  [[nodiscard]] T* begin() noexcept { return items_; }
  [[nodiscard]] T* end() noexcept { return items_ + size_; }
  [[nodiscard]] const T* begin() const noexcept { return items_; }
  [[nodiscard]] const T* end() const noexcept { return items_ + size_; }
  [[nodiscard]] T& operator[](std::size_t i) noexcept { return items_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return items_[i]; }

 private:
  T* items_ = nullptr;
  std::size_t size_ = 0;
  std::size_t room_ = 0;
};

}  // namespace reuseport::core

#endif  // REUSEPORT_CORE_ARRAY_HPP
