// SPDX-License-Identifier: Apache-2.0
#include "host/process.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): kill(), which csignal lacks
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>

#include "host/attached_bpf.hpp"
#include "support/support.hpp"

namespace reuseport {
namespace {

using namespace std::chrono_literals;

std::uint64_t inode_of(int fd) {
  struct stat st {};
  EXPECT_EQ(::fstat(fd, &st), 0);
  return st.st_ino;
}

/// A child that waits to be killed, with inherited descriptors.
class Child {
 public:
  explicit Child(const std::function<void()>& setup) {
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      setup();
      ::close(ready[0]);
      ::close(ready[1]);
      for (;;) {
        ::pause();
      }
    }
    ::close(ready[1]);
    char c = 0;
    EXPECT_EQ(::read(ready[0], &c, 1), 0);  // end of file: the child is set up
    ::close(ready[0]);
  }
  Child() : Child([] {}) {}
  Child(const Child&) = delete;
  Child(Child&&) = delete;
  Child& operator=(const Child&) = delete;
  Child& operator=(Child&&) = delete;
  ~Child() { kill(); }
  void kill() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
      pid_ = -1;
    }
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

class ProcessTest : public test::NetNsTest {};

TEST_F(ProcessTest, no_such_process) {
  Child child;
  const pid_t pid = child.pid();
  child.kill();
  const auto p = Process::open(pid);
  ASSERT_FALSE(p);
  EXPECT_EQ(p.error().errnum, ESRCH);
  EXPECT_NE(p.error().hint.find(std::to_string(pid)), std::string::npos);
  EXPECT_EQ(Process::open(0).error().errnum, EINVAL);
  EXPECT_EQ(Process::open(-5).error().errnum, EINVAL);
}

TEST_F(ProcessTest, duplicates_a_listener_of_another_process) {
  const Fd mine = test::open_listener(test::address("127.0.0.1"));
  const Child child;
  const auto p = Process::open(child.pid());
  ASSERT_TRUE(p);
  const auto sockets = p->sockets();
  ASSERT_TRUE(sockets) << sockets.error().message();
  const auto it = std::find_if(sockets->begin(), sockets->end(),
                               [&](const SocketRef& s) { return s.inode == inode_of(mine.get()); });
  ASSERT_NE(it, sockets->end());
  const auto copy = p->duplicate(it->fd, it->inode);
  ASSERT_TRUE(copy) << copy.error().message();
  EXPECT_EQ(*socket_cookie(copy->get()), *socket_cookie(mine.get()));
  EXPECT_TRUE(p->still_holds(it->fd, it->inode));
  EXPECT_FALSE(p->still_holds(it->fd, it->inode + 1));
  EXPECT_EQ(p->duplicate(it->fd, it->inode + 1).error().errnum, ESTALE);
  EXPECT_EQ(p->duplicate(9999, 1).error().errnum, EBADF);
}

TEST_F(ProcessTest, a_process_that_died_says_so) {
  Child child;
  const auto p = Process::open(child.pid());
  ASSERT_TRUE(p);
  EXPECT_FALSE(p->ended());
  ASSERT_TRUE(p->signal(SIGKILL));
  EXPECT_TRUE(p->ended(5s)) << "as a zombie already";
  child.kill();
  EXPECT_EQ(p->sockets().error().errnum, ESRCH);
  EXPECT_EQ(p->duplicate(0, 1).error().errnum, ESRCH);
  EXPECT_EQ(p->signal(0).error().errnum, ESRCH);
  EXPECT_FALSE(p->still_holds(0, 1));
  EXPECT_NE(p->signal(0).error().hint.find("has ended"), std::string::npos);
}

// While a process exits, there is a moment when none of its threads shows a descriptor, but it has
// not ended. Held here by a thread that has ended and whose tracer has not collected it yet.
TEST_F(ProcessTest, nothing_is_said_to_be_closed_before_the_process_has_ended) {
  const Fd mine = test::open_listener(test::address("127.0.0.1"));
  int tell[2];
  int told[2];
  ASSERT_EQ(::pipe2(tell, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(told, O_CLOEXEC), 0);
  const Child child([&] {
    ::signal(SIGUSR1, [](int) { ::syscall(SYS_exit, 0); });
    std::thread([&] {
      pid_t tid = ::gettid();
      if (::write(tell[1], &tid, sizeof(tid)) == sizeof(tid) && ::read(told[0], &tid, 1) == 1) {
        ::syscall(SYS_exit, 0);
      }
    }).detach();
  });
  pid_t thread = 0;
  ASSERT_EQ(::read(tell[0], &thread, sizeof(thread)), static_cast<ssize_t>(sizeof(thread)));
  const auto p = Process::open(child.pid());
  ASSERT_TRUE(p);
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, thread, nullptr, nullptr), 0) << std::strerror(errno);
  ASSERT_EQ(::syscall(SYS_tgkill, child.pid(), child.pid(), SIGUSR1), 0);
  ASSERT_EQ(::write(told[1], "x", 1), 1);
  ASSERT_TRUE(test::eventually([&] { return p->sockets() && p->sockets()->empty(); }));
  EXPECT_FALSE(p->ended());
  EXPECT_TRUE(p->still_holds(mine.get(), inode_of(mine.get())));
  EXPECT_EQ(::waitpid(thread, nullptr, __WALL), thread);
  EXPECT_TRUE(p->ended(5s));
  EXPECT_FALSE(p->still_holds(mine.get(), inode_of(mine.get())));
  for (const int fd : {tell[0], tell[1], told[0], told[1]}) {
    ::close(fd);
  }
}

