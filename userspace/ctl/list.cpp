// SPDX-License-Identifier: Apache-2.0
#include "list.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <iterator>

#include "host/attached_bpf.hpp"
#include "option/option.hpp"
#include "text.hpp"

namespace reuseport::ctl {

using nlohmann::json;

namespace {

json address_json(const DiagSocket& s) {
  std::string text = s.local.str();
  text.erase(text.rfind(':'));
  if (text.front() == '[') {
    text = text.substr(1, text.size() - 2);
  }
  return {{"address", text.substr(0, text.find('%'))},
          {"port", s.local.port},
          {"device", s.local.ifindex}};
}

json processes_json(const DiagSocket& s, const View& view, Names& names) {
  json out = json::array();
  for (const Holder& h : view.holders.of(s.inode)) {
    out.push_back({{"pid", h.pid}, {"fd", h.fd}, {"command", names.of(h.pid)}});
  }
  return out;
}

/// "tcp", "tcp6" for IPv6 only, "tcp46" for a dual-stack listener.
std::string protocol_name(const DiagSocket& s) {
  const bool dual = s.local.family == AF_INET6 && s.local.is_any() && !s.v6only;
  return std::string(to_string(s.protocol)) + (s.local.family == AF_INET ? "" : dual ? "46" : "6");
}

/// Whether SO_REUSEPORT is set, as far as it can be seen.
std::optional<bool> has_reuseport(const DiagSocket& s, const View& view, Processes& processes) {
  if (s.info && s.info->in_group()) {
    return true;
  }
  for (const Holder& h : view.holders.of(s.inode)) {
    if (h.reuseport) {
      return h.reuseport;
    }
  }
  const auto target = take(s, view, processes);
  return target ? std::optional(target->reuseport) : std::nullopt;
}

std::string mode_name(const DiagSocket& s, std::optional<bool> reuseport) {
  if (reuseport == false) {
    return "no-reuseport";
  }
  return s.info ? std::string(to_string(Mode{s.info->mode})) + (s.info->drained() ? ",drained" : "")
                : "-";
}

constexpr std::size_t columns = 10;
constexpr std::array<std::string_view, columns> titles = {
    "PROTO", "ADDRESS", "MODE", "HANDSHAKES", "QUEUE", "FLOWS", "GROUP", "UID", "INODE", "PROCESS"};

/// The cells of a table in a single string: with 20,000 rows, one string per cell would cost more
/// than everything else.
class Cells {
 public:
  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    ends_.push_back(text_.size());
    auto& width = width_[(ends_.size() - 1) % columns];
    width = std::max(width, last().size());
  }

  /// Every row, each column as wide as its widest cell.
  [[nodiscard]] std::string str() const {
    std::string out;
    out.reserve(2 * text_.size());
    for (std::size_t i = 0; i < ends_.size(); i++) {
      const std::size_t c = i % columns;
      out += cell(i);
      if (c + 1 < columns) {
        out.append(width_[c] - cell(i).size() + 1, ' ');
      } else {
        out += '\n';
      }
    }
    return out;
  }

 private:
  [[nodiscard]] std::string_view cell(std::size_t i) const {
    const std::size_t start = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(text_).substr(start, ends_[i] - start);
  }
  [[nodiscard]] std::string_view last() const { return cell(ends_.size() - 1); }

