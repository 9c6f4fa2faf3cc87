// SPDX-License-Identifier: Apache-2.0
#include "reuseport/probe.hpp"

#include <sys/resource.h>
#include <time.h>  // NOLINT(modernize-deprecated-headers): clock_gettime(), which ctime lacks

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>

#include "support/support.hpp"

namespace reuseport {
namespace {

class Probe : public test::NetNsTest {};

TEST_F(Probe, gives_the_answer_the_runner_expects) {
  const ProbeResult found = probe();
  EXPECT_EQ(to_string(found.support), test::expected_support()) << to_string(found.step);
  EXPECT_EQ(found.errnum, test::expect_supported() ? 0 : ENOPROTOOPT);
  EXPECT_EQ(found.supported(), test::expect_supported());
}

TEST_F(Probe, cached_answer_is_the_same) {
  const ProbeResult fresh = probe_now();
  for (int i = 0; i < 2; ++i) {
    const ProbeResult cached = probe();
    EXPECT_EQ(cached.support, fresh.support);
    EXPECT_EQ(cached.step, fresh.step);
    EXPECT_EQ(cached.errnum, fresh.errnum);
  }
}

/// The CPU time of many calls of @p call, in ns, if that is less than @p least.
void time_calls(std::int64_t& least, const std::function<bool()>& call) {
  constexpr int calls = 200;
  const auto now = [] {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  const std::int64_t start = now();
  int answered = 0;
  for (int i = 0; i < calls; ++i) {
    answered += call() ? 1 : 0;
  }
  least = std::min(least, now() - start);
  EXPECT_EQ(answered, calls);
}

// Ratios within one run, each of the least of many turns, so that a busy or emulated machine
// changes little. bench/probe_bench measures.
TEST_F(Probe, costs_a_few_sockets_and_then_next_to_nothing) {
  std::int64_t socket = std::numeric_limits<std::int64_t>::max();
  std::int64_t first = socket;
  std::int64_t cached = socket;
  const bool expected = test::expect_supported();
  for (int turn = 0; turn < 20; ++turn) {
    time_calls(socket, [] { return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)).valid(); });
    time_calls(first, [expected] { return probe_now().supported() == expected; });
    time_calls(cached, [expected] { return probe().supported() == expected; });
  }
  EXPECT_LT(first, 8 * socket);
  EXPECT_LT(cached, socket / 20);
}

// No other option must pass for this one.
TEST_F(Probe, no_other_option_passes) {
  int answering = 0;
  for (int number = 0; number < 256; ++number) {
    const ProbeResult found = detail::probe_number(number);
    EXPECT_FALSE(found.supported()) << "SOL_SOCKET option " << number;
    answering += found.support == Support::number_taken ? 1 : 0;
  }
  EXPECT_GT(answering, 40) << "Linux 6.1 has more readable options than that";
}

TEST_F(Probe, tells_a_taken_number_apart) {
  // An int, a struct of the same length as ours, and a write-only option.
  EXPECT_EQ(detail::probe_number(SO_KEEPALIVE).support, Support::number_taken);
  EXPECT_EQ(detail::probe_number(SO_KEEPALIVE).step, ProbeStep::answer_length);
  EXPECT_EQ(detail::probe_number(SO_MEMINFO).support, Support::number_taken);
  EXPECT_EQ(detail::probe_number(SO_MEMINFO).step, ProbeStep::answer_value);
}

TEST_F(Probe, blocked_by_seccomp) {
  for (const int errnum : {EPERM, EACCES, ENOSYS}) {
    EXPECT_TRUE(test::in_child([errnum] {
      EXPECT_TRUE(test::deny_option(errnum));
      const ProbeResult found = probe_now();
      EXPECT_STREQ(to_string(found.support), "blocked");
      EXPECT_EQ(found.errnum, errnum);
      EXPECT_NE(std::string(found.why()).find("seccomp"), std::string::npos);
      return true;
    }));
  }
}

TEST_F(Probe, shortage_is_an_error_and_not_kept) {
  EXPECT_TRUE(test::in_child([] {
    rlimit before{};
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    detail::probe_cache = 0;
    const ProbeResult found = probe();
    EXPECT_STREQ(to_string(found.support), "error");
    EXPECT_EQ(found.errnum, EMFILE);
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(probe().supported(), test::expect_supported());
    return true;
  }));
}

TEST_F(Probe, leaves_no_descriptor_behind) {
  const int before = ::dup(0);
  ::close(before);
  (void)probe_now();
  (void)probe_behaviour();
  const int after = ::dup(0);
  ::close(after);
  EXPECT_EQ(before, after);
}

TEST_F(Probe, behaviour_on_loopback) {
  const ProbeResult found = probe_behaviour();
  EXPECT_TRUE(test::expect_supported() ? found.supported()
                                       : found.support == Support::not_in_kernel)
      << to_string(found.step) << " errno " << found.errnum;
}

// An option that is accepted but does nothing must be noticed: SO_KEEPALIVE simulates it.
TEST_F(Probe, behaviour_catches_an_option_that_does_nothing) {
  for (const int family : {AF_INET, AF_INET6}) {
    const ProbeResult found = detail::probe_loopback(SO_KEEPALIVE, family, 64);
    EXPECT_EQ(found.support, Support::number_taken);
    EXPECT_EQ(found.step, ProbeStep::behaviour);
  }
}

TEST_F(Probe, behaviour_without_loopback_is_an_error) {
  ASSERT_TRUE(test::set_lo(false));
  const ProbeResult found = detail::probe_loopback(SO_KEEPALIVE, AF_INET, 4);
  EXPECT_EQ(found.support, Support::error);
  EXPECT_EQ(found.step, ProbeStep::behaviour);
  EXPECT_NE(std::string(found.why()).find("is lo up"), std::string::npos);
}

TEST(ProbeResult, every_answer_has_a_name_and_a_reason) {
  std::set<std::string> names;
  std::set<std::string> reasons;
  for (const Support support :
       {Support::supported, Support::supported_by_bpf, Support::not_in_kernel,
        Support::number_taken, Support::blocked, Support::error}) {
    names.insert(to_string(support));
    reasons.insert(ProbeResult{support, ProbeStep::get, 0}.why());
    for (const int errnum : {0, EPERM, 4095}) {
      const ProbeResult result{support, ProbeStep::bad_value, errnum};
      const ProbeResult back = detail::probe_unpack(detail::probe_pack(result));
      EXPECT_EQ(back.support, result.support);
      EXPECT_EQ(back.step, result.step);
      EXPECT_EQ(back.errnum, result.errnum);
      EXPECT_NE(detail::probe_pack(result), 0U) << "0 means: not asked";
    }
  }
  EXPECT_EQ(names.size(), 6U);
  EXPECT_EQ(reasons.size(), 6U);
}

}  // namespace
}  // namespace reuseport
