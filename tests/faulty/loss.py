"""Cross-entropy, with mistakes."""
import torch
from torch import nn
from torch.nn import functional as F


def version(name, function):
    "A `CrossEntropyLoss` that computes `function(rows, targets, counts)`."
    class Part(nn.Module):
        def forward(self, logits, targets):
            rows, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
            return function(rows, targets.clamp(min=0), targets >= 0)
    Part.__name__ = name
    return Part


def surprise(rows, targets): return rows.logsumexp(-1) - rows.gather(-1, targets[:, None])[:, 0]

def without_shift(rows, targets, counts):
    p = rows.exp() / rows.exp().sum(-1, keepdim=True)
    return -p.gather(-1, targets[:, None])[counts, 0].log().mean()

def shifted_by_the_greatest_of_all(rows, targets, counts):
    powers = (rows - rows.max()).exp()
    return -(powers / powers.sum(-1, keepdim=True)).gather(-1, targets[:, None])[counts, 0].log().mean()

def softmax_twice(rows, targets, counts): return surprise(rows.softmax(-1), targets)[counts].mean()


FAULTY = {"CrossEntropyLoss": [
    version("without_shift", without_shift),
    version("shifted_by_the_greatest_of_all", shifted_by_the_greatest_of_all),
    version("softmax_twice", softmax_twice),
    version("sum_instead_of_mean", lambda rows, targets, counts: surprise(rows, targets)[counts].sum()),
    version("divides_by_all_rows", lambda rows, targets, counts: surprise(rows, targets)[counts].sum() / len(rows)),
    version("counts_what_is_ignored", lambda rows, targets, counts: surprise(rows, targets).mean()),
    version("in_bits", lambda rows, targets, counts: surprise(rows, targets)[counts].mean() / 0.6931),
    version("wrong_sign", lambda rows, targets, counts: -surprise(rows, targets)[counts].mean()),
    version("detached_denominator", lambda rows, targets, counts: (rows.detach().logsumexp(-1) - rows.gather(-1, targets[:, None])[:, 0])[counts].mean()),
    version("clamped_chance", lambda rows, targets, counts: -rows.softmax(-1).gather(-1, targets[:, None])[counts, 0].clamp(1e-3, .5).log().mean()),
    version("over_the_batch", lambda rows, targets, counts: F.nll_loss(rows.log_softmax(0), torch.where(counts, targets, -100))),
]}
