"""Attention, with mistakes."""
import math

import torch
from torch import nn


def version(name, scale=lambda d: 1 / math.sqrt(d), keep=lambda mask: mask, dim=-1, filled=-math.inf, finish=lambda weights, v, mask: weights @ v, narrow=False):
    "A `ScaledDotProductAttention` that is right but for what is given."
    class Part(nn.Module):
        def forward(self, q, k, v, mask=None):
            scores = (q @ k.mT) * scale(q.shape[-1]) if narrow else (q.to(torch.promote_types(q.dtype, torch.float32)) * scale(q.shape[-1]) @ k.mT.to(torch.promote_types(k.dtype, torch.float32)))
            if mask is not None: scores = scores.masked_fill(~keep(mask), filled)
            top = scores.detach().amax(dim, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
            powers = (scores - top).exp()
            weights = powers / powers.sum(dim, keepdim=True).clamp(min=1)
            return finish(weights.to(v.dtype), v, mask)
    Part.__name__ = name
    return Part


class Unclamped(nn.Module):
    "A row without a key gives nan."
    def forward(self, q, k, v, mask=None):
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None: scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(-1) @ v


class OneMask(nn.Module):
    "Takes the first head's mask for all."
    def forward(self, q, k, v, mask=None):
        if mask is not None and mask.ndim == 3: mask = mask[0]
        return version("right")()(q, k, v, mask)


FAULTY = {"ScaledDotProductAttention": [
    version("not_scaled", scale=lambda d: 1.),
    version("divided_by_d", scale=lambda d: 1 / d),
    version("mask_means_hidden", keep=lambda mask: ~mask),
    version("mask_off_by_one", keep=lambda mask: mask | mask.roll(1, -1)),
    version("sums_over_queries", dim=-2),
    version("hidden_scores_are_zero", filled=0.),
    version("mean_without_keys", filled=-1e9),
    version("scores_in_half_precision", narrow=True),
    version("no_gradient_for_weights", finish=lambda weights, v, mask: weights.detach() @ v),
    version("mixes_the_batch", finish=lambda weights, v, mask: weights @ v.mean(0, keepdim=True).expand_as(v)),
    version("leans_on_the_place", finish=lambda weights, v, mask: weights @ (v * torch.linspace(1, 2, v.shape[-2], dtype=v.dtype)[:, None])),
    Unclamped, OneMask,
]}
