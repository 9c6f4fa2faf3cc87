// SPDX-License-Identifier: Apache-2.0
#include "option/object.hpp"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <ctime>
#include <fstream>
#include <limits>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "host/bpf_iterator.hpp"
#include "host/libbpf_quiet.hpp"
#include "option/elf.h"

namespace reuseport::option {

using detail::LibbpfQuiet;

namespace {

using reuseport::fail;

/// The resolution of the coarse clock is one jiffy.
std::uint32_t jiffies_per_second() {
  timespec tick{};
  ::clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
  return tick.tv_nsec > 0
             ? static_cast<std::uint32_t>((1'000'000'000 + tick.tv_nsec / 2) / tick.tv_nsec)
             : 1;
}

std::string hint_for(int errnum) {
  switch (errnum) {
    case EPERM:
    case EACCES:
      return "needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (root has them), and a kernel that is "
             "not locked down";
    case ESRCH: return "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF), or is older than 6.1";
    case E2BIG: return "the table is full";
    case ENOMEM: return "not enough memory for the tables";
    default: return {};
  }
}

/// 0: the kernel does not reveal it (CONFIG_KALLSYMS_ALL, kernel.kptr_restrict).
std::uint64_t address_of_rcu_state() {
  std::ifstream symbols("/proc/kallsyms");
  std::uint64_t address = 0;
  char type = 0;
  for (std::string name; symbols >> std::hex >> address >> type >> name;) {
    if (name == "rcu_state") {
      return address;
    }
    symbols.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

/// The offsets, from BTF, of the per-CPU variables that call_find_rcu() needs.
Status per_cpu_offsets(table::call& call) {
  const std::unique_ptr<btf, void (*)(btf*)> kernel(btf__load_vmlinux_btf(), btf__free);
  if (!kernel) {
    return fail("load the kernel's BTF", ESRCH, hint_for(ESRCH));
  }
  const int id = btf__find_by_name_kind(kernel.get(), ".data..percpu", BTF_KIND_DATASEC);
  const btf_type* section =
      id > 0 ? btf__type_by_id(kernel.get(), static_cast<__u32>(id)) : nullptr;
  for (int i = 0; section != nullptr && i < btf_vlen(section); i++) {
    const btf_var_secinfo& where = btf_var_secinfos(section)[i];
    const btf_type* variable = btf__type_by_id(kernel.get(), where.type);
    const std::string_view name = btf__name_by_offset(kernel.get(), variable->name_off);
    if (name == "rcu_data") {
      call.rcu_data = where.offset;
    } else if (name == "tcp_memory_per_cpu_fw_alloc") {
      call.fw_alloc = where.offset;
    }
  }
  return {};
}

/// A bound UDP socket is freed by RCU when it is closed: that starts a grace period, also on one
/// CPU and with nohz_full.
void hurry_grace_period() {
  const Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const sockaddr_in any{AF_INET, 0, {}, {}};
  static_cast<void>(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)));
}

}  // namespace

tl::unexpected<Error> bpf_fail(std::string call, int errnum) {
  std::string hint = hint_for(errnum);
  if (hint.empty()) {
    hint = LibbpfQuiet::said();
  }
  return fail(std::move(call), errnum, std::move(hint));
}

Status in_netns(int netns, const std::function<Status()>& body) {
  if (netns < 0) {
    return body();
  }
  Status result;
  std::thread([&] {
    if (::setns(netns, CLONE_NEWNET) != 0) {
      result = fail("setns(CLONE_NEWNET)", errno,
                    errno == EPERM ? "needs CAP_SYS_ADMIN over that namespace" : "");
      return;
    }
    result = body();
  }).join();
  return result;
}

bool has_own_option() {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  reuseport_listen_info info{};
  socklen_t len = sizeof(info);
  return fd && ::getsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &info, &len) == 0 &&
         (info.flags & REUSEPORT_LISTEN_F_BPF) == 0;
}

Status refuse_own_option() {
  return has_own_option() ? fail("start", EEXIST, own_option) : Status{};
}

namespace {

/// A UDP socket on loopback with SO_REUSEPORT, on @p port or, where that is 0, on one that is
/// stored there.
Result<Fd> open_member(std::uint16_t& port) {
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = port;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t len = sizeof(at);
  if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)) != 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) != 0 ||
      ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &len) != 0) {
    return fail("bind a UDP socket", errno);
  }
  port = at.sin_port;
  return fd;
}

