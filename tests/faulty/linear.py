"""Linear layers, with mistakes."""
import torch
from torch import nn


def version(name, std=lambda d_in, d_out: d_in**-0.5, compute=lambda x, w, b: x @ w.mT + (0 if b is None else b), flipped=False, always=False, start=torch.zeros):
    "A `Linear` that is right but for what is given."
    class Part(nn.Module):
        def __init__(self, in_features, out_features, bias=False):
            super().__init__()
            shape = (in_features, out_features) if flipped else (out_features, in_features)
            self.weight = nn.Parameter(torch.randn(shape) * std(in_features, out_features))
            self.bias = nn.Parameter(start(out_features)) if bias or always else None
        def forward(self, x): return compute(x, self.weight.mT if flipped else self.weight, self.bias)
    Part.__name__ = name
    return Part


FAULTY = {"Linear": [
    version("standard_normal_weights", std=lambda d_in, d_out: 1.),
    version("scaled_by_the_outputs", std=lambda d_in, d_out: d_out**-0.5),
    version("variance_for_deviation", std=lambda d_in, d_out: 1 / d_in),
    version("weight_the_other_way_round", flipped=True),
    version("bias_whether_asked_or_not", always=True),
    version("bias_is_forgotten", compute=lambda x, w, b: x @ w.mT),
    version("bias_is_subtracted", compute=lambda x, w, b: x @ w.mT - (0 if b is None else b), start=torch.ones),
    version("bends", compute=lambda x, w, b: (x @ w.mT + (0 if b is None else b)).relu()),
    version("adds_one", compute=lambda x, w, b: x @ w.mT + 1),
    version("only_batches", compute=lambda x, w, b: torch.einsum("bi,oi->bo", x, w) + (0 if b is None else b)),
]}
