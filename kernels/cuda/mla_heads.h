#ifndef BATON_KERNELS_CUDA_MLA_HEADS_H_
#define BATON_KERNELS_CUDA_MLA_HEADS_H_

// Queries of each head to latents.

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

// out[t][i] = q[t][i] W_UK[i] for head i.
struct MlaHeadsLaunch {
  Rows q;           // [rows * heads, head]; the first `nope` values are read
  Rows out;         // [rows * heads, kv_lora]
  GemmWeight kv_b;  // [heads * per_head, kv_lora]: of each head first nope rows of W_UK
  GemmType type = GemmType::kBf16;
  int block_n = 128;
  int block_k = 128;
  int rows = 0;  // > 0
  int heads = 0;
  int nope = 0;
  int per_head = 0;
  int kv_lora = 0;
};

// In F32, for all types. A block for (8 rows, head, 128 latents).
cudaError_t LaunchMlaHeadsPlain(const MlaHeadsLaunch& args, cudaStream_t stream);

// By matrix instructions: q BF16, kv_b BF16 or E4M3. A block for (64 rows, head, 64 latents).
bool CanMlaHeadsTensor(const MlaHeadsLaunch& args);
cudaError_t LaunchMlaHeadsTensor(const MlaHeadsLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_MLA_HEADS_H_