Status raise_loopback() {
  const Fd any(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq lo{};
  std::string_view("lo").copy(static_cast<char*>(lo.ifr_name), sizeof(lo.ifr_name) - 1);
  lo.ifr_flags = IFF_UP;
  return ::ioctl(any.get(), SIOCSIFFLAGS, &lo) == 0 ? Status{} : fail("ioctl(SIOCSIFFLAGS)", errno);
}

/// In a new network namespace: sends a datagram that a program assigns to an OFF socket beside an
/// ON one, and checks which of them gets it.
Status send_to_one_that_is_off(const Object& object) {
  if (auto up = raise_loopback(); !up) {
    return up;
  }
  std::uint16_t port = 0;
  const auto off = open_member(port);
  const auto on = off ? open_member(port) : tl::unexpected(off.error());
  if (!on) {
    return tl::unexpected(on.error());
  }
  const std::uint32_t zero = 0;
  const auto value = static_cast<std::uint64_t>(off->get());
  if (bpf_map_update_elem(object.map("datagrams"), &zero, &value, BPF_NOEXIST) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, datagrams)", errno);
  }
  const int program = object.program("name_first");
  const int mode = REUSEPORT_LISTEN_OFF;
  if (::setsockopt(off->get(), SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &program, sizeof(program)) !=
      0) {
    return fail("setsockopt(SO_ATTACH_REUSEPORT_EBPF)", errno);
  }
  if (::setsockopt(off->get(), SOL_SOCKET, SO_REUSEPORT_LISTEN_OFF, &mode, sizeof(mode)) != 0) {
    return fail("setsockopt(SO_REUSEPORT_LISTEN_OFF)", errno);
  }
  sockaddr_in to{};
  socklen_t len = sizeof(to);
  ::getsockname(on->get(), reinterpret_cast<sockaddr*>(&to), &len);
  const Fd client(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (::sendto(client.get(), "", 1, 0, reinterpret_cast<const sockaddr*>(&to), len) != 1) {
    return fail("sendto", errno);
  }
  std::array<pollfd, 2> ready{pollfd{off->get(), POLLIN, 0}, pollfd{on->get(), POLLIN, 0}};
  if (::poll(ready.data(), ready.size(), 5000) < 1) {
    return fail("try BPF_SK_REUSEPORT_F_FLOW", ETIMEDOUT, "a datagram on loopback was lost");
  }
  return ready[0].revents != 0 ? Status{}
                               : fail("try BPF_SK_REUSEPORT_F_FLOW", EEXIST, no_flow_flag);
}

}  // namespace

Status try_flow_flag() {
  auto object = Object::open(GroupSize::normal, false);
  if (!object) {
    return tl::unexpected(object.error());
  }
  object->only({"name_first"});
  if (auto ok = object->load(); !ok) {
    return ok;
  }
  Status result;
  std::thread([&] {
    result = ::unshare(CLONE_NEWNET) == 0 ? send_to_one_that_is_off(*object)
                                          : Status(fail("unshare(CLONE_NEWNET)", errno));
  }).join();
  return result;
}

Result<std::uint64_t> cookie_of(int fd) {
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  if (::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) != 0) {
    return fail("getsockopt(SO_COOKIE)", errno);
  }
  return cookie;
}

std::uint64_t build_of(GroupSize size) {
  std::size_t bytes = 0;
  const auto* elf =
      static_cast<const unsigned char*>(option_elf(size == GroupSize::large ? 1 : 0, &bytes));
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (std::size_t i = 0; i < bytes; i++) {
    hash = (hash ^ elf[i]) * 0x100000001b3;
  }
  return hash;
}

