"""Judges an exported model directory; prints JSON.

    python evaluate.py --model MODEL_DIR --work WORK_DIR --check        # against transformers' DeepseekV3ForCausalLM
    python evaluate.py --model MODEL_DIR --work WORK_DIR --heldout      # bits per byte beside xz -9, expert shares
    python evaluate.py --model MODEL_DIR --work WORK_DIR --samples      # completions
    python evaluate.py --work WORK_DIR --plot MODEL_DIR/loss.png        # the log as a picture

The FP8 weights are multiplied out to FP32 first. --heldout also measures the training checkpoint itself (FP32
weights) on a part of the text, which tells what the FP8 rounding costs.
"""

import argparse
import csv
import json
import lzma
import math
import pathlib

import numpy as np
import torch
from safetensors import safe_open

import export
import model as m

PROMPTS = [("To create a new database,", 0.7, 1), ("The mail server", 0.7, 2), ("If the package is not installed,", 0.7, 3)]


def read_tensors(directory):
    """All tensors of a model directory as FP32, FP8 ones multiplied by their scales."""
    with safe_open(directory / "model.safetensors", "pt") as f:
        raw = {k: f.get_tensor(k) for k in f.keys()}
    return {k: export.dequantize(v, raw[k + "_scale_inv"]) if k + "_scale_inv" in raw else v.float()
            for k, v in raw.items() if not k.endswith("_scale_inv")}


def config_of(directory):
    j = json.loads((directory / "config.json").read_text())
    return m.Config(vocab=j["vocab_size"], hidden=j["hidden_size"], layers=j["num_hidden_layers"],
                    dense_layers=j["first_k_dense_replace"], heads=j["num_attention_heads"], q_rank=j["q_lora_rank"],
                    kv_rank=j["kv_lora_rank"], nope=j["qk_nope_head_dim"], rope=j["qk_rope_head_dim"],
                    value=j["v_head_dim"], dense_ffn=j["intermediate_size"], expert_ffn=j["moe_intermediate_size"],
                    experts=j["n_routed_experts"], top_k=j["num_experts_per_tok"], groups=j["n_group"],
                    kept_groups=j["topk_group"], shared_experts=j["n_shared_experts"],
                    routed_scale=j["routed_scaling_factor"], yarn_factor=j["rope_scaling"]["factor"],
                    yarn_original=j["rope_scaling"]["original_max_position_embeddings"])


def training_model(directory):
    """The exported weights in the training model."""
    tensors, config = read_tensors(directory), config_of(directory)
    net, state = m.Model(config), {}
    for name in net.state_dict():
        prefix, kind = name.rsplit(".", 1)
        if kind == "gate_up":
            pairs = [torch.cat([tensors[f"{prefix}.{e}.{p}_proj.weight"] for p in ("gate", "up")])
                     for e in range(config.experts)]
            state[name] = torch.stack(pairs)
        elif kind == "down":
            state[name] = torch.stack([tensors[f"{prefix}.{e}.down_proj.weight"] for e in range(config.experts)])
        else:
            state[name] = tensors[name]
    net.load_state_dict(state)
    return net.eval()


def checkpoint_model(path):
    state = torch.load(path, weights_only=True)
    net = m.Model(m.Config(**state["config"]))
    net.load_state_dict(state["model"])
    return net.eval()


def transformers_model(directory):
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    fields = json.loads((directory / "config.json").read_text())
    fields.pop("quantization_config")
    fields["torch_dtype"] = "float32"
    net = DeepseekV3ForCausalLM(DeepseekV3Config(**fields))
    tensors = read_tensors(directory)
    mtp = f"model.layers.{fields['num_hidden_layers']}."
    missing, unexpected = net.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(mtp)}, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return net.float().eval()


@torch.no_grad()
def check(directory, work):
    """Compares logits and loss of the training code with transformers on held-out text, at a short and the full length."""
    ours, theirs = training_model(directory), transformers_model(directory)
    tokens = np.fromfile(work / "heldout.u16", np.uint16).astype(np.int64)
    result = {}
    for length in (256, 1024):
        batch = torch.from_numpy(tokens[:length + 1])[None]
        a, b = ours.logits(ours.hidden(batch[:, :-1])).float()[0], theirs(batch[:, :-1]).logits[0]
        loss = [torch.nn.functional.cross_entropy(x, batch[0, 1:]).item() for x in (a, b)]
        result[length] = {"loss": loss[0], "transformers_loss": loss[1], "same_argmax": (a.argmax(-1) == b.argmax(-1)).float().mean().item(),
                          "relative_error": ((a - b).norm() / b.norm()).item()}
    return result


