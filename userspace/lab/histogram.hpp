// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>

namespace lab {

/// Counts of durations in buckets of about 1.6 % width (64 to each power of two), so that a
/// million samples take a fixed 30 KB. The largest sample is kept exactly. Not thread-safe.
class Histogram {
 public:
  /// @param ns duration in nanoseconds; a negative one counts as 0.
  void add(std::int64_t ns);
  void merge(const Histogram& other);

  [[nodiscard]] std::uint64_t count() const { return count_; }
  /// The largest sample in ns, exact; 0 when empty.
  [[nodiscard]] std::int64_t max() const { return max_; }
  /// The smallest bucket bound which at least `q` of the samples do not exceed, in ns, never above
  /// max(). @param q in (0, 1]. 0 when empty.
  [[nodiscard]] std::int64_t quantile(double q) const;

 private:
  static constexpr unsigned sub_bits = 6;
  static constexpr unsigned bucket_count = (64 - sub_bits + 1) << sub_bits;
  static unsigned index(std::uint64_t ns);
  static std::uint64_t upper(unsigned index);

  std::array<std::uint64_t, bucket_count> buckets_{};
  std::uint64_t count_ = 0;
  std::int64_t max_ = 0;
};

}  // namespace lab
