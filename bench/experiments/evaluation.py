"""Accuracy against size, on plays that none of our models was trained on: `python -m bench.experiments.evaluation` writes evaluation.json.

Models of two widths are trained by the recipe of `make demo`; they and the demo model are asked the questions of chapter 24 about the plays that the recipe holds out. SmolLM2, which was
trained on the web, is asked the same; it has read these plays, or parts of them, we do not know how often. `--only NAME` keeps the others' results."""
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench.experiments import keep
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
COUNT, FEWER = 200, 60   # Questions of each task; SmolLM2 takes seconds for one, and is asked the first of them


def texts(folder: Path) -> None:
    "The split of `make demo`, its tokenizer and its ids."
    data.main(["--fetch", "shakespeare", "--output", str(folder)])
    train_tokenizer(["--corpus", str(folder/"train.txt"), "--vocab_size", "1024", "--output", str(folder/"tokenizer.json")])
    data.main(["--tokenizer", str(folder/"tokenizer.json"), "--corpus", str(folder/"train.txt"), "--val_corpus", str(folder/"val.txt"), "--output", str(folder)])


def trained(folder: Path, width: int):
    "A model of this width, by the demo model's recipe."
    config = parse(training.TrainConfig, [*RECIPE.split(), "--train_data", str(folder/"train.bin"), "--val_data", str(folder/"val.bin"), "--device", "cpu",
                                          "--vocab_size", "1024", "--output", str(folder/f"run{width}")])
    training.train(replace(config, d_model=width, num_heads=max(2, width // 32), d_ff=width * 11 // 4))
    return load_model(folder/f"run{width}"/"checkpoint.pt", "cpu")


def asked(model, tokenizer, plays: str, count: int = COUNT) -> dict:
    "What a model gets right."
    tasks = (Task("speaker", tuple(speaker(COUNT, text=plays)[:count]), "unconditioned"), Task("cloze", tuple(cloze(COUNT, text=plays)[:count])),
             Task("agreement", tuple(agreement(COUNT)[:count]), "byte"))
    right = {}
    for task in tasks:
        result = evaluate(model, tokenizer, task)
        right[task.name] = [sum(result.right), len(result.right)]
        print(task.name, *right[task.name], flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "right": right}


def main(names: list[str]) -> None:
    "Train and ask, smallest first."
    torch.set_num_threads(1)
    old = Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts(folder)
        plays, tokenizer = (folder/"val.txt").read_text("utf-8"), BpeTokenizer.load(folder/"tokenizer.json")
        makers = {f"width {width}": lambda width=width: (trained(folder, width), tokenizer) for width in WIDTHS}
        makers["demo"] = lambda: load_demo("cpu")
        makers["SmolLM2"] = lambda: load_pretrained("smollm2-135m", "cpu", max_seq_len=2048)
        for name, make in makers.items():
            if names and name not in names: continue
            print(name, flush=True)
            told = asked(*make(), plays, FEWER if name == "SmolLM2" else COUNT)
            found = read(old).get("models", {}) | {name: told}   # another process may have added to it
            keep(__file__, {"what": "Questions that each model gets right, of how many, about plays that the widths were not trained on.", "models": found})


if __name__ == "__main__": main([name for name in sys.argv[1:] if name != "--only"])
