"""Three versions of each component that are right, and look different from ours and from each other: every check must let them pass."""
import copy
import heapq
import math
import random
import re
import tempfile
import warnings
import zipfile
from collections import Counter, defaultdict
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import planted
import regex
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from llm_course.bpe import GPT2
from llm_course.checkpoint import read_checkpoint, read_safetensors
from llm_course.engine.parts import same_parts
from llm_course.generating import Sampling, keep_min_p, keep_top_k, keep_top_p, next_probabilities, penalise
from llm_course.grading.grading import reference
from llm_course.rewards import advantages as reference_advantages
from llm_course.transformer import ModelConfig, Transformer

RIGHT = defaultdict(list)   # component, or a function that stands for one → versions
def right(component):
    "Note a version."
    def keep(part):
        RIGHT[component].append(part)
        return part
    return keep

def wide(x): return x.to(torch.promote_types(x.dtype, torch.float32))


# ---- Layers

def a_linear(compute, draw):
    class Part(nn.Module):
        def __init__(self, in_features, out_features, bias=False, device=None, dtype=None):
            super().__init__()
            self.weight = nn.Parameter(draw(torch.empty(out_features, in_features, device=device, dtype=dtype), in_features**-.5))
            self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None)
        def forward(self, x): return compute(x, self.weight, self.bias)
    return Part

RIGHT["Linear"] = [a_linear(F.linear, lambda w, s: nn.init.normal_(w, std=s)),
                   a_linear(lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + (0 if b is None else b), lambda w, s: nn.init.uniform_(w, -s * 3**.5, s * 3**.5)),
                   a_linear(lambda x, w, b: (w @ x[..., None]).squeeze(-1) if b is None else (w @ x[..., None]).squeeze(-1) + b, lambda w, s: nn.init.trunc_normal_(w, std=s, a=-3*s, b=3*s))]

def an_embedding(find):
    class Part(nn.Module):
        def __init__(self, num_embeddings, embedding_dim, device=None, dtype=None):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim, device=device, dtype=dtype))
        def forward(self, ids): return find(ids, self.weight)
    return Part

RIGHT["Embedding"] = [an_embedding(lambda ids, w: w[ids]), an_embedding(F.embedding), an_embedding(lambda ids, w: w.index_select(0, ids.flatten()).view(*ids.shape, w.shape[1]))]

def a_norm(compute):
    class Part(nn.Module):
        def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype)), eps
        def forward(self, x): return compute(wide(x), wide(self.weight), self.eps).to(x.dtype)
    return Part

RIGHT["RmsNorm"] = [a_norm(lambda x, w, eps: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w), a_norm(lambda x, w, eps: F.rms_norm(x, w.shape, w, eps)),
                    a_norm(lambda x, w, eps: w * x / torch.sqrt(torch.einsum("...d,...d->...", x, x)[..., None] / x.shape[-1] + eps))]
RIGHT["SiLu"] = [nn.SiLU, lambda: lambda x: x * torch.sigmoid(x), lambda: lambda x: x * ((1 + torch.tanh(x / 2)) / 2)]

def a_network(compute):
    class Part(nn.Module):
        def __init__(self, d_model, d_ff, device=None, dtype=None):
            super().__init__()
            self.w1, self.w3 = (nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype) for _ in range(2))
            self.w2 = nn.Linear(d_ff, d_model, bias=False, device=device, dtype=dtype)
        def forward(self, x): return compute(x, self.w1.weight, self.w2.weight, self.w3.weight)
    return Part

RIGHT["FFN"] = [a_network(lambda x, w1, w2, w3: F.silu(x @ w1.T) * (x @ w3.T) @ w2.T), a_network(lambda x, w1, w2, w3: F.linear(torch.sigmoid(F.linear(x, w1)) * F.linear(x, w1) * F.linear(x, w3), w2)),
                a_network(lambda x, w1, w2, w3: (lambda gate, up: (F.silu(gate) * up) @ w2.mT)(*F.linear(x, torch.cat([w1, w3])).chunk(2, -1)))]

def by_logarithm(x, dim=-1): return torch.exp((z := wide(x) - wide(x).amax(dim, keepdim=True).clamp(min=-1e30)) - torch.logsumexp(z, dim, keepdim=True).clamp(min=-1e30)).to(x.dtype)
def by_hand(x, dim=-1):
    top = wide(x).amax(dim, keepdim=True).detach()
    powers = (wide(x) - top.clamp(min=-1e30)).exp()
    return (powers / powers.sum(dim, keepdim=True).clamp(min=1e-30)).to(x.dtype)
RIGHT["Softmax"] = [lambda dim=-1: lambda x: F.softmax(x, dim).masked_fill((x == -torch.inf).all(dim, keepdim=True), 0.), lambda dim=-1: partial(by_logarithm, dim=dim), lambda dim=-1: partial(by_hand, dim=dim)]

@right("ScaledDotProductAttention")
class Fused(nn.Module):
    def forward(self, q, k, v, mask=None):
        out = F.scaled_dot_product_attention(wide(q), wide(k), wide(v), mask)
        return (out if mask is None else out * mask.any(-1, keepdim=True)).to(v.dtype)

