// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace reuseport::ctl {

namespace {

constexpr const char* name = "reuseportctl";

bool terminal() {
  static const bool is = ::isatty(STDERR_FILENO) == 1;
  return is;
}

}  // namespace

void Output::document(const nlohmann::json& value) const {
  // names of commands may be any bytes: what is no UTF-8 is replaced
  fmt::print("{}\n",
             value.dump(pretty ? 2 : -1, ' ', false, nlohmann::json::error_handler_t::replace));
  std::fflush(stdout);
}

// NOLINTNEXTLINE(readability-convert-member-functions-to-static): the pair of document()
void Output::text(std::string_view text) const {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void Output::failure(const Failure& failure) const {
  end_progress();
  fmt::print(stderr, "{}: {}\n", name, failure.line());
  if (json) {
    document(failure.json());
  }
}

void Output::progress(std::string_view line) const {
  if (!quiet && terminal()) {
    fmt::print(stderr, "\r{}: {}\x1b[K", name, line);
    std::fflush(stderr);
  }
}

void Output::end_progress() const {
  if (!quiet && terminal()) {
    fmt::print(stderr, "\r\x1b[K");
    std::fflush(stderr);
  }
}

void Output::note(std::string_view line) const {
  end_progress();
  fmt::print(stderr, "{}: {}\n", name, line);
}

}  // namespace reuseport::ctl
