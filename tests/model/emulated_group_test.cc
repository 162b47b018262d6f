// Groups of ranks with a GPU each, emulated, over the emulated NCCL: a pass that they share has the
// bits of a pass of one GPU, whatever the schedule, the placement of experts and the room in
// messages; a rank that goes leaves the others with an error and not waiting.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_device.h"
#include "model/expert_tables.h"
#include "scheduler/expert_placement.h"
#include "tests/model/model_harness.h"
#include "tests/simt/options.h"
#include "tests/transport/nccl_fabric.h"

namespace baton::model {
namespace {

using scheduler::Form;

constexpr int kGpus = 4;
constexpr size_t kBytes = 64;
constexpr int32_t kPrompt = 11;
constexpr int32_t kLength = 13;  // the rest in decode form

void ExpectSameBits(const std::vector<LogitRow>& a, const std::vector<LogitRow>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t r = 0; r < a.size(); ++r) {
    ASSERT_EQ(std::memcmp(a[r].data(), b[r].data(), a[r].size() * sizeof(float)), 0) << "row " << r;
  }
}

struct Setup {
  std::string model;
  uint64_t seed = 0;
  bool check_races = false;
  bool cublaslt = false;
};
void PrintTo(const Setup& setup, std::ostream* out) { *out << setup.model << setup.seed; }

class EmulatedGroupTest : public testing::TestWithParam<Setup> {
 protected:
  EmulatedGroupTest()
      : options_(
            {.seed = GetParam().seed, .check_races = GetParam().check_races, .devices = kGpus}),
        model_(LoadTestModel(GetParam().model)),
        fabric_(kGpus, /*staged=*/false) {}
  void TearDown() override {
    const std::optional<simt::Fault> fault = simt::TakeFault();
    EXPECT_FALSE(fault.has_value()) << fault->Text();
  }

  RunnerOptions Options(transport::Collectives* collectives, Split split, int32_t rank = 0) const {
    RunnerOptions options;
    options.device.backend = kernels::BackendKind::kCuda;
    options.device.threads = 1;
    options.device.gpu = rank;
    if (GetParam().cublaslt) options.device.dense_gemm = kernels::DenseGemm::kCublasLt;
    if (collectives != nullptr) options.device.queue = fabric_.gpu(rank).stream();
    options.total_pages = 4;
    options.max_batch_rows = 16;
    options.spare_experts = 1000;  // for placements with more slots
    // A rank may wait for another one's kernels, which take their time here.
    options.group = {.collectives = collectives, .split = split, .timeout = Duration::Seconds(60)};
    return options;
  }
  // body(rank, collectives) on a thread for each rank.
  template <typename Body>
  void OnAllRanks(int32_t ranks, const Body& body) {
    transport::TestGroupOf group(&fabric_, ranks);
    transport::OnRanks(ranks, [&](int rank) { body(rank, &group.at(rank)); });
  }
  TestSequence Sequence(int32_t length, uint64_t seed) const {
    return {RandomTokens(length, model_->config.vocab_size, seed), TestPages(length, 64)};
  }
  // Every expert in some slot, the others at random.
  scheduler::ActiveExperts Placement(int32_t ranks, int32_t extra, uint64_t seed) const {
    Rng rng(seed);
    scheduler::ExpertTopology topology = TopologyOf(model_->config, ranks);
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
    return {.version = seed,
            .placement = std::make_shared<const scheduler::ExpertPlacement>(
                scheduler::ExpertPlacement::FromSlots(topology, slots).value())};
  }
  // All experts on every rank, of which only the `live` ones serve.
  scheduler::ActiveExperts Everywhere(std::vector<bool> live) const {
    const scheduler::ExpertTopology topology = TopologyOf(
        model_->config, static_cast<int32_t>(live.size()), model_->config.routed_experts);
    return {.version = 1,
            .placement = std::make_shared<const scheduler::ExpertPlacement>(
                scheduler::ExpertPlacement::InOrder(topology).value()),
            .live = std::move(live)};
  }
  const simt::ScopedOptions options_;
  const std::shared_ptr<const LoadedModel> model_;
  transport::NcclGroupFabric fabric_;
};

TEST_P(EmulatedGroupTest, TensorParallel) {
  const TestSequence sequence = Sequence(kLength, 5);
  ModelHarness solo(model_, Options(nullptr, Split::kTensor));
  const std::vector<LogitRow> alone = solo.RunSequence(sequence, kPrompt, kPrompt);
  std::vector<LogitRow> rows;
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    ModelHarness harness(model_, Options(collectives, Split::kTensor, rank));
    harness.Install(Placement(2, 2, 7));
    std::vector<LogitRow> mine = harness.RunSequence(sequence, kPrompt, 7);
    if (rank == 0) {
      rows = std::move(mine);
    } else {
      EXPECT_TRUE(mine.empty());
    }
  });
  ExpectSameBits(rows, alone);
}

