// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <random>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

#include "clock.hpp"
#include "picture.hpp"
#include "report.hpp"
#include "run.hpp"

namespace lab {
namespace {

TEST(Histogram, EmptyHasNoFigures) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0U);
  EXPECT_EQ(histogram.quantile(0.5), 0);
  EXPECT_EQ(histogram.max(), 0);
}

TEST(Histogram, SmallAndNegativeSamplesAreExact) {
  Histogram histogram;
  histogram.add(-5);
  histogram.add(0);
  histogram.add(63);
  histogram.add(64);
  EXPECT_EQ(histogram.quantile(0.25), 0);
  EXPECT_EQ(histogram.quantile(0.75), 63);
  EXPECT_EQ(histogram.quantile(1.0), 64);
}

TEST(Histogram, QuantilesAreWithinABucketOfTheSortedSamples) {
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

TEST(Histogram, MergeIsAddingToOne) {
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

TEST(Histogram, TakesTheLargestDuration) {
  Histogram histogram;
  histogram.add(std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(histogram.quantile(0.5), std::numeric_limits<std::int64_t>::max());
}

TEST(WrongGeneration, OnlyConnectionsBegunAfterTheCutOver) {
  const std::vector<Answer> answers{{100, 1}, {101, 1}, {500, 2}, {90, 1}, {700, 3}};
  EXPECT_EQ(count_wrong_generation(answers, {{1, 100}, {2, 600}}), 1U);
  EXPECT_EQ(count_wrong_generation(answers, {}), 0U);
}

TEST(LinkSpec, ReadsWhatItPrints) {
  for (const auto* text : {"loopback", "20ms", "100ms/1%", "0.5ms", "0ms/1%"}) {
    const auto link = parse_link(text);
    ASSERT_TRUE(link) << text;
    EXPECT_EQ(link->name(), text);
  }
  EXPECT_EQ(parse_link("20")->rtt_ns, 20 * one_ms);
  EXPECT_DOUBLE_EQ(parse_link("20ms/1%")->loss, 0.01);
}

TEST(LinkSpec, RefusesWhatItDoesNotKnow) {
  for (const auto* text : {"", "ms", "-1", "20ms/", "20ms/101%", "nan", "20ms/nan", "1e9", "20s",
                           "20ms/1%x", "loopback "}) {
    EXPECT_FALSE(parse_link(text)) << text;
  }
}

TEST(Method, NamesAreUniqueAndParse) {
  for (const auto& method : methods) {
    EXPECT_EQ(parse_method(method.name), method.method);
    EXPECT_EQ(info(method.method).name, method.name);
  }
  EXPECT_FALSE(parse_method("nothing"));
}

Outcome outcome(Method method, std::uint64_t reset) {
  Outcome result;
  result.spec.method = method;
  result.spec.link = *parse_link("20ms");
  result.wire = "veth+netem";
  result.restarts = result.spec.restarts = 2;
  result.load.connections = 1000;
  result.load.reset = reset;
  result.load.answered = 1000 - reset;
  result.load.connect.add(20 * one_ms);
  result.load.first_byte.add(40 * one_ms);
  result.p999.push_back(reset > 1 ? lost_too_many : 20 * one_ms);
  result.may_close.add(21 * one_ms);
  result.really[method == Method::listen_off ? "drained" : "closed"] = 2;
  return result;
}

const KernelAnswer patched{true, false, "supported", "the kernel has it"};
const KernelAnswer stock{false, false, "not in this kernel", "it lacks it"};

bool all_held(const std::vector<Check>& checks) {
  return !checks.empty() &&
         std::all_of(checks.begin(), checks.end(), [](const Check& c) { return c.held; });
}

TEST(Judge, HoldsWhereCloseLosesAndDrainDoesNot) {
  EXPECT_TRUE(
      all_held(judge(patched, {outcome(Method::close, 9), outcome(Method::listen_off, 0)})));
}

TEST(Judge, FailsOnAnyLoss) {
  EXPECT_FALSE(
      all_held(judge(patched, {outcome(Method::close, 9), outcome(Method::listen_off, 1)})));
}

TEST(Judge, FailsWhereCloseLosesNothing) {
  EXPECT_FALSE(
      all_held(judge(patched, {outcome(Method::close, 0), outcome(Method::listen_off, 0)})));
}

TEST(Judge, FailsOnWrongGeneration) {
  auto drained = outcome(Method::listen_off, 0);
  drained.load.wrong_generation = 1;
  EXPECT_FALSE(all_held(judge(patched, {outcome(Method::close, 9), drained})));
}

TEST(Judge, FailsOnASlowDrain) {
  auto drained = outcome(Method::listen_off, 0);
  drained.may_close.add(71 * one_ms);
  EXPECT_FALSE(all_held(judge(patched, {outcome(Method::close, 9), drained})));
}

TEST(Judge, FailsOnAFallbackThePatchedKernelDoesNotNeed) {
  auto drained = outcome(Method::listen_off, 0);
  drained.really = {{"drained", 1}, {"swept and closed", 1}};
  EXPECT_FALSE(all_held(judge(patched, {outcome(Method::close, 9), drained})));
}

Outcome faster_than_listen_off(std::uint64_t reset) {
  auto result = outcome(Method::sweep, reset);
  result.load.connect = {};
  result.load.connect.add(15 * one_ms);
  return result;
}

TEST(Judge, FailsWhereAnotherMethodIsFaster) {
  const auto faster = faster_than_listen_off(0);
  EXPECT_FALSE(all_held(
      judge(patched, {outcome(Method::close, 9), outcome(Method::listen_off, 0), faster})));
}

Outcome with_rounds(Method method, std::uint64_t reset, const std::vector<std::int64_t>& p999) {
  auto result = outcome(method, reset);
  result.p999 = p999;
  return result;
}

TEST(Judge, RoundsTellChanceFromADifference) {
  const auto close = outcome(Method::close, 9);
  const auto own = with_rounds(Method::listen_off, 0, std::vector<std::int64_t>(10, 20));
  auto rival = std::vector<std::int64_t>(10, 19);  // within a tenth
  EXPECT_TRUE(all_held(judge(patched, {close, own, with_rounds(Method::sweep, 0, rival)})));
  rival.assign(10, 17);
  EXPECT_FALSE(all_held(judge(patched, {close, own, with_rounds(Method::sweep, 0, rival)})));
  std::fill_n(rival.begin(), 4, 21);
  EXPECT_TRUE(all_held(judge(patched, {close, own, with_rounds(Method::sweep, 0, rival)})));
}

TEST(Judge, AMethodThatLosesHasNoTailToCompare) {
  const auto faster = faster_than_listen_off(9);
  EXPECT_TRUE(all_held(
      judge(patched, {outcome(Method::close, 9), outcome(Method::listen_off, 0), faster})));
}

TEST(Judge, AStockKernelMustReportItsFallback) {
  auto fallback = outcome(Method::listen_off, 3);
  EXPECT_FALSE(all_held(judge(stock, {outcome(Method::close, 9), fallback})));
  fallback.really = {{"swept and closed", 2}};
  EXPECT_TRUE(all_held(judge(stock, {outcome(Method::close, 9), fallback})));
}

TEST(Total, AddsTheLinksOfOneMethod) {
  const auto sum =
      total({outcome(Method::close, 9), outcome(Method::close, 4), outcome(Method::sweep, 1)},
            Method::close);
  EXPECT_EQ(sum.load.connections, 2000U);
  EXPECT_EQ(sum.load.lost(), 13U);
  EXPECT_EQ(sum.restarts, 4U);
  EXPECT_EQ(sum.really.at("closed"), 4U);
}

/// One line each, "" when the document follows schema.json.
std::string violations(const nlohmann::json& document) {
  std::ifstream file{LAB_SCHEMA};
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
                  {outcome(Method::close, 9), outcome(Method::listen_off, 0)},
                  {{Method::steer, *parse_link("20ms"), "no BTF"}}, {{true, "close lost 9"}});
}

TEST(Json, FollowsItsSchema) {
  EXPECT_EQ(violations(sample()), "");
}

TEST(Json, ClosedLoopFollowsItsSchema) {
  auto closed = outcome(Method::close, 1);
  closed.spec.rate = 0;
  const auto json = document(stock, {"restart-lab"}, {closed}, {}, {});
  EXPECT_EQ(violations(json), "");
  EXPECT_EQ(json["results"][0]["load"]["loop"], "closed");
}

TEST(Json, TheSchemaNoticesWhatIsWrong) {
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

TEST(Table, HasARowForEachOutcome) {
  const auto text = table({outcome(Method::close, 9), outcome(Method::listen_off, 0)}, true);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find("listen-off"), std::string::npos);
  EXPECT_NE(text.find("drained 2x"), std::string::npos);
}

TEST(Picture, IsAnSvgAndNeedsSomethingMeasured) {
  const auto svg = draw({outcome(Method::close, 9), outcome(Method::listen_off, 0)});
  ASSERT_TRUE(svg);
  EXPECT_NE(svg->find("<svg"), std::string::npos);
  EXPECT_NE(svg->find("</svg>"), std::string::npos);
  EXPECT_FALSE(draw({}));
}

TEST(WriteFile, LeavesNothingBehindWhereItCannotWrite) {
  EXPECT_FALSE(write_file("/nonexistent/directory/file", "text"));
}

}  // namespace
}  // namespace lab
