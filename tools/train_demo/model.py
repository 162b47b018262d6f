"""A compact DeepSeek-V3 for training on one CPU core: MLA, MoE with biased sigmoid selection, one MTP layer.

Parameter names equal the Hugging Face checkpoint's, except that a layer's routed experts are stacked:
`mlp.experts.gate_up` [E, 2I, H] and `mlp.experts.down` [E, H, I]. The formulas follow the DeepSeek-V3 report
(arXiv 2412.19437) and were checked against transformers' DeepseekV3ForCausalLM (evaluate.py --check).

Weights are FP32 masters, products run in BF16, the residual stream and the router in FP32.
"""

import dataclasses
import math

import torch
from torch import nn
from torch.nn import functional as F


BEGIN, END = 0, 1  # token ids: pages of the corpus start with BEGIN; where the next page would start, the model says END


@dataclasses.dataclass
class Config:
    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    dense_layers: int = 1
    heads: int = 4
    q_rank: int = 192
    kv_rank: int = 128
    nope: int = 64
    rope: int = 32
    value: int = 64
    dense_ffn: int = 704
    expert_ffn: int = 128
    experts: int = 16
    top_k: int = 4
    groups: int = 4
    kept_groups: int = 2
    shared_experts: int = 1
    routed_scale: float = 2.0
    eps: float = 1e-6
    rope_theta: float = 10000.0
    yarn_factor: float = 4.0
    yarn_original: int = 512
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mtp_layers: int = 1


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def mscale(config):
    """YaRN's attention temperature with mscale = mscale_all_dim = 1: it multiplies queries and keys once each."""
    return 1.0 if config.yarn_factor <= 1 else 0.1 * math.log(config.yarn_factor) + 1.0


def rope_tables(config, length):
    """cos and sin [length, rope / 2] with YaRN's frequencies (arXiv 2309.00071)."""
    dim, half = config.rope, config.rope // 2
    exponent = torch.arange(half, dtype=torch.float64) * 2 / dim
    base = config.rope_theta ** -exponent

    def turns_to_index(turns):
        return dim * math.log(config.yarn_original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(turns_to_index(config.beta_fast)), 0)
    high = min(math.ceil(turns_to_index(config.beta_slow)), dim - 1)
    ramp = ((torch.arange(half, dtype=torch.float64) - low) / max(high - low, 0.001)).clamp(0, 1)
    frequency = base / config.yarn_factor * ramp + base * (1 - ramp)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Rotates interleaved pairs (x[2i], x[2i+1]), the layout of DeepSeek's checkpoints."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)  # any fixed order: both sides of the product use it


def linear(x, weight):
    return F.linear(x.bfloat16(), weight.bfloat16())


ROW_BLOCK = 64  # rows of an expert are padded to a multiple, so that few shapes occur and oneDNN's kernels are reused


def group_by_expert(chosen, slots, experts):
    """Places (token, slot) pairs in rows grouped by expert, each group padded to a multiple of ROW_BLOCK.

    chosen [N*K]: expert of each pair. Returns the group sizes, the padded sizes, place [N*K] (row of each pair) and token [R]
    (token of each row); R depends on N, K and E alone, rows past the groups are unused.
    """
    counts = torch.bincount(chosen, minlength=experts)
    padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
    order = torch.argsort(chosen, stable=True)
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) + shift[chosen[order]]
    rows = len(chosen) + experts * ROW_BLOCK
    token = torch.zeros(rows, dtype=torch.int64)
    token[place] = torch.arange(len(chosen)) // slots
    return counts, padded.tolist(), place, token


def grouped(product, sizes, rows, width):
    """Concatenates product(expert, slice) of every group; rows past the groups are zero."""
    out, start = torch.empty(rows, width, dtype=torch.bfloat16), 0
    for expert, size in enumerate(sizes):
        product(expert, slice(start, start + size), out[start:start + size])
        start += size
    out[start:].zero_()
    return out


