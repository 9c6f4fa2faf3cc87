// SPDX-License-Identifier: Apache-2.0
// What a drain does without the option. Runs on every kernel: if the option exists, a seccomp
// filter in a child hides it.
#include <linux/sock_diag.h>
#include <sys/resource.h>

#include <array>
#include <cstdint>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using std::chrono::milliseconds;

class DrainFallback : public test::NetNsTest {};

TEST_F(DrainFallback, require_fails_and_touches_nothing) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    Drain drain({.policy = Policy::require});
    EXPECT_TRUE(drain.add(std::move(listener)));
    const auto started = drain.start();
    EXPECT_FALSE(started);
    EXPECT_EQ(started.error().errnum, ENOPROTOOPT);
    EXPECT_NE(started.error().message().find("lacks SO_REUSEPORT_LISTEN_OFF"), std::string::npos);
    listener = std::move(drain.take_back()[0]);
    EXPECT_EQ(test::try_connect(test::local_address(listener.get())), 0);
    return true;
  });
}

TEST_F(DrainFallback, prefer_sweeps_then_closes) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    const int fd = listener.get();
    const test::Address at = test::local_address(fd);
    std::vector<Fd> clients;
    for (int i = 0; i < 5; ++i) {
      clients.push_back(test::open_client(at));
      EXPECT_EQ(test::connect_result(clients.back().get()), 0);
    }
    EXPECT_TRUE(test::wait_queued(fd, 5));
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(listener)));
    EXPECT_TRUE(drain.start());

    Step step = drain.step();
    EXPECT_EQ(step.action, Action::accept_more);
    EXPECT_EQ(step.fds.size(), 1U);
    EXPECT_EQ(drain.report().listeners[0].left.queued, 5U);
    EXPECT_EQ(test::accept_count(step.fds[0], 5), 5);

    step = drain.step();
    EXPECT_EQ(step.action, Action::done);
    EXPECT_FALSE(test::is_open(fd));
    const Report report = drain.report();
    EXPECT_EQ(report.outcome, Outcome::swept_and_closed);
    EXPECT_EQ(report.method, Method::sweep);
    EXPECT_EQ(report.support, Support::not_in_kernel);
    EXPECT_FALSE(report.lossless());
    EXPECT_FALSE(report.timed_out);
    EXPECT_EQ(report.left.queued, 0U);
    EXPECT_EQ(report.left.handshakes, std::nullopt) << "nobody can tell on this kernel";
    EXPECT_EQ(test::try_connect(at), ECONNREFUSED);
    return true;
  });
}

TEST_F(DrainFallback, migration_is_reported_only_where_it_is_on) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  test::without_option([] {
    Fd leaving = test::open_listener(test::address("127.0.0.1"));
    const test::Address at = test::local_address(leaving.get());
    Fd staying = test::open_listener(at);
    Fd datagrams = test::open_listener(test::address("127.0.0.1"), SOCK_DGRAM);
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(leaving)));
    EXPECT_TRUE(drain.add(std::move(datagrams)));
    const Expected<Report> report = run(drain, [](int fd) { test::accept_all(fd); });
    EXPECT_TRUE(report);
    EXPECT_EQ(report->listeners[0].outcome, Outcome::migrated);
    EXPECT_EQ(report->listeners[0].method, Method::migrate);
    EXPECT_EQ(report->listeners[1].outcome, Outcome::swept_and_closed) << "nothing moves datagrams";
    EXPECT_EQ(report->outcome, Outcome::swept_and_closed);
    return true;
  });
}

// Only the last close(2) of a socket migrates what it has.
TEST_F(DrainFallback, what_somebody_else_holds_is_no_migration) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  test::without_option([] {
    Fd leaving = test::open_listener(test::address("127.0.0.1"));
    const Fd staying = test::open_listener(test::local_address(leaving.get()));
    Drain drain({.is_shared = [](int) { return true; }});
    EXPECT_TRUE(drain.add(std::move(leaving)));
    const Expected<Report> report = run(drain, [](int fd) { test::accept_all(fd); });
    EXPECT_TRUE(report);
    EXPECT_EQ(report->method, Method::sweep);
    EXPECT_EQ(report->outcome, Outcome::swept_and_closed);
    return true;
  });
}

TEST_F(DrainFallback, nobody_to_migrate_to_is_no_migration) {
  ASSERT_TRUE(test::set_sysctl("net.ipv4.tcp_migrate_req", "1"));
  test::without_option([] {
    Fd first = test::open_listener(test::address("127.0.0.1"));
    Fd second = test::open_listener(test::local_address(first.get()));
    const Fd elsewhere = test::open_listener(test::address("127.0.0.1"));
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(first)));
    EXPECT_TRUE(drain.add(std::move(second)));
    const Expected<Report> report = run(drain, [](int fd) { test::accept_all(fd); });
    EXPECT_TRUE(report);
    EXPECT_EQ(report->outcome, Outcome::swept_and_closed);
    return true;
  });
}

