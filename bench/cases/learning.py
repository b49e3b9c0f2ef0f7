"""Part III: the loss, and the step that follows from it."""
import torch
from torch.nn import functional as F

from bench.cases.pairs import b, back, d_model, same, t, vocab
from bench.runner import case


@case(peer="F.cross_entropy")
def cross_entropy(device):
    "The loss of 1,024 tokens over a vocabulary of 10,000, forward and backward."
    from llm_course.loss import cross_entropy
    logits = torch.randn(b * t, vocab, device=device, requires_grad=True)
    targets = torch.randint(vocab, (b * t,), device=device)
    return same(back(lambda x: cross_entropy(x, targets), logits), back(lambda x: F.cross_entropy(x, targets), logits))


shapes = [(vocab, d_model)] * 2 + [(d_model,)] + 6 * (4 * [(d_model, d_model)] + 2 * [(1344, d_model)] + [(d_model, 1344)] + 2 * [(d_model,)])


def optimizers(device, **theirs):
    "Two sets of the 57 tensors, 29 million numbers, of a Transformer of six blocks of width 512, with an optimiser each."
    from llm_course.optim import AdamW
    params = [[torch.nn.Parameter(torch.full(shape, .5, device=device)) for shape in shapes] for _ in range(2)]
    for p, q in zip(*params): p.grad = q.grad = torch.randn_like(p)
    return params, (AdamW(params[0], lr=1e-3), torch.optim.AdamW(params[1], lr=1e-3, **theirs))


@case(peer="torch.optim.AdamW(foreach=True)")
def adamw(device):
    "A step of AdamW on a model of 29 million parameters."
    params, pair = optimizers(device, foreach=True)
    return same(*(lambda o=o, p=p: (o.step(), p)[1] for o, p in zip(pair, params)))
