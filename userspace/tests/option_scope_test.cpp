// SPDX-License-Identifier: Apache-2.0
// The option by BPF for a cgroup: setsockopt() and getsockopt() themselves.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/reuseport.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "option/object.hpp"
#include "option/option.hpp"
#include "support/scope.hpp"

namespace reuseport::option {
namespace {

using namespace reuseport::test;

/// Connects again and again while it lives; counts failures.
class Clients {
 public:
  explicit Clients(const Address& to) : to_(to), thread_([this] { run(); }) {}
  ~Clients() { static_cast<void>(stop()); }
  Clients(const Clients&) = delete;
  Clients& operator=(const Clients&) = delete;
  Clients(Clients&&) = delete;
  Clients& operator=(Clients&&) = delete;
  /// How many were refused or reset.
  int stop() {
    if (thread_.joinable()) {
      stop_ = true;
      thread_.join();
    }
    return lost_;
  }
  [[nodiscard]] int made() const { return made_; }

 private:
  void run() {
    while (!stop_) {
      const Fd client = open_client(to_);
      if (connect_result(client.get()) != 0) {
        lost_++;
        continue;
      }
      made_++;
      // the server that accepted sends a byte
      pollfd answer{client.get(), POLLIN, 0};
      char byte = 0;
      if (::poll(&answer, 1, 20000) != 1 || ::recv(client.get(), &byte, 1, 0) < 0) {
        lost_++;
      }
    }
  }
  Address to_;
  std::atomic<bool> stop_ = false;
  std::atomic<int> lost_ = 0;
  std::atomic<int> made_ = 0;
  std::thread thread_;
};

/// Accepts and answers; returns how many.
int serve(const Fd& listener) {
  int n = 0;
  for (;;) {
    const Fd child(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!child) {
      return n;
    }
    static_cast<void>(::send(child.get(), "x", 1, MSG_NOSIGNAL));
    n++;
  }
}

class StockScope : public ScopeTest {};

TEST_F(StockScope, a_strangers_directory_is_not_used) {
  ASSERT_EQ(::mkdir(pins, 0755), 0);
  ASSERT_EQ(::chown(pins, 65534, 65534), 0);
  for (const auto& failed : {enable(dir_.get()).error(), state().error(), disable().error()}) {
    EXPECT_EQ(failed.errnum, EPERM) << failed.message();
    EXPECT_NE(failed.message().find("only this user"), std::string::npos) << failed.message();
  }
  ASSERT_EQ(::rmdir(pins), 0);
  EXPECT_TRUE(enable_here().first);
}

TEST_F(StockScope, the_call_works) {
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
  auto got = spread(to, {&before, &after});
  EXPECT_EQ(got[0], 0);
  EXPECT_EQ(disable().error().errnum, EBUSY);

  const Fd newcomer = open_listener(address("127.0.0.1", to.port()));
  got = spread(to, {&before, &after, &newcomer});
  EXPECT_EQ(got[0], 0);
  EXPECT_GT(got[2], 0);

  const Enabled again = enable_here();
  EXPECT_FALSE(again.first);
  EXPECT_FALSE(again.new_cgroup);
  EXPECT_FALSE(again.new_namespace);
  EXPECT_FALSE(again.replaced) << "they are of this build";
  EXPECT_EQ(again.listeners, 3U);
  got = spread(to, {&before, &after, &newcomer});
  EXPECT_EQ(got[0], 0);

  const auto now = state();
  ASSERT_TRUE(now) << now.error().message();
  ASSERT_EQ(now->groups.size(), 1U);
  EXPECT_EQ(now->groups[0].off, 1U);
  EXPECT_EQ(now->groups[0].on, 2U);
  EXPECT_EQ(now->groups[0].unknown, 0U);
  EXPECT_EQ(now->left.unknown_member, 0U);
  ASSERT_EQ(now->cgroups.size(), 1U);
  EXPECT_EQ(now->cgroups[0].path, cgroup_);

  ASSERT_EQ(set_mode(before, REUSEPORT_LISTEN_ON), 0);
  ASSERT_TRUE(disable());
  EXPECT_FALSE(std::filesystem::exists(pins));
  EXPECT_EQ(set_mode(before, REUSEPORT_LISTEN_OFF), ENOPROTOOPT);
}

TEST_F(StockScope, enable_waits_for_another_one) {
  static_cast<void>(enable_here());
  Fd other(::open("/sys/fs/bpf/reuseport", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(other);
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  std::thread ends([&other] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    other.reset();
  });
  const Enabled again = enable_here();
  ends.join();
  EXPECT_FALSE(again.first);
}

TEST_F(StockScope, disable_does_not_go_on_in_a_directory_that_is_gone) {
  const std::string pins = "/sys/fs/bpf/reuseport";
  static_cast<void>(enable_here());
  Fd other(::open(pins.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(other);
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  std::thread ends([&other, &pins] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EXPECT_EQ(::rename(pins.c_str(), (pins + "_gone").c_str()), 0);
    EXPECT_EQ(::mkdir(pins.c_str(), 0700), 0);
    other.reset();
  });
  const auto done = disable();
  ends.join();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().errnum, ENOENT);
  ASSERT_EQ(::rmdir(pins.c_str()), 0);
  ASSERT_EQ(::rename((pins + "_gone").c_str(), pins.c_str()), 0);
  EXPECT_TRUE(disable());
}

TEST_F(StockScope, settles) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Fd b = open_listener(address("127.0.0.1", local_address(a.get()).port()));
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_TRUE(eventually([&] { return (get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  // while ON, SETTLED is about its last change to another mode, as with the kernel's option: none
  EXPECT_NE(get_info(b).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
}

// The mode was set before listen(): no lookup ever sees it as ON.
TEST_F(StockScope, preset_off) {
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
  EXPECT_EQ(spread(to, {&a, &b})[1], 0);
}

// No program notices shutdown(2): the last ON member must not count any more, and one that listens
// again, OFF as before, may be held by an older lookup.
TEST_F(StockScope, shut_down_is_seen_at_once) {
  enable_here();
  Fd first = open_listener(address("127.0.0.1"));
  const Address to = local_address(first.get());
  const Fd a = open_listener(to);  // keep their port when they listen again
  const Fd b = open_listener(to);
  first.reset();
  ASSERT_EQ(set_mode(b, REUSEPORT_LISTEN_STANDBY), 0);
  ASSERT_EQ(get_info(b).group_on, 1U);
  ASSERT_EQ(::shutdown(a.get(), SHUT_RD), 0);
  EXPECT_EQ(get_info(b).group_on, 0U);
  ASSERT_EQ(::listen(a.get(), 128), 0);
  EXPECT_EQ(get_info(b).group_on, 1U);

  bool unsettled = false;
  for (int i = 0; i < 20 && !unsettled; i++) {  // a grace period may end between two calls
    ASSERT_TRUE(eventually([&] { return (get_info(b).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
    ASSERT_EQ(::shutdown(b.get(), SHUT_RD), 0);
    ASSERT_EQ(::listen(b.get(), 128), 0);
    unsettled = (get_info(b).flags & REUSEPORT_LISTEN_F_SETTLED) == 0;
  }
  EXPECT_TRUE(unsettled);
}

// --- who must get what, whatever the table says ---

// A stranger on the same address, bound to a device, is in another group.
TEST_F(StockScope, stranger_on_a_device) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_listener(to);
  const Fd stranger = open_outside(to, "lo");  // the kernel comes by the last one first
  ASSERT_EQ(spread(to, {&a, &b, &stranger})[2], spread_over);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(spread(to, {&a, &b, &stranger})[2], spread_over);
  ASSERT_EQ(set_mode(b, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(spread(to, {&a, &b, &stranger})[2], spread_over);
}

// A stranger on the specific address, we on the wildcard.
TEST_F(StockScope, stranger_on_the_specific_address) {
  enable_here();
  const Fd a = open_listener(address("0.0.0.0"));
  const std::uint16_t port = local_address(a.get()).port();
  const Fd b = open_listener(address("0.0.0.0", port));
  const Address to = address("127.0.0.1", port);
  const Fd stranger = open_outside(to);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(spread(to, {&a, &b, &stranger})[2], spread_over);
  EXPECT_EQ(spread(address("127.0.0.2", port), {&a, &b, &stranger})[1], spread_over);
}

/// Whether it holds in that network namespace, only for the calling thread.
bool in_namespace(const Fd& netns, const Fd& back, const std::function<bool()>& body) {
  const bool ok = ::setns(netns.get(), CLONE_NEWNET) == 0 && body();
  return ::setns(back.get(), CLONE_NEWNET) == 0 && ok;
}

// Connections through a VRF are for its own sockets, whatever is OFF, unless tcp_l3mdev_accept is
// set.
TEST_F(StockScope, vrf) {
  if (::access("/sys/module/vrf", F_OK) != 0) {
    GTEST_SKIP() << "this kernel has no VRF";
  }
  const Fd here(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  const Fd there(::open("/proc/thread-self/ns/net", O_RDONLY));  // ip(8) opens it
  ASSERT_EQ(::setns(here.get(), CLONE_NEWNET), 0);
  const std::string other =
      "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(there.get());
  const auto run = [](const std::string& command) { return std::system(command.c_str()) == 0; };
  ASSERT_TRUE(
      run("ip link add red type vrf table 10 && ip link set red up && "
          "ip link add in0 type veth peer name out0 netns " +
          other + " && ip link set in0 master red up && ip address add 192.0.2.1/24 dev in0"));
  ASSERT_TRUE(in_namespace(there, here, [&] {
    return run("ip address add 192.0.2.2/24 dev out0 && ip link set out0 up");
  }));
  enable_here();

  const Fd outside_off = open_listener(address("0.0.0.0"));
  const std::uint16_t port = local_address(outside_off.get()).port();
  const Fd outside = open_listener(address("0.0.0.0", port));
  const auto in_red = [&](const char* device) {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int one = 1;
    const Address any = address("0.0.0.0", port);
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, device, 4), 0);
    EXPECT_EQ(::bind(fd.get(), any.get(), any.len), 0) << std::strerror(errno);
    EXPECT_EQ(::listen(fd.get(), 128), 0) << std::strerror(errno);
    return fd;
  };
  const Address to = address("192.0.2.1", port);
  const auto refused = [&] {
    return in_namespace(there, here, [&] { return try_connect(to) == ECONNREFUSED; });
  };
  const auto got = [&](const std::vector<const Fd*>& listeners) {
    std::vector<int> each;
    EXPECT_TRUE(in_namespace(there, here, [&] {
      each = spread(to, listeners);
      return true;
    }));
    return each;
  };
  ASSERT_TRUE(refused()) << "before anything is OFF";
  ASSERT_EQ(set_mode(outside_off, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_TRUE(refused());

  const Fd a = in_red("red");
  const Fd b = in_red("red");
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(got({&a, &b, &outside, &outside_off}), (std::vector<int>{0, spread_over, 0, 0}));
  ASSERT_EQ(set_mode(b, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_TRUE(refused());
  EXPECT_EQ(spread(address("127.0.0.1", port), {&outside, &outside_off})[0], spread_over);

  ASSERT_TRUE(set_sysctl("net.ipv4.tcp_l3mdev_accept", "1"));
  EXPECT_EQ(got({&a, &b, &outside, &outside_off}), (std::vector<int>{0, 0, spread_over, 0}));
  ASSERT_TRUE(set_sysctl("net.ipv4.tcp_l3mdev_accept", "0"));

  // bound to a device of the VRF: the kernel's own choice
  const Fd slave = in_red("in0");
  EXPECT_EQ(got({&slave, &outside, &outside_off}), (std::vector<int>{spread_over, 0, 0}));
  EXPECT_GT(state()->left.unknown_listener, 0U);
}

// The kernel allows no listener to have an upper layer protocol: TLS needs a connection.
TEST_F(StockScope, no_upper_layer_protocol) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  EXPECT_NE(::setsockopt(a.get(), IPPROTO_TCP, TCP_ULP, "tls", 4), 0);
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
}

// The same address and port in another namespace, enabled or not.
TEST_F(StockScope, same_address_in_another_namespace) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(try_connect(to), ECONNREFUSED);
  EXPECT_TRUE(in_child([&] {
    if (::unshare(CLONE_NEWNET) != 0 || !set_lo(true)) {
      return false;
    }
    const Fd other = open_listener(to);
    bool ok = set_mode(other, REUSEPORT_LISTEN_OFF) == ENOPROTOOPT && try_connect(to) == 0;
    ok = ok && enable(dir_.get()) && try_connect(to) == 0;
    ok = ok && set_mode(other, REUSEPORT_LISTEN_OFF) == 0 && try_connect(to) == ECONNREFUSED;
    return ok && set_mode(other, REUSEPORT_LISTEN_ON) == 0 && try_connect(to) == 0;
  }));
  EXPECT_EQ(try_connect(to), ECONNREFUSED);
}

/// As if a tool of another build had been here.
bool pretend_another_build() {
  const Fd map(bpf_obj_get((std::string(pins) + "/maps/about").c_str()));
  const std::uint32_t zero = 0;
  table::about about{};
  if (bpf_map_lookup_elem(map.get(), &zero, &about) != 0) {
    return false;
  }
  about.build++;
  return bpf_map_update_elem(map.get(), &zero, &about, BPF_ANY) == 0;
}

// Programs of another build are replaced one after the other. At no moment does an OFF listener get
// a connection, or an ON one miss one.
TEST_F(StockScope, upgrade_under_load) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_listener(to);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  std::atomic<bool> stop{false};
  int served = 0;
  int refused = 0;
  int by_the_off_one = 0;
  std::thread clients([&] {
    while (!stop) {
      const int err = try_connect(to);
      // on a busy machine it is queued a moment after connect() has returned
      const Fd by_on = accept_one(b.get(), std::chrono::seconds(5));
      const Fd by_off(::accept(a.get(), nullptr, nullptr));
      refused += err != 0 ? 1 : 0;
      by_the_off_one += by_off ? 1 : 0;
      served += by_on ? 1 : 0;
    }
  });
  for (int i = 0; i < 5; i++) {
    ASSERT_TRUE(pretend_another_build());
    EXPECT_TRUE(enable_here().replaced);
    EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  }
  stop = true;
  clients.join();
  EXPECT_EQ(refused, 0) << served << " served";
  EXPECT_EQ(by_the_off_one, 0) << served << " served";
  EXPECT_GT(served, 100);
}

/// The id of the program that chooses in that namespace; 0: none.
std::uint32_t chooser_of(std::uint64_t netns) {
  const std::string pinned = std::string(pins) + "/namespaces/" + std::to_string(netns) + "/choose";
  const Fd link(bpf_obj_get(pinned.c_str()));
  bpf_link_info info{};
  std::uint32_t len = sizeof(info);
  return link && bpf_obj_get_info_by_fd(link.get(), &info, &len) == 0 ? info.prog_id : 0;
}

// In every namespace, also in those without a name.
TEST_F(StockScope, upgrade_of_other_namespaces) {
  enable_here();
  const Fd here(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(in_child([&] {
    if (::unshare(CLONE_NEWNET) != 0 || !set_lo(true) || !enable(dir_.get())) {
      return false;
    }
    const Fd there(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    const Fd a = open_listener(address("127.0.0.1"));
    const Fd b = open_listener(local_address(a.get()));
    std::uint64_t cookie = 0;
    socklen_t len = sizeof(cookie);
    if (set_mode(a, REUSEPORT_LISTEN_OFF) != 0 ||
        ::getsockopt(a.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) != 0) {
      return false;
    }
    const std::uint32_t before = chooser_of(cookie);
    if (before == 0 || !pretend_another_build() || !in_namespace(here, there, [&] {
          const auto done = enable(dir_.get());
          return done && done->replaced;
        })) {
      return false;
    }
    const std::uint32_t after = chooser_of(cookie);
    const auto got = spread(local_address(a.get()), {&a, &b});
    return after != 0 && after != before && got[0] == 0 && got[1] > 0;
  }));
}

#ifdef __x86_64__
// The kernel does not run the programs for calls of 32-bit processes (do_sock_setsockopt() in
// net/socket.c): ENOPROTOOPT, and nothing is changed.
TEST_F(StockScope, call_of_a_32_bit_process) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  void* const low =
      ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  ASSERT_NE(low, MAP_FAILED);
  auto* const mode = static_cast<int*>(low);
  auto* const answer = mode + 1;
  *mode = REUSEPORT_LISTEN_OFF;
  *answer = 1;
  const bool came_back = in_child([&] {
    long result = 366;  // setsockopt, arch/x86/entry/syscalls/syscall_32.tbl
    asm volatile("int $0x80"
                 : "+a"(result)
                 : "b"(a.get()), "c"(SOL_SOCKET), "d"(SO_REUSEPORT_LISTEN_OFF), "S"(mode),
                   "D"(sizeof(*mode))
                 : "memory", "r8", "r9", "r10", "r11");
    *answer = static_cast<int>(result);
    return true;
  });
  // does not come back without CONFIG_IA32_EMULATION: there are no such processes then
  EXPECT_EQ(*answer, came_back ? -ENOPROTOOPT : 1);
  EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_ON));
}
#endif

// The next enable removes what is pinned for a namespace that is gone.
TEST_F(StockScope, removed_namespace) {
  enable_here();
  EXPECT_TRUE(in_child([&] {
    return ::unshare(CLONE_NEWNET) == 0 && set_lo(true) && enable(dir_.get()) &&
           state()->namespaces.size() == 2;
  }));
  EXPECT_TRUE(eventually([&] {  // a worker removes it
    enable_here();
    return state()->namespaces.size() == 1;
  }));
  const Fd a = open_listener(address("127.0.0.1"));
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
}

// Two containers of a pod: one network namespace, a cgroup and a PID namespace each.
TEST_F(StockScope, pod) {
  const std::string other = cgroup_ + "-other";
  ASSERT_EQ(::mkdir(other.c_str(), 0755), 0);
  const Fd other_dir(::open(other.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  enable_here();
  const Fd old = open_listener(address("127.0.0.1"));
  const Address to = local_address(old.get());
  EXPECT_TRUE(enter(home_));
  EXPECT_TRUE(in_child([&] {
    if (!enter(other) || ::unshare(CLONE_NEWPID) != 0) {
      return false;
    }
    return in_child([&] {  // the first process of its PID namespace
      const Fd newcomer = open_listener(to);
      // a socket belongs to the cgroup it was created in, whoever calls
      if (::getpid() != 1 || set_mode(newcomer, REUSEPORT_LISTEN_OFF) != ENOPROTOOPT ||
          set_mode(old, REUSEPORT_LISTEN_STANDBY) != 0 || get_info(old).group_on != 0) {
        return false;
      }
      if (!enable(other_dir.get()) || get_info(newcomer).group_on != 1 ||
          get_info(newcomer).group_standby != 1) {
        return false;
      }
      const auto got = spread(to, {&old, &newcomer});
      return got[0] == 0 && set_mode(old, REUSEPORT_LISTEN_ON) == 0;
    });
  }));
  EXPECT_TRUE(enter(cgroup_));
  EXPECT_TRUE(disable());
  EXPECT_EQ(::rmdir(other.c_str()), 0) << std::strerror(errno);
}

// Another cgroup's listener in our group is not starved, and no member beside it becomes SETTLED.
TEST_F(StockScope, unknown_member) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_listener(to);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  ASSERT_TRUE(eventually([&] { return (get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  Fd unknown = open_outside(to);
  EXPECT_GT(spread(to, {&a, &b, &unknown})[2], 0);
  EXPECT_EQ(get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED, 0U);
  const auto now = state();
  ASSERT_TRUE(now && now->groups.size() == 1);
  EXPECT_EQ(now->groups[0].unknown, 1U);
  unknown.reset();
  EXPECT_TRUE(eventually([&] { return (get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  EXPECT_EQ(spread(to, {&a, &b})[0], 0);
}

// close() of a member that is not ON: it gets nothing between the hook and its end.
TEST_F(StockScope, closing_member_gets_nothing) {
  enable_here();
  const Fd b = open_listener(address("127.0.0.1"));
  const Address to = local_address(b.get());
  Clients clients(to);
  for (int i = 0; i < 30; i++) {
    Fd a = open_listener(to);
    EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_STANDBY), 0);
    EXPECT_TRUE(eventually([&] {
      serve(a);
      serve(b);
      const auto info = get_info(a);
      return (info.flags & REUSEPORT_LISTEN_F_SETTLED) != 0 && info.handshakes == 0 &&
             info.queued == 0;
    }));
    a.reset();
    serve(b);
  }
  std::atomic<bool> stop = false;
  std::thread server([&] {
    while (!stop) {
      serve(b);
    }
  });
  EXPECT_EQ(clients.stop(), 0);
  stop = true;
  server.join();
  EXPECT_GT(clients.made(), 10);
}

// One that is OFF before it listens is never chosen, not in the middle of listen() either.
TEST_F(StockScope, preset_off_is_never_chosen) {
  enable_here();
  const Fd b = open_listener(address("127.0.0.1"));
  const Address to = local_address(b.get());
  std::atomic<bool> stop = false;
  std::thread server([&] {
    while (!stop) {
      serve(b);
    }
  });
  Clients clients(to);
  int got = 0;
  for (int i = 0; i < 100; i++) {
    const Fd a(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int one = 1;
    ASSERT_EQ(::setsockopt(a.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
    EXPECT_EQ(::bind(a.get(), to.get(), to.len), 0);
    EXPECT_EQ(::listen(a.get(), 128), 0);
    got += serve(a);
  }
  EXPECT_EQ(clients.stop(), 0);
  stop = true;
  server.join();
  EXPECT_EQ(got, 0);
}

TEST_F(StockScope, program_of_its_own) {
  enable_here();
  const Fd a = open_listener(address("127.0.0.1"));
  sock_filter code[] = {{BPF_RET | BPF_K, 0, 0, 0}};
  const sock_fprog program{1, code};
  ASSERT_EQ(::setsockopt(a.get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program)),
            0);
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), EBUSY);
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_ON), 0);
}

// The 513th member of a group gets a clear error; the others are not affected.
TEST_F(StockScope, full_group) {
  enable_here();
  std::vector<Fd> group;
  group.push_back(open_listener(address("127.0.0.1")));
  const Address to = local_address(group[0].get());
  while (group.size() < 512) {
    group.push_back(open_listener(to));
  }
  ASSERT_EQ(set_mode(group[0], REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(get_info(group[1]).group_on, 511U);
  Fd more = open_listener(to);
  EXPECT_EQ(set_mode(more, REUSEPORT_LISTEN_OFF), ENOSPC);
  EXPECT_EQ(get_info(more).mode, 0U);
  EXPECT_EQ(set_mode(group[1], REUSEPORT_LISTEN_OFF), 0);
  more.reset();
  EXPECT_TRUE(
      eventually([&] { return (get_info(group[0]).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  EXPECT_EQ(try_connect(to), 0);
}

TEST_F(StockScope, every_member_off_is_refused_also_when_there_are_many) {
  enable_here();
  std::vector<Fd> group;
  group.push_back(open_listener(address("127.0.0.1")));
  const Address to = local_address(group[0].get());
  while (group.size() < 200) {
    group.push_back(open_listener(to));
  }
  for (const Fd& each : group) {
    ASSERT_EQ(set_mode(each, REUSEPORT_LISTEN_OFF), 0);
  }
  EXPECT_EQ(try_connect(to), ECONNREFUSED);
  ASSERT_EQ(set_mode(group[100], REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_EQ(try_connect(to), 0);
}

// After shutdown() it does not count, but stays known: when it listens again, lookups find it
// before any program runs.
TEST_F(StockScope, shut_down_and_listen_again) {
  enable_here();
  const Fd c = open_listener(address("127.0.0.1"));
  const Address to = local_address(c.get());  // of a port that was chosen shutdown() lets go
  const Fd a = open_listener(to);
  const Fd b = open_listener(to);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  const auto aside = [] {
    const auto now = state();
    return now && now->groups.size() == 1 ? now->groups[0].aside : 99;
  };
  for (const Fd* each : {&a, &b}) {
    ASSERT_EQ(::shutdown(each->get(), SHUT_RD), 0);
  }
  EXPECT_TRUE(eventually([&] { return aside() == 2; }));
  EXPECT_EQ(get_info(c).group_on, 1U);
  EXPECT_EQ(get_info(c).group_off, 0U);
  EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  for (const Fd* each : {&a, &b}) {
    ASSERT_EQ(::listen(each->get(), 64), 0);
  }
  EXPECT_EQ(aside(), 0U);
  EXPECT_EQ(get_info(c).group_on, 2U);
  EXPECT_EQ(get_info(c).group_off, 1U);
  const auto got = spread(to, {&a, &b, &c});
  EXPECT_EQ(got[0], 0);
  EXPECT_GT(got[1], 0);
  EXPECT_EQ(state()->left.unknown_listener + state()->left.unknown_member, 0U);
}

// Only a descriptor makes a UDP socket known: another enable() does it.
TEST_F(StockScope, datagrams_are_taken_in_by_enable) {
  const auto bound = [](std::uint16_t port) {
    Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const int one = 1;
    EXPECT_EQ(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    if (port == 0) {  // a mode from before it is bound is kept
      EXPECT_EQ(set_mode(fd, REUSEPORT_LISTEN_STANDBY), 0);
    }
    const Address at = address("127.0.0.1", port);
    EXPECT_EQ(::bind(fd.get(), at.get(), at.len), 0) << std::strerror(errno);
    return fd;
  };
  enable_here();
  const Fd a = bound(0);
  const Fd b = bound(local_address(a.get()).port());
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), EAGAIN);
  EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_ON)) << "it gets datagrams";

  const auto find = [&](const std::vector<std::uint64_t>& cookies) {
    std::vector<Fd> found(cookies.size());
    for (std::size_t i = 0; i < cookies.size(); i++) {
      for (const Fd* fd : {&a, &b}) {
        std::uint64_t cookie = 0;
        socklen_t len = sizeof(cookie);
        EXPECT_EQ(::getsockopt(fd->get(), SOL_SOCKET, SO_COOKIE, &cookie, &len), 0);
        if (cookie == cookies[i]) {
          found[i].reset(::fcntl(fd->get(), F_DUPFD_CLOEXEC, 0));
        }
      }
    }
    return found;
  };
  const auto done = enable(dir_.get(), -1, GroupSize::normal, find);
  ASSERT_TRUE(done) << done.error().message();
  EXPECT_EQ(done->datagrams, 2U);
  EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_STANDBY));
  EXPECT_EQ(get_info(a).group_on, 1U);
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_TRUE(eventually([&] { return (get_info(a).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));

  const Fd client(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const Address to = local_address(a.get());
  for (int i = 0; i < 16; i++) {
    ASSERT_EQ(::sendto(client.get(), "x", 1, 0, to.get(), to.len), 1);
  }
  EXPECT_TRUE(eventually([&] { return get_info(b).queued > 0; }));
  int received = 0;
  EXPECT_TRUE(eventually([&] {
    char byte = 0;
    received += ::recv(b.get(), &byte, 1, MSG_DONTWAIT) == 1 ? 1 : 0;
    return received == 16;
  }));
  EXPECT_EQ(get_info(a).queued, 0U);
  EXPECT_EQ(disable().error().errnum, EBUSY);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_ON), 0);
  EXPECT_TRUE(disable());
}

// The cgroup is removed and another one enabled: the remains of the first do not matter.
TEST_F(StockScope, removed_cgroup) {
  enable_here();
  const std::string second = cgroup_ + "-2";
  ASSERT_EQ(::mkdir(second.c_str(), 0755), 0);
  ASSERT_TRUE(enter(home_));
  dir_.reset();
  const bool removed =
      eventually([&] { return ::rmdir(cgroup_.c_str()) == 0; }, std::chrono::seconds(5));
  EXPECT_TRUE(removed) << std::strerror(errno);
  cgroup_ = second;
  ASSERT_TRUE(enter(cgroup_));
  dir_.reset(::open(cgroup_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_TRUE(enable_here().new_cgroup);
  const Fd a = open_listener(address("127.0.0.1"));
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  const auto now = state();
  ASSERT_TRUE(now);
  EXPECT_EQ(now->cgroups.size(), 2U);
}

TEST(PatchedByBpf, is_refused_where_the_kernel_has_the_option) {
  const auto mount = cgroup2_mount();
  ASSERT_TRUE(mount) << mount.error().message();
  const Fd root(::open(mount->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const auto enabled = enable(root.get());
  ASSERT_FALSE(enabled);
  EXPECT_EQ(need(enabled.error()), Need::not_by_bpf);
  const auto session = Session::start();
  ASSERT_FALSE(session);
  EXPECT_EQ(need(session.error()), Need::not_by_bpf);
}

}  // namespace
}  // namespace reuseport::option
