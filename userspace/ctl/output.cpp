// SPDX-License-Identifier: Apache-2.0
#include "output.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>

#include "text.hpp"
#include "wait.hpp"

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
    if (lost_ != 0) {
      const auto notice =
          std::string(name) + std::to_string(lost_) + " lines were lost: nobody read them\n";
      if (!put(notice, 0)) {
        ++lost_;
        return;
      }
      lost_ = 0;
    }
    lost_ += put(text, patience_ms) ? 0 : 1;
  }

 private:
  static constexpr int patience_ms = 1000;

  /// A description of our own that does not block: a terminal may be ready for less than a line,
  /// and others share fd 2. That of a file keeps its place, and is always ready.
  static Fd own() {
    struct stat at {};
    const bool may_block =
        ::fstat(STDERR_FILENO, &at) == 0 && (S_ISFIFO(at.st_mode) || S_ISCHR(at.st_mode));
    return Fd(may_block ? ::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                        : -1);
  }
  /// False if nobody takes it in time; an error is nobody's business, there is nobody to tell.
  [[nodiscard]] bool put(std::string_view text, int wait_ms) const {
    const int fd = own_ ? own_.get() : STDERR_FILENO;
    const auto end = Clock::now() + std::chrono::milliseconds(wait_ms);
    while (!text.empty()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
      pollfd ready{fd, POLLOUT, 0};
      if (::poll(&ready, 1, static_cast<int>(std::max<std::int64_t>(left, 0))) == 0) {
        return false;
      }
      const ssize_t n = ::write(fd, text.data(), text.size());
      if (n < 0 && errno != EINTR && errno != EAGAIN) {
        return true;
      }
      if (n < 0 && Clock::now() >= end) {
        return false;
      }
      text.remove_prefix(n > 0 ? static_cast<std::size_t>(n) : 0);
    }
    return true;
  }

  Fd own_ = own();
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
