// SPDX-License-Identifier: Apache-2.0
// Steering on the kernel that runs, patched or not: it needs none of the patches.
#include "host/steer.hpp"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "support/support.hpp"

namespace reuseport {
namespace {

using test::address;
using test::open_client;
using test::open_listener;

constexpr int many = 64;  // by the hash alone, 2^-64 that one of two listeners gets none

/// Steering is for kernels without the option. A patched one may be built without BTF and then must
/// say so; anywhere else it has to work.
bool refused_for_want_of_btf() {
  const auto ok = SteerProgram::probe();
  return !ok && test::expect_supported() && ok.error().errnum == ENOENT &&
         ok.error().hint.find("CONFIG_DEBUG_INFO_BTF") != std::string::npos;
}

class SteerTest : public test::NetNsTest, public ::testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    NetNsTest::SetUp();
    if (refused_for_want_of_btf()) {
      GTEST_SKIP() << "patched kernel without BTF";
    }
    ASSERT_TRUE(SteerProgram::probe()) << SteerProgram::probe().error().message();
    old_ = open_listener(address(GetParam()));
    at_ = test::local_address(old_.get());
    stay_ = open_listener(at_);
  }
  void connect_many(int n = many) {
    for (int i = 0; i < n; i++) {
      ASSERT_EQ(test::try_connect(at_), 0);
    }
  }
  Result<SteerProgram> start() {
    return SteerProgram::start(Protocol::tcp, old_.get(), {stay_.get()});
  }
  std::optional<AttachedProgram> attached() {
    const auto found = attached_program(Protocol::tcp, *socket_cookie(stay_.get()));
    EXPECT_TRUE(found) << found.error().message();
    return found ? *found : std::nullopt;
  }

  Fd old_;
  Fd stay_;
  test::Address at_;
};

INSTANTIATE_TEST_SUITE_P(Families, SteerTest, ::testing::Values("127.0.0.1", "::1"));

TEST_P(SteerTest, all_new_connections_go_to_those_that_stay) {
  connect_many();
  EXPECT_GT(test::accept_all(old_.get()), 0);
  EXPECT_GT(test::accept_all(stay_.get()), 0);

  auto steer = start();
  ASSERT_TRUE(steer) << steer.error().message();
  EXPECT_TRUE(attached());
  connect_many();
  EXPECT_EQ(test::accept_all(old_.get()), 0);
  EXPECT_EQ(test::accept_all(stay_.get()), many);

  ASSERT_TRUE(steer->stop());
  EXPECT_FALSE(attached());
  connect_many();
  EXPECT_GT(test::accept_all(old_.get()), 0);
}

TEST_P(SteerTest, destruction_detaches) {
  {
    const auto steer = start();
    ASSERT_TRUE(steer);
    EXPECT_TRUE(attached());
  }
  EXPECT_FALSE(attached());
}

TEST_P(SteerTest, a_newcomer_can_be_added_and_one_that_leaves_is_passed_over) {
  auto steer = start();
  ASSERT_TRUE(steer);
  Fd third = open_listener(at_);
  connect_many();
  EXPECT_EQ(test::accept_all(third.get()), 0) << "not named, not chosen";
  ASSERT_TRUE(steer->add(third.get()));
  ASSERT_TRUE(steer->add(third.get())) << "again is no error";
  EXPECT_EQ(*steer->renew(), 2U);
  test::accept_all(stay_.get());
  connect_many();
  EXPECT_GT(test::accept_all(stay_.get()), 0);
  EXPECT_GT(test::accept_all(third.get()), 0);

  stay_.reset();  // the first slot is a gap now
  EXPECT_EQ(*steer->renew(), 1U);
  connect_many();
  EXPECT_EQ(test::accept_all(third.get()), many);
  EXPECT_EQ(test::accept_all(old_.get()), 0);

  const Fd fourth = open_listener(at_);
  ASSERT_TRUE(steer->add(fourth.get()));
  EXPECT_EQ(*steer->renew(), 2U);
}

TEST_P(SteerTest, when_all_that_stay_are_gone_the_old_one_serves_again) {
  auto steer = start();
  ASSERT_TRUE(steer);
  stay_.reset();
  connect_many(8);
  EXPECT_EQ(test::accept_all(old_.get()), 8);
  EXPECT_EQ(*steer->renew(), 0U);
}

TEST_P(SteerTest, without_renewal_the_program_gives_up) {
  auto steer = start();
  ASSERT_TRUE(steer);
  // what a killed tool leaves behind works as before once the lease is over
  EXPECT_TRUE(test::eventually(
      [&] {
        connect_many(8);
        test::accept_all(stay_.get());
        return test::accept_all(old_.get()) > 0;
      },
      SteerProgram::lease + std::chrono::seconds(5)));
  ASSERT_TRUE(steer->renew());
  connect_many();
  EXPECT_EQ(test::accept_all(old_.get()), 0);
}

TEST_P(SteerTest, somebody_elses_classic_program_is_never_replaced) {
  std::array<sock_filter, 1> code = {{{BPF_RET | BPF_K, 0, 0, 0}}};
  const sock_fprog prog{code.size(), code.data()};
  ASSERT_EQ(::setsockopt(stay_.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &prog, sizeof(prog)),
            0);
  const auto steer = start();
  ASSERT_FALSE(steer);
  EXPECT_EQ(steer.error().errnum, EBUSY);
  ASSERT_TRUE(attached());
  EXPECT_EQ(attached()->id, 0U);
  connect_many(8);
  EXPECT_EQ(test::accept_all(old_.get()), 8) << "their program still chooses index 0";
}