TEST_F(ProcessTest, waiting_for_the_end_is_bounded) {
  const Child child;
  const auto p = Process::open(child.pid());
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(p->ended(50ms));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 50ms);
}

TEST_F(ProcessTest, another_users_process_is_denied_with_a_cause) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  const Fd mine = test::open_listener(test::address("127.0.0.1"));
  const auto inode = inode_of(mine.get());
  const int fd = mine.get();
  const Child child;
  EXPECT_TRUE(test::in_child([&] {
    if (::setresuid(65534, 65534, 65534) != 0) {
      return false;
    }
    const auto p = Process::open(child.pid());
    if (!p) {
      return false;
    }
    const auto sockets = p->sockets();
    const auto copy = p->duplicate(fd, inode);
    const auto sent = p->signal(SIGTERM);
    EXPECT_EQ(sockets.error().errnum, EACCES);
    EXPECT_EQ(copy.error().errnum, EPERM);
    EXPECT_NE(copy.error().hint.find("belongs to uid 0"), std::string::npos) << copy.error().hint;
    EXPECT_EQ(sent.error().errnum, EPERM);
    const auto holders = find_holders({inode});
    return holders && holders->unreadable > 0 && !::testing::Test::HasFailure();
  }));
}

TEST_F(ProcessTest, a_process_that_is_not_dumpable_is_denied_with_a_cause) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "needs root to become somebody else";
  }
  EXPECT_TRUE(test::in_child([&] {
    if (::setresuid(65534, 65534, 65534) != 0 || ::prctl(PR_SET_DUMPABLE, 1) != 0) {
      return false;
    }
    const Child hidden([] { ::prctl(PR_SET_DUMPABLE, 0); });
    const auto p = Process::open(hidden.pid());
    const auto copy = p->duplicate(0, 1);
    EXPECT_EQ(copy.error().errnum, EPERM);
    EXPECT_NE(copy.error().hint.find("CAP_SYS_PTRACE"), std::string::npos) << copy.error().hint;
    return !::testing::Test::HasFailure();
  }));
}

TEST_F(ProcessTest, holders_of_a_shared_socket) {
  const Fd shared = test::open_listener(test::address("127.0.0.1"));
  const Child child;
  const Fd own = test::open_listener(test::address("127.0.0.1"));
  std::vector<std::uint64_t> inodes = {inode_of(shared.get()), inode_of(own.get())};
  std::sort(inodes.begin(), inodes.end());
  const auto holders = find_holders(inodes);
  ASSERT_TRUE(holders);
  const auto& both = holders->of(inode_of(shared.get()));
  ASSERT_EQ(both.size(), 2U);
  EXPECT_LT(both[0].pid, both[1].pid);
  EXPECT_EQ(both[0].fd, both[1].fd);
  ASSERT_EQ(holders->of(inode_of(own.get())).size(), 1U);
  EXPECT_EQ(holders->of(inode_of(own.get()))[0].pid, ::getpid());
  EXPECT_TRUE(holders->of(1).empty());
}

