// SPDX-License-Identifier: Apache-2.0
#include "mode.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <iterator>
#include <map>

#include "reuseport/probe.hpp"
#include "text.hpp"

namespace reuseport::ctl {

using nlohmann::json;

Done require_option() {
  const ProbeResult found = probe();
  if (found.supported()) {
    return {};
  }
  Failure failure(found.support == Support::blocked ? Exit::permission : Exit::unsupported,
                  found.why());
  failure.detail = {{"support", to_string(found.support)}};
  return failed(failure);
}

Done refuse_shared(const std::vector<Target>& targets, const View& view) {
  for (const Target& t : targets) {
    const auto others = foreign_holders(t.socket.inode, view);
    if (others.empty()) {
      continue;
    }
    std::string who;
    for (const pid_t pid : others) {
      who += fmt::format("{}{} ({})", who.empty() ? "" : ", ", pid, visible(command_name(pid)));
    }
    Failure failure(
        Exit::shared,
        fmt::format("{} {} (socket {}) is one socket shared with process {}",
                    to_string(t.socket.protocol), t.socket.local.str(), t.socket.inode, who),
        "a mode holds for all who share it; --allow-shared if that is meant");
    failure.detail = {{"inode", t.socket.inode}, {"pids", others}};
    return failed(failure);
  }
  return {};
}

Done refuse_last_on(const std::vector<Target>& targets) {
  std::map<std::uint32_t, std::uint32_t> ours_on;  // by group
  std::vector<std::pair<const Target*, Info>> infos;
  for (const Target& t : targets) {
    const auto info = get_info(t.fd.get());
    if (!info) {
      return failed(info.error(), t.str());
    }
    ours_on[info->group_id] += info->in_group() && Mode{info->mode} == Mode::on ? 1 : 0;
    infos.emplace_back(&t, *info);
  }
  for (const auto& [target, info] : infos) {
    const bool others = info.in_group() && info.group_on > ours_on[info.group_id];
    if (!others) {
      Failure failure(Exit::last_on,
                      fmt::format("{} {} would be left without an ON listener",
                                  to_string(target->socket.protocol), target->socket.local.str()),
                      "start the newcomer first, name the port with --port, or --allow-last");
      failure.detail = {{"address", target->socket.local.str()}};
      return failed(failure);
    }
  }
  return {};
}

Outcome<std::vector<Target>> take_selected(const Selection& selection, const View& view) {
  const auto chosen = select(selection, view);
  if (!chosen) {
    return tl::unexpected(chosen.error());
  }
  const bool named = selection.port || selection.address || selection.inode;
  std::vector<Target> out;
  for (const std::size_t i : *chosen) {
    auto target = take(view.sockets[i], view.holders, view.tree);
    if (!target) {
      return tl::unexpected(target.error());
    }
    if (target->socket.protocol == Protocol::udp && !named && !has_reuseport(target->fd.get())) {
      continue;
    }
    out.push_back(std::move(*target));
  }
  if (out.empty()) {
    return failed(Failure(Exit::error, fmt::format("no listener with {}", selection.str()),
                          "see reuseportctl list"));
  }
  return out;
}

Done set_mode(Mode mode, const Selection& selection, const ModeOptions& options,
              const Output& out) {
  if (auto ok = require_option(); !ok) {
    return ok;
  }
  const auto view = look(selection);
  if (!view) {
    return tl::unexpected(view.error());
  }
  const auto targets = take_selected(selection, *view);
  if (!targets) {
    return tl::unexpected(targets.error());
  }
  if (mode != Mode::on && !options.allow_shared) {
    if (auto ok = refuse_shared(*targets, *view); !ok) {
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
    const auto was = get_info(t.fd.get());
    if (!was) {
      return failed(was.error(), t.str());
    }
    before.push_back(Mode{was->mode});
  }
  if (!options.dry_run) {
    for (std::size_t i = 0; i < targets->size(); i++) {
      const auto ok = reuseport::set_mode((*targets)[i].fd.get(), mode);
      if (ok) {
        continue;
      }
      Failure failure(ok.error(), (*targets)[i].str());
      if (ok.error().errnum == EINVAL) {
        failure.hint = "a mode needs a listening or bound socket with SO_REUSEPORT";
      }
      // all or none; ours to put back, so it can be put back
      for (std::size_t j = i; j-- > 0;) {
        static_cast<void>(reuseport::set_mode((*targets)[j].fd.get(), before[j]));
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
                       {"pid", (*targets)[i].process.pid()},
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
