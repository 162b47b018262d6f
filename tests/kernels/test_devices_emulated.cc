// The emulated GPU: every test under BATON_EMULATED_SCHEDULES (CMakeLists.txt) schedules, every
// other one with the race check; dense products by BATON_EMULATED_DENSE_GEMM. Two of the first four
// and of the second four keep to the kernels of every GPU.

#include <cuda_runtime_api.h>

#include "base/check.h"
#include "tests/kernels/test_devices.h"
#include "tests/simt/options.h"

namespace baton::kernels {
namespace {

constexpr uint64_t kSeeds = BATON_EMULATED_SCHEDULES;
constexpr DenseGemm kDenseGemm = DenseGemm::BATON_EMULATED_DENSE_GEMM;

}  // namespace

class TestDeviceScope::State {
 public:
  explicit State(const TestDevice& device)
      : options_({.seed = device.seed, .check_races = device.check_races}) {}

 private:
  simt::ScopedOptions options_;
};

std::vector<TestDevice> TestDevices() {
  std::vector<TestDevice> devices;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const bool races = seed % 2 == 0;
    const bool warpgroups = seed > 8 || seed % 4 < 2;
    devices.push_back({.backend = BackendKind::kCuda,
                       .name = "emulated_seed" + std::to_string(seed) + (races ? "_races" : "") +
                               (warpgroups ? "" : "_plain"),
                       .seed = seed,
                       .check_races = races,
                       .warpgroups = warpgroups,
                       .dense_gemm = kDenseGemm});
  }
  return devices;
}

TestDeviceScope::TestDeviceScope(const TestDevice& device)
    : state_(std::make_unique<State>(device)) {}
TestDeviceScope::~TestDeviceScope() = default;

std::string TestDeviceScope::Fault() {
  const std::optional<simt::Fault> fault = simt::TakeFault();
  return fault.has_value() ? fault->Text() : "";
}

// Exactly as long as asked for, so that a kernel that leaves it is noticed.
void* AllocateTestMemory(size_t bytes) {
  void* data = nullptr;
  BATON_CHECK_EQ(cudaMallocHost(&data, bytes), cudaSuccess);
  return data;
}
void FreeTestMemory(void* data) { BATON_CHECK_EQ(cudaFreeHost(data), cudaSuccess); }

}  // namespace baton::kernels