// Ranks with rows of their own, none in some steps; experts move; messages with counts and with
// room, in turn.
TEST_P(EmulatedGroupTest, ExpertParallel) {
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    const TestSequence sequence = Sequence(20, 100 + static_cast<uint64_t>(rank));
    ModelHarness solo(model_, Options(nullptr, Split::kExpert, rank));
    ModelHarness harness(model_, Options(collectives, Split::kExpert, rank));
    int32_t position = 0;
    for (int32_t step = 0; step < 5; ++step) {
      if (step == 1) harness.Install(Placement(2, 1, 3));
      if (step == 3) harness.Install(Everywhere({false, true}));
      const int32_t rows = step + 1 == rank * 3 ? 0 : 1 + (step * 5 + rank) % 3;
      harness.set_most_rows(step == 0 ? 0 : 3);
      std::vector<TestSlice> slices;
      if (rows > 0) slices.push_back({&sequence, position, position + rows});
      const Form form = step < 2 ? Form::kPrefill : Form::kDecode;
      ExpectSameBits(harness.Forward(form, slices), solo.Forward(form, slices));
      position += rows;
    }
  });
}

// All pairs go to one rank of four, for which there is no room at first. The pass that is run again
// counts its choices once.
TEST_P(EmulatedGroupTest, APassThatFindsNoRoomIsRunAgain) {
  constexpr int32_t kRanks = 4, kRows = 16;
  OnAllRanks(kRanks, [&](int32_t rank, transport::Collectives* collectives) {
    const TestSequence sequence = Sequence(kRows, 50 + static_cast<uint64_t>(rank));
    ModelHarness solo(model_, Options(nullptr, Split::kExpert, rank));
    ModelHarness harness(model_, Options(collectives, Split::kExpert, rank));
    harness.Install(Everywhere({false, false, true, false}));
    harness.set_most_rows(kRows);
    ExpectSameBits(harness.Forward(Form::kPrefill, {{&sequence, 0, kRows}}),
                   solo.Forward(Form::kPrefill, {{&sequence, 0, kRows}}));
    const ModelConfig& config = model_->config;
    const int32_t all = kRows * config.experts_per_token;
    EXPECT_LT(PairCapacity(config.experts_per_token, kRanks).PairsFor(kRows), all);
    EXPECT_EQ(harness.decoder().passes_run_again(), 1);
    const int32_t layers = config.layers - config.dense_layers;
    std::vector<int32_t> counts(static_cast<size_t>(layers * config.routed_experts));
    harness.decoder().TakeChoices(counts);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), 0), layers * all);
  });
}

