// The shared libraries that the native CUDA backend opens when it first calls them: those that the
// build found have every function, and without one the message says what to install.

#include <nccl.h>

#include <string>

#include "base/shared_library.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/cublaslt_plan.h"
#include "transport/nccl/native/nccl_library.h"
#include "transport/nccl/one_sided_calls.h"

namespace baton {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(CudaLibrariesTest, NcclHasWhatIsCalled) {
  EXPECT_TRUE(transport::LoadNccl().ok()) << transport::LoadNccl();
  int version = 0;
  EXPECT_EQ(ncclGetVersion(&version), ncclSuccess);
  EXPECT_GE(version / 10000, 2);
  EXPECT_STREQ(ncclGetErrorString(ncclSuccess), "no error");
}

// Where the release is one whose one-sided calls are used, it has them.
TEST(CudaLibrariesTest, NcclHasOneSidedCallsByItsRelease) {
  int version = 0;
  ASSERT_EQ(ncclGetVersion(&version), ncclSuccess);
  EXPECT_EQ(transport::FindOneSidedCalls().ok(), version >= 23003 && version < 23100) << version;
  EXPECT_NE(transport::FindNcclFunction("ncclMemAlloc"), nullptr);
  EXPECT_EQ(transport::FindNcclFunction("ncclNoSuchCall"), nullptr);
}

TEST(CudaLibrariesTest, CublasLtHasWhatIsCalled) {
  EXPECT_TRUE(kernels::cuda::LoadCublasLt().ok()) << kernels::cuda::LoadCublasLt();
}

// Attributes of products and preferences need no GPU: the library knows all that the backend sets,
// in these sizes. Algorithms need a handle, which is only there with a GPU.
TEST(CudaLibrariesTest, CublasLtTakesTheAttributesOfEachKindOfProduct) {
  alignas(16) constexpr float kScales[4] = {};
  for (const bool codes : {false, true}) {
    const auto plan = kernels::cuda::CublasLtPlan::Choose(
        nullptr, {.k = 256, .codes = codes}, {.x_scales = kScales, .w_scales = kScales});
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition) << plan.status();
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("0 offered"));
  }
}

TEST(SharedLibraryTest, SaysWhatIsMissingAndTheFix) {
  constexpr const char* kNames[] = {"libnot_there.so.1", "/nowhere/libnot_there.so"};
  const SharedLibrary none(kNames, "install it");
  EXPECT_EQ(none.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(none.status().message()),
              AllOf(HasSubstr("libnot_there.so.1"), HasSubstr("/nowhere/libnot_there.so"),
                    HasSubstr("; install it")));
  EXPECT_EQ(none.Find("main"), nullptr);
  EXPECT_FALSE(none.Has({}).ok());
}

TEST(SharedLibraryTest, NamesTheFunctionsThatAVersionLacks) {
  constexpr const char* kNames[] = {"libnot_there.so.1", "libm.so.6"};
  const SharedLibrary maths(kNames, "");
  ASSERT_TRUE(maths.status().ok()) << maths.status();
  auto* const root = reinterpret_cast<double (*)(double)>(maths.Find("sqrt"));
  ASSERT_NE(root, nullptr);
  EXPECT_EQ(root(16.0), 4.0);
  constexpr const char* kFunctions[] = {"sqrt", "square_the_circle"};
  EXPECT_THAT(std::string(maths.Has(kFunctions).message()),
              HasSubstr("libm.so.6 has no square_the_circle"));
}

}  // namespace
}  // namespace baton
