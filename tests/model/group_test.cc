// A pass that several ranks share has the bits of a pass that one rank runs: for any number of
// ranks, any placement of the experts, and whatever the other ranks have to do.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "model/expert_tables.h"
#include "scheduler/expert_placement.h"
#include "tests/model/model_harness.h"
#include "tests/transport/group_fabrics.h"

namespace baton::model {
namespace {

using scheduler::Form;

constexpr int32_t kPrompt = 70;
constexpr int32_t kLength = 76;  // the rest in decode form

void ExpectSameBits(const std::vector<LogitRow>& a, const std::vector<LogitRow>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t r = 0; r < a.size(); ++r) {
    ASSERT_EQ(std::memcmp(a[r].data(), b[r].data(), a[r].size() * sizeof(float)), 0) << "row " << r;
  }
}

// Not the same bits, but the same model. Rounding to 3 bits of mantissa moves each input of an
// expert by 2^-4 / sqrt(3) of itself at most (root mean square over a binade); gate and up
// projections both see it, each MoE layer adds its own, and what a layer adds is no more than the
// residual stream.
void ExpectClose(const std::vector<LogitRow>& rounded, const std::vector<LogitRow>& exact,
                 int32_t moe_layers) {
  double error = 0, norm = 0;
  for (size_t r = 0; r < exact.size(); ++r) {
    for (size_t i = 0; i < exact[r].size(); ++i) {
      const double difference = double{rounded[r][i]} - double{exact[r][i]};
      error += difference * difference;
      norm += double{exact[r][i]} * double{exact[r][i]};
    }
  }
  EXPECT_GT(error, 0.0);
  EXPECT_LT(std::sqrt(error / norm), 0x1p-4 / std::sqrt(3.0) * std::sqrt(2.0 * moe_layers));
}

RunnerOptions Options(transport::Collectives* collectives, Split split) {
  RunnerOptions options;
  options.device.threads = 1;
  options.total_pages = 16;
  options.group = {.collectives = collectives, .split = split};
  return options;
}

std::shared_ptr<const scheduler::ExpertPlacement> Shared(
    const scheduler::ExpertTopology& topology) {
  return std::make_shared<const scheduler::ExpertPlacement>(
      scheduler::ExpertPlacement::InOrder(topology).value());
}

// Every expert somewhere, more replicas at random.
scheduler::ActiveExperts RandomPlacement(const ModelConfig& config, int32_t ranks, int32_t extra,
                                         uint64_t seed) {
  Rng rng(seed);
  scheduler::ExpertTopology topology = TopologyOf(config, ranks);
  topology.slots_per_rank = std::min(topology.slots_per_rank + extra, topology.experts);
  const size_t experts = static_cast<size_t>(topology.experts);
  std::vector<int32_t> slots;
  for (int32_t i = 0; i < topology.layers; ++i) {
    std::vector<int32_t> layer(static_cast<size_t>(topology.slots()));
    for (size_t s = 0; s < layer.size(); ++s) {
      layer[s] = static_cast<int32_t>(s < experts ? s : rng.Below(experts));
    }
    for (size_t s = layer.size() - 1; s > 0; --s) std::swap(layer[s], layer[rng.Below(s + 1)]);
    slots.insert(slots.end(), layer.begin(), layer.end());
  }
  const auto placement = scheduler::ExpertPlacement::FromSlots(topology, slots);
  EXPECT_TRUE(placement.ok()) << placement.status();
  return {.version = seed,
          .placement = std::make_shared<const scheduler::ExpertPlacement>(*placement)};
}

// Model, and what the ranks talk over.
using Setup = std::tuple<std::string, bool>;

class GroupTest : public testing::TestWithParam<Setup> {
 protected:
  GroupTest() : model_(LoadTestModel(std::get<0>(GetParam()))) {
    if (std::get<1>(GetParam())) {
      fabric_ = std::make_unique<transport::UcxGroupFabric>("sysv,tcp");
    } else {
      fabric_ = std::make_unique<transport::InprocGroupFabric>();
    }
  }

  // Runs body(rank, collectives) on a thread for each rank.
  template <typename Body>
  void OnAllRanks(int32_t ranks, const Body& body) {
    transport::TestGroupOf group(fabric_.get(), ranks);
    transport::OnRanks(ranks, [&](int rank) { body(rank, &group.at(rank)); });
  }

  TestSequence Sequence(int32_t length, uint64_t seed) const {
    return {RandomTokens(length, model_->config.vocab_size, seed), TestPages(length, 64)};
  }
  std::vector<LogitRow> Alone(const TestSequence& sequence) const {
    ModelHarness harness(model_, Options(nullptr, Split::kTensor));
    return harness.RunSequence(sequence, kPrompt, kPrompt);
  }

