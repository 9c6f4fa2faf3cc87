// SPDX-License-Identifier: Apache-2.0
#include "server/control.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "experiment.hpp"

namespace lab {
namespace {

constexpr std::size_t max_message = 4096;
constexpr std::size_t max_fds = 64;
constexpr std::int64_t wait_slice = 100 * one_ms;

}  // namespace

Result<Control::Pair> Control::pair() {
  std::array<int, 2> fds{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds.data()) < 0) {
    return sys_error("socketpair", errno);
  }
  return Pair{Control{Fd{fds[0]}}, Fd{fds[1]}};
}

Result<void> Control::send(const nlohmann::json& json, const std::vector<int>& fds) const {
  auto text = json.dump();
  iovec io{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(max_fds * sizeof(int))> room{};
  if (!fds.empty()) {
    if (fds.size() > max_fds) {
      return error(fmt::format("more than {} sockets to pass", max_fds));
    }
    message.msg_control = room.data();
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  }
  if (sendmsg(fd_.get(), &message, MSG_NOSIGNAL) < 0) {
    return sys_error("sendmsg(control)", errno);
  }
  return {};
}

Result<std::optional<Control::Message>> Control::receive(std::int64_t deadline_ns) const {
  pollfd event{fd_.get(), POLLIN, 0};
  const auto timeout = to_timespec(deadline_ns - now_ns());
  const int ready = ppoll(&event, 1, &timeout, nullptr);
  if (ready < 0 && errno != EINTR) {
    return sys_error("ppoll(control)", errno);
  }
  if (ready <= 0) {
    return std::optional<Message>{};
  }

  std::array<char, max_message> text{};
  iovec io{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(max_fds * sizeof(int))> room{};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = room.data();
  header.msg_controllen = room.size();
  const auto size = recvmsg(fd_.get(), &header, MSG_CMSG_CLOEXEC);
  if (size < 0) {
    return sys_error("recvmsg(control)", errno);
  }
  Message message;
  for (auto* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const auto count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      message.fds.emplace_back(fd);
    }
  }
  if (size == 0) {
    return error("the other process is gone");
  }
  message.json = nlohmann::json::parse(text.data(), text.data() + size, nullptr, false);
  if (!message.json.is_object()) {
    return error("a control message that is not a JSON object");
  }
  return std::optional<Message>{std::move(message)};
}

std::vector<std::string> server_arguments(const ServerOptions& options) {
  std::vector<std::string> words{"server",
                                 "--method",
                                 std::string{info(options.method).name},
                                 "--generation",
                                 std::to_string(options.generation),
                                 "--address",
                                 options.address,
                                 "--port",
                                 std::to_string(options.port),
                                 "--listeners",
                                 std::to_string(options.listeners),
                                 "--backlog",
                                 std::to_string(options.backlog),
                                 "--control-fd",
                                 std::to_string(options.control_fd)};
  if (options.mode != reuseport::Mode::on) {
    words.insert(words.end(), {"--mode", std::string{to_string(options.mode)}});
  }
  if (options.udp) {
    words.emplace_back("--udp");
  }
  if (!options.unix_path.empty()) {
    words.insert(words.end(), {"--unix-path", options.unix_path});
  }
  return words;
}

Result<Generation> Generation::spawn(ServerOptions options, int ns, const char* role, int cgroup) {
  auto pair = Control::pair();
  if (!pair) {
    return tl::unexpected(pair.error());
  }
  options.control_fd = 3;
  ChildSpec spec;
  spec.arguments = server_arguments(options);
  spec.arguments.front() = role;
  spec.fds = {pair->server.get()};
  spec.ns = ns;
  spec.cgroup = cgroup;
  auto pid = lab::spawn(spec);
  if (!pid) {
    return tl::unexpected(pid.error());
  }
  Generation generation{options.generation, std::move(pair->lab)};
  generation.child_ = Child{*pid};
  return generation;
}

Result<std::optional<Control::Message>> Generation::event(std::int64_t deadline_ns) const {
  auto message = control_.receive(deadline_ns);
  if (!message) {
    return error(fmt::format("generation {}: {}", number_, message.error().text));
  }
  if (*message && (*message)->json.value("event", "") == "failed") {
    return error(
        fmt::format("generation {}: {}", number_, (*message)->json.value("why", "failed")));
  }
  return message;
}

Result<void> Generation::wait_ready(std::int64_t bound_ns) {
  const auto began = now_ns();
  Result<std::optional<Control::Message>> got{};
  while (!interrupted() && now_ns() - began < bound_ns) {
    got = event(now_ns() + wait_slice);
    if (!got) {
      return tl::unexpected(got.error());
    }
    if (*got) {
      break;
    }
  }
  if (!got || !*got || (*got)->json.value("event", "") != "ready") {
    return error(fmt::format("generation {}: {} after {} s instead of being ready", number_,
                             got && *got ? (*got)->json.dump() : "silent",
                             (now_ns() - began) / one_second));
  }
  return {};
}

}  // namespace lab
