#include "kernels/host_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace baton::kernels {

absl::StatusOr<DeviceBuffer> HostAllocate(Device&, size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (rounded < bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes"));
  }
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes"));
  }
  return DeviceBuffer(data, bytes, [](void* p) { std::free(p); });
}

absl::Status HostCopyToDevice(Device&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status HostCopyToHost(Device&, void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status HostSynchronize(Device&) { return absl::OkStatus(); }

absl::StatusOr<std::unique_ptr<Fence>> HostMark(Device&) {
  class Passed final : public Fence {
    absl::Status Wait() override { return absl::OkStatus(); }
  };
  return std::make_unique<Passed>();
}

}  // namespace baton::kernels
