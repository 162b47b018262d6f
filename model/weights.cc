#include "model/weights.h"

#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"
#include "model/json_fields.h"

namespace baton::model {
namespace {

using kernels::DType;
using kernels::TensorView;
using kernels::Weight;

constexpr int64_t kBlock = 128;  // sides of an FP8 scale's block

std::optional<DType> ToDType(const std::string& name) {
  if (name == "BF16") return DType::kBF16;
  if (name == "F32") return DType::kF32;
  if (name == "F8_E4M3") return DType::kF8E4M3;
  return std::nullopt;
}

// Looks tensors up, remembers which were asked for and gathers problems. On a problem an absent
// view is returned and binding goes on, so that all problems come at once.
class Binder {
 public:
  Binder(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  // A BF16 or F32 tensor of exactly `shape`.
  TensorView Plain(const std::string& name, std::initializer_list<int64_t> shape) {
    return Get(name, shape, {DType::kBF16, DType::kF32});
  }

  // `<name>.weight` [rows, columns], with its scales if it is FP8.
  Weight Linear(const std::string& name, int64_t rows, int64_t columns) {
    const bool fp8 = config_.weight_format == WeightFormat::kFp8Block;
    Weight weight;
    weight.w = Get(name + ".weight", {rows, columns},
                   fp8 ? std::vector<DType>{DType::kF8E4M3, DType::kBF16, DType::kF32}
                       : std::vector<DType>{DType::kBF16, DType::kF32});
    weight.block_n = kBlock;
    weight.block_k = kBlock;
    if (!weight.w.absent() && weight.w.dtype == DType::kF8E4M3) {
      weight.scales =
          Get(name + ".weight_scale_inv",
              {(rows + kBlock - 1) / kBlock, (columns + kBlock - 1) / kBlock}, {DType::kF32});
    }
    return weight;
  }

  MlpWeights Mlp(const std::string& prefix, int64_t inner) {
    const int64_t hidden = config_.hidden_size;
    MlpWeights mlp = {.gate = Linear(prefix + "gate_proj", inner, hidden),
                      .up = Linear(prefix + "up_proj", inner, hidden),
                      .down = Linear(prefix + "down_proj", hidden, inner)};
    CheckSameDType(prefix + "gate_proj.weight", mlp.gate, "up_proj", mlp.up);
    return mlp;
  }

  AttentionWeights Attention(const std::string& prefix) {
    const ModelConfig& c = config_;
    const int64_t q_out = int64_t{c.heads} * c.qk_head_dim();
    AttentionWeights a;
    if (c.q_lora_rank == 0) {
      a.q = Linear(prefix + "q_proj", q_out, c.hidden_size);
    } else {
      a.q_a = Linear(prefix + "q_a_proj", c.q_lora_rank, c.hidden_size);
      a.q_a_norm = Plain(prefix + "q_a_layernorm.weight", {c.q_lora_rank});
      a.q_b = Linear(prefix + "q_b_proj", q_out, c.q_lora_rank);
    }
    a.kv_a = Linear(prefix + "kv_a_proj_with_mqa", c.latent_dim(), c.hidden_size);
    a.kv_a_norm = Plain(prefix + "kv_a_layernorm.weight", {c.kv_lora_rank});
    a.kv_b = Linear(prefix + "kv_b_proj", int64_t{c.heads} * (c.qk_nope_head_dim + c.v_head_dim),
                    c.kv_lora_rank);
    a.o = Linear(prefix + "o_proj", c.hidden_size, int64_t{c.heads} * c.v_head_dim);
    return a;
  }

  MoeWeights Moe(const std::string& prefix, Weights& owner) {
    const ModelConfig& c = config_;
    MoeWeights moe;
    moe.gate = Plain(prefix + "gate.weight", {c.routed_experts, c.hidden_size});
    if (c.selection_bias) moe.bias = Bias(prefix + "gate.e_score_correction_bias", owner);
    for (int32_t e = 0; e < c.routed_experts; ++e) {
      MlpWeights expert = Mlp(absl::StrCat(prefix, "experts.", e, "."), c.moe_intermediate_size);
      CheckUniform(absl::StrCat(prefix, "experts.", e), expert, moe);
      moe.expert_gate.push_back(expert.gate);
      moe.expert_up.push_back(expert.up);
      moe.expert_down.push_back(expert.down);
    }
    if (c.shared_experts > 0)
      moe.shared = Mlp(prefix + "shared_experts.", c.shared_intermediate_size());
    return moe;
  }

  LayerWeights Layer(int32_t layer, bool dense, Weights& owner) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    LayerWeights weights;
    weights.input_norm = Plain(prefix + "input_layernorm.weight", {config_.hidden_size});
    weights.post_attn_norm =
        Plain(prefix + "post_attention_layernorm.weight", {config_.hidden_size});
    weights.attention = Attention(prefix + "self_attn.");
    if (dense) {
      weights.mlp = Mlp(prefix + "mlp.", config_.intermediate_size);
    } else {
      weights.moe = Moe(prefix + "mlp.", owner);
    }
    return weights;
  }

  // DeepSeek-V3 report, section 2.2: one more decoder layer on (embedding, hidden). True if the
  // checkpoint has it.
  bool Mtp(int32_t layer, Weights& owner) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const auto first = checkpoint_.tensors().lower_bound(prefix);
    if (first == checkpoint_.tensors().end() || !absl::StartsWith(first->first, prefix))
      return false;
    const int64_t hidden = config_.hidden_size;
    Layer(layer, /*dense=*/false, owner);
    Plain(prefix + "enorm.weight", {hidden});
    Plain(prefix + "hnorm.weight", {hidden});
    Linear(prefix + "eh_proj", hidden, 2 * hidden);
    Plain(prefix + "shared_head.norm.weight", {hidden});
    for (const char* copy : {"embed_tokens.weight", "shared_head.head.weight"}) {
      // Copies of the main model's, which not every checkpoint repeats.
      if (checkpoint_.Find(prefix + copy) != nullptr)
        Plain(prefix + copy, {config_.vocab_size, hidden});
    }
    return true;
  }

