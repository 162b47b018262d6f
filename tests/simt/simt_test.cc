// The emulation itself: right kernels give right answers under every schedule, and each planted
// fault is found, named and placed; the same kernel without the fault passes the same checks.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/numeric.h"
#include "tests/simt/kernels.h"
#include "tests/simt/options.h"

namespace baton::simt {
namespace {

constexpr int kSeeds = 20;

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }
  operator cudaStream_t() const { return stream_; }
  cudaError_t Wait() { return cudaStreamSynchronize(stream_); }

 private:
  cudaStream_t stream_ = nullptr;
};

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), cudaSuccess);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }
  std::vector<T> Read() const {
    std::vector<T> out(count_);
    EXPECT_EQ(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return out;
  }

 private:
  size_t count_ = 0;
  T* data_ = nullptr;
};

std::vector<float> Numbers(size_t count, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> out(count);
  for (float& value : out) value = static_cast<float>(rng.Below(1000)) / 8.0f - 60.0f;
  return out;
}

// All checks on, one schedule after the other.
class UnderSeeds : public testing::Test {
 protected:
  void ForSeeds(const std::function<void()>& body) {
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      for (const bool races : {false, true}) {
        const ScopedOptions scope({.seed = seed, .check_races = races});
        body();
        const std::optional<Fault> fault = TakeFault();
        ASSERT_FALSE(fault.has_value()) << "seed " << seed << ": " << fault->Text();
      }
    }
  }
};

TEST_F(UnderSeeds, SumsMeetInSharedMemory) {
  const std::vector<float> in = Numbers(5 * 300, 1);
  ForSeeds([&] {
    Stream stream;
    Buffer<float> from(in), to(5);
    ASSERT_EQ(LaunchSum({.in = from.data(), .out = to.data(), .n = 300}, 5, stream), cudaSuccess);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    const std::vector<float> out = to.Read();
    for (size_t block = 0; block < 5; ++block) {
      float expected = 0.0f;  // eighths: exact in any order
      for (size_t i = 0; i < 300; ++i) expected += in[block * 300 + i];
      EXPECT_EQ(out[block], expected) << block;
    }
  });
}

TEST_F(UnderSeeds, AsynchronousCopiesAreDoubleBuffered) {
  constexpr size_t kTile = 512;
  const std::vector<float> in = Numbers(5 * kTile, 2);
  ForSeeds([&] {
    Stream stream;
    Buffer<float> from(in), to(in.size());
    ASSERT_EQ(LaunchTile({.in = from.data(), .out = to.data(), .n = 5}, stream), cudaSuccess);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    const std::vector<float> out = to.Read();
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(out[i], in[i / kTile * kTile + kTile - 1 - i % kTile]) << i;
    }
  });
}

TEST_F(UnderSeeds, TransactionsCarryAPipeline) {
  const std::vector<float> in = Numbers(7 * 256, 3);
  ForSeeds([&] {
    Stream stream;
    Buffer<float> from(in), to(256);
    ASSERT_EQ(LaunchPipeline({.in = from.data(), .out = to.data(), .n = 7}, stream), cudaSuccess);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    const std::vector<float> out = to.Read();
    for (size_t i = 0; i < 256; ++i) {
      float expected = 0.0f;
      for (size_t row = 0; row < 7; ++row) expected += in[row * 256 + i];
      ASSERT_EQ(out[i], expected) << i;
    }
  });
}

TEST_F(UnderSeeds, MatrixInstructionsMultiply) {
  Rng rng(4);
  std::vector<uint16_t> a(16 * 16), b(16 * 8);
  std::vector<uint8_t> a8(16 * 32), b8(8 * 32);
  for (auto* bf16 : {&a, &b}) {
    for (uint16_t& v : *bf16) v = kernels::F32ToBf16(static_cast<float>(rng.Below(64)) - 32.0f);
  }
  for (auto* f8 : {&a8, &b8}) {
    for (uint8_t& v : *f8) v = kernels::F32ToF8E4M3(static_cast<float>(rng.Below(16)) - 8.0f);
  }
  ForSeeds([&] {
    Stream stream;
    Buffer<uint16_t> da(a), db(b);
    Buffer<uint8_t> da8(a8), db8(b8);
    for (const int mode : {0, 1}) {
      Buffer<float> to(16 * 8);
      ASSERT_EQ(LaunchMatrices({.out = to.data(),
                                .a = da.data(),
                                .b = db.data(),
                                .a8 = da8.data(),
                                .b8 = db8.data(),
                                .mode = mode},
                               stream),
                cudaSuccess);
      ASSERT_EQ(stream.Wait(), cudaSuccess);
      const std::vector<float> out = to.Read();
      for (size_t row = 0; row < 16; ++row) {
        for (size_t column = 0; column < 8; ++column) {
          float expected = 0.0f;  // whole numbers: exact
          for (size_t k = 0; k < (mode == 0 ? 16u : 32u); ++k) {
            expected += mode == 0 ? kernels::Bf16ToF32(a[row * 16 + k]) *
                                        kernels::Bf16ToF32(b[k * 8 + column])
                                  : kernels::F8E4M3ToF32(a8[row * 32 + k]) *
                                        kernels::F8E4M3ToF32(b8[column * 32 + k]);
          }
          ASSERT_EQ(out[row * 8 + column], expected) << mode << ' ' << row << ' ' << column;
        }
      }
    }
  });
}

