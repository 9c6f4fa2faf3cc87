// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <optional>

#include "report/report.hpp"

namespace lab {
namespace {

constexpr std::int64_t drain_slack = 50 * one_ms;

void judge_close(const Measurement& closed, std::vector<Check>& checks) {
  const auto& load = closed.load;
  checks.push_back(
      {load.lost() + load.moved > 0,
       fmt::format("close lost {}{} of {} {} in {} restarts (none would mean that this work "
                   "measures nothing)",
                   load.lost(), closed.spec.udp ? fmt::format(" and moved {}", load.moved) : "",
                   load.connections, what_is_begun(closed.spec), closed.restarts)});
}

/// A drain with the option.
void judge_drain(const Measurement& drained, std::vector<Check>& checks) {
  const auto name = info(drained.spec.method).name;
  const auto found = drained.outcomes.find("drained");
  const auto by_option = found == drained.outcomes.end() ? 0U : found->second;
  const auto& load = drained.load;
  const auto* what = what_is_begun(drained.spec);
  checks.push_back({by_option == drained.restarts, fmt::format("{}: {} of {} restarts were drained",
                                                               name, by_option, drained.restarts)});
  checks.push_back(
      {load.lost() == 0,
       fmt::format("{}: {} refused, {} reset, {} timed out, {} unanswered in {} {} and {} restarts",
                   name, load.refused, load.reset, load.timed_out, load.unanswered + load.garbled,
                   load.connections, what, drained.restarts)});
  if (drained.spec.method == RestartMethod::option_flows) {
    checks.push_back({load.moved == 0, fmt::format("{}: {} {} were moved to another generation",
                                                   name, load.moved, what)});
  }
  checks.push_back({load.wrong_generation == 0,
                    fmt::format("{}: {} {} reached the old generation after it was settled", name,
                                load.wrong_generation, what)});
  if (drained.churn_changes > 0) {
    checks.push_back({drained.stray == 0,
                      fmt::format("{}: {} connections reached a socket that was never ON, in {} "
                                  "changes of churn",
                                  name, drained.stray, drained.churn_changes)});
  }
}

void judge_drain_times(RestartMethod method, const std::vector<Measurement>& measured,
                       std::vector<Check>& checks) {
  for (const auto& one : measured) {
    if (one.spec.method != method || one.spec.link.loss > 0 || one.spec.rate <= 0) {
      continue;
    }
    const auto bound = one.spec.link.rtt_ns + drain_slack;
    checks.push_back({one.may_close.max() <= bound,
                      fmt::format("{} on {}: drain to may close {:.1f} ms at most (bound: one "
                                  "round trip plus 50 ms = {:.0f} ms)",
                                  info(method).name, one.spec.link.name(),
                                  to_ms(one.may_close.max()), to_ms(bound))});
  }
}

/// The chance of `k` or more heads in `n` throws of a coin.
double chance(std::size_t k, std::size_t n) {
  double sum = 0;
  double term = std::pow(0.5, static_cast<double>(n));  // n over 0
  for (std::size_t i = 0; i <= n; ++i) {
    sum += i >= k ? term : 0;
    term = term * static_cast<double>(n - i) / static_cast<double>(i + 1);
  }
  return sum;
}

/// Comparison with one method, round by round: a disturbance in a round affected both.
std::optional<Check> judge_rival(const Measurement& drained, const Measurement& rival) {
  const auto n = drained.p999.size();
  if (rival.p999.size() != n) {
    return std::nullopt;  // not measured on every link: nothing to compare
  }
  std::size_t higher = 0;
  for (std::size_t i = 0; i < n; ++i) {
    higher +=
        static_cast<double>(drained.p999[i]) > static_cast<double>(rival.p999[i]) * latency_slack
            ? 1
            : 0;
  }
  const auto name = info(rival.spec.method).name;
  if (rival.load.lost() * 1000 > rival.load.connections) {
    return Check{true, fmt::format("listen-off: p99.9 of connect {:.2f} ms; {} has none, it lost "
                                   "more than one connection in a thousand",
                                   to_ms(drained.load.connect.quantile(0.999)), name)};
  }
  // Too few rounds to prove anything even if all agree: compare the sums.
  const bool few = chance(n, n) > significance;
  const auto own = drained.load.connect.quantile(0.999);
  const auto other = rival.load.connect.quantile(0.999);
  const bool held = few ? static_cast<double>(own) <= static_cast<double>(other) * latency_slack
                        : chance(higher, n) > significance;
  return Check{
      held,
      fmt::format("listen-off: p99.9 of connect {:.2f} ms, {} {:.2f} ms; higher by a tenth in "
                  "{} of {} rounds{}",
                  to_ms(own), name, to_ms(other), higher, n,
                  held ? ", no more than chance explains" : "")};
}

void judge_latency(const Measurement& drained, const std::vector<Measurement>& measured,
                   std::vector<Check>& checks) {
  if (measured.front().spec.rate <= 0) {
    return;
  }
  for (const auto& method : methods) {
    if (method.method == RestartMethod::listen_off) {
      continue;
    }
    if (auto check = judge_rival(drained, total(measured, method.method))) {
      checks.push_back(std::move(*check));
    }
  }
}

}  // namespace

void add(Measurement& sum, const Measurement& part) {
  auto& to = sum.load;
  const auto& from = part.load;
  to.connections += from.connections;
  to.answered += from.answered;
  to.refused += from.refused;
  to.reset += from.reset;
  to.timed_out += from.timed_out;
  to.moved += from.moved;
  to.unanswered += from.unanswered;
  to.garbled += from.garbled;
  to.wrong_generation += from.wrong_generation;
  to.longest_stall_ns = std::max(to.longest_stall_ns, from.longest_stall_ns);
  to.late.merge(from.late);
  to.connect.merge(from.connect);
  to.first_byte.merge(from.first_byte);
  sum.p999.insert(sum.p999.end(), part.p999.begin(), part.p999.end());
  sum.may_close.merge(part.may_close);
  sum.restarts += part.restarts;
  sum.stray += part.stray;
  sum.churn_changes += part.churn_changes;
  sum.dead_newcomers += part.dead_newcomers;
  sum.stalls += part.stalls;
  sum.most_descriptors = std::max(sum.most_descriptors, part.most_descriptors);
  sum.most_rss_kb = std::max(sum.most_rss_kb, part.most_rss_kb);
  sum.left += part.left;
  sum.cut_short += part.cut_short;
  sum.elapsed_ns += part.elapsed_ns;
  for (const auto& [what, count] : part.outcomes) {
    sum.outcomes[what] += count;
  }
}

Measurement total(const std::vector<Measurement>& measured, RestartMethod method) {
  Measurement sum;
  sum.spec.method = method;
  for (const auto& one : measured) {
    if (one.spec.method == method) {
      sum.spec.udp = one.spec.udp;
      add(sum, one);
    }
  }
  return sum;
}

std::vector<Measurement> totals(const std::vector<Measurement>& measured) {
  std::vector<Measurement> sums;
  for (const auto& method : methods) {
    if (auto sum = total(measured, method.method); sum.restarts > 0) {
      sums.push_back(std::move(sum));
    }
  }
  return sums;
}

std::vector<Check> judge(const KernelAnswer& kernel, const std::vector<Measurement>& measured,
                         bool latency) {
  std::vector<Check> checks;
  const auto has = [&](RestartMethod method) {
    return std::any_of(measured.begin(), measured.end(),
                       [&](const Measurement& m) { return m.spec.method == method; });
  };
  if (has(RestartMethod::close)) {
    judge_close(total(measured, RestartMethod::close), checks);
  }
  for (const auto method :
       {RestartMethod::listen_off, RestartMethod::option_bpf, RestartMethod::option_flows}) {
    if (!has(method)) {
      continue;
    }
    const auto drained = total(measured, method);
    if (kernel.supported || wants_bpf(method)) {
      judge_drain(drained, checks);
      if (latency) {
        judge_drain_times(method, measured, checks);
      }
      if (latency && method == RestartMethod::listen_off) {
        judge_latency(drained, measured, checks);
      }
    } else {
      checks.push_back(
          {!drained.outcomes.contains("drained") && !drained.outcomes.empty(),
           "listen-off: the option is not in this kernel, and the fallback reported that"});
    }
  }
  return checks;
}

}  // namespace lab
