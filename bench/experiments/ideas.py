"""Ideas that could make the recipe of the race against nanoGPT's better, each beside the recipe, on a part of the training split: `python -m bench.experiments.ideas TEXT`.

TEXT is tiny-shakespeare; without one it is fetched. Its last tenth, on which the race is scored, is cut off first and never read. Of the rest, the last tenth is what all runs here are scored on.
The runs take a part of the race's time. A step of each idea is timed by turns with a step of the recipe, in seconds of the processor, and an idea with dearer steps takes as many fewer. `ideas.json`
keeps every run, and a second start goes on where the first was stopped. Names behind TEXT: only these ideas, and the recipe."""
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.experiments import resume
from bench.nanogpt import RECIPE, VOCAB, cut
from bench.pairs import PairEmbedding
from bench.runner import read
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.data import get_batch, windows
from llm_course.embedding import Embedding
from llm_course.engine import muon
from llm_course.engine.corpora import fetch
from llm_course.engine.processes import fast_forward
from llm_course.engine.run_config import optimizer_for, set_rates, settle_rates
from llm_course.loss import cross_entropy
from llm_course.multihead import MultiHeadAttention, split_heads
from llm_course.training import TrainConfig, train_step
from llm_course.transformer import Transformer

STEPS, SEEDS = 120, (0, 1, 2)   # of the recipe, of whose steps the race has six times as many
ROWS, LENGTH = 12, RECIPE["max_seq_len"]   # a deal of rows; the recipe's step takes two deals
BASE = "the recipe"
AVERAGED = .2   # of the steps, at the end, whose weights are averaged


def value_embeddings(layers: int) -> dict:
    "Parts with which the values of each layer get a vector of the token itself."
    waiting: list[Tensor] = []   # a vector for each layer that has not run yet

    class WithValues(Embedding):
        def __init__(self, num_embeddings: int, embedding_dim: int):
            super().__init__(num_embeddings, embedding_dim)
            self.values = nn.Parameter(torch.zeros(num_embeddings, layers * embedding_dim))

        def forward(self, ids):
            waiting[:] = self.values[ids].chunk(layers, -1)
            return super().forward(ids)

    class Attention(MultiHeadAttention):
        def project(self, x):
            q, k, v = super().project(x)
            return q, k, v + split_heads(waiting.pop(0), self.d_k)

    return {"embedding": WithValues, "attention": Attention}


class OneProduct(MultiHeadAttention):
    "Attention whose queries, keys and values are one product: the same numbers, in fewer calls."
    def project(self, x):
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        q, k, v = (split_heads(part, self.d_k) for part in F.linear(x, weight).chunk(3, -1))
        return q, k, v


class EvenRows(muon.Muon):
    "Muon, and each row of a step divided by the running size of that row's steps; the whole step keeps its length."
    def update(self, params, group):
        if not group["lr"]: return   # the last step of a line to zero
        before = [p.detach().clone() for p in params]
        super().update(params, group | {"weight_decay": 0.})
        for p, old in zip(params, before):
            step, state = p.detach() - old, self.state[p]
            size = step.square().mean(1, keepdim=True) / group["lr"]**2
            state["size"] = size if "size" not in state else state["size"].lerp(size, .05)
            even = step / (state["size"].sqrt() + 1e-8)
            p.data = old * (1 - group["lr"] * group["weight_decay"]) + even * (step.norm() / even.norm())


def another_muon(optimizer, kind: type | None = None, **settings):
    "Change how Muon steps, and leave AdamW as it is."
    for group in optimizer.param_groups:
        if "momentum" in group: group.update(settings)
    if kind is not None:
        update, even = optimizer.update, kind([nn.Parameter(torch.zeros(1, 1))])
        even.state = optimizer.state
        optimizer.update = lambda params, group: even.update(params, group) if "momentum" in group else update(params, group)


