// What the model computes for a row never depends on the company it is in: not on the batch, the
// chunking, the threads, the page ids, nor (in decode form) on whether rows come one by one or
// together. Compared bit for bit.

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/model_harness.h"

namespace baton::model {
namespace {

using scheduler::Form;

constexpr int32_t kPrompt = 130;  // not a multiple of any block size
constexpr int32_t kLength = 142;  // the rest in decode form

struct Setup {
  std::string model;
  kernels::KvFormat kv_format;
  bool fp8_activations = false;
};

RunnerOptions Options(const Setup& setup, int threads = 1) {
  RunnerOptions options;
  options.device.threads = threads;
  options.kv_format = setup.kv_format;
  options.fp8_activations = setup.fp8_activations;
  options.total_pages = 64;
  return options;
}

// EXPECT_EQ on vectors of floats would let -0 equal 0 and print thousands of numbers.
void ExpectSameBits(const std::vector<LogitRow>& a, const std::vector<LogitRow>& b, size_t begin,
                    size_t end) {
  ASSERT_GE(a.size(), end);
  ASSERT_GE(b.size(), end);
  for (size_t r = begin; r < end; ++r) {
    ASSERT_EQ(a[r].size(), b[r].size());
    ASSERT_EQ(std::memcmp(a[r].data(), b[r].data(), a[r].size() * sizeof(float)), 0) << "row " << r;
  }
}

class RowInvarianceTest : public testing::TestWithParam<Setup> {
 protected:
  RowInvarianceTest()
      : model_(LoadTestModel(GetParam().model)), harness_(model_, Options(GetParam())) {
    sequence_.tokens = RandomTokens(kLength, model_->config.vocab_size, 3);
    sequence_.pages = TestPages(kLength, 64);
    alone_ = harness_.RunSequence(sequence_, kPrompt, kPrompt);
  }

