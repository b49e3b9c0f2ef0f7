"""Record runs, sound ones and ones broken on purpose, for the chapter on the health of a run: `python -m bench.reference`.

The thresholds of `diagnose` were set on the runs called "tuning" alone: the topics of Python's manual and the sources of its library, by AdamW.
Those called "held out" were made after the thresholds were fixed, on texts of other kinds, by other shapes, optimisers and schedules. (One was moved afterwards, when these could be seen: that of the rate, from 0.016 to 0.017. No held-out run lies between.) Their plays are the course's corpus.
Runs called "warm-up" have none; their twins with one are there, too."""
import gzip
import json
import random
import tempfile
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm
from tyro.conf import Positional

from bench.runner import root
from llm_course import training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.data import fetch, get_batch
from llm_course.engine import bookkeeping, diary, mixture, run_config
from llm_course.engine.attention_kernel import fused_attention
from llm_course.engine.commands import by_default, run_command, whole_file
from llm_course.engine.optimizers import CheckedOptimizer
from llm_course.training import TrainConfig
from llm_course.transformer import Transformer

FAULTS = ["none", "no causal mask", "labels not shifted", "labels shifted twice", "rate x 100", "tokenizer mismatch"]
SMALL = dict(max_seq_len=32, d_model=48, num_layers=2, num_heads=4, d_ff=128, batch_size=12, iterations=250)
DEEP = dict(max_seq_len=32, d_model=48, num_layers=6, num_heads=4, d_ff=128, batch_size=8, iterations=200)
WIDE = dict(max_seq_len=48, d_model=80, num_layers=3, num_heads=4, d_ff=208, batch_size=8, iterations=250)
SHORT = dict(max_seq_len=24, d_model=64, num_layers=3, num_heads=2, d_ff=160, batch_size=16, iterations=200)
POST = dict(DEEP, num_layers=4, post_norm=True)          # norms behind the sums, which is known to need a warm-up
POST_WIDE = dict(WIDE, num_layers=4, post_norm=True)
FLAT = dict(max_seq_len=64, d_model=96, num_layers=1, num_heads=3, d_ff=256, batch_size=6, iterations=200)
TALL = dict(max_seq_len=32, d_model=32, num_layers=8, num_heads=2, d_ff=88, batch_size=8, iterations=220)
COMMON = dict(log_interval=10, val_interval=25, val_batches=4, checkpoint_interval=10**6, device="cpu", precision="float32", live_plot=False)


@dataclass(frozen=True)
class Plan:
    "One run to be recorded."
    part: str     # tuning, held out or band
    text: str     # manual or library
    vocab: int    # 256: bytes
    shape: dict   # Flags of training
    fault: str    # One of FAULTS
    seed: int
    rate: float   # lr_max
    more: dict    # Further flags

    @property
    def name(self):
        extra = [f"{k} {v}" for k, v in self.more.items()] + ["post-norm"] * self.shape.get("post_norm", False)
        return ", ".join([f"{self.text} {self.vocab}", f"{self.shape['num_layers']} blocks of {self.shape['d_model']}", f"rate {self.rate:g}", self.fault, f"seed {self.seed}", *extra])


