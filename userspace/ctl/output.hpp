// SPDX-License-Identifier: Apache-2.0
// One writer for text and JSON.
#ifndef REUSEPORTCTL_OUTPUT_HPP
#define REUSEPORTCTL_OUTPUT_HPP

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "failure.hpp"

namespace reuseport::ctl {

/// Nothing that is written can end the program or change what it does: a result that could not be
/// written is asked for at the end.
struct Output {
  bool json = false;    ///< --json, --pretty
  bool pretty = false;  ///< --pretty
  bool quiet = false;   ///< --quiet: no progress

  /// Writes one document to standard output, in ASCII.
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

  /// Why some of what went to standard output is not there: a full disk, a reader that is gone.
  [[nodiscard]] static std::optional<Failure> lost();
};

/// Descriptors 0 to 2 that the caller closed are opened on /dev/null, so that no socket gets their
/// numbers; what is written to standard output is an error then as it was.
void fill_standard_descriptors();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_OUTPUT_HPP
