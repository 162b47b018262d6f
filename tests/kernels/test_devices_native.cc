// The machine's first GPU: with all kernels, with those of every GPU, with cuBLASLt's products.
// Without one the program says why and ends with kSkipped, so that nobody takes its tests for run.

#include <cuda_runtime_api.h>

#include <iostream>

#include "base/check.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cublaslt_library.h"
#include "tests/kernels/test_devices.h"

namespace baton::kernels {

class TestDeviceScope::State {};

std::vector<TestDevice> TestDevices() {
  std::vector<TestDevice> devices = {
      {.backend = BackendKind::kCuda, .name = "gpu"},
      {.backend = BackendKind::kCuda, .name = "gpu_plain", .warpgroups = false}};
  if (cuda::LoadCublasLt().ok()) {
    devices.push_back({.backend = BackendKind::kCuda,
                       .name = "gpu_cublaslt",
                       .dense_gemm = DenseGemm::kCublasLt});
  }
  return devices;
}

TestDeviceScope::TestDeviceScope(const TestDevice&) {}
TestDeviceScope::~TestDeviceScope() = default;
std::string TestDeviceScope::Fault() { return ""; }

void* AllocateTestMemory(size_t bytes) {
  void* data = nullptr;
  BATON_CHECK_EQ(cudaMallocHost(&data, bytes), cudaSuccess);
  return data;
}
void FreeTestMemory(void* data) { BATON_CHECK_EQ(cudaFreeHost(data), cudaSuccess); }

}  // namespace baton::kernels

// As tests/kernels/CMakeLists.txt says to ctest.
constexpr int kSkipped = 77;

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const auto device = baton::kernels::CreateDevice({.backend = baton::kernels::BackendKind::kCuda});
  if (!device.ok()) {
    std::cerr << "SKIPPED, no test was run: " << device.status().message() << std::endl;
    return kSkipped;
  }
  return RUN_ALL_TESTS();
}
