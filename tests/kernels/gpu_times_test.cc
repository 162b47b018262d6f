// The table of gpu_times on the emulated GPU: every op is in it, its sums are finite, and both
// forms say the same. Its times mean nothing here.

#include "tests/kernels/gpu_times.h"

#include <cmath>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/op_list.h"
#include "nlohmann/json.hpp"
#include "tests/simt/options.h"

namespace baton::kernels {
namespace {

using ::testing::HasSubstr;

TEST(GpuTimesTest, EveryOpIsTimedAgainstABound) {
  const absl::StatusOr<GpuLimits> limits = LimitsOf(0);
  ASSERT_TRUE(limits.ok()) << limits.status();
  EXPECT_GT(limits->bytes_per_s, 0);
  EXPECT_GT(limits->bf16_flops_per_s, limits->f32_flops_per_s);
  MonotonicClock clock;
  const absl::StatusOr<std::vector<GpuTime>> times = TimeOps(
      *limits, {.sizes = GpuSizes::kTiny, .at_least = Duration::Nanos(1), .warmups = 1}, clock);
  ASSERT_TRUE(times.ok()) << times.status();
  std::set<std::string> timed;
  int dense = 0;
  for (const GpuTime& time : *times) {
    timed.insert(time.op);
    EXPECT_GT(time.seconds, 0) << time.op;
    EXPECT_GT(time.bound_seconds, 0) << time.op;
    EXPECT_TRUE(std::isfinite(time.bound_seconds)) << time.op;
    dense += time.cublaslt_seconds.has_value() ? 1 : 0;
  }
  EXPECT_EQ(dense, 5);
#define BATON_OP_NAME(Name, entry) #Name,
  EXPECT_EQ(timed, (std::set<std::string>{BATON_KERNEL_OPS(BATON_OP_NAME)}));
#undef BATON_OP_NAME

  const std::string table = TimesTable(*limits, *times);
  const auto json = nlohmann::json::parse(TimesJson(*limits, *times));
  EXPECT_THAT(table, HasSubstr("emulated GPU, capability 9.0"));
  EXPECT_EQ(json["gpu"]["name"], "emulated GPU");
  ASSERT_EQ(json["times"].size(), times->size());
  for (size_t i = 0; i < times->size(); ++i) {
    EXPECT_THAT(table, HasSubstr((*times)[i].what));
    EXPECT_EQ(json["times"][i]["op"], (*times)[i].op);
    EXPECT_EQ(json["times"][i].contains("cublaslt_seconds"),
              (*times)[i].cublaslt_seconds.has_value());
  }
  EXPECT_FALSE(simt::TakeFault().has_value());
}

// What cuBLASLt refuses says so in its place; all else is timed.
TEST(GpuTimesTest, RefusalsOfCublasLtAreTold) {
  simt::Options options = simt::GetOptions();
  options.cublaslt = simt::CublasLt::kOnlySplits;
  const simt::ScopedOptions scope(options);
  const absl::StatusOr<GpuLimits> limits = LimitsOf(0);
  ASSERT_TRUE(limits.ok()) << limits.status();
  MonotonicClock clock;
  const absl::StatusOr<std::vector<GpuTime>> times = TimeOps(
      *limits, {.sizes = GpuSizes::kTiny, .at_least = Duration::Nanos(1), .warmups = 1}, clock);
  ASSERT_TRUE(times.ok()) << times.status();
  int refused = 0;
  for (const GpuTime& time : *times) {
    EXPECT_GT(time.seconds, 0) << time.op;
    EXPECT_FALSE(time.cublaslt_seconds.has_value()) << time.op;
    refused += time.cublaslt_refused.empty() ? 0 : 1;
  }
  EXPECT_EQ(refused, 5);
  EXPECT_THAT(TimesTable(*limits, *times), HasSubstr("refused: Linear (o_proj"));
  EXPECT_THAT(TimesJson(*limits, *times), HasSubstr("without a split of K"));
}

}  // namespace
}  // namespace baton::kernels
