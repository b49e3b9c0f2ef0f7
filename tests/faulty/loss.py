"""Cross-entropy and its units, with mistakes."""
import math

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


def named(name, part):
    part.__name__ = name
    return part


FAULTY = {
    "CrossEntropyLoss": [
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
        version("over_the_batch", lambda rows, targets, counts: F.nll_loss(rows.log_softmax(0), torch.where(counts, targets, -100)))],
    "perplexity": [
        named("base_two", lambda nats: 2**nats), named("the_nats_themselves", lambda nats: nats), named("chance_instead", lambda nats: math.exp(-nats)),
        named("one_too_few", lambda nats: math.exp(nats) - 1)],
    "bits_per_byte": [
        named("nats_per_byte", lambda nats, tokens, size: nats * tokens / size), named("bits_per_token", lambda nats, tokens, size: nats / math.log(2)),
        named("upside_down", lambda nats, tokens, size: nats / math.log(2) * size / tokens),
        named("times_ln_two", lambda nats, tokens, size: nats * math.log(2) * tokens / size)],
}