// In messages with room for more, of which the rest must not be touched. The second rank's heads of
// fp8-sharded-mtp begin within a block of scales, which cuBLASLt's products know nothing of.
TEST_P(EmulatedGroupTest, Fp8ActivationsHaveTheBitsOfOneRank) {
  if (model_->config.weight_format != WeightFormat::kFp8Block) return;
  const TestSequence sequence = Sequence(kLength, 9);
  for (const auto dense : {kernels::DenseGemm::kOwn, kernels::DenseGemm::kCublasLt}) {
    const auto options = [&](transport::Collectives* collectives, Split split, int32_t rank) {
      RunnerOptions made = Options(collectives, split, rank);
      made.device.dense_gemm = dense;
      made.fp8_activations = true;
      return made;
    };
    ModelHarness solo(model_, options(nullptr, Split::kExpert, 0));
    const std::vector<LogitRow> alone = solo.RunSequence(sequence, kPrompt, kPrompt);
    for (const Split split : {Split::kTensor, Split::kExpert}) {
      OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
        ModelHarness harness(model_, options(collectives, split, rank));
        if (split == Split::kExpert) harness.set_most_rows(16);
        const std::vector<LogitRow> rows = harness.RunSequence(sequence, kPrompt, 7);
        if (rank == 0) ExpectSameBits(rows, alone);
      });
    }
  }
}

TEST_P(EmulatedGroupTest, Fp8DispatchHasTheSameBitsForAnyNumberOfRanks) {
  const TestSequence sequence = Sequence(kLength, 8);
  std::vector<LogitRow> first;
  for (const int32_t ranks : {1, 2}) {
    SCOPED_TRACE(ranks);
    const auto body = [&](int32_t rank, transport::Collectives* collectives) {
      RunnerOptions options = Options(collectives, Split::kExpert, rank);
      options.group.dispatch = Dispatch::kFp8;
      ModelHarness harness(model_, options);
      harness.set_most_rows(ranks == 1 ? 0 : 16);
      const std::vector<LogitRow> rows = harness.RunSequence(sequence, kPrompt, 7);
      if (rank > 0) return;
      if (first.empty()) first = rows;
      ExpectSameBits(rows, first);
    };
    if (ranks > 1) {
      OnAllRanks(ranks, body);
    } else {
      fabric_.NewRendezvous(1, true);
      const auto alone = transport::MakeSoloCollectives();
      body(0, alone.get());
    }
  }
}

// In F32 the group is the CPU's single rank up to rounding.
TEST_P(EmulatedGroupTest, IsTheCpuUpToRoundingInF32) {
  const TestSequence sequence = Sequence(kLength, 9);
  RunnerOptions on_cpu;
  on_cpu.device.threads = 1;
  on_cpu.activations = kernels::DType::kF32;
  on_cpu.kv_format = kernels::KvFormat::kF32;
  on_cpu.total_pages = 4;
  ModelHarness cpu(model_, on_cpu);
  const std::vector<LogitRow> expected = cpu.RunSequence(sequence, kPrompt, kPrompt);
  for (const Split split : {Split::kTensor, Split::kExpert}) {
    OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
      RunnerOptions options = Options(collectives, split, rank);
      options.activations = kernels::DType::kF32;
      options.kv_format = kernels::KvFormat::kF32;
      ModelHarness harness(model_, options);
      if (split == Split::kExpert) harness.set_most_rows(16);
      const std::vector<LogitRow> rows = harness.RunSequence(sequence, kPrompt, kPrompt);
      if (rank > 0) return;
      ASSERT_EQ(rows.size(), expected.size());
      for (size_t r = 0; r < rows.size(); ++r) {
        double largest = 0.0, difference = 0.0;
        for (size_t i = 0; i < rows[r].size(); ++i) {
          largest = std::max(largest, std::fabs(double{expected[r][i]}));
          difference = std::max(difference, std::fabs(double{expected[r][i]} - rows[r][i]));
        }
        EXPECT_LE(difference / largest, 0x1p-14) << "row " << r;
      }
    });
  }
}

