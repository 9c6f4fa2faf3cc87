// SPDX-License-Identifier: Apache-2.0
#include "server/server.hpp"

#include <fmt/core.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <optional>
#include <unordered_map>

#include <reuseport/reuseport.hpp>

#include "load/load.hpp"
#include "server/control.hpp"
#include "server/listeners.hpp"

namespace lab {
namespace {

/// A client that never ends its connection must not keep an old generation alive for ever.
constexpr std::int64_t finish_bound = 15 * one_second;

class Server {
 public:
  explicit Server(const ServerOptions& options)
      : options_(options), control_(Fd{options.control_fd}) {}

  Result<void> run();
  [[nodiscard]] const Control& control() const { return control_; }

 private:
  struct Connection {
    Fd fd;
    std::array<char, sizeof(Request)> request{};
    std::size_t got = 0;
  };

  Result<void> get_listeners();
  Result<void> watch(int fd) const;
  int accept_all(int listener);
  void serve(int fd);
  void finish(int fd) { connections_.erase(fd); }
  Result<void> obey();
  Result<void> close_all();
  Result<void> start_drain();
  Result<void> turn();
  void look_settled();
  Result<void> say_closed(const std::string& outcome, std::uint64_t left);

  ServerOptions options_;
  Control control_;
  Fd epoll_;
  std::vector<Fd> listeners_;
  std::unordered_map<int, Connection> connections_;
  std::vector<int> listener_fds_;
  Fd handover_;
  std::optional<reuseport::Drain> drain_;
  std::int64_t cut_over_ = 0;  ///< from then on nothing new comes; 0: not yet
  bool closed_ = false;        ///< all listeners
  std::int64_t wake_ = 0;
  std::int64_t finish_by_ = 0;
  std::uint64_t accepted_ = 0;
  std::uint64_t answered_ = 0;
};

Result<void> Server::get_listeners() {
  auto fds = obtain_listeners(options_);
  if (!fds) {
    return tl::unexpected(fds.error());
  }
  listeners_ = std::move(*fds);
  for (const auto& listener : listeners_) {
    if (auto watched = watch(listener.get()); !watched) {
      return watched;
    }
    listener_fds_.push_back(listener.get());
  }
  if (options_.method != RestartMethod::fd_pass) {
    return {};
  }
  auto handover = open_handover(options_.generation);
  if (!handover) {
    return tl::unexpected(handover.error());
  }
  handover_ = std::move(*handover);
  return watch(handover_.get());
}

Result<void> Server::watch(int fd) const {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0) {
    return sys_error("epoll_ctl", errno);
  }
  return {};
}

int Server::accept_all(int listener) {
  int count = 0;
  for (;;) {
    Fd fd{accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC)};
    if (!fd) {
      // ECONNABORTED and the network errors of accept(2) concern one connection, not the listener.
      if (errno == EAGAIN || errno == EBADF || errno == EINVAL || errno == EMFILE) {
        return count;
      }
      continue;
    }
    ++count;
    ++accepted_;
    const int raw = fd.get();
    if (!watch(raw)) {
      continue;
    }
    connections_.insert_or_assign(raw, Connection{std::move(fd), {}, 0});
    serve(raw);  // the request often came with the handshake
  }
}

void Server::serve(int fd) {
  const auto found = connections_.find(fd);
  if (found == connections_.end()) {
    return;
  }
  auto& connection = found->second;
  if (connection.got == connection.request.size()) {
    // Answered: all that may come is the client's end.
    char scrap = 0;
    const auto size = recv(fd, &scrap, sizeof scrap, 0);
    if (size < 0 && errno == EAGAIN) {
      return;
    }
    return finish(fd);
  }
  const auto size = recv(fd, connection.request.data() + connection.got,
                         connection.request.size() - connection.got, 0);
  if (size < 0 && errno == EAGAIN) {
    return;
  }
  if (size <= 0) {
    return finish(fd);
  }
  connection.got += static_cast<std::size_t>(size);
  if (connection.got < connection.request.size()) {
    return;
  }
  Request request{};
  std::memcpy(&request, connection.request.data(), sizeof request);
  const Reply reply{request.id, options_.generation, static_cast<std::uint32_t>(getpid())};
  // 16 bytes always fit an empty send buffer.
  if (send(fd, &reply, sizeof reply, MSG_NOSIGNAL) == static_cast<ssize_t>(sizeof reply)) {
    ++answered_;
  } else {
    finish(fd);
  }
}

Result<void> Server::obey() {
  auto message = control_.receive(now_ns());
  if (!message) {
    return tl::unexpected(message.error());
  }
  if (!*message || (*message)->json.value("do", "") != "drain" || drain_ || closed_) {
    return {};
  }
  return drains(options_.method) ? start_drain() : close_all();
}

/// What the methods other than the drain do.
Result<void> Server::close_all() {
  for (auto& listener : listeners_) {
    if (shares_sockets(options_.method)) {
      // An epoll set watches the socket, not the descriptor: another process keeps it open.
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener.get(), nullptr);
    }
    if (sweeps(options_.method)) {
      accept_all(listener.get());
    }
    listener.reset();
  }
  cut_over_ = now_ns();
  return say_closed(shares_sockets(options_.method)             ? "left to the newcomer"
                    : sweeps(options_.method)                   ? "swept and closed"
                    : options_.method == RestartMethod::migrate ? "closed, kernel migrates"
                                                                : "closed",
                    0);
}

