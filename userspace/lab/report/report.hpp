// SPDX-License-Identifier: Apache-2.0
#ifndef LAB_REPORT_REPORT_HPP
#define LAB_REPORT_REPORT_HPP

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "experiment.hpp"
#include "run.hpp"

namespace lab {

/// One check and its result.
struct Check {
  bool passed = false;
  std::string text;
};

/// Adds one measurement to another of the same method: counts, latency and outcomes.
void add(Measurement& sum, const Measurement& part);

/// Adds the measurements of one method up: counts, and latency over all links.
Measurement total(const std::vector<Measurement>& measured, RestartMethod method);
/// total() of every method that was measured.
std::vector<Measurement> totals(const std::vector<Measurement>& measured);

/// "connections", or "flows" over UDP.
const char* what_is_begun(const ExperimentSpec& spec);

/// Judges the measurements, each check only on kernels where it applies:
/// - `close` lost connections, or the run proves nothing;
/// - `listen-off`, where the option is in the kernel, `option-bpf` and `option-flows`: drained each
///   time, lost none, nothing reached a generation after it was settled, nor a socket that was
///   never ON; with `option-flows`, no flow was moved either;
/// - with `latency`, which is only for connections, in the open loop (a closed loop saturates the
///   machine, and then times are those of its run queue):
///   - the time from drain to may close is at most one round trip plus 50 ms on links without loss;
///   - the p99.9 connect latency of `listen-off` is that of any other method or lower: not higher
///   by
///     `latency_slack` in more rounds than a fair coin would show in `significance` of all runs.
///     Where there are too few rounds for that, by `latency_slack`. A method that lost a
///     thousandth of its connections has no p99.9.
std::vector<Check> judge(const KernelAnswer& kernel, const std::vector<Measurement>& measured,
                         bool latency);

/// Two figures of one run within this factor are equal: scheduling noise of a busy machine.
inline constexpr double latency_slack = 1.10;
inline constexpr double significance = 0.01;

/// Name and version of the JSON the lab writes; the schema is report/schema.json.
inline constexpr const char* schema_name = "reuseport-restart-lab/3";

/// The whole document. @param command the words of the command line.
nlohmann::json document(const KernelAnswer& kernel, const std::vector<std::string>& command,
                        const std::vector<Measurement>& measured, const std::vector<Gap>& missing,
                        const std::vector<Check>& checks);

/// The outcomes of the drains, and how often each occurred: "drained 29x, deadline hit 1x".
std::string outcomes(const Measurement& one);
/// The load of every method, in one line.
std::string describe_load(const ExperimentSpec& spec);
/// The rounds of a soak in one line.
std::string describe_soak(const std::vector<Measurement>& rounds);

/// A table with one row per measurement.
/// @param wide adds latencies, wrong generation and what the method needs.
std::string table(const std::vector<Measurement>& measured, bool wide);

/// Losses and latency of a document() as an SVG file, by gnuplot(1): above, connections lost in
/// 10,000; below, p50, p99, p99.9 and the maximum of connect; both on logarithmic scales, for each
/// method with all its links together. The label of a method that was not measured, or not on every
/// link, says that.
Result<void> plot(const std::string& json_path, const std::string& svg_path);

/// Writes a temporary file and renames it, so that `path` is never half a document.
Result<void> write_file(const std::string& path, const std::string& text);

}  // namespace lab

#endif  // LAB_REPORT_REPORT_HPP
