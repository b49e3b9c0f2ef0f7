"""SiLU and the feed-forward network, with mistakes."""
import torch
from torch import nn
from torch.nn import functional as F


def bend(name, function):
    "A `SiLu` that computes `function`."
    class Part(nn.Module):
        def forward(self, x): return function(x)
    Part.__name__ = name
    return Part


def network(name, compute, bias=False, names=("w1", "w2", "w3")):
    "An `FFN` that computes `compute(x, w1, w2, w3)`."
    class Part(nn.Module):
        def __init__(self, d_model, d_ff):
            super().__init__()
            for w, (i, o) in zip(names, ((d_model, d_ff), (d_ff, d_model), (d_model, d_ff))): setattr(self, w, nn.Linear(i, o, bias=bias))
        def forward(self, x): return compute(x, *(getattr(self, w) for w in names))
    Part.__name__ = name
    return Part


FAULTY = {
    "SiLu": [
        bend("relu", torch.relu), bend("gelu", F.gelu), bend("sigmoid", torch.sigmoid), bend("swish_of_two", lambda x: x * (2 * x).sigmoid()),
        bend("by_exponentials", lambda x: x * x.exp() / (1 + x.exp())), bend("divides_by_what_overflows", lambda x: x.exp() * x / (x.exp() + 1)),
        bend("gate_sends_no_gradient", lambda x: x * x.sigmoid().detach()), bend("mirrored", lambda x: x * (-x).sigmoid())],
    "FFN": [
        network("gate_and_value_swapped", lambda x, w1, w2, w3: w2(w1(x) * F.silu(w3(x)))),
        network("no_gate", lambda x, w1, w2, w3: w2(F.silu(w1(x)))),
        network("sum_for_product", lambda x, w1, w2, w3: w2(F.silu(w1(x)) + w3(x))),
        network("relu_gate", lambda x, w1, w2, w3: w2(w1(x).relu() * w3(x))),
        network("gelu_gate", lambda x, w1, w2, w3: w2(F.gelu(w1(x)) * w3(x))),
        network("bends_the_product", lambda x, w1, w2, w3: w2(F.silu(w1(x) * w3(x)))),
        network("biases", lambda x, w1, w2, w3: w2(F.silu(w1(x)) * w3(x)), bias=True),
        network("adds_its_input", lambda x, w1, w2, w3: x + w2(F.silu(w1(x)) * w3(x))),
        network("mixes_tokens", lambda x, w1, w2, w3: w2(F.silu(w1(x)) * w3(x.mean(-2, keepdim=True)))),
        network("other_names", lambda x, w1, w2, w3: w2(F.silu(w1(x)) * w3(x)), names=("gate", "down", "up"))],
}
