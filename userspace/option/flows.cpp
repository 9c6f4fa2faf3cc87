// SPDX-License-Identifier: Apache-2.0
// UDP flows in user space: the size of their tables, and the number of flows per socket.
#include <bpf/bpf.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "option/object.hpp"

namespace reuseport::option {

namespace {

std::chrono::milliseconds in_ms(std::uint64_t ns) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::nanoseconds(ns));
}

std::chrono::milliseconds time_since(std::uint64_t since, std::uint64_t now) {
  return in_ms(now > since ? now - since : 0);
}

/// Counts the flows of @p map per socket, without those that have been silent for longer than
/// @p idle or, if they could not be confirmed, @p early.
Status add_flows(int map, std::uint64_t now, std::uint64_t idle, std::uint64_t early,
                 std::unordered_map<std::uint64_t, std::size_t>& by_cookie) {
  constexpr std::uint32_t at_once = 8192;  // more than a bucket ever has
  std::vector<table::flow_key> keys(at_once);
  std::vector<table::flow> flows(at_once);
  std::uint32_t position = 0;
  for (bool first = true, last = false; !last; first = false) {
    std::uint32_t count = at_once;
    if (bpf_map_lookup_batch(map, first ? nullptr : &position, &position, keys.data(), flows.data(),
                             &count, nullptr) != 0) {
      if (errno != ENOENT) {
        return bpf_fail("bpf(BPF_MAP_LOOKUP_BATCH, flows)", errno);
      }
      last = true;
    }
    for (std::uint32_t i = 0; i < count; i++) {
      const std::uint64_t until = flows[i].place == FLOW_EARLY ? early : idle;
      if (static_cast<std::int64_t>(now - flows[i].last) <= static_cast<std::int64_t>(until)) {
        by_cookie[flows[i].cookie]++;
      }
    }
  }
  return {};
}

}  // namespace

Result<FlowClock> flow_clock(const Object& object) {
  table::call call{};
  const auto ran = object.run("call_flow_clock", call);
  return ran ? Result<FlowClock>({call.clock, call.coarse_clock}) : tl::unexpected(ran.error());
}

Status Object::begin_flows(const FlowOptions& options) const {
  const auto now = flow_clock(*this);
  if (!now) {
    return tl::unexpected(now.error());
  }
  const std::uint32_t places = options.max.value_or(default_flows);
  table::flow_table t{};
  t.idle = static_cast<std::uint64_t>(
      std::chrono::nanoseconds(options.idle.value_or(default_idle)).count());
  t.since = now->now;
  t.places = places;
  t.of_one_uid = places / 2;
  return write_flow_table(map("flow_table"), t);
}

Result<table::flow_table> read_flow_table(int map) {
  const std::uint32_t zero = 0;
  table::flow_table t{};
  if (bpf_map_lookup_elem(map, &zero, &t) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, flow_table)", errno);
  }
  return t;
}

Status write_flow_table(int map, const table::flow_table& t) {
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(map, &zero, &t, BPF_ANY) != 0) {
    return bpf_fail("bpf(BPF_MAP_UPDATE_ELEM, flow_table)", errno);
  }
  return {};
}

Result<Flows> flows_of(const Object& object) {
  const auto t = read_flow_table(object.map("flow_table"));
  const auto now = flow_clock(object);
  if (!t || !now) {
    return tl::unexpected(t ? now.error() : t.error());
  }
  Flows out;
  out.idle = in_ms(t->idle);
  out.recorded_for = time_since(t->since, now->coarse);
  out.max = t->places;
  const std::uint32_t zero = 0;
  table::flow_counts counts{};
  if (bpf_map_lookup_elem(object.map("flow_counts"), &zero, &counts) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, flow_counts)", errno);
  }
  out.full = counts.full;
  out.short_headers = counts.short_headers;
  const std::uint64_t idle = t->idle;
  // in this order: a flow that is confirmed in between is counted twice rather than not at all
  if (auto ok = add_flows(object.map("unconfirmed_flows"), now->coarse,
                          std::min<std::uint64_t>(idle, UNCONFIRMED_IDLE), idle, out.of);
      !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = add_flows(object.map("flows"), now->coarse, idle, idle, out.of); !ok) {
    return tl::unexpected(ok.error());
  }
  // flows of closed sockets do not count
  std::erase_if(out.of, [&](const auto& each) {
    table::member member{};
    return bpf_map_lookup_elem(object.map("members"), &each.first, &member) != 0;
  });
  return out;
}

Result<std::chrono::milliseconds> known_for(const Object& object, std::uint64_t cookie,
                                            std::uint64_t now, const Flows& all) {
  table::member member{};
  if (bpf_map_lookup_elem(object.map("members"), &cookie, &member) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, members)", errno);
  }
  // one that found no place may be forgotten before it is over
  const std::uint32_t zero = 0;
  table::flow_user user{};
  table::flow_counts counts{};
  static_cast<void>(bpf_map_lookup_elem(object.map("flow_users"), &member.key.uid, &user));
  if (bpf_map_lookup_elem(object.map("flow_counts"), &zero, &counts) != 0) {
    return bpf_fail("bpf(BPF_MAP_LOOKUP_ELEM, flow_counts)", errno);
  }
  const std::uint64_t since = std::max({static_cast<std::uint64_t>(member.taken_in),
                                        static_cast<std::uint64_t>(user.full_last),
                                        static_cast<std::uint64_t>(counts.full_last)});
  return std::min(all.recorded_for, time_since(since, now));
}

}  // namespace reuseport::option