@right("ScaledDotProductAttention")
def with_a_bias():
    def attend(q, k, v, mask=None):
        scores = torch.einsum("...td,...sd->...ts", wide(q) / q.shape[-1]**.5, wide(k))
        if mask is not None: scores = scores + torch.zeros(mask.shape, dtype=scores.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        return torch.einsum("...ts,...sd->...td", by_hand(scores), wide(v)).to(v.dtype)
    return attend

@right("ScaledDotProductAttention")
class Shares(nn.Module):
    def forward(self, q, k, v, mask=None):
        scores = wide(q) @ wide(k).mT * k.size(-1)**-.5
        shares = scores.softmax(-1) if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
        return (shares @ wide(v)).to(v.dtype)

RIGHT["RoPE"] += [planted._Rope]

@right("RoPE")
class ComplexRope(nn.Module):
    def __init__(self, d_k, max_seq_len, theta=10000.0, device=None):
        super().__init__()
        self.speed = theta ** -(torch.arange(0, d_k, 2, dtype=torch.float64) / d_k)
    def forward(self, x, token_positions=None):
        at = torch.arange(x.shape[-2]) if token_positions is None else torch.as_tensor(token_positions)
        if at.ndim == 0: at = at + torch.arange(x.shape[-2])
        turn = torch.polar(torch.ones((), dtype=torch.float64), at[..., None] * self.speed)
        return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2).to(x.dtype)

@right("RoPE")
class MatrixRope(ComplexRope):
    def forward(self, x, token_positions=None):
        at = torch.arange(x.shape[-2]) if token_positions is None else torch.as_tensor(token_positions)
        if at.ndim == 0: at = at + torch.arange(x.shape[-2])
        angle = at[..., None] * self.speed
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], -1), torch.stack([angle.sin(), angle.cos()], -1)], -2)
        return (turn @ x.double().unflatten(-1, (-1, 2))[..., None]).squeeze(-1).flatten(-2).to(x.dtype)

RIGHT["MultiHeadAttention"] += [planted._Mha]

@right("MultiHeadAttention")
class GroupedHeads(planted._Mha):
    def share(self, k): return k[..., torch.arange(self.num_heads) // (self.num_heads // self.num_kv_heads), :, :]
    def weigh(self, q, k, mask): return (q @ k.mT / self.d_k**.5 + torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)).softmax(-1)

@right("MultiHeadAttention")
class HeadByHead(planted._Mha):
    def forward(self, x, token_positions=None):
        d, out = self.d_k, []
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        for h in range(self.num_heads):
            g = h * self.num_kv_heads // self.num_heads
            mine, theirs = (self.rope(y[..., i*d:(i + 1)*d], token_positions) for y, i in ((q, h), (k, g)))
            out.append(self.weigh(mine, theirs, self.mask(x.shape[-2])) @ v[..., g*d:(g + 1)*d])
        return self.output_proj(torch.cat(out, -1))


# ---- Learning

RIGHT["CrossEntropyLoss"] = [planted._Ce, lambda: lambda z, y: F.cross_entropy(wide(z).flatten(0, -2), y.flatten()),
                             lambda: lambda z, y: -torch.log_softmax(wide(z).reshape(-1, z.shape[-1])[y.flatten() >= 0], -1).gather(-1, y[y >= 0][:, None]).mean()]
RIGHT["perplexity"] = [lambda nats: math.inf if nats > 709 else math.e**nats, lambda nats: float(np.exp(np.float64(nats))) if nats < 709 else math.inf, lambda nats: math.inf if nats > 709 else 2**(nats / math.log(2))]
RIGHT["bits_per_byte"] = [lambda n, tokens, size: n / math.log(2) * tokens / size, lambda n, tokens, size: math.log2(math.e) * n * (tokens / size), lambda n, tokens, size: n * tokens / (size * math.log(2))]

def an_optimizer(defaults, rule):
    class Part(torch.optim.Optimizer):
        def __init__(self, params, **settings): super().__init__(params, defaults | settings)
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None: rule(p, p.grad, self.state[p], group)
    return Part

def descend(p, g, s, group):
    s["t"] = s.get("t", 0) + 1
    p.add_(g, alpha=-group["lr"] * s["t"]**-.5)
def descend_by_copy(p, g, s, group):
    p.copy_(p - group["lr"] / torch.tensor(1. + s.setdefault("n", 0), dtype=torch.float64).sqrt().item() * g)
    s["n"] += 1
RIGHT["SGDDecay"] = [planted._Sgd, an_optimizer({"lr": 1e-3}, descend), an_optimizer({"lr": 1e-3}, descend_by_copy)]

def adam_by_lerp(p, g, s, group):
    (b1, b2), lr = group["betas"], group["lr"]
    m, v, t = s.setdefault("m", torch.zeros_like(p)), s.setdefault("v", torch.zeros_like(p)), s.setdefault("t", torch.zeros(()))
    t += 1
    m.lerp_(g, 1 - b1); v.mul_(b2).addcmul_(g, g, value=1 - b2)
    p.mul_(1 - lr * group["weight_decay"])
    p.addcdiv_(m, v.sqrt() / (1 - b2**t.item())**.5 + group["eps"], value=-lr / (1 - b1**t.item()))
def adam_at_once(p, g, s, group):
    (b1, b2), lr = group["betas"], group["lr"]
    n1, n2 = s.get("n1", 0) * b1 + 1 - b1, s.get("n2", 0) * b2 + 1 - b2   # the weights of the means add up to these
    m, v = s.get("m", 0) * b1 + (1 - b1) * g, s.get("v", 0) * b2 + (1 - b2) * g**2
    s.update(n1=n1, n2=n2, m=m, v=v)
    p.copy_(p - lr * (group["weight_decay"] * p + m / n1 / ((v / n2)**.5 + group["eps"])))
