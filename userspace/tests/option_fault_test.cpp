// SPDX-License-Identifier: Apache-2.0
// The option by BPF for a cgroup: failures and attacks.
#include <bpf/bpf.h>
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/reuseport.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "support/scope.hpp"

namespace reuseport::option {
namespace {

constexpr uid_t nobody = 65534;

/// The kernel objects that are pinned, by id: ids are not reused.
struct Objects {
  struct Object {
    int (*next)(std::uint32_t, std::uint32_t*);
    std::uint32_t id;
    std::string name;
  };
  std::vector<Object> all;

  /// Adds what is pinned now.
  void look() {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(pins, ignored)) {
      const Fd fd(entry.is_directory() ? -1 : bpf_obj_get(entry.path().c_str()));
      if (!fd) {
        continue;
      }
      const std::string name = entry.path().filename();
      if (entry.path().parent_path().filename() == "maps") {
        bpf_map_info info{};
        std::uint32_t len = sizeof(info);
        EXPECT_EQ(bpf_obj_get_info_by_fd(fd.get(), &info, &len), 0) << entry.path();
        all.push_back({bpf_map_get_next_id, info.id, "map " + name});
      } else {
        bpf_link_info info{};
        std::uint32_t len = sizeof(info);
        EXPECT_EQ(bpf_obj_get_info_by_fd(fd.get(), &info, &len), 0) << entry.path();
        all.push_back({bpf_link_get_next_id, info.id, "link of " + name});
        all.push_back({bpf_prog_get_next_id, info.prog_id, "program " + name});
      }
    }
  }
  /// Those that still exist. Does not open them: a map of programs that loses its last
  /// descriptor twice in short order is never freed (prog_array_map_clear() in
  /// kernel/bpf/arraymap.c takes a reference for work that is already queued).
  [[nodiscard]] std::string alive() const {
    std::string names;
    for (const Object& each : all) {
      std::uint32_t id = 0;
      if (each.next(each.id - 1, &id) == 0 && id == each.id) {
        names.append(", ").append(each.name);
      }
    }
    return names;
  }
};

/// Whether a call changes something outside of the process.
bool changes(const __ptrace_syscall_info& call) {
  if (call.op != PTRACE_SYSCALL_INFO_ENTRY) {
    return false;
  }
  switch (call.entry.nr) {
    case SYS_bpf:
      switch (call.entry.args[0]) {
        case BPF_MAP_UPDATE_ELEM:
        case BPF_MAP_DELETE_ELEM:
        case BPF_OBJ_PIN:
        case BPF_LINK_CREATE:
        case BPF_LINK_UPDATE:
        case BPF_LINK_DETACH: return true;
        default: return false;
      }
#ifdef SYS_mkdir
    case SYS_mkdir:
    case SYS_rmdir:
    case SYS_unlink:
#endif
    case SYS_mkdirat:
    case SYS_unlinkat:
    case SYS_mount: return true;
    default: return false;
  }
}

/// Runs @p body in a process that is killed when it is about to change something for the @p step-th
/// time. If it ends before, returns how many times it would have changed something.
struct Ending {
  bool killed = false;
  bool ok = false;
  int steps = 0;
};
Ending kill_at(int step, const std::function<bool()>& body) {
  Ending end;
  const pid_t child = ::fork();
  if (child == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    ::_exit(body() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  while (!end.killed) {
    EXPECT_EQ(::ptrace(PTRACE_SYSCALL, child, nullptr, nullptr), 0) << std::strerror(errno);
    if (::waitpid(child, &status, 0) != child || WIFEXITED(status) || WIFSIGNALED(status)) {
      end.ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
      return end;
    }
    __ptrace_syscall_info call{};
    if (WSTOPSIG(status) == (SIGTRAP | 0x80) &&
        ::ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(call), &call) > 0 && changes(call)) {
      end.killed = end.steps++ == step;
    }
  }
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  return end;
}

class StockFault : public ScopeTest {
 protected:
  /// Enables it and checks that it works; then disables it and checks that nothing is left.
  void works_and_goes(Objects& seen) {
    const Fd a = open_listener(address("127.0.0.1"));
    const Address to = local_address(a.get());
    const Fd b = open_listener(to);
    enable_here();
    ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
    for (int i = 0; i < 8; i++) {
      EXPECT_EQ(try_connect(to), 0);
    }
    EXPECT_EQ(accept_count(b.get(), 8), 8);
    EXPECT_EQ(accept_all(a.get()), 0);
    ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_ON), 0);
    seen.look();
    goes(seen);
    EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), ENOPROTOOPT);
  }
  static void goes(const Objects& seen) {
    const auto done = disable();
    EXPECT_TRUE(done || done.error().errnum == ENOENT) << done.error().message();
    EXPECT_FALSE(std::filesystem::exists(pins));
    EXPECT_TRUE(eventually([&] { return seen.alive().empty(); })) << "left:" << seen.alive();
  }
  /// Kills @p body at every step, or at as many as time allows, evenly spread.
  void kill_everywhere(const std::function<void()>& before, const std::function<bool()>& body) {
    using namespace std::chrono;
    const auto start = steady_clock::now();
    before();
    const Ending whole = kill_at(INT_MAX, body);
    ASSERT_TRUE(whole.ok);
    Objects seen;
    seen.look();
    ASSERT_NO_FATAL_FAILURE(works_and_goes(seen));
    const auto once = duration_cast<milliseconds>(steady_clock::now() - start).count();
    constexpr std::int64_t time_for_all = 60'000;  // ms
    const int stride = static_cast<int>(whole.steps * once / time_for_all) + 1;
    int killed = 0;
    // different ones each time
    for (int step = ::getpid() % stride; step < whole.steps; step += stride) {
      SCOPED_TRACE("killed at step " + std::to_string(step));
      before();
      seen.look();
      killed += kill_at(step, body).killed ? 1 : 0;
      seen.look();
      const auto now = state();
      EXPECT_TRUE(now) << now.error().message();
      if (killed % 2 != 0) {
        ASSERT_NO_FATAL_FAILURE(works_and_goes(seen));
      } else {
        goes(seen);
      }
      if (HasFailure()) {
        return;  // one is enough to read
      }
    }
    std::printf("killed at %d of %d steps\n", killed, whole.steps);
    EXPECT_GT(killed, 0);
  }
};

