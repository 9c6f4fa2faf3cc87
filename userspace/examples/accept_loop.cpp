// SPDX-License-Identifier: Apache-2.0
// The shortest example: a plain accept loop drains a listener with connections in its queue.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdio>

#include <reuseport/reuseport.hpp>

using reuseport::Fd;

int main() {
  Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t len = sizeof(at);
  auto* address = static_cast<sockaddr*>(static_cast<void*>(&at));
  const Fd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  pollfd queue{listener.get(), POLLIN, 0};
  if (::setsockopt(listener.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(listener.get(), address, len) != 0 || ::listen(listener.get(), 16) != 0 ||
      ::getsockname(listener.get(), address, &len) != 0 ||
      ::connect(client.get(), address, len) != 0 || ::poll(&queue, 1, 20000) != 1) {
    std::perror("accept_loop");
    return 1;
  }

  // There is no newcomer: give up the address.
  reuseport::Drain drain({.last_on = reuseport::LastOn::leave});
  if (auto added = drain.add(std::move(listener)); !added) {
    std::fprintf(stderr, "%s\n", added.error().message().c_str());
    return 1;
  }
  int accepted = 0;
  const auto report = reuseport::run(drain, [&](int fd) {
    const Fd taken(::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC));
    accepted += taken.valid() ? 1 : 0;
  });
  if (!report) {
    std::fprintf(stderr, "%s\n", report.error().message().c_str());
    return 1;
  }
  std::printf("accepted %d, %s by %s (%s)\n", accepted, to_string(report->outcome).data(),
              to_string(report->method).data(), to_string(report->support));
  return accepted == 1 ? 0 : 1;
}