class Idea(NamedTuple):
    "What one idea changes about the recipe."
    changes: Mapping = MappingProxyType({})   # Flags of training
    parts: Callable[[], dict] = dict   # Parts of the model
    options: Mapping = MappingProxyType({})   # Options of the model
    deals: Callable[[float], int] = lambda progress: 2   # How many deals of rows a step takes
    pieces: Callable[[float], int] = lambda progress: 1  # Into how many pieces each row is cut
    optimizer: Callable = lambda optimizer: None         # Changes the optimiser
    orthogonal_steps: int = 5          # Of Newton and Schulz
    averaged: bool = False             # Is the mean of the last weights scored, too?


IDEAS = {
    BASE: Idea(averaged=True),
    "value embeddings": Idea(parts=lambda: value_embeddings(RECIPE["num_layers"])),
    "norms on queries and keys": Idea(options={"qk_norm": True}),
    "an embedding of the last two tokens": Idea(parts=lambda: {"embedding": PairEmbedding}),
    "bfloat16": Idea({"precision": "bfloat16"}),
    "short rows first": Idea(pieces=lambda progress: 2 if progress < .5 else 1),
    "small batches first": Idea(deals=lambda progress: 1 if progress < .5 else 3),
    "Muon: rows of even length": Idea(optimizer=partial(another_muon, kind=EvenRows)),
    "Muon: three steps of its polynomial": Idea(orthogonal_steps=3),
    "rate down to a third only": Idea({"lr_min": RECIPE["lr_max"] / 3}, averaged=True),
    "Muon: momentum 0.9": Idea(optimizer=partial(another_muon, momentum=.9)),
    "one product for q, k and v": Idea(parts=lambda: {"attention": OneProduct}),
}
TIMED = "one product for q, k and v",   # ideas that learn the same: only their steps are timed
SAME = BASE, "rate down to a third only", "Muon: momentum 0.9"   # those whose steps are the recipe's, but for a number: not timed


@cache
def texts(path: str) -> tuple[np.ndarray, np.ndarray, int]:
    "Ids to learn from, ids that are scored, and how many bytes those are."
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder)/"train.txt"
        split.write_text(cut(Path(path))[0], "utf-8", newline="")
        train, held_out = cut(split)
        split.write_text(train, "utf-8", newline="")
        tokenizer = BpeTokenizer.train(split, VOCAB, [])
    ids = [np.array(tokenizer.encode(part)) for part in (train, held_out)]
    return ids[0], ids[1], len(held_out.encode())


