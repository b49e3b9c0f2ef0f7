"""What several races need."""
import torch
from torch.testing import assert_close

b, t, d_model, vocab = 8, 128, 512, 10_000   # a small batch of a small model


def back(function, *inputs):
    "A function that runs `function` on the inputs, then its gradient back to those that ask for one."
    asking = [x for x in inputs if x.requires_grad]
    def run():
        out = function(*inputs)
        return out, *torch.autograd.grad(out, asking, torch.ones_like(out))
    return run


def same(ours, peer, **tolerance):
    "Both, once they are seen to agree."
    assert_close(ours(), peer(), **tolerance)
    return ours, peer
