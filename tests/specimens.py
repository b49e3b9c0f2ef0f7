"""Every layer once: how to make one, what to feed it, and the same put together from torch's own parts."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_course.attention import ScaledDotProductAttention, attention, fused_attention
from llm_course.embedding import Embedding
from llm_course.ffn import FFN, SiLu
from llm_course.linear import Linear
from llm_course.multihead import MultiHeadAttention
from llm_course.rmsnorm import RmsNorm
from llm_course.rope import RoPE
from llm_course.softmax import Softmax

dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
longest = 64   # positions


@dataclass(frozen=True)
class Specimen:
    "A layer, its food, and its peer. Sizes grow with a small number n."
    name: str
    make: Callable[[int], nn.Module]          # Takes n
    feed: Callable[..., tuple[Tensor, ...]]   # Takes n, leading axes and a length; gives inputs in float32, and ids
    peer: Callable[..., Tensor]               # Takes the layer and its inputs; what torch's own make of them, in their type
    rounds: bool = False                      # Does torch's, or ours, round in the middle in half precision?

    def __str__(self): return self.name

    def pair(self, n, lead, length, dtype=torch.float32, device="cpu"):
        "A layer whose parameters are all random, and inputs for it."
        layer = self.make(n)
        for p in layer.parameters(): nn.init.normal_(p, std=p.shape[-1]**-.5)
        return layer.to(device, dtype), tuple(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in self.feed(n, lead, length))


class Causal(nn.Module):
    "Causal self-attention, by one of our two spellings."
    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, q, k, v): return self.attend(q, k, v, causal=True)


def vectors(width=lambda n: n): return lambda n, lead, length: (torch.randn(*lead, length, width(n)),)


def three(n, lead, length, more=0): return tuple(torch.randn(*lead, size, d) for size, d in ((length, n), (length + more, n), (length + more, n + 1)))


def three_and_mask(n, lead, length):
    mask = torch.rand(length, length + 2) < .5
    mask[0] = False   # the first may look nowhere
    return *three(n, lead, length, more=2), mask


def llama_turn(x, positions, theta=10000.0):
    "RoPE as Meta's Llama code has it: angles and turns in float32, or in float64 if the vectors are."
    real = torch.promote_types(x.dtype, torch.float32)
    angles = positions.to(real)[..., None] * theta ** -(torch.arange(0, x.shape[-1], 2, device=x.device, dtype=real) / x.shape[-1])
    turned = torch.view_as_complex(x.to(real, copy=True).contiguous().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def ffn(layer, x): return F.linear(F.silu(F.linear(x, layer.w1.weight)) * F.linear(x, layer.w3.weight), layer.w2.weight)


def multihead(layer, x):
    "With `llama_turn` for the positions, and torch's attention, which knows groups."
    q, k, v = (F.linear(x, p.weight).unflatten(-1, (-1, layer.d_k)).transpose(-3, -2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    places = torch.arange(x.shape[-2], device=x.device)
    out = F.scaled_dot_product_attention(llama_turn(q, places), llama_turn(k, places), v, is_causal=True, enable_gqa=True)
    return F.linear(out.transpose(-3, -2).flatten(-2), layer.output_proj.weight)


def heads(num_heads, num_kv_heads, attend=fused_attention):
    name = f"MultiHeadAttention, {num_heads} heads, {num_kv_heads} of keys, {attend.__name__}"
    width = lambda n: 2 * n * num_heads
    return Specimen(name, lambda n: MultiHeadAttention(width(n), num_heads, num_kv_heads, longest, attend=attend), vectors(width), multihead, rounds=True)


SPECIMENS = [
    Specimen("Linear", lambda n: Linear(n, 2*n + 1), vectors(), lambda layer, x: F.linear(x, layer.weight)),
    Specimen("Linear with bias", lambda n: Linear(n, 2*n + 1, bias=True), vectors(), lambda layer, x: F.linear(x, layer.weight, layer.bias)),
    Specimen("Embedding", lambda n: Embedding(n + 3, 2*n - 1), lambda n, lead, length: (torch.randint(n + 3, (*lead, length)),),
             lambda layer, ids: F.embedding(ids, layer.weight)),
    Specimen("RmsNorm", RmsNorm, vectors(), lambda layer, x: F.rms_norm(x, x.shape[-1:], layer.weight, 1e-5)),
    Specimen("SiLu", lambda n: SiLu(), vectors(), lambda layer, x: F.silu(x)),
    Specimen("FFN", lambda n: FFN(n, 3*n - 1), vectors(), ffn, rounds=True),
    Specimen("Softmax", lambda n: Softmax(), vectors(), lambda layer, x: x.softmax(-1)),
    Specimen("Softmax along the length", lambda n: Softmax(-2), vectors(), lambda layer, x: x.softmax(-2)),
    Specimen("ScaledDotProductAttention", lambda n: ScaledDotProductAttention(), lambda *sizes: three(*sizes, more=2),
             lambda layer, q, k, v: F.scaled_dot_product_attention(q, k, v), rounds=True),
    Specimen("ScaledDotProductAttention with a mask", lambda n: ScaledDotProductAttention(), three_and_mask,
             lambda layer, q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask), rounds=True),
    *(Specimen(f"causal {attend.__name__}", lambda n, attend=attend: Causal(attend), three,
               lambda layer, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), rounds=True) for attend in (attention, fused_attention)),
    Specimen("RoPE", lambda n: RoPE(2*n, longest), vectors(lambda n: 2*n), lambda layer, x: llama_turn(x, torch.arange(x.shape[-2], device=x.device))),
    Specimen("RoPE at given positions", lambda n: RoPE(2*n, longest),
             lambda n, lead, length: (torch.randn(*lead, length, 2*n), torch.randint(longest, (length,))), lambda layer, x, places: llama_turn(x, places)),
    heads(3, 3), heads(4, 2), heads(3, 1), heads(4, 2, attention),
]
