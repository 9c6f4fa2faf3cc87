// SPDX-License-Identifier: Apache-2.0
#include "unit.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "newcomer.hpp"
#include "served.hpp"

namespace reuseport::ctl {

namespace {

std::string cgroup_of(const std::string& process) {
  std::ifstream file("/proc/" + process + "/cgroup");
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

Expected<std::vector<Process>> servers_of_unit() {
  std::vector<Process> servers;
  const char* named = std::getenv("MAINPID");
  if (named == nullptr) {
    return servers;
  }
  const std::string own = cgroup_of("self");
  const bool of_a_unit = !own.empty() && own != "0::/\n";  // else anything may be in it
  std::map<pid_t, Process> members;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    auto process = Process::open(std::atoi(name.c_str()));  // EINVAL unless it is a number
    if (process && process->pid() != ::getpid() && (of_a_unit || name == named) &&
        cgroup_of(name) == own && !process->ended()) {
      members.emplace(process->pid(), std::move(*process));
    }
  }
  const auto main = members.find(std::atoi(named));
  if (main == members.end()) {
    return failed(Failure(Exit::error, fmt::format("MAINPID {} is not in this unit", named)));
  }
  auto last = std::make_shared<Process>(std::move(main->second));
  const auto now = served_by(last, true);
  const auto beside_it = [&](const Target& t) {
    return std::ranges::any_of(now->targets,
                               [&](const Target& u) { return same_group(t.socket, u.socket); });
  };
  const auto netns = network_namespace(main->first);
  for (auto& [pid, process] : members) {
    const auto parent = process.parent();
    const auto where = network_namespace(pid);
    if (pid == main->first || !parent || members.contains(*parent) || !netns || !where ||
        *where != *netns) {
      continue;
    }
    auto server = std::make_shared<Process>(std::move(process));
    const auto served = served_by(server, true);
    if (served && now && std::ranges::any_of(served->targets, beside_it)) {
      servers.push_back(std::move(*server));
    }
  }
  // back into its network namespace: the others may have left it
  if (const auto back = served_by(last, true); !back && now) {
    return tl::unexpected(back.error());
  }
  servers.push_back(std::move(*last));
  return servers;
}

}  // namespace reuseport::ctl
