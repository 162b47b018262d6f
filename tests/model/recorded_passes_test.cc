// Decode passes that are recorded (CUDA graphs, in the emulation): the same bits as passes that are
// not, whatever they are padded to; and the observer of a pass beside a queue.

#include "model/recorded_passes.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/batch.h"
#include "tests/model/model_harness.h"
#include "tests/simt/options.h"

namespace baton::model {
namespace {

using scheduler::Form;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kModel = "bf16-lora-yarn";

RunnerOptions Options(bool records) {
  RunnerOptions options;
  options.device.backend = kernels::BackendKind::kCuda;
  options.device.records = records;
  options.max_batch_rows = 12;
  options.total_pages = 24;
  options.page_tokens = 16;
  return options;
}

class RecordedPassesTest : public testing::Test {
 protected:
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }
  const std::shared_ptr<const LoadedModel> model_ = LoadTestModel(kModel);
};

TEST(PaddedShape, HasFewValuesNearThePass) {
  const PassShape limits{.rows = 500, .sequence_pages = 100};
  const auto rows = [&](int32_t n) {
    return PaddedShape({.rows = n, .sequence_pages = 1}, limits).rows;
  };
  for (const auto& [n, padded] : std::vector<std::pair<int32_t, int32_t>>{{1, 1},
                                                                          {2, 2},
                                                                          {3, 4},
                                                                          {5, 8},
                                                                          {9, 16},
                                                                          {64, 64},
                                                                          {65, 96},
                                                                          {256, 256},
                                                                          {257, 384},
                                                                          {385, 500},
                                                                          {500, 500}}) {
    EXPECT_EQ(rows(n), padded) << n;
  }
  const auto pages = [&](int32_t n) {
    return PaddedShape({.rows = 1, .sequence_pages = n}, limits).sequence_pages;
  };
  EXPECT_EQ(pages(1), 1);
  EXPECT_EQ(pages(3), 4);
  EXPECT_EQ(pages(33), 64);
  EXPECT_EQ(pages(65), 100);
  // An idle rank of a group; and room that is less than a padded pass would want.
  const PassShape idle{.room_rows = 80, .room_pairs = 9};
  EXPECT_EQ(PaddedShape(idle, limits), idle);
  EXPECT_EQ(PaddedShape({.rows = 65, .sequence_pages = 1}, {.rows = 80, .sequence_pages = 1}).rows,
            80);
}

TEST(PadBatch, RepeatsTheFirstRowAndWritesNothing) {
  Batch batch{.rows = 2,
              .sequences = 2,
              .sequence_pages = 2,
              .ids = {7, 8},
              .positions = {20, 3},
              .slots = {164, 3},
              .query_start = {0, 1, 2},
              .context_len = {21, 4},
              .page_table = {9, 10, 1, 0}};
  PadBatch(4, 3, batch);
  EXPECT_EQ(batch.rows, 4);
  EXPECT_EQ(batch.sequences, 4);
  EXPECT_THAT(batch.ids, ElementsAre(7, 8, 7, 7));
  EXPECT_THAT(batch.positions, ElementsAre(20, 3, 20, 20));
  EXPECT_THAT(batch.slots, ElementsAre(164, 3, -1, -1));
  EXPECT_THAT(batch.query_start, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(batch.context_len, ElementsAre(21, 4, 21, 21));
  EXPECT_THAT(batch.page_table, ElementsAre(9, 10, 0, 1, 0, 0, 9, 10, 0, 9, 10, 0));
}

// Three sequences that begin and end at different times: passes of one to three rows, over a page's
// end. Each shape is run, then recorded, then replayed.
std::vector<LogitRow> Generate(ModelHarness& harness, const std::vector<TestSequence>& sequences) {
  std::vector<LogitRow> rows;
  const auto keep = [&](std::vector<LogitRow> of_pass) {
    std::move(of_pass.begin(), of_pass.end(), std::back_inserter(rows));
  };
  for (size_t s = 0; s < sequences.size(); ++s) {
    keep(harness.Forward(Form::kPrefill, {{&sequences[s], 0, 12, true}}));
  }
  std::vector<int32_t> next(sequences.size(), 12);
  for (size_t step = 0; step < 9; ++step) {
    std::vector<TestSlice> slices;
    for (size_t s = 0; s <= step % 3; ++s, ++next[s - 1]) {
      slices.push_back({&sequences[s], next[s], next[s] + 1, true});
    }
    keep(harness.SampledLogits(Form::kDecode, slices));
  }
  return rows;
}

TEST_F(RecordedPassesTest, ChangeNoBit) {
  std::vector<TestSequence> sequences(3);
  for (uint32_t s = 0; s < 3; ++s) {
    sequences[s].tokens = RandomTokens(30, model_->config.vocab_size, s);
    sequences[s].pages = TestPages(30, 16, s, 3);
  }
  std::vector<LogitRow> expected;
  {
    const simt::ScopedOptions scope({.seed = 1});
    ModelHarness harness(model_, Options(false));
    expected = Generate(harness, sequences);
    EXPECT_EQ(harness.decoder().replays(), 0u);
  }
  for (const uint64_t seed : {2, 3}) {
    const simt::ScopedOptions scope({.seed = seed});
    ModelHarness harness(model_, Options(true));
    EXPECT_EQ(Generate(harness, sequences), expected) << seed;
    EXPECT_GE(harness.decoder().replays(), 3u);
  }
}

// The device alone: recordings of an op, and what may not be in one.
class RecordingTest : public RecordedPassesTest {
 protected:
  RecordingTest() : device_(*kernels::CreateDevice(Options(true).device)) {}

  kernels::TensorView NewTensor(int64_t rows, float value) {
    const std::vector<float> values(static_cast<size_t>(rows * kWidth), value);
    buffers_.push_back(*device_->Allocate(values.size() * sizeof(float)));
    void* const data = buffers_.back().data();
    EXPECT_TRUE(device_->CopyToDevice(data, values.data(), values.size() * sizeof(float)).ok());
    return kernels::TensorView::Contiguous(data, kernels::DType::kF32, {rows, kWidth});
  }
  float First(const kernels::TensorView& view) {
    float value = 0.0f;
    EXPECT_TRUE(device_->CopyToHost(&value, view.data, sizeof(value)).ok());
    return value;
  }
  // out = x * w, of 1 x kWidth by kWidth x kWidth.
  absl::Status Multiply(const kernels::TensorView& x, const kernels::TensorView& out) {
    return kernels::Linear(*device_, {.x = x, .w = {.w = weight_}, .out = out});
  }

  static constexpr int64_t kWidth = 32;
  const simt::ScopedOptions scope_{{.seed = 5}};
  const std::unique_ptr<kernels::Device> device_;
  std::vector<kernels::DeviceBuffer> buffers_;
  const kernels::TensorView weight_ = NewTensor(kWidth, 1.0f);
};

TEST_F(RecordingTest, RunsOpsOnWhatIsThereThen) {
  const kernels::TensorView x = NewTensor(1, 1.0f), out = NewTensor(1, 0.0f);
  ASSERT_TRUE(device_->BeginRecording().ok());
  ASSERT_TRUE(Multiply(x, out).ok());
  auto recording = device_->EndRecording();
  ASSERT_TRUE(recording.ok()) << recording.status();
  EXPECT_EQ(First(out), 0.0f);  // recorded is not run
  for (const float value : {2.0f, 3.0f}) {
    const std::vector<float> values(kWidth, value);
    ASSERT_TRUE(
        device_->EnqueueCopyToDevice(x.data, values.data(), values.size() * sizeof(float)).ok());
    ASSERT_TRUE(device_->Replay(**recording).ok());
    EXPECT_EQ(First(out), value * kWidth);
  }
}

TEST_F(RecordingTest, RefusesWhatTheHostTakesPartIn) {
  const kernels::TensorView x = NewTensor(1, 1.0f);
  float value = 0.0f;
  ASSERT_TRUE(device_->BeginRecording().ok());
  EXPECT_THAT(device_->EnqueueCopyToDevice(x.data, &value, sizeof(value)).message(),
              HasSubstr("no part of ops that are being recorded"));
  EXPECT_THAT(device_->CopyToHost(&value, x.data, sizeof(value)).message(),
              HasSubstr("no part of ops that are being recorded"));
  EXPECT_TRUE(device_->EndRecording().ok());
  EXPECT_EQ(First(x), 1.0f);
}

TEST_F(RecordingTest, IsRefusedByDevicesWithoutIt) {
  for (const kernels::DeviceOptions& options :
       {kernels::DeviceOptions{.threads = 1},
        kernels::DeviceOptions{.backend = kernels::BackendKind::kCuda, .blocking = true},
        kernels::DeviceOptions{.backend = kernels::BackendKind::kCuda, .records = false}}) {
    auto device = kernels::CreateDevice(options);
    ASSERT_TRUE(device.ok());
    EXPECT_FALSE((*device)->can_record());
    EXPECT_TRUE(absl::IsFailedPrecondition((*device)->BeginRecording()));
    EXPECT_TRUE(absl::IsFailedPrecondition((*device)->EndRecording().status()));
    EXPECT_TRUE((*device)->Mark().value()->Wait().ok());
  }
}

// What a pass may need although it ran before: less memory was free, or a bug. It runs as it is.
TEST_F(RecordingTest, WhatCannotBeRecordedRunsAsItIs) {
  const kernels::TensorView x = NewTensor(1, 1.0f);
  RecordedPasses passes(*device_);
  int launches = 0;
  for (int i = 0; i < 4; ++i) {
    const float value = static_cast<float>(i);
    EXPECT_TRUE(passes
                    .Run({.rows = 1, .sequence_pages = 1},
                         [&] {
                           ++launches;
                           return device_->EnqueueCopyToDevice(x.data, &value, sizeof(value));
                         })
                    .ok());
    EXPECT_EQ(First(x), value);
  }
  EXPECT_EQ(launches, 5);  // one of them in vain
  EXPECT_EQ(passes.replays(), 0u);
}

// What ranks do together stands between pieces of what is recorded, in each run anew.
TEST_F(RecordingTest, CallsOfAGroupStayCalls) {
  const kernels::TensorView x = NewTensor(1, 1.0f), middle = NewTensor(1, 0.0f);
  const kernels::TensorView y = NewTensor(1, 0.0f), out = NewTensor(1, 0.0f);
  RecordedPasses passes(*device_);
  int launches = 0, calls = 0;
  bool fails = false;
  const auto call = [&]() -> absl::Status {
    ++calls;
    if (fails) return absl::UnavailableError("a rank is gone");
    return kernels::CopyRows(*device_, {.x = middle, .index = {}, .out = y});
  };
  const auto run = [&] {
    return passes.Run({.rows = 1, .sequence_pages = 1}, [&]() -> absl::Status {
      ++launches;
      absl::Status status = Multiply(x, middle);
      if (status.ok()) status = passes.Call(call);
      EXPECT_EQ(passes.is_recording(), launches == 2);
      return status.ok() ? Multiply(y, out) : status;
    });
  };
  for (int i = 1; i <= 4; ++i) {
    const std::vector<float> values(kWidth, static_cast<float>(i));
    ASSERT_TRUE(
        device_->EnqueueCopyToDevice(x.data, values.data(), values.size() * sizeof(float)).ok());
    ASSERT_TRUE(run().ok());
    EXPECT_EQ(First(out), static_cast<float>(i * kWidth * kWidth));
    EXPECT_EQ(calls, i);
  }
  EXPECT_EQ(launches, 2);
  EXPECT_EQ(passes.replays(), 3u);
  fails = true;
  EXPECT_TRUE(absl::IsUnavailable(run()));
  EXPECT_EQ(passes.replays(), 3u);
}

TEST_F(RecordingTest, KeepsTheShapesUsedLast) {
  const kernels::TensorView x = NewTensor(1, 1.0f), out = NewTensor(1, 0.0f);
  RecordedPasses passes(*device_);
  int launches = 0;
  const auto run = [&](int32_t rows) {
    EXPECT_TRUE(passes
                    .Run({.rows = rows, .sequence_pages = 1},
                         [&] {
                           ++launches;
                           return Multiply(x, out);
                         })
                    .ok());
  };
  for (int i = 0; i < 3; ++i) run(1);
  EXPECT_EQ(launches, 2);
  EXPECT_EQ(passes.replays(), 2u);
  for (int32_t rows = 2; rows <= static_cast<int32_t>(RecordedPasses::kMostShapes); ++rows)
    run(rows);
  run(1);
  EXPECT_EQ(passes.replays(), 3u);
  launches = 0;
  run(1000);  // takes the place of 2
  run(1);
  EXPECT_EQ(launches, 1);
  run(2);
  EXPECT_EQ(launches, 2);
  passes.Forget();
  run(1);
  EXPECT_EQ(launches, 3);
}

// Packs each layer's pages as soon as it is told of them, while the pass goes on.
class Packer final : public LayerObserver {
 public:
  Packer(Runner& runner, const std::vector<PageId>& pages, int32_t tokens)
      : runner_(runner), pages_(pages), tokens_(tokens) {}
  void OnLayerWritten(int32_t layer) override {
    const size_t bytes = static_cast<size_t>(tokens_) * runner_.info().entry_bytes;
    kernels::DeviceBuffer message = *device_->Allocate(bytes);
    const auto* data = static_cast<const std::byte*>(message.data());
    sums_.push_back(runner_.PackPages(layer, pages_, tokens_,
                                      {static_cast<std::byte*>(message.data()), bytes}));
    std::vector<std::byte>& copy = messages_.emplace_back(bytes);
    EXPECT_TRUE(device_->CopyToHost(copy.data(), data, bytes).ok());
  }
  const std::vector<std::vector<std::byte>>& messages() const { return messages_; }
  const std::vector<uint64_t>& sums() const { return sums_; }

 private:
  Runner& runner_;
  const std::vector<PageId>& pages_;
  const int32_t tokens_;
  const std::unique_ptr<kernels::Device> device_ = *kernels::CreateDevice(Options(false).device);
  std::vector<std::vector<std::byte>> messages_;
  std::vector<uint64_t> sums_;
};

TEST_F(RecordedPassesTest, LatentsArePackedBesideThePass) {
  const std::vector<TokenId> tokens = RandomTokens(24, model_->config.vocab_size, 9);
  const std::vector<PageId> pages = TestPages(24, 16);
  scheduler::BatchPlan plan{.form = Form::kPrefill, .total_rows = 24};
  plan.slices.push_back({.sequence = tokens, .first_position = 0, .row_count = 24, .pages = pages});
  for (const bool races : {false, true}) {
    const simt::ScopedOptions scope({.seed = 7, .check_races = races});
    RunnerOptions options = Options(true);
    options.max_batch_rows = plan.total_rows;
    const std::unique_ptr<Runner> runner = *CreateRunner(model_, options);
    scheduler::StepOutput output;
    Packer during(*runner, pages, 24), after(*runner, pages, 24);
    ASSERT_TRUE(runner->Run(plan, &during, &output).ok());
    ASSERT_TRUE(output.failures.empty());
    EXPECT_EQ(during.sums().size(), static_cast<size_t>(model_->config.layers));
    for (int32_t layer = 0; layer < model_->config.layers; ++layer) after.OnLayerWritten(layer);
    EXPECT_EQ(during.sums(), after.sums());
    EXPECT_EQ(during.messages(), after.messages());
  }
}

}  // namespace
}  // namespace baton::model