def steps_of(idea: Idea, ids: np.ndarray, steps: int, seed: int) -> Iterator[Transformer]:
    "Train by the recipe with one change. Gives the model back after each step."
    recipe = {name: value for name, value in RECIPE.items() if name != "iterations"} | dict(idea.changes)
    unread = Path("unread")   # the data is in memory
    config = settle_rates(TrainConfig(train_data=unread, val_data=unread, device="cpu", vocab_size=VOCAB, iterations=steps, **recipe))
    torch.manual_seed(seed)
    shape = {name: recipe[name] for name in ("max_seq_len", "d_model", "num_layers", "num_heads", "d_ff")}
    model = Transformer(VOCAB, **shape, parts=idea.parts(), **idea.options)
    optimizer, forward, dealt = optimizer_for(model, config), fast_forward(model, config), 0
    idea.optimizer(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in range(steps):
        progress, deals = step / steps, []
        for _ in range(idea.deals(progress)):
            deals.append(get_batch(ids, ROWS, LENGTH, seed=seed, iteration=dealt, order="epochs"))
            dealt += 1
        length = LENGTH // idea.pieces(progress)
        inputs, targets = (torch.cat(rows).reshape(-1, length) for rows in zip(*deals))
        set_rates(optimizer, config, step + 1)
        train_step(forward, optimizer, scaler, [(inputs, targets)], config.grad_clip)
        yield model


class Orthogonal:
    "For a while, let Muon apply its polynomial another number of times."
    def __init__(self, steps: int): self.steps, self.usual = steps, muon.orthogonalise
    def __enter__(self): muon.orthogonalise = partial(self.usual, steps=self.steps)
    def __exit__(self, *error): muon.orthogonalise = self.usual


@torch.no_grad()
def score(model: Transformer, ids: np.ndarray, size: int) -> float:
    "Nats per byte, in windows that do not overlap, as in the race."
    return sum(float(cross_entropy(model(inputs), targets)) * targets.numel() for inputs, targets in windows(ids, 64, LENGTH)) / size


def measure_cost(name: str, text: str, points: int = 4, repeats: int = 8) -> dict:
    "Seconds of the processor that a step of the idea takes, beside a step of the recipe: at some points of the schedule, by turns, the fastest of a few."
    spent = {BASE: 0., name: 0.}
    for seed in range(points):   # each point of the schedule with its own batches
        best = dict.fromkeys(spent, float("inf"))
        runs = {}
        for which in spent:
            whole, at = IDEAS[which], (seed + .5) / points
            frozen = whole._replace(deals=lambda progress, w=whole, at=at: w.deals(at), pieces=lambda progress, w=whole, at=at: w.pieces(at))
            runs[which] = steps_of(frozen, texts(text)[0], 1000, seed)
        for turn in range(repeats + 1):   # the first steps allocate
            for which, run in runs.items():
                with Orthogonal(IDEAS[which].orthogonal_steps):
                    began = time.process_time()
                    next(run)
                    if turn: best[which] = min(best[which], time.process_time() - began)
        for which in spent: spent[which] += best[which] / points
    return {"seconds": round(spent[name], 5), "recipe_seconds": round(spent[BASE], 5), "ratio": round(spent[name] / spent[BASE], 4)}


def train_idea(name: str, text: str, seed: int, steps: int) -> dict:
    "Train an idea; its nats per byte of the held-out part, and the seconds of the processor."
    idea, (ids, held_out, size) = IDEAS[name], texts(text)
    began = time.process_time()
    summed, count = {}, 0
    with Orthogonal(idea.orthogonal_steps):
        for step, model in enumerate(steps_of(idea, ids, steps, seed)):
            if not idea.averaged or step < (1 - AVERAGED) * steps: continue
            count += 1
            for which, p in model.state_dict().items(): summed[which] = summed.get(which, 0.) + p.double()
    spent = time.process_time() - began
    found = {"steps": steps, "cpu_seconds": round(spent, 1), "nats": round(score(model, held_out, size), 4)}
    if not summed: return found
    model.load_state_dict({which: total / count for which, total in summed.items()})
    return found | {"averaged_nats": round(score(model, held_out, size), 4)}


def grid(names=IDEAS) -> tuple[list[dict], list[dict]]:
    "What is timed, and what is trained: all ideas of a seed before the next seed."
    timed = [{"idea": name, "measured": "cost"} for name in names if name not in SAME]
    trained = [{"idea": name, "measured": "loss", "seed": seed} for seed in SEEDS for name in names if name not in TIMED]
    return timed, trained


def main(text: str | None = None, *names: str) -> None:
    "Time each idea, then train them, on one thread."
    torch.set_num_threads(1)
    text = text or str(fetch("tinyshakespeare"))
    timed, trained = grid([name for name in IDEAS if name == BASE or not names or name in names])
    what = f"Nats a byte of a tenth of tiny-shakespeare's training split, after {STEPS} steps of the recipe or as many of an idea as take the same seconds of the processor."
    resume(__file__, what, timed, lambda idea, measured: measure_cost(idea, text))
    ratios = {cell["idea"]: cell["ratio"] for cell in read(Path(__file__).with_suffix(".json"))["runs"] if cell["measured"] == "cost"}

    def run(idea, measured, seed):
        return train_idea(idea, text, seed, round(STEPS / ratios.get(idea, 1.)))
    resume(__file__, what, trained, run)


if __name__ == "__main__": main(*sys.argv[1:])