// A rank that goes while others are in a pass, whose rows then wait for it on their GPUs.
TEST_P(EmulatedGroupTest, ARankThatLeavesEndsThePassOfTheOthers) {
  OnAllRanks(3, [&](int32_t rank, transport::Collectives* collectives) {
    const TestSequence sequence = Sequence(20, 60 + static_cast<uint64_t>(rank));
    ModelHarness harness(model_, Options(collectives, Split::kExpert, rank));
    harness.set_most_rows(4);
    harness.Forward(Form::kPrefill, {{&sequence, 0, 4}});
    if (rank == 1) {
      collectives->Abort(absl::UnavailableError("this rank goes"));
      return;
    }
    const absl::Status status = harness.Try(Form::kDecode, {{&sequence, 4, 6}});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_FALSE(harness.Try(Form::kDecode, {{&sequence, 4, 6}}).ok());
  });
}

TEST_P(EmulatedGroupTest, AGroupWithoutGpusIsRefused) {
  transport::InprocGroupFabric hosts;
  fabric_.NewRendezvous(2, true);
  transport::TestGroupOf group(&hosts, 2);
  transport::OnRanks(2, [&](int rank) {
    const TestSequence sequence = Sequence(4, 1);
    ModelHarness harness(model_, Options(&group.at(rank), Split::kExpert, rank));
    EXPECT_EQ(harness.Try(Form::kPrefill, {{&sequence, 0, 4}}).code(),
              absl::StatusCode::kFailedPrecondition);
  });
}

// Decode passes of a group are recorded too: the bits of passes that are not, with rows of padding,
// ranks that are idle or masked, and a placement that changes between replays; what is counted is
// counted as often; and the host launches few things.
class RecordedGroupTest : public EmulatedGroupTest {
 protected:
  static constexpr int32_t kSteps = 13, kSwitch = 6, kMostRows = 3;

  // Two rows or three, which are padded to four; rank 1 has none in some steps.
  static int32_t RowsOf(int32_t rank, int32_t step) {
    return rank == 1 && step % 6 == 5 ? 0 : 2 + step % 2;
  }
  // How often the host has launched something in the pass, on both ranks. Other passes do not run
  // beside it.
  static uint64_t LaunchesOf(transport::Collectives& ranks, const std::function<void()>& pass) {
    EXPECT_TRUE(ranks.Barrier(Duration::Seconds(60)).ok());
    const uint64_t before = simt::LaunchCount();
    EXPECT_TRUE(ranks.Barrier(Duration::Seconds(60)).ok());
    pass();
    EXPECT_TRUE(ranks.Barrier(Duration::Seconds(60)).ok());
    const uint64_t launches = simt::LaunchCount() - before;
    EXPECT_TRUE(ranks.Barrier(Duration::Seconds(60)).ok());
    return launches;
  }
  void ExpectChoicesOf(ModelHarness& harness, int64_t rows) const {
    const ModelConfig& config = model_->config;
    const int64_t layers = config.layers - config.dense_layers;
    std::vector<int32_t> counts(static_cast<size_t>(layers * config.routed_experts));
    harness.decoder().TakeChoices(counts);
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}),
              layers * config.experts_per_token * rows);
  }
};

