// SPDX-License-Identifier: Apache-2.0
// What tests of listeners need: a network namespace of their own, sockets on ephemeral ports,
// bounded waits, and which answer the runner expects of this kernel.
#ifndef REUSEPORT_TESTS_SUPPORT_HPP
#define REUSEPORT_TESTS_SUPPORT_HPP

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "reuseport/reuseport.hpp"

namespace reuseport::test {

/// REUSEPORT_EXPECT: "supported", "supported_by_bpf" or "not_in_kernel"; not_in_kernel when it is
/// unset. Tests assert this answer, so a kernel that is not the one expected fails instead of being
/// passed over. Those of the option itself have a name that begins with Option: tests/run leaves
/// them out where it is not to be had.
[[nodiscard]] std::string expected_support();
/// By the kernel or by BPF.
[[nodiscard]] bool expect_supported();

/// A fixture whose tests each run in a new network namespace with lo up. Needs root, or user
/// namespaces. $REUSEPORT_ENABLE, where set, is run in it (sh -c) and must provide the option.
class NetNsTest : public ::testing::Test {
 protected:
  void SetUp() override;
};

/// An address and port. Copyable; port 0 asks for an ephemeral one.
struct Address {
  sockaddr_storage storage{};
  socklen_t len = 0;

  [[nodiscard]] const sockaddr* get() const;
  [[nodiscard]] std::uint16_t port() const;
  [[nodiscard]] int family() const { return storage.ss_family; }
};

/// "127.0.0.1", "::1", "::", ... with @p port.
[[nodiscard]] Address address(const std::string& ip, std::uint16_t port = 0);
/// getsockname(2)
[[nodiscard]] Address local_address(int fd);

/// A non-blocking SO_REUSEPORT socket bound to @p at; SOCK_STREAM ones listen. @p protocol may be
/// IPPROTO_MPTCP. Invalid, with a test failure, on error.
[[nodiscard]] Fd open_listener(const Address& at, int type = SOCK_STREAM, int protocol = 0,
                               int backlog = 128);
/// A non-blocking client socket whose connect(2) was started; errno of it in @p error if wanted.
[[nodiscard]] Fd open_client(const Address& to, int type = SOCK_STREAM, int* error = nullptr);
/// 0 once @p client is connected, or the errno it failed with; ETIMEDOUT after @p wait.
[[nodiscard]] int connect_result(int client,
                                 std::chrono::milliseconds wait = std::chrono::seconds(20));
/// At least @p count connections in the accept queue within @p wait. A client is connected a moment
/// before its listener has it in the queue: the last ACK is still under way.
[[nodiscard]] bool wait_queued(int listener, unsigned count,
                               std::chrono::milliseconds wait = std::chrono::seconds(20));
/// Connected or ECONNREFUSED, ...: open_client() and connect_result() in one, then closed.
[[nodiscard]] int try_connect(const Address& to);
/// TCP listeners on @p port in this network namespace, from /proc/net/tcp.
[[nodiscard]] int count_listeners(std::uint16_t port);
/// Accepts one connection within @p wait; invalid when none came.
[[nodiscard]] Fd accept_one(int listener,
                            std::chrono::milliseconds wait = std::chrono::milliseconds(0));
/// Accepts until EAGAIN and closes each; how many.
int accept_all(int listener);
/// Waits until @p count are in the queue, then accept_all().
[[nodiscard]] int accept_count(int listener, unsigned count);

/// So many clients that each member of a small group is chosen.
inline constexpr int spread_over = 64;
/// Connects so many to @p to, and accepts them: how many each of @p listeners got.
[[nodiscard]] std::vector<int> spread(const Address& to, const std::vector<const Fd*>& listeners);

/// Asks @p what every millisecond until it says true; false after @p wait. The wait is long because
/// an emulated machine on a busy one is slow.
[[nodiscard]] bool eventually(const std::function<bool()>& what,
                              std::chrono::milliseconds wait = std::chrono::seconds(20));

/// Brings lo of this network namespace up or down.
[[nodiscard]] bool set_lo(bool up);

/// Writes @p value to /proc/sys/NAME (dots or slashes) of this network namespace.
[[nodiscard]] bool set_sysctl(const std::string& name, const std::string& value);

/// Makes getsockopt and setsockopt of SO_REUSEPORT_LISTEN_OFF fail with @p errnum from here on, for
/// good: a seccomp filter (seccomp(2)). For a child, see in_child().
[[nodiscard]] bool deny_option(int errnum);

/// Another /proc from here on, which hides the processes of other users: proc(5), hidepid=2. For a
/// child; needs root.
[[nodiscard]] bool hide_processes();

/// Runs @p body in a forked child; true when it exited with 0. Its own failures print.
[[nodiscard]] bool in_child(const std::function<bool()>& body);

/// Starts a program of this build, @p argv[0] relative to build/bin, and gives its pid; -1 and a
/// test failure where that fails.
[[nodiscard]] pid_t start_program(std::vector<std::string> argv);
/// Its exit code, 128 + the signal it died of, or -1 (then it is killed) after @p wait.
[[nodiscard]] int exit_code(pid_t pid, std::chrono::milliseconds wait = std::chrono::seconds(20));

/// deny_option(ENOPROTOOPT) in a child, which then is as on a kernel without the option, on any
/// kernel. The test fails where @p body does not return true.
void without_option(const std::function<bool()>& body);

/// Whether @p fd is an open descriptor.
[[nodiscard]] bool is_open(int fd);

/// A directory of its own, which nobody else may write to, with all that comes to be in it; removed
/// at the end. Lanes run side by side on one machine, and may have the same ports.
class TempDir {
 public:
  TempDir();
  TempDir(const TempDir&) = delete;
  TempDir(TempDir&&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  TempDir& operator=(TempDir&&) = delete;
  ~TempDir();
  /// The path of @p name in it.
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace reuseport::test

#endif  // REUSEPORT_TESTS_SUPPORT_HPP
