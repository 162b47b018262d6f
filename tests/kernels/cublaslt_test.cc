// Dense products through cuBLASLt, as the emulation has it: one chain of sums or a refusal, the
// comparison that notices a library whose bits depend on the number of rows, and which products are
// the library's.

#include "gmock/gmock.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/simt/options.h"

namespace baton::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CublasLtTest : public KernelTest {
 protected:
  CublasLtTest() : w_(RandomWeight(rng_, DType::kBF16, 40, 128)) {}

  static simt::Options With(simt::CublasLt kind) {
    simt::Options options = simt::GetOptions();
    options.cublaslt = kind;
    return options;
  }

  // While the library is of that kind, a product of so many rows.
  absl::Status Multiply(simt::CublasLt kind, int64_t rows, DType out_type = DType::kF32) {
    const simt::ScopedOptions scope(With(kind));
    const Owned x = Random(rng_, DType::kBF16, {rows, 128});
    Owned out(out_type, {rows, 40});
    return Linear(*device_, {.x = x.view(), .w = w_.view(), .out = out.view()});
  }

  // The same with E4M3 on both sides.
  absl::Status MultiplyCodes(Device& device, simt::CublasLt kind, int64_t rows, const Weight& w,
                             const Weight& w2 = {}) {
    const simt::ScopedOptions scope(With(kind));
    const int64_t k = w.w.dim(1);
    const Owned x = Random(rng_, DType::kF8E4M3, {rows, k});
    const Owned scales = Random(rng_, DType::kF32, {rows, (k + 127) / 128});
    Owned out(DType::kF32, {rows, w.w.dim(0)});
    return Linear(device, {.x = x.view(),
                           .x_scales = scales.view(),
                           .w = w,
                           .w2 = w2,
                           .out = out.view(),
                           .epilogue = w2.absent() ? Epilogue::kNone : Epilogue::kSiluMul});
  }
  // Whether the library computes it: without an algorithm to its name, the product fails.
  bool IsTheLibrarys(Device& device, const Weight& w, const Weight& w2 = {}) {
    const absl::Status status = MultiplyCodes(device, simt::CublasLt::kOnlySplits, 3, w, w2);
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kFailedPrecondition) << status;
    return !status.ok();
  }

  const OwnedWeight w_;
};

TEST_P(CublasLtTest, RefusesAlgorithmsThatSplitK) {
  const absl::Status status = Multiply(simt::CublasLt::kOnlySplits, 4);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("BF16 products of K = 128 without a split of K"),
                    HasSubstr("2 offered"), HasSubstr("set kernels.cuda.dense_gemm to own")));
  EXPECT_OK(Multiply(simt::CublasLt::kFixed, 4));
  const OwnedWeight codes = RandomWeight(rng_, DType::kF8E4M3, 40, 256);
  const absl::Status refused =
      MultiplyCodes(*device_, simt::CublasLt::kOnlySplits, 4, codes.view());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr("E4M3 products of K = 256 without a split of K"),
                    HasSubstr("2 offered"), HasSubstr("set kernels.cuda.dense_gemm to own")));
  EXPECT_OK(MultiplyCodes(*device_, simt::CublasLt::kFixed, 4, codes.view()));
}

TEST_P(CublasLtTest, NoticesThatBitsDependOnTheNumberOfRows) {
  EXPECT_OK(Multiply(simt::CublasLt::kVaries, 64));
  for (const int64_t rows : {65, 128}) {
    const absl::Status status = Multiply(simt::CublasLt::kVaries, rows);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("128 rows, 40 columns and K = 128 has other bits"),
                      HasSubstr("set kernels.cuda.dense_gemm to own")));
  }
  EXPECT_OK(Multiply(simt::CublasLt::kFixed, 128));
}

TEST_P(CublasLtTest, NoticesThatBitsOfCodesDependOnTheNumberOfRows) {
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 160, 384);
  EXPECT_OK(MultiplyCodes(*device_, simt::CublasLt::kVaries, 64, w.view()));
  for (const int64_t rows : {65, 128}) {
    const absl::Status status = MultiplyCodes(*device_, simt::CublasLt::kVaries, rows, w.view());
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("128 rows, 160 columns and K = 384 has other bits"),
                      HasSubstr("set kernels.cuda.dense_gemm to own")));
  }
  EXPECT_OK(MultiplyCodes(*device_, simt::CublasLt::kFixed, 128, w.view()));
}

