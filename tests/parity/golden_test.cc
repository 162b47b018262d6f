// The cpu backend against the oracle's logits and greedy tokens.

#include <algorithm>
#include <string>
#include <tuple>

#include "gtest/gtest.h"
#include "tests/model/model_harness.h"
#include "tests/parity/golden_check.h"

namespace baton::model {
namespace {

class GoldenTest : public testing::TestWithParam<std::tuple<std::string, GoldenSetup>> {};

TEST_P(GoldenTest, LogitsAndGreedyTokens) {
  const auto& [name, setup] = GetParam();
  CheckGolden(LoadTestModel(name), TestModelDirectory(name) + "/golden.safetensors", setup);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenTest,
                         testing::Combine(testing::ValuesIn(TestModelNames()),
                                          testing::Values(kCpuF32, kCpuBf16, kCpuFp8Pages,
                                                          kCpuBf16Avx2, kCpuBf16Portable)),
                         [](const auto& info) {
                           std::string name =
                               std::get<0>(info.param) + "_" + std::get<1>(info.param).name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace baton::model
