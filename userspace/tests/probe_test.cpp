// SPDX-License-Identifier: Apache-2.0
#include "reuseport/probe.hpp"

#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
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

/// How many system calls @p call makes: ptrace(2).
int system_calls(const std::function<void()>& call) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    call();
    ::_exit(0);
  }
  int status = 0;
  int calls = 0;
  EXPECT_TRUE(::waitpid(child, &status, 0) == child && WIFSTOPPED(status));
  EXPECT_EQ(::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL),
            0);
  while (WIFSTOPPED(status) && calls < 1000) {
    if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info info{};
      ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info);
      calls += info.op == PTRACE_SYSCALL_INFO_ENTRY ? 1 : 0;
    }
    ::ptrace(PTRACE_SYSCALL, child, nullptr, 0);
    if (::waitpid(child, &status, 0) != child) {
      break;
    }
  }
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "after " << calls << " calls";
  return calls;
}

// Not in time: an emulated or busy machine would decide. bench/probe_bench measures.
TEST_F(Probe, makes_few_system_calls_and_then_none) {
  const int none = system_calls([] {});  // what the end takes
  const int first = system_calls([] { (void)probe_now(); }) - none;
  // socket(), getsockopt(), close(). Where that answers: SO_REUSEPORT, a mode that must be refused,
  // three that are set and read back, and three calls for a Unix socket.
  EXPECT_GE(first, 3);
  EXPECT_LE(first, test::expect_supported() ? 15 : 3);
  (void)probe();
  EXPECT_EQ(system_calls([] { (void)probe(); }) - none, 0);
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
