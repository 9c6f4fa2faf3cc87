// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "load/disturbance.hpp"
#include "load/flows.hpp"
#include "report/report.hpp"

namespace lab {
namespace {

TEST(Histogram, empty_has_no_figures) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0U);
  EXPECT_EQ(histogram.quantile(0.5), 0);
  EXPECT_EQ(histogram.max(), 0);
}

TEST(Histogram, small_and_negative_samples_are_exact) {
  Histogram histogram;
  histogram.add(-5);
  histogram.add(0);
  histogram.add(63);
  histogram.add(64);
  EXPECT_EQ(histogram.quantile(0.25), 0);
  EXPECT_EQ(histogram.quantile(0.75), 63);
  EXPECT_EQ(histogram.quantile(1.0), 64);
}

TEST(Histogram, quantiles_are_within_a_bucket_of_the_sorted_samples) {
  std::mt19937_64 random{7};
  std::lognormal_distribution<double> spread{15, 3};
  Histogram histogram;
  std::vector<std::int64_t> samples;
  for (int i = 0; i < 20'000; ++i) {
    samples.push_back(static_cast<std::int64_t>(spread(random)));
    histogram.add(samples.back());
  }
  std::sort(samples.begin(), samples.end());
  for (const double q : {0.001, 0.5, 0.9, 0.99, 0.999}) {
    const auto rank = static_cast<std::size_t>(std::ceil(q * 20'000)) - 1;
    const auto exact = static_cast<double>(samples.at(rank));
    const auto found = static_cast<double>(histogram.quantile(q));
    EXPECT_GE(found, exact) << q;
    EXPECT_LE(found, exact * (1 + 1.0 / 64) + 1) << q;
  }
  EXPECT_EQ(histogram.quantile(1.0), samples.back());
}

TEST(Histogram, merge_is_adding_to_one) {
  Histogram one;
  Histogram two;
  Histogram both;
  for (std::int64_t i = 0; i < 1000; ++i) {
    (i % 3 == 0 ? one : two).add(i * i * 977);
    both.add(i * i * 977);
  }
  one.merge(two);
  EXPECT_EQ(one.count(), both.count());
  EXPECT_EQ(one.max(), both.max());
  EXPECT_EQ(one.quantile(0.99), both.quantile(0.99));
}

TEST(Histogram, takes_the_largest_duration) {
  Histogram histogram;
  histogram.add(std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(histogram.quantile(0.5), std::numeric_limits<std::int64_t>::max());
}

TEST(WrongGeneration, only_connections_begun_after_the_cut_over) {
  const std::vector<Answer> answers{{100, 1}, {101, 1}, {500, 2}, {90, 1}, {700, 3}};
  EXPECT_EQ(count_wrong_generation(answers, {{1, 100}, {2, 600}}), 1U);
  EXPECT_EQ(count_wrong_generation(answers, {}), 0U);
}

/// A flow after so many answers by generation 1.
Flow flow_after(std::uint32_t answers, std::uint32_t datagrams) {
  Flow flow{7, datagrams};
  for (std::uint32_t i = 0; i < answers; ++i) {
    EXPECT_EQ(flow.take({flow.next().id, 1, 0}), FlowState::going);
  }
  return flow;
}

TEST(Flow, is_whole_when_one_generation_has_answered_all) {
  auto flow = flow_after(long_flow - 1, long_flow);
  EXPECT_EQ(flow.take({flow.next().id, 1, 0}), FlowState::whole);
  EXPECT_EQ(flow.sent(), long_flow);
  auto single = flow_after(0, 1);
  EXPECT_EQ(single.take({single.next().id, 3, 0}), FlowState::whole);
}

TEST(Flow, is_moved_when_another_generation_answers) {
  auto at_once = flow_after(1, long_flow);
  EXPECT_EQ(at_once.take({at_once.next().id, 2, 0}), FlowState::moved);
  auto at_the_end = flow_after(long_flow - 1, long_flow);
  EXPECT_EQ(at_the_end.take({at_the_end.next().id, 2, 0}), FlowState::moved);
  EXPECT_EQ(at_the_end.generation(), 1U);
}

TEST(Flow, takes_no_answer_to_another_question) {
  auto flow = flow_after(1, long_flow);
  const auto id = flow.next().id;
  for (const auto other : {id - 1, id + 1, std::uint64_t{0}}) {
    EXPECT_EQ(flow.take({other, 1, 0}), FlowState::garbled);
  }
  Flow next{8, long_flow};
  EXPECT_NE(next.next().id, Flow(7, long_flow).next().id + long_flow);
}

TEST(LinkSpec, reads_what_it_prints) {
  for (const auto* text : {"loopback", "20ms", "100ms/1%", "0.5ms", "0ms/1%"}) {
    const auto link = parse_link(text);
    ASSERT_TRUE(link) << text;
    EXPECT_EQ(link->name(), text);
  }
  EXPECT_EQ(parse_link("20")->rtt_ns, 20 * one_ms);
  EXPECT_DOUBLE_EQ(parse_link("20ms/1%")->loss, 0.01);
}

TEST(LinkSpec, refuses_what_it_does_not_know) {
  for (const auto* text : {"", "ms", "-1", "20ms/", "20ms/101%", "nan", "20ms/nan", "1e9", "20s",
                           "20ms/1%x", "loopback "}) {
    EXPECT_FALSE(parse_link(text)) << text;
  }
}

struct Undisturbed {
  RunRecord run;
  LoadResult load;
  Undisturbed() {
    run.planned_ns = 10 * one_second;
    run.elapsed_ns = 11 * one_second;
    run.before = {0, 5, 1000 * one_second, 100, 10'000};
    run.after = {10 * one_second, 5, 1000 * one_second + 3 * one_ms, 110, 12'000};
    for (int i = 0; i < 3000; ++i) {
      load.late.add(i < 2980 ? one_ms : 300 * one_ms);
    }
    load.longest_stall_ns = 300 * one_ms;
  }
  [[nodiscard]] std::string why() const { return disturbance(run, load, DisturbanceLimits{}); }
};

TEST(Disturbance, a_busy_machine_that_keeps_up_is_none) {
  EXPECT_EQ(Undisturbed{}.why(), "");
}

TEST(Disturbance, each_sign_is_noticed) {
  Undisturbed late;
  for (int i = 0; i < 40; ++i) {
    late.load.late.add(2 * one_second);
  }
  EXPECT_NE(late.why(), "");
  Undisturbed stall;
  stall.load.longest_stall_ns = 1001 * one_ms;
  EXPECT_EQ(stall.why(), "the load generator stood still for 1.0 s");
  Undisturbed longer;
  longer.run.elapsed_ns = 22 * one_second;
  EXPECT_EQ(longer.why(), "the run took 22 s beside its drains instead of 10 s");
  Undisturbed suspended;
  suspended.run.after.suspended_ns += one_second;
  suspended.run.after.wall_ns += one_second;
  EXPECT_EQ(suspended.why(), "the machine was suspended for 1.0 s");
  Undisturbed clock;
  clock.run.after.wall_ns -= 3600 * one_second;
  EXPECT_EQ(clock.why(), "the clock was set by -3600.0 s");
  Undisturbed steal;
  steal.run.after.steal += 400;
  EXPECT_EQ(steal.why(), "the hypervisor took 20 % of the CPU time");
}

TEST(Disturbance, a_run_without_a_planned_duration_is_never_too_long) {
  Undisturbed run;
  run.run.planned_ns = 0;
  run.run.elapsed_ns = 1000 * one_second;
  EXPECT_EQ(run.why(), "");
}

TEST(Disturbance, the_machine_is_looked_at) {
  const auto one = sample_machine();
  pause_ns(20 * one_ms);
  const auto two = sample_machine();
  EXPECT_GT(one.total, 0U);
  EXPECT_GE(two.total, one.total);
  EXPECT_GT(two.monotonic_ns, one.monotonic_ns);
  EXPECT_GT(one.wall_ns, 0);
}

TEST(RestartMethod, names_are_unique_and_parse) {
  for (const auto& method : methods) {
    EXPECT_EQ(parse_method(method.name), method.method);
    EXPECT_EQ(info(method.method).name, method.name);
  }
  EXPECT_FALSE(parse_method("nothing"));
}

Measurement outcome(RestartMethod method, std::uint64_t reset) {
  Measurement result;
  result.spec.method = method;
  result.spec.link = *parse_link("20ms");
  result.device = "veth";
  result.restarts = result.spec.restarts = 2;
  result.load.connections = 1000;
  result.load.reset = reset;
  result.load.answered = 1000 - reset;
  result.load.connect.add(20 * one_ms);
  result.load.first_byte.add(40 * one_ms);
  result.p999.push_back(reset > 1 ? lost_too_many : 20 * one_ms);
  result.may_close.add(21 * one_ms);
  result.outcomes[drains(method) ? "drained" : "closed"] = 2;
  return result;
}

const KernelAnswer patched{true, false, "supported", "the kernel has it"};
const KernelAnswer stock{false, false, "not in this kernel", "it lacks it"};

bool all_passed(const std::vector<Check>& checks) {
  return !checks.empty() &&
         std::all_of(checks.begin(), checks.end(), [](const Check& c) { return c.passed; });
}

TEST(Judge, holds_where_close_loses_and_drain_does_not) {
  EXPECT_TRUE(all_passed(judge(
      patched, {outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 0)}, true)));
}

TEST(Judge, fails_on_any_loss) {
  EXPECT_FALSE(all_passed(judge(
      patched, {outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 1)}, true)));
}

TEST(Judge, fails_where_close_loses_nothing) {
  EXPECT_FALSE(all_passed(judge(
      patched, {outcome(RestartMethod::close, 0), outcome(RestartMethod::listen_off, 0)}, true)));
}

TEST(Judge, fails_on_wrong_generation) {
  auto drained = outcome(RestartMethod::listen_off, 0);
  drained.load.wrong_generation = 1;
  EXPECT_FALSE(all_passed(judge(patched, {outcome(RestartMethod::close, 9), drained}, true)));
}

TEST(Judge, fails_on_a_slow_drain) {
  auto drained = outcome(RestartMethod::listen_off, 0);
  drained.may_close.add(71 * one_ms);
  EXPECT_FALSE(all_passed(judge(patched, {outcome(RestartMethod::close, 9), drained}, true)));
}

TEST(Judge, fails_on_a_fallback_the_patched_kernel_does_not_need) {
  auto drained = outcome(RestartMethod::listen_off, 0);
  drained.outcomes = {{"drained", 1}, {"swept and closed", 1}};
  EXPECT_FALSE(all_passed(judge(patched, {outcome(RestartMethod::close, 9), drained}, true)));
}

Measurement faster_than_listen_off(std::uint64_t reset) {
  auto result = outcome(RestartMethod::sweep, reset);
  result.load.connect = {};
  result.load.connect.add(15 * one_ms);
  return result;
}

TEST(Judge, fails_where_another_method_is_faster) {
  const auto faster = faster_than_listen_off(0);
  EXPECT_FALSE(all_passed(judge(
      patched, {outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 0), faster},
      true)));
}

Measurement with_rounds(RestartMethod method, std::uint64_t reset,
                        const std::vector<std::int64_t>& p999) {
  auto result = outcome(method, reset);
  result.p999 = p999;
  return result;
}

TEST(Judge, rounds_tell_chance_from_a_difference) {
  const auto close = outcome(RestartMethod::close, 9);
  const auto own = with_rounds(RestartMethod::listen_off, 0, std::vector<std::int64_t>(10, 20));
  auto rival = std::vector<std::int64_t>(10, 19);  // within a tenth
  EXPECT_TRUE(
      all_passed(judge(patched, {close, own, with_rounds(RestartMethod::sweep, 0, rival)}, true)));
  rival.assign(10, 17);
  EXPECT_FALSE(
      all_passed(judge(patched, {close, own, with_rounds(RestartMethod::sweep, 0, rival)}, true)));
  std::fill_n(rival.begin(), 4, 21);
  EXPECT_TRUE(
      all_passed(judge(patched, {close, own, with_rounds(RestartMethod::sweep, 0, rival)}, true)));
}

TEST(Judge, a_method_that_loses_has_no_tail_to_compare) {
  const auto faster = faster_than_listen_off(9);
  EXPECT_TRUE(all_passed(judge(
      patched, {outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 0), faster},
      true)));
}

TEST(Judge, a_stock_kernel_must_report_its_fallback) {
  auto fallback = outcome(RestartMethod::listen_off, 3);
  EXPECT_FALSE(all_passed(judge(stock, {outcome(RestartMethod::close, 9), fallback}, true)));
  fallback.outcomes = {{"swept and closed", 2}};
  EXPECT_TRUE(all_passed(judge(stock, {outcome(RestartMethod::close, 9), fallback}, true)));
}

TEST(Judge, the_option_by_bpf_loses_nothing_on_a_stock_kernel) {
  const auto close = outcome(RestartMethod::close, 9);
  EXPECT_TRUE(all_passed(judge(stock, {close, outcome(RestartMethod::option_bpf, 0)}, true)));
  EXPECT_FALSE(all_passed(judge(stock, {close, outcome(RestartMethod::option_bpf, 1)}, true)));
  auto unconfirmed = outcome(RestartMethod::option_bpf, 0);
  unconfirmed.outcomes = {{"drained", 1}, {"unconfirmed", 1}};
  EXPECT_FALSE(all_passed(judge(stock, {close, unconfirmed}, true)));
}

Measurement flows(RestartMethod method, std::uint64_t refused, std::uint64_t moved) {
  auto result = outcome(method, 0);
  result.spec.udp = true;
  result.load.refused = refused;
  result.load.moved = moved;
  return result;
}

TEST(Judge, flows_stay_where_they_are_kept_and_move_where_not) {
  const auto close = flows(RestartMethod::close, 0, 9);
  const auto option = flows(RestartMethod::option_bpf, 0, 9);
  const auto kept = flows(RestartMethod::option_flows, 0, 0);
  EXPECT_TRUE(all_passed(judge(stock, {close, option, kept}, false)));
  EXPECT_FALSE(
      all_passed(judge(stock, {close, option, flows(RestartMethod::option_flows, 0, 1)}, false)));
  EXPECT_FALSE(
      all_passed(judge(stock, {close, option, flows(RestartMethod::option_flows, 1, 0)}, false)));
  EXPECT_FALSE(all_passed(judge(stock, {flows(RestartMethod::close, 0, 0), kept}, false)));
  auto late = kept;
  late.load.wrong_generation = 1;
  EXPECT_FALSE(all_passed(judge(stock, {close, option, late}, false)));
  auto closed = kept;
  closed.outcomes = {{"drained", 1}, {"closed with flows", 1}};
  EXPECT_FALSE(all_passed(judge(stock, {close, option, closed}, false)));
  const auto sum = total({kept, close, flows(RestartMethod::close, 1, 2)}, RestartMethod::close);
  EXPECT_EQ(sum.load.moved, 11U);
  EXPECT_TRUE(sum.spec.udp);
}

TEST(Judge, latency_only_where_it_is_asked_for) {
  auto slow = outcome(RestartMethod::listen_off, 0);
  slow.may_close.add(71 * one_ms);
  EXPECT_TRUE(all_passed(judge(patched, {outcome(RestartMethod::close, 9), slow}, false)));
}

TEST(Total, adds_the_links_of_one_method) {
  const auto sum = total({outcome(RestartMethod::close, 9), outcome(RestartMethod::close, 4),
                          outcome(RestartMethod::sweep, 1)},
                         RestartMethod::close);
  EXPECT_EQ(sum.load.connections, 2000U);
  EXPECT_EQ(sum.load.lost(), 13U);
  EXPECT_EQ(sum.restarts, 4U);
  EXPECT_EQ(sum.outcomes.at("closed"), 4U);
}

/// One line each, "" when the document follows schema.json.
std::string violations(const nlohmann::json& document) {
  // of build/bin/tests/lab_test
  const auto build = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../..";
  std::ifstream file{build / "lab/schema.json"};
  const auto text = nlohmann::json::parse(file);
  valijson::Schema schema;
  valijson::SchemaParser parser;
  parser.populateSchema(valijson::adapters::NlohmannJsonAdapter{text}, schema);
  valijson::Validator validator;
  valijson::ValidationResults results;
  validator.validate(schema, valijson::adapters::NlohmannJsonAdapter{document}, &results);
  std::string lines;
  for (const auto& error : results) {
    lines += error.description + "\n";
  }
  return lines;
}

nlohmann::json sample() {
  return document(patched, {"restart-lab", "run"},
                  {outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 0)},
                  {{RestartMethod::migrate, *parse_link("20ms"), "no sysctl", false}},
                  {{true, "close lost 9"}});
}

