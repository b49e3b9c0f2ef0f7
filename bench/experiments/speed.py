"""Chapter 20's ladder by turns, and two rungs more: `python -m bench.experiments.speed` or `… cuda`; speed.json has a column for each kind of processor.

On a CPU a step's time is what one thread of this process had of the processor, so that other work disturbs little; on a GPU it is the clock's. The fastest step counts."""
import sys
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import nn

from bench.experiments import cells, keep
from bench.machine import kind
from bench.runner import read

ROUNDS, ROWS = 9, {"cpu": 4, "cuda": 256}


class InHalf(nn.Module):
    "A model under autocast."
    def __init__(self, device, model):
        super().__init__()
        self.model, self.device = model, device

    def forward(self, ids):
        with torch.autocast(self.device, torch.bfloat16): return self.model(ids)


def measure(device: str) -> dict:
    "Tokens a second on each rung, and how far its losses are from the first's."
    page = cells("20_speed", "imports-page", "plain-model", "make-step", "rungs")
    page["rows"] = ROWS[device]
    rungs = page["rungs"] | {"compiled, too": {"wrap": torch.compile}, "bfloat16, too": {"wrap": lambda model: torch.compile(InHalf(device, model))}}
    with torch.device(device): steps = page["climb"](rungs)
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    now = process_time if device == "cpu" else perf_counter
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = now()
            step()   # returns a number, so a GPU has been waited for
            best[name] = min(best[name], now() - began)
    tokens = page["rows"] * page["config"].max_seq_len
    off = {name: max(abs(a / b - 1) for a, b in zip(found, losses["the formulas"])) for name, found in losses.items()}
    return {"device": device, "rows": page["rows"], "rungs": {name: {"tokens_per_second": tokens / best[name], "off": off[name]} for name in steps}}


def main(device: str = "cpu") -> None:
    "Measure this kind of processor, and keep the others' columns."
    torch.set_num_threads(1)
    found = read(Path(__file__).with_suffix(".json")).get("kinds", {}) | {kind(device): measure(device)}
    for name, rung in found[kind(device)]["rungs"].items(): print(name, rung)
    keep(__file__, {"what": "Tokens a second on each rung of chapter 20's ladder, and how far its losses are from those of the formulas, by kind of processor.", "kinds": found})


if __name__ == "__main__": main(*sys.argv[1:])