  const std::shared_ptr<const LoadedModel> model_;
  std::unique_ptr<transport::GroupFabric> fabric_;
};

TEST_P(GroupTest, TensorParallel) {
  const TestSequence sequence = Sequence(kLength, 5);
  const std::vector<LogitRow> alone = Alone(sequence);
  for (int32_t ranks = 1; ranks <= model_->config.heads; ++ranks) {
    SCOPED_TRACE(ranks);
    std::vector<LogitRow> rows;
    OnAllRanks(ranks, [&](int32_t rank, transport::Collectives* collectives) {
      ModelHarness harness(model_, Options(collectives, Split::kTensor));
      if (ranks > 1) {
        const absl::Status status =
            harness.decoder().InstallExperts(RandomPlacement(model_->config, ranks, ranks % 3, 7));
        EXPECT_TRUE(status.ok()) << status;
      }
      // Fewer rows than ranks, one row, a whole chunk.
      std::vector<LogitRow> mine = harness.RunSequence(sequence, kPrompt, ranks == 2 ? 33 : 67);
      if (rank == 0) {
        rows = std::move(mine);
      } else {
        EXPECT_TRUE(mine.empty());
      }
    });
    ExpectSameBits(rows, alone);
  }
}

// Rank r has a sequence of its own length and no work at all in some steps; experts move every few
// steps.
TEST_P(GroupTest, ExpertParallel) {
  constexpr int32_t kSteps = 12;
  for (const int32_t ranks : {1, 2, 3, 8}) {
    SCOPED_TRACE(ranks);
    OnAllRanks(ranks, [&](int32_t rank, transport::Collectives* collectives) {
      const TestSequence sequence = Sequence(40, 100 + static_cast<uint64_t>(rank));
      ModelHarness solo(model_, Options(nullptr, Split::kExpert));
      ModelHarness harness(model_, Options(collectives, Split::kExpert));
      int32_t position = 0;
      for (int32_t step = 0; step < kSteps; ++step) {
        if (step % 3 == 1) {
          const absl::Status status = harness.decoder().InstallExperts(
              RandomPlacement(model_->config, ranks, step % 4, static_cast<uint64_t>(step)));
          EXPECT_TRUE(status.ok()) << status;
        }
        const bool idle = (step + rank) % 4 == 3;
        const int32_t rows = idle ? 0 : 1 + (step * 5 + rank) % 4;
        std::vector<TestSlice> slices;
        if (!idle) slices.push_back({&sequence, position, position + rows});
        const Form form = step < 4 ? Form::kPrefill : Form::kDecode;
        const std::vector<LogitRow> shared = harness.Forward(form, slices);
        ExpectSameBits(shared, solo.Forward(form, slices));
        position += rows;
      }
    });
  }
}

// Slices of several sequences go in two parts: of the same number of rows on no rank, of none on
// some, and with rows that want no logits.
TEST_P(GroupTest, TwoPartsOfAPassTakeTurns) {
  constexpr int32_t kRanks = 3;
  constexpr int32_t kSequences = 4;
  constexpr int32_t kPagesEach = 2;
  OnAllRanks(kRanks, [&](int32_t rank, transport::Collectives* collectives) {
    std::vector<TestSequence> sequences;
    for (int32_t i = 0; i < kSequences; ++i) {
      sequences.push_back(Sequence(30 + 10 * i, static_cast<uint64_t>(10 * rank + i)));
      sequences.back().pages = TestPages(30 + 10 * i, 64, static_cast<uint32_t>(kPagesEach * i));
    }
    RunnerOptions overlapped = Options(collectives, Split::kExpert);
    overlapped.group.overlap_rows = 1;
    ModelHarness solo(model_, Options(nullptr, Split::kExpert));
    ModelHarness harness(model_, overlapped);
    std::vector<int32_t> position(kSequences, 0);
    for (int32_t step = 0; step < 6; ++step) {
      // 0 to 4 sequences; the first has several rows.
      std::vector<TestSlice> slices;
      for (size_t i = 0; i < static_cast<size_t>((step + rank) % (kSequences + 1)); ++i) {
        const int32_t begin = position[i];
        position[i] += i == 0 || step == 0 ? 3 : 1;
        slices.push_back({&sequences[i], begin, position[i], i != 1});
      }
      const Form form = step < 2 ? Form::kPrefill : Form::kDecode;
      harness.set_parts(step % 3 == 2 ? 1 : 2);
      const auto rows_of = [&](ModelHarness& from) {
        return step % 2 == 0 ? from.Forward(form, slices) : from.SampledLogits(form, slices);
      };
      ExpectSameBits(rows_of(harness), rows_of(solo));
    }
  });
}

// Rows are rounded on their way to experts, to this rank's own ones too: a pass of one rank that
// rounds has the bits of all.
TEST_P(GroupTest, Fp8DispatchHasTheSameBitsForAnyNumberOfRanks) {
  const TestSequence sequence = Sequence(kLength, 8);
  const std::vector<LogitRow> exact = Alone(sequence);
  std::vector<LogitRow> first;
  for (const int32_t ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    OnAllRanks(ranks, [&](int32_t rank, transport::Collectives* collectives) {
      RunnerOptions options = Options(collectives, Split::kExpert);
      options.group.dispatch = Dispatch::kFp8;
      ModelHarness harness(model_, options);
      const std::vector<LogitRow> rows = harness.RunSequence(sequence, kPrompt, 33);
      if (rank > 0) return;
      if (first.empty()) first = rows;
      ExpectSameBits(rows, first);
    });
  }
  ExpectClose(first, exact, model_->config.layers - model_->config.dense_layers);
}

// Rows that meet FP8 weights are rounded once, wherever they are: groups of any size and split have
// the bits of one rank without a group, whatever their dispatch says. Models without FP8 weights
// round nothing.
TEST_P(GroupTest, Fp8ActivationsHaveTheSameBitsForAnyNumberOfRanks) {
  const TestSequence sequence = Sequence(kLength, 9);
  const std::vector<LogitRow> exact = Alone(sequence);
  RunnerOptions alone_options = Options(nullptr, Split::kTensor);
  alone_options.fp8_activations = true;
  const std::vector<LogitRow> alone =
      ModelHarness(model_, alone_options).RunSequence(sequence, kPrompt, kPrompt);
  for (const int32_t ranks : {1, 2}) {
    for (const Split split : {Split::kTensor, Split::kExpert}) {
      SCOPED_TRACE(ranks);
      OnAllRanks(ranks, [&](int32_t rank, transport::Collectives* collectives) {
        RunnerOptions options = Options(collectives, split);
        options.fp8_activations = true;
        ModelHarness harness(model_, options);
        const std::vector<LogitRow> rows = harness.RunSequence(sequence, kPrompt, 33);
        if (rank == 0) ExpectSameBits(rows, alone);
      });
    }
  }
  if (model_->config.weight_format != WeightFormat::kFp8Block) return ExpectSameBits(alone, exact);
  // At most seven inputs of a layer are rounded.
  ExpectClose(alone, exact, 4 * model_->config.layers);
}

// A rank that is not live computes for its own rows still, but gets no rows of others.
TEST_P(GroupTest, ExpertsOfAMaskedRankAreServedByReplicas) {
  constexpr int32_t kRanks = 3;
  OnAllRanks(kRanks, [&](int32_t rank, transport::Collectives* collectives) {
    const TestSequence sequence = Sequence(20, 50 + static_cast<uint64_t>(rank));
    ModelHarness solo(model_, Options(nullptr, Split::kExpert));
    ModelHarness harness(model_, Options(collectives, Split::kExpert));
    const int32_t experts = model_->config.routed_experts;
    scheduler::ActiveExperts full{.version = 1,
                                  .placement = Shared(TopologyOf(model_->config, kRanks, experts)),
                                  .live = {true, false, true}};
    const absl::Status status = harness.decoder().InstallExperts(full);
    EXPECT_TRUE(status.ok()) << status;
    ExpectSameBits(harness.Forward(Form::kPrefill, {{&sequence, 0, 20}}),
                   solo.Forward(Form::kPrefill, {{&sequence, 0, 20}}));
  });
}

TEST_P(GroupTest, RefusesPlacementsThatDoNotFit) {
  OnAllRanks(2, [&](int32_t, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kExpert));
    const scheduler::ExpertTopology topology = TopologyOf(model_->config, 2);
    scheduler::ActiveExperts bad{
        .version = 9, .placement = Shared(topology), .live = {false, true}};
    EXPECT_EQ(harness.decoder().InstallExperts(bad).code(), absl::StatusCode::kFailedPrecondition);
    bad.live = {true};
    EXPECT_EQ(harness.decoder().InstallExperts(bad).message(),
              "the placement's list of live ranks has 1 entries, expected 2");
    bad = {.version = 9, .placement = Shared(TopologyOf(model_->config, 3))};
    EXPECT_EQ(harness.decoder().InstallExperts(bad).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(harness.decoder().experts_version(), 0u);
  });
}

std::string SetupName(const testing::TestParamInfo<Setup>& info) {
  std::string name = std::get<0>(info.param);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Inproc, GroupTest,
                         testing::Combine(testing::ValuesIn(TestModelNames()),
                                          testing::Values(false)),
                         SetupName);
INSTANTIATE_TEST_SUITE_P(Ucx, GroupTest,
                         testing::Combine(testing::Values("bf16-groups-mtp", "fp8-ragged-yarn"),
                                          testing::Values(true)),
                         SetupName);

}  // namespace
}  // namespace baton::model
