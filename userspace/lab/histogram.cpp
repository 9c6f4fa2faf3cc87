// SPDX-License-Identifier: Apache-2.0
#include "histogram.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lab {

unsigned Histogram::index(std::uint64_t ns) {
  constexpr std::uint64_t linear = 1ULL << sub_bits;
  if (ns < linear) {
    return static_cast<unsigned>(ns);
  }
  const auto shift = static_cast<unsigned>(std::bit_width(ns)) - sub_bits - 1;
  // ns >> shift is in [64, 128): the leading bit selects the power, the rest the bucket in it.
  return (shift << sub_bits) + static_cast<unsigned>(ns >> shift);
}

std::uint64_t Histogram::upper(unsigned index) {
  constexpr unsigned linear = 1U << sub_bits;
  if (index < 2 * linear) {
    return index;
  }
  const unsigned shift = (index >> sub_bits) - 1;
  const std::uint64_t mantissa = linear + (index & (linear - 1));
  return ((mantissa + 1) << shift) - 1;
}

void Histogram::add(std::int64_t ns) {
  ns = std::max<std::int64_t>(ns, 0);
  ++buckets_.at(index(static_cast<std::uint64_t>(ns)));
  ++count_;
  max_ = std::max(max_, ns);
}

void Histogram::merge(const Histogram& other) {
  for (unsigned i = 0; i < bucket_count; ++i) {
    buckets_.at(i) += other.buckets_.at(i);
  }
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

std::int64_t Histogram::quantile(double q) const {
  if (count_ == 0) {
    return 0;
  }
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

}  // namespace lab