TEST_F(DrainFallback, deadline_tells_what_was_left) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    const Fd client = test::open_client(test::local_address(listener.get()));
    EXPECT_EQ(test::connect_result(client.get()), 0);
    EXPECT_TRUE(test::wait_queued(listener.get(), 1));
    Drain drain({.timeout = milliseconds(1000)});
    EXPECT_TRUE(drain.add(std::move(listener)));
    EXPECT_TRUE(drain.start());
    EXPECT_EQ(drain.step().action, Action::accept_more);
    EXPECT_TRUE(test::eventually([&] { return drain.step().action == Action::done; }));
    EXPECT_EQ(drain.report().outcome, Outcome::deadline_hit);
    EXPECT_TRUE(drain.report().timed_out);
    EXPECT_EQ(drain.report().left.queued, 1U);
    EXPECT_GE(drain.report().took, milliseconds(1000));
    return true;
  });
}

TEST_F(DrainFallback, close_only_closes_without_accepting) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("::1"));
    const Fd client = test::open_client(test::local_address(listener.get()));
    EXPECT_EQ(test::connect_result(client.get()), 0);
    EXPECT_TRUE(test::wait_queued(listener.get(), 1));
    Drain drain({.policy = Policy::close_only});
    EXPECT_TRUE(drain.add(std::move(listener)));
    const Expected<Report> report = run(drain, [](int) { ADD_FAILURE() << "asked to accept"; });
    EXPECT_TRUE(report);
    EXPECT_EQ(report->outcome, Outcome::closed);
    EXPECT_EQ(report->method, Method::close);
    EXPECT_EQ(report->left.queued, 1U);
    return true;
  });
}

TEST_F(DrainFallback, datagrams_are_read_before_closing) {
  test::without_option([] {
    Fd socket = test::open_listener(test::address("127.0.0.1"), SOCK_DGRAM);
    const Fd client = test::open_client(test::local_address(socket.get()), SOCK_DGRAM);
    // Which are there some time after they were sent.
    const auto memory = [fd = socket.get()] {
      std::array<std::uint32_t, SK_MEMINFO_VARS> all{};
      socklen_t len = sizeof(all);
      return ::getsockopt(fd, SOL_SOCKET, SO_MEMINFO, all.data(), &len) == 0
                 ? all[SK_MEMINFO_RMEM_ALLOC]
                 : 0;
    };
    EXPECT_EQ(::send(client.get(), "", 0, 0), 0);
    EXPECT_TRUE(test::eventually([&] { return memory() > 0; }));
    const std::uint32_t one = memory();
    EXPECT_EQ(::send(client.get(), "x", 1, 0), 1);
    EXPECT_TRUE(test::eventually([&] { return memory() > one; }));
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(socket)));
    int read = 0;
    const Expected<Report> report = run(drain, [&](int fd) {
      char byte = 0;
      while (::recv(fd, &byte, 1, MSG_DONTWAIT) >= 0) {
        ++read;
      }
    });
    EXPECT_TRUE(report);
    EXPECT_EQ(read, 2);
    EXPECT_EQ(report->outcome, Outcome::swept_and_closed);
    EXPECT_TRUE(report->left.nothing());
    return true;
  });
}

TEST_F(DrainFallback, blocked_is_not_the_same_as_missing) {
  EXPECT_TRUE(test::in_child([] {
    EXPECT_TRUE(test::deny_option(EPERM));
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    Drain drain({.policy = Policy::require});
    EXPECT_TRUE(drain.add(std::move(listener)));
    EXPECT_EQ(drain.start().error().errnum, EPERM);
    EXPECT_EQ(drain.report().support, Support::blocked);
    return true;
  }));
}

TEST_F(DrainFallback, shut_down_in_between_is_no_success_and_no_endless_loop) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    const int fd = listener.get();
    const Fd client = test::open_client(test::local_address(fd));
    EXPECT_EQ(test::connect_result(client.get()), 0);
    EXPECT_TRUE(test::wait_queued(fd, 1));
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(listener)));
    EXPECT_TRUE(drain.start());
    EXPECT_EQ(drain.step().action, Action::accept_more);
    EXPECT_EQ(::shutdown(fd, SHUT_RD), 0);
    EXPECT_EQ(drain.step().action, Action::done);
    EXPECT_EQ(drain.report().outcome, Outcome::vanished);
    EXPECT_EQ(drain.report().left.queued, 1U);
    return true;
  });
}

// Without a free descriptor the probe cannot query the kernel. That is temporary, and no reason to
// sweep.
TEST_F(DrainFallback, a_probe_that_cannot_ask_is_asked_again) {
  test::without_option([] {
    Fd listener = test::open_listener(test::address("127.0.0.1"));
    const int fd = listener.get();
    rlimit limit{};
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
    const rlimit before = limit;
    limit.rlim_cur = 0;
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
    Drain drain;
    EXPECT_TRUE(drain.add(std::move(listener)));
    EXPECT_TRUE(drain.start());
    EXPECT_EQ(drain.step().action, Action::wait_until);
    EXPECT_EQ(drain.report().error->errnum, EMFILE);
    EXPECT_TRUE(test::is_open(fd));
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(drain.step().action, Action::done);
    EXPECT_EQ(drain.report().outcome, Outcome::swept_and_closed);
    return true;
  });
}

}  // namespace
}  // namespace reuseport
