"""nanoGPT's recipe for a CPU, from torch's own parts: what its `train.py` does with `config/train_shakespeare_char.py` and the flags of
its README for a laptop (4 layers, 4 heads, width 128, 2,000 batches of 12 × 64 characters, no dropout), without its evaluations."""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

layers, heads, width, context, batch, steps = 4, 4, 128, 64, 12, 2_000


class Block(nn.Module):
    "GPT-2's block, without biases."
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, heads, -1)).movedim(-3, 0).transpose(-3, -2)
        x = x + self.proj(F.scaled_dot_product_attention(*qkv, is_causal=True).transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    "Learned positions, and one matrix for characters in and out."
    def __init__(self, vocab: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(layers))), nn.LayerNorm(width, bias=False)
        for name, p in self.named_parameters():
            if p.ndim > 1: nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if name.endswith(("proj.weight", "down.weight")) else 0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[-1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


@dataclass(frozen=True)
class Config:
    "Train nanoGPT's small model on characters."
    train: str       # Text to train on
    output: str      # Where the model and its alphabet go
    seed: int = 0    # Random numbers of weights and batches


def rate(step: int) -> float:
    "A hundred steps up, then a cosine down to a tenth."
    return 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100)))


def main(config: Config) -> None:
    torch.manual_seed(config.seed)
    with open(config.train, encoding="utf-8", newline="") as file: text = file.read()
    alphabet = sorted(set(text))
    place = {letter: i for i, letter in enumerate(alphabet)}
    ids = torch.tensor([place[letter] for letter in text])
    model = GPT(len(alphabet))
    matrices, gains = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups: group["lr"] = rate(step)
        rows = torch.stack([ids[at : at + context + 1] for at in torch.randint(len(ids) - context, (batch,))])
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.save({"alphabet": alphabet, "weights": model.state_dict()}, config.output)


if __name__ == "__main__":
    import tyro
    main(tyro.cli(Config))
