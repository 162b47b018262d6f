"""The shapes of the small random checkpoints under tests/data/models: each option of the architecture both ways."""

import dataclasses

PROMPT_LENGTHS = (1, 2, 63, 64, 65, 200)
GREEDY_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    seed: int
    config: dict  # fields of config.json that differ from BASE
    fp8: bool = False
    power_of_two_scales: bool = False
    bf16_bias: bool = False
    shards: int = 1
    newer_rope_spelling: bool = False


BASE = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "model_type": "deepseek_v3",
    "moe_layer_freq": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256,
}


def yarn(factor, original, mscale, mscale_all_dim):
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": mscale,
        "mscale_all_dim": mscale_all_dim,
    }


CASES = (
    # q_lora, one group, one dense layer, YaRN with equal mscales (as V3).
    Case(
        "bf16-lora-yarn",
        seed=11,
        config=dict(
            hidden_size=64, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=128,
            num_attention_heads=4, q_lora_rank=48, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8,
            v_head_dim=16, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
            topk_group=1, rope_scaling=yarn(8, 64, 1.0, 1.0),
        ),
    ),
    # No q_lora, four groups of which two are kept, two dense layers, two shared experts, no YaRN, an MTP layer.
    Case(
        "bf16-groups-mtp",
        seed=12,
        config=dict(
            hidden_size=64, num_hidden_layers=3, first_k_dense_replace=2, intermediate_size=160,
            num_attention_heads=3, q_lora_rank=None, kv_lora_rank=64, qk_nope_head_dim=24, qk_rope_head_dim=16,
            v_head_dim=20, n_routed_experts=16, num_experts_per_tok=4, moe_intermediate_size=24, n_group=4,
            topk_group=2, n_shared_experts=2, num_nextn_predict_layers=1, rope_theta=50000,
        ),
        bf16_bias=True,
    ),
    # FP8 with ragged blocks everywhere, q_lora, two groups, YaRN whose two mscales differ.
    Case(
        "fp8-ragged-yarn",
        seed=13,
        config=dict(
            hidden_size=160, num_hidden_layers=3, first_k_dense_replace=1, intermediate_size=200,
            num_attention_heads=3, q_lora_rank=72, kv_lora_rank=160, qk_nope_head_dim=40, qk_rope_head_dim=16,
            v_head_dim=24, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=72, n_group=2,
            topk_group=1, rope_scaling=yarn(8, 64, 0.9, 0.7),
        ),
        fp8=True,
        newer_rope_spelling=True,
    ),
    # FP8 with power-of-two scales in three shards, no q_lora, two dense layers, an MTP layer.
    Case(
        "fp8-sharded-mtp",
        seed=14,
        config=dict(
            hidden_size=128, num_hidden_layers=3, first_k_dense_replace=2, intermediate_size=256,
            num_attention_heads=2, q_lora_rank=None, kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=16,
            v_head_dim=32, n_routed_experts=6, num_experts_per_tok=3, moe_intermediate_size=64, n_group=1,
            topk_group=1, num_nextn_predict_layers=1,
        ),
        fp8=True,
        power_of_two_scales=True,
        shards=3,
    ),
)
