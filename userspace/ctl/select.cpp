// SPDX-License-Identifier: Apache-2.0
#include "select.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "option/option.hpp"

namespace reuseport::ctl {

namespace {

bool contains(const std::vector<pid_t>& sorted, pid_t pid) {
  return std::binary_search(sorted.begin(), sorted.end(), pid);
}

Done enter_namespace_of(const Process& process) {
  const auto theirs = process.network_namespace();
  if (!theirs) {
    return failed(theirs.error(), fmt::format("process {}", process.pid()));
  }
  struct stat there {};
  struct stat here {};
  if (::fstat(theirs->get(), &there) == 0 && ::stat("/proc/self/ns/net", &here) == 0 &&
      there.st_dev == here.st_dev && there.st_ino == here.st_ino) {
    return {};
  }
  if (::setns(theirs->get(), CLONE_NEWNET) != 0) {
    return failed(Error{
        "setns(CLONE_NEWNET)", errno,
        fmt::format("process {} is in another network namespace; run as root", process.pid())});
  }
  return {};
}

bool has_reuseport(int fd) {
  int value = 0;
  socklen_t len = sizeof(value);
  return ::getsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &value, &len) == 0 && value != 0;
}

}  // namespace

Result<ProcessPtr> Processes::of(pid_t pid) {
  const auto known = open_.find(pid);
  if (known != open_.end() && !known->second->ended()) {
    return known->second;
  }
  auto opened = Process::open(pid);
  if (!opened) {
    return tl::unexpected(opened.error());
  }
  return open_[pid] = std::make_shared<const Process>(std::move(*opened));
}

bool Processes::below(const ProcessPtr& process, const ProcessPtr& root) {
  const auto [it, fresh] = below_.try_emplace(process.get(), false);
  if (fresh) {
    it->second = descends(*process, *root);
  }
  return it->second;
}

bool Selection::wants(Protocol protocol) const {
  return tcp == udp || (protocol == Protocol::tcp ? tcp : udp);
}

bool Selection::matches(const DiagSocket& s) const {
  return wants(s.protocol) && (!port || *port == s.local.port) &&
         (!address || address->matches(s.local)) && (!inode || *inode == s.inode);
}

std::string Selection::str() const {
  std::string out;
  const auto add = [&out](const std::string& part) { out += (out.empty() ? "" : ", ") + part; };
  if (pid) {
    add(fmt::format("pid {}", *pid));
  }
  if (port) {
    add(fmt::format("port {}", *port));
  }
  if (address) {
    if (address->address) {
      add("address " + address->address->str());
    } else if (address->port) {
      add(fmt::format("port {}", *address->port));
    }
  }
  if (inode) {
    add(fmt::format("socket {}", *inode));
  }
  if (tcp != udp) {
    add(tcp ? "tcp" : "udp");
  }
  return out;
}

bool View::in_tree(std::uint64_t inode) const {
  const auto& who = holders.of(inode);
  return std::any_of(who.begin(), who.end(),
                     [this](const Holder& h) { return contains(tree, h.pid); });
}

bool View::of_stranger(const DiagSocket& s) const {
  const auto& who = holders.of(s.inode);
  return server && s.uid != 0 && std::find(users.begin(), users.end(), s.uid) == users.end() &&
         std::none_of(who.begin(), who.end(),
                      [this](const Holder& h) { return h.pid == server->pid(); });
}

Expected<View> look(const Selection& selection, ProcessPtr server) {
  View view;
  if (selection.pid && !server) {
    auto opened = Process::open(*selection.pid);
    if (!opened) {
      return failed(opened.error());
    }
    server = std::make_shared<const Process>(std::move(*opened));
  }
  if (server) {
    if (auto ok = enter_namespace_of(*server); !ok) {
      return tl::unexpected(ok.error());
    }
  }
  auto diag = SockDiag::open();
  if (!diag) {
    return failed(diag.error());
  }
  const std::uint16_t port = selection.port ? *selection.port
                             : selection.address && selection.address->port
                                 ? *selection.address->port
                                 : std::uint16_t{0};
  for (const Protocol protocol : {Protocol::tcp, Protocol::udp}) {
    if (!selection.wants(protocol)) {
      continue;
    }
    auto found = diag->listeners(protocol, port);
    if (!found && found.error().errnum == ENOENT && selection.tcp == selection.udp) {
      view.missing += std::string(view.missing.empty() ? "" : ", ") + found.error().message();
      continue;
    }
    if (!found) {
      Failure failure(found.error(), std::string(to_string(protocol)));
      if (found.error().errnum == ENOENT) {
        failure.exit = Exit::unsupported;
      }
      return failed(failure);
    }
    if (view.sockets.empty()) {
      view.sockets = std::move(*found);
    } else {
      view.sockets.insert(view.sockets.end(), found->begin(), found->end());
    }
  }
  if (view.sockets.empty() && !view.missing.empty()) {
    return failed(Failure(Exit::unsupported, "this kernel cannot list sockets", view.missing));
  }
  std::vector<std::uint64_t> inodes;
  inodes.reserve(view.sockets.size());
  for (const DiagSocket& s : view.sockets) {
    inodes.push_back(s.inode);
  }
  std::sort(inodes.begin(), inodes.end());
  if (!inodes.empty()) {
    auto holders = find_holders(inodes);
    if (!holders) {
      return failed(holders.error());
    }
    view.holders = std::move(*holders);
  }
  if (server) {
    // after the holders: a child that the server forks in between is then known as its child
    auto tree = process_tree(server->pid());
    view.users = users_of(*server);
    if (server->ended()) {
      // what was read from /proc may belong to a process that reuses the number
      return failed(Failure(Exit::error, fmt::format("process {} has ended", server->pid())));
    }
    if (!tree) {
      return failed(tree.error());
    }
    view.tree = std::move(*tree);
    view.server = std::move(server);
  }
  return view;
}

