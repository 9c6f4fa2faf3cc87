// SPDX-License-Identifier: Apache-2.0
#include "host/steer.hpp"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "bpf_code.hpp"
#include "host/endpoint.hpp"
#include "steer_program.hpp"

namespace reuseport {

namespace {

using detail::bpf_fail;
using detail::bpf_hint;

struct Maps {
  Fd array;
  Fd control;
};

Result<Maps> make_maps() {
  Maps m;
  // a value of eight bytes takes a descriptor in and gives the socket's cookie out
  m.array.reset(bpf_map_create(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, detail::steer_name,
                               sizeof(std::uint32_t), sizeof(std::uint64_t), detail::steer_slots,
                               nullptr));
  if (!m.array) {
    return bpf_fail("bpf(BPF_MAP_CREATE, REUSEPORT_SOCKARRAY)", errno);
  }
  m.control.reset(bpf_map_create(BPF_MAP_TYPE_ARRAY, "reuseport_ctl", sizeof(std::uint32_t),
                                 sizeof(detail::SteerControl), 1, nullptr));
  if (!m.control) {
    return bpf_fail("bpf(BPF_MAP_CREATE, ARRAY)", errno);
  }
  return m;
}

Result<Fd> load_steer(int array, int control) {
  const auto insns = detail::steer_program(array, control);
  bpf_prog_load_opts opts{};
  opts.sz = sizeof(opts);
  opts.expected_attach_type = BPF_SK_REUSEPORT_SELECT;
  Fd prog(bpf_prog_load(BPF_PROG_TYPE_SK_REUSEPORT, detail::steer_name, detail::bpf_licence,
                        insns.data(), insns.size(), &opts));
  if (!prog) {
    return bpf_fail("bpf(BPF_PROG_LOAD, SK_REUSEPORT)", errno);
  }
  return prog;
}

Result<Fd> load_group_iterator(Protocol protocol) {
  const auto code = detail::group_iterator(protocol);
  if (!code) {
    return tl::unexpected(code.error());
  }
  return detail::load_iterator(*code, "reuseport_seen");
}

std::uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
}

Result<bpf_prog_info> program_info(int fd) {
  bpf_prog_info info{};
  std::uint32_t len = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd, &info, &len) != 0) {
    return bpf_fail("bpf(BPF_OBJ_GET_INFO_BY_FD)", errno);
  }
  return info;
}

/// One tool at a time for an address. An abstract socket goes away with its process, however that
/// ends, and is one per network namespace, like the address itself.
Result<Fd> lock_address(Protocol protocol, int group) {
  sockaddr_storage bound{};
  socklen_t len = sizeof(bound);
  if (::getsockname(group, reinterpret_cast<sockaddr*>(&bound), &len) != 0) {
    return fail("getsockname", errno);
  }
  const auto local = Endpoint::from(bound, len);
  if (!local) {
    return fail("getsockname", EAFNOSUPPORT, "only IPv4 and IPv6 have reuseport groups");
  }
  const std::string name =
      "reuseport-steer/" + std::string(to_string(protocol)) + "/" + local->str();
  sockaddr_un un{};
  un.sun_family = AF_UNIX;
  std::memcpy(un.sun_path + 1, name.data(), std::min(name.size(), sizeof(un.sun_path) - 1));
  Fd lock(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!lock) {
    return fail("socket(AF_UNIX)", errno);
  }
  if (::bind(lock.get(), reinterpret_cast<sockaddr*>(&un),
             static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size())) != 0) {
    const int err = errno == EADDRINUSE ? EBUSY : errno;
    return fail("lock of " + local->str(), err,
                err == EBUSY ? "another process is steering this address, wait for it" : "");
  }
  return lock;
}

/// A socket is in one map at most, and a map goes away some time after its last user did: take the
/// sockets out now.
void empty_array(int array) {
  for (std::uint32_t slot = 0; slot < detail::steer_slots; slot++) {
    bpf_map_delete_elem(array, &slot);
  }
}

