// What a rank copies to its device's memory is its share and no more, a pass with it has the bits
// of the whole model, and experts come to places and go from them without a table ever seeing
// another expert's weights.

#include "model/rank_weights.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/expert_tables.h"
#include "model/memory_plan.h"
#include "model/rank_share.h"
#include "tests/model/model_harness.h"
#include "tests/transport/group_fabrics.h"

namespace baton::model {
namespace {

using scheduler::Form;
using ::testing::HasSubstr;

constexpr auto kAlways = [](int64_t) { return true; };

void ExpectSameBits(const std::vector<LogitRow>& a, const std::vector<LogitRow>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t r = 0; r < a.size(); ++r) {
    ASSERT_EQ(std::memcmp(a[r].data(), b[r].data(), a[r].size() * sizeof(float)), 0) << "row " << r;
  }
}

RunnerOptions Options(transport::Collectives* collectives, Split split) {
  RunnerOptions options;
  options.device.threads = 1;
  options.total_pages = 4;
  options.group = {.collectives = collectives, .split = split};
  options.upload_weights = true;
  return options;
}

template <typename Body>
void OnAllRanks(int32_t ranks, const Body& body) {
  transport::InprocGroupFabric fabric;
  transport::TestGroupOf group(&fabric, ranks);
  transport::OnRanks(ranks, [&](int rank) { body(rank, &group.at(rank)); });
}

// The experts in order, from `first` on.
scheduler::ActiveExperts Rotated(const ModelConfig& config, int32_t ranks, int32_t first) {
  const scheduler::ExpertTopology topology = TopologyOf(config, ranks);
  std::vector<int32_t> slots;
  for (int32_t layer = 0; layer < topology.layers; ++layer) {
    for (int32_t s = 0; s < topology.slots(); ++s) slots.push_back((s + first) % topology.experts);
  }
  return {.version = static_cast<uint64_t>(first + 1),
          .placement = std::make_shared<const scheduler::ExpertPlacement>(
              scheduler::ExpertPlacement::FromSlots(topology, slots).value())};
}

class RankWeightsTest : public testing::TestWithParam<std::string> {
 protected:
  TestSequence Sequence(int32_t length, uint64_t seed) const {
    return {RandomTokens(length, model_->config.vocab_size, seed), TestPages(length, 64)};
  }
  const std::shared_ptr<const LoadedModel> model_ = LoadTestModel(GetParam());
};

TEST_P(RankWeightsTest, RanksThatSplitHeadsHaveTheirRowsAlone) {
  const ModelConfig& config = model_->config;
  const TestSequence sequence = Sequence(24, 5);
  ModelHarness solo(model_, Options(nullptr, Split::kTensor));
  const std::vector<LogitRow> alone = solo.RunSequence(sequence, 20, 20);
  const int32_t ranks = std::min(config.heads, 3);
  std::vector<int64_t> heads(static_cast<size_t>(ranks));
  OnAllRanks(ranks, [&](int32_t rank, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kTensor));
    const std::vector<LogitRow> rows = harness.RunSequence(sequence, 20, 20);
    if (rank == 0) ExpectSameBits(rows, alone);
    const Weights& held = harness.weights().weights();
    EXPECT_EQ(held.head.absent(), rank > 0);
    const int64_t all = model_->weights.layers[0].attention.kv_b.w.dim(0);
    heads[static_cast<size_t>(rank)] =
        held.layers[0].attention.kv_b.w.dim(0) / (all / config.heads);
    EXPECT_TRUE(held.layers.back().moe.expert_gate.empty());
    EXPECT_LT(harness.weights().device_bytes(), solo.weights().device_bytes());
  });
  int64_t sum = 0;
  for (const int64_t of_rank : heads) sum += of_rank;
  EXPECT_EQ(sum, config.heads);
}

TEST_P(RankWeightsTest, RanksOfDecodeHaveTheExpertsOfTheirSlots) {
  ModelHarness solo(model_, Options(nullptr, Split::kExpert));
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    RunnerOptions options = Options(collectives, Split::kExpert);
    options.spare_experts = TopologyOf(model_->config, 2).slots_per_rank;
    ModelHarness harness(model_, options);
    const int64_t planned =
        RankWeights::DeviceBytes(*model_, options.group, rank, options.spare_experts).value();
    EXPECT_EQ(harness.weights().device_bytes(), planned);
    const TestSequence sequence = Sequence(16, 30 + static_cast<uint64_t>(rank));
    ModelHarness mine(model_, Options(nullptr, Split::kExpert));
    ExpectSameBits(harness.Forward(Form::kPrefill, {{&sequence, 0, 10}}),
                   mine.Forward(Form::kPrefill, {{&sequence, 0, 10}}));
    // Experts move, by one slot at a time: a round for each layer has the room of the slots.
    for (int32_t step = 0; step < 4; ++step) {
      harness.Install(Rotated(model_->config, 2, step + 1));
      const int32_t begin = 10 + step;
      ExpectSameBits(harness.Forward(Form::kDecode, {{&sequence, begin, begin + 1}}),
                     mine.Forward(Form::kDecode, {{&sequence, begin, begin + 1}}));
    }
  });
}

