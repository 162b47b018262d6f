#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "model/json_fields.h"

namespace baton::model {
namespace {

using kernels::GateScore;
using kernels::GroupScore;

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr int32_t kMaxDim = 1 << 20;
constexpr int32_t kMaxPositions = 1 << 24;

// Fields that must have the one value that is implemented.
void ReadFixed(JsonFields& fields) {
  if (fields.Bool("attention_bias", false)) {
    fields.Problem("attention_bias", "is true, supported: false");
  }
  fields.Choice("hidden_act", {"silu"}, "silu");
  if (!fields.Bool("rope_interleave", true)) {
    fields.Problem("rope_interleave",
                   "is false, supported: true (pairs as in DeepSeek's checkpoints)");
  }
  fields.Int("moe_layer_freq", 1, 1, 1);
}

void ReadAttention(JsonFields& fields, ModelConfig& c) {
  c.heads = fields.Int("num_attention_heads", 1, 4096);
  if (fields.Has("num_key_value_heads") && fields.Int("num_key_value_heads", 1, 4096) != c.heads) {
    fields.Problem("num_key_value_heads",
                   absl::StrCat("differs from num_attention_heads (", c.heads,
                                "); latent attention expands one key for each head"));
  }
  c.q_lora_rank = fields.Int("q_lora_rank", 0, kMaxDim, 0);  // null: q is projected directly
  c.kv_lora_rank = fields.Int("kv_lora_rank", 32, 4096);
  if (c.kv_lora_rank % 32 != 0) {
    fields.Problem("kv_lora_rank",
                   absl::StrCat("is ", c.kv_lora_rank, ", expected a multiple of 32"));
  }
  c.qk_nope_head_dim = fields.Int("qk_nope_head_dim", 1, 4096);
  c.qk_rope_head_dim = fields.Int("qk_rope_head_dim", 2, 256);
  if (c.qk_rope_head_dim % 2 != 0) {
    fields.Problem("qk_rope_head_dim",
                   absl::StrCat("is ", c.qk_rope_head_dim, ", expected an even number"));
  }
  c.v_head_dim = fields.Int("v_head_dim", 1, 4096);
}

// The gate's arithmetic as data. deepseek_v3 checkpoints saved by newer tools leave out both names;
// they mean these.
void ReadGate(JsonFields& fields, ModelConfig& c) {
  fields.Choice("scoring_func", {"sigmoid"}, "sigmoid");
  fields.Choice("topk_method", {"noaux_tc"}, "noaux_tc");
  c.scoring = GateScore::kSigmoid;
  c.group_score = GroupScore::kSumOfTop2;
  c.selection_bias = true;
  c.normalize_weights = fields.Bool("norm_topk_prob");
  c.routed_scaling_factor = static_cast<float>(fields.Number("routed_scaling_factor", 1e-6, 1e6));
  c.expert_groups = fields.Int("n_group", 1, 4096);
  c.groups_per_token = fields.Int("topk_group", 1, 4096);
  if (c.routed_experts % c.expert_groups != 0) {
    fields.Problem("n_group", absl::StrCat("is ", c.expert_groups,
                                           ", which does not divide n_routed_experts (",
                                           c.routed_experts, ")"));
    return;
  }
  const int32_t group_experts = c.routed_experts / c.expert_groups;
  if (c.expert_groups > 1 && group_experts < 2) {
    fields.Problem("n_group", "leaves one expert to a group; its score is the sum of the two best");
  }
  if (c.groups_per_token > c.expert_groups) {
    fields.Problem("topk_group", absl::StrCat("is ", c.groups_per_token, ", more than n_group (",
                                              c.expert_groups, ")"));
    return;
  }
  const int32_t eligible = c.groups_per_token * group_experts;
  if (c.experts_per_token > eligible) {
    fields.Problem("num_experts_per_tok",
                   absl::StrCat("is ", c.experts_per_token, ", but topk_group leaves only ",
                                eligible, " experts"));
  }
}

void ReadFeedForward(JsonFields& fields, ModelConfig& c) {
  c.dense_layers = fields.Int("first_k_dense_replace", 0, 4096);
  if (c.dense_layers > c.layers) {
    fields.Problem(
        "first_k_dense_replace",
        absl::StrCat("is ", c.dense_layers, ", more than num_hidden_layers (", c.layers, ")"));
  }
  c.intermediate_size = fields.Int("intermediate_size", 1, kMaxDim);
  c.moe_intermediate_size = fields.Int("moe_intermediate_size", 1, kMaxDim);
  c.routed_experts = fields.Int("n_routed_experts", 1, 65536);
  c.shared_experts = fields.Int("n_shared_experts", 0, 64, 0);
  c.experts_per_token = fields.Int("num_experts_per_tok", 1, 64);
  ReadGate(fields, c);
}

void ReadYarn(JsonFields& rope, const ModelConfig& c, RopeConfig& out) {
  out.yarn = true;
  out.factor = rope.Number("factor", 1.0, 1e6);
  out.beta_fast = rope.Number("beta_fast", 1e-3, 1e6, 32.0);
  out.beta_slow = rope.Number("beta_slow", 1e-3, 1e6, 1.0);
  out.mscale = rope.Number("mscale", 0.0, 100.0, 0.0);
  out.mscale_all_dim = rope.Number("mscale_all_dim", 0.0, 100.0, 0.0);
  out.original_max_positions =
      rope.Int("original_max_position_embeddings", 1, kMaxPositions, c.max_positions);
  if (rope.Has("attention_factor")) {
    rope.Problem("attention_factor",
                 "is not supported; the factor follows from mscale and mscale_all_dim");
  }
  if (!rope.Bool("truncate", true)) {
    rope.Problem("truncate", "is false, supported: true (bounds of the ramp are whole dimensions)");
  }
}

// `rope_theta` and `rope_scaling` at the top, or both inside the newer `rope_parameters`.
void ReadRope(JsonFields& fields, std::vector<std::string>& problems, ModelConfig& c) {
  const bool newer = fields.Has("rope_parameters");
  const char* name = newer ? "rope_parameters" : "rope_scaling";
  static const nlohmann::json kNone = nlohmann::json::object();
  const nlohmann::json* object = fields.Find(name);
  if (object != nullptr && !object->is_object()) {
    fields.Problem(name, "is neither null nor an object");
    object = nullptr;
  }
  JsonFields rope(object == nullptr ? kNone : *object, absl::StrCat(name, "."), problems);
  JsonFields& theta_owner = newer && rope.Has("rope_theta") ? rope : fields;
  c.rope.theta = theta_owner.Number("rope_theta", 2.0, 1e12);
  if (object == nullptr) return;
  const char* type_name = rope.Has("rope_type") ? "rope_type" : "type";
  if (newer && !rope.Has(type_name)) return;  // theta alone
  if (rope.Choice(type_name, {"yarn", "default"}) == "yarn") ReadYarn(rope, c, c.rope);
}

void ReadQuantization(JsonFields& fields, std::vector<std::string>& problems, ModelConfig& c) {
  const nlohmann::json* object = fields.Find("quantization_config");
  if (object == nullptr) return;
  if (!object->is_object()) {
    fields.Problem("quantization_config", "is neither null nor an object");
    return;
  }
  JsonFields quantization(*object, "quantization_config.", problems);
  quantization.Choice("quant_method", {"fp8"});
  quantization.Choice("fmt", {"e4m3"}, "e4m3");
  quantization.Choice("activation_scheme", {"dynamic"}, "dynamic");
  quantization.Choice("scale_fmt", {"ue8m0", "float"}, "float");  // both are stored as F32
  c.weight_format = WeightFormat::kFp8Block;
  const nlohmann::json* block = quantization.Find("weight_block_size");
  if (block == nullptr || *block != nlohmann::json::array({128, 128})) {
    quantization.Problem("weight_block_size",
                         absl::StrCat("is ", block == nullptr ? "missing" : JsonShown(*block),
                                      ", supported: [128,128]"));
  }
}

}  // namespace

const char* WeightFormatName(WeightFormat format) {
  return format == WeightFormat::kBF16 ? "bf16" : "fp8 e4m3 128x128";
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json, const std::string& source) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json object,
                         ParseJsonObject(json, source, kMaxConfigBytes));
  std::vector<std::string> problems;
  JsonFields fields(object, "", problems);
  ModelConfig c;
  c.model_type = fields.Choice("model_type", {"deepseek_v3"});
  // Another architecture has other fields: more complaints about them would only mislead.
  if (!problems.empty()) return ProblemsToStatus(source, problems);

  ReadFixed(fields);
  c.vocab_size = fields.Int("vocab_size", 2, 1 << 24);
  c.hidden_size = fields.Int("hidden_size", 1, kMaxDim);
  c.layers = fields.Int("num_hidden_layers", 1, 4096);
  c.mtp_layers = fields.Int("num_nextn_predict_layers", 0, 64, 0);
  c.max_positions = fields.Int("max_position_embeddings", 1, kMaxPositions);
  c.rms_norm_eps = static_cast<float>(fields.Number("rms_norm_eps", 1e-12, 1.0));
  c.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  ReadAttention(fields, c);
  ReadFeedForward(fields, c);
  ReadRope(fields, problems, c);
  ReadQuantization(fields, problems, c);
  c.eos_token_ids = fields.TokenIds("eos_token_id", c.vocab_size);
  BATON_RETURN_IF_ERROR(ProblemsToStatus(source, problems));
  return c;
}

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(std::string_view json,
                                                         const std::string& source,
                                                         const ModelConfig& config) {
  BATON_ASSIGN_OR_RETURN(const nlohmann::json object,
                         ParseJsonObject(json, source, kMaxConfigBytes));
  std::vector<std::string> problems;
  JsonFields fields(object, "", problems);
  GenerationDefaults defaults = DefaultGeneration(config);
  if (fields.Has("eos_token_id")) {
    defaults.eos_token_ids = fields.TokenIds("eos_token_id", config.vocab_size);
  }
  defaults.temperature = static_cast<float>(fields.Number("temperature", 0.0, 100.0, 1.0));
  defaults.top_p = static_cast<float>(fields.Number("top_p", 1e-6, 1.0, 1.0));
  defaults.top_k = fields.Int("top_k", 0, 1 << 24, 0);
  if (!fields.Bool("do_sample", true)) defaults.temperature = 0.0f;
  BATON_RETURN_IF_ERROR(ProblemsToStatus(source, problems));
  return defaults;
}

