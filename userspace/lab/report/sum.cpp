// SPDX-License-Identifier: Apache-2.0
#include <fmt/core.h>

#include <array>
#include <fstream>
#include <map>
#include <set>

#include "report/report.hpp"

namespace lab {
namespace {

/// What can be added up over files. Latencies cannot: a file has only quantiles.
constexpr std::array counted{"restarts",  "connections", "refused",         "reset",
                             "timed_out", "unanswered",  "garbled",         "lost",
                             "left",      "cut_short",   "wrong_generation"};
using Counts = std::map<std::string, std::uint64_t>;

struct Sums {
  std::map<std::string, std::map<std::string, Counts>> by_method;  ///< then by link
  std::map<std::string, double> seconds;                           ///< by method
  std::map<std::string, std::uint64_t> drained;                    ///< by method
  std::set<std::string> kernels;
};

Result<void> read(const std::string& path, Sums& sums) {
  std::ifstream file{path};
  if (!file) {
    return error(fmt::format("cannot read {}", path));
  }
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || json.value("schema", "") != schema_name) {
    return error(fmt::format("{} is not what restart-lab --json writes", path));
  }
  sums.kernels.insert(json["kernel"]["release"].get<std::string>());
  for (const auto& gap : json["not_measured"]) {
    return error(fmt::format("{}: {} on {} was not measured", path,
                             gap["method"].get<std::string>(), gap["link"].get<std::string>()));
  }
  for (const auto& result : json["results"]) {
    const auto method = result["method"].get<std::string>();
    auto& counts = sums.by_method[method][result["link"]["name"].get<std::string>()];
    for (const auto* name : counted) {
      counts[name] += result[name].get<std::uint64_t>();
    }
    sums.seconds[method] += result["elapsed_s"].get<double>();
    sums.drained[method] += result["outcomes"].value("drained", std::uint64_t{0});
  }
  return {};
}

void print_row(const auto&... columns) {
  fmt::print("{:<14}  {:<9} {:>9} {:>12} {:>8} {:>8} {:>10} {:>11} {:>10}\n", columns...);
}

void print(const std::string& method, const std::string& link, const Counts& counts) {
  print_row(method, link, counts.at("restarts"), counts.at("connections"), counts.at("refused"),
            counts.at("reset"), counts.at("timed_out"),
            counts.at("unanswered") + counts.at("garbled"), counts.at("wrong_generation"));
}

}  // namespace

int sum_files(const std::vector<std::string>& files, std::uint64_t connections,
              std::uint64_t restarts) {
  Sums sums;
  for (const auto& path : files) {
    if (auto done = read(path, sums); !done) {
      fmt::print(stderr, "restart-lab: {}\n", done.error().text);
      return exit_not_measured;
    }
  }
  print_row("method", "link", "restarts", "connections", "refused", "reset", "timed out",
            "unanswered", "wrong gen");
  bool passed = true;
  for (const auto& [method, links] : sums.by_method) {
    Counts all;
    for (const auto& [link, counts] : links) {
      print(method, link, counts);
      for (const auto& [name, count] : counts) {
        all[name] += count;
      }
    }
    print(method, "all", all);
    if (method == "close") {
      passed = passed && all["lost"] > 0;
      fmt::print("{}: close lost {} of {} connections\n", all["lost"] > 0 ? "passed" : "FAILED",
                 all["lost"], all["connections"]);
    } else if (const auto known = parse_method(method); known && drains(*known)) {
      const bool good = all["lost"] == 0 && all["wrong_generation"] == 0 && all["left"] == 0 &&
                        sums.drained[method] == all["restarts"] &&
                        all["connections"] >= connections && all["restarts"] >= restarts &&
                        sums.kernels.size() == 1;
      passed = passed && good;
      fmt::print(
          "{}: {} lost {} of {} connections in {} restarts, {} of them drained; {} "
          "after settled; {:.0f} s of load; {} files, kernel {}\n",
          good ? "passed" : "FAILED", method, all["lost"], all["connections"], all["restarts"],
          sums.drained[method], all["wrong_generation"], sums.seconds[method], files.size(),
          *sums.kernels.begin());
    }
  }
  return passed ? exit_passed : exit_failed;
}

}  // namespace lab
