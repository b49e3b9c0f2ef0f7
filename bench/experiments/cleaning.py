"""What cleaning a text gains, for the page on what is worth keeping: models of one shape read raw, deduplicated or filtered text, equally many bytes each, from three seeds; bits per byte are counted on plays that none has read.

The raw text is Shakespeare's plays in scenes, some of them copied with small changes, the licences and sources of all installed packages, and planted junk. `python -m bench.experiments.cleaning` writes cleaning.json, run by run, and goes on where it was stopped."""
import math
import random
import re
from functools import cache
from importlib.metadata import distributions

import numpy as np
import torch

from bench.experiments import resume
from llm_course.data import get_batch, windows
from llm_course.engine.cleaning import first_copies, first_of_similar, gopher_faults, shared_ngrams, word_ngrams
from llm_course.engine.corpora import end_of_text, fetch
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.schedule import cos_lr_scheduler
from llm_course.transformer import Transformer

STEPS, ROWS, ROW, RATE = 800, 8, 256, 3e-3   # some three minutes of one processor for each run
SHAPE = dict(vocab_size=257, max_seq_len=ROW, d_model=128, num_layers=4, num_heads=4, d_ff=344)
HELD_OUT, SCENE, MOST = 2, 3000, 2_000_000   # plays to measure on, characters of a scene, bytes of each kind of package text
GRID = [{"text": text, "seed": seed} for seed in range(3) for text in ("raw", "deduplicated", "filtered")]


def package_texts(pattern: str) -> list[str]:
    "Files of installed packages, up to a sum of bytes, in an order that does not depend on the system."
    found, size = [], 0
    for package in sorted(distributions(), key=lambda package: package.metadata["Name"].lower()):
        for name in sorted(package.files or [], key=str):
            path = name.locate()
            if not re.search(pattern, name.as_posix(), re.I) or not path.is_file(): continue
            text = path.read_text("utf-8", errors="replace")
            size += len(text.encode())
            if size > MOST: return found
            found.append(text)
    return found


def changed(scene: str, draw: random.Random) -> str:
    "A near copy: one word in two hundred is another."
    words = scene.split(" ")
    for i in range(len(words)):
        if draw.random() < 1/200: words[i] = draw.choice(words)
    return " ".join(words)


@cache
def texts() -> tuple[dict[str, list[str]], list[str]]:
    "The documents of each kind of text, and the plays that are held out."
    plays = [play for play in fetch("shakespeare").read_text("utf-8").split(end_of_text) if play.strip()]
    train, held_out = plays[:-HELD_OUT], plays[-HELD_OUT:]
    scenes = [play[i : i + SCENE] for play in train for i in range(0, len(play), SCENE)][::4]
    draw = random.Random(0)
    copies = [changed(scene, draw) for scene in scenes[::10] for _ in range(20)]
    numbers = [" ".join(str(draw.randrange(10**6)) for _ in range(400)) for _ in range(300)]
    advertisements = ["buy " + " ".join(draw.choices(("cheap", "best", "shoes", "price", "now", "sale"), k=500)) for _ in range(300)]
    raw = [*scenes, *copies, *package_texts(r"/licen[cs]e[^/]*$"), *package_texts(r"\.py$"), *numbers, *advertisements]
    known = word_ngrams(" ".join(held_out), 13)
    raw = [text for text in raw if not shared_ngrams(text, known)]
    single = [raw[i] for i in first_copies(raw)]
    deduplicated = [single[i] for i in first_of_similar(single)]
    return {"raw": raw, "deduplicated": deduplicated, "filtered": [text for text in deduplicated if not gopher_faults(text)]}, held_out


def ids(documents: list[str]) -> np.ndarray:
    "The bytes of the documents, each with 256 behind it."
    return np.concatenate([np.array([*text.encode(), 256], np.uint16) for text in documents])


def run(text: str, seed: int) -> dict:
    "Train a model on one kind of text; count the bits per byte of the plays held out, and what the text was."
    kinds, held_out = texts()
    dataset, unread = ids(kinds[text]), ids(held_out)
    torch.manual_seed(seed)
    model = Transformer(**SHAPE)
    optimizer = AdamW(model.parameters(), betas=(.9, .95), weight_decay=.1)
    for i in range(STEPS):
        for group in optimizer.param_groups: group["lr"] = cos_lr_scheduler(i + 1, STEPS // 20, STEPS, RATE / 10, RATE)
        inputs, targets = get_batch(dataset, ROWS, ROW, seed=seed, iteration=i)
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
    nats, count = 0., 0
    with torch.no_grad():
        for inputs, targets in windows(unread, ROWS, ROW):
            nats += cross_entropy(model(inputs), targets).item() * targets.numel()
            count += targets.numel()
    return {"documents": len(kinds[text]), "bytes": len(dataset), "bytes_read": STEPS * ROWS * ROW, "bits_per_byte": round(nats / count / math.log(2), 4)}


def main() -> None:
    "Make the runs that are missing, on one thread."
    torch.set_num_threads(1)
    resume(__file__, f"Bits per byte of {HELD_OUT} held-out plays after {STEPS} steps of {ROWS} rows of {ROW} bytes.", GRID, run)


if __name__ == "__main__": main()
