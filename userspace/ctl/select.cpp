// SPDX-License-Identifier: Apache-2.0
#include "select.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace reuseport::ctl {

namespace {

bool contains(const std::vector<pid_t>& sorted, pid_t pid) {
  return std::binary_search(sorted.begin(), sorted.end(), pid);
}

Done enter_namespace_of(pid_t pid) {
  const auto theirs = network_namespace(pid);
  if (!theirs) {
    return failed(theirs.error(), fmt::format("process {}", pid));
  }
  const auto ours = network_namespace(::getpid());
  if (ours && *ours == *theirs) {
    return {};
  }
  const Fd ns(::open(fmt::format("/proc/{}/ns/net", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns || ::setns(ns.get(), CLONE_NEWNET) != 0) {
    return failed(
        Error{"setns(CLONE_NEWNET)", errno,
              fmt::format("process {} is in another network namespace; run as root", pid)});
  }
  return {};
}

}  // namespace

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

Outcome<View> look(const Selection& selection, const Process* server) {
  View view;
  std::optional<Process> held;
  if (selection.pid && server == nullptr) {
    auto opened = Process::open(*selection.pid);
    if (!opened) {
      return failed(opened.error());
    }
    held = std::move(*opened);
    server = &*held;
  }
  if (server != nullptr) {
    if (auto ok = enter_namespace_of(server->pid()); !ok) {
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
  if (server != nullptr) {
    // after the holders: a child the server forks between the two is then known as its child
    auto tree = process_tree(server->pid());
    if (server->ended()) {
      // what was read below /proc may be another's that has taken the number
      return failed(Failure(Exit::error, fmt::format("process {} has ended", server->pid())));
    }
    if (!tree) {
      return failed(tree.error());
    }
    view.tree = std::move(*tree);
  }
  return view;
}

Outcome<std::vector<std::size_t>> select(const Selection& selection, const View& view) {
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
  if (selection.pid) {
    // distinguish "has none" from "we may not see them"
    const auto process = Process::open(*selection.pid);
    if (!process) {
      return failed(process.error());
    }
    if (auto sockets = process->sockets(); !sockets) {
      return failed(sockets.error(), fmt::format("process {}", *selection.pid));
    }
  }
  return failed(Failure(Exit::error, fmt::format("no listener with {}", selection.str()),
                        selection.inode && !other_inode
                            ? "the socket is gone, in another network namespace, or no listener"
                            : "see reuseportctl list"));
}

Outcome<Chosen> look_and_select(const Selection& selection) {
  auto view = look(selection);
  if (!view) {
    return tl::unexpected(view.error());
  }
  auto sockets = select(selection, *view);
  if (!sockets) {
    return tl::unexpected(sockets.error());
  }
  return Chosen{std::move(*view), std::move(*sockets)};
}

std::string Target::str() const {
  return fmt::format("{} {} (socket {}, pid {})", to_string(socket.protocol), socket.local.str(),
                     socket.inode, process.pid());
}

bool Target::still_held() const {
  return process.still_holds(remote_fd, socket.inode) ||
         std::any_of(others.begin(), others.end(), [this](const auto& other) {
           return other.first.still_holds(other.second, socket.inode);
         });
}

Outcome<Target> take(const DiagSocket& socket, const Holders& holders,
                     const std::vector<pid_t>& prefer) {
  auto who = holders.of(socket.inode);
  std::stable_partition(who.begin(), who.end(),
                        [&](const Holder& h) { return contains(prefer, h.pid); });
  const std::string what = fmt::format("{} {}", to_string(socket.protocol), socket.local.str());
  if (who.empty()) {
    if (holders.unreadable > 0) {
      return failed(Failure(Exit::permission,
                            fmt::format("{}: held by a process this user must not look into", what),
                            "run as root or with CAP_SYS_PTRACE"));
    }
    return failed(Failure(Exit::error, fmt::format("{}: no process holds it any more", what)));
  }
  std::optional<Failure> first;
  for (const Holder& h : who) {
    auto process = Process::open(h.pid);
    if (!process) {
      first = first ? first : Failure(process.error(), what);
      continue;
    }
    auto fd = process->duplicate(h.fd, socket.inode);
    if (!fd) {
      first = first ? first : Failure(fd.error(), what);
      continue;
    }
    Target target{socket, std::move(*process), h.fd, std::move(*fd)};
    for (const Holder& other : who) {
      if (auto more = Process::open(other.pid); more && other.pid != h.pid) {
        target.others.emplace_back(std::move(*more), other.fd);
      }
    }
    return target;
  }
  return failed(*first);
}

std::vector<pid_t> foreign_holders(std::uint64_t inode, const View& view) {
  std::vector<pid_t> pids;
  for (const Holder& h : view.holders.of(inode)) {
    if (pids.empty() || pids.back() != h.pid) {
      pids.push_back(h.pid);
    }
  }
  if (!view.tree.empty()) {
    std::erase_if(pids, [&](pid_t p) { return contains(view.tree, p); });
    return pids;
  }
  if (pids.size() < 2) {
    return {};
  }
  for (const pid_t root : pids) {
    const auto tree = process_tree(root);
    if (tree &&
        std::all_of(pids.begin(), pids.end(), [&](pid_t p) { return contains(*tree, p); })) {
      return {};  // one server and its workers
    }
  }
  return pids;
}

bool has_reuseport(int fd) {
  int value = 0;
  socklen_t len = sizeof(value);
  return ::getsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &value, &len) == 0 && value != 0;
}

}  // namespace reuseport::ctl
