// SPDX-License-Identifier: Apache-2.0
// Why a command failed, and its exit code.
#ifndef REUSEPORTCTL_FAILURE_HPP
#define REUSEPORTCTL_FAILURE_HPP

#include <nlohmann/json.hpp>
#include <string>
#include <tl/expected.hpp>

#include "host/result.hpp"

namespace reuseport::ctl {

/// The exit codes, as reuseportctl(8) lists them.
enum class Exit : int {
  done = 0,
  error = 1,
  usage = 2,
  unsupported = 3,
  permission = 4,
  shared = 5,
  deadline = 6,
  last_on = 7,
  undrained = 8,
};

struct Failure {
  Exit exit = Exit::error;
  std::string message;
  std::string call;  ///< failing system call, if any
  int errnum = 0;    ///< 0: none
  std::string hint;
  nlohmann::json detail = {};  ///< further facts, for --json

  Failure(Exit code, std::string text, std::string what_next = {})
      : exit(code), message(std::move(text)), hint(std::move(what_next)) {}
  /// Derives the exit code from the errno. @p what was being done.
  explicit Failure(const Error& error, const std::string& what = {});

  /// "message: hint", one line.
  [[nodiscard]] std::string line() const;
  [[nodiscard]] nlohmann::json json() const;
};

template <typename T>
using Expected = tl::expected<T, Failure>;
using Done = Expected<void>;

/// Passes on an Error or a Failure.
inline tl::unexpected<Failure> failed(const Error& error, const std::string& what = {}) {
  return tl::unexpected<Failure>(Failure(error, what));
}
inline tl::unexpected<Failure> failed(Failure failure) {
  return tl::unexpected<Failure>(std::move(failure));
}

}  // namespace reuseport::ctl

#endif  // REUSEPORTCTL_FAILURE_HPP
