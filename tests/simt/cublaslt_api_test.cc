// The emulated cuBLASLt's products of E4M3 matrices: the manual's sum, and nothing that the manual
// does not promise.

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/numeric.h"
#include "tests/simt/options.h"

namespace baton::simt {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kM = 144, kN = 8, kK = 256;
constexpr int64_t kBlocks = kK / 128, kPaddedBlocks = 4;

// Memory of the emulated GPU.
template <typename T>
class OnGpu {
 public:
  explicit OnGpu(size_t count) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), cudaSuccess);
  }
  explicit OnGpu(const std::vector<T>& values) : OnGpu(values.size()) { Put(values); }
  ~OnGpu() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  OnGpu(const OnGpu&) = delete;
  void Put(const std::vector<T>& values, size_t at = 0) {
    EXPECT_EQ(
        cudaMemcpy(data_ + at, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        cudaSuccess);
  }
  std::vector<T> Get(size_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

uint8_t CodeOf(int64_t i) { return kernels::F32ToF8E4M3(static_cast<float>(i * 7 % 13 - 6)); }
float ScaleOf(int64_t i) { return 0.25f * static_cast<float>(1 + i % 5); }

// A product that the library takes; a test changes one thing of it.
struct Call {
  int64_t m = kM, n = kN;
  int32_t a_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
  int32_t b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  int8_t fast = 0;
  cudaDataType a_type = CUDA_R_8F_E4M3;
  const void* a = nullptr;
  const void* b = nullptr;
  const float* a_scales = nullptr;
  const float* b_scales = nullptr;
  float* d = nullptr;

  cublasStatus_t Run() const {
    cublasLtHandle_t library = nullptr;
    cublasLtMatmulDesc_t operation = nullptr;
    EXPECT_EQ(cublasLtCreate(&library), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
              CUBLAS_STATUS_SUCCESS);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
      EXPECT_EQ(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
                CUBLAS_STATUS_SUCCESS);
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, a_mode);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, b_mode);
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a_scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b_scales);
    std::array<cublasLtMatrixLayout_t, 3> layouts = {};
    const auto lay = [](cublasLtMatrixLayout_t& layout, cudaDataType type, int64_t rows,
                        int64_t columns) {
      EXPECT_EQ(cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                           static_cast<uint64_t>(columns), rows),
                CUBLAS_STATUS_SUCCESS);
    };
    lay(layouts[0], a_type, kK, m);
    lay(layouts[1], CUDA_R_8F_E4M3, kK, n);
    lay(layouts[2], CUDA_R_32F, m, n);
    std::array<cublasLtMatmulHeuristicResult_t, 4> found;
    int count = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library, operation, layouts[0], layouts[1], layouts[2],
                                       layouts[2], nullptr, 4, found.data(), &count);
    if (status == CUBLAS_STATUS_SUCCESS) {
      EXPECT_EQ(count, 2);  // the second does not split K
      const float alpha = 1, beta = 0;
      status = cublasLtMatmul(library, operation, &alpha, a, layouts[0], b, layouts[1], &beta, d,
                              layouts[2], d, layouts[2], &found[1].algo, nullptr, 0, nullptr);
    } else {
      EXPECT_EQ(count, 0);
    }
    // What goes wrong in the stream is a fault, which a test asks for.
    (void)cudaStreamSynchronize(nullptr);
    for (const cublasLtMatrixLayout_t layout : layouts) {
      EXPECT_EQ(cublasLtMatrixLayoutDestroy(layout), CUBLAS_STATUS_SUCCESS);
    }
    EXPECT_EQ(cublasLtMatmulDescDestroy(operation), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasLtDestroy(library), CUBLAS_STATUS_SUCCESS);
    return status;
  }
};

class CublasLtApiTest : public testing::Test {
 protected:
  static constexpr int64_t kABlocks = (kM + 127) / 128;

  CublasLtApiTest()
      : a_(kM * kK), b_(kN * kK), a_scales_(kABlocks * kPaddedBlocks), b_scales_(kBlocks * kN) {
    std::vector<uint8_t> codes;
    for (int64_t i = 0; i < kM * kK; ++i) codes.push_back(CodeOf(i));
    a_.Put(codes);
    codes.resize(kN * kK);
    b_.Put(codes);
    std::vector<float> scales;
    for (int64_t i = 0; i < kABlocks * kPaddedBlocks; ++i) scales.push_back(ScaleOf(i));
    a_scales_.Put(scales);
    scales.clear();
    for (int64_t i = 0; i < kBlocks * kN; ++i) scales.push_back(ScaleOf(i + 3));
    b_scales_.Put(scales);
  }
  void TearDown() override { EXPECT_FALSE(TakeFault().has_value()); }

