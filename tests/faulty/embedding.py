"""Embeddings, with mistakes."""
import torch
from torch import nn


def version(name, look_up=lambda w, ids: w[ids], std=1.):
    "An `Embedding` that is right but for what is given."
    class Part(nn.Module):
        def __init__(self, num_embeddings, embedding_dim):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(num_embeddings, embedding_dim) * (std(embedding_dim) if callable(std) else std))
        def forward(self, ids): return look_up(self.weight, ids)
    Part.__name__ = name
    return Part


FAULTY = {"Embedding": [
    version("small_weights", std=0.02),
    version("scaled_by_the_width", std=lambda d: d**-0.5),
    version("off_by_one", lambda w, ids: w[(ids + 1) % len(w)]),
    version("counts_from_the_end", lambda w, ids: w.flip(0)[ids]),
    version("one_axis_only", lambda w, ids: w[ids.flatten()]),
    version("normalises", lambda w, ids: w[ids] / w[ids].norm(dim=-1, keepdim=True)),
    version("counts_a_token_once", lambda w, ids: w[ids].detach() + (w - w.detach())[ids] / torch.bincount(ids.flatten(), minlength=len(w))[ids][..., None]),
    version("sends_no_gradient", lambda w, ids: w.detach()[ids] + 0 * w.sum()),
    version("needs_two_ids", lambda w, ids: torch.stack([w[i] for i in ids.flatten()]).unflatten(0, ids.shape)),
]}