adam = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
RIGHT["AdamW"] = [planted._Adam, an_optimizer(adam, adam_by_lerp), an_optimizer(adam, adam_at_once)]

def muon(turn, ahead):
    def rule(p, g, s, group):
        if p.ndim != 2: raise ValueError("no matrix")
        m = s["m"] = group["momentum"] * s.get("m", torch.zeros_like(p)) + (1 - group["momentum"]) * g
        p.sub_(group["lr"] * group["weight_decay"] * p)
        p.sub_(group["lr"] * max(1, p.shape[0] / p.shape[1])**.5 * turn(ahead(m, g, group["momentum"])))
    return an_optimizer(dict(lr=.02, momentum=.95, weight_decay=.01), rule)
def five_rounds(x):
    x = x / x.norm().clamp(min=1e-12)
    for _ in range(5): x = 3.4445 * x - 4.775 * (x @ x.mT) @ x + 2.0315 * (x @ x.mT) @ (x @ x.mT) @ x
    return x
def of_values(x):
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm().clamp(min=1e-12)
    for _ in range(5): s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u * s @ v
RIGHT["Muon"] = [muon(five_rounds, lambda m, g, b: b * m + (1 - b) * g), muon(lambda x: five_rounds(x.mT).mT, lambda m, g, b: m.lerp(g, 1 - b)), muon(of_values, lambda m, g, b: g + b * (m - g))]

@right("gradient_clip")
def clip_by_stack(params, max_norm):
    grads = [p.grad for p in ([params] if isinstance(params, torch.Tensor) else params) if p.grad is not None]
    norm = torch.stack([g.norm() for g in grads]).norm() if grads else torch.tensor(0.)
    if max_norm < norm < torch.inf:
        for g in grads: g.mul_(max_norm / norm)
    return norm

@right("gradient_clip")
def clip_by_sum(params, max_norm):
    grads = [p.grad for p in ([params] if isinstance(params, torch.Tensor) else params) if p.grad is not None]
    norm = sum((g.double()**2).sum() for g in grads)**.5 if grads else 0.
    for g in grads if norm < torch.inf else (): g *= min(1., float(max_norm / (norm + 1e-6)))
    return torch.as_tensor(norm, dtype=torch.float32)

@right("gradient_clip")
def clip_as_torch_does(params, max_norm):
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    return nn.utils.clip_grad_norm_(params, max_norm) if norm < torch.inf else norm

@right("params_for_decay")
def by_two_lists(model, weight_decay=0.01):
    lists = [], []
    for p in model.parameters():
        if p.requires_grad: lists[p.ndim < 2].append(p)
    return [{"params": ps, "weight_decay": wd} for ps, wd in zip(lists, (weight_decay, 0.))]

@right("params_for_decay")
def a_group_each(model, weight_decay=0.01): return [{"params": [p], "weight_decay": weight_decay * (p.dim() > 1)} for p in model.parameters() if p.requires_grad]

@right("params_for_decay")
def by_name(model, weight_decay=0.01):
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    plain = {name for name, p in named.items() if len(p.shape) <= 1}
    return [{"params": [p for name, p in named.items() if name in plain], "weight_decay": 0.}, {"params": [p for name, p in named.items() if name not in plain], "weight_decay": weight_decay}]

def a_schedule(down):
    def by_cases(it, w, c, low, high):
        planted._lr_ok(it, w, c, low, high)
        if it < w: return high * it / w
        return low if it >= c else low + (high - low) * down((it - w) / (c - w))
    def by_clamping(it, warmup_iters, cos_cycle_iters, lr_min, lr_max):
        planted._lr_ok(it, warmup_iters, cos_cycle_iters, lr_min, lr_max)
        way = min(max(it - warmup_iters, 0) / max(cos_cycle_iters - warmup_iters, 1), 1) if it < cos_cycle_iters else 1
        return it / warmup_iters * lr_max if it < warmup_iters else lr_max * down(way) + lr_min * (1 - down(way))
    def by_numpy(it, w, c, low, high):
        planted._lr_ok(it, w, c, low, high)
        return float(np.interp(it, [0, w], [0, high])) if it < w else low if it >= c else float(high - (high - low) * (1 - down((it - w) / (c - w))))
    return [by_cases, by_clamping, by_numpy]
RIGHT["cos_lr_scheduler"], RIGHT["linear_lr_scheduler"] = a_schedule(lambda u: math.cos(math.pi * u / 2)**2), a_schedule(lambda u: 1 - u)


# ---- The machine

RIGHT["TransformerBlock"] += [planted._Block]

@right("TransformerBlock")
class LoopedBlock(planted._Block):
    def forward(self, x, token_positions=None, cache=None):
        for branch in (lambda x: self.attention(self.attention_norm(x), token_positions, cache)), (lambda x: self.ffn(self.ffn_norm(x))): x = branch(x) + x
        return x

@right("TransformerBlock")
class OwnBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, max_seq_len=2048, theta=10000.0, num_kv_heads=None, device=None, dtype=None):
        super().__init__()
        self.attention, self.ffn = planted._Mha(d_model, num_heads, num_kv_heads, max_seq_len, theta), a_network(lambda x, w1, w2, w3: F.silu(x @ w1.T) * (x @ w3.T) @ w2.T)(d_model, d_ff)
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(d_model, eps=1e-5) for _ in range(2))
        self.to(device=device, dtype=dtype)
    def forward(self, x, token_positions=None):
        residual = x
        x = residual + self.attention(self.attention_norm(x), token_positions)
        return torch.add(x, self.ffn(self.ffn_norm(x)))

RIGHT["Transformer"] += [planted._Model]