@torch.no_grad()
def code_length(net, tokens, length=1024):
    """Bits to code the tokens, each given those before it in its window of `length`; a window's first costs log2(vocab).

    Also how often the MTP layer's first choice for the token after the next is the main model's.
    """
    bits, hits, total = 0.0, 0, 0
    for start in range(0, len(tokens), length):
        part = torch.from_numpy(tokens[start:start + length].astype(np.int64))[None]
        n = part.shape[1] - 2
        hidden = net.hidden(part)
        logits = net.logits(hidden)[0].float()
        target = torch.where(part == m.BEGIN, m.END, part)[0, 1:]
        bits += torch.nn.functional.cross_entropy(logits[:-1], target, reduction="sum").item() / math.log(2)
        bits += math.log2(net.config.vocab)
        embedding = torch.nn.functional.embedding(part[:, 1:-1], net.model.embed_tokens.weight)
        further = net.model.layers[-1](hidden[:, :n], embedding, net.cos[:n], net.sin[:n])
        hits += (net.logits(further)[0].argmax(-1) == logits[1:-1].argmax(-1)).sum().item()
        total += n
    return bits, hits / total


def heldout(directory, work):
    text = (work / "heldout.txt").read_bytes()
    tokens = np.fromfile(work / "heldout.u16", np.uint16)
    net = training_model(directory)
    bits, agreement = code_length(net, tokens)
    shares = {f"layer {net.config.dense_layers + i}": (layer.load / layer.load.sum()).tolist()
              for i, layer in enumerate(net.moe_layers())}
    part = tokens[:65536]
    before, after = code_length(checkpoint_model(work / "checkpoint.pt"), part)[0], code_length(net, part)[0]
    xz = len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9))
    return {"heldout_bytes": len(text), "heldout_tokens": len(tokens), "bits_per_byte": bits / len(text),
            "fp8_cost": after / before - 1, "xz_bits_per_byte": 8 * xz / len(text),
            "mtp_agreement": agreement, "expert_share": shares}


@torch.no_grad()
def sample(net, tokenizer, prompt, temperature, seed, top_p=0.95, count=120):
    generator = torch.Generator().manual_seed(seed)
    ids, cache = [0] + tokenizer.encode(prompt).ids, None
    feed = torch.tensor([ids])
    for _ in range(count):
        out = net(feed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        probability, order = torch.softmax(out.logits[0, -1] / temperature, -1).sort(descending=True)
        probability[probability.cumsum(0) - probability > top_p] = 0
        token = order[torch.multinomial(probability, 1, generator=generator)].item()
        if token == m.END:
            break
        ids.append(token)
        feed = torch.tensor([[token]])
    return tokenizer.decode(ids)


def samples(directory, prompts):
    from tokenizers import Tokenizer
    net, tokenizer = transformers_model(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [{"prompt": p, "temperature": t, "seed": s, "text": sample(net, tokenizer, p, t, s)} for p, t, s in prompts]


def plot(work, path):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    with open(work / "log.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    step = [int(r["step"]) for r in rows]
    tokens = [int(r["tokens"]) / 1e6 for r in rows]
    loss = np.array([float(r["loss"]) for r in rows])
    smooth = [loss[max(0, i - 12):i + 13].mean() for i in range(len(loss))]
    held = [(t, float(r["heldout_loss"])) for t, r in zip(tokens, rows) if r["heldout_loss"]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot(tokens, loss, color="#b8c8dc", linewidth=0.6, label="training, each step")
    left.plot(tokens, smooth, color="#1f4e8c", linewidth=1.4, label="training, mean of 25 steps")
    left.plot(*zip(*held), "o-", color="#c8501e", markersize=3, linewidth=1.2, label="held out")
    left.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)", ylim=(min(loss.min(), held[-1][1]) - 0.2, 6.5),
             title="Loss")
    left.legend(frameon=False)
    right.plot(step, [float(r["load_max"]) for r in rows], color="#8c1f4e", linewidth=0.7, label="busiest expert of any layer")
    right.plot(step, [float(r["load_min"]) for r in rows], color="#1f8c6e", linewidth=0.7, label="idlest expert of any layer")
    right.axhline(1.0, color="#888888", linewidth=0.8, linestyle="--")
    right.set(xlabel="step", ylabel="tokens routed / mean", title="Expert load in each step's batch", ylim=(0, 3.5))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--heldout", action="store_true")
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    if args.check:
        result["check"] = check(args.model, args.work)
    if args.heldout:
        result["heldout"] = heldout(args.model, args.work)
    if args.samples:
        result["samples"] = samples(args.model, PROMPTS)
    if args.plot:
        plot(args.work, args.plot)
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