/// The same for the maps of a program that a killed tool left behind.
void empty_arrays_of(int program) {
  std::array<std::uint32_t, 4> ids{};
  bpf_prog_info info{};
  info.nr_map_ids = ids.size();
  info.map_ids = reinterpret_cast<std::uintptr_t>(ids.data());
  std::uint32_t len = sizeof(info);
  if (bpf_obj_get_info_by_fd(program, &info, &len) != 0) {
    return;
  }
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(info.nr_map_ids, ids.size()); i++) {
    const Fd map(bpf_map_get_fd_by_id(ids[i]));
    bpf_map_info about{};
    std::uint32_t about_len = sizeof(about);
    if (map && bpf_obj_get_info_by_fd(map.get(), &about, &about_len) == 0 &&
        about.type == BPF_MAP_TYPE_REUSEPORT_SOCKARRAY) {
      empty_array(map.get());
    }
  }
}

Status detach(int group) {
  const int zero = 0;
  if (::setsockopt(group, SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, &zero, sizeof(zero)) != 0) {
    return fail("setsockopt(SO_DETACH_REUSEPORT_BPF)", errno);
  }
  return {};
}

/// Makes sure that nobody's program is attached; one left behind by a killed tool is taken off.
Status ensure_free(Protocol protocol, int group, std::uint64_t cookie) {
  const auto found = attached_program(protocol, cookie);
  if (!found) {
    return tl::unexpected(found.error());
  }
  if (!*found) {
    return {};
  }
  if ((*found)->id != 0) {
    const Fd prog(bpf_prog_get_fd_by_id((*found)->id));
    const auto info = prog ? program_info(prog.get()) : fail("bpf_prog_get_fd_by_id", errno);
    if (info && std::strncmp(info->name, detail::steer_name, sizeof(info->name)) == 0) {
      // its owner is dead: the lock is ours
      if (auto ok = detach(group); !ok) {
        return ok;
      }
      empty_arrays_of(prog.get());
      return {};
    }
  }
  return fail("attach to the group", EBUSY,
              (*found)->id != 0
                  ? "BPF program " + std::to_string((*found)->id) +
                        " is attached already and is not replaced (bpftool prog show id " +
                        std::to_string((*found)->id) + ")"
                  : "a classic BPF program is attached already and is not replaced");
}

}  // namespace

Result<std::uint64_t> socket_cookie(int fd) {
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) != 0) {
    return fail("getsockopt(SO_COOKIE)", errno);
  }
  return cookie;
}

Status wait_lookups() {
  if (::syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0) {
    const int err = errno;
    return fail("membarrier(MEMBARRIER_CMD_GLOBAL)", err,
                err == EINVAL ? "not available with nohz_full CPUs" : "");
  }
  return {};
}

Result<std::optional<AttachedProgram>> attached_program(Protocol protocol, std::uint64_t cookie) {
  const auto program = load_group_iterator(protocol);
  if (!program) {
    return tl::unexpected(program.error());
  }
  const auto records = detail::run_iterator<detail::GroupRecord>(program->get());
  if (!records) {
    return tl::unexpected(records.error());
  }
  const auto found = std::ranges::find(*records, cookie, &detail::GroupRecord::cookie);
  return found != records->end()
             ? std::optional<AttachedProgram>{AttachedProgram{found->program_id}}
             : std::nullopt;
}

Status SteerProgram::probe() {
  auto iterator = load_group_iterator(Protocol::tcp);
  if (!iterator) {
    return tl::unexpected(iterator.error());
  }
  auto maps = make_maps();
  if (!maps) {
    return tl::unexpected(maps.error());
  }
  auto prog = load_steer(maps->array.get(), maps->control.get());
  if (!prog) {
    return tl::unexpected(prog.error());
  }
  return {};
}