@right("Transformer")
class ReducedModel(planted._Model):
    def forward(self, ids, token_positions=None):
        from functools import reduce
        return F.linear(self.norm(reduce(lambda x, block: block(x, token_positions), self.blocks, self.embedding(ids))), self.head.weight)

@right("Transformer")
class OwnModel(nn.Module):
    def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads, d_ff, rope_theta=10000.0, num_kv_heads=None, tie=False, device=None, dtype=None):
        super().__init__()
        self.config = ModelConfig(vocab_size, max_seq_len, d_model, num_layers, num_heads, d_ff, rope_theta, num_kv_heads, tie)
        self.embedding, self.head, self.norm = nn.Embedding(vocab_size, d_model), nn.Linear(d_model, vocab_size, bias=False), nn.RMSNorm(d_model, eps=1e-5)
        self.blocks = nn.ModuleList(OwnBlock(d_model, num_heads, d_ff, max_seq_len, rope_theta, num_kv_heads) for _ in range(num_layers))
        if tie: self.head.weight = self.embedding.weight
        nn.init.normal_(self.head.weight, std=.02)
        self.to(device=device, dtype=dtype)
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks: x = block(x, token_positions)
        return self.head(self.norm(x))

@right("train_step")
def step_plainly(model, optimizer, scaler, batches, max_norm):
    optimizer.zero_grad()
    total = 0.
    for x, y in batches:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(batches)
        scaler.scale(loss).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(planted._all(optimizer), max_norm or math.inf)
    scaler.step(optimizer); scaler.update()
    return total, norm.item()

@right("train_step")
def step_in_one_graph(model, optimizer, scaler, batches, max_norm):
    loss = torch.stack([F.cross_entropy(model(x).mT, y) for x, y in batches]).mean()
    params = planted._all(optimizer)
    for p, g in zip(params, torch.autograd.grad(scaler.scale(loss), params)): p.grad = g
    scaler.unscale_(optimizer)
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    for p in params: p.grad *= min(1., max_norm / norm.item()) if max_norm else 1.
    scaler.step(optimizer)
    scaler.update()
    return loss.detach(), norm

@right("train_step")
def step_after_the_last(model, optimizer, scaler, batches, max_norm):
    for p in planted._all(optimizer): p.grad = None
    losses = []
    for x, y in batches:
        losses.append(planted.cross_entropy(model(x), y))
        scaler.scale(losses[-1]).backward()
    scaler.unscale_(optimizer)
    for p in planted._all(optimizer): p.grad /= len(batches)
    norm = planted.gradient_clip(planted._all(optimizer), max_norm or 1e30)
    scaler.step(optimizer)
    scaler.update()
    return sum(losses).detach() / len(losses), norm


# ---- Sampling

RIGHT["keep_top_k"] += [lambda z, k: z if not k or k >= z.shape[-1] else planted._top(z, k)]

@right("keep_top_k")
def top_k_by_rank(z, k): return z if k == 0 else torch.where(z.sort(dim=-1, descending=True, stable=True).indices.argsort(-1) < k, z, -torch.inf)

@right("keep_top_k")
def top_k_row_by_row(z, k):
    out = torch.full(z.shape, -torch.inf, dtype=z.dtype)
    for row, kept in zip(z.reshape(-1, z.shape[-1]), out.view(-1, z.shape[-1])):
        for i in sorted(range(len(row)), key=lambda i: (-row[i].item(), i))[:k or None]: kept[i] = row[i]
    return out

def crossing(s, c):
    cut = c - s >= _p[0]
    cut[..., 0] = False
    return cut
_p = [0.]
@right("keep_top_p")
def top_p_scattered(z, p):
    _p[0] = p
    return planted._top_p(z.float(), p, crossing).to(z.dtype)

@right("keep_top_p")
def top_p_by_count(z, p):
    if p >= 1: return z
    shares = torch.softmax(z.float(), -1).sort(dim=-1, descending=True).values
    return top_k_by_count(z, (shares.cumsum(-1) < p).sum(-1, keepdim=True) + 1)

def top_k_by_count(z, n): return z.masked_fill(z.sort(dim=-1, descending=True, stable=True).indices.argsort(-1) >= n, -torch.inf)

@right("keep_top_p")
def top_p_row_by_row(z, p):
    out = torch.full(z.shape, -torch.inf, dtype=z.dtype)
    for row, kept in zip(z.reshape(-1, z.shape[-1]), out.view(-1, z.shape[-1])):
        shares, total = row.float().softmax(-1).tolist(), 0.
        for i in sorted(range(len(row)), key=lambda i: (-row[i].item(), i)):
            kept[i] = row[i]
            if (total := total + shares[i]) >= p and p < 1: break
    return out

RIGHT["keep_min_p"] = [lambda z, p: z.masked_fill(z < z.amax(-1, keepdim=True) + (math.log(p) - 1e-6 if p else -math.inf), -torch.inf),
                       lambda z, p: torch.where((s := wide(z).softmax(-1)) >= p * s.amax(-1, keepdim=True) * (1 - 1e-6), z, -torch.inf),
                       lambda z, p: z.where((wide(z) - wide(z).max(-1, keepdim=True).values).exp() >= p * (1 - 1e-6), torch.tensor(-torch.inf, dtype=z.dtype))]

@right("penalise")
def penalise_by_scatter(z, ids, penalty): return z.scatter(-1, ids, torch.where((said := z.gather(-1, ids)) > 0, said / penalty, said * penalty))