def plans():
    "All runs, in order."
    def each(part, text, vocab, shape, seeds, rate, faults=FAULTS, **more):
        return [Plan(part, text, vocab, shape, fault, seed, rate, more) for fault in faults for seed in seeds]
    def unseen(text, vocab, shape, seed, rate, **more):
        return [*each("held out", text, vocab, shape, (seed,), rate, **more), *each("held out", text, vocab, shape, (seed + 1,), rate, ["none"], **more)]
    sound, cold = ["none"], ["no warm-up"]
    muon, sgd, line = dict(muon_lr=.02), dict(sgd=.5), dict(decay="line", lr_min=0.)
    return [
        *each("tuning", "manual", 512, SMALL, (0, 1), 3e-3), *each("tuning", "manual", 256, DEEP, (0, 1), 1e-2),
        *each("tuning", "manual", 512, SMALL, (0,), 3e-4, sound), *each("tuning", "manual", 512, SMALL, (0,), 3e-2, sound),
        *each("tuning", "library", 512, WIDE, (10,), 5e-3), *each("tuning", "library", 256, SHORT, (12,), 1e-2),
        *each("tuning", "library", 512, WIDE, (11,), 5e-3, sound), *each("tuning", "library", 256, SHORT, (13,), 1e-2, sound),
        *each("tuning", "manual", 400, DEEP, (14,), 2e-3),
        *each("tuning", "library", 512, SMALL, (15,), 5e-4, sound), *each("tuning", "library", 512, WIDE, (16,), 2e-2, sound),
        *each("tuning", "library", 256, SMALL, (17,), 3e-3, sound, weight_decay=0.), *each("tuning", "manual", 400, SHORT, (18,), 3e-3, sound, beta2=.999),
        *each("tuning", "manual", 400, WIDE, (19,), 3e-3, sound, tie=True),
        *unseen("plays", 512, FLAT, 40, 4e-3), *unseen("plays", 256, TALL, 42, 6e-3, **muon), *unseen("characters", 400, SHORT, 44, 8e-3, **line),
        *unseen("plays", 400, SMALL, 46, 1e-3, **sgd), *unseen("sums", 256, DEEP, 48, 5e-3, beta1=.8), *unseen("characters", 256, WIDE, 50, 3e-3, tie=True, **muon),
        *each("warm-up", "manual", 512, SMALL, (0, 1), 3e-3, cold), *each("warm-up", "manual", 256, DEEP, (0, 1), 1e-2, cold),
        *each("warm-up", "library", 512, WIDE, (10, 11), 5e-3, cold), *each("warm-up", "manual", 256, POST, (0, 1), 3e-3, sound + cold),
        *each("warm-up", "library", 512, POST_WIDE, (30, 31), 2e-3, sound + cold),
        *each("band", "manual", 512, SMALL, range(20, 28), 3e-3, sound),
    ]


@cache
def text(name):
    "A text of some 400,000 letters."
    if name == "library": return "".join(path.read_text("utf-8", "replace") for path in sorted(Path(json.__file__).parents[1].glob("[a-d]*.py")))[:400_000]
    if name == "manual": return "\n".join(topics.values())[:400_000]
    if name == "plays": return Path(fetch("shakespeare")).read_text("utf-8")[:400_000]
    dice = random.Random(0)
    if name == "sums": return "".join(f"{a}+{b}={a + b}\n" for a, b in ((dice.randrange(1000), dice.randrange(1000)) for _ in range(32_000)))[:400_000]
    names = [found for number in range(0x3000) if (found := unicodedata.name(chr(number), ""))]   # "characters"
    dice.shuffle(names)
    return "\n".join(names)[:400_000]


def foreign(name): return "library" if name == "manual" else "manual"   # the text that a foreign tokenizer is learnt from


