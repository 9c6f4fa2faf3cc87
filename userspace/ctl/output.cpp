// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "text.hpp"

namespace reuseport::ctl {

namespace {

constexpr std::string_view name = "reuseportctl: ";

int stdout_error = 0;

bool terminal() {
  static const bool is = ::isatty(STDERR_FILENO) == 1;
  return is;
}

/// Lines for a person. A terminal that is stopped, or a pipe that nobody reads, must not stop the
/// work: what it does not take within a second is lost, and a later line says how much.
class Log {
 public:
  void write(std::string_view text) {
    if (lost_ != 0 && !takes(0)) {
      ++lost_;
      return;
    }
    if (lost_ != 0) {
      const auto all =
          std::string(name) + std::to_string(lost_) + " lines were lost: nobody read\n";
      lost_ = 0;
      write(all);
    }
    while (!text.empty()) {
      if (!takes(patience_ms)) {
        ++lost_;
        return;
      }
      const ssize_t n = ::write(STDERR_FILENO, text.data(), std::min(text.size(), at_once));
      if (n < 0 && errno != EINTR && errno != EAGAIN) {
        return;  // there is nobody to tell
      }
      text.remove_prefix(n > 0 ? static_cast<std::size_t>(n) : 0);
    }
  }

 private:
  static constexpr int patience_ms = 1000;
  static constexpr std::size_t at_once = 4096;  // a pipe that poll(2) finds ready takes as much

  static bool takes(int ms) {
    pollfd ready{STDERR_FILENO, POLLOUT, 0};
    return ::poll(&ready, 1, ms) != 0;
  }
  std::size_t lost_ = 0;
};

void log(std::string_view text) {
  static Log log;
  log.write(text);
}

/// 0, or the errno of what could not be written.
int write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EAGAIN) {  // someone made the pipe non-blocking
      pollfd ready{fd, POLLOUT, 0};
      static_cast<void>(::poll(&ready, 1, -1));
    } else if (n < 0 && errno != EINTR) {
      return errno;
    }
    text.remove_prefix(n > 0 ? static_cast<std::size_t>(n) : 0);
  }
  return 0;
}

void say(std::string_view before, std::string_view line, std::string_view after) {
  std::string all(before);
  all.append(name).append(visible(line)).append(after);
  log(all);
}

}  // namespace

void Output::document(const nlohmann::json& value) const {
  text(value.dump(pretty ? 2 : -1, ' ', true, nlohmann::json::error_handler_t::replace) + "\n");
}

// NOLINTNEXTLINE(readability-convert-member-functions-to-static): the pair of document()
void Output::text(std::string_view text) const {
  const int error = write_all(STDOUT_FILENO, text);
  stdout_error = stdout_error != 0 ? stdout_error : error;
}

void Output::failure(const Failure& failure) const {
  note(failure.line());
  if (json) {
    document(failure.json());
  }
}

void Output::progress(std::string_view line) const {
  if (!quiet && terminal()) {
    say("\r", line, "\x1b[K");
  }
}

void Output::end_progress() const {
  if (!quiet && terminal()) {
    log("\r\x1b[K");
  }
}

void Output::note(std::string_view line) const {
  end_progress();
  say("", line, "\n");
}

std::optional<Failure> Output::lost() {
  if (stdout_error == 0) {
    return std::nullopt;
  }
  return Failure(Error{"write", stdout_error, {}}, "standard output");
}

void fill_standard_descriptors() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) < 0) {
      // the lowest free number is this one, as those below are open
      static_cast<void>(::open("/dev/null", fd == STDERR_FILENO ? O_WRONLY : O_RDONLY));
    }
  }
}

}  // namespace reuseport::ctl
