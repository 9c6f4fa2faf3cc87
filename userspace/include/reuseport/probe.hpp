// SPDX-License-Identifier: Apache-2.0
//
// Does this kernel have SO_REUSEPORT_LISTEN_OFF, and if not, why not?
//
// One file to vendor: C++17, nothing but the C library, no exceptions, no RTTI, no kernel header.
// On a system other than Linux it compiles and answers not_in_kernel.
#ifndef REUSEPORT_PROBE_HPP
#define REUSEPORT_PROBE_HPP

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__linux__)
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#endif

// The same number on every architecture; <linux/reuseport.h> guards it likewise.
#ifndef SO_REUSEPORT_LISTEN_OFF
#define SO_REUSEPORT_LISTEN_OFF 0x5250
#endif

namespace reuseport {

/// What a probe found. The numbers are those of enum reuseport_support (reuseport.h).
enum class Support : std::uint8_t {
  error,             ///< cannot query the kernel, e.g. EMFILE; try again later
  supported,         ///< the kernel has the option, and it answers as documented
  supported_by_bpf,  ///< the same, provided by BPF on a kernel that lacks it
  not_in_kernel,     ///< ENOPROTOOPT: neither the kernel nor BPF in this cgroup provides it
  number_taken,      ///< another option has this number
  blocked,           ///< a seccomp filter, LSM or cgroup program forbids the call
};

/// The step that decided a probe's result.
enum class ProbeStep : std::uint8_t {
  socket,         ///< socket(2) for the throw-away socket
  get,            ///< getsockopt(2) on a fresh TCP socket
  answer_length,  ///< the length of that answer: struct reuseport_listen_info, or an int
  answer_value,   ///< a fresh socket is ON and in no group
  bad_value,      ///< an unknown mode must give EINVAL
  round_trip,     ///< each mode that is set must read back
  wrong_family,   ///< an AF_UNIX socket must give EOPNOTSUPP
  behaviour,      ///< an OFF listener on loopback must get nothing
  all,            ///< every step passed
};

/// Result of a probe: what it found, at which step, and the errno, if any (else 0).
struct ProbeResult {
  Support support = Support::error;
  ProbeStep step = ProbeStep::socket;
  int errnum = 0;

  /// By the kernel or by BPF.
  [[nodiscard]] constexpr bool supported() const noexcept {
    return support == Support::supported || support == Support::supported_by_bpf;
  }
  /// One line for a log: what the probe found and how to fix it.
  [[nodiscard]] constexpr const char* why() const noexcept;
};

/// "supported", "supported_by_bpf", "not_in_kernel", "number_taken", "blocked" or "error".
[[nodiscard]] constexpr const char* to_string(Support support) noexcept {
  switch (support) {
    case Support::supported: return "supported";
    case Support::supported_by_bpf: return "supported_by_bpf";
    case Support::not_in_kernel: return "not_in_kernel";
    case Support::number_taken: return "number_taken";
    case Support::blocked: return "blocked";
    case Support::error: break;
  }
  return "error";
}

/// "socket", "get", ...: the names of ProbeStep.
[[nodiscard]] constexpr const char* to_string(ProbeStep step) noexcept {
  switch (step) {
    case ProbeStep::socket: return "socket";
    case ProbeStep::get: return "get";
    case ProbeStep::answer_length: return "answer_length";
    case ProbeStep::answer_value: return "answer_value";
    case ProbeStep::bad_value: return "bad_value";
    case ProbeStep::round_trip: return "round_trip";
    case ProbeStep::wrong_family: return "wrong_family";
    case ProbeStep::behaviour: return "behaviour";
    case ProbeStep::all: break;
  }
  return "all";
}

constexpr const char* ProbeResult::why() const noexcept {
  switch (support) {
    case Support::supported: return "the kernel has SO_REUSEPORT_LISTEN_OFF";
    case Support::supported_by_bpf: return "BPF provides SO_REUSEPORT_LISTEN_OFF";
    case Support::not_in_kernel:
      return "this kernel lacks SO_REUSEPORT_LISTEN_OFF; \"reuseportctl enable\" provides it by "
             "BPF, or boot a kernel built with the patches";
    case Support::number_taken:
      return "option number 0x5250 means something else on this kernel; do not use it";
    case Support::blocked:
      return "a seccomp filter, LSM or cgroup program blocks the option; allow getsockopt and "
             "setsockopt of level SOL_SOCKET, name 0x5250";
    case Support::error: break;
  }
  return step == ProbeStep::behaviour
             ? "cannot test the option on loopback; is lo up in this network namespace?"
             : "cannot query the kernel; try again later";
}

namespace detail {

// Modes and the size of struct reuseport_listen_info, as in <linux/reuseport.h>.
inline constexpr int probe_mode_on = 0;
inline constexpr int probe_mode_off = 1;
inline constexpr int probe_mode_standby = 2;
inline constexpr int probe_mode_none = 0x7fffff01;
inline constexpr unsigned probe_info_size = 32;
inline constexpr std::uint32_t probe_flag_bpf = 1U << 31U;

#if defined(__linux__)

class ProbeSocket {
 public:
  ProbeSocket(int family, int type) noexcept
      : fd_(::socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {}
  explicit ProbeSocket(int fd) noexcept : fd_(fd) {}
  ProbeSocket(const ProbeSocket&) = delete;
  ProbeSocket& operator=(const ProbeSocket&) = delete;
  ProbeSocket(ProbeSocket&&) = delete;
  ProbeSocket& operator=(ProbeSocket&&) = delete;
  ~ProbeSocket() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] bool valid() const noexcept { return fd_ >= 0; }
  /// errno, or 0.
  [[nodiscard]] int set(int name, int value) const noexcept {
    return ::setsockopt(fd_, SOL_SOCKET, name, &value, sizeof(value)) == 0 ? 0 : errno;
  }