TEST(Json, follows_its_schema) {
  EXPECT_EQ(violations(sample()), "");
}

TEST(Json, closed_loop_follows_its_schema) {
  auto closed = outcome(RestartMethod::close, 1);
  closed.spec.rate = 0;
  const auto json = document(stock, {"restart-lab"}, {closed}, {}, {});
  EXPECT_EQ(violations(json), "");
  EXPECT_EQ(json["results"][0]["load"]["loop"], "closed");
}

TEST(Json, flows_follow_its_schema) {
  const auto json =
      document(stock, {"restart-lab"}, {flows(RestartMethod::option_flows, 0, 3)}, {}, {});
  EXPECT_EQ(violations(json), "");
  EXPECT_EQ(json["results"][0]["protocol"], "udp");
  EXPECT_EQ(json["results"][0]["moved"], 3);
}

TEST(Json, the_schema_notices_what_is_wrong) {
  auto missing = sample();
  missing["results"][0].erase("reset");
  EXPECT_NE(violations(missing), "");
  auto unknown = sample();
  unknown["results"][0]["more"] = 1;
  EXPECT_NE(violations(unknown), "");
  auto negative = sample();
  negative["results"][0]["refused"] = -1;
  EXPECT_NE(violations(negative), "");
  auto name = sample();
  name["schema"] = "reuseport-restart-lab/0";
  EXPECT_NE(violations(name), "");
}