Result<Object> Object::open(GroupSize size, bool sees_closing, std::uint32_t flows) {
  const LibbpfQuiet quiet;
  Object o;
  o.size_ = size;
  std::size_t bytes = 0;
  const void* elf = option_elf(size == GroupSize::large ? 1 : 0, &bytes);
  bpf_object_open_opts options{};
  options.sz = sizeof(options);
  options.object_name = "reuseport";
  o.object_.reset(bpf_object__open_mem(elf, bytes, &options));
  if (!o.object_) {
    return bpf_fail("open the BPF object", errno);
  }

  // a session has its own tables: it need not reserve room for other users
  const std::uint32_t of_one_uid = sees_closing ? MAX_MEMBERS / 4 : MAX_MEMBERS;
  const table::settings settings{jiffies_per_second(), of_one_uid, sees_closing ? 1U : 0U,
                                 has_own_option() ? 1U : 0U};
  bpf_map* map = bpf_object__find_map_by_name(o.object_.get(), ".rodata.settings");
  if (map == nullptr || bpf_map__set_initial_value(map, &settings, sizeof(settings)) != 0) {
    return fail("open the BPF object", EINVAL, "it is not the object this program was built with");
  }
  for (const char* name : flow_maps) {
    map = bpf_object__find_map_by_name(o.object_.get(), name);
    const bool sized = std::string_view(name) == "flows" || std::string_view(name) == "flow_places";
    if (map == nullptr || bpf_map__set_autocreate(map, flows > 0) != 0 ||
        (flows > 0 && sized && bpf_map__set_max_entries(map, flows) != 0)) {
      return bpf_fail(std::string("prepare the map ") + name, errno);
    }
  }
  return o;
}

void Object::only(const std::vector<std::string>& programs) {
  bpf_program* p = nullptr;
  bpf_object__for_each_program(p, object_.get()) {
    bool wanted = false;
    for (const std::string& name : programs) {
      wanted = wanted || name == bpf_program__name(p);
    }
    bpf_program__set_autoload(p, wanted);
  }
}

Status Object::reuse(const std::string& map, int fd) {
  bpf_map* m = bpf_object__find_map_by_name(object_.get(), map.c_str());
  if (m == nullptr || bpf_map__reuse_fd(m, fd) != 0) {
    return bpf_fail("reuse the map " + map, errno);
  }
  return {};
}

Status Object::load() {
  const LibbpfQuiet quiet;
  if (const int err = bpf_object__load(object_.get()); err != 0) {
    constexpr auto refused =
        "this kernel's BPF verifier refuses the programs; 6.1 and later are known to work";
    return err == -E2BIG ? fail("load the BPF programs", EOPNOTSUPP, refused)
                         : bpf_fail("load the BPF programs", -err);
  }

  // the initial state of a group: every slot free, at its own position
  const auto slots = static_cast<std::size_t>(size_);
  const std::size_t header = offsetof(table::group, slots);
  std::vector<char> bytes(header + slots * sizeof(table::slot));
  for (std::size_t i = 0; i < slots; i++) {
    table::slot slot{};
    slot.perm = slot.position = static_cast<std::uint16_t>(i);
    slot.section = table::FREE;
    std::memcpy(bytes.data() + header + i * sizeof(slot), &slot, sizeof(slot));
  }
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(map("new_group"), &zero, bytes.data(), BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, new_group)", errno);
  }
  return {};
}

int Object::map(const std::string& name) const {
  if (const auto held = held_maps_.find(name); held != held_maps_.end()) {
    return held->second.get();
  }
  return object_ ? bpf_object__find_map_fd_by_name(object_.get(), name.c_str()) : -1;
}

int Object::program(const std::string& name) const {
  if (const auto held = held_programs_.find(name); held != held_programs_.end()) {
    return held->second.get();
  }
  return object_ ? bpf_program__fd(bpf_object__find_program_by_name(object_.get(), name.c_str()))
                 : -1;
}

