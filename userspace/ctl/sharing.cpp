// SPDX-License-Identifier: Apache-2.0
#include "sharing.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "text.hpp"

namespace reuseport::ctl {

namespace {

/// Processes that hold @p inode but do not belong to the server: those outside of the view's tree
/// or, without one, outside of the process tree of every holder.
Expected<std::vector<pid_t>> foreign_holders(std::uint64_t inode, const View& view,
                                             Processes& processes) {
  std::vector<pid_t> pids;
  for (const Holder& h : view.holders.of(inode)) {
    if (pids.empty() || pids.back() != h.pid) {
      pids.push_back(h.pid);
    }
  }
  if (view.server) {
    std::vector<pid_t> foreign;
    for (const pid_t pid : pids) {
      if (std::binary_search(view.tree.begin(), view.tree.end(), pid)) {
        continue;
      }
      // it may have been forked, or have ended, since the view was taken
      const auto process = processes.of(pid);
      if (!process && !has_ended(process.error())) {
        return failed(process.error(), fmt::format("process {} holds a listener", pid));
      }
      if (process && !(*process)->ended() && !descends(**process, *view.server)) {
        foreign.push_back(pid);
      }
    }
    return foreign;
  }
  for (const pid_t root : pids) {
    const auto tree = process_tree(root);
    if (tree && std::all_of(pids.begin(), pids.end(), [&](pid_t p) {
          return std::binary_search(tree->begin(), tree->end(), p);
        })) {
      return std::vector<pid_t>{};  // one server and its workers
    }
  }
  return pids;
}

/// Whether @p pid runs this program, or by its name another build of it, for one of @p users, for
/// root, or for our user. Nobody gains by the name: each of these may run the tool. Only the real
/// uid counts, for anybody may give a setuid program this name.
bool same_program(pid_t pid, const std::set<uid_t>& users) {
  struct stat ours {};
  struct stat theirs {};
  const bool same = ::stat("/proc/self/exe", &ours) == 0 &&
                    ::stat(fmt::format("/proc/{}/exe", pid).c_str(), &theirs) == 0 &&
                    ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
  if (pid == ::getpid() || (!same && command_name(pid) != "reuseportctl")) {
    return false;
  }
  const auto process = Process::open(pid);
  if (!process && !has_ended(process.error())) {
    return true;  // wait, rather than take it for none
  }
  const auto runs_as = process ? users_of(*process) : std::vector<uid_t>{};
  return !runs_as.empty() &&
         (runs_as.front() == 0 || runs_as.front() == ::getuid() || users.contains(runs_as.front()));
}

}  // namespace

Done refuse_shared(const std::vector<Target>& targets, const View& view, Processes& processes) {
  const pid_t self = ::getpid();
  for (const Target& t : targets) {
    auto others = foreign_holders(t.socket.inode, view, processes);
    if (!others) {
      return tl::unexpected(others.error());
    }
    std::erase(*others, self);  // our own duplicates
    if (others->empty()) {
      continue;
    }
    std::string who;
    for (const pid_t pid : *others) {
      who += fmt::format("{}{} ({})", who.empty() ? "" : ", ", pid, visible(command_name(pid)));
    }
    Failure failure(
        Exit::shared,
        fmt::format("{} {} (socket {}) is shared with process {}", to_string(t.socket.protocol),
                    t.socket.local.str(), t.socket.inode, who),
        "the mode applies to every process that shares it; use --allow-shared to accept that");
    failure.detail = {{"inode", t.socket.inode}, {"pids", *others}};
    return failed(failure);
  }
  if (view.holders.may_be_more() && !targets.empty()) {
    Failure failure(
        Exit::shared,
        view.holders.hidden
            ? fmt::format("{} may be shared: this user may not see the processes of others",
                          targets.front().str())
            : fmt::format("{} may be shared: this user may not inspect {} processes",
                          targets.front().str(), view.holders.unreadable),
        "run as root or with CAP_SYS_PTRACE, or use --allow-shared if none of them holds it");
    failure.detail = {{"unreadable", view.holders.unreadable}, {"hidden", view.holders.hidden}};
    return failed(failure);
  }
  return {};
}

std::optional<pid_t> other_run(const std::vector<std::uint64_t>& inodes, const Holders& holders,
                               const std::set<uid_t>& users) {
  std::map<pid_t, bool> asked;
  for (const std::uint64_t inode : inodes) {
    for (const Holder& h : holders.of(inode)) {
      const auto [it, fresh] = asked.try_emplace(h.pid, false);
      if (fresh) {
        it->second = same_program(h.pid, users);
      }
      if (it->second) {
        return h.pid;
      }
    }
  }
  return std::nullopt;
}

}  // namespace reuseport::ctl
