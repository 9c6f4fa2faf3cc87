// SPDX-License-Identifier: Apache-2.0
// The C functions: struct sizes, null pointers, out of memory, errno. drain_test tests what a drain
// does, through the same functions.
#include <poll.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "reuseport/reuseport.h"
#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace {

// The number of allocations that succeed before memory runs out; -1: all.
int allocations_left = -1;

bool is_short() {
  return allocations_left == 0 || (allocations_left > 0 && allocations_left-- == 0);
}

}  // namespace

// The linker makes the library call these (-Wl,--wrap).
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" {
void* __real_malloc(std::size_t size);
void* __real_reallocarray(void* old, std::size_t count, std::size_t size);
void* __wrap_malloc(std::size_t size) {
  return is_short() ? nullptr : __real_malloc(size);
}
void* __wrap_reallocarray(void* old, std::size_t count, std::size_t size) {
  return is_short() ? nullptr : __real_reallocarray(old, count, size);
}
}
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

namespace reuseport {
namespace {

// A struct with more members than this library knows.
template <typename T>
struct Longer {
  T known{};
  std::array<unsigned char, 16> more{};
};

template <typename T>
T sized() {
  T value{};
  value.size = sizeof(value);
  return value;
}

int new_drain(const void* options) {
  reuseport_drain* drain = nullptr;
  const int result =
      reuseport_drain_new(static_cast<const reuseport_drain_options*>(options), &drain);
  EXPECT_EQ(drain != nullptr, result == 0);
  reuseport_drain_free(drain);
  return result;
}

class Abi : public test::NetNsTest {};

TEST(AbiSize, smaller_options_are_taken) {
  auto options = sized<reuseport_drain_options>();
  for (options.size = 16; options.size < sizeof(options); options.size += sizeof(void*)) {
    EXPECT_EQ(new_drain(&options), 0) << options.size;
  }
  options.policy = REUSEPORT_REQUIRE;
  options.at_deadline = 99;  // beyond the size that is said, so not there
  options.size = 16;
  EXPECT_EQ(new_drain(&options), 0);
  for (const std::size_t size : {std::size_t{0}, std::size_t{8}, std::size_t{17}, SIZE_MAX - 7}) {
    options.size = size;
    EXPECT_EQ(new_drain(&options), size > 4096 && size % 8 == 0 ? -E2BIG : -EINVAL) << size;
  }
}

TEST(AbiSize, larger_options_are_taken_with_a_zero_tail) {
  Longer<reuseport_drain_options> options;
  options.known.size = sizeof(options);
  EXPECT_EQ(new_drain(&options), 0);
  options.more[15] = 1;
  EXPECT_EQ(new_drain(&options), -E2BIG);
  EXPECT_EQ(new_drain(nullptr), 0) << "none are the defaults";
}

TEST(AbiSize, what_is_filled_in_fits) {
  reuseport_drain* drain = nullptr;
  ASSERT_EQ(reuseport_drain_new(nullptr, &drain), 0);
  Longer<reuseport_drain_report> larger;
  larger.known.size = sizeof(larger);
  larger.more.fill(0xff);
  EXPECT_EQ(reuseport_drain_get_report(drain, &larger.known), 0);
  EXPECT_EQ(larger.known.size, sizeof(larger));
  EXPECT_EQ(larger.known.outcome, std::uint32_t{REUSEPORT_NOT_STARTED});
  EXPECT_EQ(larger.more, (std::array<unsigned char, 16>{})) << "unknown is 0";

  reuseport_drain_report smaller{};
  std::memset(&smaller, 0xff, sizeof(smaller));
  smaller.size = offsetof(reuseport_drain_report, timed_out);
  EXPECT_EQ(reuseport_drain_get_report(drain, &smaller), 0);
  EXPECT_EQ(smaller.lossless, 0U);
  EXPECT_EQ(smaller.timed_out, UINT32_MAX) << "not written";
  smaller.size = 8;
  EXPECT_EQ(reuseport_drain_get_report(drain, &smaller), -EINVAL);
  smaller.size = 8192;
  EXPECT_EQ(reuseport_drain_get_report(drain, &smaller), -E2BIG);

  auto listener = sized<reuseport_listener_report>();
  EXPECT_EQ(reuseport_drain_get_listener(drain, 0, &listener), -ENOENT);
  auto step = sized<reuseport_step>();
  EXPECT_EQ(reuseport_drain_step(drain, &step), -EINVAL) << "not started";
  auto error = sized<reuseport_error>();
  EXPECT_EQ(reuseport_drain_get_error(drain, &error), 0);
  EXPECT_EQ(error.error, -EINVAL);
  EXPECT_STREQ(error.call, "step");
  reuseport_drain_free(drain);
}

TEST(AbiInput, options_not_understood_make_no_drain) {
  using Change = void (*)(reuseport_drain_options&);
  const std::array<Change, 8> changes{
      [](reuseport_drain_options& o) { o.policy = 3; },
      [](reuseport_drain_options& o) { o.last_on = 3; },
      [](reuseport_drain_options& o) { o.at_deadline = 3; },
      [](reuseport_drain_options& o) { o.flags = 2; },
      [](reuseport_drain_options& o) { o.timeout_ns = -1; },
      [](reuseport_drain_options& o) { o.poll_ns = INT64_MIN; },
      [](reuseport_drain_options& o) { o.set_mode = [](int, int, void*) { return 0; }; },
      [](reuseport_drain_options& o) {
        o.flags = REUSEPORT_DRAIN_NO_ACCEPT;
        o.policy = REUSEPORT_CLOSE_ONLY;
      }};
  for (const Change change : changes) {
    auto options = sized<reuseport_drain_options>();
    change(options);
    EXPECT_EQ(new_drain(&options), -EINVAL);
  }
}

TEST(AbiInput, null_is_an_error_everywhere) {
  auto step = sized<reuseport_step>();
  auto report = sized<reuseport_drain_report>();
  auto listener = sized<reuseport_listener_report>();
  auto error = sized<reuseport_error>();
  EXPECT_EQ(reuseport_drain_new(nullptr, nullptr), -EINVAL);
  EXPECT_EQ(reuseport_drain_add(nullptr, 0), -EINVAL);
  EXPECT_EQ(reuseport_drain_start(nullptr), -EINVAL);
  EXPECT_EQ(reuseport_drain_step(nullptr, &step), -EINVAL);
  EXPECT_EQ(reuseport_drain_undo(nullptr), -EINVAL);
  EXPECT_EQ(reuseport_drain_get_report(nullptr, &report), -EINVAL);
  EXPECT_EQ(reuseport_drain_get_listener(nullptr, 0, &listener), -EINVAL);
  EXPECT_EQ(reuseport_drain_get_error(nullptr, &error), -EINVAL);
  EXPECT_EQ(reuseport_get_info(0, nullptr), -EINVAL);
  reuseport_drain_free(nullptr);
  reuseport_drain* drain = nullptr;
  ASSERT_EQ(reuseport_drain_new(nullptr, &drain), 0);
  EXPECT_EQ(reuseport_drain_step(drain, nullptr), -EINVAL);
  EXPECT_EQ(reuseport_drain_get_report(drain, nullptr), -EINVAL);
  reuseport_drain_free(drain);
}

TEST_F(Abi, no_memory_is_an_error_and_nothing_else) {
  const Fd fd = test::open_listener(test::address("127.0.0.1"));
  reuseport_drain* drain = nullptr;
  allocations_left = 0;
  EXPECT_EQ(reuseport_drain_new(nullptr, &drain), -ENOMEM);
  allocations_left = -1;
  ASSERT_EQ(reuseport_drain_new(nullptr, &drain), 0);
  int refused = 0;
  for (int enough = 0; enough < 10; ++enough) {
    allocations_left = enough;
    const int added = reuseport_drain_add(drain, fd.get());
    allocations_left = -1;
    if (added == 0) {
      break;
    }
    EXPECT_EQ(added, -ENOMEM);
    ++refused;
  }
  EXPECT_GT(refused, 0);
  EXPECT_EQ(reuseport_drain_add(drain, fd.get()), -EEXIST);
  reuseport_drain_free(drain);
  EXPECT_TRUE(test::is_open(fd.get())) << "free closes nothing";
}

TEST_F(Abi, errno_is_left_alone) {
  reuseport_drain* drain = nullptr;
  reuseport_listen_info info{};
  errno = EDOM;
  EXPECT_EQ(reuseport_get_info(-1, &info), -EBADF);
  EXPECT_EQ(reuseport_set_mode(-1, REUSEPORT_LISTEN_OFF), -EBADF);
  (void)reuseport_probe(nullptr);
  (void)reuseport_probe_behaviour(1, nullptr);
  ASSERT_EQ(reuseport_drain_new(nullptr, &drain), 0);
  EXPECT_EQ(reuseport_drain_add(drain, -1), -EBADF);
  reuseport_drain_free(drain);
  EXPECT_EQ(errno, EDOM);
}

TEST_F(Abi, probe_says_why) {
  const char* why = nullptr;
  const int support = reuseport_probe(&why);
  EXPECT_EQ(reuseport_support_name(static_cast<std::uint32_t>(support)), test::expected_support());
  ASSERT_NE(why, nullptr);
  EXPECT_GT(std::strlen(why), 10U);
  EXPECT_EQ(reuseport_probe(nullptr), support);
  EXPECT_EQ(reuseport_probe_behaviour(8, nullptr), support);
}

// What the callbacks were called with.
struct Calls {
  std::vector<int> asked;
  std::vector<int> closed;
};

TEST_F(Abi, whole_drain) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd client = test::open_client(test::local_address(listener.get()));
  ASSERT_EQ(test::connect_result(client.get()), 0);
  ASSERT_TRUE(test::wait_queued(listener.get(), 1));
  Calls calls;
  auto options = sized<reuseport_drain_options>();
  options.last_on = REUSEPORT_LAST_LEAVE;
  options.timeout_ns = REUSEPORT_MS(10'000);
  options.poll_ns = REUSEPORT_MS(5);
  options.user = &calls;
  options.is_shared = [](int fd, void* user) {
    static_cast<Calls*>(user)->asked.push_back(fd);
    return 0;
  };
  options.close = [](int fd, void* user) { static_cast<Calls*>(user)->closed.push_back(fd); };
  reuseport_drain* drain = nullptr;
  ASSERT_EQ(reuseport_drain_new(&options, &drain), 0);
  EXPECT_EQ(reuseport_drain_start(drain), -EINVAL);
  ASSERT_EQ(reuseport_drain_add(drain, listener.get()), 0);
  ASSERT_EQ(reuseport_drain_start(drain), 0);

  int accepted = 0;
  auto step = sized<reuseport_step>();
  int action = REUSEPORT_WAIT;
  for (int turn = 0; turn < 2000 && (action = reuseport_drain_step(drain, &step)) > 0; ++turn) {
    EXPECT_EQ(step.action, static_cast<std::uint32_t>(action));
    ASSERT_EQ(step.n_fds, 1U);
    EXPECT_EQ(step.fds[0], listener.get());
    EXPECT_LE(step.wait_ns, REUSEPORT_MS(5));
    if (action == REUSEPORT_ACCEPT_MORE) {
      accepted += test::accept_all(listener.get());
    } else {
      (void)::poll(nullptr, 0, 1);
    }
  }
  EXPECT_EQ(action, REUSEPORT_DONE);
  EXPECT_EQ(accepted, 1);
  EXPECT_EQ(calls.closed, std::vector<int>{listener.get()});
  auto report = sized<reuseport_drain_report>();
  EXPECT_EQ(reuseport_drain_get_report(drain, &report), 0);
  EXPECT_EQ(report.listeners, 1U);
  EXPECT_EQ(report.queued, 0U);
  const bool option = test::expect_supported();
  EXPECT_STREQ(reuseport_outcome_name(report.outcome), option ? "drained" : "swept_and_closed");
  EXPECT_STREQ(reuseport_method_name(report.method), option ? "option" : "sweep");
  EXPECT_EQ(report.handshakes, option ? 0 : REUSEPORT_UNKNOWN);
  EXPECT_EQ(report.lossless, option ? 1U : 0U);
  EXPECT_EQ(calls.asked.size(), option ? 1U : 0U);
  EXPECT_EQ(reuseport_drain_undo(drain), -ESTALE);
  reuseport_drain_free(drain);
}

TEST_F(Abi, free_undoes) {
  const Fd listener = test::open_listener(test::address("127.0.0.1"));
  const Fd newcomer = test::open_listener(test::local_address(listener.get()));
  reuseport_drain* drain = nullptr;
  ASSERT_EQ(reuseport_drain_new(nullptr, &drain), 0);
  ASSERT_EQ(reuseport_drain_add(drain, listener.get()), 0);
  ASSERT_EQ(reuseport_drain_start(drain), 0);
  reuseport_drain_free(drain);
  ASSERT_TRUE(test::is_open(listener.get()));
  reuseport_listen_info info{};
  EXPECT_EQ(reuseport_get_info(listener.get(), &info), test::expect_supported() ? 0 : -ENOPROTOOPT);
  EXPECT_EQ(info.mode, std::uint32_t{REUSEPORT_LISTEN_ON});
}

TEST(AbiNames, unknown_numbers_have_a_name) {
  EXPECT_STREQ(reuseport_support_name(6), "unknown");
  EXPECT_STREQ(reuseport_support_name(REUSEPORT_BLOCKED), "blocked");
  EXPECT_STREQ(reuseport_support_name(REUSEPORT_SUPPORTED_BY_BPF), "supported_by_bpf");
  EXPECT_STREQ(reuseport_method_name(5), "unknown");
  EXPECT_STREQ(reuseport_outcome_name(0), "not_started");
  EXPECT_STREQ(reuseport_outcome_name(10), "unknown");
  EXPECT_STREQ(reuseport_outcome_name(REUSEPORT_UNDONE), "undone");
  EXPECT_STREQ(reuseport_version(), "1.0.0");
  for (const int error : {ENOPROTOOPT, EOPNOTSUPP, EINVAL, EPROTO, EPERM, EBUSY, EAGAIN, EBADF}) {
    EXPECT_STREQ(reuseport_hint(error), reuseport_hint(-error));
    EXPECT_STRNE(reuseport_hint(error), "");
  }
  EXPECT_STREQ(reuseport_hint(ERANGE), "");
}

}  // namespace
}  // namespace reuseport