Result<SteerProgram> SteerProgram::start(Protocol protocol, int group,
                                         const std::vector<int>& stay) {
  if (stay.empty()) {
    return fail("steering", EINVAL, "no listener stays");
  }
  SteerProgram s;
  s.protocol_ = protocol;
  s.group_.reset(::fcntl(group, F_DUPFD_CLOEXEC, 0));
  if (!s.group_) {
    return fail("fcntl(F_DUPFD_CLOEXEC)", errno);
  }
  const auto cookie = socket_cookie(group);
  if (!cookie) {
    return tl::unexpected(cookie.error());
  }
  s.group_cookie_ = *cookie;
  auto lock = lock_address(protocol, group);
  if (!lock) {
    return tl::unexpected(lock.error());
  }
  s.lock_ = std::move(*lock);
  if (auto ok = ensure_free(protocol, group, *cookie); !ok) {
    return tl::unexpected(ok.error());
  }
  auto maps = make_maps();
  if (!maps) {
    return tl::unexpected(maps.error());
  }
  s.array_ = std::move(maps->array);
  s.control_ = std::move(maps->control);
  for (const int fd : stay) {
    if (auto ok = s.add(fd); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  auto prog = load_steer(s.array_.get(), s.control_.get());
  if (!prog) {
    return tl::unexpected(prog.error());
  }
  const auto info = program_info(prog->get());
  if (!info) {
    return tl::unexpected(info.error());
  }
  const int fd = prog->get();
  if (::setsockopt(group, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &fd, sizeof(fd)) != 0) {
    const int err = errno;
    return fail("setsockopt(SO_ATTACH_REUSEPORT_EBPF)", err,
                err == EINVAL ? "the socket is in no reuseport group" : bpf_hint(err));
  }
  s.program_ = std::move(*prog);
  s.program_id_ = info->id;
  return s;
}

SteerProgram& SteerProgram::operator=(SteerProgram&& other) noexcept {
  if (this != &other) {
    static_cast<void>(stop());
    protocol_ = other.protocol_;
    group_cookie_ = other.group_cookie_;
    program_id_ = other.program_id_;
    lock_ = std::move(other.lock_);
    group_ = std::move(other.group_);
    array_ = std::move(other.array_);
    control_ = std::move(other.control_);
    program_ = std::move(other.program_);
    count_ = other.count_;
  }
  return *this;
}

SteerProgram::~SteerProgram() {
  static_cast<void>(stop());
}

std::uint64_t SteerProgram::cookie_at(std::uint32_t slot) const {
  std::uint64_t cookie = 0;
  return bpf_map_lookup_elem(array_.get(), &slot, &cookie) == 0 ? cookie : 0;
}

Status SteerProgram::write_control() const {
  const detail::SteerControl control{
      monotonic_ns() + static_cast<std::uint64_t>(std::chrono::nanoseconds(lease).count()), count_,
      0};
  const std::uint32_t key = 0;
  if (bpf_map_update_elem(control_.get(), &key, &control, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM)", errno);
  }
  return {};
}

Status SteerProgram::add(int fd) {
  const auto cookie = socket_cookie(fd);
  if (!cookie) {
    return tl::unexpected(cookie.error());
  }
  std::uint32_t slot = count_;
  for (std::uint32_t i = 0; i < count_; i++) {
    const std::uint64_t there = cookie_at(i);
    if (there == *cookie) {
      return {};
    }
    if (there == 0) {
      slot = std::min(slot, i);  // the first gap
    }
  }
  if (slot >= detail::steer_slots) {
    return fail("bpf(BPF_MAP_UPDATE_ELEM)", ENOSPC, "more listeners than a steering map holds");
  }
  const auto value = static_cast<std::uint64_t>(fd);
  if (bpf_map_update_elem(array_.get(), &slot, &value, BPF_ANY) != 0) {
    const int err = errno;
    return fail("bpf(BPF_MAP_UPDATE_ELEM)", err,
                err == EBUSY    ? "the listener is in another program's map"
                : err == EINVAL ? "the listener is in no reuseport group"
                                : bpf_hint(err));
  }
  count_ = std::max(count_, slot + 1);
  return write_control();
}

Result<std::size_t> SteerProgram::renew() {
  std::size_t alive = 0;
  std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < count_; i++) {
    if (cookie_at(i) != 0) {
      alive++;
      last = i + 1;
    }
  }
  count_ = last;
  if (auto ok = write_control(); !ok) {
    return tl::unexpected(ok.error());
  }
  return alive;
}

Status SteerProgram::stop(int via) {
  if (!program_) {
    if (array_) {
      empty_array(array_.get());  // start() failed half-way
      array_.reset();
    }
    return {};
  }
  program_.reset();
  Status result;
  auto cookie = Result<std::uint64_t>(group_cookie_);
  if (via >= 0) {
    cookie = socket_cookie(via);
    group_.reset();
  }
  const auto found = cookie
                         ? attached_program(protocol_, *cookie)
                         : Result<std::optional<AttachedProgram>>(tl::unexpected(cookie.error()));
  if (found && *found && (*found)->id != program_id_) {
    result = fail("detach from the group", EBUSY, "another program has replaced ours; left alone");
  } else if (!found || *found) {
    result = detach(via >= 0 ? via : group_.get());
  }
  empty_array(array_.get());
  group_.reset();
  array_.reset();
  control_.reset();
  lock_.reset();
  return result;
}

Result<QueueWatch> QueueWatch::start(SockDiag& diag, std::vector<DiagSocket> old) {
  if (auto ok = wait_lookups(); !ok) {
    return tl::unexpected(ok.error());
  }
  QueueWatch w;
  w.old_ = std::move(old);
  for (const DiagSocket& s : w.old_) {
    if (s.protocol != Protocol::tcp) {
      continue;
    }
    auto requests = diag.half_open(s.local);
    if (!requests) {
      return tl::unexpected(requests.error());
    }
    for (const DiagSocket& r : *requests) {
      w.requests_.push_back(r.cookie);
    }
  }
  std::sort(w.requests_.begin(), w.requests_.end());
  w.requests_.erase(std::unique(w.requests_.begin(), w.requests_.end()), w.requests_.end());
  return w;
}

Result<QueueWatch::Remaining> QueueWatch::step(SockDiag& diag) {
  Remaining left;
  std::vector<std::uint64_t> still;
  std::vector<Endpoint> asked;
  // requests first: one that completes meanwhile is then counted in the queue
  for (const DiagSocket& s : old_) {
    if (s.protocol != Protocol::tcp || requests_.empty() ||
        std::find(asked.begin(), asked.end(), s.local) != asked.end()) {
      continue;
    }
    asked.push_back(s.local);
    auto requests = diag.half_open(s.local);
    if (!requests) {
      return tl::unexpected(requests.error());
    }
    for (const DiagSocket& r : *requests) {
      if (std::binary_search(requests_.begin(), requests_.end(), r.cookie)) {
        still.push_back(r.cookie);
      }
    }
  }
  std::sort(still.begin(), still.end());
  still.erase(std::unique(still.begin(), still.end()), still.end());
  requests_ = std::move(still);
  left.handshakes = requests_.size();
  if (requests_.empty() && !settled_) {
    // A request leaves the table a moment before its child is in the accept queue; both happen in
    // one RCU section, so after a grace period the queue has all of them.
    if (auto ok = wait_lookups(); !ok) {
      return tl::unexpected(ok.error());
    }
    settled_ = true;
  }

  std::erase_if(old_, [](const DiagSocket& s) { return s.cookie == 0; });
  for (DiagSocket& s : old_) {
    const auto now = diag.query(s);
    if (!now) {
      return tl::unexpected(now.error());
    }
    if (*now) {
      left.queued += (*now)->queued;
    } else {
      s.cookie = 0;  // closed
    }
  }
  return left;
}

}  // namespace reuseport