 private:
  int fd_;
};

[[nodiscard]] constexpr bool probe_is_blocked(int errnum) noexcept {
  return errnum == EPERM || errnum == EACCES || errnum == ENOSYS;
}

[[nodiscard]] constexpr ProbeResult probe_failed(ProbeStep step, int errnum) noexcept {
  if (probe_is_blocked(errnum)) {
    return {Support::blocked, step, errnum};
  }
  // EAGAIN: while BPF is being replaced, no mode can be changed for a moment. ENOPROTOOPT, from
  // what has just answered: BPF comes or goes.
  const bool passing = errnum == ENOPROTOOPT || errnum == ENOMEM || errnum == ENOBUFS ||
                       errnum == EMFILE || errnum == ENFILE || errnum == EINTR || errnum == EAGAIN;
  if (passing || step == ProbeStep::socket) {
    return {Support::error, step, errnum};
  }
  return {Support::number_taken, step, errnum};
}

/// Reads the option; a valid answer has the right length and says: ON, no group.
[[nodiscard]] inline ProbeResult probe_get(const ProbeSocket& sock, int number) noexcept {
  // Room to spare, so that a longer answer is recognised as another option's. A later version of
  // the struct may grow, by whole words.
  std::uint32_t answer[probe_info_size];  // 4 times the size
  std::memset(answer, 0xff, sizeof(answer));
  socklen_t len = sizeof(answer);
  if (::getsockopt(sock.fd(), SOL_SOCKET, number, answer, &len) != 0) {
    return errno == ENOPROTOOPT ? ProbeResult{Support::not_in_kernel, ProbeStep::get, errno}
                                : probe_failed(ProbeStep::get, errno);
  }
  if (len < probe_info_size || len >= sizeof(answer) || len % sizeof(std::uint32_t) != 0) {
    return {Support::number_taken, ProbeStep::answer_length, 0};
  }
  for (unsigned word = 0; word < probe_info_size / sizeof(std::uint32_t); ++word) {
    // Word 1 holds the flags; all others are 0 on a fresh socket.
    if (word != 1 && answer[word] != 0) {
      return {Support::number_taken, ProbeStep::answer_value, 0};
    }
  }
  int mode = -1;
  len = sizeof(mode);
  if (::getsockopt(sock.fd(), SOL_SOCKET, number, &mode, &len) != 0) {
    return probe_failed(ProbeStep::get, errno);
  }
  if (len != sizeof(mode)) {
    return {Support::number_taken, ProbeStep::answer_length, 0};
  }
  if (mode != probe_mode_on) {
    return {Support::number_taken, ProbeStep::answer_value, 0};
  }
  return {(answer[1] & probe_flag_bpf) != 0 ? Support::supported_by_bpf : Support::supported,
          ProbeStep::all, 0};
}

/// Sets each mode and reads it back.
[[nodiscard]] inline ProbeResult probe_round_trip(const ProbeSocket& sock, int number,
                                                  ProbeResult good) noexcept {
  for (const int mode : {probe_mode_off, probe_mode_standby, probe_mode_on}) {
    if (const int errnum = sock.set(number, mode); errnum != 0) {
      return probe_failed(ProbeStep::round_trip, errnum);
    }
    int seen = -1;
    socklen_t len = sizeof(seen);
    if (::getsockopt(sock.fd(), SOL_SOCKET, number, &seen, &len) != 0) {
      return probe_failed(ProbeStep::round_trip, errno);
    }
    if (len != sizeof(seen) || seen != mode) {
      return {Support::number_taken, ProbeStep::round_trip, 0};
    }
  }
  return good;
}

/// All steps in turn, on one fresh TCP socket.
[[nodiscard]] inline ProbeResult probe_socket(const ProbeSocket& sock, int number) noexcept {
  if (!sock.valid()) {
    return probe_failed(ProbeStep::socket, errno);
  }
  const ProbeResult good = probe_get(sock, number);
  if (!good.supported()) {
    return good;
  }
  if (const int errnum = sock.set(SO_REUSEPORT, 1); errnum != 0) {
    return probe_failed(ProbeStep::socket, errnum);
  }
  if (const int errnum = sock.set(number, probe_mode_none); errnum != EINVAL) {
    return errnum == 0 ? ProbeResult{Support::number_taken, ProbeStep::bad_value, 0}
                       : probe_failed(ProbeStep::bad_value, errnum);
  }
  const ProbeResult found = probe_round_trip(sock, number, good);
  if (!found.supported()) {
    return found;
  }
  const ProbeSocket local(AF_UNIX, SOCK_STREAM);
  if (local.valid()) {  // a sandbox may forbid the family: then skip this step
    const int errnum = local.set(number, probe_mode_on);
    if (errnum != EOPNOTSUPP) {
      return errnum == 0 ? ProbeResult{Support::number_taken, ProbeStep::wrong_family, 0}
                         : probe_failed(ProbeStep::wrong_family, errnum);
    }
  }
  return good;
}

/// The probe for any option number, so that a test can run it on every number the kernel knows.
[[nodiscard]] inline ProbeResult probe_number(int number) noexcept {
  const ProbeSocket sock(AF_INET, SOCK_STREAM);
  if (!sock.valid() && errno == EAFNOSUPPORT) {
    return probe_socket(ProbeSocket(AF_INET6, SOCK_STREAM), number);
  }
  return probe_socket(sock, number);
}

/// A loopback address with port 0, as bind() and connect() take it.
struct ProbeAddress {
  sockaddr_storage storage;
  socklen_t len = 0;

