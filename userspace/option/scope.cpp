// SPDX-License-Identifier: Apache-2.0
// The option for a cgroup and a network namespace, pinned in /sys/fs/bpf/reuseport/:
//
//   maps/NAME                 the tables, shared by all programs
//   programs/NAME             what the next tool needs, so that it loads only choose()
//   cgroups/ID/PROGRAM        links of the programs of a cgroup
//   namespaces/COOKIE/choose  link of sk_lookup in a network namespace
//
// On a kernel that has the option itself, only UDP flows can be enabled. Then there is neither
// choose() nor any hook of modes, and namespaces/COOKIE is empty.
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "option/object.hpp"

namespace reuseport::option {

namespace {

namespace fs = std::filesystem;

constexpr long bpf_fs_magic = 0xcafe4a11;   // BPF_FS_MAGIC, <linux/magic.h>
constexpr long cgroup2_magic = 0x63677270;  // CGROUP2_SUPER_MAGIC

/// The maps that outlive the tool. Each object has its own `new_group` and constants. `about` is
/// pinned last and unpinned first: if it is there, the others are too.
constexpr std::array shared_maps = {
    "listeners",      "members",          "groups",       "involved", "users",         "common",
    "namespaces",     "keepsakes",        "hurry",        "cgroups",  "grace_periods", "datagrams",
    "datagram_index", "datagram_chooser", "common_timer", "about"};

struct Hook {
  const char* program;
  bpf_attach_type type;
  bool of_flows = false;  ///< only if UDP flows are recorded
  bool of_modes = true;   ///< not if the kernel has the option itself
};
constexpr std::array hooks = {Hook{"see_closing", BPF_CGROUP_INET_SOCK_RELEASE, false, false},
                              Hook{"see_listening", BPF_CGROUP_SOCK_OPS},
                              Hook{"see_bound4", BPF_CGROUP_INET4_POST_BIND},
                              Hook{"see_bound6", BPF_CGROUP_INET6_POST_BIND},
                              Hook{"get_option", BPF_CGROUP_GETSOCKOPT},
                              Hook{"set_option", BPF_CGROUP_SETSOCKOPT},
                              Hook{"record_flow4", BPF_CGROUP_UDP4_SENDMSG, true, false},
                              Hook{"record_flow6", BPF_CGROUP_UDP6_SENDMSG, true, false}};
std::vector<Hook> hooks_of(bool flows) {
  const bool modes = !has_own_option();
  std::vector<Hook> some;
  std::ranges::copy_if(hooks, std::back_inserter(some), [&](const Hook& hook) {
    return (flows || !hook.of_flows) && (modes || !hook.of_modes);
  });
  return some;
}
/// What the next tool needs besides the hooks. choose() is loaded for each namespace.
constexpr std::array tools = {"find_namespace", "find_listeners", "find_datagrams", "call_adopt",
                              "call_get_info",  "is_there",       "reuseport_stub"};

std::string pin(const std::string& below) {
  return std::string(pins) + "/" + below;
}

Fd pinned(const std::string& below) {
  return Fd(bpf_obj_get(pin(below).c_str()));
}

bool flows_pinned() {
  return ::access(pin("maps/flow_table").c_str(), F_OK) == 0;
}

/// The maps to pin.
std::vector<std::string> pinned_maps() {
  std::vector<std::string> names(shared_maps.begin(), shared_maps.end());
  if (flows_pinned()) {
    names.insert(names.end(), flow_maps.begin(), flow_maps.end());
  }
  return names;
}

/// What is ours is root's alone, or another user could replace it.
Status check_owner(const std::string& path) {
  struct stat at {};
  if (::lstat(path.c_str(), &at) != 0) {
    return fail("stat(" + path + ")", errno, errno == ENOENT ? "the option is not enabled" : "");
  }
  if (!S_ISDIR(at.st_mode) || (at.st_uid != 0 && at.st_uid != ::geteuid()) ||
      (at.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return fail(path, EPERM,
                "it must be a directory that only this user can write to: remove it, and mount "
                "/sys/fs/bpf with mode=0700");
  }
  return {};
}

/// Makes sure that bpffs is mounted and has our directory, accessible to root only.
Status make_directory() {
  struct statfs there {};
  if (::statfs("/sys/fs/bpf", &there) != 0) {
    return fail("statfs(/sys/fs/bpf)", errno, "this kernel has no BPF file system");
  }
  if (static_cast<long>(there.f_type) != bpf_fs_magic &&
      ::mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700") != 0) {
    return fail("mount(/sys/fs/bpf)", errno, "mount bpffs there");
  }
  for (const char* below : {"", "/maps", "/programs", "/cgroups", "/namespaces"}) {
    if (::mkdir((std::string(pins) + below).c_str(), 0700) != 0 && errno != EEXIST) {
      return fail("mkdir(" + std::string(pins) + below + ")", errno);
    }
    if (auto ok = check_owner(std::string(pins) + below); !ok) {
      return ok;
    }
  }
  return {};
}

/// One tool at a time; released with the descriptor. Units that start together wait for each other.
/// ENOENT also if a disable() that held it has removed the directory: another may be there now.
Result<Fd> lock() {
  if (auto ok = check_owner(pins); !ok) {
    return tl::unexpected(ok.error());
  }
  Fd fd(::open(pins, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return fail("open(" + std::string(pins) + ")", errno,
                errno == ENOENT ? "the option is not enabled" : "");
  }
  constexpr auto patience = std::chrono::seconds(10);
  const auto end = std::chrono::steady_clock::now() + patience;
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() >= end) {
      return fail(
          "flock(" + std::string(pins) + ")", errno,
          errno == EWOULDBLOCK ? "another reuseportctl has held it for 10 s; try again" : "");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  struct stat mine {};
  struct stat there {};
  if (::fstat(fd.get(), &mine) != 0 || ::stat(pins, &there) != 0 || mine.st_ino != there.st_ino) {
    return fail("flock(" + std::string(pins) + ")", ENOENT, "the option has just been disabled");
  }
  return fd;
}

/// Makes the directory and locks it, but not one that disable() is just removing.
Result<Fd> make_and_lock() {
  for (int tries = 0; tries < 8; tries++) {
    if (auto ok = make_directory(); !ok) {
      return tl::unexpected(ok.error());
    }
    auto locked = lock();
    if (locked || locked.error().errnum != ENOENT) {
      return locked;
    }
  }
  return fail("flock(" + std::string(pins) + ")", EAGAIN,
              "other processes enable and disable without pause; try again");
}

Result<std::optional<table::about>> read_about() {
  if (auto ok = check_owner(pins);
      !ok && ok.error().errnum != ENOENT && ok.error().errnum != EACCES) {
    return tl::unexpected(ok.error());
  }
  const Fd map = pinned("maps/about");
  if (!map) {
    return errno == ENOENT ? Result<std::optional<table::about>>(std::nullopt)
                           : bpf_fail("bpf(BPF_OBJ_GET, about)", errno);
  }
  // Every version of the struct begins with the version; it may be longer than ours.
  bpf_map_info info{};
  std::uint32_t len = sizeof(info);
  if (bpf_obj_get_info_by_fd(map.get(), &info, &len) != 0) {
    return bpf_fail("bpf(BPF_OBJ_GET_INFO_BY_FD, about)", errno);
  }
  const std::uint32_t zero = 0;
  std::vector<std::byte> value(std::max<std::size_t>(info.value_size, sizeof(table::about)));
  if (bpf_map_lookup_elem(map.get(), &zero, value.data()) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, about)", errno);
  }
  table::about about{};
  std::memcpy(&about, value.data(), sizeof(about));
  if (about.version != TABLE_VERSION || info.value_size != sizeof(about)) {
    return fail("read what is enabled", EPROTO,
                "another version enabled it (" + std::to_string(about.version) +
                    "): \"reuseportctl disable --force\" removes it, and listeners that are not ON "
                    "get connections again");
  }
  return std::optional(about);
}

/// Loads the object with the pinned maps, if any. With room for @p flows if their tables are not
/// pinned.
Result<Object> load_object(const std::optional<table::about>& about, GroupSize size,
                           const std::vector<std::string>& programs, std::uint32_t flows = 0) {
  auto object = Object::open(about ? static_cast<GroupSize>(about->group_size) : size, true, flows);
  if (!object) {
    return object;
  }
  object->only(programs);
  for (const std::string& name : about ? pinned_maps() : std::vector<std::string>()) {
    if (flows == 0 && std::ranges::find(flow_maps, name) != flow_maps.end()) {
      continue;
    }
    const Fd map = pinned("maps/" + name);
    if (!map) {
      return bpf_fail("bpf(BPF_OBJ_GET, " + name + ")", errno);
    }
    if (auto ok = object->reuse(name, map.get()); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  if (auto ok = object->load(); !ok) {
    return tl::unexpected(ok.error());
  }
  return object;
}

std::vector<std::string> lasting_programs(bool flows) {
  std::vector<std::string> names(tools.begin(), tools.end());
  for (const Hook& hook : hooks_of(flows)) {
    names.emplace_back(hook.program);
  }
  if (flows) {
    names.emplace_back("call_flow_clock");
  }
  return names;
}

/// The object as pinned, without loading anything.
Result<Object> pinned_object() {
  Object object;
  for (const std::string& name : pinned_maps()) {
    Fd map = pinned("maps/" + name);
    if (!map) {
      return bpf_fail("bpf(BPF_OBJ_GET, " + name + ")", errno);
    }
    object.hold_map(name, std::move(map));
  }
  for (const std::string& name : lasting_programs(flows_pinned())) {
    Fd program = pinned("programs/" + name);
    if (!program) {
      return bpf_fail("bpf(BPF_OBJ_GET, " + name + ")", errno);
    }
    object.hold_program(name, std::move(program));
  }
  return object;
}

/// Replaces those of another build, if any.
Status pin_programs(const Object& object, bool flows) {
  for (const std::string& name : lasting_programs(flows)) {
    const std::string path = pin("programs/" + name);
    ::unlink(path.c_str());
    if (bpf_obj_pin(object.program(name), path.c_str()) != 0) {
      return bpf_fail("bpf(BPF_OBJ_PIN, " + name + ")", errno);
    }
  }
  return {};
}

/// Attaches a program, or replaces the attached one.
Result<bool> attach(const std::string& below, int program, int target, bpf_attach_type type) {
  if (const Fd link = pinned(below)) {
    if (bpf_link_update(link.get(), program, nullptr) == 0) {
      return false;
    }
    if (errno != ENOLINK) {  // ENOLINK: its cgroup or namespace is gone, and this is a new one
      return bpf_fail("bpf(BPF_LINK_UPDATE, " + below + ")", errno);
    }
    ::unlink(pin(below).c_str());
  }
  const Fd link(bpf_link_create(program, target, type, nullptr));
  if (!link) {
    return bpf_fail("bpf(BPF_LINK_CREATE, " + below + ")", errno);
  }
  if (bpf_obj_pin(link.get(), pin(below).c_str()) != 0) {
    return bpf_fail("bpf(BPF_OBJ_PIN, " + below + ")", errno);
  }
  return true;
}

Status write_about(const Object& object, const table::about& about) {
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(object.map("about"), &zero, &about, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, about)", errno);
  }
  return {};
}

/// Whether a cgroup that is enabled has all of its programs.
bool all_pinned(const std::string& cgroup, bool flows) {
  return std::ranges::all_of(hooks_of(flows), [&](const Hook& hook) {
    const Fd link = pinned(cgroup + "/" + hook.program);
    bpf_link_info info{};
    std::uint32_t len = sizeof(info);
    // a link whose cgroup is gone has id 0
    return link && bpf_obj_get_info_by_fd(link.get(), &info, &len) == 0 &&
           info.cgroup.cgroup_id != 0;
  });
}

/// Attaches the programs of a cgroup, or replaces the attached ones.
Status attach_hooks(const Object& object, const std::string& of, int cgroup, bool flows,
                    bool& fresh) {
  ::mkdir(pin(of).c_str(), 0700);
  for (const Hook& hook : hooks_of(flows)) {
    const auto attached =
        attach(of + "/" + hook.program, object.program(hook.program), cgroup, hook.type);
    if (!attached) {
      return tl::unexpected(attached.error());
    }
    fresh = fresh || *attached;
  }
  return {};
}

template <typename Value>
Status put(const Object& object, const char* map, std::uint64_t key, const Value& value) {
  if (bpf_map_update_elem(object.map(map), &key, &value, BPF_ANY) != 0) {
    return bpf_fail(std::string("bpf(BPF_MAP_UPDATE_ELEM, ") + map + ")", errno);
  }
  return {};
}

/// Names in a pinned directory.
std::vector<std::string> names_in(const std::string& below) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(pin(below), ignored)) {
    names.push_back(entry.path().filename());
  }
  std::ranges::sort(names);
  return names;
}

/// Detaches and unpins all links below.
void detach_all(const std::string& below) {
  for (const std::string& each : names_in(below)) {
    std::string directory = below;
    directory.append("/").append(each);
    for (const std::string& program : names_in(directory)) {
      std::string path = directory;
      path.append("/").append(program);
      if (const Fd link = pinned(path)) {
        bpf_link_detach(link.get());
      }
      ::unlink(pin(path).c_str());
    }
    ::rmdir(pin(directory).c_str());
  }
  ::rmdir(pin(below).c_str());
}

template <typename Key>
std::vector<Key> keys_of(int map) {
  std::vector<Key> keys;
  Key key{};
  for (int err = bpf_map_get_next_key(map, nullptr, &key); err == 0;
       err = bpf_map_get_next_key(map, &keys.back(), &key)) {
    keys.push_back(key);
    if (keys.size() > MAX_MEMBERS) {
      break;  // an element deleted during the walk makes it start over
    }
  }
  return keys;
}

/// Whether open_cgroup() has failed because the cgroup was removed.
bool is_gone(int errnum) {
  return errnum == ENOENT || errnum == ESTALE;
}

/// Its directory; errno says is_gone() if it was removed, and CAP_DAC_READ_SEARCH is needed.
Fd open_cgroup(std::uint64_t id) {
  const auto mount = cgroup2_mount();
  const Fd root(mount ? ::open(mount->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1);
  if (!root) {
    errno = ENODEV;
    return {};
  }
  // a handle of a cgroup is its id (kernfs)
  struct {
    file_handle head;
    std::uint64_t id;
  } handle{{sizeof(id), 0xfe, {}}, id};
  return Fd(::open_by_handle_at(root.get(), &handle.head, O_RDONLY | O_CLOEXEC));
}

/// Empty: it was removed.
std::string path_of_cgroup(std::uint64_t id) {
  const Fd fd = open_cgroup(id);
  if (!fd) {
    const int errnum = errno;
    return is_gone(errnum) ? ""
                           : "cgroup " + std::to_string(id) +
                                 " (open_by_handle_at: " + std::strerror(errnum) + ")";
  }
  std::error_code ignored;
  return fs::read_symlink("/proc/self/fd/" + std::to_string(fd.get()), ignored);
}

/// Replaces the programs of all other cgroups and namespaces, and attaches what a cgroup lacks.
Status replace_others(const Object& object, const table::about& about, const std::string& of,
                      std::uint64_t netns, bool flows) {
  for (const std::string& name : names_in("cgroups")) {
    const std::string other = "cgroups/" + name;
    for (const Hook& hook : hooks_of(flows && other != of)) {
      const Fd link = other == of ? Fd() : pinned(other + "/" + hook.program);
      if (link && bpf_link_update(link.get(), object.program(hook.program), nullptr) != 0 &&
          errno != ENOLINK) {
        return bpf_fail("bpf(BPF_LINK_UPDATE, " + other + ")", errno);
      }
      if (link || other == of) {
        continue;
      }
      const Fd cgroup = open_cgroup(std::stoull(name));
      if (!cgroup && !is_gone(errno)) {
        return fail("open_by_handle_at(" + other + ")", errno,
                    "needs CAP_DAC_READ_SEARCH for a cgroup that is already enabled");
      }
      if (cgroup) {
        const auto attached = attach(other + "/" + hook.program, object.program(hook.program),
                                     cgroup.get(), hook.type);
        if (!attached) {
          return tl::unexpected(attached.error());
        }
      }
    }
  }
  for (const auto cookie : keys_of<std::uint64_t>(object.map("namespaces"))) {
    table::look look{};
    if (has_own_option() || cookie == netns ||
        bpf_map_lookup_elem(object.map("namespaces"), &cookie, &look) != 0) {
      continue;
    }
    const auto chooser = load_object(about, GroupSize::normal, {"choose"});
    if (!chooser) {
      return tl::unexpected(chooser.error());
    }
    if (auto ok = chooser->look_at(look); !ok) {
      return ok;
    }
    const Fd link = pinned("namespaces/" + std::to_string(cookie) + "/choose");
    if (link && bpf_link_update(link.get(), chooser->program("choose"), nullptr) != 0 &&
        errno != ENOLINK) {
      return bpf_fail("bpf(BPF_LINK_UPDATE, choose)", errno);
    }
  }
  return {};
}

/// An enabled cgroup that still exists but lacks a program, so that no count of its flows is true.
/// Empty: none.
std::string lacks_a_hook(bool flows) {
  // by the map: a cgroup gets there after its programs are attached
  const Fd map = pinned("maps/cgroups");
  for (const auto id : map ? keys_of<std::uint64_t>(map.get()) : std::vector<std::uint64_t>()) {
    if (!all_pinned("cgroups/" + std::to_string(id), flows)) {
      if (auto path = path_of_cgroup(id); !path.empty()) {
        return path;
      }
    }
  }
  return {};
}

/// What a killed tool may leave: datagrams are looked up in a table of flows that is not
/// maintained.
bool looks_for_flows_in_vain() {
  const Fd map = pinned("maps/datagram_chooser");
  const std::uint32_t zero = 0;
  std::uint32_t id = 0;
  if (flows_pinned() || !map || bpf_map_lookup_elem(map.get(), &zero, &id) != 0) {
    return false;
  }
  const Fd program(bpf_prog_get_fd_by_id(id));
  bpf_prog_info info{};
  std::uint32_t len = sizeof(info);
  return program && bpf_obj_get_info_by_fd(program.get(), &info, &len) == 0 &&
         std::string_view(static_cast<const char*>(info.name)) == "choose_flow";
}

/// Adopts the listeners of the caller's namespace.
Status adopt_all(const Object& object, const FindDescriptors& find, Enabled& done) {
  const auto cookies =
      has_own_option() ? Result<std::vector<std::uint64_t>>() : object.find_listeners();
  if (!cookies) {
    return tl::unexpected(cookies.error());
  }
  for (const std::uint64_t cookie : *cookies) {
    table::call call{};
    call.cookie = cookie;
    if (auto ran = object.run("call_adopt", call); !ran) {
      return ran;
    }
    (call.error == 0 ? done.listeners : done.refused)++;
  }
  if (auto ok = adopt_datagrams(object, find); !ok) {
    return ok;
  }
  const auto datagrams = object.find_datagrams();
  if (!datagrams) {
    return tl::unexpected(datagrams.error());
  }
  for (const table::datagram& each : *datagrams) {
    (each.known != 0 ? done.datagrams : done.refused)++;
  }
  return {};
}

/// Records that the option is enabled, and pins the tables.
Status pin_maps(const Object& object, const table::about& about) {
  if (auto ok = write_about(object, about); !ok) {
    return ok;
  }
  for (const char* name : shared_maps) {
    if (bpf_obj_pin(object.map(name), pin(std::string("maps/") + name).c_str()) != 0) {
      return bpf_fail(std::string("bpf(BPF_OBJ_PIN, ") + name + ")", errno);
    }
  }
  return {};
}

/// From here on flows are recorded; the next tool sees that.
Status pin_flow_maps(const Object& object) {
  for (const char* name : flow_maps) {
    if (bpf_obj_pin(object.map(name), pin(std::string("maps/") + name).c_str()) != 0) {
      return bpf_fail(std::string("bpf(BPF_OBJ_PIN, ") + name + ")", errno);
    }
  }
  return {};
}

/// Undoes the recording of flows, including what a killed tool has left.
void take_away_flows() {
  ::unlink(pin("maps/flow_table").c_str());
  ::unlink(pin("programs/call_flow_clock").c_str());
  for (const char* name : flow_maps) {
    ::unlink(pin(std::string("maps/") + name).c_str());
  }
  for (const Hook& hook : hooks) {
    if (!hook.of_flows) {
      continue;
    }
    for (const std::string& cgroup : names_in("cgroups")) {
      std::string path = "cgroups/" + cgroup;
      path.append("/").append(hook.program);
      if (const Fd link = pinned(path)) {
        bpf_link_detach(link.get());
      }
      ::unlink(pin(path).c_str());
    }
    ::unlink(pin(std::string("programs/") + hook.program).c_str());
  }
}

/// Flows were not recorded for some time, so none is known for longer than from now on.
Status record_anew(const Object& object) {
  const int map = object.map("flow_table");
  auto t = read_flow_table(map);
  const auto now = flow_clock(object);
  if (!t || !now) {
    return tl::unexpected(t ? now.error() : t.error());
  }
  t->since = now->now;
  return write_flow_table(map, *t);
}

/// Flows that are already recorded keep their table.
Status set_flow_options(int map, const FlowOptions& options) {
  auto t = read_flow_table(map);
  if (!t) {
    return tl::unexpected(t.error());
  }
  if (options.max && *options.max != t->places) {
    return fail("enable", EBUSY,
                "the table of flows has room for " + std::to_string(t->places) +
                    "; run disable first to change that");
  }
  if (options.idle) {
    t->idle = static_cast<std::uint64_t>(std::chrono::nanoseconds(*options.idle).count());
    return write_flow_table(map, *t);
  }
  return {};
}

/// sk_lookup programs of a network namespace.
std::uint32_t choosers_in(int netns) {
  struct bpf_prog_query_opts query {};
  query.sz = sizeof(query);
  return bpf_prog_query_opts(netns, BPF_SK_LOOKUP, &query) == 0 ? query.prog_cnt : 0;
}

/// Of an enabled network namespace; 0: it is gone. An error: it cannot be inspected, e.g. for lack
/// of descriptors.
Result<std::uint64_t> inode_of_netns(const Object& object, std::uint64_t cookie) {
  if (has_own_option()) {
    table::look look{};
    if (bpf_map_lookup_elem(object.map("namespaces"), &cookie, &look) != 0) {
      return 0;
    }
    const auto there = object.is_there(look);
    return there ? Result<std::uint64_t>(*there ? look.inode : 0) : tl::unexpected(there.error());
  }
  const Fd link = pinned("namespaces/" + std::to_string(cookie) + "/choose");
  bpf_link_info info{};
  std::uint32_t len = sizeof(info);
  if (!link || bpf_obj_get_info_by_fd(link.get(), &info, &len) != 0) {
    return bpf_fail("bpf(BPF_OBJ_GET_INFO_BY_FD, choose)", errno);
  }
  return info.netns.netns_ino;
}

/// Whether that namespace has its program, if it needs one, and its entry in the table.
bool is_enabled(const Object& object, std::uint64_t netns) {
  table::look look{};
  return inode_of_netns(object, netns).value_or(0) != 0 &&
         bpf_map_lookup_elem(object.map("namespaces"), &netns, &look) == 0;
}

/// Attaches choose() there.
Result<bool> attach_chooser(const Object& chooser, const table::look& look, const std::string& in,
                            int netns) {
  if (auto ok = chooser.look_at(look); !ok) {
    return tl::unexpected(ok.error());
  }
  ::mkdir(pin(in).c_str(), 0700);
  auto fresh = attach(in + "/choose", chooser.program("choose"), netns, BPF_SK_LOOKUP);
  if (!fresh) {
    ::rmdir(pin(in).c_str());
  }
  return fresh;
}

/// Keeps the directory itself, which is locked.
void take_away_all_below() {
  // If this is killed, what has no entry is not missed, and enable() adds it again.
  for (const char* name : {"maps/namespaces", "maps/cgroups"}) {
    const Fd map = pinned(name);
    for (const auto key : map ? keys_of<std::uint64_t>(map.get()) : std::vector<std::uint64_t>()) {
      bpf_map_delete_elem(map.get(), &key);
    }
  }
  detach_all("cgroups");
  detach_all("namespaces");
  if (const Fd listeners = pinned("maps/listeners")) {
    for (const auto cookie : keys_of<std::uint64_t>(listeners.get())) {
      bpf_map_delete_elem(listeners.get(), &cookie);
    }
  }
  ::unlink(pin("maps/about").c_str());
  for (const char* directory : {"maps", "programs"}) {
    for (const std::string& name : names_in(directory)) {
      ::unlink(pin(std::string(directory) + "/" + name).c_str());
    }
    ::rmdir(pin(directory).c_str());
  }
}

void take_away() {
  take_away_all_below();
  ::rmdir(pins);
}

std::string address_text(const table::group_key& key) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(key.family, static_cast<const void*>(key.address), text.data(), text.size());
  const std::string ip = text.data();
  return (key.family == AF_INET6 ? "[" + ip + "]" : ip) + ":" + std::to_string(key.port);
}

struct KeyLess {
  bool operator()(const table::group_key& a, const table::group_key& b) const {
    return std::memcmp(&a, &b, sizeof(a)) < 0;
  }
};

/// The groups of the table, each with its members, to query it by one of them.
Result<std::vector<GroupState>> groups_of(const Object& object, std::size_t size,
                                          const std::optional<Flows>& flows) {
  std::map<table::group_key, std::vector<std::uint64_t>, KeyLess> found;
  std::map<table::group_key, std::size_t, KeyLess> flows_in;
  for (const auto cookie : keys_of<std::uint64_t>(object.map("members"))) {
    table::member member{};
    if (bpf_map_lookup_elem(object.map("members"), &cookie, &member) == 0) {
      found[member.key].push_back(cookie);
      const auto own = flows ? flows->of.find(cookie) : decltype(flows->of.end()){};
      flows_in[member.key] += flows && own != flows->of.end() ? own->second : 0;
    }
  }
  std::vector<GroupState> groups;
  const bool own = has_own_option();
  std::vector<char> bytes(offsetof(table::group, slots) + size * sizeof(table::slot));
  for (const auto& [key, cookies] : found) {
    if (bpf_map_lookup_elem(object.map("groups"), &key, bytes.data()) != 0) {
      continue;
    }
    table::group group{};
    std::memcpy(&group, bytes.data(), offsetof(table::group, slots));
    const auto count = [&](unsigned section) {
      return static_cast<std::uint32_t>(group.counts >> (16 * section) & 0xffff);
    };
    GroupState state;
    state.address = address_text(key);
    state.protocol = key.protocol == IPPROTO_UDP ? "udp" : "tcp";
    state.id = group.id;
    state.uid = key.uid;
    state.device = key.device;
    state.netns = key.netns;
    state.on = count(table::ON);
    state.standby = count(table::STANDBY);
    state.off = count(table::OFF);
    state.aside = count(table::ASIDE);
    table::call call{};
    for (const auto cookie : cookies) {
      call = {};
      call.cookie = cookie;
      if (auto ran = object.run("call_get_info", call); !ran) {
        return tl::unexpected(ran.error());
      }
      const auto& info = call.info;
      if (call.error == 0 && (!own || info.group_on + info.group_standby + info.group_off > 0)) {
        break;  // others are about to close, or have left the kernel's group
      }
    }
    state.unknown = call.error == 0 ? call.unknown : 0;
    if (own) {
      state.on = call.info.group_on;
      state.standby = call.info.group_standby;
      state.off = call.info.group_off;
    }
    if (flows && key.protocol == IPPROTO_UDP) {
      state.flows = flows_in[key];
    }
    groups.push_back(std::move(state));
  }
  return groups;
}

/// Pins of removed namespaces hold memory, and room in the map.
void forget_removed_namespaces(const Object& object) {
  for (const std::string& name : names_in("namespaces")) {
    const std::string in = "namespaces/" + name;
    const std::uint64_t cookie = std::stoull(name);
    if (inode_of_netns(object, cookie).value_or(1) == 0) {
      bpf_map_delete_elem(object.map("namespaces"), &cookie);
      ::unlink(pin(in + "/choose").c_str());
      ::rmdir(pin(in).c_str());
    }
  }
}

/// Of this thread's network namespace.
Result<std::uint64_t> netns_cookie() {
  const Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  std::uint64_t cookie = 0;
  socklen_t len = sizeof(cookie);
  if (!fd || ::getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &len) != 0) {
    return fail("getsockopt(SO_NETNS_COOKIE)", errno);
  }
  return cookie;
}

/// flows_here(), unless another tool is enabling or disabling.
Result<std::optional<Flows>> count_flows_here() {
  const auto about = read_about();
  if (!about) {
    return tl::unexpected(about.error());
  }
  if (!*about || !flows_pinned()) {
    return std::optional<Flows>();
  }
  if (const std::string cgroup = lacks_a_hook(true); !cgroup.empty()) {
    return fail("count UDP flows", EAGAIN,
                "the programs of " + cgroup + " are not all there: reuseportctl enable, once more");
  }
  const auto object = pinned_object();
  if (!object) {
    return tl::unexpected(object.error());
  }
  // read before the search, so that no socket counts as adopted earlier than it was
  const auto now = flow_clock(*object);
  auto all = now ? flows_of(*object) : tl::unexpected(now.error());
  if (!all) {
    return tl::unexpected(all.error());
  }
  const auto netns = netns_cookie();
  const auto sockets = object->find_datagrams();
  if (!netns || !sockets) {
    return tl::unexpected(netns ? sockets.error() : netns.error());
  }
  table::look look{};
  const bool here = bpf_map_lookup_elem(object->map("namespaces"), &*netns, &look) == 0;
  std::unordered_map<std::uint64_t, std::size_t> of;
  for (const table::datagram& each : *sockets) {
    if (here && each.known != 0 && each.in_scope != 0 && each.attached != 0) {
      const auto found = all->of.find(each.cookie);
      const auto known = known_for(*object, each.cookie, now->coarse, *all);
      if (!known) {
        continue;  // it has just closed
      }
      of[each.cookie] = found == all->of.end() ? 0 : found->second;
      all->known_for[each.cookie] = *known;
    }
  }
  all->of = std::move(of);
  return std::optional(std::move(*all));
}

/// adopt_newcomers(), unless another tool is enabling or disabling.
Status adopt_newcomers_once(const FindDescriptors& find) {
  const auto about = read_about();
  if (!about) {
    return tl::unexpected(about.error());
  }
  if (!*about) {
    return fail("adopt", ENOENT, "the option is not enabled");
  }
  const auto object = pinned_object();
  const auto netns = netns_cookie();
  if (!object || !netns) {
    return tl::unexpected(object ? netns.error() : object.error());
  }
  // where nothing honours their modes or records their flows, they would be known for nothing
  table::look look{};
  return bpf_map_lookup_elem(object->map("namespaces"), &*netns, &look) == 0
             ? adopt_datagrams(*object, find)
             : Status{};
}

}  // namespace

