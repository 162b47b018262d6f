#ifndef BATON_KERNELS_CUDA_MLA_DECODE_H_
#define BATON_KERNELS_CUDA_MLA_DECODE_H_

#include <cstdint>

#include "kernels/cuda/launch_args.h"
#include "kernels/cuda/paged.h"

namespace baton::kernels::cuda {

inline constexpr int kKeyBlock = 64;      // keys of one step, at absolute positions
inline constexpr int kDecodeSplit = 256;  // keys of one block of the grid, at absolute positions
// The same of long contexts for kernels whose blocks have so many heads that a split's state is as
// large as its keys.
inline constexpr int kLongSplit = 1024;
inline constexpr int kShortContext = 2048;

// Keys of a split of a row that sees `keys`; `long_split` is the launch's.
constexpr int SplitKeys(int long_split, int keys) {
  return keys <= kShortContext ? kDecodeSplit : long_split;
}
// Splits of the longest row of a context.
constexpr int MostSplits(int long_split, int keys) {
  const int of_short = (keys < kShortContext ? keys : kShortContext) + kDecodeSplit - 1;
  const int of_long = keys + long_split - 1;
  return of_short / kDecodeSplit > of_long / long_split ? of_short / kDecodeSplit
                                                        : of_long / long_split;
}

// Attention on latents (MlaDecode of kernels/ops.h) of rows [first_row, first_row + rows): one
// launch for the splits, one that merges them in ascending order.
struct MlaDecodeLaunch {
  Rows q_lat;  // [rows * heads, kv_lora]
  Rows q;      // [rows * heads, head]; the last `rope` values
  Rows out;    // [rows * heads, kv_lora]
  Pages pages;
  Batch batch;
  int first_row = 0;  // of the batch
  int rows = 0;       // > 0
  int heads = 0;
  int head = 0;
  int splits = 0;                 // of the longest context that the page table has room for
  float scale_log2 = 0.0f;        // softmax's scale times log2(e)
  float* part_acc = nullptr;      // scratch: [rows * heads * splits, kv_lora]
  float* part_best = nullptr;     // scratch: [rows * heads * splits]
  float* part_sum = nullptr;      // scratch: [rows * heads * splits]
  int long_split = kDecodeSplit;  // kLongSplit or kDecodeSplit; see SplitKeys
};

// In F32, for all formats and types. A block for (row, 8 heads, split).
cudaError_t LaunchMlaDecodePlain(const MlaDecodeLaunch& args, cudaStream_t stream);

// By matrix instructions: q and rotary keys BF16, pages BF16 or FP8.
bool CanMlaDecodeTensor(const MlaDecodeLaunch& args, int architecture);
cudaError_t LaunchMlaDecodeTensor(const MlaDecodeLaunch& args, int architecture,
                                  cudaStream_t stream);

// By matrix instructions of warpgroups, on Hopper (architecture 90) alone: 512 latents and 64
// rotary values, everything aligned to 16 bytes, q_lat BF16 as well. The launch's long_split is
// kLongSplit.
bool CanMlaDecodeHopper(const MlaDecodeLaunch& args);
cudaError_t LaunchMlaDecodeHopper(const MlaDecodeLaunch& args, cudaStream_t stream);

// Folds the splits' states into `out`. A block for (row, head).
cudaError_t LaunchMlaDecodeMerge(const MlaDecodeLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_MLA_DECODE_H_
