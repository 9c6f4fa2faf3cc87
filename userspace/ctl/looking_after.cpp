// SPDX-License-Identifier: Apache-2.0
#include "looking_after.hpp"

#include <algorithm>
#include <utility>

namespace reuseport::ctl {

bool LookingAfter::wait(std::chrono::milliseconds time) {
  const auto until = after(time);
  do {
    notify_.alive();
    const auto got = signals_.wait(std::min(remaining(until), notify_.beat()));
    children_.reap();
    if (got) {
      take(*got);
      break;
    }
  } while (Clock::now() < until);
  notify_.alive();
  return !stopping_;
}

std::chrono::milliseconds LookingAfter::remaining(Clock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
  return std::clamp<std::chrono::milliseconds>(left, std::chrono::milliseconds(0), idle);
}

void LookingAfter::event(const char* what, nlohmann::json facts) const {
  if (out_.json) {
    facts["event"] = what;
    out_.document(facts);
  }
}

}  // namespace reuseport::ctl
