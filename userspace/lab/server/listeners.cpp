// SPDX-License-Identifier: Apache-2.0
#include "server/listeners.hpp"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <utility>

namespace lab {
namespace {

constexpr int handover_version = 1;
constexpr int first_passed_fd = 3;  // sd_listen_fds(3): SD_LISTEN_FDS_START
constexpr std::int64_t handover_bound = 10 * one_second;

struct UnixAddress {
  sockaddr_un address{};
  socklen_t size = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

UnixAddress path_address(const std::string& path) {
  UnixAddress result;
  result.address.sun_family = AF_UNIX;
  path.copy(static_cast<char*>(result.address.sun_path), sizeof result.address.sun_path - 1);
  result.size = sizeof result.address;
  return result;
}

/// Abstract (unix(7)): vanishes with its last descriptor, and private to the network namespace.
UnixAddress handover_address(std::uint32_t generation) {
  const auto name = fmt::format("restart-lab-handover-{}", generation);
  UnixAddress result;
  result.address.sun_family = AF_UNIX;
  name.copy(static_cast<char*>(result.address.sun_path) + 1, sizeof result.address.sun_path - 1);
  result.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return result;
}

Result<std::vector<Fd>> take_over(std::uint32_t from) {
  Fd fd{socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
  if (!fd) {
    return sys_error("socket(AF_UNIX)", errno);
  }
  const auto address = handover_address(from);
  if (connect(fd.get(), address.get(), address.size) < 0) {
    return sys_error(fmt::format("connect to generation {}", from), errno);
  }
  const Control control{std::move(fd)};
  auto sent = control.send({{"want", "listeners"}, {"version", handover_version}});
  if (!sent) {
    return tl::unexpected(sent.error());
  }
  auto answer = control.receive(now_ns() + handover_bound);
  if (!answer) {
    return tl::unexpected(answer.error());
  }
  if (!*answer || (*answer)->json.value("version", 0) != handover_version ||
      (*answer)->json.value("listeners", std::size_t{0}) != (*answer)->fds.size()) {
    return error("handover: no answer, or one of another version");
  }
  return std::move((*answer)->fds);
}

Result<std::vector<Fd>> passed_listeners() {
  const char* text = std::getenv("LISTEN_FDS");
  const std::string_view digits{text == nullptr ? "" : text};
  int count = 0;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
  if (code != std::errc{} || end != digits.data() + digits.size() || count <= 0) {
    return error("LISTEN_FDS is not set: started by the socket server only");
  }
  std::vector<Fd> fds;
  fds.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    fds.emplace_back(first_passed_fd + i);
  }
  return fds;
}

Result<std::vector<Fd>> renamed_listener(const ServerOptions& options) {
  const auto beside = fmt::format("{}.{}", options.unix_path, options.generation);
  if (beside.size() >= sizeof(sockaddr_un::sun_path)) {
    return error(fmt::format("{}: longer than a Unix address may be", beside));
  }
  Fd fd{socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  if (!fd) {
    return sys_error("socket(AF_UNIX)", errno);
  }
  const auto address = path_address(beside);
  if (bind(fd.get(), address.get(), address.size) < 0) {
    return sys_error(fmt::format("bind {}", beside), errno);
  }
  if (listen(fd.get(), options.backlog) < 0) {
    return sys_error("listen", errno);
  }
  // From here on the proxy connects to this socket; the previous one keeps its connections.
  if (rename(beside.c_str(), options.unix_path.c_str()) < 0) {
    return sys_error(fmt::format("rename to {}", options.unix_path), errno);
  }
  std::vector<Fd> fds;
  fds.push_back(std::move(fd));
  return fds;
}

}  // namespace

Result<std::vector<Fd>> open_listeners(const ServerOptions& options) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(options.port);
  if (inet_pton(AF_INET, options.address.c_str(), &address.sin_addr) != 1) {
    return error(fmt::format("'{}' is no IPv4 address", options.address));
  }
  std::vector<Fd> fds;
  for (int i = 0; i < options.listeners; ++i) {
    const int type = options.udp ? SOCK_DGRAM : SOCK_STREAM;
    Fd fd{socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
    if (!fd) {
      return sys_error("socket", errno);
    }
    const int on = 1;
    if (setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0) {
      return sys_error("setsockopt(SO_REUSEPORT)", errno);
    }
    if (options.mode != reuseport::Mode::on) {
      if (auto set = reuseport::set_mode(fd.get(), options.mode); !set) {
        return error(set.error().message());
      }
    }
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
      return sys_error("bind", errno);
    }
    if (!options.udp && listen(fd.get(), options.backlog) < 0) {
      return sys_error("listen", errno);
    }
    fds.push_back(std::move(fd));
  }
  return fds;
}

Result<std::vector<Fd>> obtain_listeners(const ServerOptions& options) {
  switch (options.method) {
    case RestartMethod::fd_pass:
      return options.generation > 1 ? take_over(options.generation - 1) : open_listeners(options);
    case RestartMethod::socket_server: return passed_listeners();
    case RestartMethod::uds_rename: return renamed_listener(options);
    default: return open_listeners(options);
  }
}

Result<Fd> open_handover(std::uint32_t generation) {
  Fd fd{socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  if (!fd) {
    return sys_error("socket(AF_UNIX)", errno);
  }
  const auto address = handover_address(generation);
  if (bind(fd.get(), address.get(), address.size) < 0) {
    return sys_error("bind(handover)", errno);
  }
  if (listen(fd.get(), 1) < 0) {
    return sys_error("listen(handover)", errno);
  }
  return fd;
}

Result<void> hand_over(int handover, const std::vector<int>& listeners) {
  Fd fd{accept4(handover, nullptr, nullptr, SOCK_CLOEXEC)};
  if (!fd) {
    return sys_error("accept(handover)", errno);
  }
  const Control newcomer{std::move(fd)};
  auto asked = newcomer.receive(now_ns() + handover_bound);
  if (!asked) {
    return tl::unexpected(asked.error());
  }
  if (!*asked || (*asked)->json.value("want", "") != "listeners" ||
      (*asked)->json.value("version", 0) != handover_version) {
    return error("handover: unknown request");
  }
  return newcomer.send({{"version", handover_version}, {"listeners", listeners.size()}}, listeners);
}

}  // namespace lab
