// Dense products through cuBLASLt, as the emulation has it: one chain of sums or a refusal, and the
// comparison that notices a library whose bits depend on the number of rows.

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

  // While the library is of that kind, a product of so many rows.
  absl::Status Multiply(simt::CublasLt kind, int64_t rows, DType out_type = DType::kF32) {
    simt::Options options = simt::GetOptions();
    options.cublaslt = kind;
    const simt::ScopedOptions scope(options);
    const Owned x = Random(rng_, DType::kBF16, {rows, 128});
    Owned out(out_type, {rows, 40});
    return Linear(*device_, {.x = x.view(), .w = w_.view(), .out = out.view()});
  }

  const OwnedWeight w_;
};

TEST_P(CublasLtTest, RefusesAlgorithmsThatSplitK) {
  const absl::Status status = Multiply(simt::CublasLt::kOnlySplits, 4);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("K = 128 without a split of K"), HasSubstr("2 offered"),
                    HasSubstr("set kernels.cuda.dense_gemm to own")));
  EXPECT_OK(Multiply(simt::CublasLt::kFixed, 4));
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

BATON_INSTANTIATE_KERNEL_TEST(CublasLtTest);

}  // namespace
}  // namespace baton::kernels
