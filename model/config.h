#ifndef BATON_MODEL_CONFIG_H_
#define BATON_MODEL_CONFIG_H_

// What a checkpoint's config.json and generation_config.json say, validated, as plain data, and the
// sums that follow from it (parameters, KV bytes, softmax scale, rotary tables). Everything in
// which one family member differs from another (scoring, group score, projections of q, rope) is a
// value here, so that the forward pass asks fields, never names of models. Pure functions of their
// input; callable from any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "kernels/ops.h"

namespace baton::model {

enum class WeightFormat : uint8_t {
  kBF16,
  kFp8Block,  // linears in E4M3 with one F32 scale for each 128x128 block, the rest as kBF16
};
const char* WeightFormatName(WeightFormat format);

// Rotary embedding over the qk_rope_head_dim dimensions, pairs (2i, 2i + 1) interleaved.
struct RopeConfig {
  double theta = 10000.0;
  bool yarn = false;
  // The rest is meaningful when `yarn` (arXiv 2309.00071, with DeepSeek's two mscales).
  double factor = 1.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;          // 0: not given
  double mscale_all_dim = 0.0;  // 0: not given
  int32_t original_max_positions = 0;
};

struct ModelConfig {
  std::string model_type;  // "deepseek_v3"

  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t layers = 0;        // run by the forward pass; MTP layers not counted
  int32_t dense_layers = 0;  // the first ones have an MLP in place of experts; <= layers
  int32_t mtp_layers = 0;  // multi-token-prediction layers stored after `layers`: checked, not run
  int32_t max_positions = 0;

  int32_t heads = 0;
  int32_t q_lora_rank = 0;  // 0: q is projected directly
  int32_t kv_lora_rank = 0;
  int32_t qk_nope_head_dim = 0;
  int32_t qk_rope_head_dim = 0;
  int32_t v_head_dim = 0;

  int32_t intermediate_size = 0;      // width of a dense layer's MLP
  int32_t moe_intermediate_size = 0;  // width of one expert
  int32_t routed_experts = 0;
  int32_t shared_experts = 0;  // one MLP of shared_experts * moe_intermediate_size; 0: none
  int32_t experts_per_token = 0;
  int32_t expert_groups = 1;
  int32_t groups_per_token = 1;
  kernels::GateScore scoring = kernels::GateScore::kSigmoid;
  kernels::GroupScore group_score = kernels::GroupScore::kSumOfTop2;
  bool selection_bias = true;     // e_score_correction_bias: chooses experts, does not weigh them
  bool normalize_weights = true;  // weights of the chosen experts are divided by their sum
  float routed_scaling_factor = 1.0f;

  float rms_norm_eps = 1e-6f;
  RopeConfig rope;
  bool tie_word_embeddings = false;  // lm_head is the embedding
  WeightFormat weight_format = WeightFormat::kBF16;

  std::vector<TokenId> eos_token_ids;  // may be empty

  int32_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int32_t latent_dim() const { return kv_lora_rank + qk_rope_head_dim; }
  int32_t shared_intermediate_size() const { return shared_experts * moe_intermediate_size; }
  bool is_dense(int32_t layer) const { return layer < dense_layers; }
};

// Reads the text of a config.json. `source` names it in messages. INVALID_ARGUMENT lists every
// problem at once, one a line, each with the field, the value found and what is supported.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, const std::string& source);

// generation_config.json: what a request gets when it does not ask for something else.
struct GenerationDefaults {
  std::vector<TokenId> eos_token_ids;  // as in config.json when the file does not say
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: off
};

// As ParseModelConfig, for a generation_config.json. `do_sample: false` is temperature 0.
absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view json,
                                                         const std::string& source,
                                                         const ModelConfig& config);
// What holds for a checkpoint without that file.
GenerationDefaults DefaultGeneration(const ModelConfig& config);

// Parameters of the layers that run (MTP apart), counted in weights, block scales not included.
struct ParameterCounts {
  int64_t total = 0;
  // Multiplied once for one token: everything but the embedding and the experts not chosen.
  int64_t active = 0;
};
ParameterCounts CountParameters(const ModelConfig& config);

// (nope + rope)^-0.5, times (0.1 * mscale_all_dim * ln(factor) + 1)^2 under YaRN.
double SoftmaxScale(const ModelConfig& config);

// Frequencies of the rotary pairs, radians per position: qk_rope_head_dim / 2 values. YaRN: arXiv
// 2309.00071, section 3.2.
std::vector<double> RopeFrequencies(const ModelConfig& config);
// The factor on cos and sin: under YaRN the ratio of the two mscales, else 1.
double RopeMagnitude(const ModelConfig& config);

// cos and sin of position * frequency, times RopeMagnitude: [positions, qk_rope_head_dim / 2] each.
struct RopeTable {
  std::vector<float> cos;
  std::vector<float> sin;
};
RopeTable MakeRopeTable(const ModelConfig& config, int32_t positions);

}  // namespace baton::model

#endif  // BATON_MODEL_CONFIG_H_