  explicit ProbeAddress(int family) noexcept : storage{} {
    if (family == AF_INET) {
      sockaddr_in sin{};
      sin.sin_family = AF_INET;
      sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      std::memcpy(&storage, &sin, sizeof(sin));
      len = sizeof(sin);
    } else {
      sockaddr_in6 sin6{};
      sin6.sin6_family = AF_INET6;
      sin6.sin6_addr.s6_addr[15] = 1;  // ::1
      std::memcpy(&storage, &sin6, sizeof(sin6));
      len = sizeof(sin6);
    }
  }
  [[nodiscard]] const sockaddr* get() const noexcept {
    return static_cast<const sockaddr*>(static_cast<const void*>(&storage));
  }
  [[nodiscard]] sockaddr* get() noexcept {
    return static_cast<sockaddr*>(static_cast<void*>(&storage));
  }
};

inline constexpr int probe_wait_ms = 1000;

/// Listens on @p at, possibly beside other members of the group. 0 or errno.
[[nodiscard]] inline int probe_listen(const ProbeSocket& sock, ProbeAddress& at,
                                      int backlog) noexcept {
  if (!sock.valid()) {
    return errno;
  }
  if (const int errnum = sock.set(SO_REUSEPORT, 1); errnum != 0) {
    return errnum;
  }
  if (::bind(sock.fd(), at.get(), at.len) != 0 || ::listen(sock.fd(), backlog) != 0 ||
      ::getsockname(sock.fd(), at.get(), &at.len) != 0) {
    return errno;
  }
  return 0;
}

/// One connection, made and reset at once. 0 or errno; never waits longer than probe_wait_ms.
[[nodiscard]] inline int probe_connect(const ProbeAddress& to) noexcept {
  const ProbeSocket client(to.storage.ss_family, SOCK_STREAM);
  if (!client.valid()) {
    return errno;
  }
  if (::connect(client.fd(), to.get(), to.len) != 0 && errno != EINPROGRESS) {
    return errno;
  }
  pollfd wait{client.fd(), POLLOUT, 0};
  const int ready = ::poll(&wait, 1, probe_wait_ms);
  if (ready <= 0) {
    return ready == 0 ? ETIMEDOUT : errno;
  }
  int errnum = 0;
  socklen_t len = sizeof(errnum);
  if (::getsockopt(client.fd(), SOL_SOCKET, SO_ERROR, &errnum, &len) != 0) {
    return errno;
  }
  return errnum;
}

/// Accepts one connection within @p wait_ms; false if none came.
[[nodiscard]] inline bool probe_accept(const ProbeSocket& listener, int wait_ms) noexcept {
  pollfd wait{listener.fd(), POLLIN, 0};
  if (::poll(&wait, 1, wait_ms) <= 0) {
    return false;
  }
  const ProbeSocket taken(::accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  return taken.valid();
}

/// Two listeners, one OFF, @p connects connections: all must reach the one that is ON.
[[nodiscard]] inline ProbeResult probe_loopback(int number, int family, int connects) noexcept {
  constexpr ProbeStep step = ProbeStep::behaviour;
  ProbeAddress at(family);
  const ProbeSocket on(family, SOCK_STREAM);
  if (const int errnum = probe_listen(on, at, connects); errnum != 0) {
    return {Support::error, step, errnum};
  }
  const ProbeSocket off(family, SOCK_STREAM);
  if (const int errnum = probe_listen(off, at, connects); errnum != 0) {
    return {Support::error, step, errnum};
  }
  if (const int errnum = off.set(number, probe_mode_off); errnum != 0) {
    return probe_failed(step, errnum);
  }
  for (int i = 0; i < connects; ++i) {
    if (const int errnum = probe_connect(at); errnum != 0) {
      return {Support::error, step, errnum};
    }
    if (probe_accept(off, 0)) {
      return {Support::number_taken, step, 0};
    }
    if (!probe_accept(on, probe_wait_ms)) {
      return {probe_accept(off, 0) ? Support::number_taken : Support::error, step, ETIMEDOUT};
    }
  }
  return {Support::supported, ProbeStep::all, 0};
}

#else  // not Linux

[[nodiscard]] inline ProbeResult probe_number(int) noexcept {
  return {Support::not_in_kernel, ProbeStep::get, 0};
}

#endif  // __linux__

// The library's only global: 1 + support, step and errno in one word; 0: not probed yet.
inline std::atomic<std::uint32_t> probe_cache{0};

[[nodiscard]] constexpr std::uint32_t probe_pack(const ProbeResult& found) noexcept {
  return (static_cast<std::uint32_t>(found.support) + 1U) |
         (static_cast<std::uint32_t>(found.step) << 8U) |
         (static_cast<std::uint32_t>(found.errnum) << 16U);
}

[[nodiscard]] constexpr ProbeResult probe_unpack(std::uint32_t word) noexcept {
  return {static_cast<Support>((word & 0xffU) - 1U), static_cast<ProbeStep>((word >> 8U) & 0xffU),
          static_cast<int>(word >> 16U)};
}

}  // namespace detail

/// Queries the kernel each time: up to 11 system calls on two throw-away sockets. Sends no packet
/// and leaves the caller's sockets alone. Safe from any thread.
[[nodiscard]] inline ProbeResult probe_now() noexcept {
  return detail::probe_number(SO_REUSEPORT_LISTEN_OFF);
}

/// As probe_now(), cached per process. Support::error is not cached: a process short of descriptors
/// queries again on its next call. Safe from any thread; one atomic load once cached.
[[nodiscard]] inline ProbeResult probe() noexcept {
  if (const std::uint32_t word = detail::probe_cache.load(std::memory_order_relaxed); word != 0) {
    return detail::probe_unpack(word);
  }
  const ProbeResult found = probe_now();
  if (found.support != Support::error) {
    detail::probe_cache.store(detail::probe_pack(found), std::memory_order_relaxed);
  }
  return found;
}

/// As probe(), and tests the option: makes @p connects connections over loopback to two listeners,
/// one of them OFF. "supported" means that the OFF one got none. A kernel that ignored the mode
/// would pass once in 2^connects. Without the option the result is that of probe(). Takes about
/// 50 us per connection, at most 1 s if loopback is down. Safe from any thread.
[[nodiscard]] inline ProbeResult probe_behaviour(int connects = 32) noexcept {
  const ProbeResult found = probe();
  if (!found.supported()) {
    return found;
  }
#if defined(__linux__)
  ProbeResult seen = detail::probe_loopback(SO_REUSEPORT_LISTEN_OFF, AF_INET, connects);
  if (seen.support == Support::error && seen.errnum == EAFNOSUPPORT) {
    seen = detail::probe_loopback(SO_REUSEPORT_LISTEN_OFF, AF_INET6, connects);
  }
  return seen.supported() ? found : seen;
#else
  (void)connects;
  return found;
#endif
}

}  // namespace reuseport

#endif  // REUSEPORT_PROBE_HPP
