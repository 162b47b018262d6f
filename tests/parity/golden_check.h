#ifndef BATON_TESTS_PARITY_GOLDEN_CHECK_H_
#define BATON_TESTS_PARITY_GOLDEN_CHECK_H_

// The forward pass against Hugging Face's float32 logits (golden.safetensors, made by
// tools/make_golden): prompts in MHA form, their continuation in absorbed form, token by token.
//
// Tolerances are in units of a logit row's standard deviation s. With unit roundoff u of the
// activations, a branch of a layer passes about n = 8 roundings whose errors add like independent
// ones, and the residual stream keeps the branches' relative error: a logit is off by about sqrt(n)
// u s. The largest of some hundred such normal deviates is some 3 of them; gates, norms and YaRN
// amplify at most a few times: 8 in all.
//   BF16: u = 2^-9, 8 * sqrt(8) * 2^-9 = 0.044.
//   F32: u = 2^-24 makes 1e-6 of that; larger are the oracle's rotary angles, rounded at 263
//   radians: 263 * 2^-25 = 8e-6
//        on a part of the attention branch, a few layers deep: 2e-5.
//   FP8 pages: latents keep 4 bits of mantissa, u = 2^-4, on the attention branch alone, averaged
//   over keys: 0.25. An
//        error of that size also makes some rows choose another expert, which moves them by a whole
//        expert's output; such rows are counted apart and may be one in ten.

#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/ops.h"
#include "model/loaded_model.h"

namespace baton::model {

struct GoldenSetup {
  const char* name;
  kernels::BackendKind backend;
  kernels::DType activations;
  kernels::KvFormat kv_format;
  double tolerance;            // standard deviations of a logit row
  double outlier_share = 0.0;  // of rows that may be beyond it
  bool greedy = true;          // whether the greedy tokens must be the oracle's
  kernels::IsaLevel isa = kernels::IsaLevel::kAvx512Bf16;  // at most
};

inline constexpr GoldenSetup kReferenceF32 = {"ReferenceF32", kernels::BackendKind::kReference,
                                              kernels::DType::kF32, kernels::KvFormat::kF32, 2e-5};
inline constexpr GoldenSetup kCpuF32 = {"CpuF32", kernels::BackendKind::kCpu, kernels::DType::kF32,
                                        kernels::KvFormat::kF32, 2e-5};
inline constexpr GoldenSetup kCpuBf16 = {"CpuBf16", kernels::BackendKind::kCpu,
                                         kernels::DType::kBF16, kernels::KvFormat::kBF16, 0.044};
inline constexpr GoldenSetup kCpuFp8Pages = {"CpuFp8Pages",
                                             kernels::BackendKind::kCpu,
                                             kernels::DType::kBF16,
                                             kernels::KvFormat::kFP8,
                                             0.25,
                                             0.1,
                                             false};

// What machines without newer instructions run.
inline constexpr GoldenSetup kCpuBf16Avx2 = {"CpuBf16Avx2",
                                             kernels::BackendKind::kCpu,
                                             kernels::DType::kBF16,
                                             kernels::KvFormat::kBF16,
                                             0.044,
                                             0.0,
                                             true,
                                             kernels::IsaLevel::kAvx2};
inline constexpr GoldenSetup kCpuBf16Portable = {"CpuBf16Portable",
                                                 kernels::BackendKind::kCpu,
                                                 kernels::DType::kBF16,
                                                 kernels::KvFormat::kBF16,
                                                 0.044,
                                                 0.0,
                                                 true,
                                                 kernels::IsaLevel::kPortable};

// Expects all cases of `golden_path` from `model` under `setup`, and prints the worst difference
// met.
void CheckGolden(std::shared_ptr<const LoadedModel> model, const std::string& golden_path,
                 const GoldenSetup& setup);

}  // namespace baton::model

#endif  // BATON_TESTS_PARITY_GOLDEN_CHECK_H_
