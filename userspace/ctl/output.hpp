// SPDX-License-Identifier: Apache-2.0
// One writer for text and JSON.
#ifndef REUSEPORTCTL_OUTPUT_HPP
#define REUSEPORTCTL_OUTPUT_HPP

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "failure.hpp"

namespace reuseport::ctl {

struct Output {
  bool json = false;    ///< --json, --pretty
  bool pretty = false;  ///< --pretty
  bool quiet = false;   ///< --quiet: no progress

  /// Writes one document to standard output.
  void document(const nlohmann::json& value) const;
  /// Writes text to standard output as it is.
  void text(std::string_view text) const;
  /// Says what went wrong: one line on standard error, and with --json the same as a document.
  void failure(const Failure& failure) const;
  /// One line about what is being done, on standard error. Overwrites itself on a terminal and is
  /// quiet elsewhere.
  void progress(std::string_view line) const;
  /// Takes the progress line away.
  void end_progress() const;
  /// One line on standard error, always.
  void note(std::string_view line) const;
};

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_OUTPUT_HPP
