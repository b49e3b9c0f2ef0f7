"""Every layer once: how to make one, what to feed it, and the same put together from torch's own parts."""
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_course.attention import ScaledDotProductAttention, attention
from llm_course.embedding import Embedding
from llm_course.engine.attention_kernel import fused_attention
from llm_course.engine.families import FamilyAttention
from llm_course.engine.kv_cache import new_cache
from llm_course.engine.rope_tables import RopeScaling
from llm_course.ffn import FFN, SiLu
from llm_course.linear import Linear
from llm_course.multihead import MultiHeadAttention, grouped_attention
from llm_course.rmsnorm import RmsNorm
from llm_course.rope import RoPE
from llm_course.softmax import Softmax

dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
longest = 64   # positions

LAYOUTS = {   # the same numbers, kept otherwise; `one for all` repeats the first
    "as it comes": lambda x: x,
    "in another order": lambda x: x.mT.contiguous().mT if x.ndim > 1 else x,
    "with gaps": lambda x: torch.stack([x, x + 1 if x.dtype != torch.bool else ~x], -1)[..., 0],
    "from an odd place": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "one for all": lambda x: x[:1].expand(x.shape),
}


@dataclass(frozen=True)
class Specimen:
    "A layer, its food, and its peer. Sizes grow with a small number n."
    name: str
    make: Callable[[int], nn.Module]          # Takes n
    feed: Callable[..., tuple[Tensor, ...]]   # Takes n, leading axes and a length; gives inputs in float32, and ids
    peer: Callable[..., Tensor]               # Takes the layer and its inputs; what torch's own make of them, in their type
    trains: bool = True                       # Has it gradients?
    amplifies: bool = False                   # In half precision, is a last bit that differs inside carried on by another product?

    def __str__(self): return self.name

    def pair(self, n, lead, length, dtype=torch.float32, device="cpu"):
        "A layer whose parameters are all random, and inputs for it."
        layer = self.make(n)
        for p in layer.parameters(): nn.init.normal_(p, std=p.shape[-1]**-.5)
        return layer.to(device, dtype), tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in self.feed(n, lead, length))


class Attends(nn.Module):
    "One of our ways of attending, as a layer."
    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, q, k, v): return self.function(q, k, v, **self.options)


class Cached(MultiHeadAttention):
    "A text that comes in three pieces, with a cache in between."
    @torch.no_grad()
    def forward(self, x):
        texts = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        cache, length = new_cache(self, texts.shape[0]), x.shape[-2]
        pieces = texts[:, :length // 2], texts[:, length // 2:length - 1], texts[:, length - 1:]
        return torch.cat([super(Cached, self).forward(piece, cache=cache) for piece in pieces], 1).view(x.shape)


def vectors(width=lambda n: n): return lambda n, lead, length: (torch.randn(*lead, length, width(n)),)


def three(n, lead, length, more=0, wider=1):
    return tuple(torch.randn(*lead, size, d) for size, d in ((length, n), (length + more, n), (length + more, n + wider)))


def three_and_mask(n, lead, length):
    mask = torch.rand(length, length + 2) < .5
    mask[:1] = False   # the first may look nowhere
    return *three(n, lead, length, more=2), mask


def groups(n, lead, length): return tuple(torch.randn(*lead, heads, length, n) for heads in (4, 2, 2))


def by_torch(q, k, v, mask=None, attend=attention, **options):
    "torch's attention: by the kernel that rounds once, as `attention` does, or by the one that torch itself would take."
    with sdpa_kernel(SDPBackend.MATH) if attend is attention else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, mask, **options)


def llama_turn(x, positions, theta=10000.0, scaling=None):
    "RoPE as Meta's Llama code has it, by complex numbers, but with its angles in float64."
    frequency = theta ** -(torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float64) / x.shape[-1])
    if scaling is not None: frequency = llama_slow(frequency, scaling)
    angles = positions.double()[..., None] * frequency
    turns, real = torch.polar(torch.ones_like(angles), angles), torch.promote_types(x.dtype, torch.float32)
    turned = torch.view_as_complex(x.to(real, copy=True).contiguous().unflatten(-1, (-1, 2))) * turns.to(real.to_complex())
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def llama_slow(frequency, scaling):
    "The frequencies of Llama 3.1, one by one, by their wavelengths."
    def slow(f):
        length, wave = scaling.original_max_seq_len, 2 * torch.pi / f
        if wave < length / scaling.high_freq_factor: return f
        if wave > length / scaling.low_freq_factor: return f / scaling.factor
        smooth = (length / wave - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - smooth) * f / scaling.factor + smooth * f
    return torch.tensor([slow(f) for f in frequency.tolist()], device=frequency.device, dtype=frequency.dtype)