  std::string text_;
  std::vector<std::size_t> ends_;
  std::array<std::size_t, columns> width_{};
};

void add_process(Cells& cells, const DiagSocket& s, const View& view, Names& names) {
  const auto& who = view.holders.of(s.inode);
  if (who.empty()) {
    return cells.add("-");
  }
  const auto others =
      std::ranges::count_if(who, [&](const Holder& h) { return h.pid != who.front().pid; });
  cells.add("{}[{}]{}", names.of(who.front().pid), who.front().pid,
            others > 0 ? fmt::format("+{}", others) : "");
}

void add_row(Cells& cells, const DiagSocket& s, const View& view, Names& names,
             Processes& processes, const FlowCounts& flows) {
  const bool tcp = s.protocol == Protocol::tcp;
  cells.add("{}", protocol_name(s));
  cells.add("{}", s.local.str());
  cells.add("{}", mode_name(s, has_reuseport(s, view, processes)));
  s.info ? cells.add("{}", s.info->handshakes) : cells.add("-");
  tcp ? cells.add("{}/{}", s.queued, s.queue_max) : cells.add("{} B", s.queued);
  const auto live = flows.of(s);
  live ? cells.add("{}", *live) : cells.add("-");
  s.info ? cells.add("{}:{}/{}/{}", s.info->group_id, s.info->group_on, s.info->group_standby,
                     s.info->group_off)
         : cells.add("-");
  cells.add("{}", s.uid);
  cells.add("{}", s.inode);
  add_process(cells, s, view, names);
}

std::string command_line(pid_t pid) {
  std::string out;
  if (FILE* f = std::fopen(fmt::format("/proc/{}/cmdline", pid).c_str(), "re")) {
    std::array<char, 4096> buf{};
    const std::size_t n = std::fread(buf.data(), 1, buf.size(), f);
    std::fclose(f);
    out.assign(buf.data(), n);
  }
  while (!out.empty() && out.back() == '\0') {
    out.pop_back();
  }
  std::replace(out.begin(), out.end(), '\0', ' ');
  return visible(out);
}

/// What `show` adds to `list`; what this user may not see is null.
json more_json(const DiagSocket& s, const View& view) {
  json out = {{"bpf_program", nullptr}, {"half_open_at_address", nullptr}};
  if (s.protocol == Protocol::tcp) {
    if (auto diag = SockDiag::open()) {
      if (const auto requests = diag->half_open(s.local)) {
        out["half_open_at_address"] = requests->size();
      }
    }
  }
  const auto program = attached_program(s.protocol, s.cookie);
  if (program) {
    out["bpf_program"] =
        *program ? json{{"attached", true}, {"id", (*program)->id}} : json{{"attached", false}};
  }
  std::size_t members = 0;
  for (const DiagSocket& other : view.sockets) {
    members += other.same_address(s) && other.v6only == s.v6only ? 1 : 0;
  }
  out["listeners_at_address"] = members;
  return out;
}

std::string show_text(const DiagSocket& s, const json& one, const json& more, const View& view,
                      Names& names) {
  std::string out;
  const auto line = [&out](std::string_view key, const std::string& value) {
    fmt::format_to(std::back_inserter(out), "  {:<12}{}\n", key, value);
  };
  const auto known = [&more](const char* key) {
    return more[key].is_null() ? std::string("unknown") : more[key].dump();
  };
  fmt::format_to(std::back_inserter(out), "{} {}\n", to_string(s.protocol), s.local.str());
  if (s.info) {
    line("mode", fmt::format("{}{}", to_string(Mode{s.info->mode}),
                             s.info->drained()   ? ", drained: close() loses nothing"
                             : s.info->settled() ? ", settled"
                                                 : ""));
    line("handshakes", std::to_string(s.info->handshakes));
    line("group", fmt::format("{}: {} on, {} standby, {} off", s.info->group_id, s.info->group_on,
                              s.info->group_standby, s.info->group_off));
  } else {
    line("mode", option::enabled_somewhere() ? "unknown: not enabled for it, or no permission"
                                             : "not supported by this kernel");
    line("handshakes", known("half_open_at_address") + " at this address, all listeners together");
    line("group", known("listeners_at_address") + " listeners at this address");
  }
  line("queue", s.protocol == Protocol::tcp ? fmt::format("{} of {}", s.queued, s.queue_max)
                                            : fmt::format("{} bytes", s.queued));
  if (s.protocol == Protocol::udp) {
    line("flows", one["flows"].is_null() ? "not recorded (enable --udp-flows), or no permission"
                                         : one["flows"].dump() + " live");
  }
  line("reuseport", one["reuseport"].is_null()     ? "unknown (no permission)"
                    : one["reuseport"].get<bool>() ? "yes"
                                                   : "no: it cannot be drained");
  if (s.local.family == AF_INET6) {
    line("v6only", s.v6only ? "yes" : s.local.is_any() ? "no: takes IPv4 too" : "no");
  }
  const auto& bpf = more["bpf_program"];
  line("program", bpf.is_null()                  ? "unknown (needs root and BTF)"
                  : !bpf["attached"].get<bool>() ? "none"
                  : bpf["id"] == 0               ? "a classic BPF program"
                                                 : "BPF program " + bpf["id"].dump());
  line("uid", std::to_string(s.uid));
  line("inode", std::to_string(s.inode));
  line("cookie", std::to_string(s.cookie));
  for (const Holder& h : view.holders.of(s.inode)) {
    line("process",
         fmt::format("{} fd {} {}: {}", h.pid, h.fd, names.of(h.pid), command_line(h.pid)));
  }
  return out;
}

json listeners_json(const View& view, const std::vector<std::size_t>& chosen, Names& names) {
  json out = json::array();
  Processes processes;
  const FlowCounts flows(view, chosen);
  for (const std::size_t i : chosen) {
    out.push_back(to_json(view.sockets[i], view, names, processes, flows));
  }
  return out;
}

void tell_missing(const View& view, const Output& out) {
  if (!view.missing.empty()) {
    out.note("not listed: " + view.missing);
  }
}

}  // namespace

FlowCounts::FlowCounts(const View& view, const std::vector<std::size_t>& chosen) {
  if (std::ranges::none_of(
          chosen, [&](std::size_t i) { return view.sockets[i].protocol == Protocol::udp; })) {
    return;
  }
  if (auto flows = option::flows_here(); flows && *flows) {
    by_cookie_ = std::move((*flows)->of);
  }
}

std::optional<std::size_t> FlowCounts::of(const DiagSocket& s) const {
  const auto at = by_cookie_.find(s.cookie);
  return at == by_cookie_.end() ? std::nullopt : std::optional(at->second);
}