Result<table::look> Object::find_namespace() const {
  table::look look{};
  if (::getrandom(&look.seed, sizeof(look.seed), 0) != sizeof(look.seed)) {
    return fail("getrandom", errno);
  }
  bpf_test_run_opts options{};
  options.sz = sizeof(options);
  options.ctx_in = &look;  // and out
  options.ctx_size_in = sizeof(look);
  if (bpf_prog_test_run_opts(program("find_namespace"), &options) != 0) {
    return bpf_fail("bpf(BPF_PROG_TEST_RUN, find_namespace)", errno);
  }
  if (look.net == 0 || look.lhash2 == 0 || look.lhash2_mask == 0) {
    return fail("look for the kernel's listeners", EOPNOTSUPP,
                "cannot read kernel memory: is the kernel locked down?");
  }
  return look;
}

Result<bool> Object::is_there(const table::look& look) const {
  table::look in = look;
  bpf_test_run_opts options{};
  options.sz = sizeof(options);
  options.ctx_in = &in;
  options.ctx_size_in = sizeof(in);
  if (bpf_prog_test_run_opts(program("is_there"), &options) != 0) {
    return bpf_fail("bpf(BPF_PROG_TEST_RUN, is_there)", errno);
  }
  return options.retval != 0;
}

Status Object::look_at(const table::look& look) const {
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(map(".data.look"), &zero, &look, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, look)", errno);
  }
  return {};
}

Result<std::vector<std::uint64_t>> Object::find_listeners() const {
  return reuseport::detail::run_iterator<std::uint64_t>(program("find_listeners"));
}

Result<std::vector<table::datagram>> Object::find_datagrams() const {
  return reuseport::detail::run_iterator<table::datagram>(program("find_datagrams"));
}

Status Object::set_datagram_chooser(bool flows) const {
  const std::uint32_t zero = 0;
  const int chooser = program(flows ? "choose_flow" : "choose_datagram");
  if (bpf_map_update_elem(map("datagram_chooser"), &zero, &chooser, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, datagram_chooser)", errno);
  }
  bpf_map_info info{};
  std::uint32_t len = sizeof(info);
  table::common common{};
  if (bpf_obj_get_info_by_fd(map("datagram_chooser"), &info, &len) != 0 ||
      bpf_map_lookup_elem(map("common"), &zero, &common) != 0) {
    return bpf_fail("bpf(BPF_OBJ_GET_INFO_BY_FD, datagram_chooser)", errno);
  }
  if (common.chooser == 0) {
    common.chooser = info.id;
    if (bpf_map_update_elem(map("common"), &zero, &common, BPF_ANY) != 0) {
      return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, common)", errno);
    }
  }
  return {};
}

Status Object::attach_stub(int fd) const {
  const int stub = program("reuseport_stub");
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &stub, sizeof(stub)) != 0) {
    return fail("setsockopt(SO_ATTACH_REUSEPORT_EBPF)", errno,
                errno == EINVAL ? "not a bound UDP socket with SO_REUSEPORT" : "");
  }
  return {};
}

Status Object::note_place(std::uint64_t cookie, std::uint32_t index) const {
  if (bpf_map_update_elem(map("datagram_index"), &cookie, &index, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, datagram_index)", errno);
  }
  return {};
}

void Object::forget_datagram(std::uint64_t cookie) const {
  std::uint32_t index = 0;
  if (bpf_map_lookup_elem(map("datagram_index"), &cookie, &index) == 0) {
    bpf_map_delete_elem(map("datagram_index"), &cookie);
    std::uint64_t there = 0;
    if (bpf_map_lookup_elem(map("datagrams"), &index, &there) == 0 && there == cookie) {
      bpf_map_delete_elem(map("datagrams"), &index);
    }
  }
}

