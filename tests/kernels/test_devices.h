#ifndef BATON_TESTS_KERNELS_TEST_DEVICES_H_
#define BATON_TESTS_KERNELS_TEST_DEVICES_H_

// The devices that kernel tests run on, and memory that both they and the tests can use. Each test
// is one body; which devices it meets is chosen by what its program links: test_devices_cpu.cc (all
// instruction sets of this machine) or test_devices_emulated.cc (the emulated GPU, under many
// schedules).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace baton::kernels {

struct TestDevice {
  BackendKind backend = BackendKind::kCpu;
  IsaLevel isa = IsaLevel::kAvx512Bf16;  // of the cpu backend
  std::string name;                      // of a test's parameter
  uint64_t seed = 0;                     // of the emulation's schedule
  bool check_races = false;              // by the emulation
  bool warpgroups = true;                // of a GPU: kernels for Hopper's
  DenseGemm dense_gemm = DenseGemm::kOwn;
};
std::vector<TestDevice> TestDevices();
inline void PrintTo(const TestDevice& device, std::ostream* out) { *out << device.name; }

// While a test runs on a device.
class TestDeviceScope {
 public:
  explicit TestDeviceScope(const TestDevice& device);
  ~TestDeviceScope();
  // What the emulation has found wrong so far; empty: nothing.
  std::string Fault();

 private:
  class State;
  std::unique_ptr<State> state_;
};

// Host memory that the devices may use too; dies when there is none.
void* AllocateTestMemory(size_t bytes);
void FreeTestMemory(void* data);

template <typename T>
struct TestAllocator {
  using value_type = T;
  TestAllocator() = default;
  template <typename U>
  TestAllocator(const TestAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(AllocateTestMemory(count * sizeof(T))); }
  void deallocate(T* data, size_t) { FreeTestMemory(data); }
  friend bool operator==(const TestAllocator&, const TestAllocator&) { return true; }
};

}  // namespace baton::kernels

#endif  // BATON_TESTS_KERNELS_TEST_DEVICES_H_
