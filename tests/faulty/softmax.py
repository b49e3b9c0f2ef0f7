"""Softmax, with mistakes."""
import torch
from torch import nn


def version(name, function):
    "A `Softmax` that computes `function(x, dim)`."
    class Part(nn.Module):
        def __init__(self, dim=-1):
            super().__init__()
            self.dim = dim
        def forward(self, x): return function(x, self.dim)
    Part.__name__ = name
    return Part


def without_shift(x, dim):
    powers = x.exp()
    return powers / powers.sum(dim, keepdim=True)


def shifted_by_the_sum(x, dim):
    powers = (x - x.sum(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True)


def detached(x, dim):
    "The denominator sends no gradient."
    powers = (x - x.amax(dim, keepdim=True)).exp()
    return powers / powers.sum(dim, keepdim=True).detach()


FAULTY = {"Softmax": [
    version("without_shift", without_shift),
    version("shifted_by_the_sum", shifted_by_the_sum),
    version("detached_denominator", detached),
    version("always_the_last_axis", lambda x, dim: x.softmax(-1)),
    version("over_the_whole_tensor", lambda x, dim: x.flatten().softmax(0).view_as(x)),
    version("base_two", lambda x, dim: (x * 0.6931).softmax(dim)),
    version("float32_out", lambda x, dim: x.float().softmax(dim)),
    version("no_division", lambda x, dim: (x - x.amax(dim, keepdim=True)).exp()),
    version("fills_minus_infinity", lambda x, dim: x.nan_to_num(neginf=-1.).softmax(dim)),
    version("shares_of_absolutes", lambda x, dim: x.abs() / x.abs().sum(dim, keepdim=True)),
    version("hard_maximum", lambda x, dim: torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.)),
]}