TEST_F(ProcessTest, holders_of_thousands_are_the_same_by_bpf_as_from_proc) {
  std::vector<Fd> sockets;
  std::vector<std::uint64_t> inodes;
  for (int i = 0; i < 500; i++) {
    sockets.push_back(
        test::open_listener(test::address("127.0.0.1"), i % 2 == 0 ? SOCK_STREAM : SOCK_DGRAM));
    inodes.push_back(inode_of(sockets.back().get()));
  }
  const Child child;
  std::sort(inodes.begin(), inodes.end());
  const auto slow = find_holders(inodes);
  auto more = inodes;  // numbers no socket has make it worth a BPF program
  for (std::uint64_t i = 0; i < 5000; i++) {
    more.push_back(~std::uint64_t{0} - 5000 + i);
  }
  const auto fast = find_holders(more);
  ASSERT_TRUE(slow);
  ASSERT_TRUE(fast);
  for (const std::uint64_t inode : inodes) {
    ASSERT_EQ(slow->of(inode).size(), 2U);
    ASSERT_EQ(fast->of(inode).size(), 2U);
    for (std::size_t i = 0; i < 2; i++) {
      EXPECT_EQ(fast->of(inode)[i].pid, slow->of(inode)[i].pid);
      EXPECT_EQ(fast->of(inode)[i].fd, slow->of(inode)[i].fd);
    }
  }
}

TEST_F(ProcessTest, tree_has_children_and_their_children) {
  pid_t grandchild = 0;
  int pipe_fd[2];
  ASSERT_EQ(::pipe(pipe_fd), 0);
  const Child child([&] {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::close_range(3, ~0U, 0);  // the ends of the pipes, which the parents read to their end
      for (;;) {
        ::pause();
      }
    }
    if (::write(pipe_fd[1], &pid, sizeof(pid)) < 0) {
      ::_exit(1);
    }
  });
  const Child stranger;
  ASSERT_EQ(::read(pipe_fd[0], &grandchild, sizeof(grandchild)),
            static_cast<ssize_t>(sizeof(grandchild)));
  const auto tree = process_tree(child.pid());
  ASSERT_TRUE(tree);
  EXPECT_EQ(*tree, (std::vector<pid_t>{std::min(child.pid(), grandchild),
                                       std::max(child.pid(), grandchild)}));
  EXPECT_EQ(process_tree(0x7ffffff0).error().errnum, ESRCH);
  ::close(pipe_fd[0]);
  ::close(pipe_fd[1]);
}

// Without a free descriptor nothing is known of its threads.
TEST_F(ProcessTest, what_cannot_be_looked_at_is_not_ending) {
  const Child child;
  const auto p = Process::open(child.pid());
  ASSERT_TRUE(p);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{0, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const bool ending = p->ending();
  const auto netns = p->network_namespace();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_FALSE(ending);
  ASSERT_FALSE(netns);
  EXPECT_EQ(netns.error().errnum, EMFILE);
  EXPECT_FALSE(p->ending());
  ASSERT_EQ(::kill(child.pid(), SIGKILL), 0);
  EXPECT_TRUE(test::eventually([&] { return p->ending(); }));
}

TEST_F(ProcessTest, command_and_namespace) {
  ASSERT_EQ(::prctl(PR_SET_NAME, "a) b\x01 c"), 0);
  EXPECT_EQ(command_name(::getpid()), "a) b\x01 c");
  const auto tree = process_tree(::getpid());
  EXPECT_TRUE(tree) << "a name with ')' does not confuse the parser";
  struct stat st {};
  ASSERT_EQ(::stat("/proc/self/ns/net", &st), 0);
  EXPECT_EQ(*network_namespace(::getpid()), st.st_ino);
  EXPECT_FALSE(network_namespace(0x7ffffff0));
  EXPECT_EQ(command_name(0x7ffffff0), "?");
}

TEST(ProcParse, socket_link) {
  EXPECT_EQ(detail::parse_socket_link("socket:[12345]"), 12345U);
  for (const char* bad : {"", "socket:[]", "socket:[1", "socket:1]", "pipe:[1]", "socket:[-1]",
                          "socket:[1 ]", "socket:[99999999999999999999999]", "socket:["}) {
    EXPECT_FALSE(detail::parse_socket_link(bad)) << bad;
  }
}

TEST(ProcParse, stat_parent) {
  EXPECT_EQ(detail::parse_stat_parent("12 (sh) S 7 12 12 0"), 7);
  EXPECT_EQ(detail::parse_stat_parent("12 (a) R 1 (b) S 8 1"), 8);
  for (const char* bad :
       {"", "12", "12 (sh)", "12 (sh) S", "12 (sh) S x", "12 (sh) S -4 1", "12 (sh) SS 7 1"}) {
    EXPECT_FALSE(detail::parse_stat_parent(bad)) << bad;
  }
}

TEST(ProcParse, status_uid) {
  EXPECT_EQ(detail::parse_status_uid("Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t1\n"), 1000U);
  EXPECT_FALSE(detail::parse_status_uid("Name:\tUid:\t5\n"));
  EXPECT_FALSE(detail::parse_status_uid("\nUid:\tx\t"));
}

}  // namespace
}  // namespace reuseport
