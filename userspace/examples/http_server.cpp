// SPDX-License-Identifier: Apache-2.0
// A plain HTTP server with SO_REUSEPORT that does not use this project, to be drained from outside:
// reuseportctl drain --pid OLD --signal TERM. On TERM it closes its listener, finishes what it has
// accepted and ends; with "stubborn" it ignores TERM.
//
//     http_server ADDRESS PORT [stubborn]
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <reuseport/reuseport.hpp>

namespace {

using reuseport::Fd;

Fd open_listener(const char* address, int port) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<std::uint16_t>(port));
  if (::inet_pton(AF_INET, address, &at.sin_addr) != 1 ||
      ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(fd.get(), static_cast<sockaddr*>(static_cast<void*>(&at)), sizeof(at)) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    fd.reset();
  }
  return fd;
}

struct Client {
  Fd fd;
  std::string request;
};

/// @return whether the client is finished
bool serve(Client& client) {
  std::array<char, 4096> part{};
  const auto size = ::recv(client.fd.get(), part.data(), part.size(), MSG_DONTWAIT);
  if (size <= 0) {
    return size == 0 || errno != EAGAIN;
  }
  client.request.append(part.data(), static_cast<std::size_t>(size));
  if (client.request.find("\r\n\r\n") == std::string::npos) {
    return client.request.size() > std::size_t{1} << 16U;
  }
  constexpr std::string_view answer =
      "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";
  (void)::send(client.fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
  return true;
}

bool watch(const Fd& loop, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  return ::epoll_ctl(loop.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const int port = argc >= 3 ? std::atoi(argv[2]) : 0;
  if (port < 1 || port > UINT16_MAX) {
    std::fprintf(stderr, "usage: http_server ADDRESS PORT [stubborn]\n");
    return 2;
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const Fd stop(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  Fd listener = open_listener(argv[1], port);
  const Fd loop(::epoll_create1(EPOLL_CLOEXEC));
  if (!listener || !watch(loop, listener.get()) || (argc == 3 && !watch(loop, stop.get()))) {
    std::perror("http_server");
    return 1;
  }
  std::unordered_map<int, Client> clients;
  while (listener.valid() || !clients.empty()) {
    epoll_event event{};
    if (::epoll_wait(loop.get(), &event, 1, -1) < 1) {
      continue;
    }
    const int fd = event.data.fd;
    if (fd == stop.get()) {
      signalfd_siginfo taken{};
      if (::read(stop.get(), &taken, sizeof(taken)) < 0) {
        continue;
      }
      listener.reset();
    } else if (const auto found = clients.find(fd); found != clients.end()) {
      if (serve(found->second)) {
        clients.erase(found);
      }
    } else if (Fd client(::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC)); client.valid()) {
      const int raw = client.get();
      if (watch(loop, raw)) {
        clients.insert_or_assign(raw, Client{std::move(client), {}});
      }
    }
  }
  return 0;
}
