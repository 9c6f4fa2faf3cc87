// SPDX-License-Identifier: Apache-2.0
// Drains in any order of calls and events. The option is played by a table, the listeners are real,
// in a network namespace of this process. The first byte chooses the options, every other is one
// call or one event, by its letter:
//
//   a add   s start   t step   u undo
//   h half-open   q queued   d nothing left   c cookies   m tcp_migrate_req
//   n newcomer leaves   N newcomer comes   r newcomer leaves, and the table does not know
//   e, E set_mode fails, for now or for good   g look fails   o works again
//   v listener vanishes   x listener closed by somebody else   k shut down
//
// Aborts where a call does not answer what it must, or where a report claims more than the table
// and the sockets can have shown.
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "reuseport/reuseport.hpp"
#include "states.hpp"

namespace {

using reuseport::Fd;
using reuseport::fuzz::require;

const reuseport::fuzz::States states{"drained",
                                     "drained_by_a_tool",
                                     "leaves",
                                     "migrated",
                                     "unconfirmed",
                                     "falls_back",
                                     "closed_late",
                                     "kept",
                                     "vanishes",
                                     "shut_down",
                                     "closed_elsewhere",
                                     "undone",
                                     "newcomer_dies",
                                     "undone_at_deadline",
                                     "obstacle",
                                     "waits",
                                     "waits_for_newcomer",
                                     "refused_last",
                                     "refused_option",
                                     "refused_closed",
                                     "refused_gone",
                                     "added_twice",
                                     "added_late"};

struct Old {
  int fd = -1;
  std::uint32_t mode = REUSEPORT_LISTEN_ON;
  std::uint32_t told = REUSEPORT_LISTEN_ON;  ///< before the drain
  int closes = 0;
  bool drained = false;  ///< as the last look was answered
};

struct World {
  std::vector<Old> olds;
  bool newcomer = true;
  bool started = false;
  bool undone = false;  ///< by a call
  bool shut = false;
  bool closed_elsewhere = false;
  int set_error = 0;
  int get_error = 0;
  std::uint32_t handshakes = 0;
  std::uint32_t queued = 0;
  std::uint32_t flags = REUSEPORT_LISTEN_F_SETTLED;

  Old* find(int fd) {
    // The youngest: a number may be used again.
    const auto old =
        std::find_if(olds.rbegin(), olds.rend(), [fd](const Old& o) { return o.fd == fd; });
    return old == olds.rend() ? nullptr : &*old;
  }
};

int set_mode(int fd, int mode, void* user) {
  auto* world = static_cast<World*>(user);
  Old* old = world->find(fd);
  require(old != nullptr && old->closes == 0, "set_mode of a stranger");
  if (world->set_error == 0) {
    old->mode = static_cast<std::uint32_t>(mode);
  }
  return -world->set_error;
}

int get_info(int fd, reuseport_listen_info* info, void* user) {
  auto* world = static_cast<World*>(user);
  Old* old = world->find(fd);
  require(old != nullptr && old->closes == 0, "get_info of a stranger");
  if (world->get_error != 0) {
    return -world->get_error;
  }
  *info = {};
  info->mode = old->mode;
  info->flags = world->flags;
  info->handshakes = world->handshakes;
  info->queued = world->queued;
  info->group_on = world->newcomer ? 1 : 0;
  for (const Old& each : world->olds) {
    if (each.closes == 0) {
      (each.mode == REUSEPORT_LISTEN_ON ? info->group_on : info->group_standby)++;
    }
  }
  old->drained = reuseport_drained(info) == 1;
  return 0;
}

void close_listener(int fd, void* user) {
  Old* old = static_cast<World*>(user)->find(fd);
  require(old != nullptr && ++old->closes == 1, "closed twice");
  ::close(fd);
}

Fd open_listener(std::uint16_t& port) {
  Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  sockaddr_in at{};
  socklen_t len = sizeof(at);
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  at.sin_port = port;
  auto* address = static_cast<sockaddr*>(static_cast<void*>(&at));
  require(::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) == 0 &&
              ::bind(fd.get(), address, len) == 0 && ::listen(fd.get(), 1) == 0 &&
              ::getsockname(fd.get(), address, &len) == 0,
          "no listener to be had");
  port = at.sin_port;
  return fd;
}