@right("penalise")
def penalise_by_mask(z, ids, penalty): return torch.where((ids[..., None] == torch.arange(z.shape[-1])).any(-2), torch.where(z < 0, z * penalty, z / penalty), z)

@right("penalise")
def penalise_by_set(z, ids, penalty):
    out = z.clone()
    for row, said in zip(out.view(-1, z.shape[-1]), ids.view(-1, ids.shape[-1]) if ids.numel() else []):
        for i in set(said.tolist()): row[i] *= 1 / penalty if row[i] > 0 else penalty
    return out

RIGHT["next_probabilities"] += [planted._next]

@right("next_probabilities")
def next_by_steps(z, ids, how):
    z = penalise_by_scatter(z.float(), ids, how.repetition_penalty)
    if how.temperature == 0: return (torch.arange(z.shape[-1]) == z.argmax(-1, keepdim=True)).float()
    z = top_p_by_count(top_k_by_rank((z - z.amax(-1, keepdim=True)) / how.temperature, how.top_k), how.top_p)
    return torch.exp(RIGHT["keep_min_p"][0](z, how.min_p).log_softmax(-1))

@right("next_probabilities")
def next_by_shares(z, ids, how):
    z = keep_top_k(penalise(z, ids, how.repetition_penalty), 1 if how.temperature == 0 else 0)
    z = (z - z.amax(-1, keepdim=True)) / (how.temperature or 1.)
    kept = keep_min_p(keep_top_p(keep_top_k(z, how.top_k), how.top_p), how.min_p) > -torch.inf
    shares = z.softmax(-1) * kept
    return shares / shares.sum(-1, keepdim=True)


# ---- Text

RIGHT["pre_tokens"] = [lambda text, pattern=GPT2: regex.findall(pattern, text), lambda text, pattern=GPT2: [found[0] for found in regex.finditer(pattern, text)],
                       lambda text, pattern=GPT2: [piece for piece in regex.split(f"({pattern})", text) if piece]]

@right("merge")
def merge_forward(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]: out.append(new); i += 2
        else: out.append(ids[i]); i += 1
    return out

@right("merge")
def merge_looking_back(ids, pair, new):
    out = []
    for id in ids:
        if out and id == pair[1] and out[-1] == (pair[0], "old"): out[-1] = (new, "new")
        else: out.append((id, "old"))
    return [id for id, _ in out]

@right("merge")
def merge_by_recursion(ids, pair, new):
    at = next((i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) == tuple(pair)), None)
    return list(ids) if at is None else [*ids[:at], new, *merge_by_recursion(ids[at + 2:], pair, new)]

RIGHT["learn_merges"] += [planted._learn]

@right("learn_merges")
def learn_with_ids(words, num_merges, progress=False):
    spelled, vocab, merges = {w: list(w) for w in words}, [bytes([i]) for i in range(256)], []
    for _ in range(num_merges):
        counts = Counter()
        for w, n in words.items(): counts.update({pair: n * k for pair, k in Counter(pairwise(spelled[w])).items()})
        if not counts:
            warnings.warn("too few", stacklevel=2)
            break
        best = max(counts, key=lambda pair: (counts[pair], vocab[pair[0]], vocab[pair[1]]))
        merges.append((vocab[best[0]], vocab[best[1]]))
        spelled = {w: merge_forward(ids, best, len(vocab)) for w, ids in spelled.items()}
        vocab.append(b"".join(merges[-1]))
    return merges

@right("learn_merges")
def learn_by_sorting(words, num_merges, progress=False):
    spelled, merges = [([bytes([b]) for b in w], n) for w, n in words.items()], []
    while len(merges) < num_merges:
        counts = defaultdict(int)
        for pieces, n in spelled:
            for a, b in pairwise(pieces): counts[a, b] += n
        if not counts:
            warnings.warn("too few", stacklevel=2)
            break
        merges.append(sorted(counts.items(), key=lambda item: (item[1], item[0]))[-1][0])
        spelled = [(merge_looking_back(pieces, merges[-1], b"".join(merges[-1])), n) for pieces, n in spelled]
    return merges

RIGHT["BpeTokenizer"] += [planted._Tok]

@right("BpeTokenizer")
class RankedTokenizer(planted._Tok):
    def word(self, word):
        pieces = self.byte_pieces(word)
        for pair in self.merges: pieces = merge_looking_back(pieces, pair, b"".join(pair))
        return self.to_ids(pieces)
    def encode_iterable(self, pieces): return iter([*self.encode("".join(pieces))])

