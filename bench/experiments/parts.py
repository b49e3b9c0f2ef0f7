"""What each part of a block is worth: chapter 15's runs with one part exchanged, at several rates and two depths, from five seeds.

`python -m bench.experiments.parts` writes parts.json, run by run, and goes on where it was stopped."""
import math
from itertools import product

import torch

from bench.experiments import cells, resume

SEEDS = range(5)
RATES = {2: (1e-2, 3e-2), 8: (3e-3, 1e-2)}   # for each number of blocks
DEEP = "ours", "no final norm", "no norms in the blocks", "post-norm"   # variants that eight blocks are tried with


def functions() -> dict:
    "The text, the variants and the training of the page."
    return cells("15_transformer", "imports-page", "floor", "growing", "train", "post-norm", "stand-ins", "changes")


def grid(names) -> list[dict]:
    "Every run, seed by seed, so that a part of them is fair, too."
    return [{"variant": name, "blocks": blocks, "rate": rate, "seed": seed}
            for seed, blocks in product(SEEDS, RATES) for name in (names if blocks == 2 else DEEP) for rate in RATES[blocks]]


def main() -> None:
    "Train each variant that is not there yet, on one thread."
    torch.set_num_threads(1)
    page = functions()

    def run(variant, blocks, rate, seed):
        nats = page["exchanged"](variant, seed, rate, blocks)
        return {"nats": round(nats, 4) if math.isfinite(nats) else None}   # `None`: no number any more
    resume(__file__, "Nats a byte over the last 25 of 200 steps.", grid(page["changes"]), run)


if __name__ == "__main__": main()
