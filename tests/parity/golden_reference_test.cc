// The reference backend against the oracle's logits and greedy tokens: the link between Hugging
// Face's code and the oracle that every fast kernel is tested against.

#include <algorithm>
#include <string>

#include "gtest/gtest.h"
#include "tests/model/model_harness.h"
#include "tests/parity/golden_check.h"

namespace baton::model {
namespace {

class GoldenReferenceTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenReferenceTest, LogitsAndGreedyTokens) {
  CheckGolden(LoadTestModel(GetParam()), TestModelDirectory(GetParam()) + "/golden.safetensors",
              kReferenceF32);
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenReferenceTest, testing::ValuesIn(TestModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace baton::model
