"""Writes a training checkpoint as an unmodified Hugging Face DeepSeek-V3 directory with FP8 128x128 block weights.

    python export.py --checkpoint WORK_DIR/checkpoint.pt --out MODEL_DIR

MODEL_DIR must hold tokenizer.json and tokenizer_config.json already (tokenizer.py writes them).
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import model as m

BLOCK = 128
FP8_MAX = 448.0  # the largest finite E4M3 value
BF16_PARTS = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "eh_proj", "shared_head")
MAX_LENGTH = 2048


def quantize(weight):
    """FP32 [N, K] to E4M3 [N, K] and FP32 scales [ceil(N / 128), ceil(K / 128)]; weight = e4m3 * scale."""
    rows, columns = weight.shape
    padded = F.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    tiles = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scale = tiles.abs().amax((1, 3)).clamp(min=1e-12) / FP8_MAX
    e4m3 = (tiles / scale[:, None, :, None]).view(padded.shape)[:rows, :columns].to(torch.float8_e4m3fn)
    return e4m3.contiguous(), scale.contiguous()


def dequantize(e4m3, scale):
    rows, columns = e4m3.shape
    full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]
    return e4m3.float() * full


def unstacked(state, config):
    """The training model's parameters under the checkpoint's names, FP32, with the MTP layer's copies."""
    out = {}
    for name, value in state.items():
        if name.endswith("experts.gate_up") or name.endswith("experts.down"):
            prefix, kind = name.rsplit(".", 1)
            for e, matrix in enumerate(value):
                if kind == "down":
                    out[f"{prefix}.{e}.down_proj.weight"] = matrix
                else:
                    gate, up = matrix.chunk(2)
                    out[f"{prefix}.{e}.gate_proj.weight"], out[f"{prefix}.{e}.up_proj.weight"] = gate, up
        else:
            out[name] = value
    for i in range(config.layers, config.layers + config.mtp_layers):
        out[f"model.layers.{i}.embed_tokens.weight"] = state["model.embed_tokens.weight"]
        out[f"model.layers.{i}.shared_head.head.weight"] = state["lm_head.weight"]
    return out


def stored(tensors):
    """Checkpoint tensors in their stored types: E4M3 with scales, BF16, or FP32 for the selection bias."""
    out = {}
    for name, value in tensors.items():
        if name.endswith("e_score_correction_bias"):
            out[name] = value.float().contiguous().clone()
        elif any(part in name for part in BF16_PARTS):
            out[name] = value.bfloat16().contiguous().clone()
        else:
            out[name], out[name + "_scale_inv"] = quantize(value.float())
    return out


def hf_config(c):
    return {
        "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": c.dense_layers, "hidden_act": "silu",
        "hidden_size": c.hidden, "initializer_range": 0.02, "intermediate_size": c.dense_ffn,
        "kv_lora_rank": c.kv_rank, "max_position_embeddings": MAX_LENGTH, "model_type": "deepseek_v3",
        "moe_intermediate_size": c.expert_ffn, "moe_layer_freq": 1, "n_group": c.groups, "n_routed_experts": c.experts,
        "n_shared_experts": c.shared_experts, "norm_topk_prob": True, "num_attention_heads": c.heads,
        "num_experts_per_tok": c.top_k, "num_hidden_layers": c.layers, "num_key_value_heads": c.heads,
        "num_nextn_predict_layers": c.mtp_layers, "q_lora_rank": c.q_rank, "qk_nope_head_dim": c.nope,
        "qk_rope_head_dim": c.rope,
        "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                "weight_block_size": [BLOCK, BLOCK]},
        "rms_norm_eps": c.eps,
        "rope_scaling": {"beta_fast": int(c.beta_fast), "beta_slow": int(c.beta_slow), "factor": int(c.yarn_factor),
                         "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": c.yarn_original,
                         "type": "yarn"},
        "rope_theta": int(c.rope_theta), "routed_scaling_factor": c.routed_scale, "scoring_func": "sigmoid",
        "tie_word_embeddings": False, "topk_group": c.kept_groups, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
        "transformers_version": "4.57.6", "use_cache": True, "v_head_dim": c.value, "vocab_size": c.vocab}


def export(checkpoint, out):
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    config = m.Config(**state["config"])
    tensors = stored(unstacked(state["model"], config))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    (out / "config.json").write_text(json.dumps(hf_config(config), indent=2) + "\n")
    generation = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.7,
                  "top_p": 0.95, "transformers_version": "4.57.6"}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return state["step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    step = export(args.checkpoint, args.out)
    size = sum(p.stat().st_size for p in args.out.iterdir())
    print(f"exported step {step} to {args.out}: {size / 1e6:.2f} MB in all")


if __name__ == "__main__":
    main()
