// The host's side of ops on logits.

#include <vector>

#include "base/status_macros.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/logits_mask.h"
#include "kernels/cuda/sample.h"
#include "kernels/sampling.h"

namespace baton::kernels::cuda {
namespace {

constexpr char kUpload[] = "copy of sampling parameters to the GPU";

bool HasPenalties(const SampleParams& params) {
  return !params.seen.empty() &&
         (params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
          params.frequency_penalty != 0.0f);
}

// All rows' parameters, with their lists of tokens, on the GPU.
absl::StatusOr<SampleRow*> UploadParams(CudaState& state, const SampleArgs& args) {
  std::vector<SeenToken> seen;
  int64_t penalized_rows = 0;
  for (const SampleParams& params : args.params) {
    if (!HasPenalties(params)) continue;
    ++penalized_rows;
    for (const TokenCount& count : params.seen) seen.push_back({count.token, count.generated});
  }
  BATON_ASSIGN_OR_RETURN(const SeenToken* next_seen, state.Upload(seen, kUpload));
  const int64_t vocabulary = args.logits.dim(1);
  float* next_penalized = nullptr;
  if (penalized_rows > 0) {
    BATON_ASSIGN_OR_RETURN(next_penalized, state.Scratch<float>(penalized_rows * vocabulary));
  }
  std::vector<SampleRow> rows;
  rows.reserve(args.params.size());
  for (const SampleParams& params : args.params) {
    rows.push_back({.temperature = params.temperature,
                    .top_k = params.top_k,
                    .top_p = params.top_p,
                    .min_p = params.min_p,
                    .repetition_penalty = params.repetition_penalty,
                    .presence_penalty = params.presence_penalty,
                    .frequency_penalty = params.frequency_penalty,
                    .top_logprobs = params.top_logprobs,
                    .draw = DrawBits(params.seed, params.position)});
    if (!HasPenalties(params)) continue;
    SampleRow& row = rows.back();
    row.seen = next_seen;
    row.seen_count = static_cast<int32_t>(params.seen.size());
    row.penalized = next_penalized;
    next_seen += row.seen_count;
    next_penalized += vocabulary;
  }
  return state.Upload(rows, kUpload);
}

SampleResult ResultOf(const SampleAnswer& answer) {
  SampleResult result{.token = answer.token, .logprob = answer.logprob};
  result.top_count = answer.top_count;
  for (int32_t i = 0; i < answer.top_count; ++i) {
    result.top[i] = {answer.top_token[i], answer.top_logprob[i]};
  }
  return result;
}

}  // namespace

absl::Status LogitsMask(Device& device, const LogitsMaskArgs& args) {
  CudaState& state = CudaState::Begin(device);
  if (args.logits.dim(1) == 0) return absl::OkStatus();
  return state.Finish(LaunchLogitsMask({.logits = args.logits.as<float>(),
                                        .logits_stride = args.logits.strides[0],
                                        .mask = args.mask.as<const uint32_t>(),
                                        .mask_stride = args.mask.strides[0],
                                        .rows = static_cast<int>(args.logits.dim(0)),
                                        .vocabulary = static_cast<int>(args.logits.dim(1))},
                                       state.stream()),
                      "logits_mask");
}

// Returns when the GPU is done: the answers go to the host.
absl::Status Sample(Device& device, const SampleArgs& args) {
  CudaState& state = CudaState::Begin(device);
  const int64_t rows = args.logits.dim(0);
  SampleLaunch launch{.logits = args.logits.as<const float>(),
                      .stride = args.logits.strides[0],
                      .vocabulary = static_cast<int>(args.logits.dim(1)),
                      .rows = static_cast<int>(rows)};
  BATON_ASSIGN_OR_RETURN(launch.params, UploadParams(state, args));
  BATON_ASSIGN_OR_RETURN(launch.answers, state.Scratch<SampleAnswer>(rows));
  BATON_RETURN_IF_ERROR(CudaStatus(LaunchSample(launch, state.stream()), "sample"));
  std::vector<SampleAnswer> answers(static_cast<size_t>(rows));
  BATON_RETURN_IF_ERROR(state.CopyToHost(answers.data(), launch.answers,
                                         answers.size() * sizeof(SampleAnswer),
                                         "copy of sampled tokens from the GPU"));
  for (size_t i = 0; i < answers.size(); ++i) args.results[i] = ResultOf(answers[i]);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
