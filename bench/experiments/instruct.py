"""A small model learns five skills from conversations (bench.experiments.skills), from three seeds: as chapter 25 has it, without the mask, without limits between the conversations of a row, and with other things changed.

`python -m bench.experiments.instruct` writes instruct.json, a run at a time, and goes on where it stopped; `… "no mask"` makes the runs of one change alone, `… nothing 2` that of one seed. One thread; seconds are the processor's."""
import random
import sys
import time
from collections.abc import Iterator

import torch

from bench.experiments import resume
from bench.experiments.skills import SKILLS, conversation, test
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.chat import MARKS
from llm_course.engine.muon import Muon, Together
from llm_course.instruct import Example, answer_logits, answers, as_example, batch_of, pack_conversations
from llm_course.optim import AdamW
from llm_course.training import train_step
from llm_course.transformer import Transformer

SEEDS, ROW, ROWS, STEPS, MIX = 3, 128, 8, 1500, "sums and counting"
RATE = 0.01   # Muon's highest learning rate; AdamW, for embeddings and norms, has a fifth of it
SHAPE = dict(vocab_size=260, max_seq_len=ROW, d_model=96, num_layers=4, num_heads=4, d_ff=256)
CHANGES = "nothing", "no mask", "no limits", "two matrices", "three questions"
QUESTIONS = 400   # of each skill


def tokenizer() -> BpeTokenizer:
    "One id a byte, and the marks of a turn."
    return BpeTokenizer({i: bytes([i]) for i in range(256)}, [], MARKS)


def without_limits(batch: torch.Tensor) -> torch.Tensor:
    "The same rows, each read as if it were a single conversation."
    batch[3] = torch.arange(batch.shape[-1])
    batch[4].clamp_(max=0)   # padding keeps its -1
    return batch


def batches(seed: int, change: str, mix: str) -> Iterator[torch.Tensor]:
    "New conversations for each step, which are a function of seed and step."
    words, step = tokenizer(), 0
    while True:
        draw, examples, room = random.Random(f"{seed} {step}"), [], ROW * ROWS
        while True:
            example = as_example(words, conversation(draw, mix, 3 if change == "three questions" else 1))
            if change == "no mask": example = Example(example.ids, [True] * len(example.ids))
            room -= len(example.ids) - 1
            if room < 0: break
            examples.append(example)
        packed = pack_conversations([len(example.ids) - 1 for example in examples], ROW)[:ROWS]
        batch = batch_of([[examples[i] for i in row] for row in packed], ROW)
        yield without_limits(batch) if change == "no limits" else batch
        step += 1


def rate_at(step: int, steps: int) -> float:
    "The share of the highest learning rate: it rises for 50 steps, and falls from three tenths of the run on."
    return min(1., step / 50, (steps - step) / (0.7 * steps))


def train(seed: int, change: str, mix: str = MIX, steps: int = STEPS, rate: float = RATE, show: int = 0) -> tuple[Transformer, float, list[float]]:
    "Train a model. Returns it, the processor seconds that it took, and every hundredth loss."
    torch.manual_seed(seed)
    model = Transformer(**SHAPE, tie=change != "two matrices")
    inside = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is q for q in inside)]
    optimizer = Together(Muon(inside, lr=rate, weight_decay=0.), AdamW(others, lr=rate / 5, weight_decay=0.))
    highest = [group["lr"] for group in optimizer.param_groups]
    scaler, losses, start = torch.amp.GradScaler("cpu", enabled=False), [], time.process_time()
    for step, batch in zip(range(1, steps + 1), batches(seed, change, mix)):
        for group, most in zip(optimizer.param_groups, highest): group["lr"] = most * rate_at(step, steps)
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
        said = answers(model, tokenizer(), [[{"role": "user", "content": question}] for question, _ in asked], 10)
        found[skill] = sum(a == b for a, (_, b) in zip(said, asked)) / n
    return found


def run(seed: int, change: str, mix: str, steps: int, rate: float) -> dict:
    "One run of the grid."
    model, seconds, losses = train(seed, change, mix, steps, rate, show=500)
    return {"parameters": sum(p.numel() for p in model.parameters()), "processor_seconds": round(seconds, 1), "right": ask(model), "losses": losses}


def main(*names: str) -> None:
    "Make the runs that are still missing, or those of some changes and seeds."
    torch.set_num_threads(1)
    changes, seeds = [name for name in names if not name.isdigit()], [int(name) for name in names if name.isdigit()]
    grid = [{"seed": seed, "change": change, "mix": MIX, "steps": STEPS, "rate": RATE} for change in changes or CHANGES for seed in seeds or range(SEEDS)]
    resume(__file__, f"Share of {QUESTIONS} held-out questions of each skill, answered exactly.", grid, run)


if __name__ == "__main__": main(*sys.argv[1:])