@cache
def ids_of(text_name, split, vocab, tokenizer_of):
    "A split of a text as ids: bytes, bytes under other numbers, or by a tokenizer learnt from one of the texts."
    whole = text(text_name)
    part = whole[: len(whole) * 9 // 10] if split == "train" else whole[len(whole) * 9 // 10 :]
    if vocab > 256: return np.array(tokenizer(tokenizer_of, vocab).encode(part), dtype=np.uint16)
    numbers = np.arange(256) if tokenizer_of == text_name else np.random.default_rng(0).permutation(256)
    return numbers[np.frombuffer(part.encode(), dtype=np.uint8)].astype(np.uint16)


@cache
def tokenizer(text_name, vocab): return BpeTokenizer.train([text(text_name)], vocab)


def shifted(get, shift):
    "A `get_batch` whose targets lie `shift` places behind the inputs."
    def wrong(dataset, batch_size, max_seq_len, *rest, **more):
        inputs, targets = get(dataset, batch_size, max_seq_len + 1, *rest, **more)
        return inputs[:, :-1], (inputs[:, :-1] if shift == 0 else targets[:, 1:])
    return wrong


def post_norm(*args, **kwargs):
    "A model whose norms stand behind the sums, at full strength, as in the first Transformer."
    model = Transformer(*args, **kwargs)
    for block in model.blocks:
        for last in block.attention.output_proj, block.ffn.w2: last.weight.data *= (2 * len(model.blocks))**.5
        def forward(x, token_positions=None, cache=None, block=block):
            x = block.attention_norm(x + block.attention(x, token_positions, cache))
            return block.ffn_norm(x + block.ffn(x))
        block.forward = forward
    return model


def unmasked(*args, **kwargs):
    "A model that may look ahead."
    model = Transformer(*args, **kwargs)
    for block in model.blocks: block.attention.attend = lambda q, k, v, mask=None, causal=False, **limits: fused_attention(q, k, v, mask, **limits)
    return model


class Momentum(CheckedOptimizer):
    "Gradient descent with momentum: an optimiser whose steps are not scale-free."
    own = ()

    def __init__(self, params, lr): super().__init__(params, dict(lr=lr))

    def update(self, params, group):
        for p in params:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            p.sub_(mean.mul_(.9).add_(p.grad), alpha=group["lr"])


@contextmanager
def broken(fault, config, post, sgd):
    "The flags, changed, and the loop, broken."
    patches = {"no causal mask": {"Transformer": unmasked}, "labels not shifted": {"get_batch": shifted(get_batch, 0)},
               "labels shifted twice": {"get_batch": shifted(get_batch, 2)}}
    changes = {"rate x 100": {"lr_max": 100 * config.lr_max, "muon_lr": config.muon_lr and 100 * config.muon_lr}, "no warm-up": {"warmup_iters": 0}}
    others = {"optimizer_for": lambda model, config: Momentum(model.parameters(), config.lr_max)} if sgd else {}
    with ExitStack() as stack:
        for name, other in ({"Transformer": post_norm if post else Transformer} | others | patches.get(fault, {})).items():
            for module in training, bookkeeping, mixture, run_config:   # wherever the loop takes it from
                if hasattr(module, name): stack.enter_context(patch.object(module, name, other))
        yield replace(config, **changes.get(fault, {}))


def record(plan):
    "Make a run, and keep its history."
    torch.set_num_threads(1)
    shape, more, other = dict(plan.shape), dict(plan.more), foreign(plan.text) if plan.fault == "tokenizer mismatch" else plan.text
    post, sgd = shape.pop("post_norm", False), more.pop("sgd", None)
    with tempfile.TemporaryDirectory() as folder, patch.object(diary, "tqdm", partial(diary.tqdm, disable=True)):
        folder = Path(folder)
        for split, of in ("train", plan.text), ("val", other): ids_of(plan.text, split, plan.vocab, of).tofile(folder/f"{split}.bin")
        asked = TrainConfig(train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"run", vocab_size=plan.vocab,
                            **{**shape, **COMMON, **more}, seed=plan.seed, lr_max=sgd or plan.rate, warmup_iters=plan.shape["iterations"]//10)
        try:
            with broken(plan.fault, asked, post, sgd) as config: history = training.train(config).history
        except ValueError: history = [json.loads(line) for line in (folder/"run/metrics.jsonl").read_text("utf-8").splitlines()]   # no number any more
    skipped = {"tokens_per_second", "seconds_per_step", "memory_mib", "whole_val_loss"}
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items() if k not in skipped} for line in history]


@dataclass(frozen=True)
class Config:
    "Record the runs that the chapter on health reads, sound ones and broken ones.\n\nExample: python -m bench.reference runs.json.gz --workers 2"
    output: Annotated[Path, Positional, by_default("where the chapter looks")] = root/"llm_course"/"demo"/"traces.json.gz"   # File to keep them in
    workers: int = 1       # Processes, each with a run
    resume: bool = False   # Leave out the runs that the file has already


def main(config: Config) -> None:
    "Make the runs, and keep each as soon as it is there."
    runs = json.loads(gzip.decompress(config.output.read_bytes())) if config.resume and config.output.exists() else []
    todo = [plan for plan in plans() if plan.name not in {run["name"] for run in runs}]
    with ProcessPoolExecutor(config.workers, get_context("spawn")) as pool:
        for p, history in zip(todo, tqdm(pool.map(record, todo, chunksize=1), "runs", len(todo))):
            runs.append({"name": p.name, "part": p.part, "fault": p.fault, "vocab_size": p.vocab, "seed": p.seed, "history": history})
            with whole_file(config.output) as file: file.write(gzip.compress(json.dumps(runs).encode(), mtime=0))


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.reference")
