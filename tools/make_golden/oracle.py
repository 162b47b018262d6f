"""Runs Hugging Face's DeepseekV3ForCausalLM in float32 and chooses prompts that say something."""

import contextlib
import json
import os

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

import checkpoint


def load(directory):
    """The model with the checkpoint's weights in float32; what the library does not run (MTP) left out."""
    with open(os.path.join(directory, "config.json")) as file:
        config = json.load(file)
    config.pop("quantization_config", None)
    newer = config.pop("rope_parameters", None)
    if newer is not None:
        config["rope_theta"] = newer.pop("rope_theta")
        config["rope_scaling"] = newer if newer.get("rope_type") == "yarn" else None
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**config, attn_implementation="eager")).float().eval()
    weights = checkpoint.read_float32(directory)
    mtp = tuple(f"model.layers.{config['num_hidden_layers'] + i}."
                for i in range(config.get("num_nextn_predict_layers", 0)))
    weights = {name: weight for name, weight in weights.items() if not (mtp and name.startswith(mtp))}
    result = model.load_state_dict(weights, strict=False)
    missing = [name for name in result.missing_keys if not (config["tie_word_embeddings"] and name == "lm_head.weight")]
    if missing or result.unexpected_keys:
        raise ValueError(f"{directory}: missing {missing}, unexpected {result.unexpected_keys}")
    return model


@torch.no_grad()
def greedy(model, prompts, steps):
    """Continues a batch of equally long prompts: tokens [n, steps] and each step's lead of the best logit over the
    second, in units of the row's standard deviation."""
    tokens, leads = [], []
    result = model(input_ids=prompts, use_cache=True)
    for _ in range(steps):
        logits = result.logits[:, -1]
        best = logits.topk(2, dim=-1)
        tokens.append(logits.argmax(-1))
        leads.append((best.values[:, 0] - best.values[:, 1]) / logits.std(-1))
        result = model(input_ids=tokens[-1][:, None], past_key_values=result.past_key_values, use_cache=True)
    return torch.stack(tokens, 1), torch.stack(leads, 1)


@torch.no_grad()
def all_logits(model, sequence):
    """Logits of every row of one sequence [rows, vocab] and the experts each MoE layer chose (sets, by layer)."""
    chosen = []

    def remember(module, inputs, output):
        chosen.append(torch.sort(output[0], -1).values)

    hooks = [m.register_forward_hook(remember) for m in model.modules() if isinstance(m, DeepseekV3TopkRouter)]
    try:
        logits = model(input_ids=sequence[None], use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.stack(chosen, 1) if chosen else torch.zeros(len(sequence), 0, 1)


def round_to_bf16(x, generator):
    """x rounded to BF16: to nearest, or with a generator up or down at random by distance (errors twice as large)."""
    if generator is None:
        return x.to(torch.bfloat16).float()
    mantissa, exponent = torch.frexp(x)
    dither = torch.rand(x.shape, generator=generator)
    return torch.ldexp(torch.floor(mantissa * 2.0**8 + dither) * 2.0**-8, exponent)


@contextlib.contextmanager
def rounded(model, generator):
    """Inputs and outputs of every linear layer are rounded, as a server with BF16 activations rounds them."""
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head]
    routers = [m for m in model.modules() if isinstance(m, DeepseekV3TopkRouter)]

    def round_input(module, inputs):
        return tuple(round_to_bf16(x, generator) for x in inputs)

    def round_output(module, inputs, output):
        return round_to_bf16(output, generator)

    hooks = [m.register_forward_pre_hook(round_input) for m in linears + routers + [model.lm_head]]
    hooks += [m.register_forward_hook(round_output) for m in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def judge(model, prompt, tokens, generators):
    """How the oracle with BF16 activations departs from float32 on prompt + tokens, once for each generator (None: rounded
    to nearest). Yields whether the greedy tokens agree, the rows whose chosen experts differ, and the largest logit
    difference over the greedy rows in units of a row's deviation. Lazy: a caller that has seen enough pays no more."""
    sequence = torch.cat([prompt, tokens[:-1]])
    greedy_rows = slice(len(prompt) - 1, None)
    exact, exact_experts = all_logits(model, sequence)
    for generator in generators:
        with rounded(model, generator):
            short, short_experts = all_logits(model, sequence)
        agrees = torch.equal(short[greedy_rows].argmax(-1), tokens)
        flipped = (exact_experts != short_experts).flatten(1).any(-1)
        difference = ((exact - short)[greedy_rows].abs().amax(-1) / exact[greedy_rows].std(-1)).max().item()
        yield agrees, flipped, difference
