// What programs have that do not link the CUDA backend.

#include "kernels/backend.h"

namespace baton::kernels {
namespace {

absl::Status Absent() {
  return absl::FailedPreconditionError(
      "this binary was built without the CUDA backend; build the preset `cuda` "
      "(cmake --preset cuda && cmake --build --preset cuda) or compute on the CPU (--device cpu)");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions&) { return Absent(); }

absl::StatusOr<int64_t> GpuMemoryBytes() { return Absent(); }

std::string CudaText() { return ""; }

}  // namespace baton::kernels
