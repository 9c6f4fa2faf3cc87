// SPDX-License-Identifier: Apache-2.0
// A drain by BPF steering, as on a kernel without the option; on one with it, seccomp hides it.
#include "host/bpf_steering.hpp"

#include <netinet/tcp.h>
#include <poll.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "host/steer.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

class BpfSteered : public test::NetNsTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    const Status can = SteerProgram::probe();
    if (!can && test::expect_supported() && can.error().errnum == ENOENT) {
      GTEST_SKIP() << "patched kernel without BTF";
    }
    ASSERT_TRUE(can) << can.error().message();
  }
};

INSTANTIATE_TEST_SUITE_P(Families, BpfSteered, ::testing::Values("127.0.0.1", "::1"),
                         [](const auto& ip) { return ip.index == 0 ? "tcp4" : "tcp6"; });

std::unique_ptr<Steering> steering_to(const Fd& newcomer) {
  std::vector<Fd> stay;
  stay.emplace_back(::dup(newcomer.get()));
  return bpf_steering(std::move(stay));
}

// Answers every connection that waits at @p listener.
void serve(int listener) {
  for (Fd one = test::accept_one(listener, std::chrono::milliseconds(1)); one;
       one = test::accept_one(listener)) {
    EXPECT_EQ(::send(one.get(), "x", 1, MSG_NOSIGNAL), 1);
  }
}

bool answered(const test::Address& at) {
  const Fd client = test::open_client(at);
  pollfd readable{.fd = client.get(), .events = POLLIN, .revents = 0};
  char byte = 0;
  return test::connect_result(client.get()) == 0 && ::poll(&readable, 1, 5000) == 1 &&
         ::recv(client.get(), &byte, 1, 0) == 1;
}

// The moment when the program comes off counts too: nothing may come to what is closed by then.
TEST_P(BpfSteered, RestartsUnderLoadLoseNothing) {
  test::without_option([] {
    Fd old = test::open_listener(test::address(GetParam()));
    const test::Address at = test::local_address(old.get());
    std::atomic<bool> enough = false;
    std::atomic<int> asked = 0;
    std::atomic<int> lost = 0;
    std::atomic<int> serving = old.get();
    std::array<std::thread, 4> clients;
    std::atomic<std::size_t> running = clients.size();
    for (std::thread& client : clients) {
      client = std::thread([&] {
        while (!enough) {
          ++(answered(at) ? asked : lost);
        }
        --running;
      });
    }
    // The new server works while the old one drains and its program comes off.
    std::thread server([&] {
      while (running > 0) {
        serve(serving);
      }
    });
    for (int restart = 0; restart < 20; ++restart) {
      Fd newcomer = test::open_listener(at);
      serving = newcomer.get();
      const std::unique_ptr<Steering> steering = steering_to(newcomer);
      Drain drain({.policy = Policy::require, .steering = steering.get()});
      EXPECT_TRUE(drain.add(old.release()));
      EXPECT_TRUE(drain.start());
      EXPECT_TRUE(test::eventually([&] {
        const Step step = drain.step();
        for (const int fd : step.fds) {
          serve(fd);
        }
        return step.action == Action::done;
      }));
      EXPECT_EQ(drain.report().outcome, Outcome::drained);
      old = std::move(newcomer);
      EXPECT_TRUE(test::eventually([&, before = asked + 50] { return asked > before; }));
    }
    enough = true;
    server.join();
    for (std::thread& client : clients) {
      client.join();
    }
    EXPECT_EQ(lost, 0) << "beside " << asked << " that were answered";
    return true;
  });
}