TEST_P(RecordedGroupTest, ChangesNoBit) {
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    RunnerOptions unrecorded = Options(nullptr, Split::kExpert, rank);
    unrecorded.device.records = false;
    RunnerOptions recorded = Options(collectives, Split::kExpert, rank);
    // Where there are FP8 weights, with rows in FP8 as well.
    unrecorded.fp8_activations = recorded.fp8_activations = true;
    ModelHarness solo(model_, unrecorded);
    ModelHarness harness(model_, recorded);
    std::vector<TestSequence> sequences;
    for (uint32_t s = 0; s < kMostRows; ++s) {
      const uint64_t seed = 7 + s + static_cast<uint64_t>(rank) * 10;
      sequences.push_back(
          {RandomTokens(20, model_->config.vocab_size, seed), TestPages(20, 64, s)});
      harness.set_most_rows(kMostRows);
      ExpectSameBits(harness.Forward(Form::kPrefill, {{&sequences[s], 0, 2}}),
                     solo.Forward(Form::kPrefill, {{&sequences[s], 0, 2}}));
    }
    int64_t rows_run = 2 * kMostRows;
    uint64_t replays_before_switch = 0;
    std::vector<uint64_t> launches;
    std::vector<int32_t> next(sequences.size(), 2);
    for (int32_t step = 0; step < kSteps; ++step) {
      if (step == kSwitch) {
        replays_before_switch = harness.decoder().replays();
        harness.Install(Everywhere({false, true}));
      }
      std::vector<TestSlice> slices;
      for (size_t s = 0; s < static_cast<size_t>(RowsOf(rank, step)); ++s) {
        slices.push_back({&sequences[s], next[s], next[s] + 1, true});
        ++next[s];
      }
      rows_run += static_cast<int64_t>(slices.size());
      std::vector<LogitRow> rows;
      launches.push_back(
          LaunchesOf(*collectives, [&] { rows = harness.SampledLogits(Form::kDecode, slices); }));
      ExpectSameBits(rows, solo.SampledLogits(Form::kDecode, slices));
    }
    EXPECT_GE(replays_before_switch, 2u);
    EXPECT_GE(harness.decoder().replays(), replays_before_switch + 2);
    ExpectChoicesOf(harness, rows_run);
    // Both ranks replay what they ran as it is in the first step.
    EXPECT_LT(launches[4] * 2, launches[0]);
  });
}

TEST_P(RecordedGroupTest, ARankThatLeavesEndsAReplay) {
  OnAllRanks(2, [&](int32_t rank, transport::Collectives* collectives) {
    const TestSequence sequence = Sequence(20, 60 + static_cast<uint64_t>(rank));
    ModelHarness harness(model_, Options(collectives, Split::kExpert, rank));
    harness.set_most_rows(1);
    int32_t next = 0;
    for (; next < 5; ++next) {
      harness.SampledLogits(Form::kDecode, {{&sequence, next, next + 1, true}});
    }
    EXPECT_GE(harness.decoder().replays(), 2u);
    if (rank == 1) {
      collectives->Abort(absl::UnavailableError("this rank goes"));
      return;
    }
    const absl::Status status = harness.Try(Form::kDecode, {{&sequence, next, next + 1, true}});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_FALSE(harness.Try(Form::kDecode, {{&sequence, next, next + 1, true}}).ok());
  });
}

INSTANTIATE_TEST_SUITE_P(Schedules, RecordedGroupTest,
                         testing::Values(Setup{"bf16-groups-mtp", 2, true},
                                         Setup{"fp8-ragged-yarn", 3},
                                         Setup{"fp8-sharded-mtp", 4, false, /*cublaslt=*/true}),
                         [](const auto& info) { return "Setup" + std::to_string(info.index); });

// Working memory grows behind a call that another rank never makes: nothing waits for the GPU but
// the group, which knows a deadline.
TEST(EmulatedGroup, WorkingMemoryGrowsBehindACallThatDoesNotEnd) {
  const simt::ScopedOptions options({.seed = 6, .devices = kGpus});
  transport::NcclGroupFabric fabric(kGpus, /*staged=*/false);
  transport::TestGroupOf group(&fabric, 2);
  transport::DeviceCalls& calls = *group.at(0).ForDevice();
  kernels::DeviceOptions device_options;
  device_options.backend = kernels::BackendKind::kCuda;
  device_options.queue = fabric.gpu(0).stream();
  {
    const auto device = kernels::CreateDevice(device_options).value();
    const kernels::DeviceBuffer all = device->Allocate(2 * kBytes).value();
    const std::vector<std::byte> zeros(2 * kBytes);
    ASSERT_TRUE(device->CopyToDevice(all.data(), zeros.data(), zeros.size()).ok());
    const std::span<std::byte> room(static_cast<std::byte*>(all.data()), 2 * kBytes);
    calls.TrustSizes(true);
    ASSERT_TRUE(calls.AllGather(room.first(kBytes), room, Duration::Seconds(60)).ok());
    calls.TrustSizes(false);
    for (size_t mb = 1; mb <= 64; mb *= 4) {
      kernels::cuda::CudaState& op = kernels::cuda::CudaState::Begin(*device);
      for (int piece = 0; piece < 2; ++piece) {
        const auto memory = op.ScratchBytes(mb << 20);
        ASSERT_TRUE(memory.ok()) << memory.status();
        ASSERT_EQ(cudaMemsetAsync(*memory, 0, mb << 20, op.stream()), cudaSuccess);
      }
    }
    EXPECT_EQ(cudaStreamQuery(fabric.gpu(0).stream()), cudaErrorNotReady);
    const absl::Status status = calls.Settle(Duration::Millis(200));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_NE(status.message().find("rank 1"), std::string::npos) << status;
  }
  EXPECT_FALSE(simt::TakeFault().has_value());
}