TEST_F(StockFault, enable_is_killed) {
  const Fd listener = open_listener(address("127.0.0.1"));
  kill_everywhere([] {}, [&] { return enable(dir_.get()).has_value(); });
}

TEST_F(StockFault, disable_is_killed) {
  const Fd listener = open_listener(address("127.0.0.1"));
  kill_everywhere([&] { enable_here(); }, [] { return disable().has_value(); });
}

// Everything goes with the pins: listeners are chosen again, and it can be enabled again.
TEST_F(StockFault, unmounted_bpffs) {
  // the machine's bpffs, which is below the test's: then there is none
  const auto is_bpffs = [] {
    struct statfs there {};
    return ::statfs("/sys/fs/bpf", &there) == 0 && there.f_type == 0xcafe4a11;
  };
  const auto unmount_all = [&] {
    for (int i = 0; i < 100 && is_bpffs(); i++) {
      ASSERT_EQ(::umount2("/sys/fs/bpf", MNT_DETACH), 0) << std::strerror(errno);
    }
    ASSERT_FALSE(is_bpffs());
  };
  unmount_all();
  enable_here();
  ASSERT_TRUE(is_bpffs());  // it was mounted
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  ASSERT_EQ(try_connect(to), ECONNREFUSED);
  Objects seen;
  seen.look();
  ASSERT_NE(seen.alive(), "");

  unmount_all();
  EXPECT_TRUE(eventually([&] { return seen.alive().empty(); })) << "left:" << seen.alive();
  EXPECT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), ENOPROTOOPT);
  EXPECT_EQ(try_connect(to), 0);
  const auto now = state();
  EXPECT_TRUE(now ? !now->enabled : now.error().errnum == ENOENT);
  EXPECT_FALSE(disable());
  works_and_goes(seen);
}

TEST_F(StockFault, cgroup_is_removed) {
  enable_here();
  Objects seen;
  seen.look();
  ASSERT_TRUE(enter(home_));
  dir_.reset();
  ASSERT_TRUE(eventually([&] { return ::rmdir(cgroup_.c_str()) == 0; })) << std::strerror(errno);
  cgroup_.clear();
  const auto now = state();
  ASSERT_TRUE(now) << now.error().message();
  ASSERT_EQ(now->cgroups.size(), 1U);
  EXPECT_EQ(now->cgroups[0].path, "");
  goes(seen);
}