  Call Good() const {
    return {.a = a_.data(),
            .b = b_.data(),
            .a_scales = a_scales_.data(),
            .b_scales = b_scales_.data(),
            .d = d_.data()};
  }

  OnGpu<uint8_t> a_, b_;
  OnGpu<float> a_scales_, b_scales_;
  OnGpu<float> d_{kM * kN};
};

// Scales of a along k with the next multiple of four between its blocks, those of b along n: sums
// of small integers and powers of two, so exact in any order.
TEST_F(CublasLtApiTest, ScalesLieWhereTheManualSays) {
  ASSERT_EQ(Good().Run(), CUBLAS_STATUS_SUCCESS);
  const std::vector<float> d = d_.Get(kM * kN);
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kN; ++j) {
      float expected = 0;
      for (int64_t k = 0; k < kK; ++k) {
        expected += kernels::F8E4M3ToF32(CodeOf(i * kK + k)) *
                    kernels::F8E4M3ToF32(CodeOf(j * kK + k)) *
                    ScaleOf(i / 128 * kPaddedBlocks + k / 128) * ScaleOf(k / 128 * kN + j + 3);
      }
      ASSERT_EQ(d[static_cast<size_t>(j * kM + i)], expected) << i << ", " << j;
    }
  }
}

TEST_F(CublasLtApiTest, RefusesWhatTheManualDoesNotPromise) {
  const std::vector<std::pair<const char*, std::function<void(Call&)>>> changes = {
      {"fast accumulation", [](Call& call) { call.fast = 1; }},
      {"modes swapped", [](Call& call) { std::swap(call.a_mode, call.b_mode); }},
      {"both in 128x128", [](Call& call) { call.b_mode = call.a_mode; }},
      {"no modes",
       [](Call& call) { call.a_mode = call.b_mode = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F; }},
      {"no scales of a", [](Call& call) { call.a_scales = nullptr; }},
      {"no scales of b", [](Call& call) { call.b_scales = nullptr; }},
      {"scales not aligned", [](Call& call) { call.b_scales += 1; }},
      {"m", [](Call& call) { call.m = 142; }},
      {"n", [](Call& call) { call.n = 6; }},
      {"types that differ", [](Call& call) { call.a_type = CUDA_R_16BF; }}};
  for (const auto& [what, change] : changes) {
    Call call = Good();
    change(call);
    EXPECT_EQ(call.Run(), CUBLAS_STATUS_NOT_SUPPORTED) << what;
  }
  Call call = Good();
  call.a = a_.data() + 8;
  EXPECT_EQ(call.Run(), CUBLAS_STATUS_INVALID_VALUE);
}

TEST_F(CublasLtApiTest, HasTheseScalesOnHopperAlone) {
  for (const auto& [major, minor] : {std::pair{8, 9}, {9, 0}, {10, 0}}) {
    Options options = GetOptions();
    options.compute_major = major;
    options.compute_minor = minor;
    const ScopedOptions scope(options);
    EXPECT_EQ(Good().Run(), major == 9 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED)
        << major;
  }
}

// Scales of a without the padding between blocks end too early; with the padding it must be
// written.
TEST_F(CublasLtApiTest, NoticesScalesOfAnotherLayout) {
  const OnGpu<float> packed(std::vector<float>(kABlocks * kBlocks, 1.0f));
  Call call = Good();
  call.a_scales = packed.data();
  EXPECT_EQ(call.Run(), CUBLAS_STATUS_SUCCESS);
  std::optional<Fault> fault = TakeFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->kind, FaultKind::kOutOfBounds);
  EXPECT_THAT(fault->Text(), HasSubstr("cublasLtMatmul"));

  OnGpu<float> gaps(kABlocks * kPaddedBlocks);
  for (int64_t block = 0; block < kABlocks; ++block) {
    gaps.Put(std::vector<float>(kBlocks, 1.0f), static_cast<size_t>(block * kPaddedBlocks));
  }
  call.a_scales = gaps.data();
  EXPECT_EQ(call.Run(), CUBLAS_STATUS_SUCCESS);
  fault = TakeFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->kind, FaultKind::kUninitialized);
}

}  // namespace
}  // namespace baton::simt
