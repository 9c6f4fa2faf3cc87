// SPDX-License-Identifier: Apache-2.0
#include "newcomer.hpp"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <unordered_set>

#include "host/vrf.hpp"

namespace reuseport::ctl {

namespace {

constexpr std::array<std::uint8_t, 12> mapped_prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/// The addresses of one family that a listener serves: none, one, or all.
struct Addresses {
  bool served = false;
  bool all = false;
  std::array<std::uint8_t, 16> address{};
};

bool is_mapped(const Endpoint& e) {
  return e.family == AF_INET6 &&
         std::equal(mapped_prefix.begin(), mapped_prefix.end(), e.addr.begin());
}

Addresses of_v4(const DiagSocket& s) {
  Addresses addresses;
  if (s.local.family == AF_INET) {
    addresses = {true, s.local.is_any(), s.local.addr};
  } else if (is_mapped(s.local)) {
    addresses.served = true;
    std::copy_n(s.local.addr.begin() + mapped_prefix.size(), 4, addresses.address.begin());
    addresses.all = std::all_of(addresses.address.begin(), addresses.address.begin() + 4,
                                [](std::uint8_t b) { return b == 0; });
  } else if (!s.v6only && s.local.is_any()) {
    addresses = {true, true, {}};
  }
  return addresses;
}

Addresses of_v6(const DiagSocket& s) {
  if (s.local.family != AF_INET6 || is_mapped(s.local)) {
    return {};
  }
  return {true, s.local.is_any(), s.local.addr};
}

enum class Reach : std::uint8_t { whole, part, nothing };

Reach reach(const Addresses& old, const Addresses& other) {
  if (!other.served) {
    return Reach::nothing;
  }
  if (other.all || (!old.all && old.address == other.address)) {
    return Reach::whole;
  }
  return old.all ? Reach::part : Reach::nothing;
}

/// The address as IPv6; IPv4 addresses are mapped: "::ffff:192.0.2.1".
std::array<std::uint8_t, 16> address_of(const Endpoint& e) {
  std::array<std::uint8_t, 16> address = e.addr;
  if (e.family == AF_INET) {
    std::copy_n(e.addr.begin(), 4,
                std::copy(mapped_prefix.begin(), mapped_prefix.end(), address.begin()));
  }
  return address;
}

bool is_wide(const DiagSocket& s) {
  return of_v4(s).all || of_v6(s).all;
}

/// Whether what comes through the device of @p old reaches a socket that is bound to none:
/// inet_bound_dev_eq(). A device that has gone brings nothing.
bool reaches_device(const DiagSocket& old) {
  if (accepts_from_vrfs(old.protocol)) {
    return true;
  }
  const auto vrf = in_vrf(old.local.ifindex);
  return vrf ? !*vrf : vrf.error().errnum == ENODEV;
}

std::uint32_t mode_of(const DiagSocket& s) {
  return s.info ? s.info->mode : std::uint32_t{REUSEPORT_LISTEN_ON};
}

std::uint32_t key(const DiagSocket& s) {
  return static_cast<std::uint32_t>(s.protocol) << 16 | s.local.port;
}

}  // namespace

void learn_modes(View& view, const std::vector<Target>& leaving, Processes& processes) {
  std::unordered_set<std::uint32_t> ports;
  for (const Target& t : leaving) {
    ports.insert(key(t.socket));
  }
  std::vector<std::size_t> there;
  for (std::size_t i = 0; i < view.sockets.size(); i++) {
    if (ports.contains(key(view.sockets[i]))) {
      there.push_back(i);
    }
  }
  learn_modes(view, there, processes, leaving);
}

bool same_group(const DiagSocket& a, const DiagSocket& b) {
  return a.same_address(b) && a.v6only == b.v6only && a.uid == b.uid;
}

Newcomers::Newcomers(const View& view, const std::vector<Target>& leaving, Processes& processes,
                     Siblings siblings) {
  std::unordered_set<std::uint64_t> cookies;
  std::unordered_set<pid_t> pids;
  std::unordered_set<std::uint32_t> ports;
  for (const Target& t : leaving) {
    cookies.insert(t.socket.cookie);
    ports.insert(key(t.socket));
    if (siblings == Siblings::leave) {
      for (const Holder& h : view.holders.of(t.socket.inode)) {
        pids.insert(h.pid);
      }
    }
  }
  const auto leaves = [&](const DiagSocket& s) {
    const auto& holders = view.holders.of(s.inode);
    return !holders.empty() &&
           std::ranges::all_of(holders, [&](const Holder& h) { return pids.contains(h.pid); });
  };
  for (const DiagSocket& s : view.sockets) {
    if (!ports.contains(key(s)) || cookies.contains(s.cookie) || leaves(s)) {
      continue;
    }
    Port& port = by_port_[key(s)];
    Candidates& known = is_wide(s) ? port.wide : port.at[address_of(s.local)];
    const bool reuse = reuseport(s, processes, view);
    if (std::ranges::none_of(known, [&](const Candidate& c) {
          return same_group(*c.socket, s) && c.reuseport == reuse &&
                 mode_of(*c.socket) == mode_of(s);
        })) {
      known.push_back({&s, reuse});
    }
  }
}

/// Listeners that may get its connections, all or some of them.
std::array<const Newcomers::Candidates*, 2> Newcomers::beside(const DiagSocket& old) const {
  static const Candidates nobody;
  const auto port = by_port_.find(key(old));
  if (port == by_port_.end()) {
    return {&nobody, &nobody};
  }
  const auto& at = port->second.at;
  // any of those that serve a part of a wildcard will do: it only appears in a message
  const auto own = is_wide(old) ? at.begin() : at.find(address_of(old.local));
  return {&port->second.wide, own == at.end() ? &nobody : &own->second};
}

bool Newcomers::reuseport(const DiagSocket& s, Processes& processes, const View& view) {
  if (s.info && s.info->in_group()) {
    return true;
  }
  for (const Holder& h : view.holders.of(s.inode)) {
    if (h.reuseport) {
      return *h.reuseport;
    }
  }
  if (s.protocol == Protocol::tcp) {
    return true;  // else listen(2) would have refused one of the two: inet_csk_bind_conflict()
  }
  const auto target = take(s, view, processes);
  return target && target->reuseport;
}

Successor Newcomers::of(const Target& target) const {
  const DiagSocket& old = target.socket;
  Successor best;
  if (!target.reuseport) {
    best.why = "it has no SO_REUSEPORT";
    return best;
  }
  bool v4 = !of_v4(old).served;
  bool v6 = !of_v6(old).served;
  for (const Candidates* some : beside(old)) {
    for (const Candidate& c : *some) {
      const DiagSocket& s = *c.socket;
      const std::string whose = fmt::format("{} {}", to_string(s.protocol), s.local.str());
      const Reach r4 = of_v4(old).served ? reach(of_v4(old), of_v4(s)) : Reach::nothing;
      const Reach r6 = of_v6(old).served ? reach(of_v6(old), of_v6(s)) : Reach::nothing;
      if (r4 == Reach::nothing && r6 == Reach::nothing) {
        if (best.why.empty() && s.local.family == AF_INET6 && s.local.is_any() && s.v6only) {
          best.why = whose + " is IPv6 only (IPV6_V6ONLY)";
        }
        continue;
      }
      if (s.uid != old.uid) {
        best.why = fmt::format("{} belongs to uid {}, not {}: not this server's newcomer", whose,
                               s.uid, old.uid);
      } else if (!c.reuseport) {
        best.why = whose + " has no SO_REUSEPORT";
      } else if (s.info && s.info->mode != REUSEPORT_LISTEN_ON) {
        best.why =
            fmt::format("{} (socket {}) is {}", whose, s.inode, to_string(Mode{s.info->mode}));
      } else if (s.local.ifindex != 0 && s.local.ifindex != old.local.ifindex) {
        best.why = whose + " is bound to a device";
      } else if (s.local.ifindex != old.local.ifindex && !reaches_device(old)) {
        best.why = fmt::format(
            "{} is bound to no device, and connections through a VRF do not find it "
            "(net.ipv4.{}_l3mdev_accept is 0)",
            whose, to_string(s.protocol));
      } else if (same_group(s, old)) {
        return {Cover::group, &s, {}};
      } else {
        v4 = v4 || r4 == Reach::whole;
        v6 = v6 || r6 == Reach::whole;
        if (r4 == Reach::part || r6 == Reach::part) {
          best.why = fmt::format("{} serves only a part of {}", whose, old.local.str());
        } else {
          best.who = &s;
        }
      }
    }
  }
  if (v4 && v6 && best.who != nullptr) {
    best.cover = Cover::route;
  } else if (best.who != nullptr && best.why.empty()) {
    best.why =
        fmt::format("{} serves only one family of {}", best.who->local.str(), old.local.str());
  }
  return best;
}

Failure nobody_takes_over(const Target& target, const Successor& successor) {
  if (!target.reuseport) {
    Failure failure(
        Exit::last_on,
        fmt::format("{} {} has no SO_REUSEPORT: no other socket can listen beside it, and it "
                    "cannot be switched off",
                    to_string(target.socket.protocol), target.socket.local.str()),
        "make the server set SO_REUSEPORT before bind() (nginx: listen ... reuseport)");
    failure.detail = {{"address", target.socket.local.str()}, {"reuseport", false}};
    return failure;
  }
  Failure failure(Exit::last_on,
                  fmt::format("{} {} would be left without a listener that serves{}{}",
                              to_string(target.socket.protocol), target.socket.local.str(),
                              successor.why.empty() ? "" : ": ", successor.why),
                  "start the newcomer first, select a port with --port, or use --allow-last");
  failure.detail = {{"address", target.socket.local.str()}};
  return failure;
}

}  // namespace reuseport::ctl
