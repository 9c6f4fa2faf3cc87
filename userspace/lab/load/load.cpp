// SPDX-License-Identifier: Apache-2.0
#include "load/load.hpp"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <limits>

#include "load/loop.hpp"
#include "net/netns.hpp"

namespace lab {

std::uint64_t count_wrong_generation(const std::vector<Answer>& answers,
                                     const std::map<std::uint32_t, std::int64_t>& cut_over) {
  std::uint64_t wrong = 0;
  for (const auto& answer : answers) {
    const auto cut = cut_over.find(answer.generation);
    if (cut != cut_over.end() && answer.started_ns > cut->second) {
      ++wrong;
    }
  }
  return wrong;
}

namespace {

/// To what the process may have.
void raise_descriptor_limit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
}

}  // namespace

Result<void> LoadLoop::prepare() {
  server_.sin_family = AF_INET;
  server_.sin_port = htons(spec_.port);
  if (inet_pton(AF_INET, spec_.address.c_str(), &server_.sin_addr) != 1) {
    return error(fmt::format("load: '{}' is not an IPv4 address", spec_.address));
  }
  epoll_ = Fd{epoll_create1(EPOLL_CLOEXEC)};
  if (!epoll_) {
    return sys_error("epoll_create1", errno);
  }
  raise_descriptor_limit();
  return {};
}

namespace {

class ConnectionLoop final : public LoadLoop {
 public:
  using LoadLoop::LoadLoop;
  Result<void> prepare() override;
  void run() override;

 private:
  enum class Phase : std::uint8_t { connecting, waiting };
  struct Connection {
    Fd fd;
    Phase phase = Phase::connecting;
    std::int64_t intended = 0;
    std::int64_t started = 0;
    std::uint64_t id = 0;  ///< never reused, so that a stale deadline matches nothing
    std::array<char, sizeof(Reply)> reply{};
    std::size_t got = 0;
  };
  struct Deadline {
    std::int64_t at;
    std::size_t slot;
    std::uint64_t id;
  };
  std::int64_t begin_what_is_due(std::int64_t now);
  void begin(std::int64_t intended);
  bool take_events(std::int64_t wait);
  void established(std::size_t slot, std::int64_t now);
  void readable(std::size_t slot, std::int64_t now);
  void broken(std::size_t slot, int code);
  void answer(std::size_t slot);
  void end(std::size_t slot, std::uint64_t* count);
  void expire(std::int64_t now);

