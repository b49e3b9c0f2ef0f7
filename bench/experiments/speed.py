"""Chapter 20's ladder by turns, and two rungs more: `python -m bench.experiments.speed` or `… cuda`; speed.json has a column for each kind of processor.
On a CPU also how long products in half precision take, as it is and as one without AVX-512 would compute them, which it imitates.

On a CPU a step's time is what one thread of this process had of the processor, so that other work disturbs little; on a GPU it is the clock's. The fastest step counts;
how much longer the median one took is kept as well."""
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import torch
from torch import nn

from bench.experiments import about, cells, keep
from bench.machine import kind
from bench.runner import read

WITHOUT_AVX512 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
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
    times = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = now()
            step()   # returns a number, so a GPU has been waited for
            times[name].append(now() - began)
    tokens = page["rows"] * page["config"].max_seq_len
    off = {name: max(abs(a / b - 1) for a, b in zip(found, losses["the formulas"])) for name, found in losses.items()}
    rungs = {name: {"tokens_per_second": tokens / min(times[name]), "median_over_best": median(times[name]) / min(times[name]), "off": off[name]} for name in steps}
    return {"device": device, "rows": page["rows"], "rungs": rungs}


def half() -> dict[str, float]:
    "The time of a product in half precision, as a multiple of that in float32."
    times = {}
    for _ in range(ROUNDS):
        for dtype in torch.float32, torch.bfloat16, torch.float16:
            a = torch.ones(512, 512, dtype=dtype)
            began = process_time()
            torch.mm(a, a)
            times.setdefault(dtype, []).append(process_time() - began)
    return {name: min(times[getattr(torch, name)]) / min(times[torch.float32]) for name in ("bfloat16", "float16")}


def halves() -> dict[str, dict[str, float]]:
    "The same on this processor, and without AVX-512, in a process of its own."
    words = [sys.executable, "-m", "bench.experiments.speed", "half"]
    return {"as it is": half(), "without AVX-512": json.loads(subprocess.run(words, env=os.environ | WITHOUT_AVX512, capture_output=True, check=True).stdout)}


def main(device: str = "cpu") -> None:
    "Measure this kind of processor, and keep the others' columns."
    torch.set_num_threads(1)
    if device == "half": return print(json.dumps(half()))
    one = measure(device) | ({"half": halves()} if device == "cpu" else {}) | about()
    found = read(Path(__file__).with_suffix(".json")).get("kinds", {}) | {kind(device): one}
    for name, rung in found[kind(device)]["rungs"].items(): print(name, rung)
    keep(__file__, {"what": "Tokens a second on each rung of chapter 20's ladder, and how far its losses are from those of the formulas, by kind of processor.", "kinds": found})


if __name__ == "__main__": main(*sys.argv[1:])