  const std::shared_ptr<const LoadedModel> model_;
  ModelHarness harness_;
  TestSequence sequence_;
  std::vector<LogitRow> alone_;  // the whole prompt in one pass, then single steps, one thread
};

TEST_P(RowInvarianceTest, ChunkSizes) {
  for (const int32_t chunk : {1, 7, 63, 64, 65, 129}) {
    SCOPED_TRACE(chunk);
    ModelHarness fresh(model_, Options(GetParam()));
    ExpectSameBits(fresh.RunSequence(sequence_, kPrompt, chunk), alone_, 0, kLength);
  }
}

TEST_P(RowInvarianceTest, Threads) {
  ModelHarness two(model_, Options(GetParam(), /*threads=*/2));
  ExpectSameBits(two.RunSequence(sequence_, kPrompt, kPrompt), alone_, 0, kLength);
  ModelHarness two_chunked(model_, Options(GetParam(), /*threads=*/2));
  ExpectSameBits(two_chunked.RunSequence(sequence_, kPrompt, 50), alone_, 0, kLength);
}

TEST_P(RowInvarianceTest, PageIds) {
  ModelHarness fresh(model_, Options(GetParam()));
  TestSequence elsewhere = sequence_;
  elsewhere.pages = {PageId(41), PageId(7), PageId(63)};
  ExpectSameBits(fresh.RunSequence(elsewhere, kPrompt, kPrompt), alone_, 0, kLength);
}

TEST_P(RowInvarianceTest, PrefillBatches) {
  for (const int32_t companions : {1, 2, 6, 32}) {
    SCOPED_TRACE(companions);
    ModelHarness fresh(model_, Options(GetParam(), /*threads=*/1 + companions % 2));
    std::vector<TestSequence> others;
    std::vector<TestSlice> slices;
    for (int32_t i = 0; i < companions; ++i) {
      const int32_t length = 1 + 5 * i % 11;
      others.push_back({RandomTokens(length, model_->config.vocab_size, 100 + i),
                        TestPages(length, 64, static_cast<uint32_t>(10 + i))});
    }
    const size_t place = others.size() / 2;
    size_t rows_before = 0;
    for (size_t i = 0; i <= others.size(); ++i) {
      if (i == place) slices.push_back({&sequence_, 0, kPrompt});
      if (i == others.size()) break;
      const int32_t length = static_cast<int32_t>(others[i].tokens.size());
      slices.push_back({&others[i], 0, length});
      if (i < place) rows_before += others[i].tokens.size();
    }
    std::vector<LogitRow> rows = fresh.Forward(Form::kPrefill, slices);
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(rows_before));
    ExpectSameBits(rows, alone_, 0, kPrompt);
  }
}

TEST_P(RowInvarianceTest, DecodeBatches) {
  // Two threads against the one of alone_. 32 companions with contexts of all lengths, prefilled
  // once; then batches of 2 to 33 rows, the sequence's row moving.
  constexpr int32_t kCompanions = 32;
  ModelHarness two(model_, Options(GetParam(), /*threads=*/2));
  two.RunSequence(sequence_, kPrompt, 64);
  std::vector<TestSequence> others;
  for (int32_t i = 0; i < kCompanions; ++i) {
    const int32_t length = 2 + (7 * i) % 60;
    others.push_back({RandomTokens(length, model_->config.vocab_size, 200 + i),
                      TestPages(length, 64, static_cast<uint32_t>(10 + i))});
    two.Forward(Form::kPrefill, {{&others.back(), 0, length - 1}});
  }
  for (int32_t batch = 2; batch <= kCompanions + 1; ++batch) {
    SCOPED_TRACE(batch);
    const int32_t place = (5 * batch) % batch;
    const int32_t position = kPrompt + batch % (kLength - kPrompt);
    std::vector<TestSlice> slices;
    for (int32_t i = 0; i < batch - 1; ++i) {
      const int32_t length = static_cast<int32_t>(others[i].tokens.size());
      slices.push_back({&others[i], length - 1, length});
    }
    slices.insert(slices.begin() + place, {&sequence_, position, position + 1});
    const std::vector<LogitRow> rows = two.Forward(Form::kDecode, slices);
    ASSERT_EQ(std::memcmp(rows[place].data(), alone_[position].data(),
                          rows[place].size() * sizeof(float)),
              0);
  }
}

TEST_P(RowInvarianceTest, ReplayInOnePassEqualsSingleSteps) {
  ModelHarness fresh(model_, Options(GetParam()));
  fresh.Forward(Form::kPrefill, {{&sequence_, 0, kPrompt}});
  const std::vector<LogitRow> replayed =
      fresh.Forward(Form::kDecode, {{&sequence_, kPrompt, kLength}});
  const std::vector<LogitRow> stepped(alone_.begin() + kPrompt, alone_.end());
  ExpectSameBits(replayed, stepped, 0, kLength - kPrompt);
}

// Rows without logits stop in the last layer: the sampled ones have the bits that they have when
// all rows go on, in both forms, and so has what is computed from the latents that were left.
TEST_P(RowInvarianceTest, SampledRowsAlone) {
  for (const int threads : {1, 2}) {
    SCOPED_TRACE(threads);
    ModelHarness all(model_, Options(GetParam())), sampled(model_, Options(GetParam(), threads));
    std::vector<TestSequence> sequences;
    for (int32_t i = 0; i < 5; ++i) {
      const int32_t length = 20 + 17 * i;
      sequences.push_back({RandomTokens(length + 4, model_->config.vocab_size, 300 + i),
                           TestPages(length + 4, 64, static_cast<uint32_t>(2 * i))});
    }
    // A chunk in the middle of a prompt alone, then the rest with prompts that end and that do not.
    const std::vector<TestSlice> first = {{&sequences[4], 0, 30}};
    std::vector<TestSlice> second = {{&sequences[0], 0, 20, true},
                                     {&sequences[1], 0, 25},
                                     {&sequences[2], 0, 54, true},
                                     {&sequences[4], 30, 88, true}};
    EXPECT_EQ(sampled.SampledLogits(Form::kPrefill, first).size(), 0u);
    all.Forward(Form::kPrefill, first);
    const std::vector<LogitRow> prompt = all.Forward(Form::kPrefill, second);
    ExpectSameBits(sampled.SampledLogits(Form::kPrefill, second),
                   {prompt[19], prompt[98], prompt[156]}, 0, 3);
    // A replay of several rows, one of which is sampled, one that is not, and single steps.
    const std::vector<TestSlice> step = {
        {&sequences[0], 20, 24, true}, {&sequences[2], 54, 57}, {&sequences[4], 88, 89, true}};
    const std::vector<LogitRow> decoded = all.Forward(Form::kDecode, step);
    ExpectSameBits(sampled.SampledLogits(Form::kDecode, step), {decoded[3], decoded[7]}, 0, 2);
  }
}

// The hand-off: latents packed from one rank's pages and unpacked into other page ids of another
// rank.
TEST_P(RowInvarianceTest, PagesMovedToAnotherRank) {
  ModelHarness other(model_, Options(GetParam()));
  TestSequence moved = sequence_;
  moved.pages = {PageId(30), PageId(3), PageId(12)};
  std::vector<std::byte> message(static_cast<size_t>(kPrompt) * harness_.cache().entry_bytes());
  for (int32_t layer = 0; layer < harness_.cache().layers(); ++layer) {
    const uint64_t checksum = harness_.cache().Pack(layer, sequence_.pages, kPrompt, message);
    EXPECT_EQ(other.cache().Unpack(layer, moved.pages, kPrompt, message, checksum ^ 1).code(),
              absl::StatusCode::kDataLoss);
    ASSERT_TRUE(other.cache().Unpack(layer, moved.pages, kPrompt, message, checksum).ok());
  }
  const std::vector<LogitRow> rows = other.Forward(Form::kDecode, {{&moved, kPrompt, kLength}});
  const std::vector<LogitRow> here(alone_.begin() + kPrompt, alone_.end());
  ExpectSameBits(rows, here, 0, kLength - kPrompt);
}

INSTANTIATE_TEST_SUITE_P(Models, RowInvarianceTest,
                         testing::Values(Setup{"bf16-lora-yarn", kernels::KvFormat::kBF16},
                                         Setup{"fp8-ragged-yarn", kernels::KvFormat::kFP8},
                                         Setup{"fp8-sharded-mtp", kernels::KvFormat::kBF16},
                                         Setup{"fp8-ragged-yarn", kernels::KvFormat::kBF16, true}),
                         [](const auto& info) {
                           std::string name =
                               info.param.model + "_" + kernels::KvFormatName(info.param.kv_format);
                           if (info.param.fp8_activations) name += "_fp8_rows";
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace baton::model