// What add must answer.
int to_add(const World& world, int fd) {
  if (world.started) {
    states.reached("added_late");
    return -EBUSY;
  }
  // The number of one that somebody else has closed.
  if (std::ranges::any_of(world.olds, [fd](const Old& o) { return o.fd == fd; })) {
    states.reached("added_twice");
    return -EEXIST;
  }
  return 0;
}

// What start must answer.
int to_start(const World& world, const reuseport_drain_options& options) {
  if (world.started) {
    return -EBUSY;
  }
  if (world.olds.empty()) {
    return -EINVAL;
  }
  if (world.closed_elsewhere) {
    states.reached("refused_closed");
    return -EBADF;
  }
  if (world.get_error == ESTALE) {
    states.reached("refused_gone");
    return -ESTALE;
  }
  if (world.get_error != 0) {
    return 0;  // step tries again
  }
  if (options.last_on == REUSEPORT_LAST_REFUSE && !world.newcomer) {
    states.reached("refused_last");
    return -EADDRNOTAVAIL;
  }
  const bool required = options.policy == REUSEPORT_REQUIRE || options.flags != 0;
  if (world.set_error == EBUSY && required) {
    states.reached("refused_option");
    return -EBUSY;
  }
  return 0;
}

void set_migrate_req(bool on) {
  static bool is_on = false;
  if (on != is_on) {
    const Fd file(::open("/proc/sys/net/ipv4/tcp_migrate_req", O_WRONLY | O_CLOEXEC));
    require(::write(file.get(), on ? "1" : "0", 1) == 1, "tcp_migrate_req");
    is_on = on;
  }
}

const char* state_of(const World& world, const reuseport_drain_options& options,
                     const reuseport_drain_report& report) {
  const bool running = report.outcome == REUSEPORT_RUNNING;
  switch (report.outcome) {
    case REUSEPORT_DRAINED:
      return world.olds.front().mode == REUSEPORT_LISTEN_OFF ? "leaves"
             : options.flags != 0                            ? "drained_by_a_tool"
                                                             : "drained";
    case REUSEPORT_MIGRATED: return "migrated";
    case REUSEPORT_UNCONFIRMED: return "unconfirmed";
    case REUSEPORT_SWEPT_AND_CLOSED: return "falls_back";
    case REUSEPORT_DEADLINE_HIT:
      return std::ranges::any_of(world.olds, [](const Old& o) { return o.closes == 0; })
                 ? "kept"
                 : "closed_late";
    case REUSEPORT_VANISHED:
      return world.closed_elsewhere ? "closed_elsewhere" : world.shut ? "shut_down" : "vanishes";
    case REUSEPORT_UNDONE:
      return report.timed_out != 0 ? "undone_at_deadline"
             : world.undone        ? "undone"
                                   : "newcomer_dies";
    default: break;
  }
  if (running && report.method == REUSEPORT_METHOD_NONE) {
    return "obstacle";
  }
  if (running && report.handshakes + report.queued > 0) {
    return "waits";
  }
  return running && !world.newcomer && options.last_on == REUSEPORT_LAST_WAIT ? "waits_for_newcomer"
                                                                              : nullptr;
}

