#ifndef BATON_KERNELS_CUDA_MOE_H_
#define BATON_KERNELS_CUDA_MOE_H_

#include <cstdint>

#include "kernels/cuda/launch_args.h"

namespace baton::kernels::cuda {

// Choice of experts from the router's logits.
struct MoeGateLaunch {
  float* scores = nullptr;        // [rows, experts]: in: logits; overwritten
  float* group_scores = nullptr;  // [rows, groups]: working memory; null for one group
  const float* bias = nullptr;    // [experts] or null
  int rows = 0;                   // > 0
  int experts = 0;
  int groups = 1;
  int top_groups = 1;
  int top_k = 1;             // 1..64
  bool sigmoid = false;      // or softmax
  bool sum_of_top2 = false;  // or the best alone
  bool normalize = false;
  float scale = 1.0f;
  int32_t* chosen = nullptr;                // [rows, top_k]
  float* weights = nullptr;                 // [rows, top_k]
  const int32_t* replicas = nullptr;        // [experts, max_replicas] or null
  const uint32_t* replica_count = nullptr;  // [experts]
  const uint32_t* row_hash = nullptr;       // [rows]
  int32_t* physical = nullptr;              // [rows, top_k]
  int max_replicas = 0;
};
// A warp for each row.
cudaError_t LaunchMoeGate(const MoeGateLaunch& args, cudaStream_t stream);

struct MoePermuteLaunch {
  const int32_t* experts = nullptr;  // [pairs]
  int32_t* offsets = nullptr;        // [local + 1]
  int32_t* row_tokens = nullptr;     // [room]
  int32_t* rows = nullptr;           // [pairs]
  int room = 0;                      // at most pairs
  int pairs = 0;
  int top_k = 1;  // > 0 with pairs
  int first_expert = 0;
  int local = 0;  // experts here
};
// A block for each expert here, which counts those before it and then places its own pairs, and one
// for the pairs whose experts are elsewhere.
cudaError_t LaunchMoePermute(const MoePermuteLaunch& args, cudaStream_t stream);

struct MoeCombineLaunch {
  Rows y;
  const int32_t* rows = nullptr;     // [tokens, top_k]
  const int32_t* experts = nullptr;  // [tokens, top_k]
  const float* weights = nullptr;    // [tokens, top_k]
  Rows shared;                       // [tokens, hidden] or null
  Rows out;                          // F32 [tokens, hidden]
  int tokens = 0;                    // > 0
  int hidden = 0;                    // > 0
  int top_k = 0;                     // 0..64
  bool accumulate = false;
};
// A block for each token and piece of its row.
cudaError_t LaunchMoeCombine(const MoeCombineLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_MOE_H_