Expected<std::vector<std::size_t>> select(const Selection& selection, const View& view) {
  std::vector<std::size_t> out;
  bool other_inode = false;
  for (std::size_t i = 0; i < view.sockets.size(); i++) {
    const DiagSocket& s = view.sockets[i];
    if (selection.matches(s) && (!selection.pid || view.in_tree(s.inode))) {
      out.push_back(i);
    }
    other_inode = other_inode || (selection.inode && s.inode == *selection.inode);
  }
  if (!out.empty() || selection.everything()) {
    return out;
  }
  if (view.server) {
    // distinguish "has none" from "no permission"
    if (auto sockets = view.server->sockets(); !sockets) {
      return failed(sockets.error(), fmt::format("process {}", *selection.pid));
    }
  }
  return failed(Failure(Exit::error, fmt::format("no listener with {}", selection.str()),
                        selection.inode && !other_inode
                            ? "the socket is gone, in another network namespace, or not a listener"
                            : "see reuseportctl list"));
}

Expected<Chosen> look_and_select(const Selection& selection) {
  auto view = look(selection);
  if (!view) {
    return tl::unexpected(view.error());
  }
  auto sockets = select(selection, *view);
  if (!sockets) {
    return tl::unexpected(sockets.error());
  }
  Processes processes;
  learn_modes(*view, *sockets, processes);
  return Chosen{std::move(*view), std::move(*sockets)};
}

std::string Target::str() const {
  return fmt::format("{} {} (socket {}, pid {})", to_string(socket.protocol), socket.local.str(),
                     socket.inode, pid());
}

bool Target::still_held() const {
  return std::any_of(holders.begin(), holders.end(), [this](const auto& holder) {
    return holder.first->still_holds(holder.second, socket.inode);
  });
}

Expected<Target> take(const DiagSocket& socket, const View& view, Processes& processes) {
  auto who = view.holders.of(socket.inode);
  std::stable_partition(who.begin(), who.end(),
                        [&](const Holder& h) { return contains(view.tree, h.pid); });
  const std::string what = fmt::format("{} {}", to_string(socket.protocol), socket.local.str());
  if (who.empty()) {
    if (view.holders.may_be_more()) {
      return failed(Failure(Exit::permission,
                            fmt::format("{}: held by a process this user may not inspect", what),
                            "run as root or with CAP_SYS_PTRACE"));
    }
    return failed(Failure(Error{"find its process", ESTALE,
                                "none that can be seen: it was closed, or one outside of this pid "
                                "namespace holds it"},
                          what));
  }
  std::optional<Failure> first;
  Target target{socket, {}, {}, false};
  for (const Holder& h : who) {
    auto process = processes.of(h.pid);
    if (!process && !has_ended(process.error())) {
      return failed(process.error(), what);  // a holder that is not known is not "none"
    }
    if (!process) {
      first = first ? first : Failure(process.error(), what);
      continue;
    }
    if (!target.fd) {
      auto fd = (*process)->duplicate(h.fd, socket.inode);
      if (!fd) {
        first = first ? first : Failure(fd.error(), what);
        continue;
      }
      target.fd = std::move(*fd);
      target.reuseport = has_reuseport(target.fd.get());
    }
    target.holders.emplace_back(*process, h.fd);
  }
  if (!target.fd) {
    return failed(*first);
  }
  // another process may have had the number when the tree was read
  const ProcessPtr& from = target.holders.front().first;
  if (view.server && contains(view.tree, from->pid()) && !processes.below(from, view.server) &&
      !from->ended()) {
    return failed(Failure(Error{"find its process", ESTALE,
                                fmt::format("process {} is no longer a descendant of {}",
                                            from->pid(), view.server->pid())},
                          what));
  }
  return target;
}

Expected<std::vector<Target>> take_selected(const Selection& selection, const View& view,
                                            Processes& processes) {
  const auto chosen = select(selection, view);
  if (!chosen) {
    return tl::unexpected(chosen.error());
  }
  std::vector<Target> out;
  for (const std::size_t i : *chosen) {
    const DiagSocket& socket = view.sockets[i];
    if (!selection.named() && view.of_stranger(socket)) {
      continue;
    }
    auto target = take(socket, view, processes);
    if (!target) {
      return tl::unexpected(target.error());
    }
    const bool client = socket.protocol == Protocol::udp && !selection.named();
    if (!target->reuseport && (client || selection.reuseport_only)) {
      continue;
    }
    out.push_back(std::move(*target));
  }
  if (out.empty()) {
    return failed(Failure(Exit::error,
                          fmt::format("no listener with {}{}", selection.str(),
                                      selection.reuseport_only ? " and SO_REUSEPORT" : ""),
                          "see reuseportctl list"));
  }
  return out;
}

void learn_modes(View& view, const std::vector<std::size_t>& which, Processes& processes,
                 const std::vector<Target>& held) {
  if (!option::enabled_somewhere()) {
    return;
  }
  std::unordered_map<std::uint64_t, int> by_cookie;
  for (const Target& t : held) {
    if (t.fd) {
      by_cookie.emplace(t.socket.cookie, t.fd.get());
    }
  }
  for (const std::size_t i : which) {
    DiagSocket& s = view.sockets[i];
    if (s.info) {
      continue;
    }
    const auto own = by_cookie.find(s.cookie);
    const auto other =
        own == by_cookie.end() ? std::optional(take(s, view, processes)) : std::nullopt;
    const int fd = !other ? own->second : *other ? (*other)->fd.get() : -1;
    if (const auto info = get_info(fd)) {
      s.info = *info;
    }
  }
}

}  // namespace reuseport::ctl
