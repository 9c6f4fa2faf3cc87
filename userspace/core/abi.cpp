// SPDX-License-Identifier: Apache-2.0
// The drain's C functions: sizes, null pointers, memory and errno, around Drain.
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "engine.hpp"

struct reuseport_drain {
  explicit reuseport_drain(const reuseport_drain_options& options) noexcept : drain(options) {}
  reuseport::core::Drain drain;
};

namespace {

using reuseport::core::Fault;
using reuseport::core::now;

constexpr std::size_t largest = 4096;  // as openat2(2)
constexpr std::size_t word = sizeof(void*);

// A caller's size: at least that of the first version, whole words, at most a page.
int check_size(std::size_t size, std::size_t first_version) {
  if (size < first_version || size % word != 0) {
    return -EINVAL;
  }
  return size > largest ? -E2BIG : 0;
}

// Copies a struct of any version: missing members are 0, unknown bytes must be 0.
template <typename T>
int take(const T* given, std::size_t first_version, T& mine) {
  std::size_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (const int bad = check_size(size, first_version); bad != 0) {
    return bad;
  }
  const auto* bytes = static_cast<const unsigned char*>(static_cast<const void*>(given));
  if (size > sizeof(T) &&
      std::any_of(bytes + sizeof(T), bytes + size, [](unsigned char byte) { return byte != 0; })) {
    return -E2BIG;
  }
  mine = {};
  std::memcpy(&mine, given, std::min(size, sizeof(T)));
  return 0;
}

// Fills a struct of any version with as much of @p fill's result as fits; zeroes unknown bytes.
template <typename T, typename Fill>
int give(T* wanted, std::size_t first_version, Fill fill) {
  std::size_t size = 0;
  if (wanted == nullptr) {
    return -EINVAL;
  }
  std::memcpy(&size, wanted, sizeof(size));
  if (const int bad = check_size(size, first_version); bad != 0) {
    return bad;
  }
  T mine{};
  const int result = fill(mine);
  if (result < 0) {
    return result;
  }
  mine.size = size;
  std::memset(static_cast<void*>(wanted), 0, size);
  std::memcpy(static_cast<void*>(wanted), &mine, std::min(size, sizeof(T)));
  return result;
}

int check(reuseport_drain_options& options) {
  const bool no_accept = options.flags == REUSEPORT_DRAIN_NO_ACCEPT;
  if (options.policy > REUSEPORT_CLOSE_ONLY || options.last_on > REUSEPORT_LAST_LEAVE ||
      options.at_deadline > REUSEPORT_DEADLINE_KEEP || (options.flags != 0 && !no_accept) ||
      (no_accept && options.policy == REUSEPORT_CLOSE_ONLY) || options.timeout_ns < 0 ||
      options.poll_ns < 0 || (options.set_mode == nullptr) != (options.get_info == nullptr)) {
    return -EINVAL;
  }
  if (no_accept) {
    options.policy = REUSEPORT_REQUIRE;
  }
  options.timeout_ns = options.timeout_ns == 0 ? REUSEPORT_MS(30'000) : options.timeout_ns;
  options.poll_ns = options.poll_ns == 0 ? REUSEPORT_MS(20) : options.poll_ns;
  return 0;
}

// Runs @p call without changing errno.
template <typename Call>
int quietly(const void* drain, Call call) {
  if (drain == nullptr) {
    return -EINVAL;
  }
  const int saved = errno;
  const int result = call();
  errno = saved;
  return result;
}

}  // namespace

extern "C" {

int reuseport_drain_new(const reuseport_drain_options* options, reuseport_drain** drain) {
  return quietly(drain, [=] {
    reuseport_drain_options taken{};
    *drain = nullptr;
    if (options != nullptr) {
      constexpr std::size_t first = offsetof(reuseport_drain_options, last_on) + sizeof(uint32_t);
      if (const int bad = take(options, first, taken); bad != 0) {
        return bad;
      }
    }
    if (const int bad = check(taken); bad != 0) {
      return bad;
    }
    void* memory = std::malloc(sizeof(reuseport_drain));
    if (memory == nullptr) {
      return -ENOMEM;
    }
    *drain = new (memory) reuseport_drain(taken);
    return 0;
  });
}

int reuseport_drain_add(reuseport_drain* drain, int fd) {
  return quietly(drain, [=] { return drain->drain.add(fd); });
}

int reuseport_drain_start(reuseport_drain* drain) {
  return quietly(drain, [=] { return drain->drain.start(now()); });
}

int reuseport_drain_step(reuseport_drain* drain, reuseport_step* step) {
  constexpr std::size_t first = offsetof(reuseport_step, n_fds) + sizeof(uint32_t);
  return quietly(drain, [=] {
    return give(step, first, [=](reuseport_step& mine) { return drain->drain.step(now(), mine); });
  });
}

int reuseport_drain_undo(reuseport_drain* drain) {
  return quietly(drain, [=] { return drain->drain.undo(now()); });
}

int reuseport_drain_get_report(const reuseport_drain* drain, reuseport_drain_report* report) {
  constexpr std::size_t first = offsetof(reuseport_drain_report, lossless) + sizeof(uint32_t);
  return quietly(drain, [=] {
    return give(report, first, [=](reuseport_drain_report& mine) {
      drain->drain.report(now(), mine);
      return 0;
    });
  });
}

int reuseport_drain_get_listener(const reuseport_drain* drain, size_t index,
                                 reuseport_listener_report* report) {
  constexpr std::size_t first = offsetof(reuseport_listener_report, outcome) + sizeof(uint32_t);
  return quietly(drain, [=] {
    return give(report, first, [=](reuseport_listener_report& mine) {
      return drain->drain.listener(index, mine);
    });
  });
}

int reuseport_drain_get_error(const reuseport_drain* drain, reuseport_error* error) {
  constexpr std::size_t first = offsetof(reuseport_error, fd) + sizeof(int32_t);
  return quietly(drain, [=] {
    return give(error, first, [=](reuseport_error& mine) {
      const Fault& fault = drain->drain.fault();
      mine.error = -fault.errnum;
      mine.fd = fault.fd;
      mine.call = fault.call;
      mine.hint = fault.hint;
      return 0;
    });
  });
}

void reuseport_drain_free(reuseport_drain* drain) {
  (void)quietly(drain, [=] {
    if (drain->drain.in_progress()) {
      (void)drain->drain.undo(now());
    }
    drain->~reuseport_drain();
    std::free(drain);
    return 0;
  });
}

}  // extern "C"
