// SPDX-License-Identifier: Apache-2.0
// What tests of the option by BPF need: their own cgroup, bpffs and network namespace.
#ifndef REUSEPORT_TESTS_SCOPE_HPP
#define REUSEPORT_TESTS_SCOPE_HPP

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
#include <fstream>
#include <string>
#include <vector>

#include "option/option.hpp"
#include "support/support.hpp"

namespace reuseport::option {

using namespace reuseport::test;

inline int set_mode(const Fd& fd, int mode) {
  return ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, sizeof(mode)) == 0
             ? 0
             : errno;
}

inline reuseport_listen_info get_info(const Fd& fd) {
  reuseport_listen_info info{};
  socklen_t len = sizeof(info);
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &len) != 0 ||
      len != sizeof(info)) {
    info.mode = 99;
  }
  return info;
}

/// A cgroup for the test's process, its own bpffs (so that what is enabled on this machine is not
/// touched), and a network namespace.
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
    if (::access("/sys/kernel/btf/vmlinux", F_OK) != 0) {
      ASSERT_FALSE(enable(dir_.get()));
      GTEST_SKIP() << "this kernel has no BTF";
    }
  }
  void TearDown() override {
    static_cast<void>(disable(true));
    if (!cgroup_.empty()) {
      EXPECT_TRUE(enter(home_));
      EXPECT_TRUE(eventually([&] { return ::rmdir(cgroup_.c_str()) == 0; }))
          << std::strerror(errno);
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
  /// A listener for which the option is not enabled.
  Fd open_outside(const Address& at, const char* device = nullptr) {
    EXPECT_TRUE(enter(home_));
    Fd fd(::socket(at.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    EXPECT_TRUE(enter(cgroup_));
    const int one = 1;
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    if (device != nullptr) {
      EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device,
                             static_cast<socklen_t>(std::strlen(device))),
                0);
    }
    EXPECT_EQ(::bind(fd.get(), at.get(), at.len), 0) << std::strerror(errno);
    EXPECT_EQ(::listen(fd.get(), 128), 0) << std::strerror(errno);
    return fd;
  }

  std::string home_;
  std::string cgroup_;
  Fd dir_;
};

}  // namespace reuseport::option

#endif  // REUSEPORT_TESTS_SCOPE_HPP