bool enabled_somewhere() noexcept {
  return ::access(pins, F_OK) == 0 || errno != ENOENT;
}

Result<Enabled> enable(int cgroup, int netns, GroupSize size, const FindDescriptors& find,
                       const std::optional<FlowOptions>& flows) {
  struct statfs filesystem {};
  struct stat directory {};
  if (::fstatfs(cgroup, &filesystem) != 0 || ::fstat(cgroup, &directory) != 0) {
    return fail("fstat(cgroup)", errno);
  }
  if (static_cast<long>(filesystem.f_type) != cgroup2_magic) {
    return fail("enable", EOPNOTSUPP, "not a cgroup2 directory");
  }
  const auto cgroup_id = static_cast<std::uint64_t>(directory.st_ino);
  // The kernel's own option takes precedence: beside it only UDP flows can be enabled, and what
  // they need can be added while they are.
  const bool own = has_own_option();
  const auto refused = [&] {
    return own && !flows && !flows_pinned() ? refuse_own_option() : Status{};
  };
  if (auto ok = refused(); !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = own && !flows_pinned() ? try_flow_flag() : Status{}; !ok) {
    return tl::unexpected(ok.error());
  }
  const auto locked = make_and_lock();
  if (!locked) {
    return tl::unexpected(locked.error());
  }
  auto about = read_about();
  if (!about) {
    return tl::unexpected(about.error());
  }

  Enabled done;
  done.first = !about->has_value();
  if (done.first) {
    take_away_all_below();  // left behind by a tool that was killed half-way
    if (auto ok = make_directory(); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  const bool had_flows = flows_pinned();
  done.flows = had_flows || flows;
  done.own_option = own;
  const bool new_flows = done.flows && !had_flows;
  const bool half_way =
      !done.first && (looks_for_flows_in_vain() || (had_flows && !lacks_a_hook(true).empty()));
  if (!done.flows || new_flows) {
    take_away_flows();
  }
  if (had_flows && flows) {
    if (auto ok = set_flow_options(pinned("maps/flow_table").get(), *flows); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  Result<Object> object;
  // a first enable that fails half-way leaves nothing behind
  const auto failed = [&](const Error& error) {
    if (done.first) {
      take_away();
    } else if (new_flows) {
      take_away_flows();
      if (object && object->program("choose_datagram") >= 0) {
        static_cast<void>(object->set_datagram_chooser(false));
      }
    }
    return tl::unexpected(error);
  };

  if (auto ok = refused(); !ok) {  // another tool has just disabled them
    return failed(ok.error());
  }

  // replace programs of another build, keep those of this one
  const GroupSize built = *about ? static_cast<GroupSize>((*about)->group_size) : size;
  const std::uint64_t build = build_of(built);
  bool replace = done.first || (*about)->build != build || new_flows || half_way;
  if (!replace) {
    object = pinned_object();
    replace = !object;  // something is gone
  }
  if (replace) {
    std::vector<std::string> programs = lasting_programs(done.flows);
    programs.emplace_back("call_begin");
    for (const char* name : {"choose", "choose_datagram", "call_find_rcu", "call_grace_period"}) {
      if (!own) {
        programs.emplace_back(name);
      }
    }
    if (done.flows) {
      programs.emplace_back("choose_flow");
    }
    const FlowOptions wanted = flows.value_or(FlowOptions{});
    object =
        load_object(*about, size, programs, done.flows ? wanted.max.value_or(default_flows) : 0);
    if (!object) {
      return failed(object.error());
    }
    if (auto ok = new_flows ? object->begin_flows(wanted) : Status{}; !ok) {
      return failed(ok.error());
    }
    if (auto ok = own ? Status{} : object->see_grace_periods(); !ok) {
      return failed(ok.error());
    }
    if (auto ok = object->begin(); !ok) {
      return failed(ok.error());
    }
  }
  forget_removed_namespaces(*object);
  auto look = look_of(*object, netns);
  if (!look) {
    return failed(look.error());
  }
  const Fd own_netns(netns < 0 ? ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC) : -1);
  const int namespace_fd = netns < 0 ? own_netns.get() : netns;
  struct stat where {};
  if (::fstat(namespace_fd, &where) != 0) {
    return failed(Error{"fstat(/proc/thread-self/ns/net)", errno, {}});
  }
  look->inode = static_cast<std::uint32_t>(where.st_ino);
  if (done.first) {
    table::about now{};
    now.version = TABLE_VERSION;
    now.group_size = static_cast<std::uint32_t>(size);
    now.since = static_cast<std::uint64_t>(::time(nullptr));
    if (auto ok = pin_maps(*object, now); !ok) {
      return failed(ok.error());
    }
    *about = now;
  }

  // The selection comes first, so that no mode is accepted that nothing honours.
  const std::string in = "namespaces/" + std::to_string(look->netns);
  done.foreign = choosers_in(namespace_fd);
  const bool had_namespace = is_enabled(*object, look->netns);
  const bool choose = replace || !had_namespace;
  if (own) {
    done.new_namespace = !had_namespace;
    ::mkdir(pin(in).c_str(), 0700);
  } else if (choose) {
    auto other = replace ? Result<Object>() : load_object(*about, size, {"choose"});
    if (!other) {
      return failed(other.error());
    }
    const auto fresh = attach_chooser(replace ? *object : *other, *look, in, namespace_fd);
    if (!fresh) {
      return failed(fresh.error());
    }
    done.new_namespace = *fresh;
  }
  done.foreign -= own || done.new_namespace || done.foreign == 0 ? 0 : 1;

  const std::string of = "cgroups/" + std::to_string(cgroup_id);
  const bool had_cgroup = all_pinned(of, done.flows);
  // A tool that was killed, or somebody else, may have taken away what comes back now. Before that,
  // as flows may be counted in between; and after it, when all of them are recorded.
  const auto end_gap = [&] {
    return had_flows && (half_way || !had_namespace || !had_cgroup) ? record_anew(*object)
                                                                    : Status{};
  };
  if (auto ok = end_gap(); !ok) {
    return failed(ok.error());
  }
  if (replace) {
    if (auto ok = object->set_datagram_chooser(done.flows); !ok) {
      return failed(ok.error());
    }
  }
  if (replace || !had_cgroup) {
    if (auto ok = attach_hooks(*object, of, cgroup, done.flows, done.new_cgroup); !ok) {
      return failed(ok.error());
    }
  }
  if (replace) {
    if (auto ok = replace_others(*object, **about, of, look->netns, done.flows); !ok) {
      return failed(ok.error());
    }
    if (auto ok = pin_programs(*object, done.flows); !ok) {
      return failed(ok.error());
    }
    if (auto ok = new_flows ? pin_flow_maps(*object) : Status{}; !ok) {
      return failed(ok.error());
    }
    done.replaced = !done.first && (*about)->build != build;
    (*about)->build = build;
    if (auto ok = write_about(*object, **about); !ok) {
      return failed(ok.error());
    }
  }
  if (auto ok = put(*object, "cgroups", cgroup_id, std::uint8_t{1}); !ok) {
    return failed(ok.error());
  }
  if (choose) {
    if (auto ok = put(*object, "namespaces", look->netns, *look); !ok) {
      return failed(ok.error());
    }
  }
  if (auto ok = end_gap(); !ok) {
    return failed(ok.error());
  }
  if (auto ok = in_netns(netns, [&] { return adopt_all(*object, find, done); }); !ok) {
    return failed(ok.error());
  }
  return done;
}

Status disable(bool force) {
  const auto locked = lock();
  if (!locked) {
    return tl::unexpected(locked.error());
  }
  if (!force) {
    const bool own = has_own_option();  // then they keep their modes, but not their flows
    const auto now = state();
    if (!now) {
      return tl::unexpected(now.error());
    }
    for (const GroupState& group : now->groups) {
      if (group.standby + group.off > 0 && (!own || group.flows.value_or(0) > 0)) {
        return fail("disable", EBUSY,
                    group.address +
                        (own ? " has sockets that are not ON, and " + std::to_string(*group.flows) +
                                   " live flows that would go to others "
                             : " has listeners that are not ON: they would get "
                               "connections again ") +
                        "(--force overrides)");
      }
    }
  }
  take_away();
  return {};
}

Result<ScopeState> state() {
  ScopeState state;
  const auto about = read_about();
  if (!about) {
    return tl::unexpected(about.error());
  }
  if (!*about) {
    return state;
  }
  state.enabled = true;
  state.since = std::chrono::system_clock::from_time_t(static_cast<time_t>((*about)->since));
  state.size = static_cast<GroupSize>((*about)->group_size);
  for (const std::string& name : names_in("cgroups")) {
    const std::uint64_t id = std::stoull(name);
    state.cgroups.push_back({id, path_of_cgroup(id)});
  }
  state.own_option = has_own_option();
  auto object = pinned_object();
  if (!object) {  // a tool was killed before it pinned them
    object = load_object(*about, state.size, {"call_get_info", "is_there"});
  }
  if (!object) {
    return tl::unexpected(object.error());
  }
  for (const std::string& name : names_in("namespaces")) {
    const std::uint64_t cookie = std::stoull(name);
    state.namespaces.push_back({cookie, inode_of_netns(*object, cookie).value_or(0)});
  }
  if (object->map("flow_table") >= 0) {
    auto flows = flows_of(*object);
    if (!flows) {
      return tl::unexpected(flows.error());
    }
    state.flows = std::move(*flows);
    state.unrecorded = lacks_a_hook(true);
  }
  auto groups = groups_of(*object, (*about)->group_size,
                          state.unrecorded.empty() ? state.flows : std::nullopt);
  if (!groups) {
    return tl::unexpected(groups.error());
  }
  state.groups = std::move(*groups);
  const std::uint32_t zero = 0;
  table::common common{};
  if (bpf_map_lookup_elem(object->map("common"), &zero, &common) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, common)", errno);
  }
  state.left = {common.left[table::LEFT_UNKNOWN_LISTENER], common.left[table::LEFT_UNKNOWN_MEMBER],
                common.left[table::LEFT_NO_MEMBER], common.left[table::LEFT_TOO_LONG]};
  return state;
}

Status adopt_newcomers(const FindDescriptors& find) {
  auto adopted = adopt_newcomers_once(find);
  if (adopted) {
    return adopted;
  }
  // Another tool may be at work, and half of it done.
  const auto locked = lock();
  return locked ? adopt_newcomers_once(find) : adopted;
}

bool records_flows() {
  return flows_pinned();
}

Result<std::optional<Flows>> flows_here() {
  auto flows = count_flows_here();
  if (flows) {
    return flows;
  }
  // Another tool may be at work, and half of it done. What holds is seen when it has ended.
  const auto locked = lock();
  if (!locked) {
    return locked.error().errnum == ENOENT ? Result<std::optional<Flows>>(std::nullopt) : flows;
  }
  return count_flows_here();
}

Result<std::string> cgroup2_mount() {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // "36 35 98:0 /root /mount/point options ... - type source ..."
    const auto dash = line.find(" - cgroup2 ");
    if (dash == std::string::npos) {
      continue;
    }
    std::istringstream fields(line);
    std::string skip;
    std::string at;
    fields >> skip >> skip >> skip >> skip >> at;
    return at;
  }
  return fail("/proc/self/mountinfo", ENOENT, "cgroup2 is not mounted");
}

Result<std::string> cgroup_of(pid_t pid) {
  auto mount = cgroup2_mount();
  if (!mount) {
    return mount;
  }
  std::ifstream file("/proc/" + std::to_string(pid) + "/cgroup");
  if (!file) {
    return fail("open(/proc/" + std::to_string(pid) + "/cgroup)", errno);
  }
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("0::")) {
      return *mount + line.substr(3);
    }
  }
  return fail("/proc/" + std::to_string(pid) + "/cgroup", ENOENT, "the process is in no cgroup2");
}

}  // namespace reuseport::option