TEST_P(SteerTest, one_tool_at_a_time) {
  const auto first = start();
  ASSERT_TRUE(first);
  const auto second = start();
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().errnum, EBUSY);
  EXPECT_TRUE(attached()) << "the first one's is still there";
}

TEST_P(SteerTest, a_program_left_behind_by_a_killed_tool_is_taken_off) {
  ASSERT_TRUE(test::in_child([&] {
    auto steer = start();
    if (!steer) {
      return false;
    }
    ::_exit(0);  // no destructor, as by SIGKILL
  }));
  EXPECT_TRUE(attached());
  const auto steer = start();
  ASSERT_TRUE(steer) << steer.error().message();
  connect_many();
  EXPECT_EQ(test::accept_all(old_.get()), 0);
}

TEST_P(SteerTest, errors_attach_nothing) {
  EXPECT_EQ(SteerProgram::start(Protocol::tcp, old_.get(), {}).error().errnum, EINVAL);
  const Fd alone(::socket(at_.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_FALSE(SteerProgram::start(Protocol::tcp, alone.get(), {stay_.get()}));
  EXPECT_FALSE(SteerProgram::start(Protocol::tcp, old_.get(), {alone.get()}));
  EXPECT_FALSE(SteerProgram::start(Protocol::tcp, old_.get(), {STDERR_FILENO}));
  EXPECT_FALSE(attached());
}

TEST_P(SteerTest, needs_privileges_and_says_which) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to give it up";
  }
  EXPECT_TRUE(test::in_child([&] {
    if (::setresuid(65534, 65534, 65534) != 0) {
      return false;
    }
    const auto ok = SteerProgram::probe();
    EXPECT_EQ(ok.error().errnum, EPERM) << ok.error().message();
    EXPECT_NE(ok.error().hint.find("CAP_BPF"), std::string::npos) << ok.error().message();
    return !::testing::Test::HasFailure();
  }));
}

TEST_P(SteerTest, queue_watch_waits_for_the_handshake_and_the_queue) {
  auto diag = SockDiag::open();
  ASSERT_TRUE(diag);
  const int seconds = 60;
  for (const Fd* fd : {&old_, &stay_}) {
    ASSERT_EQ(::setsockopt(fd->get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds)), 0);
  }
  // half-open requests at both: only those at the old one matter, but nobody can tell
  std::vector<Fd> clients;
  for (int i = 0; i < 16; i++) {
    clients.push_back(open_client(at_));
    ASSERT_EQ(test::connect_result(clients.back().get()), 0);
  }
  auto steer = start();
  ASSERT_TRUE(steer);
  const auto cookie = socket_cookie(old_.get());
  auto all = diag->listeners(Protocol::tcp, at_.port());
  std::erase_if(*all, [&](const DiagSocket& s) { return s.cookie != *cookie; });
  ASSERT_EQ(all->size(), 1U);
  auto watch = QueueWatch::start(*diag, *all);
  ASSERT_TRUE(watch) << watch.error().message();
  EXPECT_EQ(watch->step(*diag)->handshakes, 16U);

  for (const Fd& client : clients) {
    ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  }
  EXPECT_TRUE(test::eventually([&] { return watch->step(*diag)->handshakes == 0; }));
  const auto queued = watch->step(*diag)->queued;
  EXPECT_GT(queued, 0U);
  // new connections go on and are not waited for
  const Fd later = open_client(at_);
  ASSERT_EQ(test::connect_result(later.get()), 0);
  EXPECT_EQ(watch->step(*diag)->handshakes, 0U);
  EXPECT_EQ(test::accept_all(old_.get()), static_cast<int>(queued));
  EXPECT_TRUE(watch->step(*diag)->none());
  old_.reset();
  EXPECT_TRUE(watch->step(*diag)->none()) << "a closed listener has nothing left";
}

class SteerUdpTest : public test::NetNsTest {};

TEST_F(SteerUdpTest, datagrams_go_to_those_that_stay) {
  if (refused_for_want_of_btf()) {
    GTEST_SKIP() << "patched kernel without BTF";
  }
  const Fd old = open_listener(address("127.0.0.1"), SOCK_DGRAM);
  const auto at = test::local_address(old.get());
  const Fd stay = open_listener(at, SOCK_DGRAM);
  auto steer = SteerProgram::start(Protocol::udp, old.get(), {stay.get()});
  ASSERT_TRUE(steer) << steer.error().message();
  const auto read_all = [](const Fd& fd) {
    int n = 0;
    char c = 0;
    while (::recv(fd.get(), &c, 1, MSG_DONTWAIT) == 1) {
      n++;
    }
    return n;
  };
  for (int i = 0; i < many; i++) {
    const Fd client = open_client(at, SOCK_DGRAM);
    ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  }
  EXPECT_EQ(read_all(old), 0);
  EXPECT_EQ(read_all(stay), many);
  ASSERT_TRUE(steer->stop());
  for (int i = 0; i < many; i++) {
    const Fd client = open_client(at, SOCK_DGRAM);
    ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  }
  EXPECT_GT(read_all(old), 0);
}

}  // namespace
}  // namespace reuseport