  // Tensors that nothing asked for: a sign that the config describes another model.
  void CheckLeftOver() {
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (asked_.contains(name) || absl::EndsWith(name, "rotary_emb.inv_freq")) continue;
      problems_.push_back(absl::StrCat(checkpoint_.file_name(tensor), ": tensor ", name, " (",
                                       DescribeTensor(tensor), ") has no place in this model"));
    }
  }

  absl::Status Finish() const {
    return ProblemsToStatus("checkpoint does not fit its config.json", problems_);
  }

 private:
  TensorView Get(const std::string& name, const std::vector<int64_t>& shape,
                 const std::vector<DType>& dtypes) {
    asked_.insert(name);
    std::string wanted;
    for (const DType dtype : dtypes) {
      absl::StrAppend(&wanted, wanted.empty() ? "" : " or ",
                      dtype == DType::kF8E4M3 ? "F8_E4M3" : DTypeName(dtype));
    }
    absl::StrAppend(&wanted, "[", absl::StrJoin(shape, ", "), "]");
    const StoredTensor* tensor = checkpoint_.Find(name);
    if (tensor == nullptr) {
      problems_.push_back(absl::StrCat("tensor ", name, " is missing, expected ", wanted));
      return {};
    }
    const std::optional<DType> dtype = ToDType(tensor->dtype);
    bool known = false;
    for (const DType allowed : dtypes) known |= dtype == allowed;
    if (!known || tensor->shape != shape) {
      problems_.push_back(absl::StrCat(checkpoint_.file_name(*tensor), ": tensor ", name, " is ",
                                       DescribeTensor(*tensor), ", expected ", wanted));
      return {};
    }
    if (reinterpret_cast<uintptr_t>(tensor->data) % kernels::DTypeBytes(*dtype) != 0) {
      problems_.push_back(
          absl::StrCat(checkpoint_.file_name(*tensor), ": tensor ", name,
                       " is not aligned to its elements and cannot be used in place;"
                       " write the file again with the safetensors library"));
      return {};
    }
    if (shape.size() == 1) return TensorView::Contiguous(tensor->data, *dtype, {shape[0]});
    return TensorView::Contiguous(tensor->data, *dtype, {shape[0], shape[1]});
  }

  // The selection bias takes part in comparisons, so the gate reads it in F32.
  TensorView Bias(const std::string& name, Weights& owner) {
    const int64_t experts = config_.routed_experts;
    const TensorView stored = Plain(name, {experts});
    if (stored.absent() || stored.dtype == DType::kF32) return stored;
    auto& widened =
        owner.widened.emplace_back(std::make_unique<float[]>(static_cast<size_t>(experts)));
    for (int64_t i = 0; i < experts; ++i) {
      const uint32_t bits = static_cast<uint32_t>(stored.as<const uint16_t>()[i]) << 16;
      std::memcpy(&widened[i], &bits, sizeof(bits));
    }
    return TensorView::Contiguous(widened.get(), DType::kF32, {experts});
  }

  void CheckSameDType(const std::string& name, const Weight& a, const std::string& other,
                      const Weight& b) {
    if (a.absent() || b.absent() || a.w.dtype == b.w.dtype) return;
    problems_.push_back(absl::StrCat("tensor ", name, " is ", DTypeName(a.w.dtype), " but ", other,
                                     " is ", DTypeName(b.w.dtype),
                                     "; one kernel reads both, so they must agree"));
  }

  // One grouped kernel runs all experts of a layer.
  void CheckUniform(const std::string& name, const MlpWeights& expert, const MoeWeights& moe) {
    if (moe.expert_gate.empty()) return;
    CheckSameDType(name + ".gate_proj.weight", expert.gate, "expert 0's", moe.expert_gate[0]);
    CheckSameDType(name + ".down_proj.weight", expert.down, "expert 0's", moe.expert_down[0]);
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  std::set<std::string> asked_;
  std::vector<std::string> problems_;
};

}  // namespace

Weights ViewsOf(const Weights& weights) {
  Weights views;
  views.embed = weights.embed;
  views.layers = weights.layers;
  views.norm = weights.norm;
  views.head = weights.head;
  views.mtp_layers = weights.mtp_layers;
  return views;
}

absl::StatusOr<Weights> BindWeights(const ModelConfig& config, const Checkpoint& checkpoint) {
  Binder binder(config, checkpoint);
  Weights weights;
  weights.embed =
      binder.Plain("model.embed_tokens.weight", {config.vocab_size, config.hidden_size});
  for (int32_t i = 0; i < config.layers; ++i) {
    weights.layers.push_back(binder.Layer(i, config.is_dense(i), weights));
  }
  weights.norm = binder.Plain("model.norm.weight", {config.hidden_size});
  // A tied head may be stored all the same; it is the embedding then.
  if (config.tie_word_embeddings && checkpoint.Find("lm_head.weight") == nullptr) {
    weights.head.w = weights.embed;
  } else {
    weights.head = binder.Linear("lm_head", config.vocab_size, config.hidden_size);
  }
  for (int32_t i = 0; i < config.mtp_layers; ++i) {
    weights.mtp_layers += binder.Mtp(config.layers + i, weights) ? 1 : 0;
  }
  binder.CheckLeftOver();
  BATON_RETURN_IF_ERROR(binder.Finish());
  return weights;
}

}  // namespace baton::model
