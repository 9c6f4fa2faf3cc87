// SPDX-License-Identifier: Apache-2.0
#include "net/relay.hpp"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <deque>
#include <random>
#include <vector>

#include "net/netns.hpp"

namespace lab {
namespace {

constexpr std::int64_t stop_poll = 50 * one_ms;

struct Packet {
  std::int64_t due;
  std::vector<char> bytes;
};

Result<Fd> open_tun(const std::string& name, int ns) {
  auto inside = InNamespace::enter(ns);
  if (!inside) {
    return tl::unexpected(inside.error());
  }
  Fd fd{open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK)};
  if (!fd) {
    return sys_error("open /dev/net/tun", errno,
                     "a link with delay needs CONFIG_NET_SCH_NETEM or CONFIG_TUN");
  }
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  name.copy(static_cast<char*>(request.ifr_name), IFNAMSIZ - 1);
  if (ioctl(fd.get(), TUNSETIFF, &request) < 0) {
    return sys_error("ioctl(TUNSETIFF)", errno);
  }
  return fd;
}

}  // namespace

Result<std::unique_ptr<Relay>> Relay::start(const std::string& name, int ns_a, int ns_b,
                                            std::int64_t delay_ns, double loss,
                                            std::uint64_t seed) {
  auto a = open_tun(name, ns_a);
  if (!a) {
    return tl::unexpected(a.error());
  }
  auto b = open_tun(name, ns_b);
  if (!b) {
    return tl::unexpected(b.error());
  }
  std::unique_ptr<Relay> relay{new Relay{std::move(*a), std::move(*b)}};
  auto* self = relay.get();
  relay->thread_ = std::thread{[self, delay_ns, loss, seed] { self->carry(delay_ns, loss, seed); }};
  return relay;
}

Relay::~Relay() {
  stop_ = true;
  if (thread_.joinable()) {
    thread_.join();
  }
}

void Relay::carry(std::int64_t delay_ns, double loss, std::uint64_t seed) {
  std::mt19937_64 random{seed};
  std::bernoulli_distribution lost{loss};
  std::array<char, 65536> buffer{};
  std::array<std::deque<Packet>, 2> waiting;
  const std::array<int, 2> fds{a_.get(), b_.get()};

  while (!stop_) {
    const auto now = now_ns();
    std::int64_t wait = stop_poll;
    for (std::size_t side = 0; side < 2; ++side) {
      auto& queue = waiting.at(side);
      while (!queue.empty() && queue.front().due <= now) {
        const auto& bytes = queue.front().bytes;
        // A full receive queue drops the packet, as a link would.
        if (write(fds.at(1 - side), bytes.data(), bytes.size()) < 0 && errno == EIO) {
          break;
        }
        queue.pop_front();
      }
      if (!queue.empty()) {
        wait = std::min(wait, queue.front().due - now);
      }
    }
    std::array<pollfd, 2> events{{{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}}};
    const auto timeout = to_timespec(wait);
    if (ppoll(events.data(), events.size(), &timeout, nullptr) <= 0) {
      continue;
    }
    for (std::size_t side = 0; side < 2; ++side) {
      if ((events.at(side).revents & POLLIN) == 0) {
        continue;
      }
      for (int burst = 0; burst < 64; ++burst) {
        const auto size = read(fds.at(side), buffer.data(), buffer.size());
        if (size <= 0) {
          break;
        }
        if (lost(random)) {
          continue;
        }
        waiting.at(side).push_back({now_ns() + delay_ns, {buffer.data(), buffer.data() + size}});
      }
    }
  }
}

}  // namespace lab
