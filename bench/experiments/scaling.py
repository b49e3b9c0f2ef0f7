"""Loss against operations, for chapter 22: `python -m bench.experiments.scaling` writes scaling.json, run by run, and goes on where it was stopped.

Four budgets, each spent on models of several widths. `--predict` fits the law to them and writes prediction.json: the shape of a run with ten times the
largest budget, and the loss that it is to reach. That file is committed before `--test` trains this run and writes scaling_test.json."""
import datetime
import json
import sys
from pathlib import Path
from statistics import fmean

import torch

from bench.experiments import keep, resume, small
from bench.runner import read
from llm_course.experiments import bootstrap_laws, fit_law, spend

BUDGETS = {5e9: (4, 8, 12, 16, 24), 1.5e10: (8, 12, 16, 24, 32), 4.5e10: (12, 16, 24, 32, 48), 1.35e11: (16, 24, 32, 48, 64)}   # and the widths for each
WIDER = 48, 64, 80, 96, 112, 128   # what the larger run may choose from: narrower ones take longer for as many operations
SEEDS = range(2)
HERE = Path(__file__)
PREDICTION, TEST = HERE.with_name("prediction.json"), HERE.with_name("scaling_test.json")


def rate(width: int) -> float:
    "The highest learning rate for a width; about that of chapter 15 at width 32, and of the ladder at width 128."
    return 0.02 * (32 / width) ** 0.5


def run(budget: float, width: int, seed: int) -> dict:
    "Spend a budget on a model of this width."
    step = small.operations(width)
    steps = round(budget / step)
    return {"parameters": step / 6 / (8 * small.LENGTH), "tokens": steps * 8 * small.LENGTH} | small.trained(width, steps, rate(width), seed)


def points() -> list[tuple[float, float, float]]:
    "Parameters, tokens, and the mean loss over seeds, of each cell."
    cells = {}
    for r in read(HERE.with_suffix(".json"))["runs"]: cells.setdefault((r["parameters"], r["tokens"]), []).append(r["nats"])
    return [(*cell, fmean(nats)) for cell, nats in cells.items()]


def predict() -> None:
    "Say what ten times the largest budget will reach, before anyone knows."
    found = points()
    law, budget = fit_law(found), 10 * max(BUDGETS)
    width = min(WIDER, key=lambda width: abs(small.operations(width) / 6 / (8 * small.LENGTH) / spend(law, budget)[0] - 1))
    parameters = small.operations(width) / 6 / (8 * small.LENGTH)
    told = sorted(other(parameters, budget / 6 / parameters) for other in bootstrap_laws(found, 50))
    low, high = told[round(.025 * len(told))], told[round(.975 * len(told)) - 1]
    keep(PREDICTION, {"what": "The loss that a run with ten times the largest fitted budget will reach: written before it was run.", "budget": budget, "width": width,
                      "steps": round(budget / small.operations(width)), "nats": round(law(parameters, budget / 6 / parameters), 4),
                      "interval": [round(low, 4), round(high, 4)], "law": law._asdict(), "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
    print(PREDICTION.read_text("utf-8"))


def test() -> None:
    "Run what was predicted."
    said = json.loads(PREDICTION.read_text("utf-8"))
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    keep(TEST, {"what": "The run that prediction.json speaks of.", "began": began} | run(said["budget"], said["width"], seed=0))
    print(TEST.read_text("utf-8"))


def main(words: list[str]) -> None:
    "Train on one thread, small budgets first."
    torch.set_num_threads(1)
    if words == ["--predict"]: return predict()
    if words == ["--test"]: return test()
    grid = [{"budget": budget, "width": width, "seed": seed} for seed in SEEDS for budget, widths in BUDGETS.items() for width in widths]
    if words: grid = grid[int(words[0])::int(words[1])]   # this of so many processes that share the work
    resume(__file__, f"Nats a character of {small.SCORED:,} characters that no run was trained on.", grid, run)


if __name__ == "__main__": main(sys.argv[1:])
