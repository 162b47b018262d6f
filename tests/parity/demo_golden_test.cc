// The demo model, as committed, against the oracle: what a user runs first is held to Hugging
// Face's code too.

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "model/loaded_model.h"
#include "tests/parity/golden_check.h"

namespace baton::model {
namespace {

void CheckDemo(const GoldenSetup& setup) {
  const std::string source = BATON_SOURCE_DIR;
  auto model = LoadModel(source + "/models/demo");
  ASSERT_TRUE(model.ok()) << model.status();
  CheckGolden(*std::move(model), source + "/tests/data/demo/golden.safetensors", setup);
}

TEST(DemoGoldenTest, F32) { CheckDemo(kCpuF32); }

// Prompts are chosen for stable tokens alone here (a trained model has too many near ties between
// experts to avoid them all), so a kept row may choose another expert somewhere and move by part of
// its output: one in ten may.
TEST(DemoGoldenTest, Bf16) {
  GoldenSetup setup = kCpuBf16;
  setup.outlier_share = 0.1;
  CheckDemo(setup);
}

}  // namespace
}  // namespace baton::model
