"""Writes and reads checkpoints in the Hugging Face directory form, BF16 or FP8 with 128x128 block scales."""

import json
import math
import os

import torch
from safetensors import safe_open
from safetensors.torch import save_file

BLOCK = 128
FP8_MAX = 448.0


def blocks(size):
    return (size + BLOCK - 1) // BLOCK


def expand_scales(scales, rows, columns):
    """One scale for each element from one for each block."""
    return scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:rows, :columns]


def quantize_fp8(weight, power_of_two):
    """E4M3 values and the F32 factor of each block that gives the weight back."""
    rows, columns = weight.shape
    scales = torch.empty(blocks(rows), blocks(columns), dtype=torch.float32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = weight[i * BLOCK:(i + 1) * BLOCK, j * BLOCK:(j + 1) * BLOCK]
            scale = max(block.abs().max().item(), 1e-12) / FP8_MAX
            scales[i, j] = 2.0 ** math.ceil(math.log2(scale)) if power_of_two else scale
    return (weight / expand_scales(scales, rows, columns)).to(torch.float8_e4m3fn), scales


def random_weights(config, generator, bf16_bias, fp8):
    """Float32 weights by name. Projections keep the size of their input; the ones that end a branch are smaller, so
    that the embedding still speaks at the end and greedy decoding does not hang on noise."""
    c = config
    hidden = c["hidden_size"]
    qk = c["qk_nope_head_dim"] + c["qk_rope_head_dim"]
    weights = {}

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    def linear(name, out, inner, gain=1.0):
        weights[name + ".weight"] = randn(out, inner) * (gain / math.sqrt(inner))

    def norm(name, size):
        weights[name + ".weight"] = 1.0 + 0.1 * randn(size)

    def mlp(prefix, inner, gain):
        linear(prefix + "gate_proj", inner, hidden)
        linear(prefix + "up_proj", inner, hidden)
        linear(prefix + "down_proj", hidden, inner, gain)

    def layer(prefix, dense):
        norm(prefix + "input_layernorm", hidden)
        norm(prefix + "post_attention_layernorm", hidden)
        attention = prefix + "self_attn."
        q_out = c["num_attention_heads"] * qk
        if c["q_lora_rank"] is None:
            linear(attention + "q_proj", q_out, hidden, 1.5)
        else:
            linear(attention + "q_a_proj", c["q_lora_rank"], hidden)
            norm(attention + "q_a_layernorm", c["q_lora_rank"])
            linear(attention + "q_b_proj", q_out, c["q_lora_rank"], 1.5)
        linear(attention + "kv_a_proj_with_mqa", c["kv_lora_rank"] + c["qk_rope_head_dim"], hidden)
        norm(attention + "kv_a_layernorm", c["kv_lora_rank"])
        linear(attention + "kv_b_proj",
               c["num_attention_heads"] * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"])
        linear(attention + "o_proj", hidden, c["num_attention_heads"] * c["v_head_dim"], 0.4)
        if dense:
            mlp(prefix + "mlp.", c["intermediate_size"], 0.6)
            return
        linear(prefix + "mlp.gate", c["n_routed_experts"], hidden, 2.0)
        # Not negative: the oracle gives the experts of dropped groups a score of 0, and a chosen one must beat that.
        bias = 0.1 * torch.rand(c["n_routed_experts"], generator=generator)
        weights[prefix + "mlp.gate.e_score_correction_bias"] = bias.to(torch.bfloat16).float() if bf16_bias else bias
        for expert in range(c["n_routed_experts"]):
            mlp(f"{prefix}mlp.experts.{expert}.", c["moe_intermediate_size"], 0.4)
        mlp(prefix + "mlp.shared_experts.", c["n_shared_experts"] * c["moe_intermediate_size"], 0.4)

    weights["model.embed_tokens.weight"] = randn(c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer(f"model.layers.{i}.", i < c["first_k_dense_replace"])
    norm("model.norm", hidden)
    linear("lm_head", c["vocab_size"], hidden, 2.0)
    for i in range(c["num_nextn_predict_layers"]):
        prefix = f"model.layers.{c['num_hidden_layers'] + i}."
        layer(prefix, dense=False)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            norm(prefix + name, hidden)
        linear(prefix + "eh_proj", hidden, 2 * hidden)
        if not fp8:  # copies that checkpoints may leave out: here is one of each kind
            weights[prefix + "embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
            weights[prefix + "shared_head.head.weight"] = weights["lm_head.weight"].clone()
    return weights


def is_fp8_linear(name):
    if not name.endswith("_proj.weight") and not name.endswith("_proj_with_mqa.weight"):
        return False
    return not name.endswith("eh_proj.weight")


def to_stored(weights, case):
    """The tensors as the files hold them."""
    stored = {}
    for name, weight in weights.items():
        if case.fp8 and is_fp8_linear(name):
            stored[name], stored[name + "_scale_inv"] = quantize_fp8(weight, case.power_of_two_scales)
        elif name.endswith("e_score_correction_bias") and not case.bf16_bias:
            stored[name] = weight
        else:
            stored[name] = weight.to(torch.bfloat16)
    return stored


def write(directory, stored, shards):
    os.makedirs(directory, exist_ok=True)
    if shards == 1:
        save_file(stored, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    weight_map = {}
    names = list(stored)
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards:(shard + 1) * len(names) // shards]
        save_file({name: stored[name] for name in part}, os.path.join(directory, file), metadata={"format": "pt"})
        weight_map.update({name: file for name in part})
    index = {"metadata": {"total_size": sum(t.nbytes for t in stored.values())}, "weight_map": weight_map}
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as out:
        json.dump(index, out, indent=1, sort_keys=True)
        out.write("\n")


def read_float32(directory):
    """All tensors of a checkpoint as float32, FP8 multiplied by its block scales."""
    tensors = {}
    for file in sorted(os.listdir(directory)):
        if file.endswith(".safetensors") and not file.startswith("golden"):
            with safe_open(os.path.join(directory, file), framework="pt") as source:
                tensors.update({name: source.get_tensor(name) for name in source.keys()})
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        weight = tensor.to(torch.float32)
        if tensor.dtype == torch.float8_e4m3fn:
            weight = weight * expand_scales(tensors[name + "_scale_inv"], *weight.shape)
        weights[name] = weight
    return weights
