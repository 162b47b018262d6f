#include "server/bench_experts.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::server {
namespace {

using ::testing::HasSubstr;

ExpertBenchOptions Small() {
  ExpertBenchOptions options;
  options.ranks = 4;
  options.layers = 2;
  options.experts = 16;
  options.redundant = 8;
  options.top_k = 2;
  options.tokens = 256;
  options.steps = 240;
  options.shift_steps = 80;
  options.interval_steps = 10;
  options.half_life_steps = 8;
  options.exponent = 1.2;
  return options;
}

std::vector<ExpertBenchRow> Bench(const ExpertBenchOptions& options) {
  auto rows = BenchExperts(options);
  EXPECT_TRUE(rows.ok()) << rows.status();
  return rows.ok() ? *std::move(rows) : std::vector<ExpertBenchRow>(3);
}

TEST(BenchExperts, LiveBeatsStaticBeatsNone) {
  const std::vector<ExpertBenchRow> rows = Bench(Small());
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].mode, "none");
  EXPECT_EQ(rows[1].mode, "static");
  EXPECT_EQ(rows[2].mode, "live");
  EXPECT_LT(rows[0].balancedness, rows[1].balancedness);
  EXPECT_LT(rows[1].balancedness, rows[2].balancedness);
  EXPECT_GT(rows[2].switches, 1);
  EXPECT_GT(rows[2].copies, rows[2].switches);
  EXPECT_EQ(rows[0].switches + rows[1].switches, 0);
  for (const ExpertBenchRow& row : rows) {
    ASSERT_EQ(row.step_times.size(), 240u);
    for (double time : row.step_times) ASSERT_GE(time, 1 - 1e-9);  // nothing beats even ranks
    EXPECT_LE(row.p50_step_time, row.p99_step_time);
  }
  // The first step has the same tokens and, static and live, the same placement.
  EXPECT_EQ(rows[1].step_times[0], rows[2].step_times[0]);
}

TEST(BenchExperts, TheSameOptionsGiveTheSameRows) {
  EXPECT_EQ(Bench(Small())[2].step_times, Bench(Small())[2].step_times);
  ExpertBenchOptions other = Small();
  other.seed = 2;
  EXPECT_NE(Bench(Small())[2].step_times, Bench(other)[2].step_times);
}

TEST(BenchExperts, RanksThatHaveEverythingAreNeverFarFromEven) {
  ExpertBenchOptions options = Small();
  options.ranks = 1;
  for (const ExpertBenchRow& row : Bench(options)) {
    EXPECT_DOUBLE_EQ(row.p99_step_time, 1) << row.mode;
  }
}

TEST(BenchExperts, RefusesImpossibleOptions) {
  ExpertBenchOptions options = Small();
  options.top_k = 17;
  EXPECT_THAT(std::string(BenchExperts(options).status().message()),
              HasSubstr("top-k is 17, allowed are 1 to 16"));
  options = Small();
  options.ranks = 0;
  EXPECT_THAT(std::string(BenchExperts(options).status().message()), HasSubstr("ranks is 0"));
}

}  // namespace
}  // namespace baton::server
