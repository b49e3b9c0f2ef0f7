"""The best learning rate at four widths, with and without μP: `python -m bench.experiments.mup` writes mup.json, run by run, and goes on where it was stopped."""
import math
import sys
import time
from statistics import fmean

import torch

from bench.experiments import resume, small
from llm_course.experiments import mup_groups, mup_start
from llm_course.optim import AdamW
from llm_course.transformer import Transformer

WIDTHS, BASE = (64, 128, 256, 512), 64
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
STEPS, BATCH, LENGTH = 60, 4, 32
SEEDS = range(3)
GRID = [{"width": width, "mup": mup, "rate": rate, "seed": seed} for seed in SEEDS for width in WIDTHS for mup in (True, False) for rate in RATES]


def built(width: int, mup: bool, rate: float, seed: int):
    "A model and its optimiser; at the base width both ways are the same."
    torch.manual_seed(seed)
    model = Transformer(**small.shape(width, length=LENGTH))
    if not mup: return model, AdamW(model.parameters(), lr=rate, betas=(.9, .95), weight_decay=0.)
    mup_start(model, BASE)
    return model, AdamW(mup_groups(model, rate, BASE), betas=(.9, .95), weight_decay=0.)


def run(width: int, mup: bool, rate: float, seed: int) -> dict:
    "The loss over the last 20 steps."
    began = time.process_time()
    model, optimizer = built(width, mup, rate, seed)
    losses = small.train(model, optimizer, STEPS, seed, BATCH)
    nats = fmean(losses[-20:])
    return {"nats": round(nats, 4) if math.isfinite(nats) else None, "cpu_seconds": round(time.process_time() - began, 1)}


def main(words: list[str]) -> None:
    "Train on one thread, narrow models first. (With two numbers: this of so many processes that share the work.)"
    torch.set_num_threads(1)
    grid = GRID[int(words[0])::int(words[1])] if words else GRID
    resume(__file__, f"Nats a character over the last 20 of {STEPS} steps.", grid, run)


if __name__ == "__main__": main(sys.argv[1:])