void check(reuseport_drain* drain, const World& world, const reuseport_drain_options& options) {
  const bool started = world.started;
  reuseport_drain_report report{};
  report.size = sizeof(report);
  require(reuseport_drain_get_report(drain, &report) == 0, "no report");
  const std::uint32_t outcome = report.outcome;
  require(started || (outcome == REUSEPORT_NOT_STARTED && report.lossless == 0), "never started");
  require((report.lossless == 1) == (outcome == REUSEPORT_DRAINED || outcome == REUSEPORT_MIGRATED),
          "lossless and outcome differ");
  require(outcome != REUSEPORT_DRAINED || std::all_of(world.olds.begin(), world.olds.end(),
                                                      [](const Old& o) { return o.drained; }),
          "drained, but the last look said otherwise");
  require(outcome != REUSEPORT_DRAINED || report.method == REUSEPORT_METHOD_OPTION, "drained how?");
  for (std::size_t i = 0; outcome == REUSEPORT_UNDONE && i < world.olds.size(); ++i) {
    reuseport_listener_report listener{};
    listener.size = sizeof(listener);
    require(reuseport_drain_get_listener(drain, i, &listener) == 0, "no such listener");
    require(listener.open == 0 || listener.error != 0 || world.olds[i].closes != 0 ||
                world.olds[i].mode == world.olds[i].told,
            "undone, but a mode is not what it was");
  }
  if (const char* state = state_of(world, options, report); state != nullptr) {
    states.reached(state);
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  require(::unshare(CLONE_NEWNET) == 0 || ::unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0, "unshare");
  const Fd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq lo{};
  lo.ifr_name[0] = 'l';
  lo.ifr_name[1] = 'o';
  lo.ifr_flags = IFF_UP;
  require(::ioctl(any.get(), SIOCSIFFLAGS, &lo) == 0, "lo");
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) {
    return 0;
  }
  World world;
  reuseport_drain_options options{};
  options.size = sizeof(options);
  options.policy = data[0] % 2;
  options.last_on = data[0] / 2 % 3;
  options.at_deadline = data[0] / 6 % 3;
  options.flags = data[0] / 18 % 2;
  options.timeout_ns = data[0] / 36 % 2 == 0 ? 1 : REUSEPORT_FOREVER;
  options.set_mode = set_mode;
  options.get_info = get_info;
  options.is_shared = [](int, void*) { return 0; };
  options.close = close_listener;
  options.user = &world;
  reuseport_drain* drain = nullptr;
  require(reuseport_drain_new(&options, &drain) == 0, "good options");
  std::uint16_t port = 0;
  Fd newcomer = open_listener(port);
  reuseport_step step{};
  step.size = sizeof(step);
  set_migrate_req(false);
  for (std::size_t i = 1; i < std::min<std::size_t>(size, 64); ++i) {
    switch (data[i]) {
      case 'a': {
        Fd fd = open_listener(port);
        const int wanted = to_add(world, fd.get());
        require(reuseport_drain_add(drain, fd.get()) == wanted, "add");
        if (wanted == 0) {
          world.olds.push_back({.fd = fd.release()});
        }
        break;
      }
      case 's': {
        const int wanted = to_start(world, options);
        require(reuseport_drain_start(drain) == wanted, "start");
        world.started = world.started || wanted == 0;
        break;
      }
      case 't': require(reuseport_drain_step(drain, &step) >= 0 == world.started, "step"); break;
      case 'u':
        (void)reuseport_drain_undo(drain);
        world.undone = world.started;
        break;
      case 'm': set_migrate_req(true); break;
      case 'h': world.handshakes = 1; break;
      case 'q': world.queued = 1; break;
      case 'c': world.flags |= REUSEPORT_LISTEN_F_COOKIES; break;
      case 'd':
        world.handshakes = world.queued = 0;
        world.flags = REUSEPORT_LISTEN_F_SETTLED;
        break;
      case 'n':
        world.newcomer = false;
        newcomer.reset();
        break;
      case 'r': newcomer.reset(); break;
      case 'N':
        world.newcomer = true;
        newcomer = open_listener(port);
        break;
      case 'e': world.set_error = EAGAIN; break;
      case 'E': world.set_error = EBUSY; break;
      case 'g': world.get_error = ENOBUFS; break;
      case 'v': world.get_error = ESTALE; break;
      case 'o': world.set_error = world.get_error = 0; break;
      case 'x':
      case 'k':
        if (!world.olds.empty() && world.olds.front().closes == 0) {
          Old& old = world.olds.front();
          if (data[i] == 'k') {
            (void)::shutdown(old.fd, SHUT_RD);
            world.shut = true;
          } else {
            old.closes = 1;
            ::close(old.fd);
            world.closed_elsewhere = true;
          }
        }
        break;
      default: break;
    }
    check(drain, world, options);
  }
  reuseport_drain_free(drain);
  for (const Old& old : world.olds) {
    if (old.closes == 0) {
      ::close(old.fd);
    }
  }
  return 0;
}
