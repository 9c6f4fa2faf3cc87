// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "clock.hpp"
#include "fd.hpp"

namespace lab {
namespace {

double to_ms(std::int64_t ns) {
  return static_cast<double>(ns) / static_cast<double>(one_ms);
}

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
  row.emplace_back("really");
  return row;
}

Row line(const Outcome& outcome, bool wide) {
  const auto& load = outcome.load;
  const auto text = [](auto number) { return fmt::format("{}", number); };
  Row row{std::string{info(outcome.spec.method).name},
          outcome.wire.empty() ? "all" : outcome.spec.link.name(),
          text(outcome.restarts),
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
    row.push_back(ms(outcome.may_close.quantile(0.5)));
    row.push_back(ms(outcome.may_close.max()));
    row.push_back(text(info(outcome.spec.method).extra_processes));
    row.emplace_back(info(outcome.spec.method).privileges);
  }
  row.push_back(really(outcome));
  return row;
}

}  // namespace

std::string really(const Outcome& outcome) {
  std::string text;
  for (const auto& [what, count] : outcome.really) {
    text += fmt::format("{}{} {}x", text.empty() ? "" : ", ", what, count);
  }
  return text;
}

nlohmann::json to_json(const Outcome& outcome) {
  const auto& spec = outcome.spec;
  const auto& load = outcome.load;
  const auto& method = info(spec.method);
  nlohmann::json loop = spec.rate > 0
                            ? nlohmann::json{{"loop", "open"}, {"rate", spec.rate}}
                            : nlohmann::json{{"loop", "closed"}, {"concurrency", spec.concurrency}};
  loop["seed"] = spec.seed;
  loop["timeout_s"] = static_cast<double>(spec.timeout_ns) / static_cast<double>(one_second);
  nlohmann::json done = nlohmann::json::object();
  for (const auto& [what, count] : outcome.really) {
    done[what] = count;
  }
  auto rounds = nlohmann::json::array();
  for (const auto p999 : outcome.p999) {
    rounds.push_back(p999 == lost_too_many ? nlohmann::json{} : nlohmann::json(to_ms(p999)));
  }
  return {{"method", method.name},
          {"extra_processes", method.extra_processes},
          {"privileges", method.privileges},
          {"link",
           {{"name", spec.link.name()},
            {"rtt_ms", to_ms(spec.link.rtt_ns)},
            {"loss", spec.link.loss},
            {"wire", outcome.wire}}},
          {"load", loop},
          {"listeners", spec.listeners},
          {"restarts", outcome.restarts},
          {"elapsed_s", static_cast<double>(outcome.elapsed_ns) / static_cast<double>(one_second)},
          {"connections", load.connections},
          {"answered", load.answered},
          {"refused", load.refused},
          {"reset", load.reset},
          {"timed_out", load.timed_out},
          {"unanswered", load.unanswered},
          {"garbled", load.garbled},
          {"lost", load.lost()},
          {"wrong_generation", load.wrong_generation},
          {"connect_ms", quantiles(load.connect)},
          {"connect_p999_ms_by_round", rounds},
          {"first_byte_ms", quantiles(load.first_byte)},
          {"may_close_ms", quantiles(outcome.may_close)},
          {"really", done},
          {"left", outcome.left},
          {"cut_short", outcome.cut_short}};
}

nlohmann::json document(const KernelAnswer& kernel, const std::vector<std::string>& command,
                        const std::vector<Outcome>& outcomes,
                        const std::vector<Unmeasured>& unmeasured,
                        const std::vector<Check>& checks) {
  utsname name{};
  uname(&name);
  auto results = nlohmann::json::array();
  for (const auto& outcome : outcomes) {
    results.push_back(to_json(outcome));
  }
  auto gaps = nlohmann::json::array();
  for (const auto& gap : unmeasured) {
    gaps.push_back(
        {{"method", info(gap.method).name}, {"link", gap.link.name()}, {"why", gap.why}});
  }
  auto judged = nlohmann::json::array();
  for (const auto& check : checks) {
    judged.push_back({{"held", check.held}, {"text", check.text}});
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
          {"not_measured", gaps},
          {"checks", judged}};
}

std::string table(const std::vector<Outcome>& outcomes, bool wide) {
  std::vector<Row> rows{head(wide)};
  for (const auto& outcome : outcomes) {
    rows.push_back(line(outcome, wide));
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
      // Words to the left, figures to the right.
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