TEST_F(UnderSeeds, AtomicsAddUp) {
  ForSeeds([&] {
    Stream stream;
    Buffer<int32_t> counter(std::vector<int32_t>(3, 0));
    ASSERT_EQ(LaunchCount({.counter = counter.data()}, 6, stream), cudaSuccess);
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(counter.Read(), (std::vector<int32_t>{6 * 128, 5, 0x55555555}));
  });
}

// --- planted faults

struct PlantedCase {
  Planted planted;
  FaultKind kind;
  const char* what;          // part of the text
  bool needs_races = false;  // found only while races are checked
};

class PlantedFault : public testing::TestWithParam<PlantedCase> {
 protected:
  std::optional<Fault> Run(int mode) {
    const PlantedCase& c = GetParam();
    const ScopedOptions scope({.seed = 7, .check_races = c.needs_races});
    Stream stream;
    Buffer<float> in(Numbers(128, 1)), raw(128), out(256);
    static const std::vector<float> host(128, 1.0f);
    TestArgs args{.in = in.data(), .out = out.data(), .mode = mode};
    if (c.planted == Planted::kUninitializedGlobal) args.in = raw.data();
    if (c.planted == Planted::kHostPointer) args.in = host.data();
    if (c.planted == Planted::kWriteBehindShared) args.n = 64;
    const cudaError_t launched = LaunchPlanted(c.planted, args, stream);
    const cudaError_t waited = stream.Wait();
    if (mode == 0) {
      EXPECT_TRUE(launched != cudaSuccess || waited == cudaErrorLaunchFailure);
    }
    return TakeFault();
  }
};

TEST_P(PlantedFault, IsFoundNamedAndPlaced) {
  const PlantedCase& c = GetParam();
  const std::optional<Fault> fault = Run(0);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(FaultName(fault->kind), std::string(FaultName(c.kind))) << fault->Text();
  EXPECT_NE(fault->Text().find(c.what), std::string::npos) << fault->Text();
  EXPECT_NE(fault->kernel.find("Faulty"), std::string::npos) << fault->Text();
  if (c.kind != FaultKind::kBadLaunch) {
    EXPECT_NE(fault->where.find("tests/simt/kernels.cu:"), std::string::npos) << fault->Text();
    EXPECT_GE(fault->thread, 0);
  }
  // And the device works again.
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// The same kernel, mode 1: with the barrier or wait that was missing.
class CuredFault : public PlantedFault {};

TEST_P(CuredFault, IsNotSeenWhereItIsNot) {
  const std::optional<Fault> fault = Run(1);
  EXPECT_FALSE(fault.has_value()) << fault->Text();
}

std::string Number(const testing::TestParamInfo<PlantedCase>& info) {
  return "Number" + std::to_string(static_cast<int>(info.param.planted));
}

INSTANTIATE_TEST_SUITE_P(
    Simt, PlantedFault,
    testing::Values(
        PlantedCase{Planted::kReadBehindGlobal, FaultKind::kOutOfBounds,
                    "0 bytes behind 512 bytes of device memory"},
        PlantedCase{Planted::kWriteBehindShared, FaultKind::kOutOfBounds, "shared memory"},
        PlantedCase{Planted::kUninitializedGlobal, FaultKind::kUninitialized, "read of 4 bytes"},
        PlantedCase{Planted::kUninitializedShared, FaultKind::kUninitialized, "byte 20 of"},
        PlantedCase{Planted::kHostPointer, FaultKind::kHostMemory, "read of 4 bytes"},
        PlantedCase{Planted::kMisaligned, FaultKind::kMisaligned, "not aligned"},
        PlantedCase{Planted::kDivergentBarrier, FaultKind::kBarrier, "is at barrier 0"},
        PlantedCase{Planted::kMissingThread, FaultKind::kDeadlock, "127"},
        PlantedCase{Planted::kDivergentShuffle, FaultKind::kWarp, "other lanes"},
        PlantedCase{Planted::kTransactionForever, FaultKind::kDeadlock, "a transaction"},
        PlantedCase{Planted::kTrap, FaultKind::kTrap, "stopped itself"},
        PlantedCase{Planted::kTooMuchShared, FaultKind::kBadLaunch, "launched with 64"},
        PlantedCase{Planted::kBadShape, FaultKind::kBadLaunch, "blocks of 100 threads"}),
    Number);

const auto kWithCure = testing::Values(
    PlantedCase{Planted::kSharedRace, FaultKind::kRace, "not ordered behind", true},
    PlantedCase{Planted::kSharedOverwrite, FaultKind::kRace, "not ordered behind", true},
    PlantedCase{Planted::kWarpRace, FaultKind::kRace, "not ordered behind", true},
    PlantedCase{Planted::kGlobalRace, FaultKind::kRace, "of block", true},
    PlantedCase{Planted::kCopyNotAwaited, FaultKind::kAsyncCopy, "under way"},
    PlantedCase{Planted::kCopyNotShared, FaultKind::kAsyncCopy, "under way", true},
    PlantedCase{Planted::kBulkNotAwaited, FaultKind::kRace, "the copy engine", true});
INSTANTIATE_TEST_SUITE_P(SimtWithCure, PlantedFault, kWithCure, Number);
INSTANTIATE_TEST_SUITE_P(SimtWithCure, CuredFault, kWithCure, Number);

// --- streams

TEST(Streams, AreQueuesWhoseOrderAmongEachOtherIsDrawn) {
  // One stream doubles, another doubles again; without an event between, some seed shows it.
  int wrong = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    const ScopedOptions scope({.seed = seed});
    Stream first, second;
    const std::vector<float> in = Numbers(4096, seed);
    Buffer<float> a(in), b(std::vector<float>(in.size(), 0.0f)), c(in.size());
    const int n = static_cast<int>(in.size());
    for (int i = 0; i < 4; ++i) LaunchScale({.in = a.data(), .out = b.data(), .n = n}, 32, first);
    LaunchScale({.in = b.data(), .out = c.data(), .n = n}, 32, second);
    ASSERT_EQ(second.Wait(), cudaSuccess);
    ASSERT_EQ(first.Wait(), cudaSuccess);
    wrong += c.Read()[1] != 4 * in[1];
  }
  EXPECT_GT(wrong, 0);
}