class Experts(torch.autograd.Function):
    """Routed experts over tokens grouped by expert; the backward pass is written out to avoid scatter-adds.

    x [N, H] BF16, gate_up [E, 2I, H], down [E, H, I] BF16, weights [N, K] FP32; sizes, place, token as from
    group_by_expert. Returns [N, H] BF16.
    """

    @staticmethod
    def forward(ctx, x, gate_up, down, weights, sizes, place, token):
        n, k = weights.shape
        xs = x.index_select(0, token)
        h = grouped(lambda e, s, out: torch.mm(xs[s], gate_up[e].t(), out=out), sizes, len(xs), gate_up.shape[1])
        act = swiglu(h)
        ys = grouped(lambda e, s, out: torch.mm(act[s], down[e].t(), out=out), sizes, len(xs), x.shape[1])
        y = combine(ys.index_select(0, place).view(n, k, -1), weights)
        ctx.sizes = sizes
        ctx.save_for_backward(xs, h, act, ys, gate_up, down, weights, place, token)
        return y

    @staticmethod
    def backward(ctx, dy):
        xs, h, act, ys, gate_up, down, weights, place, token = ctx.saved_tensors
        n, k = weights.shape
        row_weight = torch.zeros(len(xs))
        row_weight[place] = weights.view(-1)
        dys, dw_rows = combine_backward(dy.index_select(0, token), ys, row_weight.unsqueeze(1))
        dweights = dw_rows.index_select(0, place).view(n, k)
        ddown, dgate_up = torch.empty_like(down), torch.empty_like(gate_up)

        def down_back(e, s, out):
            torch.mm(dys[s].t(), act[s], out=ddown[e])
            torch.mm(dys[s], down[e], out=out)

        def gate_up_back(e, s, out):
            torch.mm(dh[s].t(), xs[s], out=dgate_up[e])
            torch.mm(dh[s], gate_up[e], out=out)

        dact = grouped(down_back, ctx.sizes, len(xs), act.shape[1])
        dh = swiglu_backward(dact, h)
        dxs = grouped(gate_up_back, ctx.sizes, len(xs), xs.shape[1])
        dx = sum_slots(dxs.index_select(0, place).view(n, k, -1))
        return dx, dgate_up, ddown, dweights, None, None, None


def swiglu(h):
    gate, up = h.float().chunk(2, -1)
    return (F.silu(gate) * up).bfloat16()


def swiglu_backward(dact, h):
    gate, up = h.float().chunk(2, -1)
    dact = dact.float()
    s = torch.sigmoid(gate)
    return torch.cat([dact * up * s * (1 + gate * (1 - s)), dact * gate * s], -1).bfloat16()


def combine(ys, weights):
    return (ys.float() * weights.unsqueeze(-1)).sum(1).bfloat16()


def combine_backward(dy_sorted, ys, weight):
    d = dy_sorted.float()
    return (d * weight).bfloat16(), (d * ys.float()).sum(-1)


def sum_slots(x):
    return x.float().sum(1).bfloat16()


class CausalAttention(torch.autograd.Function):
    """Causal attention over q, k [B, T, D] and v [B, T, V] in BF16 with FP32 softmax.

    Queries go in blocks, each over the keys that it can see; only the BF16 probabilities are kept for the way back.
    """

    @staticmethod
    def forward(ctx, q, k, v, scale):
        length = q.shape[1]
        block = length // 4 if length % 4 == 0 and length >= 64 else length
        mask = torch.full((block, block), float("-inf"), dtype=q.dtype).triu(1)
        out, kept = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype), []
        for start in range(0, length, block):
            end = start + block
            score = q[:, start:end] @ k[:, :end].transpose(1, 2)
            score[:, :, start:] += mask
            kept.append(scaled_softmax(score, scale))
            torch.bmm(kept[-1], v[:, :end], out=out[:, start:end])
        ctx.scale, ctx.block = scale, block
        ctx.save_for_backward(q, k, v, *kept)
        return out

    @staticmethod
    def backward(ctx, dout):
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for i, p in enumerate(kept):
            start, end = i * ctx.block, (i + 1) * ctx.block
            d = dout[:, start:end]
            dv[:, :end] += p.transpose(1, 2) @ d
            ds = scaled_softmax_backward(p, d @ v[:, :end].transpose(1, 2), ctx.scale)
            dq[:, start:end] = ds @ k[:, :end]
            dk[:, :end] += ds.transpose(1, 2) @ q[:, start:end]
        return dq, dk, dv, None


def scaled_softmax(score, scale):
    return torch.softmax(score.float() * scale, -1).bfloat16()


