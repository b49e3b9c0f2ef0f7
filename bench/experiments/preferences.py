"""What DPO makes of the demo model, for chapter 26: several betas, answers of unequal and of equal length, a loss per answer and per id, the same pairs turned round, and a reward model beside it, from three seeds.

`python -m bench.experiments.preferences` writes preferences.json, run by run, and goes on where it was stopped."""
import random
import sys
import tempfile
from functools import cache
from itertools import product
from pathlib import Path

import torch

from bench.experiments import cells, resume
from llm_course import data
from llm_course.evaluation import text_bits_per_byte

ASKED, COPIES, PAIRS, STEPS, TESTS, NEAR = 640, 4, 256, 24, 256, 4   # prompts, answers to each, pairs, steps, prompts of the exam; ids by which "equal" lengths may differ
BETAS = .03, .1, .3, 1.
PER_TOKEN_BETA = 3.   # a mean over some thirty ids needs thirty times as much
WAYS = [("modest", "before", 0.), *(("modest", "dpo", beta) for beta in BETAS), ("modest", "equal lengths", .1), ("modest", "per token", PER_TOKEN_BETA),
        ("not modest", "dpo", .1), ("not modest", "equal lengths", .1), ("not modest", "per token", PER_TOKEN_BETA), ("modest", "best of 4", 0.), ("modest", "best of 16", 0.)]
GRID = [{"seed": seed, "wins": wins, "way": way, "beta": beta} for seed, (wins, way, beta) in product(range(3), WAYS)]
PAGE = cells("26_preferences", "imports-page", "rule", "speak", "first-look", "learn", "pairs", "measure", "reward-model")


@cache
def plays() -> tuple[str, str]:
    "What the demo model was trained on, and what it was not."
    with tempfile.TemporaryDirectory() as folder:
        data.main(["--fetch", "shakespeare", "--output", folder])
        return (Path(folder)/"train.txt").read_text("utf-8"), (Path(folder)/"val.txt").read_text("utf-8")


@cache
def drawn(seed: int) -> tuple[list, list[list[int]]]:
    "Answers that the demo model gave, sorted by the rule, and the prompts of an exam."
    learnt, held_out = (PAGE["prompts_of"](text, PAGE["tokenizer"]) for text in plays())
    tests = random.Random(0).sample(held_out, 3 * TESTS)[seed * TESTS:(seed + 1) * TESTS]   # each seed has its own
    prompts = random.Random(seed).sample(learnt, ASKED)
    said = PAGE["speak"](PAGE["demo"], prompts, torch.Generator().manual_seed(seed), COPIES)
    return PAGE["sort_out"](prompts, said, COPIES, PAGE["tokenizer"]), tests


def pairs(seed: int, wins: str, equal: bool) -> list:
    "The first answer of each kind, or the two that are nearest in length."
    found = []
    for prompt, kept, broke in drawn(seed)[0]:
        a, b = min(product(kept, broke), key=lambda two: abs(len(two[0]) - len(two[1]))) if equal else (kept[0], broke[0])
        if equal and abs(len(a) - len(b)) > NEAR: continue
        found.append(PAGE["Pair"](prompt, *((a, b) if wins == "modest" else (b, a))))
    assert len(found) >= PAIRS, f"only {len(found)} pairs"
    return found[:PAIRS]


def run(seed: int, wins: str, way: str, beta: float) -> dict:
    "Learn from pairs, and pass the exam."
    demo, tests, chance = PAGE["demo"], drawn(seed)[1], torch.Generator().manual_seed(1000 + seed)
    chosen = pairs(seed, wins, way == "equal lengths")
    lengths = {"ids_better": sum(len(pair.better) for pair in chosen) / PAIRS, "ids_worse": sum(len(pair.worse) for pair in chosen) / PAIRS}
    if way.startswith("best of"):
        judge, right = PAGE["learn_judge"](chosen[:-64], chosen[-64:])
        return PAGE["best_of"](judge, tests, int(way.split()[-1]), chance) | {"pairs_right": right, "of_pairs": 64}
    torch.manual_seed(seed)
    model, history = PAGE["learn"](demo, chosen, beta, 0 if way == "before" else STEPS, per_token=way == "per token")
    found = PAGE["measure"](model, demo, tests, chance) | lengths
    found |= {name: text_bits_per_byte(model, PAGE["tokenizer"], text) for name, text in texts().items()}
    return {name: round(value, 4) for name, value in found.items()} | {"history": [[round(x, 3) for x in line] for line in history]}


@cache
def texts() -> dict[str, str]:
    "20,000 characters of plays that the demo model was not trained on, and their modest speeches alone."
    speeches = plays()[1][-20_000:].split("\n\n")
    return {"bits_per_byte": "\n\n".join(speeches), "bits_per_byte_modest": "\n\n".join(filter(PAGE["modest"], speeches))}


def main(*seeds: str) -> None:
    "Make what is missing, of all seeds or of some, on one thread."
    torch.set_num_threads(1)
    grid = [settings for settings in GRID if not seeds or str(settings["seed"]) in seeds]
    resume(__file__, f"DPO of {STEPS} steps of 16 from {PAIRS} pairs; answers to {TESTS} prompts of plays that nothing was trained on.", grid, run)


if __name__ == "__main__": main(*sys.argv[1:])
