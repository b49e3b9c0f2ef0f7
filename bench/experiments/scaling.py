"""Loss against operations, for chapter 22: `python -m bench.experiments.scaling` writes scaling_more.json, run by run, and goes on where it was stopped.

Each budget is spent on models of several widths. `--predict` fits the law to them and writes the shape of a run with ten times the largest budget, and
the loss that it is to reach. That file is committed before `--test` trains this run. There are two studies. The prediction of the first one missed;
`--first` goes on with it. The second has four heads at every width, rates that fall as those of the page's figure do, and larger budgets."""
import datetime
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from bench.experiments import keep, resume, small
from bench.runner import read
from llm_course.experiments import Law, bootstrap_laws, fit_law, spend

HERE, SEEDS, TOKENS = Path(__file__), range(2), 8 * small.LENGTH   # tokens of a step


class Study(NamedTuple):
    "Runs, what was predicted from them, and how it came out: three files."
    files: tuple[str, str, str]
    budgets: dict[float, tuple[int, ...]]  # And the widths for each
    wider: tuple[int, ...]  # What the larger run may choose from: narrower ones take longer for as many operations, or need more text than there is
    heads: int | None       # At every width; `None`: one for 16 features
    falls: float            # The learning rate falls with this power of the width
    fits: tuple[tuple[int, int], ...]  # Steps and width that a run must have to be fitted: those that tell the largest budget best from the others are taken

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
        for r in read(HERE.with_name(self.files[0]))["runs"]: cells.setdefault((r["parameters"], r["tokens"]), []).append(r["nats"])
        return [(*cell, fmean(nats)) for cell, nats in cells.items()]

    def miss(self, steps: int, width: int) -> float:
        "How far, on average, the law of the smaller budgets is from the largest."
        found = self.points()
        held_out = [p for p in found if 6 * p[0] * p[1] > .9 * max(self.budgets)]
        law = fit_law(chosen([p for p in found if p not in held_out], steps, width))
        return fmean(abs(law(P, N) / nats - 1) for P, N, nats in held_out)


FIRST = Study(("scaling.json", "prediction.json", "scaling_test.json"), {5e9: (4, 8, 12, 16, 24), 1.5e10: (8, 12, 16, 24, 32), 4.5e10: (12, 16, 24, 32, 48),
              1.35e11: (16, 24, 32, 48, 64)}, (48, 64, 80, 96, 112, 128), heads=None, falls=.5, fits=((0, 4),))
SECOND = Study(("scaling_more.json", "prediction_more.json", "scaling_more_test.json"), {4.5e10: (16, 24, 32, 48), 1.35e11: (16, 24, 32, 48, 64),
               4.05e11: (24, 32, 48, 64, 96), 1.215e12: (144, 128, 96, 64, 48, 40)}, (144,), heads=4, falls=1., 
               fits=((0, 16), (0, 24), (0, 32), (300, 16), (300, 24), (300, 32), (600, 16), (600, 24)))   # each leaves six runs or more


def size(width: int) -> float:
    "Operations for a token, divided by six."
    return small.operations(width) / 6 / TOKENS


def chosen(points: list, steps: int, width: int) -> list:
    "The runs that have so many steps, and this width or more."
    return [p for p in points if p[1] >= steps * TOKENS and p[0] >= size(width)]


def predict(study: Study) -> None:
    "Say what ten times the largest budget will reach, before anyone knows."
    misses = {fit: study.miss(*fit) for fit in study.fits}
    steps, width_from = min(study.fits, key=misses.__getitem__)
    found = chosen(study.points(), steps, width_from)
    law, budget = fit_law(found), 10 * max(study.budgets)
    width = min(study.wider, key=lambda width: abs(size(width) / spend(law, budget)[0] - 1))
    def told(law: Law) -> float: return law(size(width), budget / 6 / size(width))
    others = sorted(told(other) for other in bootstrap_laws(found, 50))
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
    study = FIRST if "--first" in words else SECOND
    if "--predict" in words: return predict(study)
    if "--test" in words: return test(study)
    grid = [{"budget": budget, "width": width, "seed": seed} for seed in SEEDS for budget, widths in study.budgets.items() for width in widths]
    resume(str(HERE.with_name(study.files[0])), f"Nats a character of {small.SCORED:,} characters that no run was trained on.", grid, study.run)


if __name__ == "__main__": main(sys.argv[1:])