@right("BpeTokenizer")
class HeapTokenizer(planted._Tok):
    def word(self, word):
        pieces = self.byte_pieces(word)
        while (queue := [(self.rank[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in self.rank]):
            heapq.heapify(queue)
            _, i = queue[0]
            pieces[i:i + 2] = [pieces[i] + pieces[i + 1]]
        return self.to_ids(pieces)
    def encode(self, text):
        if not self.special_tokens: return self.ordinary(text)
        out, at = [], 0
        for found in re.finditer(self.special_pattern(), text):
            out += [*self.ordinary(text[at:found.start()]), self.special_tokens[found[0]]]
            at = found.end()
        return out + self.ordinary(text[at:])

def dealt(n, b, t, seed, iteration):
    rows = (n - 1) // t
    return [int(np.random.default_rng([seed, 7, (iteration * b + i) // rows]).permutation(rows)[(iteration * b + i) % rows]) * t for i in range(b)]

@right("get_batch")
def batch_of_rows(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=None, order="random"):
    if iteration is None: iteration = np.random.randint(2**31)
    n = len(dataset) - max_seq_len
    starts = planted._rng(seed, iteration).integers(0, n, batch_size) if order == "random" else dealt(len(dataset), batch_size, max_seq_len, seed, iteration)
    return tuple(x.to(device) for x in planted._rows(dataset, starts, max_seq_len))

@right("get_batch")
def batch_by_torch(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=None, order="random"):
    if iteration is None: iteration = np.random.randint(2**31)
    chance = torch.Generator().manual_seed(hash((seed, iteration)) % 2**63)
    starts = torch.randint(len(dataset) - max_seq_len, (batch_size, 1), generator=chance) if order == "random" else torch.tensor(dealt(len(dataset), batch_size, max_seq_len, seed, iteration))[:, None]
    rows = torch.from_numpy(np.asarray(dataset)[(starts + torch.arange(max_seq_len + 1)).numpy()].astype(np.int64))
    return rows[:, :-1].to(device), rows[:, 1:].to(device)

@right("get_batch")
def batch_of_windows(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=None, order="random"):
    if iteration is None: iteration = np.random.randint(2**31)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(dataset), max_seq_len + 1)
    chance = np.random.Generator(np.random.Philox(np.random.SeedSequence((iteration, seed))))
    chosen = chance.choice(len(windows), batch_size) if order == "random" else dealt(len(dataset), batch_size, max_seq_len, seed, iteration)
    both = torch.from_numpy(windows[chosen].astype(np.int64)).to(device)
    return both[:, :-1], both[:, 1:]


# ---- As found in public student code, and once refused

class NarrowNorm(nn.Module):
    "It computes in float32, whatever comes in."
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype)), eps
    def forward(self, x):
        kind, x = x.dtype, x.to(torch.float32)
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(kind)

def narrow_attention(q, k, v, mask=None):
    scores = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    if mask is not None: scores = scores.masked_fill(~mask, -math.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=-1e30))
    return (weights / weights.sum(-1, keepdim=True).clamp(min=1e-30) @ v.float()).to(v.dtype)

class NarrowMuon(torch.optim.Optimizer):
    "Its polynomial runs in float32."
    def __init__(self, params, lr=.02, momentum=.95, weight_decay=.01): super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad(): loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                if p.ndim != 2: raise ValueError("no matrix")
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(m, group["momentum"]).float()
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_((group["lr"] * max(1, p.shape[0] / p.shape[1])**.5 * x).to(p.dtype))
        return loss

class PlainTokenizer:
    "It has the three methods, and no attribute that anybody could know."
    def __init__(self, vocab, merges, special_tokens=None, pattern=GPT2):
        from llm_course.bpe_tokenizer import BpeTokenizer
        self._own = BpeTokenizer(vocab, merges, special_tokens, pattern)
    def encode(self, text): return self._own.encode(text)
    def decode(self, ids): return self._own.decode(ids)
    def encode_iterable(self, chunks): yield from self._own.encode_iterable(chunks)

RIGHT["RmsNorm"].append(NarrowNorm)
RIGHT["ScaledDotProductAttention"].append(lambda: narrow_attention)
RIGHT["Muon"].append(NarrowMuon)
RIGHT["BpeTokenizer"].append(PlainTokenizer)


# ---- Around the model

@right("windows")
def windows_by_rows(dataset, batch_size, max_seq_len, device="cpu"):
    ids, L = torch.as_tensor(np.asarray(dataset).astype(np.int64)), max_seq_len
    n = (len(ids) - 1) // L
    x, y = ids[:n*L].view(n, L), ids[1:n*L + 1].view(n, L)
    found = list(zip(x.split(batch_size), y.split(batch_size))) if n else []
    if n * L < len(ids) - 1: found.append((ids[None, n*L:-1], ids[None, n*L + 1:]))
    return iter([(x.to(device), y.to(device)) for x, y in found])

@right("evaluate")
def evaluate_by_sums(model, batches):
    was, losses, counts = model.training, [], []
    model.eval()
    with torch.inference_mode():
        for x, y in batches:
            z = model(x)
            losses.append(F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), reduction="sum").item())
            counts.append(y.numel())
    model.train(was)
    return sum(losses) / sum(counts)

@right("save_checkpoint")
def save_by_clones(model, optimizer, iteration, out, **extra):
    if out is None: return
    while hasattr(model, "_orig_mod") or hasattr(model, "module"): model = getattr(model, "_orig_mod", None) or model.module
    weights = {name: p.detach().cpu().clone() for name, p in model.state_dict().items()}
    parts = {role: f"{part.__module__}.{part.__qualname__}" for role, part in model.parts.items()}
    state = dict(model=weights, optimizer=optimizer.state_dict(), iteration=int(iteration), config=asdict(model.config), parts=parts, **extra)
    if not isinstance(out, str | Path):
        torch.save(state, out)
        return
    with tempfile.NamedTemporaryFile(dir=Path(out).parent, delete=False) as file: new = Path(file.name)
    try:
        torch.save(state, new)
        new.replace(out)
    finally: new.unlink(missing_ok=True)

@right("load_checkpoint")
def load_by_copy(source, model, optimizer=None):
    try:
        with zipfile.ZipFile(source) as file: assert file.testzip() is None
        if not isinstance(source, str | Path): source.seek(0)
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error: raise ValueError("another file") from error
    own = model.state_dict()
    if own.keys() != state["model"].keys() or asdict(model.config) != state["config"]: raise ValueError("another model")
    if optimizer is not None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in state["optimizer"]["state"].items():
            if not all(x.isfinite().all() and x.shape in ((), params[i].shape) for x in moments.values()): raise ValueError("another optimiser")
        optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for name, p in own.items(): p.copy_(state["model"][name])
    return state["iteration"]