const std::string& Names::of(pid_t pid) {
  const auto it = names_.find(pid);
  return it != names_.end() ? it->second
                            : names_.emplace(pid, visible(command_name(pid))).first->second;
}

json to_json(const DiagSocket& s, const View& view, Names& names, Processes& processes,
             const FlowCounts& flows) {
  json out = address_json(s);
  out["protocol"] = to_string(s.protocol);
  out["v6only"] = s.v6only;
  out["dual_stack"] = s.local.family == AF_INET6 && s.local.is_any() && !s.v6only;
  const auto reuseport = has_reuseport(s, view, processes);
  out["reuseport"] = reuseport ? json(*reuseport) : json(nullptr);
  out["inode"] = s.inode;
  out["cookie"] = s.cookie;
  out["uid"] = s.uid;
  out["queued"] = s.queued;
  out["queue_max"] = s.protocol == Protocol::tcp ? json(s.queue_max) : json(nullptr);
  const auto live = flows.of(s);
  out["flows"] = live ? json(*live) : json(nullptr);
  out["mode"] = nullptr;
  out["settled"] = nullptr;
  out["drained"] = nullptr;
  out["handshakes"] = nullptr;
  out["group"] = nullptr;
  if (s.info) {
    out["mode"] = to_string(Mode{s.info->mode});
    out["settled"] = s.info->settled();
    out["drained"] = s.info->drained();
    out["handshakes"] = s.info->handshakes;
    out["group"] = {{"id", s.info->group_id},
                    {"on", s.info->group_on},
                    {"standby", s.info->group_standby},
                    {"off", s.info->group_off}};
  }
  out["processes"] = processes_json(s, view, names);
  return out;
}

std::string table(const View& view, const std::vector<std::size_t>& chosen, Names& names,
                  const FlowCounts& flows) {
  Cells cells;
  Processes processes;
  for (const std::string_view title : titles) {
    cells.add("{}", title);
  }
  for (const std::size_t i : chosen) {
    add_row(cells, view.sockets[i], view, names, processes, flows);
  }
  return cells.str();
}

Done list(const Selection& selection, const Output& out) {
  const auto found = look_and_select(selection);
  if (!found) {
    return tl::unexpected(found.error());
  }
  const auto& [view, chosen] = *found;
  Names names;
  if (out.json) {
    out.document({{"listeners", listeners_json(view, chosen, names)}});
  } else {
    out.text(table(view, chosen, names, FlowCounts(view, chosen)));
  }
  tell_missing(view, out);
  return {};
}

Done show(const Selection& selection, const Output& out) {
  const auto found = look_and_select(selection);
  if (!found) {
    return tl::unexpected(found.error());
  }
  const auto& [view, chosen] = *found;
  Names names;
  Processes processes;
  const FlowCounts flows(view, chosen);
  json all = json::array();
  std::string text;
  for (const std::size_t i : chosen) {
    const DiagSocket& s = view.sockets[i];
    const json more = more_json(s, view);
    json one = to_json(s, view, names, processes, flows);
    if (out.json) {
      one.update(more);
      for (json& p : one["processes"]) {
        p["command_line"] = command_line(p["pid"].get<pid_t>());
      }
      all.push_back(std::move(one));
    } else {
      text += (text.empty() ? "" : "\n") + show_text(s, one, more, view, names);
    }
  }
  if (out.json) {
    out.document({{"listeners", all}});
  } else {
    out.text(text);
  }
  tell_missing(view, out);
  return {};
}

Done watch(const Selection& selection, const WatchOptions& options, const Output& out) {
  auto signals = Signals::open({SIGINT, SIGTERM, SIGWINCH});
  if (!signals) {
    return tl::unexpected(signals.error());
  }
  const bool screen = ::isatty(STDOUT_FILENO) == 1 && !out.json;
  for (unsigned shown = 0; (options.count == 0 || shown < options.count) && !Output::lost();
       shown++) {
    if (shown > 0) {
      const auto got = signals->wait(options.interval);
      if (got && got->number != SIGWINCH) {
        return {};  // the normal end of a watch
      }
    }
    const auto found = look_and_select(selection);
    if (!found) {
      return tl::unexpected(found.error());
    }
    const auto& [view, chosen] = *found;
    Names names;
    if (out.json) {
      out.document({{"listeners", listeners_json(view, chosen, names)}});
      continue;
    }
    std::string text = table(view, chosen, names, FlowCounts(view, chosen));
    winsize size{};
    if (screen && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 1) {
      // cut to the screen, so that it does not scroll
      std::size_t end = 0;
      for (unsigned rows = 1; rows < size.ws_row && end != std::string::npos; rows++) {
        end = text.find('\n', end == 0 ? 0 : end + 1);
      }
      if (end != std::string::npos) {
        text.resize(end);
      }
      text.insert(0, "\x1b[H\x1b[2J");
    } else if (shown > 0) {
      text.insert(0, "\n");
    }
    out.text(text);
  }
  return {};
}

}  // namespace reuseport::ctl