def scaled_softmax_backward(p, dp, scale):
    p, dp = p.float(), dp.float()
    return (p * (dp - (dp * p).sum(-1, keepdim=True)) * scale).bfloat16()


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.q_a_proj = nn.Linear(c.hidden, c.q_rank, bias=False)
        self.q_a_layernorm = nn.RMSNorm(c.q_rank)
        self.q_b_proj = nn.Linear(c.q_rank, c.heads * (c.nope + c.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden, c.kv_rank + c.rope, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(c.kv_rank)
        self.kv_b_proj = nn.Linear(c.kv_rank, c.heads * (c.nope + c.value), bias=False)
        self.o_proj = nn.Linear(c.heads * c.value, c.hidden, bias=False)

    def project(self, x, cos, sin):
        """Normed x [B, T, hidden] to q, k [B * heads, T, nope + rope] and v [B * heads, T, value]."""
        c, (batch, length, _) = self.config, x.shape
        q = rms_norm(linear(x, self.q_a_proj.weight).float(), self.q_a_layernorm.weight, c.eps)
        q = linear(q, self.q_b_proj.weight).view(batch, length, c.heads, -1).transpose(1, 2)
        kv, k_rope = linear(x, self.kv_a_proj_with_mqa.weight).split([c.kv_rank, c.rope], -1)
        kv = rms_norm(kv.float(), self.kv_a_layernorm.weight, c.eps)
        kv = linear(kv, self.kv_b_proj.weight).view(batch, length, c.heads, -1).transpose(1, 2)
        k_nope, v = kv.split([c.nope, c.value], -1)
        k_rope = rotate(k_rope.float(), cos, sin).bfloat16().unsqueeze(1).expand(-1, c.heads, -1, -1)
        q = torch.cat([q[..., :c.nope], rotate(q[..., c.nope:].float(), cos, sin).bfloat16()], -1)
        k = torch.cat([k_nope, k_rope], -1)
        return tuple(t.reshape(batch * c.heads, length, -1) for t in (q, k, v))

    def output(self, out):
        """Heads' outputs [B * heads, T, value] to [B, T, hidden]."""
        c = self.config
        out = out.view(-1, c.heads, *out.shape[1:]).transpose(1, 2)
        return linear(out.reshape(*out.shape[:2], -1), self.o_proj.weight)


class DenseMlp(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        gate, up = linear(x, self.gate_proj.weight).float(), linear(x, self.up_proj.weight).float()
        return linear((F.silu(gate) * up).bfloat16(), self.down_proj.weight)


class Gate(nn.Module):
    """Sigmoid scores; the bias takes part in the choice of groups and experts alone."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.weight = nn.Parameter(torch.empty(c.experts, c.hidden))
        self.register_buffer("e_score_correction_bias", torch.zeros(c.experts))

    def forward(self, x):
        c = self.config
        score = torch.sigmoid(x @ self.weight.t())
        with torch.no_grad():
            choice = score + self.e_score_correction_bias
            grouped = choice.view(-1, c.groups, c.experts // c.groups)
            kept = grouped.topk(2, -1)[0].sum(-1).topk(c.kept_groups, -1)[1]
            mask = torch.zeros(len(choice), c.groups).scatter_(1, kept, 1.0).bool()
            index = grouped.masked_fill(~mask.unsqueeze(-1), 0.0).view(-1, c.experts).topk(c.top_k, -1)[1]
        weights = score.gather(1, index)
        return index, weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scale, score


class ExpertWeights(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(c.experts, 2 * c.expert_ffn, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts, c.hidden, c.expert_ffn))


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.gate = Gate(c)
        self.experts = ExpertWeights(c)
        self.shared_experts = DenseMlp(c.hidden, c.shared_experts * c.expert_ffn)
        self.load = torch.zeros(c.experts)  # tokens routed to each expert since the last reset
        self.balance_loss = 0.0

    def take_balance_loss(self):
        """The balance loss of the last forward pass, once."""
        loss, self.balance_loss = self.balance_loss, 0.0
        return loss

    def forward(self, x):
        flat = x.view(-1, x.shape[-1])
        index, weights, score = self.gate(flat)
        chosen = index.view(-1)
        counts, sizes, place, token = group_by_expert(chosen, index.shape[1], self.config.experts)
        self.load += counts
        if self.training:
            share = counts / len(chosen) * self.config.experts
            self.balance_loss = (score / score.sum(-1, keepdim=True)).mean(0) @ share
        routed = Experts.apply(flat.bfloat16(), self.experts.gate_up.bfloat16(), self.experts.down.bfloat16(), weights,
                               sizes, place, token)
        return routed.view(x.shape).float() + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.config = c
        self.input_layernorm = nn.RMSNorm(c.hidden)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden)
        self.mlp = DenseMlp(c.hidden, c.dense_ffn) if index < c.dense_layers else Moe(c)

    def before_attention(self, x, cos, sin):
        return self.self_attn.project(rms_norm(x, self.input_layernorm.weight, self.config.eps), cos, sin)

    def after_attention(self, x, out):
        x = x + self.self_attn.output(out)
        return x, rms_norm(x, self.post_attention_layernorm.weight, self.config.eps)

    def forward(self, x, cos, sin):
        c = self.config
        q, k, v = self.before_attention(x, cos, sin)
        out = CausalAttention.apply(q, k, v, mscale(c) ** 2 / math.sqrt(c.nope + c.rope))
        x, normed = self.after_attention(x, out)
        return x + self.mlp(normed)


class MtpLayer(Layer):
    """Predicts one token further from the main model's normed output and the next token's embedding."""

    def __init__(self, c, index):
        super().__init__(c, index)
        self.enorm = nn.RMSNorm(c.hidden)
        self.hnorm = nn.RMSNorm(c.hidden)
        self.eh_proj = nn.Linear(2 * c.hidden, c.hidden, bias=False)
        self.shared_head = nn.Module()
        self.shared_head.norm = nn.RMSNorm(c.hidden)

    def forward(self, hidden, embedding, cos, sin):
        eps = self.config.eps
        both = torch.cat([rms_norm(embedding, self.enorm.weight, eps), rms_norm(hidden, self.hnorm.weight, eps)], -1)
        out = super().forward(linear(both, self.eh_proj.weight).float(), cos, sin)
        return rms_norm(out, self.shared_head.norm.weight, eps)


class Model(nn.Module):
    def __init__(self, config, max_length=2048):
        super().__init__()
        c = self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        layers = [Layer(c, i) for i in range(c.layers)] + [MtpLayer(c, c.layers + i) for i in range(c.mtp_layers)]
        self.model.layers = nn.ModuleList(layers)
        self.model.norm = nn.RMSNorm(c.hidden)
        self.lm_head = nn.Linear(c.hidden, c.vocab, bias=False)
        cos, sin = rope_tables(c, max_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def init_weights(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue  # norms start at one
            with torch.no_grad():
                if "embed_tokens" in name:
                    p.normal_(0, 0.5, generator=generator)
                elif "lm_head" in name:
                    p.zero_()
                elif "o_proj" in name or "down" in name:
                    p.normal_(0, 0.2 / math.sqrt(p.shape[-1]), generator=generator)
                else:
                    p.normal_(0, 0.6 / math.sqrt(p.shape[-1]), generator=generator)

    def moe_layers(self):
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, Moe)]

    def hidden(self, tokens):
        x = F.embedding(tokens, self.model.embed_tokens.weight)
        cos, sin = self.cos[:tokens.shape[1]], self.sin[:tokens.shape[1]]
        for layer in self.model.layers[:self.config.layers]:
            x = layer(x, cos, sin)
        return rms_norm(x, self.model.norm.weight, self.config.eps)

    def logits(self, hidden):
        return linear(hidden, self.lm_head.weight)

    def losses(self, tokens, mtp_rows):
        """Mean next-token loss of tokens [B, T + 2], and the MTP layer's next-but-one-token loss of the first rows."""
        hidden = self.hidden(tokens[:, :-2])
        targets = torch.where(tokens == BEGIN, END, tokens)  # what a page's last position is to say
        main = token_loss(self.logits(hidden), targets[:, 1:-1])
        if not mtp_rows or not self.config.mtp_layers:
            return main, torch.zeros(())
        length, tokens = hidden.shape[1], tokens[:mtp_rows]
        embedding = F.embedding(tokens[:, 1:-1], self.model.embed_tokens.weight)
        further = self.model.layers[-1](hidden[:mtp_rows], embedding, self.cos[:length], self.sin[:length])
        return main, token_loss(self.logits(further), targets[:mtp_rows, 2:])


class TokenLoss(torch.autograd.Function):
    """Mean cross-entropy of BF16 logits with FP32 sums, keeping only the BF16 gradient."""

    @staticmethod
    def forward(ctx, logits, target):
        loss, grad = loss_and_grad(logits, target)
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx, dloss):
        return ctx.saved_tensors[0].mul_(dloss), None


def loss_and_grad(logits, target):
    x = logits.float()
    log_sum = torch.logsumexp(x, -1, keepdim=True)
    loss = (log_sum - x.gather(1, target.unsqueeze(1))).mean()
    one_hot = torch.arange(x.shape[1]).unsqueeze(0) == target.unsqueeze(1)
    return loss, ((torch.exp(x - log_sum) - one_hot.float()) / len(target)).bfloat16()


def token_loss(logits, target):
    return TokenLoss.apply(logits.reshape(-1, logits.shape[-1]), target.reshape(-1))


def compile_parts(model):
    """Fuses the elementwise work; the routed experts keep their data-dependent shapes outside of the compiler."""
    this = globals()
    for name in ("swiglu", "swiglu_backward", "combine", "combine_backward", "sum_slots", "scaled_softmax_backward", "loss_and_grad"):
        this[name] = torch.compile(this[name], dynamic=False)
    Layer.before_attention = torch.compile(Layer.before_attention, dynamic=False)
    Layer.after_attention = torch.compile(Layer.after_attention, dynamic=False)
    DenseMlp.forward = torch.compile(DenseMlp.forward, dynamic=False)
    Gate.forward = torch.compile(Gate.forward, dynamic=False)
