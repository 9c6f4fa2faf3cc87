// SPDX-License-Identifier: Apache-2.0
// An epoll server that retires its listener on SIGTERM: it gets no new connections, serves those it
// has, and exits. Start a second one on the same port first, and no client notices:
//
//     event_loop 8080 &  event_loop 8080 &  kill -TERM %1
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>

#include <reuseport/reuseport.hpp>

namespace {

using reuseport::Fd;

Fd open_listener(std::uint16_t port) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(fd.get(), static_cast<sockaddr*>(static_cast<void*>(&at)), sizeof(at)) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    fd.reset();
  }
  return fd;
}

// Serves what is in the queue: sends a greeting, then closes.
void serve(int listener) {
  constexpr std::string_view hello = "hello\n";
  for (;;) {
    const Fd client(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!client) {
      return;  // EAGAIN: nothing left
    }
    (void)::send(client.get(), hello.data(), hello.size(), MSG_NOSIGNAL);
  }
}

Fd open_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return Fd(::signalfd(-1, &set, SFD_CLOEXEC));
}

bool watch(const Fd& loop, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  return ::epoll_ctl(loop.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int port = argc == 2 ? std::atoi(argv[1]) : 0;
  if (port < 1 || port > UINT16_MAX) {
    std::fprintf(stderr, "usage: event_loop PORT\n");
    return 2;
  }
  Fd listener = open_listener(static_cast<std::uint16_t>(port));
  const Fd stop = open_signal();
  const Fd loop(::epoll_create1(EPOLL_CLOEXEC));
  const int listening = listener.get();
  if (!listener || !stop || !watch(loop, listening) || !watch(loop, stop.get())) {
    std::perror("event_loop");
    return 1;
  }

  std::optional<reuseport::EpollDrain> retiring;
  for (;;) {
    epoll_event event{};
    if (::epoll_wait(loop.get(), &event, 1, -1) < 1) {
      continue;
    }
    if (event.data.fd == stop.get()) {
      if (retiring) {
        return 1;  // a second signal: exit at once
      }
      signalfd_siginfo taken{};
      if (::read(stop.get(), &taken, sizeof(taken)) < 0) {
        continue;
      }
      // With a newcomer, the listener is STANDBY until it is closed; without one it goes OFF.
      reuseport::Drain drain({.last_on = reuseport::LastOn::leave});
      // NOLINTNEXTLINE(bugprone-use-after-move): taken back if it did not start
      if (auto added = drain.add(std::move(listener)); !added) {
        std::fprintf(stderr, "%s\n", added.error().message().c_str());
        return 1;
      }
      auto started = reuseport::EpollDrain::start(std::move(drain), serve);
      if (!started) {  // nothing has changed: keep serving
        std::fprintf(stderr, "%s\n", started.error().message().c_str());
        listener =
            std::move(drain.take_back().front());  // NOLINT(bugprone-use-after-move): not moved
        continue;
      }
      retiring.emplace(std::move(*started));
      (void)watch(loop, retiring->fd());
    } else if (retiring && event.data.fd == retiring->fd()) {
      if (retiring->dispatch() == reuseport::Action::done) {
        const reuseport::Report report = retiring->report();
        std::fprintf(stderr, "%s by %s (%s)\n", to_string(report.outcome).data(),
                     to_string(report.method).data(), to_string(report.support));
        return report.lossless() ? 0 : 3;
      }
    } else if (event.data.fd == listening) {
      serve(listening);
    }
  }
}