// Listeners appear and close while they are adopted.
TEST_F(StockFault, listeners_come_and_go) {
  const Fd stays = open_listener(address("127.0.0.1"));
  const Address to = local_address(stays.get());
  std::atomic<bool> stop = false;
  std::atomic<int> made = 0;
  std::thread others([&] {
    while (!stop) {
      std::vector<Fd> some;
      for (int i = 0; i < 20; i++) {
        some.push_back(open_listener(i % 2 != 0 ? to : address("127.0.0.1")));
        made++;
      }
    }
  });
  Objects seen;
  for (int i = 0; i < 2; i++) {
    enable_here();
    EXPECT_EQ(set_mode(stays, REUSEPORT_LISTEN_STANDBY), 0);
    enable_here();
    EXPECT_EQ(get_info(stays).mode, static_cast<unsigned>(REUSEPORT_LISTEN_STANDBY));
    EXPECT_EQ(set_mode(stays, REUSEPORT_LISTEN_ON), 0);
    seen.look();
    goes(seen);
  }
  enable_here();
  stop = true;
  others.join();
  EXPECT_GT(made, 100);
  // closed listeners are forgotten: none is unknown, and no place stays taken
  EXPECT_EQ(set_mode(stays, REUSEPORT_LISTEN_STANDBY), 0);
  EXPECT_TRUE(
      eventually([&] { return (get_info(stays).flags & REUSEPORT_LISTEN_F_SETTLED) != 0; }));
  const std::string own = "127.0.0.1:" + std::to_string(to.port());
  EXPECT_TRUE(eventually([&] {
    const auto now = state();
    return now && now->groups.size() == 1 && now->groups[0].address == own &&
           now->groups[0].standby == 1 &&
           now->groups[0].on + now->groups[0].off + now->groups[0].aside + now->groups[0].unknown ==
               0;
  }));
  EXPECT_EQ(set_mode(stays, REUSEPORT_LISTEN_ON), 0);
}

void allow_files(rlim_t files) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = std::max(limit.rlim_cur, files);
  limit.rlim_max = std::max(limit.rlim_max, files);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0) << std::strerror(errno);
}

/// @p n listeners, as many per group as it takes.
void open_many(std::vector<Fd>& into, std::size_t n) {
  while (into.size() < n) {
    const std::size_t in_group = into.size() % 512;
    into.push_back(open_listener(
        in_group == 0 ? address("127.0.0.1") : local_address(into[into.size() - in_group].get())));
    ASSERT_TRUE(into.back());
  }
}

