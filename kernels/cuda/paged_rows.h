#ifndef BATON_KERNELS_CUDA_PAGED_ROWS_H_
#define BATON_KERNELS_CUDA_PAGED_ROWS_H_

// Where a row's keys lie. For .cu files alone.

#include "kernels/cuda/device.h"
#include "kernels/cuda/paged.h"

namespace baton::kernels::cuda {

// A row of the batch: its sequence, and how many keys it sees.
struct RowPlace {
  int sequence;
  int keys;
};

BATON_DEVICE RowPlace FindRow(const Batch& batch, int row) {
  // The last sequence that begins at or before the row; empty ones lie before it.
  int low = 0, high = batch.sequences - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.query_start[middle] <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return {low, batch.context_len[low] - batch.query_start[low + 1] + row + 1};
}

BATON_DEVICE const uint8_t* EntryAt(const Pages& pages, const Batch& batch, int sequence,
                                    int position) {
  const int64_t page =
      batch.page_table[sequence * batch.table_stride + position / pages.page_tokens];
  return pages.data + page * pages.page_bytes +
         static_cast<int64_t>(position % pages.page_tokens) * pages.entry_bytes;
}

// Four latents of an entry from column `c` on, a multiple of 4; an FP8 latent is code * scale,
// rounded once.
BATON_DEVICE void LoadLatents(const Pages& pages, const uint8_t* entry, int c, float (&out)[4]) {
  if (pages.format == PageFormat::kF32) {
    const float* from = reinterpret_cast<const float*>(entry) + c;
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = from[i];
  } else if (pages.format == PageFormat::kBf16) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(entry) + c / 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t pair = from[i];
      out[2 * i] = Bf16ToFloat(static_cast<uint16_t>(pair));
      out[2 * i + 1] = Bf16ToFloat(static_cast<uint16_t>(pair >> 16));
    }
  } else {
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(entry + c);
    const float scale = reinterpret_cast<const float*>(entry + pages.kv_lora)[c / kLatentGroup];
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = E4M3ToFloat(static_cast<uint8_t>(codes >> 8 * i)) * scale;
  }
}

BATON_DEVICE float LoadRotary(const Pages& pages, const uint8_t* entry, int d) {
  const uint8_t* from = entry + pages.rope_offset;
  return pages.format == PageFormat::kF32 ? reinterpret_cast<const float*>(from)[d]
                                          : Bf16ToFloat(reinterpret_cast<const uint16_t*>(from)[d]);
}

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_PAGED_ROWS_H_
