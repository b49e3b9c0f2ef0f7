"""Loss against operations, for chapter 22: `python -m bench.experiments.scaling` writes scaling_most.json, run by run, and goes on where it was stopped.

Each budget is spent on models of several widths. `--predict` fits the law to them and writes the shape of a run with ten times the largest budget, and
the loss that it is to reach. That file is committed before `--test` trains this run. There are three studies. The predictions of the first two missed;
`--first` and `--second` go on with them. The second has four heads at every width, rates that fall as those of the page's figure do, and larger budgets.
The third (scaling_most.json) leaves out the second's smallest budget, adds a larger one, and may take its exponents from Hoffmann et al. (2022)."""
import datetime
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from bench.experiments import keep, resume, small
from bench.runner import read
from llm_course.experiments import Law, best_allocation, bootstrap_laws, fit_law

HERE, SEEDS, TOKENS = Path(__file__), range(2), 8 * small.LENGTH   # tokens of a step


class Study(NamedTuple):
    "Runs, what was predicted from them, and how it came out: three files."
    files: tuple[str, str, str]
    budgets: dict[float, tuple[int, ...]]  # And the widths for each
    wider: tuple[int, ...]  # What the larger run may choose from: narrower ones take longer for as many operations, or need more text than there is
    heads: int | None       # At every width; `None`: one for 16 features
    falls: float            # The learning rate falls with this power of the width
    fits: tuple[tuple, ...] # Steps and width that a run must have to be fitted, and perhaps exponents: those that tell the largest budget best from the others are taken
    apart: float = 1.       # How many times as large the largest budget is as those that it is told from, at least
    other: str | None = None # A file with runs of these budgets that were made before

    def rate(self, width: int) -> float:
        "The highest learning rate: at width 32 about that of chapter 15."
        return 0.02 * (32 / width) ** self.falls

    def run(self, budget: float, width: int, seed: int) -> dict:
        "Spend a budget on a model of this width."
        steps = round(budget / small.operations(width))
        trained = small.trained(width, steps, self.rate(width), seed, self.heads)
        return {"parameters": size(width), "tokens": steps * TOKENS} | trained

    def points(self) -> list[tuple[float, float, float]]:
        "Parameters, tokens, and the mean loss over seeds, of each cell."
        cells = {}
        files = [name for name in (self.other, self.files[0]) if name]
        runs = [r for name in files for r in read(HERE.with_name(name))["runs"] if r["budget"] in self.budgets]
        for r in runs: cells.setdefault((r["parameters"], r["tokens"]), []).append(r["nats"])
        return [(*cell, fmean(nats)) for cell, nats in cells.items()]

    def miss(self, steps: int, width: int, *exponents: tuple[float, float]) -> float:
        "How far, on average, the law of the smaller budgets is from the largest."
        found = [(6 * P * N / max(self.budgets), (P, N, nats)) for P, N, nats in self.points()]
        held_out = [point for share, point in found if share > .9]
        smaller = [point for share, point in found if share < min(.9, 1.2 / self.apart)]
        law = fit_law(chosen(smaller, steps, width), exponents=exponents)
        return fmean(abs(law(P, N) / nats - 1) for P, N, nats in held_out)


FIRST = Study(("scaling.json", "prediction.json", "scaling_test.json"), {5e9: (4, 8, 12, 16, 24), 1.5e10: (8, 12, 16, 24, 32), 4.5e10: (12, 16, 24, 32, 48),
              1.35e11: (16, 24, 32, 48, 64)}, (48, 64, 80, 96, 112, 128), heads=None, falls=.5, fits=((0, 4),))
SECOND = Study(("scaling_more.json", "prediction_more.json", "scaling_more_test.json"), {4.5e10: (16, 24, 32, 48), 1.35e11: (16, 24, 32, 48, 64),
               4.05e11: (24, 32, 48, 64, 96), 1.215e12: (144, 128, 96, 64, 48, 40)}, (144,), heads=4, falls=1.,
               fits=((0, 16), (0, 24), (0, 32), (300, 16), (300, 24), (300, 32), (600, 16), (600, 24)))   # each leaves six runs or more
HOFFMANN = .34, .28   # alpha and beta of Hoffmann et al. 2022, §D.3
THIRD = Study(("scaling_most.json", "prediction_most.json", "scaling_most_test.json"), {1.35e11: (), 4.05e11: (), 1.215e12: (), 3.645e12: (208, 160, 128, 96, 80)},
              (208, 240), heads=4, falls=1., fits=((0, 16), (0, 16, HOFFMANN)), apart=9., other="scaling_more.json")


def size(width: int) -> float:
    "Operations for a token, divided by six."
    return small.operations(width) / 6 / TOKENS


def chosen(points: list, steps: int, width: int) -> list:
    "The runs that have so many steps, and this width or more."
    return [p for p in points if p[1] >= steps * TOKENS and p[0] >= size(width)]


def predict(study: Study) -> None:
    "Say what ten times the largest budget will reach, before anyone knows."
    misses = {fit: study.miss(*fit) for fit in study.fits}
    steps, width_from, *exponents = min(study.fits, key=misses.__getitem__)
    found = chosen(study.points(), steps, width_from)
    law, budget = fit_law(found, exponents=exponents), 10 * max(study.budgets)
    width = min(study.wider, key=lambda width: abs(size(width) / best_allocation(law, budget)[0] - 1))
    def told(law: Law) -> float: return law(size(width), budget / 6 / size(width))
    others = sorted(told(other) for other in bootstrap_laws(found, 50, exponents=exponents))
    low, high = others[round(.025 * len(others))], others[round(.975 * len(others)) - 1]
    keep(HERE.with_name(study.files[1]), {
        "what": "The loss that a run with ten times the largest fitted budget will reach: written before it was run.", "budget": budget, "width": width,
        "steps": round(budget / small.operations(width)), "nats": round(told(law), 4), "interval": [round(low, 4), round(high, 4)], "law": law._asdict(),
        "from_steps": steps, "from_width": width_from, "from_size": size(width_from), "held_out": [[*fit, round(miss, 4)] for fit, miss in misses.items()], "at": now()})
    print(HERE.with_name(study.files[1]).read_text("utf-8"))


def test(study: Study) -> None:
    "Run what was predicted."
    said = json.loads(HERE.with_name(study.files[1]).read_text("utf-8"))
    began = now()
    keep(HERE.with_name(study.files[2]), {"what": f"The run that {study.files[1]} speaks of.", "began": began} | study.run(said["budget"], said["width"], seed=0))
    print(HERE.with_name(study.files[2]).read_text("utf-8"))


def now() -> str: return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def main(words: list[str]) -> None:
    "Train on one thread, small budgets first."
    torch.set_num_threads(1)
    study = FIRST if "--first" in words else SECOND if "--second" in words else THIRD
    if "--predict" in words: return predict(study)
    if "--test" in words: return test(study)
    grid = [{"budget": budget, "width": width, "seed": seed} for seed in SEEDS for budget, widths in study.budgets.items() for width in widths]
    resume(str(HERE.with_name(study.files[0])), f"Nats a character of {small.SCORED:,} characters that no run was trained on.", grid, study.run)


if __name__ == "__main__": main(sys.argv[1:])
