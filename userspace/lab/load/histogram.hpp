// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_LOAD_HISTOGRAM_HPP
#define LAB_LOAD_HISTOGRAM_HPP

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

namespace lab {

/// Counts of durations in buckets of about 1.6 % width (64 to each power of two), so that a
/// million samples take a fixed 30 KB. The largest sample is kept exactly. Not thread-safe.
class Histogram {
 public:
  /// @param ns duration in nanoseconds; a negative one counts as 0.
  void add(std::int64_t ns) {
    ns = std::max<std::int64_t>(ns, 0);
    ++buckets_.at(index(static_cast<std::uint64_t>(ns)));
    ++count_;
    max_ = std::max(max_, ns);
  }

  void merge(const Histogram& other) {
    for (unsigned i = 0; i < bucket_count; ++i) {
      buckets_.at(i) += other.buckets_.at(i);
    }
    count_ += other.count_;
    max_ = std::max(max_, other.max_);
  }

  [[nodiscard]] std::uint64_t count() const { return count_; }
  /// The largest sample in ns, exact; 0 when empty.
  [[nodiscard]] std::int64_t max() const { return max_; }
  /// The smallest bucket bound that at least `q` of the samples do not exceed, in ns, at most
  /// max().
  /// @param q in (0, 1]. 0 when empty.
  [[nodiscard]] std::int64_t quantile(double q) const {
    const auto wanted = std::max<std::uint64_t>(
        1, static_cast<std::uint64_t>(std::ceil(q * static_cast<double>(count_))));
    std::uint64_t seen = 0;
    for (unsigned i = 0; i < bucket_count; ++i) {
      seen += buckets_.at(i);
      if (seen >= wanted) {
        return std::min(static_cast<std::int64_t>(upper(i)), max_);
      }
    }
    return max_;
  }

 private:
  static constexpr unsigned sub_bits = 6;
  static constexpr unsigned bucket_count = (64 - sub_bits + 1) << sub_bits;

  static unsigned index(std::uint64_t ns) {
    constexpr std::uint64_t linear = 1ULL << sub_bits;
    if (ns < linear) {
      return static_cast<unsigned>(ns);
    }
    const auto shift = static_cast<unsigned>(std::bit_width(ns)) - sub_bits - 1;
    // ns >> shift is in [64, 128): the leading bit selects the power, the rest the bucket in it.
    return (shift << sub_bits) + static_cast<unsigned>(ns >> shift);
  }

  static std::uint64_t upper(unsigned index) {
    constexpr unsigned linear = 1U << sub_bits;
    if (index < 2 * linear) {
      return index;
    }
    const unsigned shift = (index >> sub_bits) - 1;
    const std::uint64_t mantissa = linear + (index & (linear - 1));
    return ((mantissa + 1) << shift) - 1;
  }

  std::array<std::uint64_t, bucket_count> buckets_{};
  std::uint64_t count_ = 0;
  std::int64_t max_ = 0;
};

}  // namespace lab

#endif  // LAB_LOAD_HISTOGRAM_HPP
