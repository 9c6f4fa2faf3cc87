// SPDX-License-Identifier: Apache-2.0
#include "report/report.hpp"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base.hpp"
#include "load/flows.hpp"

namespace lab {
namespace {

nlohmann::json quantiles(const Histogram& histogram) {
  return {{"p50", to_ms(histogram.quantile(0.50))},
          {"p99", to_ms(histogram.quantile(0.99))},
          {"p999", to_ms(histogram.quantile(0.999))},
          {"max", to_ms(histogram.max())}};
}

std::string ms(std::int64_t ns) {
  const double value = to_ms(ns);
  return fmt::format("{:.{}f} ms", value, value < 10 ? 2 : value < 100 ? 1 : 0);
}

using Row = std::vector<std::string>;

/// Of UDP flows: all that a flow can come to, and how long its first answer took.
Row udp_head(bool wide) {
  Row row{"method", "link", "restarts", "flows", "refused", "unanswered", "moved", "wrong gen"};
  if (wide) {
    row.insert(row.end(), {"first answer p50", "p99", "drain p50", "drain max", "privileges"});
  }
  row.emplace_back("outcome");
  return row;
}

Row head(bool wide) {
  Row row{"method", "link", "restarts", "connections", "refused", "reset", "timed out"};
  if (wide) {
    for (const auto* name : {"unanswered", "wrong gen", "connect p50", "p99", "p99.9"}) {
      row.emplace_back(name);
    }
  }
  row.emplace_back(wide ? "max" : "slowest connect");
  if (wide) {
    for (const auto* name :
         {"1st byte p50", "p99", "p99.9", "max", "drain p50", "drain max", "extra", "privileges"}) {
      row.emplace_back(name);
    }
  }
  row.emplace_back("outcome");
  return row;
}

Row udp_line(const Measurement& one, bool wide) {
  const auto& load = one.load;
  Row row{std::string{info(one.spec.method).name},
          one.device.empty() ? "all" : one.spec.link.name(), std::to_string(one.restarts)};
  for (const auto count : {load.connections, load.refused, load.timed_out + load.garbled,
                           load.moved, load.wrong_generation}) {
    row.push_back(std::to_string(count));
  }
  if (wide) {
    row.push_back(ms(load.first_byte.quantile(0.5)));
    row.push_back(ms(load.first_byte.quantile(0.99)));
    row.push_back(ms(one.may_close.quantile(0.5)));
    row.push_back(ms(one.may_close.max()));
    row.emplace_back(info(one.spec.method).privileges);
  }
  row.push_back(outcomes(one));
  return row;
}

Row line(const Measurement& one, bool wide) {
  const auto& load = one.load;
  const auto text = [](auto number) { return fmt::format("{}", number); };
  Row row{std::string{info(one.spec.method).name},
          one.device.empty() ? "all" : one.spec.link.name(),
          text(one.restarts),
          text(load.connections),
          text(load.refused),
          text(load.reset),
          text(load.timed_out)};
  if (wide) {
    row.push_back(text(load.unanswered + load.garbled));
    row.push_back(text(load.wrong_generation));
    for (const double q : {0.5, 0.99, 0.999}) {
      row.push_back(ms(load.connect.quantile(q)));
    }
  }
  row.push_back(ms(load.connect.max()));
  if (wide) {
    for (const double q : {0.5, 0.99, 0.999}) {
      row.push_back(ms(load.first_byte.quantile(q)));
    }
    row.push_back(ms(load.first_byte.max()));
    row.push_back(ms(one.may_close.quantile(0.5)));
    row.push_back(ms(one.may_close.max()));
    row.push_back(text(info(one.spec.method).extra_processes));
    row.emplace_back(info(one.spec.method).privileges);
  }
  row.push_back(outcomes(one));
  return row;
}

nlohmann::json to_json(const Measurement& one) {
  const auto& spec = one.spec;
  const auto& load = one.load;
  const auto& method = info(spec.method);
  nlohmann::json loop = spec.rate > 0
                            ? nlohmann::json{{"loop", "open"}, {"rate", spec.rate}}
                            : nlohmann::json{{"loop", "closed"}, {"concurrency", spec.concurrency}};
  loop["seed"] = spec.seed;
  loop["timeout_s"] = to_seconds(spec.timeout_ns);
  nlohmann::json done = nlohmann::json::object();
  for (const auto& [what, count] : one.outcomes) {
    done[what] = count;
  }
  auto rounds = nlohmann::json::array();
  for (const auto p999 : one.p999) {
    rounds.push_back(p999 == lost_too_many ? nlohmann::json{} : nlohmann::json(to_ms(p999)));
  }
  return {{"method", method.name},
          {"protocol", spec.udp ? "udp" : "tcp"},
          {"extra_processes", method.extra_processes},
          {"privileges", method.privileges},
          {"link",
           {{"name", spec.link.name()},
            {"rtt_ms", to_ms(spec.link.rtt_ns)},
            {"loss", spec.link.loss},
            {"device", one.device}}},
          {"load", loop},
          {"listeners", spec.listeners},
          {"restarts", one.restarts},
          {"elapsed_s", to_seconds(one.elapsed_ns)},
          {"connections", load.connections},
          {"answered", load.answered},
          {"refused", load.refused},
          {"reset", load.reset},
          {"timed_out", load.timed_out},
          {"unanswered", load.unanswered},
          {"garbled", load.garbled},
          {"lost", load.lost()},
          {"moved", load.moved},
          {"wrong_generation", load.wrong_generation},
          {"connect_ms", quantiles(load.connect)},
          {"connect_p999_ms_by_round", rounds},
          {"late_ms", quantiles(load.late)},
          {"longest_stall_ms", to_ms(load.longest_stall_ns)},
          {"first_byte_ms", quantiles(load.first_byte)},
          {"may_close_ms", quantiles(one.may_close)},
          {"outcomes", done},
          {"left", one.left},
          {"cut_short", one.cut_short}};
}

}  // namespace

std::string outcomes(const Measurement& one) {
  std::string text;
  for (const auto& [what, count] : one.outcomes) {
    text += fmt::format("{}{} {}x", text.empty() ? "" : ", ", what, count);
  }
  return text;
}

nlohmann::json document(const KernelAnswer& kernel, const std::vector<std::string>& command,
                        const std::vector<Measurement>& measured, const std::vector<Gap>& missing,
                        const std::vector<Check>& checks) {
  utsname name{};
  uname(&name);
  auto results = nlohmann::json::array();
  for (const auto& one : measured) {
    results.push_back(to_json(one));
  }
  auto sums = nlohmann::json::array();
  for (const auto& sum : totals(measured)) {
    sums.push_back({{"method", info(sum.spec.method).name},
                    {"connections", sum.load.connections},
                    {"lost", sum.load.lost()},
                    {"connect_ms", quantiles(sum.load.connect)}});
  }
  auto gaps = nlohmann::json::array();
  for (const auto& gap : missing) {
    gaps.push_back(
        {{"method", info(gap.method).name}, {"link", gap.link.name()}, {"why", gap.why}});
  }
  auto judged = nlohmann::json::array();
  for (const auto& check : checks) {
    judged.push_back({{"passed", check.passed}, {"text", check.text}});
  }
  return {{"schema", schema_name},
          {"command", command},
          {"kernel",
           {{"release", static_cast<const char*>(name.release)},
            {"version", static_cast<const char*>(name.version)},
            {"machine", static_cast<const char*>(name.machine)},
            {"listen_off", kernel.word},
            {"why", kernel.why}}},
          {"cpus", sysconf(_SC_NPROCESSORS_ONLN)},
          {"results", results},
          {"totals", sums},
          {"not_measured", gaps},
          {"checks", judged}};
}

const char* what_is_begun(const ExperimentSpec& spec) {
  return spec.udp ? "flows" : "connections";
}

std::string describe_load(const ExperimentSpec& spec) {
  if (spec.udp) {
    return fmt::format(
        "{:g} new UDP flows a second, {:g} % of {} datagrams, the others of {}, {:g} ms after each "
        "answer; seed {}; {} sockets a generation; timeout {:g} s",
        spec.rate, 100 * share_of_long_flows, long_flow, short_flow, to_ms(flow_gap_ns), spec.seed,
        spec.listeners, to_seconds(spec.timeout_ns));
  }
  return fmt::format("{}, seed {}; {} listeners a generation; timeout {:g} s",
                     spec.rate > 0
                         ? fmt::format("{:g} new connections a second", spec.rate)
                         : fmt::format("{} clients, each at once again", spec.concurrency),
                     spec.seed, spec.listeners, to_seconds(spec.timeout_ns));
}

std::string describe_soak(const std::vector<Measurement>& rounds) {
  const auto sum = total(rounds, RestartMethod::listen_off);
  return fmt::format(
      "{} rounds, {} restarts, {} connections, {} lost, {} after settled; churn: {} changes; "
      "faults: {} dead newcomers, {} stalls",
      rounds.size(), sum.restarts, sum.load.connections, sum.load.lost(), sum.load.wrong_generation,
      sum.churn_changes, sum.dead_newcomers, sum.stalls);
}

std::string table(const std::vector<Measurement>& measured, bool wide) {
  const bool udp = !measured.empty() && measured.front().spec.udp;
  std::vector<Row> rows{udp ? udp_head(wide) : head(wide)};
  for (const auto& one : measured) {
    rows.push_back(udp ? udp_line(one, wide) : line(one, wide));
  }
  std::vector<std::size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      // Text is left-aligned, numbers are right-aligned.
      const bool last = i + 1 == row.size();
      const bool privileges = wide && i + 2 == row.size();
      if (i < 2 || privileges) {
        text += fmt::format("{:<{}}  ", row[i], widths[i]);
      } else if (last) {
        text += row[i];
      } else {
        text += fmt::format("{:>{}}  ", row[i], widths[i]);
      }
    }
    text += '\n';
  }
  return text;
}

Result<void> write_file(const std::string& path, const std::string& text) {
  const auto beside = path + ".tmp";
  Fd fd{open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)};
  if (!fd) {
    return sys_error(fmt::format("open {}", beside), errno, "choose another place");
  }
  std::size_t written = 0;
  while (written < text.size()) {
    const auto size = write(fd.get(), text.data() + written, text.size() - written);
    if (size < 0) {
      const int code = errno;
      unlink(beside.c_str());
      return sys_error(fmt::format("write {}", beside), code);
    }
    written += static_cast<std::size_t>(size);
  }
  fd.reset();
  if (rename(beside.c_str(), path.c_str()) < 0) {
    const int code = errno;
    unlink(beside.c_str());
    return sys_error(fmt::format("rename to {}", path), code);
  }
  return {};
}

}  // namespace lab