std::optional<Fault> ScaleTwice(uint64_t seed, bool with_event) {
  const ScopedOptions scope({.seed = seed, .check_races = true});
  Stream first, second;
  const std::vector<float> in = Numbers(512, seed);
  Buffer<float> a(in), b(in.size()), c(in.size());
  EXPECT_EQ(cudaMemset(b.data(), 0, in.size() * sizeof(float)), cudaSuccess);
  cudaEvent_t event = nullptr;
  EXPECT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  LaunchScale({.in = a.data(), .out = b.data(), .n = 512}, 4, first);
  cudaEventRecord(event, first);
  if (with_event) cudaStreamWaitEvent(second, event, 0);
  LaunchScale({.in = b.data(), .out = c.data(), .n = 512}, 4, second);
  const cudaError_t second_status = second.Wait();
  first.Wait();
  if (with_event) {
    EXPECT_EQ(second_status, cudaSuccess);
    EXPECT_EQ(c.Read()[1], 4 * in[1]);
  }
  EXPECT_EQ(cudaEventDestroy(event), cudaSuccess);
  return TakeFault();
}

TEST(Streams, AMissingEventIsAFaultAndAnEventOrders) {
  int found = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::optional<Fault> without = ScaleTwice(seed, false);
    if (without.has_value()) {
      ++found;
      EXPECT_EQ(FaultName(without->kind), std::string("stream order")) << without->Text();
    }
    const std::optional<Fault> with = ScaleTwice(seed, true);
    EXPECT_FALSE(with.has_value()) << with->Text();
  }
  EXPECT_GT(found, 0);
}

