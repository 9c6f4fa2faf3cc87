// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <unordered_set>
#include <utility>

#include "option/object.hpp"

namespace reuseport::option {

namespace {

Result<std::uint16_t> port_of(int fd) {
  sockaddr_in6 bound{};
  socklen_t len = sizeof(bound);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &len) != 0) {
    return fail("getsockname", errno);
  }
  if (bound.sin6_family != AF_INET && bound.sin6_family != AF_INET6) {
    return fail("adopt", EOPNOTSUPP, "only TCP and UDP over IPv4 and IPv6");
  }
  return ntohs(bound.sin6_port);  // at the same place in sockaddr_in
}

}  // namespace

struct Session::Parts {
  Object object;
  Fd netns;
  Fd link;
  FindDescriptors find;
  std::unordered_set<std::uint64_t> waiting;  // queried, and not SETTLED at that time

  Status adopt_cookie(std::uint64_t cookie) const {
    table::call call{};
    call.cookie = cookie;
    if (auto ran = object.run("call_adopt", call); !ran) {
      return ran;
    }
    return call.error == 0 ? Status{} : answer("adopt", call.error);
  }

  static tl::unexpected<Error> answer(const char* call, int error) {
    switch (-error) {
      case EINVAL: return fail(call, EINVAL, "not an adopted SO_REUSEPORT listener");
      case ENOSPC: return fail(call, ENOSPC, "the group or the tables are full");
      case EBUSY:
        return fail(call, EBUSY, "the group has its own BPF program, which would be bypassed");
      default: return fail(call, -error);
    }
  }
};

Need need(const Error& error) {
  switch (error.errnum) {
    case EPERM:
    case EACCES: return Need::privilege;
    case EEXIST:
      return error.hint == own_option || error.hint == no_flow_flag ? Need::not_by_bpf
                                                                    : Need::nothing;
    case ESRCH:
    case EOPNOTSUPP:
    case ENOSYS: return Need::kernel;
    default: return Need::nothing;
  }
}

Status probe() {
  auto session = Session::start();
  return session ? Status{} : tl::unexpected(session.error());
}

Session::Session(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Session> Session::start(int netns, GroupSize size, FindDescriptors find) {
  if (auto ok = refuse_own_option(); !ok) {
    return tl::unexpected(ok.error());
  }
  auto object = Object::open(size, false);
  if (!object) {
    return tl::unexpected(object.error());
  }
  object->only({"choose", "choose_datagram", "reuseport_stub", "find_namespace", "find_listeners",
                "find_datagrams", "call_adopt", "call_set_mode", "call_get_info", "call_begin"});
  if (auto ok = object->load(); !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = object->begin(); !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = object->set_datagram_chooser(); !ok) {
    return tl::unexpected(ok.error());
  }
  auto parts = std::make_unique<Parts>(Parts{std::move(*object), {}, {}, std::move(find), {}});
  parts->netns.reset(netns < 0 ? ::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
                               : ::fcntl(netns, F_DUPFD_CLOEXEC, 0));
  if (!parts->netns) {
    return fail("open(/proc/thread-self/ns/net)", errno);
  }
  const auto look = look_of(parts->object, netns);
  if (!look) {
    return tl::unexpected(look.error());
  }
  if (auto ok = parts->object.look_at(*look); !ok) {
    return tl::unexpected(ok.error());
  }
  parts->link.reset(
      bpf_link_create(parts->object.program("choose"), parts->netns.get(), BPF_SK_LOOKUP, nullptr));
  if (!parts->link) {
    return bpf_fail("bpf(BPF_LINK_CREATE, sk_lookup)", errno);
  }
  return Session(std::move(parts));
}

Status Session::adopt(int fd) {
  return adopt(std::vector<int>{fd});
}

Status Session::adopt(const std::vector<int>& fds) {
  Datagrams datagrams;
  for (const int fd : fds) {
    if (auto ok = adopt_one(fd, datagrams); !ok) {
      return ok;
    }
  }
  if (auto ok = adopt_datagrams(datagrams); !ok) {
    return ok;
  }
  if (auto ok = refresh(); !ok) {
    return ok;
  }
  for (const auto& [cookie, fd] : datagrams) {
    table::member member{};
    if (bpf_map_lookup_elem(parts_->object.map("members"), &cookie, &member) != 0) {
      return fail("adopt", ENOSPC, "the group or the tables are full");
    }
  }
  return {};
}

/// Passes them to the programs; the next refresh() adopts them.
Status Session::adopt_datagrams(Datagrams datagrams) {
  if (datagrams.empty()) {
    return {};
  }
  return in_netns(parts_->netns.get(), [&]() -> Status {
    const auto found = parts_->object.find_datagrams();
    if (!found) {
      return tl::unexpected(found.error());
    }
    for (const table::datagram& each : *found) {
      const auto mine = datagrams.extract(each.cookie);
      if (!mine || each.known != 0) {
        continue;
      }
      if (each.program != 0 && each.ours == 0) {
        return Parts::answer("adopt", -EBUSY);
      }
      if (auto ok = parts_->object.take_datagram(mine.mapped(), each.cookie); !ok) {
        return ok;
      }
    }
    return datagrams.empty() ? Status{} : Parts::answer("adopt", -EINVAL);
  });
}

Status Session::adopt_one(int fd, Datagrams& datagrams) {
  const auto cookie = cookie_of(fd);
  const auto port = port_of(fd);
  if (!cookie || !port) {
    return tl::unexpected(cookie ? port.error() : cookie.error());
  }
  int protocol = 0;
  socklen_t len = sizeof(protocol);
  if (::getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) != 0 ||
      (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)) {
    return fail("adopt", EOPNOTSUPP, "only TCP and UDP");
  }
  const std::uint8_t one = 1;
  if (bpf_map_update_elem(parts_->object.map("wanted"), &*port, &one, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, wanted)", errno);
  }
  if (protocol == IPPROTO_UDP) {
    datagrams[*cookie] = fd;
    return {};
  }
  const auto value = static_cast<std::uint64_t>(fd);
  if (bpf_map_update_elem(parts_->object.map("listeners"), &*cookie, &value, BPF_ANY) != 0) {
    const int err = errno;
    return fail("bpf(BPF_MAP_UPDATE_ELEM, listeners)", err == EINVAL ? EOPNOTSUPP : err,
                err == EINVAL || err == EOPNOTSUPP ? "not a plain TCP listener" : "");
  }
  if (auto ok = parts_->adopt_cookie(*cookie); !ok) {
    bpf_map_delete_elem(parts_->object.map("listeners"), &*cookie);
    return ok;
  }
  return {};
}

