#ifndef BATON_KERNELS_CUDA_SAMPLE_H_
#define BATON_KERNELS_CUDA_SAMPLE_H_

// Sample (ops.h): one block chooses one row's token, without sorting the row.

#include <cuda_runtime_api.h>

#include <cstdint>

namespace baton::kernels::cuda {

inline constexpr int kMostLogprobs = 20;

struct SeenToken {
  int32_t token = 0;
  int32_t generated = 0;
};

// SampleParams, for the GPU.
struct SampleRow {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  int32_t top_logprobs = 0;
  uint64_t draw = 0;  // 53 bits of the generator
  // With penalties: the tokens seen, and working memory for a row of logits; else null.
  const SeenToken* seen = nullptr;
  int32_t seen_count = 0;
  float* penalized = nullptr;
};

struct SampleAnswer {
  int32_t token = -1;
  float logprob = 0.0f;
  int32_t top_count = 0;
  int32_t top_token[kMostLogprobs] = {};
  float top_logprob[kMostLogprobs] = {};
};

struct SampleLaunch {
  const float* logits = nullptr;  // rows `stride` apart
  int64_t stride = 0;
  int vocabulary = 0;                 // 1..2^21
  int rows = 0;                       // > 0
  const SampleRow* params = nullptr;  // [rows]
  SampleAnswer* answers = nullptr;    // out: [rows]
};
// A block for each row: 512 threads, one warp for vocabularies of up to 32.
cudaError_t LaunchSample(const SampleLaunch& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda

#endif  // BATON_KERNELS_CUDA_SAMPLE_H_
