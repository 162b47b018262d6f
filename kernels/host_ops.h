#ifndef BATON_KERNELS_HOST_OPS_H_
#define BATON_KERNELS_HOST_OPS_H_

// Entries of the op table that `reference` and `cpu` share: memory, and ops that only move bytes or
// integers.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/ops.h"

namespace baton::kernels {

absl::StatusOr<DeviceBuffer> HostAllocate(Device& device, size_t bytes);
absl::Status HostCopyToDevice(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostCopyToHost(Device& device, void* to, const void* from, size_t bytes);
absl::Status HostSynchronize(Device& device);

absl::Status HostPagesPack(Device& device, const PagesPackArgs& args);
absl::Status HostPagesUnpack(Device& device, const PagesUnpackArgs& args);
absl::Status HostMoePermute(Device& device, const MoePermuteArgs& args);
absl::Status HostLogitsMask(Device& device, const LogitsMaskArgs& args);

}  // namespace baton::kernels

#endif  // BATON_KERNELS_HOST_OPS_H_