GenerationDefaults DefaultGeneration(const ModelConfig& config) {
  GenerationDefaults defaults;
  defaults.eos_token_ids = config.eos_token_ids;
  return defaults;
}

ParameterCounts CountParameters(const ModelConfig& c) {
  const int64_t hidden = c.hidden_size;
  const int64_t q_out = int64_t{c.heads} * c.qk_head_dim();
  const int64_t q = c.q_lora_rank > 0 ? c.q_lora_rank * (hidden + 1 + q_out) : hidden * q_out;
  const int64_t attention =
      q + hidden * c.latent_dim() + c.kv_lora_rank +
      int64_t{c.heads} * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank +
      int64_t{c.heads} * c.v_head_dim * hidden;
  const int64_t norms = 2 * hidden;
  const int64_t dense = 3 * hidden * c.intermediate_size;
  const int64_t expert = 3 * hidden * c.moe_intermediate_size;
  const int64_t gate =
      c.routed_experts * (hidden + (c.selection_bias ? 1 : 0)) + c.shared_experts * expert;
  const int64_t moe_layers = c.layers - c.dense_layers;
  const int64_t head = c.vocab_size * hidden;

  ParameterCounts counts;
  counts.active = c.layers * (attention + norms) + c.dense_layers * dense +
                  moe_layers * (gate + c.experts_per_token * expert) + hidden + head;
  counts.total = counts.active + moe_layers * (c.routed_experts - c.experts_per_token) * expert +
                 (c.tie_word_embeddings ? 0 : head);
  return counts;
}

