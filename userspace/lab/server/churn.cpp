// SPDX-License-Identifier: Apache-2.0
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <random>

#include <reuseport/reuseport.hpp>

#include "server/control.hpp"
#include "server/listeners.hpp"
#include "server/server.hpp"

namespace lab {
namespace {

constexpr std::size_t members = 6;

class Churn {
 public:
  explicit Churn(const ServerOptions& options)
      : options_(options), control_(Fd{options.control_fd}), random_(options.generation) {}

  Result<void> run() {
    auto ready = control_.send({{"event", "ready"}});
    while (ready) {
      // Modes change in bursts, so that polling for commands does not slow the churn down.
      for (int i = 0; i < 64; ++i) {
        if (auto done = change(sockets_.at(random_() % members)); !done) {
          return done;
        }
      }
      auto order = control_.receive(now_ns());
      if (!order) {
        return {};  // the lab is gone
      }
      if (*order) {
        for (auto& socket : sockets_) {
          leave(socket);
        }
        const auto usage = own_usage();
        return control_.send({{"event", "bye"},
                              {"accepted", accepted_},
                              {"changes", changes_},
                              {"descriptors", usage.descriptors},
                              {"rss_kb", usage.rss_kb}});
      }
    }
    return ready;
  }

 private:
  Result<void> change(Fd& socket) {
    ++changes_;
    const auto dice = random_() % 8;
    if (!socket) {
      auto options = options_;
      options.listeners = 1;
      options.mode = dice % 2 == 0 ? reuseport::Mode::off : reuseport::Mode::standby;
      auto fds = open_listeners(options);
      if (!fds) {
        return tl::unexpected(fds.error());
      }
      socket = std::move(fds->front());
      return {};
    }
    if (dice == 0) {
      leave(socket);
      return {};
    }
    const auto mode = dice % 2 == 0 ? reuseport::Mode::off : reuseport::Mode::standby;
    if (auto set = reuseport::set_mode(socket.get(), mode); !set) {
      return error(set.error().message());
    }
    return {};
  }

  /// Counts connections that arrived although none should.
  void leave(Fd& socket) {
    if (!socket) {
      return;
    }
    while (Fd{accept4(socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)}) {
      ++accepted_;
    }
    socket.reset();
  }

  ServerOptions options_;
  Control control_;
  std::mt19937_64 random_;
  std::array<Fd, members> sockets_;
  std::uint64_t accepted_ = 0;
  std::uint64_t changes_ = 0;
};

}  // namespace

int run_churn(const ServerOptions& options) {
  std::signal(SIGINT, SIG_IGN);
  Churn churn{options};
  return churn.run() ? 0 : 1;
}

}  // namespace lab
