"""From nanoGPT's recipe to ours, one change at a time, on a part of the training split held out: `python -m bench.ladder --text FILE`.

Every rung has the time of the stand-in, so one with dearer steps takes fewer. `rungs` climb to our recipe; `others` change one thing about it
and are what did not help. `--entries bench/entries` runs nothing: it writes each of them, but nanoGPT's own, as an entry of the race."""
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated

from bench.machine import machine
from bench.nanogpt import MEANS, RECIPE, VOCAB, cut, run_side
from bench.runner import commit, merge, read
from llm_course.engine.commands import by_default, input_file, output_path, run_command

START = dict(num_layers=4, batch_size=12, iterations=1180, order="random", muon_lr=None, lr_max=1e-3, lr_min=1e-4, decay="cosine", weight_decay=0.1)
RUNGS = {   # what each changes about the one before it
    "the course's model": dict(START, vocab_size=256, iterations=1380),   # of bytes, which are the characters of an ASCII text
    "the course's model, and tokens for characters": dict(vocab_size=VOCAB, iterations=1180),
    "rate 0.001 → 0.006": dict(lr_max=6e-3, lr_min=6e-4),
    "rows dealt in epochs": dict(order="epochs"),
    "a straight line to zero": dict(decay="line", lr_min=0.),
    "decay 0.1 → 0.3": dict(weight_decay=0.3),
    "three layers, more steps": dict(num_layers=3, iterations=1600),
    "fewer and larger steps": dict(lr_max=1.2e-2, batch_size=24, iterations=780),
    "Muon, fewer and larger steps": dict(muon_lr=0.02, iterations=730),
}
OTHERS = {   # what each changes about our recipe
    "four layers, fewer steps": dict(num_layers=4, iterations=550),
    "one matrix for embedding and logits": dict(tie=True),
    "vocabulary of 512": dict(vocab_size=512, iterations=780),
    "contexts of 128": dict(max_seq_len=128, batch_size=12),
}


@dataclass(frozen=True)
class Config:
    "Climb from nanoGPT's recipe to ours, one change at a time.\n\nExample: python -m bench.ladder --text tinyshakespeare.txt --seeds 0 --only Muon"
    text: Annotated[Path | None, by_default("none; needed unless --entries is given")] = None   # An English text in UTF-8
    seeds: tuple[int, ...] = (0, 1, 2)      # A run of each rung for each
    threads: int = 2                        # CPU threads
    only: Annotated[tuple[str, ...], by_default("all")] = ()   # Rungs whose names contain one of these words
    resume: bool = False                    # Leave out the runs that the file has already
    output: Path = Path("bench/ladder.json")  # File that collects the results
    entries: Annotated[Path | None, by_default("none: run the rungs")] = None   # Only write the recipes, as entries of the race, into this folder

    def __post_init__(self):
        if self.text is None and self.entries is None: raise ValueError("--text is missing: the text to learn from")
        if not self.seeds or min(self.seeds) < 0: raise ValueError(f"--seeds must be some numbers that are not negative, but are {self.seeds}")
        if self.threads < 1: raise ValueError(f"--threads must be at least 1, but is {self.threads}")
        if self.only and not self.chosen: raise ValueError(f"--only {' '.join(self.only)} is in no name; there are: {'; '.join(rungs())}")

    @property
    def chosen(self): return [name for name in rungs() if not self.only or any(word in name for word in self.only)]


def rungs() -> dict[str, tuple[str, str, dict]]:
    "Each rung's kind, side, and the changes to our recipe that make it."
    found, changes = {"nanoGPT's recipe": ("rung", "peer", {})}, {}
    for name, more in RUNGS.items(): found[name] = "rung", "ours", (changes := changes | more)
    return found | {name: ("other", "ours", more) for name, more in OTHERS.items()}


def write_entries(folder: Path) -> None:
    "Make each recipe but nanoGPT's, with which every entry is compared, an entry of the race."
    for place, (name, (_, side, changes)) in enumerate(rungs().items()):
        if side == "peer": continue
        entry = folder/f"{place:02}-{re.sub('[^a-z0-9]+', '-', name.lower())}"
        entry.mkdir(parents=True, exist_ok=True)
        (entry/"recipe.json").write_text(json.dumps({"vocab_size": VOCAB} | RECIPE | changes, indent=1) + "\n", "utf-8", newline="\n")


def main(config: Config) -> None:
    "Run what was asked, and keep each result as soon as it is there."
    if config.entries is not None: return write_entries(config.entries)
    assert config.text is not None
    text, output = input_file(config.text, "--text"), output_path(config.output, "--output")
    read(output)
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder)/"text.txt"
        seen.write_text(cut(text)[0], "utf-8", newline="")
        for seed in config.seeds:
            for place, (name, (kind, side, changes)) in enumerate(rungs().items()):
                if name not in config.chosen: continue
                if config.resume and seed in [r["seed"] for r in read(output).get(name, {}).get("runs", [])]: continue
                run = run_side(side, seen, seed, config.threads, json.dumps(changes)) | {"cpu": machine("cpu")["cpu"]}   # seconds do not travel
                runs = [r for r in read(output).get(name, {}).get("runs", []) if r["seed"] != seed] + [run]
                means = {key: round(mean(r[key] for r in runs), 4) for key in MEANS}
                merge(output, name, {"place": place, "kind": kind, "changes": changes, **means, "runs": runs, "machine": machine("cpu"), "commit": commit()})
                print(f"{name}: {run}", flush=True)


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.ladder")
