#ifndef BATON_KERNELS_CUDA_PAGED_H_
#define BATON_KERNELS_CUDA_PAGED_H_

// Latent pages and the batch that reads them, as kernels get them (KvPages and PagedBatch of
// kernels/ops.h).

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

enum class PageFormat : int32_t { kBf16, kFp8, kF32 };

inline constexpr int kLatentGroup = 128;  // latents that share a scale in an FP8 entry

struct Pages {
  uint8_t* data = nullptr;
  int64_t page_bytes = 0;   // from one page to the next, a multiple of 4
  int32_t entry_bytes = 0;  // of one token, a multiple of 4
  int32_t rope_offset = 0;  // of an entry's rotary part, in bytes; FP8: scales end there
  int32_t page_tokens = 0;
  int32_t kv_lora = 0;  // a multiple of 32
  int32_t rope = 0;     // even
  PageFormat format = PageFormat::kBf16;
  int32_t count = 0;  // pages
};

struct Batch {
  const int32_t* query_start = nullptr;  // [sequences + 1]
  const int32_t* context_len = nullptr;  // [sequences]
  const int32_t* page_table = nullptr;   // rows `table_stride` apart
  int64_t table_stride = 0;
  int32_t sequences = 0;
};

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PAGED_H_
