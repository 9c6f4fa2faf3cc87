// SPDX-License-Identifier: Apache-2.0
// The option by BPF for a cgroup: setsockopt() and getsockopt() themselves.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/reuseport.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "option/option.hpp"
#include "support/support.hpp"

namespace reuseport::option {
namespace {

using namespace reuseport::test;

constexpr unsigned many = 64;  // enough for every member of a small group to be chosen

int set_mode(const Fd& fd, int mode) {
  return ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, sizeof(mode)) == 0
             ? 0
             : errno;
}

reuseport_listen_info get_info(const Fd& fd) {
  reuseport_listen_info info{};
  socklen_t len = sizeof(info);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &len) != 0 ||
      len != sizeof(info)) {
    info.mode = 99;
  }
  return info;
}

/// A cgroup of its own that the test's process is in, a bpffs of its own (so that what this machine
/// has enabled is not touched), and a network namespace.
class ScopeTest : public NetNsTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) {
      GTEST_SKIP() << "needs root to load BPF programs";
    }
    NetNsTest::SetUp();
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0) << std::strerror(errno);
    ASSERT_EQ(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0)
        << std::strerror(errno);
    ASSERT_EQ(::mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700"), 0) << std::strerror(errno);
    const auto mount = cgroup2_mount();
    ASSERT_TRUE(mount) << mount.error().message();
    const auto home = cgroup_of(::getpid());
    ASSERT_TRUE(home) << home.error().message();
    home_ = *home;
    cgroup_ = *mount + "/reuseport-test-" + std::to_string(::getpid());
    ASSERT_EQ(::mkdir(cgroup_.c_str(), 0755), 0) << std::strerror(errno);
    ASSERT_TRUE(enter(cgroup_));
    dir_.reset(::open(cgroup_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(dir_);
    if (expect_supported()) {
      const auto refused = enable(dir_.get());
      ASSERT_FALSE(refused);
      EXPECT_EQ(need(refused.error()), Need::not_by_bpf);
      GTEST_SKIP() << "the kernel has the option itself";
    }
    if (::access("/sys/kernel/btf/vmlinux", F_OK) != 0) {
      ASSERT_FALSE(enable(dir_.get()));
      GTEST_SKIP() << "this kernel has no BTF";
    }
  }
  void TearDown() override {
    static_cast<void>(disable(true));
    if (!cgroup_.empty()) {
      EXPECT_TRUE(enter(home_));
      EXPECT_EQ(::rmdir(cgroup_.c_str()), 0) << std::strerror(errno);
      ::umount("/sys/fs/bpf");
    }
  }
  static bool enter(const std::string& cgroup) {
    std::ofstream procs(cgroup + "/cgroup.procs");
    procs << ::getpid() << std::flush;
    return procs.good();
  }
  Enabled enable_here() {
    const auto done = enable(dir_.get());
    EXPECT_TRUE(done) << done.error().message();
    return done ? *done : Enabled{};
  }
  std::vector<int> connect_many(const Address& to, const std::vector<const Fd*>& listeners) {
    std::vector<Fd> clients;
    for (unsigned i = 0; i < many; i++) {
      clients.push_back(open_client(to));
      EXPECT_EQ(connect_result(clients.back().get()), 0);
    }
    std::vector<int> got(listeners.size());
    unsigned sum = 0;
    EXPECT_TRUE(eventually([&] {
      for (std::size_t i = 0; i < listeners.size(); i++) {
        const int n = accept_all(listeners[i]->get());
        got[i] += n;
        sum += static_cast<unsigned>(n);
      }
      return sum >= many;
    }));
    return got;
  }

  std::string home_;
  std::string cgroup_;
  Fd dir_;
};

TEST_F(ScopeTest, TheCallWorks) {
  const Fd before = open_listener(address("127.0.0.1"));
  const Address to = local_address(before.get());
  EXPECT_EQ(set_mode(before, REUSEPORT_LISTEN_OFF), ENOPROTOOPT);

  const Enabled done = enable_here();
  EXPECT_TRUE(done.first);
  EXPECT_TRUE(done.new_cgroup);
  EXPECT_TRUE(done.new_namespace);
  EXPECT_EQ(done.listeners, 1U);
  EXPECT_EQ(done.refused, 0U);

  const Fd after = open_listener(address("127.0.0.1", to.port()));
  auto info = get_info(after);
  EXPECT_EQ(info.mode, 0U);
  EXPECT_EQ(info.group_on, 2U);
  EXPECT_NE(info.flags & REUSEPORT_LISTEN_F_BPF, 0U);
  EXPECT_NE(info.group_id, 0U);
  EXPECT_EQ(info.group_id, get_info(before).group_id);

  ASSERT_EQ(set_mode(before, REUSEPORT_LISTEN_OFF), 0);
  info = get_info(before);
  EXPECT_EQ(info.mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  EXPECT_EQ(info.group_off, 1U);
  auto got = connect_many(to, {&before, &after});
  EXPECT_EQ(got[0], 0);
  EXPECT_EQ(disable().error().errnum, EBUSY);

  const Fd newcomer = open_listener(address("127.0.0.1", to.port()));
  got = connect_many(to, {&before, &after, &newcomer});
  EXPECT_EQ(got[0], 0);
  EXPECT_GT(got[2], 0);

  const Enabled again = enable_here();
  EXPECT_FALSE(again.first);
  EXPECT_FALSE(again.new_cgroup);
  EXPECT_FALSE(again.new_namespace);
  EXPECT_EQ(again.listeners, 3U);
  got = connect_many(to, {&before, &after, &newcomer});
  EXPECT_EQ(got[0], 0);

  const auto now = state();
  ASSERT_TRUE(now) << now.error().message();
  ASSERT_EQ(now->groups.size(), 1U);
  EXPECT_EQ(now->groups[0].off, 1U);
  EXPECT_EQ(now->groups[0].on, 2U);
  EXPECT_EQ(now->groups[0].unknown, 0U);
  ASSERT_EQ(now->cgroups.size(), 1U);
  EXPECT_EQ(now->cgroups[0].path, cgroup_);

  ASSERT_EQ(set_mode(before, REUSEPORT_LISTEN_ON), 0);
  ASSERT_TRUE(disable());
  EXPECT_FALSE(std::filesystem::exists(pins));
  EXPECT_EQ(set_mode(before, REUSEPORT_LISTEN_OFF), ENOPROTOOPT);
}

TEST_F(ScopeTest, Settles) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Fd b = open_listener(address("127.0.0.1", local_address(a.get()).port()));
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_TRUE(eventually([&] { return (get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  EXPECT_EQ(get_info(b).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
}

// The mode was set before listen(): no lookup ever sees it as ON.
TEST_F(ScopeTest, PresetOff) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  ASSERT_EQ(::setsockopt(b.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
  ASSERT_EQ(set_mode(b, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_NE(get_info(b).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
  ASSERT_EQ(::bind(b.get(), to.get(), to.len), 0);
  ASSERT_EQ(::listen(b.get(), 128), 0);
  EXPECT_EQ(get_info(b).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  EXPECT_EQ(get_info(a).group_off, 1U);
  EXPECT_EQ(connect_many(to, {&a, &b})[1], 0);
}

}  // namespace
}  // namespace reuseport::option
