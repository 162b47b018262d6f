#ifndef BATON_KERNELS_HOST_MEMORY_H_
#define BATON_KERNELS_HOST_MEMORY_H_

// Memory and queue of backends whose device is the host: `reference` and `cpu`.

#include <memory>

#include "kernels/op_table.h"

namespace baton::kernels {

absl::StatusOr<DeviceBuffer> HostAllocate(Device& device, size_t bytes);
absl::Status HostCopyToDevice(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostCopyToHost(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostSynchronize(Device& device);

inline constexpr MemoryTable kHostMemory = {.allocate = HostAllocate,
                                            .copy_to_device = HostCopyToDevice,
                                            .copy_to_host = HostCopyToHost,
                                            .enqueue_copy_to_device = HostCopyToDevice,
                                            .synchronize = HostSynchronize};

absl::StatusOr<std::unique_ptr<Fence>> HostMark(Device& device);

// An op has finished when it returns.
inline constexpr QueueTable kNoQueue = {.mark = HostMark};

}  // namespace baton::kernels

#endif  // BATON_KERNELS_HOST_MEMORY_H_
