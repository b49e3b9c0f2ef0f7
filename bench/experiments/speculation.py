"""Small drafts for the demo model, for engine/speculation: how many of their guesses pass, and what they save.

`python -m bench.experiments.speculation` trains each draft on the text of the demo model (a minute or two each), writes speculation.json draft by draft, and goes on where it was stopped.
The clock is processor time on one thread, of the page's stand-in: a model four times as wide that computes what the demo model does."""
import io
import tempfile
import time
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from bench.experiments import cells, resume, small
from llm_course import data
from llm_course.engine.speculation import speculate
from llm_course.generating import Sampling, generate_ids, load_demo, next_probabilities, stream_ids
from llm_course.optim import AdamW
from llm_course.transformer import Transformer

SHAPES = {"16 wide, 1 block": (16, 1, 1), "32 wide, 1 block": (32, 1, 2), "64 wide, 1 block": (64, 1, 2), "64 wide, 2 blocks": (64, 2, 2)}
STEPS, AHEAD, TEXTS = 1500, 4, 12
HOWS = {"temperature 1": Sampling(1., 1.), "temperature 0.8, top-p 0.9": Sampling(.8, .9)}


@cache
def corpus() -> np.ndarray:
    "The ids of the training text."
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        data.main(["--fetch", "shakespeare", "--output", folder])
        return np.array(load_demo("cpu")[1].encode((Path(folder)/"train.txt").read_text("utf-8")))


@cache
def trained(name: str, vocab_size: int, length: int) -> tuple[Transformer, float]:
    "A draft, and its loss over the last fifty steps."
    width, blocks, heads = SHAPES[name]
    torch.manual_seed(0)
    model = Transformer(vocab_size, length, width, blocks, heads, 8 * width // 3 // 8 * 8)
    optimizer = AdamW(model.parameters(), lr=6e-3, betas=(.9, .95), weight_decay=.1)
    losses = small.train(model, optimizer, STEPS, 0, 12, corpus())
    return model.eval(), sum(losses[-50:]) / 50


@torch.inference_mode()
def accepted(model, draft, starts, how: Sampling) -> list[float]:
    "The probability that a guess passes, for each text that the model writes: the sum over all tokens of the smaller of both probabilities, averaged over places."
    passed = []
    for seed, start in enumerate(starts):
        text = generate_ids(model, start, 100, how.temperature, how.top_p, generator=torch.Generator().manual_seed(seed))
        shares = []
        for end in range(start.shape[1], text.shape[1], 5):
            seen = text[:, :end]
            ours, theirs = (next_probabilities(m(seen)[:, -1], seen, how) for m in (model, draft))
            shares.append(float(torch.minimum(ours, theirs).sum()))
        passed.append(round(sum(shares) / len(shares), 3))
    return passed


def seconds(tokens) -> tuple[float, int]:
    "Processor seconds to write, and how many tokens came."
    began = time.process_time()
    count = sum(1 for _ in tokens)
    return time.process_time() - began, count


def saved(model, draft, starts, how: Sampling, length: int = 60) -> list[float]:
    "How many times as fast the model writes with the draft as without, for each text, by turns."
    chances, gains = partial(next_probabilities, how=how), []
    for seed, start in enumerate(starts):
        alone, n = seconds(stream_ids(model, start, length, how, torch.Generator().manual_seed(seed)))
        guessed, m = seconds(speculate(model, draft, start, length, chances, torch.Generator().manual_seed(seed), AHEAD))
        gains.append(round((alone / n) / (guessed / m), 3))
    return gains


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, tokenizer = load_demo("cpu")
    wide = cells("engine/speculation", "imports-page", "grown")["grown"](model, 4)
    starts = [torch.tensor([tokenizer.encode(name + ":\n")]) for name in ("ROMEO", "KING", "First Citizen", "JULIET", "HAMLET", "DUKE")] * (TEXTS // 6)

    def run(draft, mode):
        guesser, loss = trained(draft, tokenizer.vocab_size, model.config.max_seq_len)
        return {"weights": sum(p.numel() for p in guesser.parameters()), "loss": round(loss, 3),
                "passes": accepted(model, guesser, starts, HOWS[mode]), "gains": saved(wide, guesser, starts, HOWS[mode])}
    resume(__file__, f"Drafts of the demo model after {STEPS} steps, on {TEXTS} texts: the share of guesses that pass, and the gain with {AHEAD} guesses a round.",
           [{"draft": name, "mode": mode} for name in SHAPES for mode in HOWS], run)