// YaRN's temperature on the logits as a factor on q and k (arXiv 2309.00071, eq. 22).
static double YarnMscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double SoftmaxScale(const ModelConfig& c) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  if (!c.rope.yarn || c.rope.mscale_all_dim == 0.0) return scale;
  const double mscale = YarnMscale(c.rope.factor, c.rope.mscale_all_dim);
  return scale * mscale * mscale;
}

double RopeMagnitude(const ModelConfig& c) {
  if (!c.rope.yarn) return 1.0;
  const double factor = c.rope.factor;
  if (c.rope.mscale == 0.0 || c.rope.mscale_all_dim == 0.0) return YarnMscale(factor, 1.0);
  return YarnMscale(factor, c.rope.mscale) / YarnMscale(factor, c.rope.mscale_all_dim);
}

std::vector<double> RopeFrequencies(const ModelConfig& c) {
  const RopeConfig& rope = c.rope;
  const int32_t pairs = c.qk_rope_head_dim / 2;
  const double dim = c.qk_rope_head_dim;
  std::vector<double> frequencies(static_cast<size_t>(pairs));
  for (int32_t i = 0; i < pairs; ++i) frequencies[i] = std::pow(rope.theta, -2.0 * i / dim);
  if (!rope.yarn) return frequencies;

  // The (fractional) pair that turns `rotations` times over the original context.
  const auto correction_dim = [&](double rotations) {
    return dim * std::log(rope.original_max_positions / (rotations * 2.0 * M_PI)) /
           (2.0 * std::log(rope.theta));
  };
  const double low = std::max(std::floor(correction_dim(rope.beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_dim(rope.beta_slow)), dim - 1.0);
  if (low == high) high += 0.001;  // the ramp must have a slope
  for (int32_t i = 0; i < pairs; ++i) {
    const double smooth = 1.0 - std::clamp((i - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / rope.factor * (1.0 - smooth) + frequencies[i] * smooth;
  }
  return frequencies;
}

RopeTable MakeRopeTable(const ModelConfig& c, int32_t positions) {
  BATON_CHECK_GE(positions, 1);
  const std::vector<double> frequencies = RopeFrequencies(c);
  const double magnitude = RopeMagnitude(c);
  RopeTable table;
  table.cos.reserve(static_cast<size_t>(positions) * frequencies.size());
  table.sin.reserve(static_cast<size_t>(positions) * frequencies.size());
  for (int32_t p = 0; p < positions; ++p) {
    for (const double frequency : frequencies) {
      const double angle = p * frequency;
      table.cos.push_back(static_cast<float>(std::cos(angle) * magnitude));
      table.sin.push_back(static_cast<float>(std::sin(angle) * magnitude));
    }
  }
  return table;
}

}  // namespace baton::model
