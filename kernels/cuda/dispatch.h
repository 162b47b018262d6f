#ifndef BATON_KERNELS_CUDA_DISPATCH_H_
#define BATON_KERNELS_CUDA_DISPATCH_H_

// Rows to the experts of other ranks, and outputs home: DispatchPlan, DispatchPack, DispatchUnpack
// and ReturnPlan of kernels/ops.h.

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

struct DispatchPlanLaunch {
  const int32_t* physical = nullptr;  // [rows, choices]
  int32_t* counts = nullptr;          // [ranks, 2]
  int32_t* records = nullptr;         // [rows, choices]
  int32_t* home_rows = nullptr;       // [rows, choices]
  int rows = 0;
  int choices = 1;  // > 0
  int ranks = 1;    // > 0
  int slots_per_rank = 1;
  int row_capacity = 0;  // 0: packed
  int pair_capacity = 0;
  const int32_t* blocks = nullptr;  // [ranks] or null
  int32_t* most_pairs = nullptr;    // or null
};
// A block for each rank, which places what goes there, and, packed, counts what goes before it.
cudaError_t LaunchDispatchPlan(const DispatchPlanLaunch& args, cudaStream_t stream);

struct DispatchPackLaunch {
  static constexpr int kMaxChoices = 64;
  DispatchPlanLaunch plan;
  const uint8_t* x = nullptr;  // rows `x_stride` bytes apart
  int64_t x_stride = 0;
  const uint8_t* scales = nullptr;  // or null; rows `scales_stride` bytes apart
  int64_t scales_stride = 0;
  uint8_t* out = nullptr;
  // A record: values, zeros, scales, slots, zeros.
  int64_t row_bytes = 0;
  int64_t scales_at = 0;
  int64_t slots_at = 0;
  int64_t record_bytes = 0;  // a multiple of 16
};
// A block for each row; not packed, one for each rank's records without rows as well.
cudaError_t LaunchDispatchPack(const DispatchPackLaunch& args, cudaStream_t stream);

struct DispatchUnpackLaunch {
  const uint8_t* records = nullptr;
  int64_t record_bytes = 0;
  int64_t scales_at = 0;
  int64_t slots_at = 0;
  int rows = 0;  // > 0
  int choices = 1;
  int slots_per_rank = 1;
  int32_t* slots = nullptr;  // [rows, choices]
  Rows x;                    // [rows, hidden] or null
  int hidden = 0;
};
// A block for each record.
cudaError_t LaunchDispatchUnpack(const DispatchUnpackLaunch& args, cudaStream_t stream);

struct ReturnPlanLaunch {
  const int32_t* pair_rows = nullptr;  // [blocks, block_entries]
  int32_t* index = nullptr;            // [blocks, block_places]
  int blocks = 0;                      // > 0
  int64_t block_entries = 0;
  int64_t block_places = 0;
};
// A block for each block.
cudaError_t LaunchReturnPlan(const ReturnPlanLaunch& args, cudaStream_t stream);

struct MoeCountLaunch {
  const int32_t* experts = nullptr;  // [pairs]
  const int64_t* slots = nullptr;    // [pairs / row_pairs], or null: all rows count
  int32_t* choices = nullptr;        // [experts]
  int pairs = 0;                     // > 0
  int row_pairs = 1;                 // of a row
};
cudaError_t LaunchMoeCount(const MoeCountLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_DISPATCH_H_