@right("random_states")
def states_of_chance(): return {"torch": torch.random.get_rng_state(), "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()], "python": random.getstate()}

@right("set_random_states")
def set_one_by_one(states):
    try:
        for put, key in (random.setstate, "python"), (np.random.set_state, "numpy"), (torch.random.set_rng_state, "torch"): put(tuple(states[key]) if key == "numpy" else states[key])
    except Exception as error: raise ValueError("damaged") from error

@right("load_model")
def load_by_hand(path, device=None, parts=None):
    if (folder := Path(path)).is_dir(): path = folder/"best.pt"
    saved = read_safetensors(path) if str(path).endswith(".safetensors") else read_checkpoint(path)
    before = torch.random.get_rng_state()
    model = Transformer(**saved["config"], parts=parts).to(device)
    same_parts(saved.get("parts"), model.parts, path)
    torch.random.set_rng_state(before)
    weights = {name: x.float() for name, x in saved["model"].items()}
    model.load_state_dict({"head.weight": weights.get("head.weight", weights["embedding.weight"]), **weights})
    return model.eval()

@right("KVCache")
class TwoMemories:
    def __init__(self, batch, num_kv_heads, max_seq_len, d, device=None, dtype=None):
        self.keys, self.values = (torch.empty(batch, num_kv_heads, max_seq_len, d, device=device, dtype=dtype) for _ in range(2))
        self.length, self.padding = 0, None
    def append(self, k, v):
        n = self.length + k.size(2)
        if n > self.keys.size(2): raise ValueError("full")
        self.keys[:, :, self.length:n], self.values[:, :, self.length:n] = k, v
        self.length = n
        return self.keys[:, :, :n], self.values[:, :, :n]
    def mask(self): return None if self.padding is None else ~(torch.arange(self.length) < self.padding.view(-1, 1, 1, 1))

@right("generate_ids")
@torch.no_grad()
def ids_by_loop(model, ids, max_tokens, temperature=0.8, top_p=0.9, *, padding=None, stop_id=None, generator=None, **more):
    room, done = model.config.max_seq_len, torch.zeros(len(ids), dtype=torch.bool)
    begins = [0] * len(ids) if padding is None else padding.tolist()
    for _ in range(max_tokens):
        z = penalise(torch.cat([model(row[None, begin:][:, -room:])[:, -1] for row, begin in zip(ids, begins, strict=True)]), ids, more.get("repetition_penalty", 1.))
        if temperature == 0: new = z.argmax(-1)
        else:
            z = keep_min_p(keep_top_k(z / temperature, more.get("top_k", 0)), more.get("min_p", 0.))
            p, order = z.softmax(-1).sort(-1, descending=True)
            p[p.cumsum(-1) - p >= top_p] = 0
            new = order.gather(-1, torch.multinomial(p, 1, generator=generator))[:, 0]
        if stop_id is not None:
            new[done] = stop_id
            done |= new == stop_id
        ids = torch.cat([ids, new[:, None]], -1)
        if done.all(): break
    return ids

def text_of(model, tokenizer, prompt, max_tokens, temperature, top_p, stop, seed, **more):
    "The text after each token, as bytes; the last time without what stopped it."
    ids, said, stops = tokenizer.encode(prompt), b"", [text.encode() for text in ([stop] if isinstance(stop, str) else stop) if text]
    chance = torch.Generator().manual_seed(random.SystemRandom().getrandbits(63) if seed is None else seed)
    for _ in range(max_tokens):
        z = model(torch.tensor([ids[-model.config.max_seq_len:]]))[0, -1]
        new = torch.multinomial(next_probabilities(z, torch.tensor(ids), Sampling(temperature, top_p, **more)), 1, generator=chance).item()
        if tokenizer.vocab[new] == b"<|endoftext|>": return
        ids.append(new)
        said += tokenizer.vocab[new]
        found = [said.find(text) for text in stops if text in said]
        yield said[:min(found)] if found else said
        if found: return

@right("generate")
def generate_at_once(model, tokenizer, prompt, max_tokens=100, temperature=0.8, top_p=0.9, stop=(), seed=None, **more):
    if not isinstance(prompt, str): return [generate_at_once(model, tokenizer, each, max_tokens, temperature, top_p, stop, seed, **more) for each in prompt]
    return prompt + [b"", *text_of(model, tokenizer, prompt, max_tokens, temperature, top_p, stop, seed, **more)][-1].decode("utf-8", "replace")

@right("stream")
def stream_by_decoder(model, tokenizer, prompt, max_tokens=100, temperature=0.8, top_p=0.9, stop=(), seed=None, **more):
    import codecs
    import itertools

    if not isinstance(prompt, str):
        texts = [stream_by_decoder(model, tokenizer, each, max_tokens, temperature, top_p, stop, seed, **more) for each in prompt]
        yield from map(list, itertools.zip_longest(*texts, fillvalue=""))
        return
    decoder, before = codecs.getincrementaldecoder("utf-8")("replace"), b""
    texts = list(text_of(model, tokenizer, prompt, max_tokens, temperature, top_p, stop, seed, **more))
    if stop:
        yield texts[-1].decode("utf-8", "replace")   # all at once is allowed where it may have to stop
        return
    for said in texts:
        if piece := decoder.decode(said[len(before):]): yield piece
        before = said
    if rest := decoder.decode(b"", True): yield rest

RIGHT["answer_loss"] = [lambda z, y, said: F.cross_entropy(wide(z).flatten(0, -2), y.masked_fill(said == 0, -100).flatten()),
                        lambda z, y, said: -(wide(z).log_softmax(-1).gather(-1, y[..., None])[..., 0] * said).sum() / said.sum()]

@right("LoraLinear")
class Corrected(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.weight, self.bias, self.r, self.alpha = base.weight, base.bias, rank, alpha
        self.lora_A = nn.Parameter(nn.init.kaiming_uniform_(base.weight.new_empty(rank, base.weight.shape[1]), a=5**.5))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.weight.shape[0], rank))
    def forward(self, x): return F.linear(x, self.weight + self.alpha / self.r * self.lora_B @ self.lora_A, self.bias)

