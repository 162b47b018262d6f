// The emulation's warpgroups and tensor boxes: right kernels multiply, under every schedule, and
// each planted fault is found, named and placed; the same kernel without it passes.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/numeric.h"
#include "tests/simt/group_kernels.h"
#include "tests/simt/options.h"

namespace baton::simt {
namespace {

using kernels::cuda::MakeTensorMap;
using kernels::cuda::TensorMap;

constexpr int kSeeds = 20;
// Of b: the last rows are not initialized.
constexpr int kLayers = 2, kRows = 100, kColumns = 130;
constexpr int kRowBytes = 272, kLayerBytes = kRows * kRowBytes;
// Of the tensor of codes, whose map has a layer more.
constexpr int kCodeLayers = 3, kCodeRows = 70, kCodeColumns = 130;
constexpr int kCodeRowBytes = 144, kCodeLayerBytes = (kCodeRows + 1) * kCodeRowBytes;

template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), cudaSuccess);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { Write(values); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() const { return data_; }
  void Write(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
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

// Whole numbers, so that every product and sum is exact.
struct Matrices {
  std::vector<uint16_t> a, b;  // b as it lies in memory
  std::vector<uint8_t> a8, b8, codes;

  Matrices()
      : a(64 * 64),
        b(kLayers * kLayerBytes / 2),
        a8(64 * 128),
        b8(16 * 128),
        codes(kCodeLayers * kCodeLayerBytes) {
    Rng rng(11);
    for (auto* bf16 : {&a, &b}) {
      for (uint16_t& v : *bf16) v = kernels::F32ToBf16(static_cast<float>(rng.Below(64)) - 32.0f);
    }
    for (auto* f8 : {&a8, &b8, &codes}) {
      for (uint8_t& v : *f8) v = kernels::F32ToF8E4M3(static_cast<float>(rng.Below(16)) - 8.0f);
    }
  }
  float A(int row, int k) const { return kernels::Bf16ToF32(a[static_cast<size_t>(row * 64 + k)]); }
  // Of layer 1; rows and columns outside of the tensor are zeros.
  float B(int row, int column) const {
    if (row >= kRows || column >= kColumns) return 0.0f;
    return kernels::Bf16ToF32(b[static_cast<size_t>((kLayerBytes + row * kRowBytes) / 2 + column)]);
  }
  float CodesTimesB8(const uint8_t* row, int count, int column) const {
    float sum = 0.0f;
    for (int k = 0; k < count; ++k) {
      sum += kernels::F8E4M3ToF32(row[k]) *
             kernels::F8E4M3ToF32(b8[static_cast<size_t>(column * 128 + k)]);
    }
    return sum;
  }
};

class GroupMma : public testing::Test {
 protected:
  GroupMma() : a_(m_.a), b_(m_.b.size()), a8_(m_.a8), b8_(m_.b8), codes_(m_.codes), out_(64 * 128) {
    // Layer 1 as far as its last row.
    b_.Write({m_.b.begin(), m_.b.end() - kRowBytes / 2});
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
    EXPECT_EQ(MakeTensorMap(Shape(), &args_.b), cudaSuccess);
    EXPECT_EQ(MakeTensorMap({.data = codes_.data(),
                             .element_bytes = 1,
                             .columns = kCodeColumns,
                             .rows = kCodeRows,
                             .layers = kCodeLayers + 1,
                             .row_bytes = kCodeRowBytes,
                             .layer_bytes = kCodeLayerBytes,
                             .box_rows = 64},
                            &args_.codes),
              cudaSuccess);
    args_.a = a_.data();
    args_.a8 = a8_.data();
    args_.b8 = b8_.data();
    args_.out = out_.data();
  }
  ~GroupMma() override { EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess); }

  kernels::cuda::TensorShape Shape() const {
    return {.data = b_.data(),
            .columns = kColumns,
            .rows = kRows,
            .layers = kLayers,
            .row_bytes = kRowBytes,
            .layer_bytes = kLayerBytes,
            .box_rows = 64};
  }
  template <typename Launch, typename Expected>
  void ExpectUnderSeeds(Launch launch, int columns, Expected expected) {
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const ScopedOptions scope({.seed = seed, .check_races = seed % 2 == 0});
      ASSERT_EQ(launch(args_, stream_), cudaSuccess);
      ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
      const std::optional<Fault> fault = TakeFault();
      ASSERT_FALSE(fault.has_value()) << "seed " << seed << ": " << fault->Text();
      const std::vector<float> out = out_.Read();
      for (int row = 0; row < 64; ++row) {
        for (int column = 0; column < columns; ++column) {
          ASSERT_EQ(out[static_cast<size_t>(row * columns + column)], expected(row, column))
              << "seed " << seed << ", " << row << ' ' << column;
        }
      }
    }
  }

  const Matrices m_;
  Buffer<uint16_t> a_, b_;
  Buffer<uint8_t> a8_, b8_, codes_;
  Buffer<float> out_;
  cudaStream_t stream_ = nullptr;
  GroupArgs args_;
};

