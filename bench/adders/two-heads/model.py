"""A block of attention whose queries know positions alone: what belongs together stands 0, 10, 11, 21 and 22 tokens back, so one turn takes 11 tokens."""
import math

import torch
from torch import nn

from llm_course.attention import attention
from llm_course.embedding import Embedding
from llm_course.engine.addition import train_adder
from llm_course.ffn import FFN
from llm_course.linear import Linear, linear
from llm_course.multihead import merge_heads
from llm_course.rmsnorm import RmsNorm
from llm_course.rope import rotate


class Adder(nn.Module):
    def __init__(self, d_model: int, d_ff: int, looks: list[float]):
        super().__init__()
        self.embedding = Embedding(10, d_model)
        back = torch.tensor(looks) * 2 * math.pi / 11   # where each head looks at first; training moves it
        self.query = nn.Parameter(5 * torch.stack([back.cos(), -back.sin()], -1)[:, None])
        self.output = Linear(len(looks) * d_model, d_model)
        self.ffn_norm = RmsNorm(d_model)
        self.ffn = FFN(d_model, d_ff)
        self.norm = RmsNorm(d_model)
        angles = torch.arange(33) * 2 * math.pi / 11
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()], -1)[:, None], persistent=False)
        self.register_buffer("key", torch.tensor([[1., 0.]]), persistent=False)

    def forward(self, ids):
        x = self.embedding(ids.where(ids < 10, 0))   # the signs are read as zeros
        t = ids.shape[1]
        q = rotate(self.query.expand(-1, t, -1), self.turns[:t])
        k = rotate(self.key.expand(t, -1), self.turns[:t])
        x = x + self.output(merge_heads(attention(q, k, x[:, None], causal=True)))
        x = x + self.ffn(self.ffn_norm(x))
        return linear(self.norm(x), self.embedding.weight)


def make(recipe): return Adder(recipe["d_model"], recipe["d_ff"], recipe["looks"])


def train(folder, seed, threads, recipe): train_adder(make, folder, seed, threads, recipe)