Status Object::take_datagram(int fd, std::uint64_t cookie) const {
  const auto value = static_cast<std::uint64_t>(fd);
  for (std::uint32_t tries = 0; tries < MAX_DATAGRAMS && !full_; tries++) {
    const std::uint32_t index = next_index_++ % MAX_DATAGRAMS;
    if (bpf_map_update_elem(map("datagrams"), &index, &value, BPF_NOEXIST) == 0) {
      if (auto ok = note_place(cookie, index); !ok) {
        bpf_map_delete_elem(map("datagrams"), &index);
        return ok;
      }
      return attach_stub(fd);  // last: a socket of another tool keeps that tool's program
    }
    if (errno == EBUSY && !places_) {
      places_.emplace();
      std::uint64_t there = 0;
      for (std::uint32_t i = 0; i < MAX_DATAGRAMS; i++) {
        if (bpf_map_lookup_elem(map("datagrams"), &i, &there) == 0) {
          places_->emplace(there, i);
        }
      }
      errno = EBUSY;
    }
    if (errno == EBUSY && places_->contains(cookie)) {  // of a tool that was killed
      auto ok = note_place(cookie, places_->at(cookie));
      return ok ? attach_stub(fd) : ok;
    }
    if (errno != EEXIST) {
      const int err = errno;
      return fail("bpf(BPF_MAP_UPDATE_ELEM, datagrams)", err,
                  err == EBUSY    ? "the socket is in another REUSEPORT_SOCKARRAY"
                  : err == EINVAL ? "not a bound UDP socket with SO_REUSEPORT"
                                  : "");
    }
  }
  full_ = true;
  return fail("adopt", ENOSPC, "the table of UDP sockets is full");
}

Status Object::begin() const {
  table::call call{};
  for (int tries = 0; tries < 100; tries++) {
    if (auto ran = run("call_begin", call); !ran) {
      return ran;
    }
    if (call.error != -ENOMEM) {
      break;
    }
    ::poll(nullptr, 0, 10);
  }
  return call.error == 0 ? Status{} : bpf_fail("start the timer of the tables", -call.error);
}

Status Object::run(const char* program, table::call& call) const {
  bpf_test_run_opts options{};
  options.sz = sizeof(options);
  options.data_in = options.data_out = &call;
  options.data_size_in = options.data_size_out = sizeof(call);
  if (bpf_prog_test_run_opts(this->program(program), &options) != 0) {
    return bpf_fail(std::string("bpf(BPF_PROG_TEST_RUN, ") + program + ")", errno);
  }
  return {};
}

Status Object::see_grace_periods() const {
  table::call call{};
  call.rcu_state = address_of_rcu_state();
  if (call.rcu_state == 0) {
    if (auto offsets = per_cpu_offsets(call); !offsets) {
      return offsets;
    }
  }
  // any TCP socket will do
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listener || ::listen(listener.get(), 1) != 0) {
    return fail("listen", errno);
  }
  const auto cookie = cookie_of(listener.get());
  if (!cookie) {
    return tl::unexpected(cookie.error());
  }
  const auto value = static_cast<std::uint64_t>(listener.get());
  if (bpf_map_update_elem(map("listeners"), &*cookie, &value, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, listeners)", errno);
  }
  call.cookie = *cookie;
  auto found = run("call_find_rcu", call);
  bpf_map_delete_elem(map("listeners"), &*cookie);
  if (!found) {
    return found;
  }

  // then see one pass
  call.cookie = 0;
  if (auto ran = run("call_grace_period", call); !ran) {
    return ran;
  }
  for (int tries = 0; tries < 1000; tries++) {  // on a busy machine one takes seconds
    hurry_grace_period();
    if (auto ran = run("call_grace_period", call); !ran) {
      return ran;
    }
    if (call.error == 0) {
      return {};
    }
    ::poll(nullptr, 0, 10);
  }
  return fail(
      "look for grace periods", ENOTSUP,
      "the kernel does not reveal where it counts them (CONFIG_KALLSYMS_ALL), or is locked down");
}

Result<table::look> look_of(const Object& object, int netns) {
  Result<table::look> look;
  const auto ran = in_netns(netns, [&]() -> Status {
    look = object.find_namespace();
    return {};
  });
  return ran ? look : tl::unexpected(ran.error());
}

namespace {

/// UDP sockets in the tables.
std::size_t datagrams_of(const Object& object, std::uint32_t uid) {
  std::size_t count = 0;
  std::uint64_t cookie = 0;
  const std::uint64_t* last = nullptr;
  for (std::uint32_t i = 0; i < MAX_MEMBERS; i++) {
    table::member member{};
    if (bpf_map_get_next_key(object.map("members"), last, &cookie) != 0) {
      break;
    }
    last = &cookie;
    if (bpf_map_lookup_elem(object.map("members"), &cookie, &member) == 0 &&
        member.key.protocol == IPPROTO_UDP && member.key.uid == uid) {
      count++;
    }
  }
  return count;
}

/// Whether the owner of a socket has room for one more.
bool has_room(const Object& object, int fd, std::unordered_map<std::uint32_t, std::size_t>& of) {
  struct stat socket {};
  if (::fstat(fd, &socket) != 0) {
    return false;
  }
  const auto [own, first] = of.try_emplace(socket.st_uid, 0);
  if (first) {
    own->second = datagrams_of(object, socket.st_uid);
  }
  return own->second++ < MAX_DATAGRAMS / 2;
}

}  // namespace

