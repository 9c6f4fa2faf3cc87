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

/// A write error neither ends the program nor changes what it does: lost() reports it at the end.
struct Output {
  bool json = false;    ///< --json, --pretty
  bool pretty = false;  ///< --pretty
  bool quiet = false;   ///< --quiet: no progress

  /// Writes one document to standard output, in ASCII.
  void document(const nlohmann::json& value) const;
  /// Writes text to standard output unchanged.
  void text(std::string_view text) const;
  /// Reports a failure: one line on standard error, and with --json also a document.
  void failure(const Failure& failure) const;
  /// A progress line on standard error, if that is a terminal. Overwrites the previous one.
  void progress(std::string_view line) const;
  /// Erases the progress line.
  void end_progress() const;
  /// One line on standard error, always.
  void note(std::string_view line) const;

  /// Why standard output is incomplete: a full disk, a reader that is gone. Empty: it is complete.
  [[nodiscard]] static std::optional<Failure> lost();
};

/// Opens /dev/null for descriptors 0 to 2 that the caller closed, so that no socket gets their
/// numbers. Writing to a closed standard output is still an error.
void fill_standard_descriptors();

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_OUTPUT_HPP