/// The library's drain, with its fallbacks; where BPF is to provide the option, without.
Result<void> Server::start_drain() {
  reuseport::DrainOptions options;
  if (options_.method == RestartMethod::option_bpf) {
    options.policy = reuseport::Policy::require;
  }
  drain_.emplace(std::move(options));
  for (auto& listener : listeners_) {
    if (auto added = drain_->add(std::move(listener)); !added) {
      return error(added.error().message());
    }
  }
  listeners_.clear();
  if (auto started = drain_->start(); !started) {
    return error(started.error().message());
  }
  return turn();
}

/// Looks for the instant from which the kernel promises that nothing new arrives.
void Server::look_settled() {
  if (cut_over_ != 0 || drain_->report().method != reuseport::Method::option) {
    return;
  }
  const auto fds = drain_->open_fds();
  const bool settled = std::all_of(fds.begin(), fds.end(), [](int fd) {
    const auto info = reuseport::get_info(fd);
    return info && info->settled();
  });
  cut_over_ = settled ? now_ns() : 0;
}

/// One turn of the drain.
Result<void> Server::turn() {
  for (;;) {
    look_settled();
    const auto step = drain_->step();
    if (step.action == reuseport::Action::accept_more) {
      for (const int fd : step.fds) {
        accept_all(fd);
      }
    } else if (step.action == reuseport::Action::wait_until) {
      wake_ = std::chrono::nanoseconds{step.when.time_since_epoch()}.count();
      return {};
    } else {
      break;
    }
  }
  const auto report = drain_->report();
  const bool unsettled =
      report.timed_out && report.method == reuseport::Method::option && cut_over_ == 0;
  if (cut_over_ == 0) {
    cut_over_ = now_ns();  // it was closed in the turn in which it settled
  }
  std::string outcome{to_string(report.outcome)};
  std::replace(outcome.begin(), outcome.end(), '_', ' ');
  return say_closed(outcome + (unsettled ? ", unsettled" : ""),
                    report.left.handshakes.value_or(0) + report.left.queued.value_or(0));
}

Result<void> Server::say_closed(const std::string& outcome, std::uint64_t left) {
  closed_ = true;
  listener_fds_.clear();
  finish_by_ = now_ns() + finish_bound;
  return control_.send(
      {{"event", "may-close"}, {"cut_over", cut_over_}, {"outcome", outcome}, {"left", left}});
}

Result<void> Server::run() {
  epoll_ = Fd{epoll_create1(EPOLL_CLOEXEC)};
  if (!epoll_) {
    return sys_error("epoll_create1", errno);
  }
  auto done = get_listeners();
  if (done) {
    done = watch(control_.fd());
  }
  if (done) {
    done = control_.send({{"event", "ready"}});
  }
  if (!done) {
    return done;
  }

  std::array<epoll_event, 256> events{};
  while (!closed_ || !connections_.empty()) {
    std::int64_t wait = one_second;
    if (closed_) {
      if (now_ns() >= finish_by_) {
        break;
      }
    } else if (drain_) {
      wait = wake_ - now_ns();
    }
    const auto timeout = to_timespec(wait);
    const int count = epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr);
    if (count < 0 && errno != EINTR) {
      return sys_error("epoll_pwait2", errno, "needs Linux 5.11");
    }
    for (int i = 0; i < count; ++i) {
      const int fd = events.at(static_cast<std::size_t>(i)).data.fd;
      if (handover_ && fd == handover_.get()) {
        if (auto given = hand_over(fd, listener_fds_); !given) {
          return given;
        }
      } else if (fd == control_.fd()) {
        if (auto obeyed = obey(); !obeyed) {
          return obeyed;
        }
      } else if (std::find(listener_fds_.begin(), listener_fds_.end(), fd) != listener_fds_.end()) {
        accept_all(fd);
      } else {
        serve(fd);
      }
    }
    if (drain_ && !closed_) {
      if (auto turned = turn(); !turned) {
        return turned;
      }
    }
  }
  const auto usage = own_usage();
  return control_.send({{"event", "bye"},
                        {"accepted", accepted_},
                        {"answered", answered_},
                        {"descriptors", usage.descriptors},
                        {"rss_kb", usage.rss_kb},
                        {"cut_short", connections_.size()}});
}

}  // namespace

int run_server(const ServerOptions& options) {
  // The lab may be killed outright; its servers go with it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Ctrl-C reaches the whole foreground group; the lab decides what becomes of its servers.
  std::signal(SIGINT, SIG_IGN);
  Server server{options};
  if (auto done = server.run(); !done) {
    // Not said twice: the lab prints what it is told, and when it is gone nobody wants to know.
    if (!server.control().send({{"event", "failed"}, {"why", done.error().text}})) {
      return 1;
    }
    return 1;
  }
  return 0;
}

}  // namespace lab
