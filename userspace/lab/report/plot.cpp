// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <fstream>
#include <map>

#include "process.hpp"
#include "report/report.hpp"

namespace lab {
namespace {

constexpr std::string_view script = R"(
set terminal svg size 900,640 noenhanced font 'sans-serif,12' background 'white'
set output '{svg}'
set multiplot layout 2,1
set style fill solid
set boxwidth 0.5
set grid ytics lc rgb '#d0d0d4'
set lmargin 9
set rmargin 12
set key outside right top
set xrange [-0.6:{count} - 0.4]
set logscale y
set format y '%g'
set yrange [0.01:30000]
set title 'connections lost in 10,000'
plot $data using 0:($3 > 0 ? $3 : NaN):xtic(1) with boxes lc rgb '#cc4033' notitle, \
     $data using 0:($3 > 0.01 ? $3 : 0.01):2 with labels offset 0,0.7 notitle
set yrange [*:*]
set title 'connect, ms'
plot $data using 0:4:xtic(1) title 'p50' pt 7 lc rgb '#8cb3e0', \
     $data using 0:5 title 'p99' pt 7 lc rgb '#4d80c7', \
     $data using 0:6 title 'p99.9' pt 7 lc rgb '#1f4d94', \
     $data using 0:7 title 'max' pt 7 lc rgb '#0d214d'
)";

std::string replaced(std::string text, std::string_view word, const std::string& by) {
  text.replace(text.find(word), word.size(), by);
  return text;
}

}  // namespace

Result<void> plot(const std::string& json_path, const std::string& svg_path) {
  std::ifstream file{json_path};
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || json.value("schema", "") != schema_name) {
    return error(fmt::format("{} is not what restart-lab --json writes", json_path));
  }
  if (json["totals"].empty()) {
    return error("nothing was measured, so there is nothing to draw");
  }
  // gnuplot would interpret a name that needs quoting.
  if (svg_path.find_first_of("'\n") != std::string::npos) {
    return error(fmt::format("{}: choose a name without quotes", svg_path));
  }
  std::map<std::string, unsigned> gaps;  // links a method was not measured on
  for (const auto& gap : json["not_measured"]) {
    ++gaps[gap["method"].get<std::string>()];
  }
  std::string data = "$data << end\n";
  std::size_t rows = 0;
  for (const auto& sum : json["totals"]) {
    const auto method = sum["method"].get<std::string>();
    const auto lost = sum["lost"].get<std::uint64_t>();
    const auto of = std::max<std::uint64_t>(sum["connections"].get<std::uint64_t>(), 1);
    data += fmt::format("{} \"{} lost{}\" {}", method, lost,
                        gaps.erase(method) > 0 ? ", not on all links" : "",
                        1e4 * static_cast<double>(lost) / static_cast<double>(of));
    ++rows;
    for (const auto* quantile : {"p50", "p99", "p999", "max"}) {
      data += fmt::format(" {}", std::max(sum["connect_ms"][quantile].get<double>(), 0.001));
    }
    data += '\n';
  }
  for (const auto& [method, links] : gaps) {
    data += method + " \"not measured\" 0 NaN NaN NaN NaN\n";
    ++rows;
  }
  data += "end\n";
  const auto count = std::to_string(rows);
  return run_tool(
      {"gnuplot", "-"},
      data + replaced(replaced(std::string{script}, "{svg}", svg_path), "{count}", count), -1, {},
      "Debian: gnuplot-nox");
}

}  // namespace lab
