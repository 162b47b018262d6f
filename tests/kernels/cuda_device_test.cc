// Which machines the CUDA backend takes, and what it says of the others.

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "tests/simt/options.h"

namespace baton::kernels {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

absl::Status Create(const simt::Options& machine, int gpu = 0) {
  const simt::ScopedOptions scope(machine);
  return CreateDevice({.backend = BackendKind::kCuda, .gpu = gpu}).status();
}

void ExpectNoGpu(const absl::Status& status, const std::string& why) {
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(why), HasSubstr("nvidia-smi"), HasSubstr("--device cpu")));
}

TEST(CudaDeviceTest, TakesTheCapabilitiesThatItHasCodeFor) {
  for (const auto& [major, minor] : {std::pair{8, 9}, {9, 0}, {10, 0}}) {
    EXPECT_TRUE(Create({.compute_major = major, .compute_minor = minor}).ok()) << major << minor;
  }
}

TEST(CudaDeviceTest, RefusesOthersByTheirNumber) {
  for (const auto& [major, minor] : {std::pair{8, 0}, {8, 6}, {9, 1}, {10, 3}, {12, 0}}) {
    ExpectNoGpu(Create({.compute_major = major, .compute_minor = minor}),
                "GPU 0 has compute capability " + std::to_string(major) + "." +
                    std::to_string(minor) +
                    ", for which this binary has no code (it has sm_89, sm_90a, sm_100a)");
  }
}

TEST(CudaDeviceTest, RefusesDriversThatAreNotThereOrTooOld) {
  ExpectNoGpu(Create({.driver_version = 0}),
              "no NVIDIA driver was found (libcuda.so.1), expected one for CUDA 13.0 or later");
  ExpectNoGpu(
      Create({.driver_version = 12080}),
      "the NVIDIA driver is one for CUDA 12.8, expected one for CUDA 13.0 or later; update it");
  EXPECT_TRUE(Create({.driver_version = 13000}).ok());
  EXPECT_TRUE(Create({.driver_version = 14010}).ok());
}

TEST(CudaDeviceTest, RefusesMachinesWithoutTheGpu) {
  ExpectNoGpu(Create({.devices = 0}), "no GPU can be used: ");
  const absl::Status third = Create({.devices = 2}, 2);
  EXPECT_EQ(third.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(third.message(), "gpu is 2, expected 0 to 1");
}

}  // namespace
}  // namespace baton::kernels