// What the tests of moving experts rest on: weights of another expert in a slot give other logits.
TEST_P(RankWeightsTest, AnotherExpertsWeightsInASlotShow) {
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kExpert));
    const TestSequence sequence = Sequence(16, 7);
    const auto forward = [&] { return harness.Forward(Form::kPrefill, {{&sequence, 0, 16}}); };
    const std::vector<LogitRow> right = forward();
    ExpectSameBits(forward(), right);
    if (rank == 0) {
      // All experts of the rank's first layer become the first one.
      ExpertPlaces::Lease lease;
      const ExpertWeights first = harness.weights().Expert(0, 0, lease).value();
      for (int32_t e = 1; e < TopologyOf(model_->config, 2).slots_per_rank; ++e) {
        const ExpertWeights other = harness.weights().Expert(0, e, lease).value();
        ASSERT_TRUE(harness.device()
                        .CopyToDevice(other.down.w.data, first.down.w.data, first.down.w.bytes())
                        .ok());
      }
    }
    const std::vector<LogitRow> wrong = forward();
    size_t same = 0;
    for (size_t r = 0; r < right.size(); ++r) same += right[r] == wrong[r] ? 1 : 0;
    EXPECT_LT(same, right.size());
  });
}

TEST_P(RankWeightsTest, ALiveRankRefusesAPlacementWhoseExpertsItLacks) {
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kExpert));
    const ModelConfig& config = model_->config;
    scheduler::ActiveExperts moved = Rotated(config, 2, config.routed_experts / 2);
    const absl::Status status = harness.decoder().InstallExperts(moved);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("must be copied there first"));
    EXPECT_EQ(harness.decoder().experts_version(), 0u);
    // Rows are not sent to one that is masked, so it may lack them. All others would serve.
    (void)rank;
    scheduler::ActiveExperts masked{
        .version = 3,
        .placement = std::make_shared<const scheduler::ExpertPlacement>(
            scheduler::ExpertPlacement::InOrder(TopologyOf(config, 2, config.routed_experts))
                .value()),
        .live = {rank == 1, rank == 0}};
    EXPECT_TRUE(harness.decoder().InstallExperts(masked).ok());
  });
}

// Whole rows lie between two experts' matrices, wherever they are: layers of a tensor, for kernels
// that know such.
void ExpectRowsApart(const kernels::Weight& a, const kernels::Weight& b) {
  const int64_t row = a.w.strides[0] * static_cast<int64_t>(kernels::DTypeBytes(a.w.dtype));
  const int64_t distance = b.w.as<const char>() - a.w.as<const char>();
  EXPECT_NE(distance, 0);
  EXPECT_EQ(distance % row, 0) << row;
}

TEST_P(RankWeightsTest, ExpertsLieWholeRowsApart) {
  ModelHarness solo(model_, Options(nullptr, Split::kExpert));
  const MoeWeights& held = solo.weights().weights().layers.back().moe;
  for (const auto* experts : {&held.expert_gate, &held.expert_up, &held.expert_down}) {
    if (experts->empty() || experts->front().w.bytes() % kRoomUnit != 0) continue;
    for (size_t e = 1; e < experts->size(); ++e) ExpectRowsApart(experts->front(), experts->at(e));
  }
  // To round its small places up to its odd rows would make them a third larger.
  if (GetParam() == "fp8-ragged-yarn") {
    EXPECT_EQ(ExpertPlaces::PlaceBytes(model_->config, model_->weights), 35328);
    return;
  }
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kExpert));
    const int32_t slots = TopologyOf(model_->config, 2).slots_per_rank;
    ExpertPlaces::Lease lease;
    const ExpertWeights first = harness.weights().Expert(0, rank * slots, lease).value();
    for (int32_t e = 1; e < slots; ++e) {
      const ExpertWeights other = harness.weights().Expert(0, rank * slots + e, lease).value();
      ExpectRowsApart(first.gate, other.gate);
      ExpectRowsApart(first.up, other.up);
      ExpectRowsApart(first.down, other.down);
    }
  });
}