TEST(Streams, AGraphRunsAgainWithWhatItsMemoryHoldsThen) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const ScopedOptions scope({.seed = seed, .check_races = true});
    Stream main, side;
    Buffer<float> a(512), b(512), c(512), d(512);
    cudaEvent_t fork = nullptr, join = nullptr;
    ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
    ASSERT_EQ(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    LaunchScale({.in = a.data(), .out = b.data(), .n = 512}, 4, main);
    cudaEventRecord(fork, main);
    cudaStreamWaitEvent(side, fork, 0);
    LaunchScale({.in = b.data(), .out = c.data(), .n = 512}, 4, side);
    LaunchScale({.in = b.data(), .out = d.data(), .n = 512}, 4, main);
    cudaEventRecord(join, side);
    cudaStreamWaitEvent(main, join, 0);
    cudaGraph_t graph = nullptr;
    ASSERT_EQ(cudaStreamEndCapture(main, &graph), cudaSuccess);
    size_t nodes = 0;
    ASSERT_EQ(cudaGraphGetNodes(graph, nullptr, &nodes), cudaSuccess);
    EXPECT_EQ(nodes, 3u);
    cudaGraphExec_t exec = nullptr;
    ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (uint64_t round = 0; round < 3; ++round) {
      const std::vector<float> in = Numbers(512, seed * 10 + round);
      ASSERT_EQ(
          cudaMemcpyAsync(a.data(), in.data(), 512 * sizeof(float), cudaMemcpyHostToDevice, main),
          cudaSuccess);
      ASSERT_EQ(cudaGraphLaunch(exec, main), cudaSuccess);
      ASSERT_EQ(main.Wait(), cudaSuccess);
      const std::vector<float> left = c.Read(), right = d.Read();
      for (size_t i = 0; i < in.size(); ++i) {
        ASSERT_EQ(left[i], 4 * in[i]);
        ASSERT_EQ(right[i], 4 * in[i]);
      }
    }
    const std::optional<Fault> fault = TakeFault();
    ASSERT_FALSE(fault.has_value()) << fault->Text();
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaEventDestroy(fork);
    cudaEventDestroy(join);
  }
}

TEST(Streams, ACaptureThatIsNotJoinedIsRefused) {
  Stream main, side;
  Buffer<float> a(Numbers(512, 1)), b(512);
  cudaEvent_t fork = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  cudaEventRecord(fork, main);
  cudaStreamWaitEvent(side, fork, 0);
  LaunchScale({.in = a.data(), .out = b.data(), .n = 512}, 4, side);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(main, &graph), cudaErrorStreamCaptureUnjoined);
  cudaEventDestroy(fork);
  (void)cudaGetLastError();
}

TEST(Runtime, APinnedCopyShowsNothingBeforeItIsDone) {
  const ScopedOptions scope({.seed = 3});
  Stream stream;
  Buffer<float> in(Numbers(512, 1)), out(512);
  float* pinned = nullptr;
  ASSERT_EQ(cudaMallocHost(reinterpret_cast<void**>(&pinned), 512 * sizeof(float)), cudaSuccess);
  int early = 0;
  for (int i = 0; i < 20; ++i) {
    std::memset(pinned, 0, 512 * sizeof(float));
    LaunchScale({.in = in.data(), .out = out.data(), .n = 512}, 4, stream);
    ASSERT_EQ(
        cudaMemcpyAsync(pinned, out.data(), 512 * sizeof(float), cudaMemcpyDeviceToHost, stream),
        cudaSuccess);
    early += pinned[3] != out.Read()[3];
    ASSERT_EQ(stream.Wait(), cudaSuccess);
    EXPECT_EQ(pinned[3], out.Read()[3]);
  }
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST(Runtime, MistakesOfTheHostAreFaults) {
  Stream stream;
  Buffer<float> in(Numbers(512, 1)), out(512);
  const auto expect = [](const char* what) {
    const std::optional<Fault> fault = TakeFault();
    ASSERT_TRUE(fault.has_value()) << what;
    EXPECT_NE(fault->Text().find(what), std::string::npos) << fault->Text();
  };
  // Beyond an allocation.
  cudaMemcpyAsync(out.data(), in.data(), 513 * sizeof(float), cudaMemcpyDeviceToDevice, stream);
  EXPECT_EQ(stream.Wait(), cudaErrorLaunchFailure);
  expect("0 bytes behind 2048 bytes of device memory");
  // Twice.
  void* data = nullptr;
  ASSERT_EQ(cudaMalloc(&data, 64), cudaSuccess);
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  EXPECT_EQ(cudaFree(data), cudaErrorInvalidValue);
  expect("that was freed");
  // After it is freed.
  ASSERT_EQ(cudaMalloc(&data, 512 * sizeof(float)), cudaSuccess);
  EXPECT_EQ(cudaFree(data), cudaSuccess);
  LaunchScale({.in = in.data(), .out = static_cast<float*>(data), .n = 512}, 4, stream);
  EXPECT_EQ(stream.Wait(), cudaErrorLaunchFailure);
  expect("that was freed");
  // Into the default stream.
  EXPECT_NE(LaunchScale({.in = in.data(), .out = out.data(), .n = 512}, 4, nullptr), cudaSuccess);
  expect("default stream");
  EXPECT_EQ(cudaMalloc(&data, size_t{1} << 40), cudaErrorMemoryAllocation);
  (void)cudaGetLastError();
}

}  // namespace
}  // namespace baton::simt
