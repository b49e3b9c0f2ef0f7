"""Multi-head attention, with mistakes."""
import torch
from torch import nn
from torch.nn import functional as F

from llm_course.rope import RoPE


def version(name, split=lambda x, h: x.unflatten(-1, (h, -1)).transpose(-3, -2), join=lambda x: x.transpose(-3, -2).flatten(-2), causal=True, scale=None,
            share=lambda x, n: x.repeat_interleave(n, -3), places=lambda p, t: torch.arange(t) if p is None else p, turned="qk", after=lambda out: out, square=False):
    "A `MultiHeadAttention` that is right but for what is given."
    class Part(nn.Module):
        def __init__(self, d_model, num_heads, num_kv_heads=None, max_seq_len=2048):
            super().__init__()
            self.h, self.kv = num_heads, num_heads if square or num_kv_heads is None else num_kv_heads
            d = d_model // num_heads
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, n * d, bias=False) for n in (self.h, self.kv, self.kv))
            self.output_proj, self.rope = nn.Linear(d_model, d_model, bias=False), RoPE(d, max_seq_len)

        def forward(self, x, token_positions=None):
            at = places(token_positions, x.shape[-2])
            parts = {"q": split(self.q_proj(x), self.h), "k": split(self.k_proj(x), self.kv), "v": split(self.v_proj(x), self.kv)}
            q, k, v = (self.rope(part, at) if name in turned else part for name, part in parts.items())
            k, v = share(k, self.h // self.kv), share(v, self.h // self.kv)
            return after(self.output_proj(join(F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale))))
    Part.__name__ = name
    return Part


FAULTY = {"MultiHeadAttention": [
    version("sees_the_future", causal=False),
    version("scaled_by_the_whole_width", scale=1 / 4),
    version("heads_take_every_fourth_feature", split=lambda x, h: x.unflatten(-1, (-1, h)).movedim(-1, -3)),
    version("heads_cut_from_the_tokens", split=lambda x, h: x.reshape(*x.shape[:-2], h, x.shape[-2], -1)),
    version("joined_without_turning_back", join=lambda x: x.reshape(*x.shape[:-3], x.shape[-2], -1)),
    version("groups_are_strided", share=lambda x, n: torch.cat([x] * n, -3)),
    version("shares_nothing", square=True),
    version("positions_not_heard", places=lambda p, t: torch.arange(t)),
    version("no_positions", turned=""),
    version("turns_the_values_too", turned="qkv"),
    version("turns_the_queries_alone", turned="q"),
    version("mixes_the_batch", after=lambda out: out + 0.1 * out.mean(0, keepdim=True)),
    version("counts_from_one", places=lambda p, t: torch.arange(1, t + 1) if p is None else p + 1, turned="q"),
]}
