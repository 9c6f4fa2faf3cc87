// SPDX-License-Identifier: Apache-2.0
#include "host/bpf_steering.hpp"

#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "host/steer.hpp"

namespace reuseport {
namespace {

constexpr std::chrono::milliseconds renew_every = SteerProgram::lease / 6;

struct Leaving {
  int fd;
  DiagSocket socket;
  std::optional<QueueWatch> watch;
};

struct Group {
  DiagSocket address;
  SteerProgram program;
  std::vector<int> stay;
};

// In the group still, so that a program can be taken off through it.
bool is_member(Protocol protocol, int fd) {
  int accepts = 0;
  socklen_t len = sizeof(accepts);
  return protocol != Protocol::tcp ||
         (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &len) == 0 && accepts != 0);
}

bool together(const DiagSocket& a, const DiagSocket& b) {
  return a.same_address(b) && a.v6only == b.v6only;
}

// What sock_diag says of the socket behind @p fd.
Result<DiagSocket> find(const std::vector<DiagSocket>& all, int fd) {
  struct stat seen {};
  if (::fstat(fd, &seen) != 0) {
    return fail("fstat", errno);
  }
  const auto socket = std::ranges::find(all, seen.st_ino, &DiagSocket::inode);
  if (socket == all.end()) {
    return fail("bpf_steering", EINVAL, "not a listener of this network namespace");
  }
  return *socket;
}

class BpfSteering final : public Steering {
 public:
  explicit BpfSteering(std::vector<Fd> stay) : stay_(std::move(stay)) {}

  Status start(std::span<const int> leaving) override {
    Status started = start_all(leaving);
    if (!started) {
      stop();
    }
    return started;
  }

  Result<Left> left(int fd) override {
    if (Status kept = keep_lease(); !kept) {
      return tl::unexpected(kept.error());
    }
    const auto socket = std::ranges::find(leaving_, fd, &Leaving::fd);
    if (socket == leaving_.end()) {
      return fail("bpf_steering", EINVAL, "not one of the listeners the drain started with");
    }
    const Result<QueueWatch::Remaining> seen = socket->watch->step(*diag_);
    if (!seen) {
      return tl::unexpected(seen.error());
    }
    return Left{static_cast<std::uint32_t>(seen->handshakes),
                static_cast<std::uint32_t>(seen->queued)};
  }

  void stop() noexcept override {
    for (Group& group : groups_) {
      // Through one that stays: the program's own duplicate of a closed listener would get
      // connections in the instant between the program's end and the duplicate's. On undo any
      // member will do; where none stays, -1 leaves that to the old one.
      const auto via = std::ranges::find_if(
          group.stay, [&](int fd) { return is_member(group.address.protocol, fd); });
      static_cast<void>(group.program.stop(via != group.stay.end() ? *via : -1));
    }
    groups_.clear();
    leaving_.clear();
  }

 private:
  Status start_all(std::span<const int> leaving) {
    Result<SockDiag> diag = SockDiag::open();
    if (!diag) {
      return tl::unexpected(diag.error());
    }
    diag_.emplace(std::move(*diag));
    std::vector<DiagSocket> all;
    for (const Protocol protocol : {Protocol::tcp, Protocol::udp}) {
      Result<std::vector<DiagSocket>> some = diag_->listeners(protocol);
      if (!some) {
        return tl::unexpected(some.error());
      }
      all.insert(all.end(), some->begin(), some->end());
    }
    for (const int fd : leaving) {
      const Result<DiagSocket> socket = find(all, fd);
      if (!socket) {
        return tl::unexpected(socket.error());
      }
      if (Status steered = steer(fd, *socket, all); !steered) {
        return steered;
      }
      leaving_.push_back({fd, *socket, std::nullopt});
    }
    renewed_ = Clock::now();
    return snapshot();
  }

  // Attaches a program to the group of @p socket, once for each address.
  Status steer(int fd, const DiagSocket& socket, const std::vector<DiagSocket>& all) {
    if (std::ranges::any_of(groups_, [&](const Group& g) { return together(g.address, socket); })) {
      return {};
    }
    std::vector<int> stay;
    for (const Fd& each : stay_) {
      const Result<DiagSocket> staying = find(all, each.get());
      if (staying && together(*staying, socket)) {
        stay.push_back(each.get());
      }
    }
    if (stay.empty()) {
      return fail("bpf_steering", EADDRNOTAVAIL,
                  "no listener that stays was given for " + socket.local.str());
    }
    Result<SteerProgram> program = SteerProgram::start(socket.protocol, fd, stay);
    if (!program) {
      return tl::unexpected(program.error());
    }
    groups_.push_back({socket, std::move(*program), std::move(stay)});
    return {};
  }

  // Which requests began before the switch; lookups still under way may begin more.
  Status snapshot() {
    if (Status over = wait_lookups(); !over) {
      return over;
    }
    for (Leaving& each : leaving_) {
      Result<QueueWatch> watch = QueueWatch::start(*diag_, {each.socket});
      if (!watch) {
        return tl::unexpected(watch.error());
      }
      each.watch.emplace(std::move(*watch));
    }
    return {};
  }

  Status keep_lease() {
    const Clock::time_point now = Clock::now();
    if (now - renewed_ < renew_every) {
      return {};
    }
    const bool lapsed = now - renewed_ >= SteerProgram::lease;
    for (Group& group : groups_) {
      const Result<std::size_t> alive = group.program.renew();
      if (!alive) {
        return tl::unexpected(alive.error());
      }
      if (*alive == 0) {
        return fail("bpf_steering", EADDRNOTAVAIL,
                    "nobody who stays is left on " + group.address.local.str());
      }
    }
    renewed_ = now;
    return lapsed ? snapshot() : Status{};
  }

  std::vector<Fd> stay_;
  std::optional<SockDiag> diag_;
  std::vector<Group> groups_;
  std::vector<Leaving> leaving_;
  Clock::time_point renewed_;
};

}  // namespace

std::unique_ptr<Steering> bpf_steering(std::vector<Fd> stay) {
  return std::make_unique<BpfSteering>(std::move(stay));
}

}  // namespace reuseport