// One user fills the tables up to the limit per uid: only that user is refused.
TEST_F(StockFault, full_for_one_user) {
  constexpr std::size_t bound = 16384;
  ASSERT_NO_FATAL_FAILURE(allow_files(bound + 1000));
  enable_here();
  std::vector<Fd> his;
  ASSERT_EQ(::seteuid(nobody), 0);
  ASSERT_NO_FATAL_FAILURE(open_many(his, bound));
  EXPECT_EQ(set_mode(his.back(), REUSEPORT_LISTEN_STANDBY), 0);
  Fd one_more = open_listener(address("127.0.0.1"));
  EXPECT_EQ(set_mode(one_more, REUSEPORT_LISTEN_OFF), ENOSPC);
  EXPECT_EQ(try_connect(local_address(one_more.get())), 0);
  EXPECT_EQ(set_mode(his[0], REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(get_info(his[1]).group_on, 511U);
  ASSERT_EQ(::seteuid(0), 0);

  const Fd ours = open_listener(address("127.0.0.1"));
  EXPECT_EQ(set_mode(ours, REUSEPORT_LISTEN_OFF), 0);
  EXPECT_EQ(try_connect(local_address(ours.get())), ECONNREFUSED);

  // one leaves, one comes
  his.pop_back();
  EXPECT_TRUE(eventually([&] {
    EXPECT_EQ(::seteuid(nobody), 0);
    one_more = open_listener(address("127.0.0.1"));
    const int err = set_mode(one_more, REUSEPORT_LISTEN_OFF);
    EXPECT_EQ(::seteuid(0), 0);
    return err == 0;
  }));
}

// Enabled for a server that has that many.
TEST_F(StockFault, ten_thousand_listeners) {
  constexpr std::size_t n = 10000;
  ASSERT_NO_FATAL_FAILURE(allow_files(n + 1000));
  std::vector<Fd> listeners;
  ASSERT_NO_FATAL_FAILURE(open_many(listeners, n));
  const auto done = enable_here();
  EXPECT_EQ(done.listeners, n);
  EXPECT_EQ(done.refused, 0U);
  for (const std::size_t i : {std::size_t{0}, n / 2, n - 1}) {
    EXPECT_EQ(set_mode(listeners[i], REUSEPORT_LISTEN_OFF), 0);
    EXPECT_EQ(get_info(listeners[i]).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
    EXPECT_EQ(set_mode(listeners[i], REUSEPORT_LISTEN_ON), 0);
  }
  Objects seen;
  seen.look();
  goes(seen);
}

bool become_nobody() {
  return ::setgroups(0, nullptr) == 0 && ::setresgid(nobody, nobody, nobody) == 0 &&
         ::setresuid(nobody, nobody, nobody) == 0;
}

// An unprivileged user sees and changes nothing of others, and has the option for own sockets.
TEST_F(StockFault, unprivileged_is_refused) {
  enable_here();
  ASSERT_EQ(::chmod("/sys/fs/bpf", 0755), 0);  // what is ours must not rely on it
  const Fd a = open_listener(address("127.0.0.1"));
  const Address to = local_address(a.get());
  const Fd b = open_listener(to);
  ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
  Objects seen;
  seen.look();
  ASSERT_GT(seen.all.size(), 20U);
  const pid_t root = ::getpid();
  EXPECT_TRUE(in_child([&] {
    EXPECT_TRUE(become_nobody());
    EXPECT_EQ(::open(pins, O_RDONLY | O_DIRECTORY), -1);
    EXPECT_EQ(errno, EACCES);
    EXPECT_LT(bpf_obj_get((std::string(pins) + "/maps/members").c_str()), 0);
    // not by id either
    for (const Objects::Object& each : seen.all) {
      EXPECT_LT(bpf_map_get_fd_by_id(each.id), 0);
      EXPECT_LT(bpf_prog_get_fd_by_id(each.id), 0);
      EXPECT_LT(bpf_link_get_fd_by_id(each.id), 0);
    }
    const auto now = state();
    EXPECT_FALSE(now);
    EXPECT_FALSE(disable(true));
    const auto enabled = enable(dir_.get());
    EXPECT_FALSE(enabled);
    EXPECT_EQ(need(enabled.error()), Need::privilege) << enabled.error().message();
    const int pidfd = static_cast<int>(::syscall(SYS_pidfd_open, root, 0));
    EXPECT_GE(pidfd, 0);
    EXPECT_EQ(::syscall(SYS_pidfd_getfd, pidfd, a.get(), 0), -1);
    // the kernel itself does not let a user join another user's group
    const Fd in(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int one = 1;
    EXPECT_EQ(::setsockopt(in.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
    EXPECT_EQ(::bind(in.get(), to.get(), to.len), -1);
    EXPECT_EQ(errno, EADDRINUSE);
    const Fd own = open_listener(address("127.0.0.1"));
    EXPECT_EQ(set_mode(own, REUSEPORT_LISTEN_OFF), 0);
    EXPECT_EQ(try_connect(local_address(own.get())), ECONNREFUSED);
    return !HasFailure();
  }));
  EXPECT_EQ(get_info(a).mode, static_cast<unsigned>(REUSEPORT_LISTEN_OFF));
  EXPECT_EQ(get_info(b).mode, static_cast<unsigned>(REUSEPORT_LISTEN_ON));
  EXPECT_EQ(get_info(b).group_on, 1U);
}

// Two users on one port, on addresses that do not overlap: neither gets the other's connections,
// and neither is closed by the other.
TEST_F(StockFault, two_users_on_one_port) {
  enable_here();
  struct Users {
    const char *ours, *his, *to_us, *to_him;
  };
  for (const Users& at : {Users{"127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"},
                          Users{"::1", "127.0.0.1", "::1", "127.0.0.1"},
                          Users{"0.0.0.0", "::1", "127.0.0.1", "::1"}}) {
    SCOPED_TRACE(std::string(at.ours) + " and " + at.his);
    const Fd a = open_listener(address(at.ours));
    const std::uint16_t port = local_address(a.get()).port();
    const Fd b = open_listener(address(at.ours, port));
    ASSERT_EQ(::seteuid(nobody), 0);
    const Fd c = open_listener(address(at.his, port));
    const Fd d = open_listener(address(at.his, port));
    ASSERT_EQ(::seteuid(0), 0);
    const Address us = address(at.to_us, port);
    const Address him = address(at.to_him, port);
    const std::vector<const Fd*> all = {&a, &b, &c, &d};
    const int n = spread_over;
    EXPECT_NE(get_info(a).group_id, get_info(c).group_id);

    ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_OFF), 0);
    ASSERT_EQ(set_mode(c, REUSEPORT_LISTEN_OFF), 0);
    EXPECT_EQ(spread(us, all), (std::vector<int>{0, n, 0, 0}));
    EXPECT_EQ(spread(him, all), (std::vector<int>{0, 0, 0, n}));
    ASSERT_EQ(set_mode(b, REUSEPORT_LISTEN_OFF), 0);
    EXPECT_EQ(try_connect(us), ECONNREFUSED);
    EXPECT_EQ(spread(him, all), (std::vector<int>{0, 0, 0, n}));
    ASSERT_EQ(set_mode(d, REUSEPORT_LISTEN_OFF), 0);
    ASSERT_EQ(set_mode(a, REUSEPORT_LISTEN_ON), 0);
    EXPECT_EQ(try_connect(him), ECONNREFUSED);
    EXPECT_EQ(spread(us, all), (std::vector<int>{n, 0, 0, 0}));
  }
}

}  // namespace
}  // namespace reuseport::option
