#ifndef BATON_KERNELS_HOST_MEMORY_H_
#define BATON_KERNELS_HOST_MEMORY_H_

// The memory of backends whose device is the host: `reference` and `cpu`.

#include "kernels/op_table.h"

namespace baton::kernels {

absl::StatusOr<DeviceBuffer> HostAllocate(Device& device, size_t bytes);
absl::Status HostCopyToDevice(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostCopyToHost(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostSynchronize(Device& device);

inline constexpr MemoryTable kHostMemory = {.allocate = HostAllocate,
                                            .copy_to_device = HostCopyToDevice,
                                            .copy_to_host = HostCopyToHost,
                                            .synchronize = HostSynchronize};

}  // namespace baton::kernels

#endif  // BATON_KERNELS_HOST_MEMORY_H_
