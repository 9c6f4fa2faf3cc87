// SPDX-License-Identifier: Apache-2.0
#include "server/server.hpp"

#include <fcntl.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <option/option.hpp>
#include <optional>
#include <unordered_map>

#include <reuseport/reuseport.hpp>

#include "load/load.hpp"
#include "server/control.hpp"
#include "server/listeners.hpp"

namespace lab {
namespace {

/// A client that never ends its connection must not keep an old generation alive forever.
constexpr std::int64_t finish_bound = 15 * one_second;
/// How often the number of flows is read, and for how long at most.
constexpr std::int64_t flows_poll = 50 * one_ms;
constexpr std::int64_t flows_bound = 60 * one_second;

Result<std::uint64_t> cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  if (getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) < 0) {
    return sys_error("getsockopt(SO_COOKIE)", errno);
  }
  return cookie;
}

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
  Result<void> have_taken_in();
  int take_all(int listener);
  int accept_all(int listener);
  int answer_all(int fd);
  void serve(int fd);
  void finish(int fd) { connections_.erase(fd); }
  Result<void> obey();
  Result<void> close_all();
  Result<void> go_standby();
  Result<void> wait_for_flows();
  [[nodiscard]] Result<bool> flows_are_over() const;
  Result<void> start_drain();
  Result<void> turn();
  void look_settled(const std::vector<int>& fds);
  Result<void> say_closed(const std::string& outcome, std::uint64_t left);

  ServerOptions options_;
  Control control_;
  Fd epoll_;
  std::vector<Fd> listeners_;
  std::unordered_map<int, Connection> connections_;
  std::vector<int> listener_fds_;
  Fd handover_;
  std::optional<reuseport::Drain> drain_;
  std::int64_t flows_until_ = 0;  ///< until then it is waited for flows; 0: it is not
  std::int64_t cut_over_ = 0;     ///< from then on nothing new comes; 0: not yet
  bool closed_ = false;           ///< all listeners
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
  if (options_.udp && wants_bpf(options_.method)) {
    return have_taken_in();
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

/// UDP sockets get into the tables of BPF by their descriptors: `reuseportctl restart` does this
/// for a server when it is ready.
Result<void> Server::have_taken_in() {
  std::unordered_map<std::uint64_t, int> own;
  for (const int fd : listener_fds_) {
    const auto cookie = cookie_of(fd);
    if (!cookie) {
      return tl::unexpected(cookie.error());
    }
    own[*cookie] = fd;
  }
  const auto taken =
      reuseport::option::adopt_newcomers([&](const std::vector<std::uint64_t>& cookies) {
        std::vector<Fd> found(cookies.size());
        for (std::size_t i = 0; i < cookies.size(); ++i) {
          if (const auto mine = own.find(cookies[i]); mine != own.end()) {
            found[i].reset(fcntl(mine->second, F_DUPFD_CLOEXEC, 0));
          }
        }
        return found;
      });
  return taken ? Result<void>{} : error(taken.error().message());
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

int Server::take_all(int listener) {
  return options_.udp ? answer_all(listener) : accept_all(listener);
}

/// Datagrams, each with its answer.
int Server::answer_all(int fd) {
  for (int count = 0;; ++count) {
    sockaddr_in from{};
    socklen_t size = sizeof from;
    Request request{};
    const auto got =
        recvfrom(fd, &request, sizeof request, 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (got < 0) {
      return count;
    }
    ++accepted_;
    const Reply reply{request.id, options_.generation, static_cast<std::uint32_t>(getpid())};
    if (sendto(fd, &reply, sizeof reply, 0, reinterpret_cast<const sockaddr*>(&from), size) ==
        static_cast<ssize_t>(sizeof reply)) {
      ++answered_;
    }
  }
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
  if (!*message || (*message)->json.value("do", "") != "drain" || drain_ || flows_until_ != 0 ||
      closed_) {
    return {};
  }
  if (options_.method == RestartMethod::option_flows) {
    return go_standby();
  }
  return drains(options_.method) ? start_drain() : close_all();
}

/// The methods other than the drain.
Result<void> Server::close_all() {
  for (auto& listener : listeners_) {
    if (shares_sockets(options_.method)) {
      // An epoll set watches the socket, not the descriptor: another process keeps it open.
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener.get(), nullptr);
    }
    if (sweeps(options_.method)) {
      take_all(listener.get());
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

/// New flows go to the newcomer from here on; those of before stay.
Result<void> Server::go_standby() {
  for (const int fd : listener_fds_) {
    if (auto set = reuseport::set_mode(fd, reuseport::Mode::standby); !set) {
      return error(set.error().message());
    }
  }
  flows_until_ = now_ns() + flows_bound;
  return wait_for_flows();
}

/// Whether no flow of this process lives, as far as it is known.
Result<bool> Server::flows_are_over() const {
  const auto flows = reuseport::option::flows_here();
  if (!flows || !*flows) {
    return error(flows ? "UDP flows are not recorded any more" : flows.error().message());
  }
  for (const int fd : listener_fds_) {
    const auto cookie = cookie_of(fd);
    if (!cookie) {
      return tl::unexpected(cookie.error());
    }
    const auto live = (*flows)->of.find(*cookie);
    const auto known = (*flows)->known_for.find(*cookie);
    if (live == (*flows)->of.end() || live->second > 0 || known == (*flows)->known_for.end() ||
        known->second < (*flows)->idle) {
      return false;
    }
  }
  return true;
}

Result<void> Server::wait_for_flows() {
  look_settled(listener_fds_);
  wake_ = now_ns() + flows_poll;
  if (now_ns() < flows_until_) {
    const auto over = cut_over_ == 0 ? Result<bool>{false} : flows_are_over();
    if (!over) {
      return tl::unexpected(over.error());
    }
    if (!*over) {
      return {};
    }
    flows_until_ = 0;
    return start_drain();
  }
  for (auto& listener : listeners_) {
    listener.reset();
  }
  const bool settled = cut_over_ != 0;
  cut_over_ = settled ? cut_over_ : now_ns();
  return say_closed(settled ? "closed with flows" : "unsettled", 0);
}

/// The library's drain, with its fallbacks; without them if BPF provides the option.
Result<void> Server::start_drain() {
  reuseport::DrainOptions options;
  if (wants_bpf(options_.method)) {
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

/// Finds the instant after which the kernel promises that nothing new arrives.
void Server::look_settled(const std::vector<int>& fds) {
  if (cut_over_ != 0 || (drain_ && drain_->report().method != reuseport::Method::option)) {
    return;
  }
  const bool settled = std::all_of(fds.begin(), fds.end(), [](int fd) {
    const auto info = reuseport::get_info(fd);
    return info && info->settled();
  });
  cut_over_ = settled ? now_ns() : 0;
}

/// One turn of the drain.
Result<void> Server::turn() {
  for (;;) {
    look_settled(drain_->open_fds());
    const auto step = drain_->step();
    if (step.action == reuseport::Action::accept_more) {
      for (const int fd : step.fds) {
        take_all(fd);
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
    } else if (drain_ || flows_until_ != 0) {
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
        take_all(fd);
      } else {
        serve(fd);
      }
    }
    if (flows_until_ != 0 && !closed_ && now_ns() >= wake_) {
      if (auto waited = wait_for_flows(); !waited) {
        return waited;
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
  // The lab may be killed by SIGKILL; its servers end with it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Ctrl-C reaches the whole foreground group; the lab decides about its servers.
  std::signal(SIGINT, SIG_IGN);
  Server server{options};
  if (auto done = server.run(); !done) {
    // Do not report it twice: the lab prints what it is told.
    if (!server.control().send({{"event", "failed"}, {"why", done.error().text}})) {
      return 1;
    }
    return 1;
  }
  return 0;
}

}  // namespace lab