// An op that does not wait for itself has nothing to say of its own bits; whoever waits hears it.
TEST_P(CublasLtTest, WhoeverWaitsForResultsHearsOfOtherBits) {
  const simt::ScopedOptions scope(With(simt::CublasLt::kVaries));
  const auto device =
      CreateDevice({.backend = BackendKind::kCuda, .dense_gemm = DenseGemm::kCublasLt}).value();
  const Owned x = Random(rng_, DType::kBF16, {130, 128});
  Owned out(DType::kF32, {130, 40});
  const auto multiply = [&] {
    return Linear(*device, {.x = x.view(), .w = w_.view(), .out = out.view()});
  };
  const auto is_told = [](const absl::Status& status) {
    return status.code() == absl::StatusCode::kFailedPrecondition &&
           status.message().find("has other bits") != absl::string_view::npos;
  };
  float value = 0;
  EXPECT_OK(multiply());
  EXPECT_TRUE(is_told(device->Synchronize()));
  EXPECT_OK(device->Synchronize());
  EXPECT_OK(multiply());
  EXPECT_TRUE(is_told(device->CopyToHost(&value, out.as<float>(), sizeof(value))));
  // The two rows behind the 128 are the small product's.
  const simt::ScopedOptions mended(With(simt::CublasLt::kFixed));
  EXPECT_OK(multiply());
  EXPECT_OK(device->Synchronize());
}

// By types, K and layout, and for all rows of a matrix alike.
TEST_P(CublasLtTest, TakesCodesInBlocksOf128) {
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 200, 256);
  EXPECT_TRUE(IsTheLibrarys(*device_, w.view()));
  EXPECT_TRUE(IsTheLibrarys(*device_, w.view().Rows(0, 3)));
  EXPECT_TRUE(IsTheLibrarys(*device_, w.view().Rows(77, 190)));
  EXPECT_FALSE(IsTheLibrarys(*device_, w.view(), w.view()));
  const OwnedWeight ragged = RandomWeight(rng_, DType::kF8E4M3, 32, 192);
  EXPECT_FALSE(IsTheLibrarys(*device_, ragged.view()));
  OwnedWeight low = RandomWeight(rng_, DType::kF8E4M3, 32, 256);
  low.scales = Random(rng_, DType::kF32, {1, 2});
  Weight blocks = low.view();
  blocks.block_n = 32;
  EXPECT_FALSE(IsTheLibrarys(*device_, blocks));
  // Rows that do not begin at multiples of 16 bytes.
  const Owned wide = Random(rng_, DType::kF8E4M3, {32, 264});
  const Owned scales = Random(rng_, DType::kF32, {1, 2});
  EXPECT_FALSE(
      IsTheLibrarys(*device_, {.w = wide.view().Slice(1, 0, 256), .scales = scales.view()}));
}

// Rows in BF16 for a weight in E4M3 have no product of the library's.
TEST_P(CublasLtTest, LeavesMixedTypesAlone) {
  const simt::ScopedOptions scope(With(simt::CublasLt::kOnlySplits));
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 32, 256);
  const Owned x = Random(rng_, DType::kBF16, {3, 256});
  Owned out(DType::kF32, {3, 32});
  EXPECT_OK(Linear(*device_, {.x = x.view(), .w = w.view(), .out = out.view()}));
}

// Ada and Blackwell have no scales of 128x128 in the library, and Baton's kernels there as before.
TEST_P(CublasLtTest, LeavesCodesToBatonsKernelsOnOtherGpus) {
  const OwnedWeight w = RandomWeight(rng_, DType::kF8E4M3, 32, 256);
  for (const auto& [major, minor] : {std::pair{8, 9}, {9, 0}, {10, 0}}) {
    simt::Options options = simt::GetOptions();
    options.compute_major = major;
    options.compute_minor = minor;
    const simt::ScopedOptions scope(options);
    const std::unique_ptr<Device> device = MakeDevice(GetParam(), 1);
    EXPECT_EQ(IsTheLibrarys(*device, w.view()), major == 9) << major;
    EXPECT_OK(MultiplyCodes(*device, simt::CublasLt::kFixed, 3, w.view()));
  }
}

BATON_INSTANTIATE_KERNEL_TEST(CublasLtTest);

}  // namespace
}  // namespace baton::kernels
