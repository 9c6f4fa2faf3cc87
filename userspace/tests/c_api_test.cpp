// SPDX-License-Identifier: Apache-2.0
#include <poll.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "reuseport/reuseport.h"
#include "support/support.hpp"

namespace reuseport {
namespace {

class CApi : public test::NetNsTest {};

reuseport_drain_options sized() {
  reuseport_drain_options options{};
  options.size = sizeof(options);
  return options;
}

TEST_F(CApi, ProbeSaysWhy) {
  const char* why = nullptr;
  const int expected = test::expect_supported() ? REUSEPORT_SUPPORTED : REUSEPORT_NOT_IN_KERNEL;
  EXPECT_EQ(reuseport_probe(&why), expected);
  ASSERT_NE(why, nullptr);
  EXPECT_GT(std::strlen(why), 10U);
  EXPECT_EQ(reuseport_probe(nullptr), expected);
  EXPECT_EQ(reuseport_probe_behaviour(8, nullptr), expected);
}

TEST_F(CApi, ModeAndInfo) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  reuseport_info info{};
  if (!test::expect_supported()) {
    EXPECT_EQ(reuseport_get_mode(fd.get()), -ENOPROTOOPT);
    EXPECT_EQ(reuseport_set_mode(fd.get(), REUSEPORT_MODE_OFF), -ENOPROTOOPT);
    EXPECT_EQ(reuseport_get_info(fd.get(), &info), -ENOPROTOOPT);
  } else {
    EXPECT_EQ(reuseport_get_mode(fd.get()), REUSEPORT_MODE_ON);
    EXPECT_EQ(reuseport_set_mode(fd.get(), 9), -EINVAL);
    EXPECT_EQ(reuseport_set_mode(fd.get(), REUSEPORT_MODE_OFF), 0);
    EXPECT_TRUE(test::eventually([&] {
      return reuseport_get_info(fd.get(), &info) == 0 && reuseport_info_drained(&info) == 1;
    }));
    EXPECT_EQ(info.group_off, 1U);
  }
  EXPECT_EQ(reuseport_get_mode(-1), -EBADF);
}

TEST_F(CApi, InfoDrainedNeedsAllFour) {
  reuseport_info info{};
  info.mode = REUSEPORT_MODE_OFF;
  info.flags = REUSEPORT_SETTLED;
  EXPECT_EQ(reuseport_info_drained(&info), 1);
  info.queued = 1;
  EXPECT_EQ(reuseport_info_drained(&info), 0);
  info.queued = 0;
  info.flags = 0;
  EXPECT_EQ(reuseport_info_drained(&info), 0);
}

TEST_F(CApi, OptionsNotUnderstoodMakeNoDrain) {
  reuseport_drain_options options{};
  EXPECT_EQ(reuseport_drain_new(&options), nullptr) << "no size";
  using Change = void (*)(reuseport_drain_options&);
  const std::array<Change, 5> changes{[](reuseport_drain_options& o) { o.size += 8; },
                                      [](reuseport_drain_options& o) { o.policy = 3; },
                                      [](reuseport_drain_options& o) { o.last_on = 3; },
                                      [](reuseport_drain_options& o) { o.undo_at_deadline = 2; },
                                      [](reuseport_drain_options& o) { o.reserved = 1; }};
  for (const Change change : changes) {
    options = sized();
    change(options);
    EXPECT_EQ(reuseport_drain_new(&options), nullptr);
  }
  reuseport_drain* drain = reuseport_drain_new(nullptr);
  EXPECT_NE(drain, nullptr) << "no options are the defaults";
  reuseport_drain_free(drain);
  reuseport_drain_free(nullptr);
}

// What the callbacks were called with.
struct Calls {
  std::vector<int> asked;
  std::vector<int> closed;
  int shared = 0;
};

TEST_F(CApi, WholeDrain) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(listener.get()));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  ASSERT_TRUE(test::wait_queued(listener.get(), 1));
  Calls calls;
  reuseport_drain_options options = sized();
  options.timeout_ms = 10'000;
  options.poll_ms = 5;
  options.user = &calls;
  options.is_shared = [](int fd, void* user) {
    static_cast<Calls*>(user)->asked.push_back(fd);
    return static_cast<Calls*>(user)->shared;
  };
  options.close = [](int fd, void* user) { static_cast<Calls*>(user)->closed.push_back(fd); };
  reuseport_drain* drain = reuseport_drain_new(&options);
  ASSERT_NE(drain, nullptr);
  EXPECT_EQ(reuseport_drain_start(drain), -EINVAL);
  EXPECT_NE(std::string(reuseport_drain_error(drain)).find("add a listener first"),
            std::string::npos);
  ASSERT_EQ(reuseport_drain_add(drain, listener.get()), 0);
  EXPECT_STREQ(reuseport_drain_error(drain), "");
  if (test::expect_supported()) {
    calls.shared = 1;
    EXPECT_EQ(reuseport_drain_start(drain), -EBUSY);
    calls.shared = -EACCES;
    EXPECT_EQ(reuseport_drain_start(drain), -EACCES);
    calls.shared = 0;
  }
  ASSERT_EQ(reuseport_drain_start(drain), 0);

  int accepted = 0;
  std::uint32_t wait_ms = 0;
  int action = REUSEPORT_WAIT;
  for (int turn = 0; action != REUSEPORT_DONE && turn < 2000; ++turn) {
    action = reuseport_drain_step(drain, &wait_ms);
    EXPECT_LE(wait_ms, 5U);
    if (action == REUSEPORT_ACCEPT_MORE) {
      accepted += test::accept_all(listener.get());
    } else if (action == REUSEPORT_WAIT) {
      (void)::poll(nullptr, 0, static_cast<int>(wait_ms));
    }
  }
  EXPECT_EQ(action, REUSEPORT_DONE);
  EXPECT_EQ(accepted, 1);
  EXPECT_EQ(calls.closed, std::vector<int>{listener.get()});
  reuseport_drain_report report{};
  EXPECT_EQ(reuseport_drain_get_report(drain, &report), 0);
  EXPECT_EQ(report.listeners, 1U);
  EXPECT_EQ(report.queued, 0U);
  if (test::expect_supported()) {
    EXPECT_STREQ(reuseport_outcome_name(report.outcome), "drained");
    EXPECT_STREQ(reuseport_method_name(report.method), "option");
    EXPECT_EQ(report.handshakes, 0U);
    EXPECT_EQ(calls.asked.size(), 3U);
  } else {
    EXPECT_STREQ(reuseport_outcome_name(report.outcome), "swept_and_closed");
    EXPECT_STREQ(reuseport_method_name(report.method), "sweep");
    EXPECT_EQ(report.handshakes, REUSEPORT_UNKNOWN);
    EXPECT_TRUE(calls.asked.empty());
  }
  EXPECT_EQ(reuseport_drain_undo(drain), -ESTALE);
  reuseport_drain_free(drain);
}

TEST_F(CApi, FreeUndoes) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  reuseport_drain* drain = reuseport_drain_new(nullptr);
  ASSERT_EQ(reuseport_drain_add(drain, listener.get()), 0);
  ASSERT_EQ(reuseport_drain_start(drain), 0);
  reuseport_drain_free(drain);
  ASSERT_TRUE(test::is_open(listener.get()));
  EXPECT_EQ(test::try_connect(test::local_address(listener.get())), 0);
}

TEST(CApiNames, UnknownNumbersHaveAName) {
  EXPECT_STREQ(reuseport_support_name(-1), "unknown");
  EXPECT_STREQ(reuseport_support_name(5), "unknown");
  EXPECT_STREQ(reuseport_support_name(REUSEPORT_BLOCKED), "blocked");
  EXPECT_STREQ(reuseport_method_name(5), "unknown");
  EXPECT_STREQ(reuseport_outcome_name(6), "unknown");
  EXPECT_STREQ(reuseport_outcome_name(REUSEPORT_UNDONE), "undone");
}

}  // namespace
}  // namespace reuseport
