"""Record runs, sound ones and ones broken on purpose, for the chapter on the health of a run: `python -m bench.reference`.

The thresholds of `diagnose` were set on the runs called "tuning" alone. Those called "held out" have other texts, sizes and seeds.
Everything is made from what every Python carries with it: the topics of its manual, and the sources of its library."""
import gzip
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
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
from llm_course.engine import diary
from llm_course.engine.attention_kernel import fused_attention
from llm_course.engine.commands import by_default, run_command, whole_file
from llm_course.training import TrainConfig
from llm_course.transformer import Transformer

FAULTS = ["none", "no causal mask", "labels not shifted", "labels shifted twice", "rate x 100", "no warm-up", "tokenizer mismatch"]
SMALL = dict(max_seq_len=32, d_model=48, num_layers=2, num_heads=4, d_ff=128, batch_size=12, iterations=250)
DEEP = dict(max_seq_len=32, d_model=48, num_layers=6, num_heads=4, d_ff=128, batch_size=8, iterations=200)
WIDE = dict(max_seq_len=48, d_model=80, num_layers=3, num_heads=4, d_ff=208, batch_size=8, iterations=250)
SHORT = dict(max_seq_len=24, d_model=64, num_layers=3, num_heads=2, d_ff=160, batch_size=16, iterations=200)
POST = dict(DEEP, num_layers=4, post_norm=True)          # norms behind the sums, which is known to need a warm-up
POST_WIDE = dict(WIDE, num_layers=4, post_norm=True)
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
    sound, cold = ["none"], ["none", "no warm-up"]
    return [
        *each("tuning", "manual", 512, SMALL, (0, 1), 3e-3), *each("tuning", "manual", 256, DEEP, (0, 1), 1e-2),
        *each("tuning", "manual", 512, SMALL, (0,), 3e-4, sound), *each("tuning", "manual", 512, SMALL, (0,), 3e-2, sound),
        *each("tuning", "manual", 256, POST, (0, 1), 3e-3, cold),
        *each("held out", "library", 512, WIDE, (10, 11), 5e-3), *each("held out", "library", 256, SHORT, (12, 13), 1e-2),
        *each("held out", "manual", 400, DEEP, (14,), 2e-3),
        *each("held out", "library", 512, SMALL, (15,), 5e-4, sound), *each("held out", "library", 512, WIDE, (16,), 2e-2, sound),
        *each("held out", "library", 256, SMALL, (17,), 3e-3, sound, weight_decay=0.), *each("held out", "manual", 400, SHORT, (18,), 3e-3, sound, beta2=.999),
        *each("held out", "manual", 400, WIDE, (19,), 3e-3, sound, tie=True),
        *each("held out", "library", 512, POST_WIDE, (30, 31), 2e-3, cold),
        *each("band", "manual", 512, SMALL, range(20, 28), 3e-3, sound),
    ]


@cache
def texts(name):
    "The text of a name, and the name of the other one, from which a foreign tokenizer is learnt."
    library = "".join(path.read_text("utf-8", "replace") for path in sorted(Path(json.__file__).parents[1].glob("[a-d]*.py")))[:400_000]
    manual = "\n".join(topics.values())[:400_000]
    return (manual, "library") if name == "manual" else (library, "manual")


@cache
def ids_of(text_name, split, vocab, tokenizer_of):
    "A split of a text as ids: bytes, bytes under other numbers, or by a tokenizer learnt from one of the texts."
    text = texts(text_name)[0]
    part = text[: len(text) * 9 // 10] if split == "train" else text[len(text) * 9 // 10 :]
    if vocab > 256: return np.array(tokenizer(tokenizer_of, vocab).encode(part), dtype=np.uint16)
    numbers = np.arange(256) if tokenizer_of == text_name else np.random.default_rng(0).permutation(256)
    return numbers[np.frombuffer(part.encode(), dtype=np.uint8)].astype(np.uint16)


@cache
def tokenizer(text_name, vocab): return BpeTokenizer.train([texts(text_name)[0]], vocab)


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


@contextmanager
def broken(fault, config, post):
    "The flags, changed, and the loop, broken."
    patches = {"no causal mask": {"Transformer": unmasked}, "labels not shifted": {"get_batch": shifted(training.get_batch, 0)},
               "labels shifted twice": {"get_batch": shifted(training.get_batch, 2)}}
    changes = {"rate x 100": {"lr_max": 100 * config.lr_max}, "no warm-up": {"warmup_iters": 0}}
    with patch.multiple(training, **{"Transformer": post_norm if post else Transformer} | patches.get(fault, {})): yield replace(config, **changes.get(fault, {}))


def record(plan):
    "Make a run, and keep its history."
    torch.set_num_threads(1)
    shape, other = dict(plan.shape), texts(plan.text)[1] if plan.fault == "tokenizer mismatch" else plan.text
    post = shape.pop("post_norm", False)
    with tempfile.TemporaryDirectory() as folder, patch.object(diary, "tqdm", partial(diary.tqdm, disable=True)):
        folder = Path(folder)
        for split, of in ("train", plan.text), ("val", other): ids_of(plan.text, split, plan.vocab, of).tofile(folder/f"{split}.bin")
        asked = TrainConfig(train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"run", vocab_size=plan.vocab,
                            **{**shape, **COMMON, **plan.more}, seed=plan.seed, lr_max=plan.rate, warmup_iters=plan.shape["iterations"]//10)
        try:
            with broken(plan.fault, asked, post) as config: history = training.train(config).history
        except ValueError: history = [json.loads(line) for line in (folder/"run/metrics.jsonl").read_text("utf-8").splitlines()]   # no number any more
    skipped = {"tokens_per_second", "seconds_per_step", "memory_mib", "whole_val_loss"}
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items() if k not in skipped} for line in history]


@dataclass(frozen=True)
class Config:
    "Record the runs that the chapter on health reads, sound ones and broken ones.\n\nExample: python -m bench.reference runs.json.gz --workers 2"
    output: Annotated[Path, Positional, by_default("where the chapter looks")] = root/"llm_course"/"demo"/"traces.json.gz"   # File to keep them in
    workers: int = 1   # Processes, each with a run


def main(config: Config) -> None:
    todo = plans()
    with ProcessPoolExecutor(config.workers, get_context("spawn")) as pool: histories = list(tqdm(pool.map(record, todo, chunksize=1), "runs", len(todo)))
    runs = [{"name": p.name, "part": p.part, "fault": p.fault, "vocab_size": p.vocab, "seed": p.seed, "history": h} for p, h in zip(todo, histories)]
    with whole_file(config.output) as file: file.write(gzip.compress(json.dumps(runs).encode(), mtime=0))


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.reference")