TEST(Table, has_a_row_for_each_outcome) {
  const auto text =
      table({outcome(RestartMethod::close, 9), outcome(RestartMethod::listen_off, 0)}, true);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find("listen-off"), std::string::npos);
  EXPECT_NE(text.find("drained 2x"), std::string::npos);
}

TEST(Table, of_flows_has_what_moved) {
  const auto text = table({flows(RestartMethod::close, 5, 77)}, false);
  EXPECT_NE(text.find("moved"), std::string::npos);
  EXPECT_NE(text.find("  77  "), std::string::npos) << text;
}

TEST(Plot, is_an_svg_with_text_as_text) {
  const auto name = (std::filesystem::temp_directory_path() / "lab_test-plot").string();
  ASSERT_TRUE(write_file(name + ".json", sample().dump()));
  const auto drawn = plot(name + ".json", name + ".svg");
  ASSERT_TRUE(drawn) << drawn.error().text;
  std::ifstream file{name + ".svg"};
  const std::string svg{std::istreambuf_iterator<char>{file}, {}};
  EXPECT_NE(svg.find("<svg"), std::string::npos);
  EXPECT_NE(svg.find("listen-off"), std::string::npos);
  EXPECT_NE(svg.find(">9 lost<"), std::string::npos);
  EXPECT_NE(svg.find(">migrate<"), std::string::npos);
  EXPECT_NE(svg.find(">not measured<"), std::string::npos);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  std::filesystem::remove(name + ".json");
  std::filesystem::remove(name + ".svg");
}

TEST(Plot, a_method_that_lacks_a_link_says_so) {
  const auto name = (std::filesystem::temp_directory_path() / "lab_test-gap").string();
  auto json = sample();
  json["not_measured"][0]["method"] = "close";
  ASSERT_TRUE(write_file(name + ".json", json.dump()));
  const auto drawn = plot(name + ".json", name + ".svg");
  ASSERT_TRUE(drawn) << drawn.error().text;
  std::ifstream file{name + ".svg"};
  const std::string svg{std::istreambuf_iterator<char>{file}, {}};
  EXPECT_NE(svg.find(">9 lost, not on all links<"), std::string::npos);
  EXPECT_EQ(svg.find(">not measured<"), std::string::npos);
  std::filesystem::remove(name + ".json");
  std::filesystem::remove(name + ".svg");
}

TEST(Plot, needs_what_run_wrote) {
  EXPECT_FALSE(plot("/nonexistent", "/nonexistent.svg"));
  EXPECT_FALSE(plot("/dev/null", "/nonexistent.svg"));
}

TEST(WriteFile, leaves_nothing_behind_where_it_cannot_write) {
  EXPECT_FALSE(write_file("/nonexistent/directory/file", "text"));
}

}  // namespace
}  // namespace lab