Status adopt_datagrams(const Object& object, const FindDescriptors& find) {
  const auto found = object.find_datagrams();
  if (!found) {
    return tl::unexpected(found.error());
  }
  // Other groups on the port, e.g. on another address, do not concern us.
  std::unordered_set<std::uint64_t> groups;
  for (const table::datagram& each : *found) {
    if (each.known != 0) {
      groups.insert(each.group);
    }
  }
  std::vector<std::uint64_t> missing;
  std::unordered_set<std::uint64_t> detached;  // known, but another tool's program took its group
  for (const table::datagram& each : *found) {
    const bool mine = each.in_scope != 0 || groups.contains(each.group);
    const bool free = each.program == 0 || each.ours != 0;
    if (mine && free && each.group != 0 && (each.known == 0 || each.attached == 0)) {
      missing.push_back(each.cookie);
      if (each.known != 0) {
        detached.insert(each.cookie);
      }
    }
  }
  if (missing.empty() || !find) {
    return {};
  }
  const std::vector<Fd> fds = find(missing);
  std::unordered_set<std::uint64_t> taken;
  std::unordered_map<std::uint32_t, std::size_t> of_user;
  for (std::size_t i = 0; i < fds.size() && i < missing.size(); i++) {
    // One that cannot be adopted stays unknown, and SETTLED is not set beside it.
    if (fds[i] && detached.contains(missing[i])) {
      static_cast<void>(object.attach_stub(fds[i].get()));
    } else if (fds[i] && has_room(object, fds[i].get(), of_user)) {
      static_cast<void>(object.take_datagram(fds[i].get(), missing[i]));
      taken.insert(missing[i]);
    }
  }
  const auto joined = object.find_datagrams();
  if (!joined) {
    return tl::unexpected(joined.error());
  }
  for (const table::datagram& each : *joined) {
    if (each.known != 0) {
      taken.erase(each.cookie);
    }
  }
  for (const auto cookie : taken) {  // no program sees these close: their places would be lost
    object.forget_datagram(cookie);
  }
  return {};
}

Status Object::wait_grace_period() {
  const std::uint32_t zero = 0;
  if (!waiter_) {
    waiter_inner_.reset(bpf_map_create(BPF_MAP_TYPE_ARRAY, "reuseport_inner", sizeof(zero),
                                       sizeof(zero), 1, nullptr));
    bpf_map_create_opts options{};
    options.sz = sizeof(options);
    options.inner_map_fd = static_cast<std::uint32_t>(waiter_inner_.get());
    waiter_.reset(bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "reuseport_wait", sizeof(zero),
                                 sizeof(zero), 1, &options));
    if (!waiter_) {
      return bpf_fail("bpf(BPF_MAP_CREATE, ARRAY_OF_MAPS)", errno);
    }
  }
  const auto tell = [&]() -> Status {
    return bpf_map_update_elem(map("grace_periods"), &zero, &waited_, BPF_ANY) == 0
               ? Status{}
               : bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, grace_periods)", errno);
  };
  waited_.begun++;
  if (auto ok = tell(); !ok) {
    return ok;
  }
  // An update of a map of maps returns after a grace period (maybe_wait_bpf_programs() in
  // kernel/bpf/syscall.c), also on one CPU and with nohz_full, where membarrier(2) does nothing.
  const int inner = waiter_inner_.get();
  if (bpf_map_update_elem(waiter_.get(), &zero, &inner, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, ARRAY_OF_MAPS)", errno);
  }
  waited_.over = waited_.begun;
  return tell();
}

}  // namespace reuseport::option