TEST_F(GroupMma, MultipliesRowsWithRows) {
  ExpectUnderSeeds(LaunchRowsTimesRows, 64, [&](int row, int column) {
    float sum = 0.0f;
    for (int k = 0; k < 64; ++k) sum += m_.A(row, k) * m_.B(10 + column, 64 + k);
    return sum;
  });
}

TEST_F(GroupMma, MultipliesRegistersWithColumnsAndAdds) {
  ExpectUnderSeeds(LaunchRegistersTimesColumns, 128, [&](int row, int column) {
    float sum = 1.0f;
    for (int k = 0; k < 64; ++k) sum += m_.A(row, k) * m_.B(10 + k, column);
    return sum;
  });
}

TEST_F(GroupMma, MultipliesE4M3) {
  ExpectUnderSeeds(LaunchCodes, 16, [&](int row, int column) {
    return m_.CodesTimesB8(&m_.a8[static_cast<size_t>(row * 128)], 128, column);
  });
}

// Columns and rows outside of the tensor are zeros, whatever lies there in memory.
TEST_F(GroupMma, BringsBoxesOfBytes) {
  args_.mode = 1;
  ExpectUnderSeeds(LaunchCodes, 16, [&](int row, int column) {
    if (20 + row >= kCodeRows) return 0.0f;
    const int at = 2 * kCodeLayerBytes + (20 + row) * kCodeRowBytes + 16;
    return m_.CodesTimesB8(&m_.codes[static_cast<size_t>(at)], kCodeColumns - 16, column);
  });
}

TEST_F(GroupMma, TheDriverRefusesShapesThatTheCopyEngineCannotRead) {
  TensorMap map;
  auto shape = Shape();
  shape.row_bytes = 264;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
  shape = Shape();
  shape.data = b_.data() + 1;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
  shape = Shape();
  shape.box_rows = 257;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
  shape = Shape();
  shape.layer_bytes += 16;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
  shape = Shape();
  shape.layer_bytes -= kRowBytes;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
  shape = Shape();
  shape.columns = kRowBytes / 2 + 1;
  EXPECT_EQ(MakeTensorMap(shape, &map), cudaErrorInvalidValue);
}

// --- planted faults

struct FaultCase {
  GroupFault fault;
  FaultKind kind;
  const char* what;
  bool needs_races = false;  // found only while races are checked
};

class PlantedGroupFault : public GroupMma, public testing::WithParamInterface<FaultCase> {
 protected:
  std::optional<Fault> Run(int mode) {
    const ScopedOptions scope({.seed = 7, .check_races = GetParam().needs_races});
    args_.mode = mode;
    const cudaError_t launched = LaunchGroupFault(GetParam().fault, args_, stream_);
    const cudaError_t waited = cudaStreamSynchronize(stream_);
    EXPECT_EQ(launched == cudaSuccess && waited == cudaSuccess, mode == 1);
    return TakeFault();
  }
};