  std::vector<Connection> slots_;
  std::vector<std::size_t> free_;
  std::deque<Deadline> deadlines_;
  std::uint64_t next_id_ = 1;
  std::size_t open_ = 0;
};

Result<void> ConnectionLoop::prepare() {
  if (auto prepared = LoadLoop::prepare(); !prepared) {
    return prepared;
  }
  if (spec_.connections != 0) {
    answers.reserve(spec_.connections);
  }
  return {};
}

/// @return nanoseconds until the next one is due.
std::int64_t ConnectionLoop::begin_what_is_due(std::int64_t now) {
  if (spec_.rate > 0) {
    return begin_due(now, [this](std::int64_t intended) { begin(intended); });
  }
  while (may_begin() && open_ < spec_.concurrency) {
    begin(now);
  }
  return std::numeric_limits<std::int64_t>::max();
}

void ConnectionLoop::begin(std::int64_t intended) {
  Fd fd{socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  if (!fd) {
    return no_socket(errno, intended);
  }

  std::size_t slot = 0;
  if (free_.empty()) {
    slot = slots_.size();
    slots_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  auto& connection = slots_[slot];
  connection.phase = Phase::connecting;
  connection.intended = intended;
  connection.started = now_ns();
  if (spec_.rate > 0) {
    result.late.add(connection.started - intended);
  }
  connection.id = next_id_++;
  connection.got = 0;
  ++open_;
  ++result.connections;
  publish();

  const int raw = fd.get();
  connection.fd = std::move(fd);
  const bool refused_at_once =
      connect(raw, reinterpret_cast<const sockaddr*>(&server_), sizeof server_) < 0 &&
      errno != EINPROGRESS;
  const int code = errno;
  deadlines_.push_back({intended + spec_.timeout_ns, slot, connection.id});
  if (refused_at_once) {
    if (code == ECONNREFUSED) {
      return end(slot, &result.refused);
    }
    fail("connect", code, code == EADDRNOTAVAIL ? "out of ports: lower --rate" : "");
    return end(slot, nullptr);
  }
  epoll_event event{};
  event.events = EPOLLOUT | EPOLLIN | EPOLLRDHUP;
  event.data.u64 = slot;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, raw, &event) < 0) {
    fail("epoll_ctl", errno, "");
    return end(slot, nullptr);
  }
}

/// Ends a connection and counts it.
void ConnectionLoop::end(std::size_t slot, std::uint64_t* count) {
  // The lab forks: until its child executes, it holds a copy of this socket, and closing ours would
  // not remove it from the epoll set.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, slots_[slot].fd.get(), nullptr);
  slots_[slot].fd.reset();
  slots_[slot].id = 0;
  free_.push_back(slot);
  --open_;
  if (count == nullptr) {
    return;
  }
  ++*count;
  publish();
}

void ConnectionLoop::broken(std::size_t slot, int code) {
  switch (code) {
    case ECONNREFUSED: return end(slot, &result.refused);
    case ECONNRESET:
    case EPIPE: return end(slot, &result.reset);
    case ETIMEDOUT: return end(slot, &result.timed_out);
    default: fail("connection", code, ""); return end(slot, nullptr);
  }
}

void ConnectionLoop::established(std::size_t slot, std::int64_t now) {
  auto& connection = slots_[slot];
  int code = 0;
  socklen_t size = sizeof code;
  if (getsockopt(connection.fd.get(), SOL_SOCKET, SO_ERROR, &code, &size) < 0) {
    code = errno;
  }
  if (code != 0) {
    return broken(slot, code);
  }
  result.connect.add(now - connection.intended);
  connection.phase = Phase::waiting;
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.u64 = slot;
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
  const Request request{connection.id};
  if (send(connection.fd.get(), &request, sizeof request, MSG_NOSIGNAL) !=
      static_cast<ssize_t>(sizeof request)) {
    return broken(slot, errno);
  }
}

void ConnectionLoop::readable(std::size_t slot, std::int64_t now) {
  auto& connection = slots_[slot];
  const auto size = recv(connection.fd.get(), connection.reply.data() + connection.got,
                         connection.reply.size() - connection.got, 0);
  if (size < 0) {
    if (errno != EAGAIN && errno != EINTR) {
      broken(slot, errno);
    }
    return;
  }
  if (size == 0) {
    return end(slot, &result.unanswered);
  }
  if (connection.got == 0) {
    result.first_byte.add(now - connection.intended);
  }
  connection.got += static_cast<std::size_t>(size);
  if (connection.got == connection.reply.size()) {
    answer(slot);
  }
}

void ConnectionLoop::answer(std::size_t slot) {
  auto& connection = slots_[slot];
  Reply reply{};
  std::memcpy(&reply, connection.reply.data(), sizeof reply);
  if (reply.id != connection.id) {
    return end(slot, &result.garbled);
  }
  answers.push_back({connection.started, reply.generation});
  end(slot, &result.answered);
}

void ConnectionLoop::expire(std::int64_t now) {
  while (!deadlines_.empty() && deadlines_.front().at <= now) {
    const auto due = deadlines_.front();
    deadlines_.pop_front();
    if (slots_[due.slot].id == due.id) {
      end(due.slot, &result.timed_out);
    }
  }
}

/// Waits, then handles events. @return false if there may be more
bool ConnectionLoop::take_events(std::int64_t wait) {
  std::array<epoll_event, 256> events{};
  const auto timeout = to_timespec(wait);
  const int count = epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr);
  if (count < 0 && errno != EINTR) {
    fail("epoll_pwait2", errno, "needs Linux 5.11");
  }
  const auto now = now_ns();
  for (int i = 0; i < count; ++i) {
    const auto& event = events.at(static_cast<std::size_t>(i));
    const auto slot = static_cast<std::size_t>(event.data.u64);
    if (slots_[slot].phase == Phase::connecting) {
      established(slot, now);
      if (slots_[slot].id == 0 || (event.events & (EPOLLIN | EPOLLERR | EPOLLHUP)) == 0) {
        continue;
      }
    }
    readable(slot, now);
  }
  return count < static_cast<int>(events.size());
}

void ConnectionLoop::run() {
  next_start_ = now_ns();
  auto before = next_start_;
  pthread_setname_np(pthread_self(), Load::thread_name);  // from here on, stalls are noticed
  while (!failure && (may_begin() || open_ > 0)) {
    std::int64_t wait = std::min(begin_what_is_due(before), stop_poll);
    if (!deadlines_.empty()) {
      wait = std::min(wait, std::max<std::int64_t>(deadlines_.front().at - before, 0));
    }
    const bool all = take_events(wait);
    const auto now = now_ns();
    result.longest_stall_ns = std::max(result.longest_stall_ns, now - before - wait);
    // After a stall, an answer that came in time may not have been read: that is not a timeout.
    if (all) {
      expire(before);
    }
    before = now;
  }
}

}  // namespace

Load::Load() = default;

Result<std::unique_ptr<Load>> Load::start(const LoadSpec& spec, int ns) {
  std::unique_ptr<Load> load{new Load};
  load->loop_ =
      spec.udp ? make_flow_loop(spec, *load) : std::make_unique<ConnectionLoop>(spec, *load);
  if (auto ready = load->loop_->prepare(); !ready) {
    return tl::unexpected(ready.error());
  }
  auto* self = load.get();
  load->thread_ = std::thread{[self, ns] {
    if (auto inside = InNamespace::enter(ns)) {
      self->loop_->run();
    } else {
      self->loop_->failure = inside.error();
    }
    self->done_.store(true, std::memory_order_release);
  }};
  return load;
}

Load::~Load() {
  stop_ = true;
  if (thread_.joinable()) {
    thread_.join();
  }
}

Result<LoadResult> Load::finish(const std::map<std::uint32_t, std::int64_t>& cut_over) {
  stop_ = true;
  if (thread_.joinable()) {
    thread_.join();
  }
  if (loop_->failure) {
    return tl::unexpected(*loop_->failure);
  }
  loop_->result.wrong_generation = count_wrong_generation(loop_->answers, cut_over);
  return loop_->result;
}

}  // namespace lab
