"""Trains the demo model. Resumes from WORK_DIR/checkpoint.pt when that exists.

    OMP_NUM_THREADS=1 python train.py --work WORK_DIR --steps 3000

Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of attention and MLPs, AdamW for embedding, head,
norms and router; a learning rate that is linear between given steps (--lr-knots). Experts are balanced without an
auxiliary loss (arXiv 2408.15664): after each step the selection bias of an expert with too many tokens goes down, of
one with too few up; a tiny auxiliary loss (--balance-weight) keeps single sequences from going astray. The last
--long-steps steps use sequences of --long-length tokens. The run is deterministic for one thread on one kind of
processor.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import time

import numpy as np
import torch

import model as m

MATRIX_PARTS = ("_proj", "experts.gate_up", "experts.down")


def orthogonalize(g):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; batched over leading dimensions."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    batched = x.dim() == 3
    x = x.contiguous() if batched else x.contiguous().unsqueeze(0)
    for _ in range(5):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    x = x if batched else x[0]
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                g = p.grad.lerp(state["momentum"], group["momentum"])
                # A gate_up matrix is two stacked projections; each is orthogonalized on its own.
                parts = g.chunk(2, -2) if g.dim() == 3 and g.shape[-2] > g.shape[-1] * 0.9 and p.is_gate_up else (g,)
                update = torch.cat([orthogonalize(x) for x in parts], -2)
                rows, columns = parts[0].shape[-2:]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.float(), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def make_optimizers(net, args):
    matrices, tables, vectors = [], [], []
    for name, p in net.named_parameters():
        p.is_gate_up = "gate_up" in name
        if any(part in name for part in MATRIX_PARTS):
            matrices.append(p)
        else:
            (tables if p.dim() == 2 and len(p) > 1000 else vectors).append(p)
    adam = torch.optim.AdamW([{"params": tables, "lr": args.table_lr}, {"params": vectors, "lr": args.vector_lr}],
                             betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, foreach=True)
    optimizers = [Muon(matrices, args.muon_lr), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


class Batches:
    """Random windows of the training tokens; epoch by epoch each window once, at a new offset."""

    def __init__(self, tokens, seed):
        self.tokens, self.seed = tokens, seed

    def get(self, index, rows, length):
        """Batch number `index` of its phase as int64 [rows, length + 2]."""
        windows = (len(self.tokens) - length - 2) // length
        per_epoch = windows // rows
        epoch, place = divmod(index, per_epoch)
        rng = np.random.default_rng([self.seed, length, epoch])
        offset = int(rng.integers(0, length))
        chosen = rng.permutation(windows - 1)[place * rows:(place + 1) * rows]
        out = np.stack([self.tokens[w * length + offset:w * length + offset + length + 2] for w in chosen])
        return torch.from_numpy(out.astype(np.int64))


def lr_scale(step, knots):
    """Learning rate of step `step` relative to the base rates: linear between knots (step, scale)."""
    return float(np.interp(step + 1, *zip(*knots)))


def parse_knots(text):
    return [(int(step), float(scale)) for step, scale in (knot.split(":") for knot in text.split(","))]


@torch.no_grad()
def evaluate(net, tokens, length, rows, batches):
    """Mean held-out loss over the first rows * batches windows."""
    net.eval()
    losses = []
    for i in range(batches):
        at = [(i * rows + r) * length for r in range(rows)]
        batch = torch.from_numpy(np.stack([tokens[a:a + length + 2] for a in at]).astype(np.int64))
        losses.append(net.losses(batch, 0)[0].item())
    net.train()
    return sum(losses) / len(losses)


def save(path, net, optimizers, step, config):
    state = {"step": step, "config": dataclasses.asdict(config), "model": net.state_dict(),
             "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, str(path) + ".tmp")
    os.replace(str(path) + ".tmp", path)


def train_step(net, optimizers, tokens, args, mtp_weight):
    main_sum, mtp_sum, moe = 0.0, 0.0, net.moe_layers()
    micro = tokens.split(max(1, args.micro_tokens // (tokens.shape[1] - 2)))
    for part in micro:
        main, mtp = net.losses(part, (len(part) + 1) // 2)  # half of the rows are enough for the MTP layer
        loss = main + mtp_weight * mtp + args.balance_weight * sum(layer.take_balance_loss() for layer in moe)
        (loss / len(micro)).backward()
        main_sum, mtp_sum = main_sum + main.item() / len(micro), mtp_sum + mtp.item() / len(micro)
    for optimizer in optimizers:
        optimizer.step()
    net.zero_grad(set_to_none=True)
    return main_sum, mtp_sum


@torch.no_grad()
def update_biases(net, speed):
    """Moves each selection bias by the sign of its expert's load error; returns (least, greatest) load / mean."""
    worst = [1.0, 1.0]
    for layer in net.moe_layers():
        load = layer.load / layer.load.mean()
        layer.gate.e_score_correction_bias += speed * torch.sign(1 - load)
        worst = [min(worst[0], load.min().item()), max(worst[1], load.max().item())]
        layer.load.zero_()
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--long-steps", type=int, default=350)
    parser.add_argument("--long-length", type=int, default=1024)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--table-lr", type=float, default=0.004)
    parser.add_argument("--vector-lr", type=float, default=0.004)
    parser.add_argument("--lr-knots", default="0:0,40:1,1400:1,3000:0",
                        help="step:scale,...; linear between")
    parser.add_argument("--mtp-switch", type=int, default=2000, help="step from which the MTP loss weighs 0.1, not 0.3")
    parser.add_argument("--balance-weight", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    knots = parse_knots(args.lr_knots)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    config = m.Config()
    net = m.Model(config)
    net.init_weights(args.seed)
    optimizers = make_optimizers(net, args)
    checkpoint, log_path = args.work / "checkpoint.pt", args.work / "log.csv"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        start = state["step"]
        print("resumed at step", start, flush=True)
    if not args.no_compile:
        m.compile_parts(net)
    train = Batches(np.fromfile(args.work / "train.u16", np.uint16), args.seed)
    heldout = np.fromfile(args.work / "heldout.u16", np.uint16)
    (args.work / "run.json").write_text(json.dumps({k: str(v) for k, v in vars(args).items()}))

    log = open(log_path, "a", newline="")
    writer = csv.writer(log)
    if start == 0:
        log.truncate(0)
        writer.writerow(["step", "tokens", "loss", "mtp_loss", "heldout_loss", "lr_scale", "load_min", "load_max", "seconds"])
    short_steps = args.steps - args.long_steps
    for step in range(start, args.steps):
        began = time.monotonic()
        scale = lr_scale(step, knots)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
        if step < short_steps:
            tokens = train.get(step, args.rows, args.length)
        else:
            tokens = train.get(step - short_steps, args.rows * args.length // args.long_length, args.long_length)
        mtp_weight = 0.3 if step < args.mtp_switch else 0.1
        losses = train_step(net, optimizers, tokens, args, mtp_weight)
        load = update_biases(net, 0.005 * min(1.0, scale) if step >= 40 else 0.01)
        held = ""
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            held = f"{evaluate(net, heldout, args.length, args.rows, 4):.4f}"
            for layer in net.moe_layers():
                layer.load.zero_()
            save(checkpoint, net, optimizers, step + 1, config)
        writer.writerow([step + 1, (step + 1) * args.rows * args.length, f"{losses[0]:.4f}", f"{losses[1]:.4f}", held,
                         f"{scale:.4f}", f"{load[0]:.3f}", f"{load[1]:.3f}", f"{time.monotonic() - began:.2f}"])
        log.flush()


if __name__ == "__main__":
    main()
