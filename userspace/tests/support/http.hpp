// SPDX-License-Identifier: Apache-2.0
// The part of HTTP/1.1 that the stand-in for Envoy serves: requests without a body, one after the
// other on a connection.
#ifndef REUSEPORT_TESTS_HTTP_HPP
#define REUSEPORT_TESTS_HTTP_HPP

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include "reuseport/reuseport.hpp"

namespace reuseport::test::envoy {

struct Request {
  std::string method;
  std::string target;
};

class Connection {
 public:
  Connection(Fd fd, bool admin) : fd_(std::move(fd)), admin_(admin) {}

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool admin() const { return admin_; }
  [[nodiscard]] bool done() const { return done_; }

  /// The next complete request.
  std::optional<Request> request() {
    std::array<char, 4096> some{};
    ssize_t n = 0;
    while (!done_ && (n = ::recv(fd_.get(), some.data(), some.size(), MSG_DONTWAIT)) > 0) {
      in_.append(some.data(), static_cast<std::size_t>(n));
    }
    done_ = done_ || n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    const auto end = in_.find("\r\n\r\n");
    if (done_ || end == std::string::npos) {
      return std::nullopt;
    }
    const std::string line = in_.substr(0, in_.find("\r\n"));
    in_.erase(0, end + 4);
    const auto first = line.find(' ');
    const auto second = line.find(' ', first + 1);
    return Request{line.substr(0, first), line.substr(first + 1, second - first - 1)};
  }

  void respond(int status, const std::string& body, bool last) {
    const std::string text = "HTTP/1.1 " + std::to_string(status) +
                             " stand-in\r\ncontent-length: " + std::to_string(body.size()) +
                             (last ? "\r\nconnection: close\r\n\r\n" : "\r\n\r\n") + body;
    done_ = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) < 0 || last;
  }

 private:
  Fd fd_;
  bool admin_;
  bool done_ = false;
  std::string in_;
};

}  // namespace reuseport::test::envoy

#endif  // REUSEPORT_TESTS_HTTP_HPP