def ffn(layer, x): return F.linear(F.silu(F.linear(x, layer.w1.weight)) * F.linear(x, layer.w3.weight), layer.w2.weight)


def multihead(layer, x, qkv_bias=False, qk_norm=None, rope=None, **others):
    "With `llama_turn` for the positions, and torch's attention, which knows groups."
    own = dict(layer.named_parameters())
    q, k, v = (F.linear(x, own[f"{name}_proj.weight"], own[f"{name}_proj.bias"] if qkv_bias else None).unflatten(-1, (-1, layer.d_k)).transpose(-3, -2) for name in "qkv")
    if qk_norm: q, k = (F.rms_norm(y, y.shape[-1:], own[f"{name}_norm.weight"], qk_norm.keywords["eps"]) for y, name in ((q, "q"), (k, "k")))
    q, k = (llama_turn(y, torch.arange(x.shape[-2], device=x.device), scaling=rope and rope.keywords["scaling"]) for y in (q, k))
    out = by_torch(q, k, v, attend=layer.attend, is_causal=True, enable_gqa=True)
    return F.linear(out.transpose(-3, -2).flatten(-2), layer.output_proj.weight)


SCALING = RopeScaling(factor=4., low_freq_factor=.5, high_freq_factor=3., original_max_seq_len=40)   # leaves some pairs, slows some, blends some
OPTIONS = {"d_k": 6, "qkv_bias": True, "qk_norm": partial(RmsNorm, eps=1e-6), "rope": partial(RoPE, scaling=SCALING)}


def heads(name, num_heads, num_kv_heads, options, make=MultiHeadAttention, **traits):
    width = lambda n: 2 * n * num_heads
    return Specimen(f"MultiHeadAttention, {name}", lambda n: make(width(n), num_heads, num_kv_heads, longest, **options), vectors(width),
                    partial(multihead, **options), **traits)


SPECIMENS = [
    Specimen("Linear", lambda n: Linear(n, 2*n + 1), vectors(), lambda layer, x: F.linear(x, layer.weight)),
    Specimen("Linear with bias", lambda n: Linear(n, 2*n + 1, bias=True), vectors(), lambda layer, x: F.linear(x, layer.weight, layer.bias)),
    Specimen("Embedding", lambda n: Embedding(n + 3, 2*n - 1), lambda n, lead, length: (torch.randint(n + 3, (*lead, length)),),
             lambda layer, ids: F.embedding(ids, layer.weight)),
    Specimen("RmsNorm", RmsNorm, vectors(), lambda layer, x: F.rms_norm(x, x.shape[-1:], layer.weight, 1e-5)),
    Specimen("SiLu", lambda n: SiLu(), vectors(), lambda layer, x: F.silu(x)),
    Specimen("FFN", lambda n: FFN(n, 3*n - 1), vectors(), ffn),
    Specimen("Softmax", lambda n: Softmax(), vectors(), lambda layer, x: x.softmax(-1)),
    Specimen("Softmax along the length", lambda n: Softmax(-2), vectors(), lambda layer, x: x.softmax(-2)),
    Specimen("ScaledDotProductAttention", lambda n: ScaledDotProductAttention(), lambda *sizes: three(*sizes, more=2), lambda layer, *x: by_torch(*x)),
    Specimen("ScaledDotProductAttention with a mask", lambda n: ScaledDotProductAttention(), three_and_mask, lambda layer, *x: by_torch(*x)),
    *(Specimen(f"causal {attend.__name__}", lambda n, attend=attend: Attends(attend, causal=True), lambda *sizes: three(*sizes, wider=0),
               lambda layer, *x: by_torch(*x, attend=layer.function, is_causal=True)) for attend in (attention, fused_attention)),
    Specimen("grouped_attention by attention", lambda n: Attends(grouped_attention, attend=attention), groups,
             lambda layer, *x: by_torch(*x, is_causal=True, enable_gqa=True)),
    Specimen("RoPE", lambda n: RoPE(2*n, longest), vectors(lambda n: 2*n), lambda layer, x: llama_turn(x, torch.arange(x.shape[-2], device=x.device))),
    Specimen("RoPE at given positions, scaled", lambda n: RoPE(2*n, longest, scaling=SCALING),
             lambda n, lead, length: (torch.randn(*lead, length, 2*n), torch.randint(longest, (length,))), lambda layer, x, places: llama_turn(x, places, scaling=SCALING)),
    heads("3 heads", 3, 3, {}), heads("3 heads, 1 of keys", 3, 1, {}), heads("by attention", 4, 2, {"attend": attention}, amplifies=True),
    heads("all options", 4, 2, OPTIONS, FamilyAttention), heads("in pieces", 4, 2, {}, Cached, trains=False, amplifies=True),
]
