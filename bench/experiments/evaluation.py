"""Accuracy against size, on plays that none of our models was trained on: `python -m bench.experiments.evaluation` writes evaluation.json.

Models of two widths are trained by the recipe of `make demo`, and one by the recipe that won the race against nanoGPT's (bench/nanogpt.py), on the same 34 plays; they and the demo model are
asked the questions of chapter 24 about the four plays that are held out. SmolLM2, which was trained on the web, is asked the same; it has read these plays, or parts of them, we do not know
how often. `--only NAME` keeps the others' results."""
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench.experiments import keep
from bench.nanogpt import RECIPE as RECORD
from bench.runner import read
from llm_course import data, training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.bpe_tokenizer import main as train_tokenizer
from llm_course.checkpoint import load_model
from llm_course.engine.commands import RECIPE, parse
from llm_course.engine.tasks import Task, agreement, cloze, speaker
from llm_course.evaluation import evaluate
from llm_course.generating import load_demo
from llm_course.pretrained import load_pretrained

WIDTHS = 16, 32   # the demo model has 128
COUNT, FEWER = 200, 100   # Questions of each task; SmolLM2 is slower, and is asked the first of them


def prepare(folder: Path) -> None:
    "The tokenizer of `make demo`, and the ids of its texts."
    train_tokenizer(["--corpus", str(folder/"train.txt"), "--vocab_size", "1024", "--output", str(folder/"tokenizer.json")])
    data.main(["--tokenizer", str(folder/"tokenizer.json"), "--corpus", str(folder/"train.txt"), "--val_corpus", str(folder/"val.txt"), "--output", str(folder)])


def trained(folder: Path, name: str, **changes):
    "A model by the demo model's recipe, with changes, and its tokenizer."
    if not (folder/"train.bin").exists(): prepare(folder)
    config = parse(training.TrainConfig, [*RECIPE.split(), "--train_data", str(folder/"train.bin"), "--val_data", str(folder/"val.bin"), "--device", "cpu",
                                          "--vocab_size", "1024", "--output", str(folder/name)])
    training.train(replace(config, **changes))
    return load_model(folder/name/"checkpoint.pt", "cpu"), BpeTokenizer.load(folder/"tokenizer.json")


def asked(model, tokenizer, plays: str, count: int = COUNT) -> dict:
    "What a model gets right."
    tasks = (Task("speaker", tuple(speaker(COUNT, text=plays)[:count]), "unconditioned"), Task("cloze", tuple(cloze(COUNT, text=plays)[:count])),
             Task("agreement", tuple(agreement(COUNT)[:count]), "byte"))
    right = {}
    for task in tasks:
        result = evaluate(model, tokenizer, task)
        right[task.name] = [sum(result.right), len(result.right)]
        print(task.name, *right[task.name], flush=True)
    return {"parameters": sum(p.numel() for p in model.parameters()), "right": right}


def main(names: list[str]) -> None:
    "Train and ask, smallest first."
    torch.set_num_threads(1)
    old = Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data.main(["--fetch", "shakespeare", "--output", str(folder)])   # the split of `make demo`
        plays = (folder/"val.txt").read_text("utf-8")
        shapes = {f"width {width}": dict(d_model=width, num_heads=max(2, width // 32), d_ff=width * 11 // 4) for width in WIDTHS} | {"record": RECORD}
        makers = {name: lambda name=name: trained(folder, name, **shapes[name]) for name in shapes}
        makers["demo"] = lambda: load_demo("cpu")
        makers["SmolLM2"] = lambda: load_pretrained("smollm2-135m", "cpu", max_seq_len=2048)
        for name, make in makers.items():
            if names and name not in names: continue
            print(name, flush=True)
            told = asked(*make(), plays, FEWER if name == "SmolLM2" else COUNT)
            found = read(old).get("models", {}) | {name: told}   # another process may have added to it
            keep(__file__, {"what": "Questions that each model gets right, of how many, about four plays that none but SmolLM2 was trained on.", "models": found})


if __name__ == "__main__": main([name for name in sys.argv[1:] if name != "--only"])
