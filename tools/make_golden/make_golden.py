"""Makes tests/data/models: small random checkpoints and what the Hugging Face library computes from them.

  make_golden.py --out tests/data/models            all checkpoints of cases.py with their golden.safetensors
  make_golden.py --model models/demo --text docs/architecture.md --out tests/data/demo/golden.safetensors
                                                    the same of an existing checkpoint, prompts cut from a text

See README.md for what the files hold and how prompts are chosen. Deterministic: same versions, same bytes.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import cases
import checkpoint
import oracle

CANDIDATES = 512  # prompts tried for each length
DEMO_CANDIDATES = 32
DRAWS = 4  # runs with random rounding that a prompt must survive


def write_config(directory, case):
    config = {**cases.BASE, **case.config}
    config["num_key_value_heads"] = config["num_attention_heads"]
    if case.fp8:
        config["quantization_config"] = {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
        if case.power_of_two_scales:
            config["quantization_config"]["scale_fmt"] = "ue8m0"
    stored = dict(config)
    if case.newer_rope_spelling:
        rope = stored.pop("rope_scaling")
        rope["rope_type"] = rope.pop("type")
        stored["rope_parameters"] = {**rope, "rope_theta": stored.pop("rope_theta")}
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "config.json"), "w") as out:
        json.dump(stored, out, indent=2, sort_keys=True)
        out.write("\n")
    return config


def golden_rows(length):
    """Positions whose logits are kept: inside the prompt, its end, and decode steps near and far."""
    rows = {length - 1, length, length + 31, length + cases.GREEDY_STEPS - 2}
    if length == 200:
        rows |= {0, 63, 64, 127}
    return sorted(rows)


def choose(model, prompts, rows, same_experts):
    """Of equally long candidate prompts the one whose greedy path has the largest smallest lead, among those that are
    no toss of a coin: oracles whose activations are rounded to BF16, once to nearest and DRAWS times at random, take
    the same path and, with `same_experts`, choose the same experts in all rows of the path and in the kept `rows`."""
    parts = [oracle.greedy(model, part, cases.GREEDY_STEPS) for part in prompts.split(128)]
    tokens, leads = (torch.cat(values) for values in zip(*parts))
    generator = torch.Generator().manual_seed(7)
    for i in leads.min(1).values.argsort(descending=True).tolist():
        differences = []
        for agrees, flipped, difference in oracle.judge(model, prompts[i], tokens[i], [None] + DRAWS * [generator]):
            differences.append(difference)
            stable = agrees
            if same_experts:
                stable = stable and not flipped[rows].any() and not flipped[len(prompts[i]) - 1:].any()
            if not stable:
                break
        if stable:
            print(f"    length {prompts.shape[1]:3d}: smallest lead {leads[i].min():.4f}, largest difference "
                  f"rounded to nearest {differences[0]:.4f}, at random {max(differences[1:]):.4f}", flush=True)
            logits, _ = oracle.all_logits(model, torch.cat([prompts[i], tokens[i][:-1]]))
            return prompts[i], tokens[i], logits
    raise RuntimeError(f"no prompt of length {prompts.shape[1]} is stable; try another seed")


def make_golden(model, candidates_for, same_experts):
    golden = {}
    for length in cases.PROMPT_LENGTHS:
        rows = golden_rows(length)
        prompt, tokens, logits = choose(model, candidates_for(length), rows, same_experts)
        golden[f"prompt_{length}"] = prompt.to(torch.int64)
        golden[f"greedy_{length}"] = tokens.to(torch.int64)
        golden[f"rows_{length}"] = torch.tensor(rows)
        golden[f"logits_{length}"] = logits[rows].contiguous()
    return golden


def make_case(case, out):
    directory = os.path.join(out, case.name)
    print(f"{case.name}:")
    config = write_config(directory, case)
    generator = torch.Generator().manual_seed(case.seed)
    weights = checkpoint.random_weights(config, generator, case.bf16_bias, case.fp8)
    checkpoint.write(directory, checkpoint.to_stored(weights, case), case.shards)
    model = oracle.load(directory)

    def candidates(length):
        count = min(CANDIDATES, config["vocab_size"] - 2) if length == 1 else CANDIDATES
        if length == 1:
            return torch.randperm(config["vocab_size"] - 2, generator=generator)[:count, None] + 2
        return torch.randint(2, config["vocab_size"], (count, length), generator=generator)

    save_file(make_golden(model, candidates, same_experts=True), os.path.join(directory, "golden.safetensors"))


def make_for_model(directory, text, out):
    model = oracle.load(directory)
    with open(text, encoding="utf-8") as file:
        ids = torch.tensor(Tokenizer.from_file(os.path.join(directory, "tokenizer.json")).encode(file.read()).ids)
    generator = torch.Generator().manual_seed(1)

    def candidates(length):
        starts = torch.randperm(len(ids) - length + 1, generator=generator)[:DEMO_CANDIDATES]
        return torch.stack([ids[start:start + length] for start in starts.tolist()])

    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    # A trained model has many layers of experts, and one more or less of them says little: tokens must agree.
    save_file(make_golden(model, candidates, same_experts=False), out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", help="name of one case")
    parser.add_argument("--model", help="an existing checkpoint directory")
    parser.add_argument("--text", help="with --model: a UTF-8 text to cut prompts from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    if arguments.model:
        make_for_model(arguments.model, arguments.text, arguments.out)
        return
    for case in cases.CASES:
        if arguments.only in (None, case.name):
            make_case(case, arguments.out)


if __name__ == "__main__":
    main()