TEST_P(PlantedGroupFault, IsFoundNamedAndPlaced) {
  const std::optional<Fault> fault = Run(0);
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(FaultName(fault->kind), std::string(FaultName(GetParam().kind))) << fault->Text();
  EXPECT_NE(fault->Text().find(GetParam().what), std::string::npos) << fault->Text();
  EXPECT_NE(fault->kernel.find("GroupFaulty"), std::string::npos) << fault->Text();
  EXPECT_NE(fault->where.find("tests/simt/group_kernels.cu:"), std::string::npos) << fault->Text();
  EXPECT_GE(fault->thread, 0);
}

TEST_P(PlantedGroupFault, IsNotSeenWhereItIsNot) {
  const std::optional<Fault> fault = Run(1);
  EXPECT_FALSE(fault.has_value()) << fault->Text();
}

constexpr FaultKind kGroup = FaultKind::kGroupMma;
INSTANTIATE_TEST_SUITE_P(
    Simt, PlantedGroupFault,
    testing::Values(
        FaultCase{GroupFault::kReadBeforeWait, kGroup, "no GroupMmaWait has named since"},
        FaultCase{GroupFault::kNotNamedByWait, kGroup, "no GroupMmaWait has named since"},
        FaultCase{GroupFault::kNeverWaited, kGroup, "are under way"},
        FaultCase{GroupFault::kNotFenced, kGroup, "touched since a GroupMmaFence"},
        FaultCase{GroupFault::kNotNamedByFence, kGroup, "touched since a GroupMmaFence"},
        FaultCase{GroupFault::kOperandOverwritten, kGroup, "may still read"},
        FaultCase{GroupFault::kOverwrittenBehindOwnWait, FaultKind::kRace, "not ordered behind",
                  true},
        FaultCase{GroupFault::kNoProxyFence, FaultKind::kProxy, "without FenceAsyncProxy"},
        FaultCase{GroupFault::kNoProxyFenceBeforeCopy, FaultKind::kProxy,
                  "without FenceAsyncProxy"},
        FaultCase{GroupFault::kMisalignedOperand, kGroup, "but at byte"},
        FaultCase{GroupFault::kNotSwizzled, kGroup, "not swizzled"},
        FaultCase{GroupFault::kUninitializedRow, FaultKind::kUninitialized, "a matrix operand"},
        FaultCase{GroupFault::kThreeWarps, kGroup, "different numbers"},
        FaultCase{GroupFault::kDifferentOperands, kGroup, "issue different matrix instructions"},
        FaultCase{GroupFault::kBoxNotAwaited, FaultKind::kRace, "the copy engine", true},
        FaultCase{GroupFault::kRegistersOfSomeWarps, kGroup, "number of registers"},
        FaultCase{GroupFault::kBoxMisaligned, FaultKind::kMisaligned, "aligned to 1024"},
        FaultCase{GroupFault::kBoxBehindShared, FaultKind::kOutOfBounds, "shared memory"},
        FaultCase{GroupFault::kBoxOfOtherMemory, FaultKind::kOutOfBounds, "device memory"},
        FaultCase{GroupFault::kBoxOfNoMap, FaultKind::kOutOfBounds, "tensor map"},
        FaultCase{GroupFault::kPrefetchOfNoMap, FaultKind::kOutOfBounds, "tensor map"},
        FaultCase{GroupFault::kBoxBytesMissing, FaultKind::kDeadlock, "a transaction"},
        FaultCase{GroupFault::kBoxBytesUnexpected, FaultKind::kDeadlock, "a transaction"}),
    [](const testing::TestParamInfo<FaultCase>& info) {
      return "Number" + std::to_string(static_cast<int>(info.param.fault));
    });

}  // namespace
}  // namespace baton::simt
