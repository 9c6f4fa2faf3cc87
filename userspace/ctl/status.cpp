// SPDX-License-Identifier: Apache-2.0
#include "status.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "option/option.hpp"
#include "text.hpp"

namespace reuseport::ctl {

namespace {

using nlohmann::json;

std::size_t live(const option::Flows& flows) {
  std::size_t all = 0;
  for (const auto& [cookie, count] : flows.of) {
    all += count;
  }
  return all;
}

json to_json(const option::ScopeState& state) {
  json doc = {{"enabled", state.enabled}};
  if (!state.enabled) {
    return doc;
  }
  doc["since"] =
      fmt::format("{:%FT%TZ}", fmt::gmtime(std::chrono::system_clock::to_time_t(state.since)));
  doc["modes"] = state.own_option ? "kernel" : "bpf";
  doc["group_size"] = static_cast<unsigned>(state.size);
  doc["cgroups"] = json::array();
  for (const auto& cgroup : state.cgroups) {
    doc["cgroups"].push_back(
        {{"id", cgroup.id}, {"path", cgroup.path.empty() ? json() : json(cgroup.path)}});
  }
  doc["namespaces"] = json::array();
  for (const auto& ns : state.namespaces) {
    doc["namespaces"].push_back(
        {{"cookie", ns.cookie}, {"inode", ns.inode == 0 ? json() : json(ns.inode)}});
  }
  doc["left_to_the_kernel"] = json();
  if (!state.own_option) {
    doc["left_to_the_kernel"] = {{"unknown_listener", state.left.unknown_listener},
                                 {"unknown_member", state.left.unknown_member},
                                 {"no_member", state.left.no_member},
                                 {"too_long", state.left.too_long}};
  }
  doc["groups"] = json::array();
  for (const option::GroupState& g : state.groups) {
    doc["groups"].push_back({{"address", g.address},
                             {"protocol", g.protocol},
                             {"id", g.id},
                             {"uid", g.uid},
                             {"device", g.device},
                             {"namespace", g.netns},
                             {"on", g.on},
                             {"standby", g.standby},
                             {"off", g.off},
                             {"aside", g.aside},
                             {"unknown", g.unknown},
                             {"flows", g.flows ? json(*g.flows) : json()}});
  }
  doc["udp_flows"] = json();
  if (state.flows) {
    doc["udp_flows"] = {
        {"live", state.unrecorded.empty() ? json(live(*state.flows)) : json()},
        {"unrecorded_cgroup", state.unrecorded.empty() ? json() : json(state.unrecorded)},
        {"max", state.flows->max},
        {"idle_ms", state.flows->idle.count()},
        {"recorded_for_ms", state.flows->recorded_for.count()},
        {"without_a_place", state.flows->full},
        {"short_headers_of_no_flow", state.flows->short_headers}};
  }
  return doc;
}

std::string to_text(const option::ScopeState& state) {
  if (!state.enabled) {
    return "not enabled\n";
  }
  std::string text = fmt::format("enabled since {:%F %T}, groups of up to {}\n",
                                 fmt::localtime(std::chrono::system_clock::to_time_t(state.since)),
                                 static_cast<unsigned>(state.size));
  for (const auto& cgroup : state.cgroups) {
    text +=
        fmt::format("cgroup     {}\n", cgroup.path.empty() ? fmt::format("{} (removed)", cgroup.id)
                                                           : visible(cgroup.path));
  }
  for (const auto& ns : state.namespaces) {
    text += fmt::format("namespace  {} (cookie {})\n",
                        ns.inode == 0 ? "removed" : fmt::format("net:[{}]", ns.inode), ns.cookie);
  }
  if (state.own_option) {
    text += "the modes are the kernel's own\n";
  } else {
    const auto& left = state.left;
    text += fmt::format(
        "lookups left to the kernel although a member is not ON: {} (unknown listener {}, unknown "
        "member {}, no member found {}, list too long {})\n",
        left.unknown_listener + left.unknown_member + left.no_member + left.too_long,
        left.unknown_listener, left.unknown_member, left.no_member, left.too_long);
  }
  if (const auto& flows = state.flows) {
    text += fmt::format(
        "UDP flows: {}, room for {}, idle timeout {} s; datagrams whose flow found no room: "
        "{}; datagrams without a flow but with a short QUIC header: {}\n",
        state.unrecorded.empty()
            ? fmt::format("{} live", live(*flows))
            : fmt::format("not counted, the programs of {} are not all there", state.unrecorded),
        flows->max, static_cast<double>(flows->idle.count()) / 1000.0, flows->full,
        flows->short_headers);
  }
  if (!state.groups.empty()) {
    text += fmt::format("\n{:<5}{:<40} {:>8} {:>5} {:>8} {:>5} {:>8} {:>8}\n", "", "group", "uid",
                        "ON", "STANDBY", "OFF", "unknown", "flows");
  }
  for (const option::GroupState& g : state.groups) {
    text += fmt::format("{:<5}{:<40} {:>8} {:>5} {:>8} {:>5} {:>8} {:>8}\n", g.protocol, g.address,
                        g.uid, g.on, g.standby, g.off, g.unknown,
                        g.flows ? std::to_string(*g.flows) : "-");
  }
  return text;
}

}  // namespace

Done status_command(const Output& out) {
  const auto state = option::state();
  if (!state) {
    return failed(state.error());
  }
  if (out.json) {
    out.document(to_json(*state));
  } else {
    out.text(to_text(*state));
  }
  return {};
}

}  // namespace reuseport::ctl