TEST_P(BpfSteered, DrainsWithoutLoss) {
  test::without_option([] {
    Fd old = test::open_listener(test::address(GetParam()));
    const test::Address at = test::local_address(old.get());
    // Stays half-open until it sends something.
    const int wait_seconds = 30;
    EXPECT_EQ(::setsockopt(old.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &wait_seconds, sizeof(int)),
              0);
    const Fd half_open = test::open_client(at);
    EXPECT_EQ(test::connect_result(half_open.get()), 0);
    const Fd newcomer = test::open_listener(at);

    const std::unique_ptr<Steering> steering = steering_to(newcomer);
    Drain drain({.policy = Policy::require, .steering = steering.get()});
    EXPECT_TRUE(drain.add(old.release()));
    const Status started = drain.start();
    EXPECT_TRUE(started) << started.error().message();
    std::vector<Fd> clients;
    for (int i = 0; i < 32; ++i) {
      clients.push_back(test::open_client(at));
      EXPECT_EQ(test::connect_result(clients.back().get()), 0);
    }
    EXPECT_EQ(test::accept_count(newcomer.get(), 32), 32);
    EXPECT_EQ(drain.step().action, Action::wait_until);
    EXPECT_EQ(drain.report().left().handshakes, 1U);

    EXPECT_EQ(::send(half_open.get(), "x", 1, 0), 1);
    int accepted = 0;
    EXPECT_TRUE(test::eventually([&] {
      const Step step = drain.step();
      for (const int fd : step.fds) {
        accepted += test::accept_all(fd);
      }
      return step.action == Action::done;
    }));
    EXPECT_EQ(accepted, 1);
    EXPECT_EQ(drain.report().outcome, Outcome::drained);
    EXPECT_EQ(drain.report().method, Method::steer);
    EXPECT_EQ(test::try_connect(at), 0);
    return true;
  });
}

TEST_P(BpfSteered, UndoGivesConnectionsBack) {
  test::without_option([] {
    const Fd old = test::open_listener(test::address(GetParam()));
    const test::Address at = test::local_address(old.get());
    const Fd newcomer = test::open_listener(at);
    const std::unique_ptr<Steering> steering = steering_to(newcomer);
    Drain drain({.policy = Policy::require, .steering = steering.get()});
    EXPECT_TRUE(drain.add(old.get()));
    EXPECT_TRUE(drain.start());
    EXPECT_TRUE(drain.undo());
    for (int i = 0; i < 64; ++i) {
      EXPECT_EQ(test::try_connect(at), 0);
    }
    EXPECT_TRUE(test::wait_queued(old.get(), 1)) << "64 times past it by chance";
    return true;
  });
}

TEST_P(BpfSteered, NobodyWhoStaysIsAnError) {
  test::without_option([] {
    const Fd old = test::open_listener(test::address(GetParam()));
    const Fd elsewhere = test::open_listener(test::address(GetParam()));
    const std::unique_ptr<Steering> steering = steering_to(elsewhere);
    Drain drain({.policy = Policy::require, .steering = steering.get()});
    EXPECT_TRUE(drain.add(old.get()));
    const Status started = drain.start();
    EXPECT_FALSE(started);
    EXPECT_EQ(started.error().errnum, EADDRNOTAVAIL);
    return true;
  });
}

TEST_P(BpfSteered, NewcomerThatDiesIsNotTakenForDrained) {
  test::without_option([] {
    const Fd old = test::open_listener(test::address(GetParam()));
    const int wait_seconds = 30;
    EXPECT_EQ(::setsockopt(old.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &wait_seconds, sizeof(int)),
              0);
    const test::Address at = test::local_address(old.get());
    const Fd half_open = test::open_client(at);
    EXPECT_EQ(test::connect_result(half_open.get()), 0);
    const Fd newcomer = test::open_listener(at);
    const std::unique_ptr<Steering> steering = steering_to(newcomer);
    Drain drain({.policy = Policy::require, .steering = steering.get()});
    EXPECT_TRUE(drain.add(old.get()));
    EXPECT_TRUE(drain.start());
    EXPECT_EQ(::shutdown(newcomer.get(), SHUT_RDWR), 0);  // as if every copy of it were closed
    EXPECT_TRUE(test::eventually([&] {
      EXPECT_EQ(drain.step().action, Action::wait_until);
      return drain.report().listeners[0].error.has_value();
    }));
    EXPECT_EQ(drain.report().listeners[0].error->errnum, EADDRNOTAVAIL);
    EXPECT_TRUE(drain.undo());
    const auto attached = attached_program(Protocol::tcp, *socket_cookie(old.get()));
    EXPECT_TRUE(attached && !attached->has_value()) << "the old one alone takes it off as well";
    EXPECT_EQ(test::try_connect(at), 0);
    return true;
  });
}

}  // namespace
}  // namespace reuseport
