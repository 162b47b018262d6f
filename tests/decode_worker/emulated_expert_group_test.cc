// Groups of ranks with a GPU each, emulated, over the emulated NCCL: experts come from the
// checkpoint to a GPU's places while passes run there, tables change from one step to the next, and
// ranks die and come back. Every request keeps the bits that one GPU gives alone, so a slot with
// the wrong weights, or with a copy that has not come, would show; and a rank's GPU holds its
// share.

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "decode_worker/expert_group.h"
#include "gtest/gtest.h"
#include "model/rank_weights.h"
#include "tests/decode_worker/expert_cluster.h"
#include "tests/model/model_harness.h"
#include "tests/simt/options.h"
#include "tests/transport/nccl_fabric.h"

namespace baton::decode_worker {
namespace {

using scheduler::RebalanceEnd;

constexpr int kGpus = 3;

struct Schedule {
  uint64_t seed = 0;
  bool check_races = false;
};
void PrintTo(const Schedule& schedule, std::ostream* out) { *out << schedule.seed; }

class EmulatedExpertGroupTest : public testing::TestWithParam<Schedule> {
 protected:
  EmulatedExpertGroupTest()
      : options_(
            {.seed = GetParam().seed, .check_races = GetParam().check_races, .devices = kGpus}) {}
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }

  // Ranks with GPUs of their own, patient, as the emulation is slow.
  void Start(ExpertCluster::Options options) {
    auto fabric = std::make_unique<transport::NcclGroupFabric>(kGpus, /*staged=*/false);
    options.device = [gpus = fabric.get()](int32_t rank, model::RunnerOptions& runner) {
      runner.device.backend = kernels::BackendKind::kCuda;
      if (rank < 0) return;
      runner.device.gpu = gpus->gpu(rank).gpu();
      runner.device.queue = gpus->gpu(rank).stream();
    };
    options.chats = 1;
    options.group.timeout = Duration::Seconds(60);
    cluster_ = std::make_unique<ExpertCluster>(options, std::move(fabric));
  }

  const simt::ScopedOptions options_;
  std::unique_ptr<ExpertCluster> cluster_;
};

TEST_P(EmulatedExpertGroupTest, TokensKeepTheirBitsWhileExpertsMove) {
  ExpertCluster::Options options;
  options.ranks = 2;
  options.redundant_experts = 2;
  options.group.steps_per_count = 2;
  options.group.half_life_steps = 1;
  options.group.rebalance.interval = Duration::Millis(1);
  options.group.rebalance.min_gain = 0.01;
  options.group.rebalance.max_staged = 2;
  options.group.rebalance.keep_slack = 0;
  Start(options);
  // Passes go on while a copy is held.
  cluster_->runner(1).Hold();
  cluster_->Await("a copy", [&] { return cluster_->runner(1).waiting() > 0; });
  cluster_->AwaitPasses(4);
  cluster_->runner(1).Release();
  cluster_->Await("placements that change", [&] {
    const ExpertsReport report = cluster_->report(0);
    return report.switches >= 4 && report.copies >= 6 && cluster_->runs(0) >= 2;
  });
  for (int32_t r = 0; r < options.ranks; ++r) {
    EXPECT_TRUE(cluster_->health(r).ok()) << cluster_->health(r);
  }
  cluster_->Stop();
}

TEST_P(EmulatedExpertGroupTest, OthersGoOnWithoutARankAndTakeItBackIn) {
  Start(ExpertCluster::Covered(3, 16));
  ExpertCluster& cluster = *cluster_;
  for (int32_t r = 0; r < 3; ++r) {
    cluster.Await("the group", [&] { return cluster.view(r) != nullptr; });
  }
  const auto await_masked = [&](int32_t seen_by, bool masked) {
    cluster.Await(masked ? "the rank to be masked" : "the rank to be taken in", [&] {
      return cluster.view(seen_by) && cluster.view(seen_by)->active.live[2] == !masked;
    });
  };
  cluster.AwaitPasses(2);
  cluster.KillInPass({2});
  for (const int32_t r : {0, 1}) await_masked(r, true);
  cluster.AwaitPasses(4);
  EXPECT_EQ(cluster.view(0)->uncovered, 0);
  cluster.Restart(2);
  for (int32_t r = 0; r < 3; ++r) await_masked(r, false);
  cluster.AwaitPasses(4);
  for (int32_t r = 0; r < 3; ++r) EXPECT_TRUE(cluster.health(r).ok()) << cluster.health(r);
  cluster.Stop();
}

// The least of a GPU's memory that a rank can be made with is what its plan says.
TEST(EmulatedRankWeightsTest, AGpuHoldsTheShareOfItsRankAlone) {
  const auto model = model::LoadTestModel("fp8-ragged-yarn");
  const simt::ScopedOptions defaults({.devices = kGpus});
  kernels::DeviceOptions on_gpu;
  on_gpu.backend = kernels::BackendKind::kCuda;
  const auto device = kernels::CreateDevice(on_gpu).value();
  const auto taken = [] {
    size_t free = 0, total = 0;
    EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
    return static_cast<int64_t>(total - free);
  };
  const auto make = [&](const model::RankGroup& group) {
    return model::RankWeights::Create(*device, *model, group,
                                      {.uploads = true, .spare_experts = 2, .progress = {}});
  };
  int64_t whole = 0;
  for (const model::Split split : {model::Split::kTensor, model::Split::kExpert}) {
    for (const int32_t ranks : {1, 2}) {
      const model::RankGroup group{.split = split, .planned_ranks = ranks};
      const int64_t planned =
          model::RankWeights::DeviceBytes(*model, group, group.rank(), 2).value();
      const int64_t before = taken();
      {
        const auto weights = make(group).value();
        EXPECT_EQ(taken() - before, planned);
      }
      EXPECT_EQ(taken(), before);
      whole = ranks == 1 ? planned : whole;
      EXPECT_TRUE(ranks == 1 || planned < whole) << planned;
      const simt::ScopedOptions small(
          {.devices = kGpus, .device_bytes = static_cast<size_t>(before + planned - 1)});
      const absl::Status status = make(group).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_NE(status.message().find(absl::StrCat("of ", ranks, " take ", planned, " bytes")),
                absl::string_view::npos)
          << status;
    }
  }
  EXPECT_FALSE(simt::TakeFault().has_value());
}

INSTANTIATE_TEST_SUITE_P(Schedules, EmulatedExpertGroupTest,
                         testing::Values(Schedule{1}, Schedule{2, true}), [](const auto& info) {
                           return "seed" + std::to_string(info.param.seed) +
                                  (info.param.check_races ? "_races" : "");
                         });

}  // namespace
}  // namespace baton::decode_worker
