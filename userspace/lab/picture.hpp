// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "experiment.hpp"
#include "result.hpp"

namespace lab {

/// Losses and latency of each method as an SVG document, drawn with cairo: on the left connections
/// lost in 10,000, on the right p50, p99, p99.9 and the maximum of connect, both on logarithmic
/// scales, one row a method (all its links together).
Result<std::string> draw(const std::vector<Outcome>& outcomes);

}  // namespace lab
