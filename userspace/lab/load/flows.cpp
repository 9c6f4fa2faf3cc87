// SPDX-License-Identifier: Apache-2.0
#include "load/flows.hpp"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <queue>

#include "load/loop.hpp"

namespace lab {

FlowState Flow::take(const Reply& reply) {
  if (reply.id != id_ * (long_flow + 1) + sent_) {
    return FlowState::garbled;
  }
  if (sent_ == 1) {
    generation_ = reply.generation;
  } else if (reply.generation != generation_) {
    return FlowState::moved;
  }
  return sent_ == datagrams_ ? FlowState::whole : FlowState::going;
}

namespace {

class FlowLoop final : public LoadLoop {
 public:
  using LoadLoop::LoadLoop;
  void run() override;

 private:
  struct Client {
    Fd fd;
    Flow flow;
    std::int64_t intended = 0;
    std::int64_t started = 0;
    std::uint64_t id = 0;  ///< never reused, so that a stale entry matches nothing
    bool waiting = false;  ///< for an answer
  };
  /// When to send, or to stop waiting for an answer.
  struct Due {
    std::int64_t at;
    std::size_t slot;
    std::uint64_t id;
    std::uint32_t sent;  ///< datagrams of the flow by then
    bool operator<(const Due& other) const { return at > other.at; }  // the earliest on top
  };

  void begin(std::int64_t intended);
  Result<void> connect_from_next_port(const Fd& fd);
  void send_next(std::size_t slot);
  void readable(std::size_t slot, std::int64_t now);
  void end(std::size_t slot, std::uint64_t* count);
  void do_due(std::int64_t now, bool expires);

  std::vector<Client> clients_;
  std::vector<std::size_t> free_;
  std::priority_queue<Due> due_;
  std::uint64_t next_id_ = 1;
  std::uint16_t next_port_ = first_port;
  std::size_t open_ = 0;

  static constexpr std::uint16_t first_port = 1024;
};

/// Uses ports in turn: the kernel might choose the port of a flow that has just ended, and the
/// server would take it for that flow.
Result<void> FlowLoop::connect_from_next_port(const Fd& fd) {
  sockaddr_in own{};
  own.sin_family = AF_INET;
  for (int tries = 0; tries < 1000; ++tries) {
    own.sin_port = htons(next_port_);
    next_port_ = next_port_ == UINT16_MAX ? first_port : static_cast<std::uint16_t>(next_port_ + 1);
    if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0) {
      return connect(fd.get(), reinterpret_cast<const sockaddr*>(&server_), sizeof server_) == 0
                 ? Result<void>{}
                 : sys_error("load: connect", errno);
    }
    if (errno != EADDRINUSE) {
      break;
    }
  }
  return sys_error("load: bind", errno, "lower --rate");
}

void FlowLoop::begin(std::int64_t intended) {
  Fd fd{socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
  if (!fd) {
    return no_socket(errno, intended);
  }
  if (auto connected = connect_from_next_port(fd); !connected) {
    failure = connected.error();
    return;
  }
  std::size_t slot = clients_.size();
  if (free_.empty()) {
    clients_.emplace_back();
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  auto& client = clients_[slot];
  client.id = next_id_++;
  const bool is_long = std::bernoulli_distribution{share_of_long_flows}(random_);
  client.flow = Flow{client.id, is_long ? long_flow : short_flow};
  client.intended = intended;
  client.started = now_ns();
  client.fd = std::move(fd);
  result.late.add(client.started - intended);
  ++open_;
  ++result.connections;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = slot;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, client.fd.get(), &event) < 0) {
    fail("epoll_ctl", errno, "");
    return end(slot, nullptr);
  }
  publish();
  send_next(slot);
}

void FlowLoop::send_next(std::size_t slot) {
  auto& client = clients_[slot];
  const Request request = client.flow.next();
  client.waiting = true;
  due_.push({now_ns() + spec_.timeout_ns, slot, client.id, client.flow.sent()});
  if (send(client.fd.get(), &request, sizeof request, MSG_NOSIGNAL) < 0) {
    if (errno == ECONNREFUSED) {
      return end(slot, &result.refused);
    }
    fail("send", errno, "");
    end(slot, nullptr);
  }
}

/// Ends a flow and counts it.
void FlowLoop::end(std::size_t slot, std::uint64_t* count) {
  auto& client = clients_[slot];
  // The lab forks: a child may hold a copy of this socket for a moment.
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, client.fd.get(), nullptr);
  client.fd.reset();
  client.id = 0;
  free_.push_back(slot);
  --open_;
  if (count != nullptr) {
    ++*count;
    publish();
  }
}