Status Session::refresh() {
  return in_netns(parts_->netns.get(), [&]() -> Status {
    const auto cookies = parts_->object.find_listeners();
    if (!cookies) {
      return tl::unexpected(cookies.error());
    }
    for (const std::uint64_t cookie : *cookies) {
      // One that cannot be adopted stays unknown, and SETTLED is not set beside it.
      static_cast<void>(parts_->adopt_cookie(cookie));
    }
    return option::adopt_datagrams(parts_->object, parts_->find);
  });
}

Status Session::set_mode(int fd, int mode) {
  const auto cookie = cookie_of(fd);
  return cookie ? set_mode_of(*cookie, mode) : tl::unexpected(cookie.error());
}

Status Session::set_mode_of(std::uint64_t cookie, int mode) {
  if (mode < REUSEPORT_LISTEN_ON || mode > REUSEPORT_LISTEN_STANDBY) {
    return fail("set_mode", EINVAL, "unknown mode");
  }
  table::call call{};
  call.cookie = cookie;
  call.mode = static_cast<std::uint32_t>(mode);
  if (auto ran = parts_->object.run("call_set_mode", call); !ran) {
    return ran;
  }
  return call.error == 0 ? Status{} : Parts::answer("set_mode", call.error);
}

Result<reuseport_listen_info> Session::get_info(int fd) {
  const auto cookie = cookie_of(fd);
  return cookie ? get_info_of(*cookie) : tl::unexpected(cookie.error());
}

Result<reuseport_listen_info> Session::get_info_of(std::uint64_t cookie) {
  // One wait serves all sockets queried before, so that querying many takes no longer than one.
  if (parts_->waiting.contains(cookie)) {
    if (auto ok = parts_->object.wait_grace_period(); !ok) {
      return tl::unexpected(ok.error());
    }
    parts_->waiting.clear();
  }
  table::call call{};
  call.cookie = cookie;
  if (auto ran = parts_->object.run("call_get_info", call); !ran) {
    return tl::unexpected(ran.error());
  }
  if (call.error != 0) {
    return Parts::answer("get_info", call.error);
  }
  if (call.info.mode != REUSEPORT_LISTEN_ON &&
      (call.info.flags & REUSEPORT_LISTEN_F_SETTLED) == 0) {
    parts_->waiting.insert(cookie);
  }
  return call.info;
}

}  // namespace reuseport::option
