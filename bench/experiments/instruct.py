"""A small model learns five skills from conversations (bench.experiments.skills), with the mask of chapter 25 and without, from three seeds. `python -m bench.experiments.instruct` writes instruct.json, a cell at a time, and goes on where it stopped."""
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch

from bench.experiments import keep
from bench.experiments.skills import MIXES, SKILLS, conversation, test
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.chat import MARKS
from llm_course.engine.muon import Muon, Together
from llm_course.instruct import Example, answer_logits, answers, as_example, batch_of, pack
from llm_course.optim import AdamW
from llm_course.schedule import linear_lr_scheduler
from llm_course.training import train_step
from llm_course.transformer import Transformer

SEEDS, ROW, ROWS, STEPS = 3, 256, 4, 3000
SHAPE = dict(vocab_size=260, max_seq_len=ROW, d_model=96, num_layers=4, num_heads=4, d_ff=256)
RATES = {"muon": 0.02, "adamw": 4e-3}
QUESTIONS = 400   # of each skill


def tokenizer() -> BpeTokenizer:
    "One id a byte, and the marks of a turn."
    return BpeTokenizer({i: bytes([i]) for i in range(256)}, [], MARKS)


def without_mask(example: Example) -> Example:
    "The same conversation; all of its words are to be learnt."
    return Example(example.ids, [True] * len(example.ids))


def batches(seed: int, masked: bool, mix: str) -> Iterator[torch.Tensor]:
    "New conversations for each step, which are a function of seed and step."
    words, step = tokenizer(), 0
    while True:
        draw, examples, room = random.Random(f"{seed} {step}"), [], ROW * ROWS
        while True:
            example = as_example(words, conversation(draw, mix))
            room -= len(example.ids) - 1
            if room < 0: break
            examples.append(example if masked else without_mask(example))
        packed = pack([len(e.ids) - 1 for e in examples], ROW)[:ROWS]
        yield batch_of([[examples[i] for i in row] for row in packed], ROW)
        step += 1


def train(seed: int, masked: bool, mix: str, steps: int = STEPS, show: int = 0) -> tuple[Transformer, float, list[float]]:
    "Train a model. Returns it, the processor seconds that it took, and every hundredth loss."
    torch.manual_seed(seed)
    model = Transformer(**SHAPE)
    inside = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is q for q in inside)]
    optimizer = Together(Muon(inside, lr=RATES["muon"], weight_decay=0.), AdamW(others, lr=RATES["adamw"], weight_decay=0.))
    first = [group["lr"] for group in optimizer.param_groups]
    scaler, losses, start = torch.amp.GradScaler("cpu", enabled=False), [], time.process_time()
    for step, batch in zip(range(1, steps + 1), batches(seed, masked, mix)):
        for group, rate in zip(optimizer.param_groups, first): group["lr"] = linear_lr_scheduler(step, steps // 50, steps, 0., rate)
        pair = batch, batch[1][batch[2].bool()]
        loss, _ = train_step(lambda b: answer_logits(model, b), optimizer, scaler, [pair], 1.)
        if step % 100 == 0: losses.append(round(float(loss), 4))
        if show and step % show == 0: print(step, f"{float(loss):.3f}", f"{time.process_time() - start:.0f} s", ask(model, 50), flush=True)
    return model.eval(), time.process_time() - start, losses


def ask(model: Transformer, n: int = QUESTIONS) -> dict[str, float]:
    "The share of a test's questions that a model answers exactly, for each skill."
    found = {}
    for skill in SKILLS:
        asked = test(skill, n)
        said = answers(model, tokenizer(), [[{"role": "user", "content": question}] for question, _ in asked], 16)
        found[skill] = sum(a == b for a, (_, b) in zip(said, asked)) / n
    return found


def main(*mixes: str) -> None:
    "Train and ask each cell that is still missing, on one thread."
    torch.set_num_threads(1)
    path = Path(__file__).with_suffix(".json")
    done = json.loads(path.read_text("utf-8"))["cells"] if path.is_file() else []
    for mix, seed, masked in product(mixes or MIXES, range(SEEDS), (True, False)):
        cell = {"mix": mix, "seed": seed, "masked": masked}
        if any(cell.items() <= other.items() for other in done): continue
        model, seconds, losses = train(seed, masked, mix, show=500)
        right = ask(model)
        done.append(cell | {"steps": STEPS, "parameters": sum(p.numel() for p in model.parameters()),
                     "processor_seconds": round(seconds, 1), "right": right, "losses": losses})
        print(done[-1], flush=True)
        keep(__file__, {"what": f"Share of {QUESTIONS} held-out questions of each skill, answered exactly.", "cells": done})


if __name__ == "__main__":
    main(*sys.argv[1:])