TEST_P(RankWeightsTest, APlanHasTheRankWithTheMost) {
  RunnerOptions options = Options(nullptr, Split::kTensor);
  const int64_t whole = PlanMemory(*model_, options).device_weight_bytes;
  options.group.planned_ranks = 2;
  const MemoryPlan shared = PlanMemory(*model_, options);
  EXPECT_LT(shared.device_weight_bytes, whole);
  EXPECT_GT(2 * shared.device_weight_bytes, whole);  // what is not split is on both
  EXPECT_EQ(shared.device_bytes(), shared.device_weight_bytes + shared.private_bytes());
  options.upload_weights = false;
  EXPECT_EQ(PlanMemory(*model_, options).device_weight_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, RankWeightsTest, testing::ValuesIn(TestModelNames()),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

// --- places ---------------------------------------------------------------------------------

class ExpertPlacesTest : public testing::Test {
 protected:
  ExpertPlacesTest()
      : places_(ExpertPlaces::Create(*device_, model_->config, model_->weights, 3).value()) {}

  absl::Status Copy(int32_t expert) { return places_->Copy(*device_, 0, expert, kAlways); }
  bool IsThere(int32_t expert) {
    ExpertPlaces::Lease lease;
    const auto found = places_->Hold(0, expert, lease);
    if (!found.ok()) return false;
    const ExpertWeights source = ExpertOf(model_->config, model_->weights, 0, expert);
    EXPECT_NE(found->down.w.data, source.down.w.data);
    for (const auto& [held, mapped] :
         {std::pair(found->gate, source.gate), std::pair(found->up, source.up),
          std::pair(found->down, source.down)}) {
      EXPECT_EQ(std::memcmp(held.w.data, mapped.w.data, mapped.w.bytes()), 0);
      EXPECT_EQ(held.scales.absent(), mapped.scales.absent());
      if (mapped.scales.absent()) continue;
      EXPECT_EQ(std::memcmp(held.scales.data, mapped.scales.data, mapped.scales.bytes()), 0);
    }
    return true;
  }

  const std::shared_ptr<const LoadedModel> model_ = LoadTestModel("fp8-ragged-yarn");
  const std::unique_ptr<kernels::Device> device_ = kernels::CreateDevice({.threads = 1}).value();
  const std::unique_ptr<ExpertPlaces> places_;
};

TEST_F(ExpertPlacesTest, WhatIsKeptStaysAndTheOldestOfTheRestGoes) {
  ExpertPlaces::Lease lease;
  ASSERT_TRUE(Copy(0).ok());
  ASSERT_TRUE(Copy(1).ok());
  ASSERT_TRUE(Copy(2).ok());
  const absl::Status full = Copy(3);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("all 3 places for experts"));
  ASSERT_TRUE(Copy(1).ok());  // it is there

  ASSERT_TRUE(places_->Hold(0, 0, lease).ok());
  places_->ForgetCopies();
  for (const int32_t e : {0, 1, 2}) EXPECT_TRUE(IsThere(e)) << e;  // nobody needed their places
  ASSERT_TRUE(Copy(3).ok());
  ASSERT_TRUE(Copy(4).ok());
  for (const int32_t e : {0, 3, 4}) EXPECT_TRUE(IsThere(e)) << e;
  for (const int32_t e : {1, 2}) EXPECT_FALSE(IsThere(e)) << e;
  EXPECT_FALSE(Copy(5).ok());

  lease = ExpertPlaces::Lease();
  ASSERT_TRUE(Copy(5).ok());
  EXPECT_FALSE(IsThere(0));
}

TEST_F(ExpertPlacesTest, ACopyThatEndsEarlyIsNowhere) {
  for (const int32_t e : {0, 1, 2}) ASSERT_TRUE(Copy(e).ok());
  places_->ForgetCopies();
  int pieces = 0;
  const absl::Status ended = places_->Copy(*device_, 0, 3, [&](int64_t) { return ++pieces < 3; });
  EXPECT_EQ(ended.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(IsThere(3));
  ASSERT_TRUE(Copy(3).ok());
  EXPECT_TRUE(IsThere(3));
  ASSERT_TRUE(Copy(4).ok() && Copy(5).ok());
  EXPECT_FALSE(Copy(0).ok());
}

}  // namespace
}  // namespace baton::model
