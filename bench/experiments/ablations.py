"""What choices of training and shape are worth, for chapter 22: one is changed at a time. `python -m bench.experiments.ablations` writes ablations.json,
cell by cell, seed by seed, and goes on where it was stopped. (Norms, positions and the feed-forward network: see parts.py.)

All cells read the same number of characters, but for those that say `operations`: they take as many operations. A model with a vocabulary of its own is scored in nats a character, too."""
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench.experiments import resume, small
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.budget import step_operations
from llm_course.engine.muon import Muon, Together
from llm_course.optim import AdamW, params_for_decay
from llm_course.transformer import Transformer

SEEDS = range(8)
WIDTH, RATE, DECAY, BATCH, STEPS = 32, .02, .1, 8, 250
VARIANTS = {
    "ours": {},
    "tied embeddings": {"tie": True},
    "4 blocks of width 24, operations": {"num_layers": 4, "width": 24},
    "1 block of width 48, operations": {"num_layers": 1, "width": 48},
    "contexts of 32": {"length": 32, "batch": 16},
    "contexts of 128": {"length": 128, "batch": 4},
    "batches half as large": {"batch": 4},
    "batches twice as large": {"batch": 16},
    "rate × 1/4": {"rate": RATE / 4},
    "rate × 1/2": {"rate": RATE / 2},
    "rate × 2": {"rate": RATE * 2},
    "rate × 8": {"rate": RATE * 8},
    "rate × 32": {"rate": RATE * 32},
    "no weight decay": {"decay": 0.},
    "weight decay × 10": {"decay": 1.},
    "Muon": {"muon": True},
    "vocabulary of 512, operations": {"vocab": 512},
}


def optimizer_of(model, rate: float, decay: float, muon: bool):
    "AdamW; with Muon for the blocks' matrices, at the rate that its page recommends."
    if not muon: return AdamW(params_for_decay(model, decay), lr=rate, betas=(.9, .95))
    inside = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not q for q in inside)]
    return Together(Muon(inside, lr=.02, weight_decay=decay), AdamW(others, lr=rate, betas=(.9, .95), weight_decay=0.))


def with_tokens(vocab: int) -> tuple[np.ndarray, np.ndarray, int]:
    "A part of the training split and all of the scored text in tokens of BPE, and the characters of the latter."
    parts = [bytes(part).decode() for part in small.texts()]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/"text.txt").write_text(parts[0][:200_000], "utf-8", newline="")
        tokenizer = BpeTokenizer.train(Path(folder)/"text.txt", vocab, [])
    return *(np.array(tokenizer.encode(part), np.uint16) for part in (parts[0][:800_000], parts[1])), len(parts[1])


def run(variant: str, seed: int) -> dict:
    "Train a variant; its nats a character, or none if it diverged."
    began = time.process_time()
    choice = dict(width=WIDTH, num_layers=2, length=small.LENGTH, tie=False, rate=RATE, decay=DECAY, batch=BATCH, muon=False, vocab=small.VOCAB) | VARIANTS[variant]
    torch.manual_seed(seed)
    shape = small.shape(choice["width"], choice["num_layers"], choice["length"]) | {"tie": choice["tie"], "vocab_size": choice["vocab"]}
    model = Transformer(**shape)
    tokens = choice["batch"] * choice["length"]
    steps = STEPS * BATCH * small.LENGTH // tokens
    if "operations" in variant: steps = round(STEPS * small.operations(WIDTH) / step_operations(model.config, tokens))
    train, val, per = *small.texts(), 1.
    if choice["vocab"] != small.VOCAB:
        train, val, characters = with_tokens(choice["vocab"])
        per = len(val) / characters
    optimizer = optimizer_of(model, choice["rate"], choice["decay"], choice["muon"])
    losses = small.train(model, optimizer, steps, seed, choice["batch"], train)
    nats = per * small.score(model, choice["length"], val) if math.isfinite(losses[-1]) else math.nan
    return {"nats": round(nats, 4) if math.isfinite(nats) else None, "cpu_seconds": round(time.process_time() - began, 1)}


def main(words: list[str]) -> None:
    "Train on one thread, all variants of a seed before the next seed. (With two numbers: this of so many processes that share the work; with names: these variants.)"
    torch.set_num_threads(1)
    grid = [{"variant": variant, "seed": seed} for seed in SEEDS for variant in VARIANTS]
    if words and words[0].isdigit(): grid = grid[int(words[0])::int(words[1])]
    elif words: grid = [cell for cell in grid if cell["variant"] in words]
    resume(__file__, f"Nats a character of {small.SCORED:,} characters that no run was trained on, after {STEPS * BATCH * small.LENGTH:,} characters.", grid, run)


if __name__ == "__main__": main(sys.argv[1:])
