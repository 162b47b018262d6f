// Weights copied to a device: the same bits come out as from the mapped files, and the copying is
// told.

#include "model/device_weights.h"

#include <cstring>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/model/model_harness.h"

namespace baton::model {
namespace {

class DeviceWeightsTest : public testing::TestWithParam<std::string> {
 protected:
  const std::shared_ptr<const LoadedModel> model_ = LoadTestModel(GetParam());
};

TEST_P(DeviceWeightsTest, GiveTheBitsOfTheMappedFiles) {
  RunnerOptions options;
  options.device.threads = 1;
  options.total_pages = 4;
  TestSequence sequence;
  sequence.tokens = RandomTokens(40, model_->config.vocab_size, 3);
  sequence.pages = TestPages(40, options.page_tokens);
  ModelHarness mapped(model_, options), copied(model_, options, /*uploads=*/true);
  const std::vector<LogitRow> expected = mapped.RunSequence(sequence, 30, 30);
  const std::vector<LogitRow> actual = copied.RunSequence(sequence, 30, 30);
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t row = 0; row < expected.size(); ++row) {
    ASSERT_EQ(
        std::memcmp(expected[row].data(), actual[row].data(), expected[row].size() * sizeof(float)),
        0)
        << row;
  }
}

TEST_P(DeviceWeightsTest, AreWhereTheCheckpointIsNot) {
  const auto device = kernels::CreateDevice({.threads = 1}).value();
  std::vector<std::pair<int64_t, int64_t>> told;
  UploadMeter meter([&](int64_t done, int64_t total) { told.emplace_back(done, total); },
                    DeviceWeights::CopiedBytes(model_->weights));
  const auto copied = DeviceWeights::Upload(*device, model_->weights, meter).value();
  const kernels::TensorView& from = model_->weights.embed;
  const kernels::TensorView& to = copied->weights().embed;
  EXPECT_NE(to.data, from.data);
  EXPECT_EQ(std::memcmp(to.data, from.data,
                        static_cast<size_t>(from.elements()) * kernels::DTypeBytes(from.dtype)),
            0);
  ASSERT_FALSE(told.empty());
  EXPECT_LE(told.size(), 200u);
  for (size_t i = 1; i < told.size(); ++i) EXPECT_LT(told[i - 1].first, told[i].first);
  EXPECT_EQ(told.back().first, told.back().second);
  EXPECT_GE(copied->bytes(), told.back().second);
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceWeightsTest, testing::ValuesIn(TestModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace baton::model
