"""RMSNorm, with mistakes."""
import torch
from torch import nn


def right(x, gain, eps): return (x.float() * (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * gain


def version(name, compute, gain=torch.ones, biased=False):
    "An `RmsNorm` that computes `compute(x, gain, eps)`."
    class Part(nn.Module):
        def __init__(self, d_model, eps=1e-5):
            super().__init__()
            self.weight, self.eps = nn.Parameter(gain(d_model)), eps
            if biased: self.bias = nn.Parameter(torch.zeros(d_model))
        def forward(self, x): return compute(x, self.weight, self.eps)
    Part.__name__ = name
    return Part


FAULTY = {"RmsNorm": [
    version("mean_is_subtracted", lambda x, gain, eps: right(x - x.mean(-1, keepdim=True), gain, eps)),
    version("sum_for_mean", lambda x, gain, eps: x * (x.square().sum(-1, keepdim=True) + eps).rsqrt() * gain),
    version("no_root", lambda x, gain, eps: x / (x.square().mean(-1, keepdim=True) + eps) * gain),
    version("over_the_batch", lambda x, gain, eps: x * (x.square().mean() + eps).rsqrt() * gain),
    version("over_the_tokens", lambda x, gain, eps: x * (x.square().mean(-2 if x.ndim > 1 else -1, keepdim=True) + eps).rsqrt() * gain),
    version("eps_outside_the_root", lambda x, gain, eps: x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * gain),
    version("in_half_precision", lambda x, gain, eps: x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * gain),
    version("gain_is_forgotten", lambda x, gain, eps: right(x, 1., eps)),
    version("gain_of_zero", right, gain=torch.zeros),
    version("a_bias_as_well", right, biased=True),
    version("eps_is_fixed", lambda x, gain, eps: right(x, gain, 1e-5)),
    version("absolute_values", lambda x, gain, eps: x / (x.abs().mean(-1, keepdim=True) + eps) * gain),
]}
