// SPDX-License-Identifier: Apache-2.0
#include "mode.hpp"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "newcomer.hpp"
#include "reuseport/reuseport.hpp"
#include "sharing.hpp"

namespace reuseport::ctl {

using nlohmann::json;

namespace {

/// Exit::unsupported with the probe's reason unless setsockopt() provides the option to us.
Done find_option() {
  const char* why = "";
  const int support = reuseport_probe(&why);
  if (support == REUSEPORT_SUPPORTED || support == REUSEPORT_SUPPORTED_BY_BPF) {
    return {};
  }
  Failure failure(support == REUSEPORT_BLOCKED ? Exit::permission : Exit::unsupported, why);
  failure.detail = {{"support", reuseport_support_name(static_cast<std::uint32_t>(support))}};
  return failed(failure);
}

Expected<reuseport_listen_info> info_of(const Target& target) {
  reuseport_listen_info info{};
  if (const int got = reuseport_get_info(target.fd.get(), &info); got != 0) {
    return failed(Error{"getsockopt(SO_REUSEPORT_LISTEN_OFF)", -got, reuseport_hint(got)},
                  target.str());
  }
  return info;
}

Done set(const Target& target, Mode mode) {
  const int got = reuseport_set_mode(target.fd.get(), static_cast<int>(mode));
  return got == 0 ? Done{}
                  : failed(Error{"setsockopt(SO_REUSEPORT_LISTEN_OFF)", -got, reuseport_hint(got)},
                           target.str());
}

/// The cookie of its network namespace, since Linux 5.14; 0 before that.
std::uint64_t netns_of(const Target& target) {
  std::uint64_t netns = 0;
  socklen_t len = sizeof(netns);
  return ::getsockopt(target.fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &netns, &len) == 0 ? netns : 0;
}

/// Exit::last_on if switching the targets off would leave a group without an ON listener.
Done refuse_last_on(const std::vector<Target>& targets) {
  // group_id is unique within a network namespace only
  using Group = std::pair<std::uint64_t, std::uint32_t>;
  struct Member {
    const Target* target;
    Group group;
    std::uint32_t group_on;
  };
  std::map<Group, std::uint32_t> ours_on;
  std::vector<Member> members;
  for (const Target& t : targets) {
    const auto info = info_of(t);
    if (!info) {
      return tl::unexpected(info.error());
    }
    const Group group{netns_of(t), info->group_id};
    ours_on[group] += info->group_on > 0 && info->mode == REUSEPORT_LISTEN_ON ? 1 : 0;
    members.push_back({&t, group, info->group_on});
  }
  for (const Member& member : members) {
    if (member.group_on <= ours_on[member.group]) {
      Successor nobody;
      nobody.why = "no other member of its group is ON";
      return failed(nobody_takes_over(*member.target, nobody));
    }
  }
  return {};
}

}  // namespace

Done set_mode(Mode mode, const Selection& selection, const ModeOptions& options,
              const Output& out) {
  auto provided = find_option();
  const auto view = look(selection);
  if (!view) {
    return provided ? tl::unexpected(view.error()) : provided;
  }
  Processes processes;
  const auto targets = take_selected(selection, *view, processes);
  if (!targets) {
    return provided ? tl::unexpected(targets.error()) : provided;
  }
  // By BPF the socket's cgroup counts, not ours.
  if (!provided && std::ranges::any_of(*targets, [](const Target& t) { return !info_of(t); })) {
    return provided;
  }
  if (mode != Mode::on && !options.allow_shared) {
    if (auto ok = refuse_shared(*targets, *view, processes); !ok) {
      return ok;
    }
  }
  if (mode == Mode::off && !options.allow_last) {
    if (auto ok = refuse_last_on(*targets); !ok) {
      return ok;
    }
  }

  std::vector<Mode> before;
  for (const Target& t : *targets) {
    const auto was = info_of(t);
    if (!was) {
      return tl::unexpected(was.error());
    }
    before.push_back(static_cast<Mode>(was->mode));
  }
  if (!options.dry_run) {
    for (std::size_t i = 0; i < targets->size(); i++) {
      const auto ok = set((*targets)[i], mode);
      if (ok) {
        continue;
      }
      Failure failure = ok.error();
      if (!(*targets)[i].reuseport) {
        failure.hint = "it has no SO_REUSEPORT: only listeners with SO_REUSEPORT have a mode";
      }
      // all or none: restore those already set
      std::string left;
      for (std::size_t j = i; j-- > 0;) {
        if (!set((*targets)[j], before[j])) {
          fmt::format_to(std::back_inserter(left), "{}{} {}", left.empty() ? "" : ", ",
                         (*targets)[j].str(), to_string(mode));
        }
      }
      if (!left.empty()) {
        failure.message += "; could not be set back: " + left;
      }
      return failed(failure);
    }
  }

  json changed = json::array();
  std::string text;
  for (std::size_t i = 0; i < targets->size(); i++) {
    const DiagSocket& s = (*targets)[i].socket;
    changed.push_back({{"protocol", to_string(s.protocol)},
                       {"address", s.local.str()},
                       {"inode", s.inode},
                       {"pid", (*targets)[i].pid()},
                       {"before", to_string(before[i])},
                       {"mode", to_string(mode)}});
    fmt::format_to(std::back_inserter(text), "{}{}: {} -> {}\n", options.dry_run ? "would: " : "",
                   (*targets)[i].str(), to_string(before[i]), to_string(mode));
  }
  if (out.json) {
    out.document({{"dry_run", options.dry_run}, {"changed", changed}});
  } else {
    out.text(text);
  }
  return {};
}

}  // namespace reuseport::ctl