void FlowLoop::readable(std::size_t slot, std::int64_t now) {
  auto& client = clients_[slot];
  Reply reply{};
  const auto size = recv(client.fd.get(), &reply, sizeof reply, 0);
  if (size < 0) {
    if (errno == ECONNREFUSED) {
      end(slot, &result.refused);
    } else if (errno != EAGAIN && errno != EINTR) {
      fail("recv", errno, "");
      end(slot, nullptr);
    }
    return;
  }
  if (size != static_cast<ssize_t>(sizeof reply) || !client.waiting) {
    return end(slot, &result.garbled);
  }
  client.waiting = false;
  const auto state = client.flow.take(reply);
  if (client.flow.sent() == 1 && state != FlowState::garbled) {
    result.connect.add(now - client.intended);
    result.first_byte.add(now - client.intended);
    answers.push_back({client.started, reply.generation});
  }
  switch (state) {
    case FlowState::whole: return end(slot, &result.answered);
    case FlowState::moved: return end(slot, &result.moved);
    case FlowState::garbled: return end(slot, &result.garbled);
    case FlowState::going: break;
  }
  due_.push({now + flow_gap_ns, slot, client.id, client.flow.sent()});
}

void FlowLoop::do_due(std::int64_t now, bool expires) {
  std::vector<Due> later;
  while (!due_.empty() && due_.top().at <= now) {
    const auto due = due_.top();
    due_.pop();
    const auto& client = clients_[due.slot];
    if (client.id != due.id || client.flow.sent() != due.sent) {
      continue;
    }
    if (!client.waiting) {
      send_next(due.slot);
    } else if (expires) {
      end(due.slot, &result.timed_out);
    } else {
      later.push_back(due);
    }
  }
  for (const auto& due : later) {
    due_.push(due);
  }
}

void FlowLoop::run() {
  next_start_ = now_ns();
  auto before = next_start_;
  pthread_setname_np(pthread_self(), Load::thread_name);  // from here on, stalls are noticed
  std::array<epoll_event, 256> events{};
  while (!failure && (may_begin() || open_ > 0)) {
    std::int64_t wait =
        std::min(begin_due(before, [this](std::int64_t intended) { begin(intended); }), stop_poll);
    if (!due_.empty()) {
      wait = std::min(wait, std::max<std::int64_t>(due_.top().at - before, 0));
    }
    const auto timeout = to_timespec(wait);
    const int count = epoll_pwait2(epoll_.get(), events.data(), events.size(), &timeout, nullptr);
    if (count < 0 && errno != EINTR) {
      fail("epoll_pwait2", errno, "needs Linux 5.11");
    }
    const auto now = now_ns();
    for (int i = 0; i < count; ++i) {
      readable(static_cast<std::size_t>(events.at(static_cast<std::size_t>(i)).data.u64), now);
    }
    result.longest_stall_ns = std::max(result.longest_stall_ns, now - before - wait);
    // After a stall, an answer that came in time may not have been read: that is not a loss.
    do_due(before, count < static_cast<int>(events.size()));
    before = now;
  }
}

}  // namespace

std::unique_ptr<LoadLoop> make_flow_loop(const LoadSpec& spec, Load& load) {
  return std::make_unique<FlowLoop>(spec, load);
}

}  // namespace lab
