// SPDX-License-Identifier: Apache-2.0
#include "generation.hpp"

#include <arpa/inet.h>

#include <array>

#include "clock.hpp"
#include "experiment.hpp"

namespace lab {
namespace {

constexpr std::int64_t wait_slice = 100 * one_ms;

}  // namespace

std::vector<std::string> server_arguments(const ServerOptions& options) {
  std::array<char, INET_ADDRSTRLEN> address{};
  inet_ntop(AF_INET, &options.address, address.data(), address.size());
  std::vector<std::string> words{"server",
                                 "--method",
                                 std::string{info(options.method).name},
                                 "--generation",
                                 std::to_string(options.generation),
                                 "--address",
                                 address.data(),
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
  if (!options.unix_path.empty()) {
    words.insert(words.end(), {"--unix-path", options.unix_path});
  }
  return words;
}

Result<Generation> Generation::spawn(ServerOptions options, int ns, const char* role) {
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
  listeners_ = std::move((*got)->fds);
  return {};
}

}  // namespace lab
