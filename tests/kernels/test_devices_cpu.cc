#include <cstdlib>

#include "base/check.h"
#include "tests/kernels/kernel_test_util.h"

namespace baton::kernels {

class TestDeviceScope::State {};

std::vector<TestDevice> TestDevices() {
  std::vector<TestDevice> devices;
  for (const IsaLevel isa : IsaLevels()) devices.push_back({.isa = isa, .name = IsaName(isa)});
  return devices;
}

TestDeviceScope::TestDeviceScope(const TestDevice&) {}
TestDeviceScope::~TestDeviceScope() = default;
std::string TestDeviceScope::Fault() { return ""; }

void* AllocateTestMemory(size_t bytes) {
  void* const data = std::malloc(bytes);
  BATON_CHECK(data != nullptr);
  return data;
}
void FreeTestMemory(void* data) { std::free(data); }

}  // namespace baton::kernels