// The same where products of cuBLASLt are compared, as each size is when it is first met.
TEST(EmulatedGroup, ProductsAreComparedBehindACallThatDoesNotEnd) {
  const simt::ScopedOptions options({.seed = 7, .devices = kGpus});
  transport::NcclGroupFabric fabric(kGpus, /*staged=*/false);
  transport::TestGroupOf group(&fabric, 2);
  transport::DeviceCalls& calls = *group.at(0).ForDevice();
  kernels::DeviceOptions device_options;
  device_options.backend = kernels::BackendKind::kCuda;
  device_options.dense_gemm = kernels::DenseGemm::kCublasLt;
  device_options.queue = fabric.gpu(0).stream();
  {
    constexpr int64_t kRows = 20, kWidth = 32;
    const auto device = kernels::CreateDevice(device_options).value();
    std::vector<kernels::DeviceBuffer> buffers;
    const auto zeros = [&](kernels::DType type, int64_t rows) {
      const std::vector<float> values(static_cast<size_t>(rows * kWidth));
      buffers.push_back(device->Allocate(values.size() * sizeof(float)).value());
      EXPECT_TRUE(
          device->CopyToDevice(buffers.back().data(), values.data(), values.size() * sizeof(float))
              .ok());
      return kernels::TensorView::Contiguous(buffers.back().data(), type, {rows, kWidth});
    };
    const kernels::TensorView x = zeros(kernels::DType::kBF16, kRows);
    const kernels::TensorView w = zeros(kernels::DType::kBF16, kWidth);
    const kernels::TensorView out = zeros(kernels::DType::kF32, kRows);
    const std::span<std::byte> room(static_cast<std::byte*>(out.data), 2 * kBytes);
    calls.TrustSizes(true);
    ASSERT_TRUE(calls.AllGather(room.first(kBytes), room, Duration::Seconds(60)).ok());
    calls.TrustSizes(false);
    const absl::Status multiplied = kernels::Linear(*device, {.x = x, .w = {.w = w}, .out = out});
    EXPECT_TRUE(multiplied.ok()) << multiplied;
    EXPECT_EQ(cudaStreamQuery(fabric.gpu(0).stream()), cudaErrorNotReady);
    const absl::Status status = calls.Settle(Duration::Millis(200));
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  }
  EXPECT_EQ(simt::TakeFault(), std::nullopt);
}

INSTANTIATE_TEST_SUITE_P(Schedules, EmulatedGroupTest,
                         testing::Values(Setup{"bf16-groups-mtp", 1},
                                         Setup{"bf16-groups-mtp", 2, true},
                                         Setup{"fp8-ragged-yarn", 3}, Setup{"bf16-lora-yarn", 4},
                                         Setup{"fp8-sharded-mtp", 5}),
                         [](const auto& info) {
                           std::string name =
                               info.param.model + "_seed" + std::to_string(info.param.seed);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name + (info.param.check_races ? "_races" : "");
                         });

}  // namespace
}  // namespace baton::model