RIGHT["dpo_loss"] = [lambda b, w, rb, rw, beta=.1: F.softplus(-beta * (wide(b) - wide(w) - wide(rb) + wide(rw))).mean(),
                     lambda b, w, rb, rw, beta=.1: torch.logaddexp(torch.zeros(()), beta * (wide(w) - wide(rw) - wide(b) + wide(rb))).mean()]

@right("advantages")
def advantages_by_numpy(rewards, method="dr_grpo"):
    r = rewards.numpy()
    if method == "reinforce": return rewards
    gain = r - r.mean(-1, keepdims=True)
    if method == "rloo": gain = np.stack([r[:, i] - np.delete(r, i, 1).mean(1) for i in range(r.shape[1])], 1)
    if method == "grpo": gain = gain / (r.std(-1, ddof=1, keepdims=True) + 1e-4)
    return torch.as_tensor(gain)

@right("policy_loss")
def policy_by_cases(new, old, said, rewards, method="dr_grpo", clip=.2):
    a = reference_advantages(rewards, method).flatten()[:, None].expand_as(new)
    r = torch.exp(new - old)
    gain = torch.where(a > 0, r.clamp(max=1 + clip), r.clamp(min=1 - clip)) * a
    sums = gain.masked_fill(~said, 0.).sum(1)
    return -(sums / said.sum(1) if method == "grpo" else sums).mean()

@right("minhash")
def minhash_by_salts(grams, hashes=100, seed=0):
    import hashlib
    def number(i, gram): return int.from_bytes(hashlib.sha1(f"{seed} {i} {gram}".encode()).digest()[:8], "big")
    return np.array([min((number(i, gram) for gram in grams), default=2**64 - 1) for i in range(hashes)], dtype=np.uint64)

@right("flash_forward")
def tiles_of_keys(q, k, v, last, tile):
    top, total, sums = torch.full_like(q[..., :1], -1e30), torch.zeros_like(q[..., :1]), torch.zeros(*q.shape[:-1], v.shape[-1])
    for at in range(0, k.shape[-2], tile):
        z = torch.einsum("...td,...sd->...ts", q, k[..., at:at + tile, :])
        if last is not None: z = z - 1e30 * (torch.arange(at, at + z.shape[-1]) > torch.arange(z.shape[-2])[:, None] + last)
        new = torch.maximum(top, z.max(-1, keepdim=True)[0])
        p, f = torch.exp(z - new) * (z > -1e29), torch.exp(top - new)
        top, total, sums = new, total * f + p.sum(-1, keepdim=True), sums * f + p @ v[..., at:at + tile, :]
    total = total.clamp(min=1e-38)   # a query that saw nothing
    return sums / total, top + torch.log(total)

@right("ring_all_reduce")
def ring_by_received(x):
    rank, n = dist.get_rank(), dist.get_world_size()
    x = x.view(-1)
    pieces = x.chunk(n) if len(x) >= n and len(x) % n == 0 else torch.tensor_split(x, n)
    for step in range(2 * (n - 1)):
        out, into = pieces[(rank - step) % n], pieces[(rank - step - 1) % n]
        sending, got = dist.isend(out.clone(), (rank + 1) % n), torch.empty_like(into)
        dist.recv(got, (rank - 1) % n)
        sending.wait()
        if step < n - 1: into += got
        else: into.copy_(got)


# ---- What the page's words say must be refused, its versions refuse

def careful(part, ours):
    "The same, but it refuses what the page's part refuses."
    if not isinstance(part, type):
        def call(*inputs, **more):
            expected = ours(*copy.deepcopy(inputs), **more)
            found = part(*inputs, **more)
            if isinstance(found, nn.Module) or not isinstance(expected, nn.Module): return found
            return lambda *inputs: (expected(*inputs), found(*inputs))[1]   # a function that stands for a layer
        return call
    own = {"__init__": lambda self, *sizes, **more: (   # in a list, torch knows nothing of it
               self.__dict__.update(ours=[ours(*copy.deepcopy(sizes), **more)]), part.__init__(self, *sizes, **more))[1],
           "forward": lambda self, *inputs, **more: ("cache" in more or self.ours[0](*inputs, **more), part.forward(self, *inputs, **more))[1],
           "decode": lambda self, ids: part.decode(self, getattr(ids, "tolist", lambda: ids)())}
    return type(part.__name__, (part,), {name: method for name, method in own.items() if hasattr(part, name)})

for name in "pre_tokens Embedding RmsNorm Softmax RoPE MultiHeadAttention CrossEntropyLoss bits_per_byte gradient_clip BpeTokenizer next_probabilities LoraLinear dpo_loss advantages".split():
    RIGHT[name] = [careful(part, reference(name)) for part in RIGHT[name]]
