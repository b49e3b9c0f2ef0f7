"""Part III: the loss, and the step that follows from it."""
import torch
from torch.nn import functional as F

from bench.cases.pairs import b, back, same, t, vocab
from bench.runner import case


@case(peer="F.cross_entropy")
def cross_entropy(device):
    "The loss of 1,024 tokens over a vocabulary of 10,000, there and back."
    from llm_course.loss import cross_entropy
    logits = torch.randn(b * t, vocab, device=device, requires_grad=True)
    targets = torch.randint(vocab, (b * t,), device=device)
    return same(back(lambda x: cross_entropy(x, targets), logits), back(lambda x: F.cross_entropy(x, targets), logits))


@case(peer="torch.optim.AdamW(foreach=True)")
def adamw(device):
    "One step on the 39 tensors, 9.3 million numbers, of a Transformer of four blocks of width 256 and a vocabulary of 10,000."
    from llm_course.optim import AdamW
    shapes = [(vocab, 256)] * 2 + [(256,)] + 4 * [(256,), (256, 256), (256, 256), (256, 256), (256, 256), (256,), (1024, 256), (1024, 256), (256, 1024)]
    params = [[torch.nn.Parameter(torch.full(shape, .5, device=device)) for shape in shapes] for _ in range(2)]
    for p, q in zip(*params): p.grad = q.grad = torch.randn_like(p)
    ours, theirs = AdamW(params[0], lr=1e-3), torch.optim.AdamW(params[1], lr=1e-3, foreach=True)
    def step(optimizer, params):
        optimizer.step()
        return params
    return same(lambda: step(ours, params[0]), lambda: step(theirs, params[1]))
