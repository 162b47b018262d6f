#ifndef BATON_KERNELS_OP_TABLE_H_
#define BATON_KERNELS_OP_TABLE_H_

// What a backend is: one function for each op of ops.h, called with arguments that ops.cc has
// checked, and never with an empty batch; its memory, and its queue. Every entry of every table is
// set, but where it says so.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/op_list.h"
#include "kernels/ops.h"

namespace baton::kernels {

template <typename Args>
using OpFunction = absl::Status (*)(Device&, const Args&);

// As the methods of Device of these names.
struct MemoryTable {
  absl::StatusOr<DeviceBuffer> (*allocate)(Device&, size_t bytes);
  absl::Status (*copy_to_device)(Device&, void* device, const void* host, size_t bytes);
  absl::Status (*copy_to_host)(Device&, void* host, const void* device, size_t bytes);
  absl::Status (*enqueue_copy_to_device)(Device&, void* device, const void* host, size_t bytes);
  absl::Status (*synchronize)(Device&);
};

// As the methods of Device of these names; what a backend that runs ops at once has no need of is
// null, but `mark`.
struct QueueTable {
  absl::StatusOr<std::unique_ptr<Fence>> (*mark)(Device&) = nullptr;
  bool (*can_record)(const Device&) = nullptr;
  absl::Status (*begin_recording)(Device&) = nullptr;
  absl::StatusOr<std::unique_ptr<Recording>> (*end_recording)(Device&) = nullptr;
  absl::Status (*replay)(Device&, Recording&) = nullptr;
};

struct OpTable {
#define BATON_OP_ENTRY(Name, entry) OpFunction<Name##Args> entry;
  BATON_KERNEL_OPS(BATON_OP_ENTRY)
#undef BATON_OP_ENTRY
  MemoryTable memory;
  QueueTable queue;
};

const OpTable& ReferenceOps();
const OpTable& CpuOps();

}  // namespace baton::kernels

#endif  // BATON_KERNELS_OP_TABLE_H_
