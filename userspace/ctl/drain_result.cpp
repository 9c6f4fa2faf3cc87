// SPDX-License-Identifier: Apache-2.0
// The result of a drain, as text and JSON.
#include <fmt/format.h>

#include <iterator>

#include "drain.hpp"

namespace reuseport::ctl {

const char* to_string(DrainMethod method) {
  switch (method) {
    case DrainMethod::automatic: return "auto";
    case DrainMethod::option: return "option";
    case DrainMethod::option_bpf: return "option-bpf";
    case DrainMethod::migrate: return "migrate";
    case DrainMethod::close: break;
  }
  return "close";
}

std::string DrainResult::left() const {
  std::string out = fmt::format("{} half-open request{} and {} queued", handshakes,
                                handshakes == 1 ? "" : "s", queued);
  if (connections) {
    fmt::format_to(std::back_inserter(out), ", {} connection{} established", *connections,
                   *connections == 1 ? "" : "s");
  }
  if (flows) {
    fmt::format_to(std::back_inserter(out), ", {} UDP flow{}", *flows, *flows == 1 ? "" : "s");
  }
  return out;
}

nlohmann::json DrainResult::json() const {
  const auto mode_json = [](const std::optional<Mode>& mode) {
    return mode ? nlohmann::json(to_string(*mode)) : nlohmann::json(nullptr);
  };
  nlohmann::json all = nlohmann::json::array();
  for (const Drained& d : listeners) {
    all.push_back({{"address", d.address},
                   {"inode", d.inode},
                   {"before", mode_json(d.before)},
                   {"mode", mode_json(d.mode)},
                   {"handshakes", d.handshakes},
                   {"queued", d.queued},
                   {"closed_by_server", d.closed}});
  }
  nlohmann::json out = {{"method", to_string(method)}, {"drained", drained},
                        {"signalled", signalled},      {"ended", ended},
                        {"took_ms", took.count()},     {"handshakes_left", handshakes},
                        {"queued_left", queued},       {"listeners", all}};
  out["reason"] = reason.empty() ? nlohmann::json(nullptr) : nlohmann::json(reason);
  out["connections_left"] = connections ? nlohmann::json(*connections) : nlohmann::json(nullptr);
  out["flows_left"] = flows ? nlohmann::json(*flows) : nlohmann::json(nullptr);
  out["flows_known_for_ms"] =
      flows ? nlohmann::json(flows_known_for.count()) : nlohmann::json(nullptr);
  out["flows_uncounted"] =
      flows_uncounted.empty() ? nlohmann::json(nullptr) : nlohmann::json(flows_uncounted);
  out["flows_without_room"] = flows ? nlohmann::json(flows_without_room) : nlohmann::json(nullptr);
  return out;
}

bool was_signalled(const Failure& failure) {
  return failure.detail.is_object() && failure.detail.value("signalled", false);
}

bool was_drained(const Failure& failure) {
  return failure.detail.is_object() && failure.detail.value("drained", false);
}

std::string DrainResult::text() const {
  std::string out;
  for (const Drained& d : listeners) {
    fmt::format_to(std::back_inserter(out), "{}{}\n", d.what,
                   d.closed ? ": closed by its server" : "");
  }
  if (drained) {
    const bool all_counted =
        flows_uncounted.empty() && (!flows || (all_flows_known() && !flows_without_room));
    fmt::format_to(std::back_inserter(out), "drained by {} in {} ms: closing loses {}\n",
                   to_string(method), took.count(),
                   flows.value_or(0) != 0
                       ? fmt::format("{} live UDP flow{}", *flows, *flows == 1 ? "" : "s")
                   : all_counted ? "nothing"
                                 : "nothing that was counted");
    if (flows && !all_flows_known()) {
      fmt::format_to(std::back_inserter(out),
                     "not counted: UDP flows that have been silent for the last {:.1f} s\n",
                     static_cast<double>(flows_known_for.count()) / 1000.0);
    }
    if (!flows_uncounted.empty()) {
      fmt::format_to(std::back_inserter(out), "not counted: UDP flows: {}\n", flows_uncounted);
    }
    if (flows_without_room) {
      out += "not counted: UDP flows for which there was no room\n";
    }
  } else if (method == DrainMethod::migrate) {
    out += "not drained: the kernel moves what is left to other listeners (tcp_migrate_req)\n";
  } else {
    fmt::format_to(std::back_inserter(out),
                   "not drained ({}): queued and half-open connections may have been reset\n",
                   to_string(method));
  }
  if (!reason.empty()) {
    fmt::format_to(std::back_inserter(out), "no better method: {}\n", reason);
  }
  if (ended) {
    out += "the process has ended\n";
  } else if (signalled) {
    out += "signal sent\n";
  }
  return out;
}

}  // namespace reuseport::ctl
