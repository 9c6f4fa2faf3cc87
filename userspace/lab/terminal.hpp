// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>

#include "experiment.hpp"

namespace lab {

/// A line on stderr which is written over while work goes on; silent when stderr is no terminal.
class ProgressLine {
 public:
  ProgressLine() : shown_(isatty(STDERR_FILENO) == 1) {}
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  ProgressLine(ProgressLine&&) = delete;
  ProgressLine& operator=(ProgressLine&&) = delete;
  ~ProgressLine() { clear(); }

  void show(const ExperimentSpec& spec, const Progress& progress) const {
    if (!shown_) {
      return;
    }
    fmt::print(stderr, "\r\033[K{} on {}: restart {} of {}, {} connections, {} lost",
               info(spec.method).name, spec.link.name(), progress.restarts, spec.restarts,
               progress.connections, progress.lost);
    std::fflush(stderr);
  }
  void clear() const {
    if (shown_) {
      fmt::print(stderr, "\r\033[K");
    }
  }

 private:
  bool shown_;
};

}  // namespace lab
