"""What a checkpoint costs under FSDP, written and read as one file and by torch.distributed.checkpoint: `python -m bench.experiments.saving` (Linux) writes saving.json.

Each process says how much its memory rose above what it was before, at most, and how long all together took, to the disk and not only to the system's cache."""
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from bench.experiments import keep
from bench.runner import read
from llm_course.checkpoint import read_checkpoint, restore, save_checkpoint
from llm_course.distributed import in_processes
from llm_course.engine.flags import TrainConfig
from llm_course.engine.processes import distribute, load_sharded
from llm_course.optim import AdamW
from llm_course.transformer import Transformer

SHAPE = {"vocab_size": 16_384, "max_seq_len": 256, "d_model": 512, "num_layers": 12, "num_heads": 8, "d_ff": 1408}
ROUNDS, LAZY = 3, True


def resident() -> int:
    "Bytes that this process has for itself; pages of a file, which the system may take back, are not counted."
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


def measured(work: Callable) -> tuple[float, float]:
    "Seconds that all processes take together, and megabytes that this one rises by, at most, looked at every five milliseconds."
    dist.barrier()
    before, ended, began = resident(), Event(), perf_counter()
    most = [before]
    def watch():
        while not ended.wait(.005): most.append(max(most.pop(), resident()))
    watcher = Thread(target=watch)
    watcher.start()
    work()
    ended.set()
    watcher.join()
    dist.barrier()
    return perf_counter() - began, (most[0] - before) / 1e6


def start(steps: int) -> tuple:
    "A model in slices and its optimiser, which has moments once it has taken a step."
    torch.manual_seed(0)
    model = Transformer(**SHAPE)
    distribute(model, TrainConfig(train_data=Path(), val_data=Path(), device="cpu", parallel="fsdp"))
    optimizer = AdamW(model.parameters())
    for _ in range(steps):
        for p in model.parameters(): p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def one_file(folder: Path, rank: int) -> tuple[Callable, Callable]:
    "What the course does: slices are gathered, and process 0 writes; each process reads the whole file, before its model is cut up."
    model, optimizer = start(1)
    path = folder/"checkpoint.pt"

    def write(): save_checkpoint(model, optimizer, 1, path if rank == 0 else None)

    def read():
        saved = read_checkpoint(path, lazy=LAZY)
        new = Transformer(**SHAPE)
        restore(saved, new)
        distribute(new, TrainConfig(train_data=Path(), val_data=Path(), device="cpu", parallel="fsdp"))
        load_sharded(AdamW(new.parameters()), saved["optimizer"])
    return write, read


def sharded(folder: Path, rank: int) -> tuple[Callable, Callable]:
    "Each process writes its slices into a file of its own, and reads what it needs."
    model, optimizer = start(1)

    def write():
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder/"slices")

    def read():
        new, fresh = start(0)
        weights, moments = get_state_dict(new, fresh)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=folder/"slices")
        set_state_dict(new, fresh, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return write, read


def member(rank: int, count: int, way: Callable, folder: Path) -> dict:
    write, read = way(folder, rank)
    return {name: [measured(work) for _ in range(ROUNDS)] for name, work in (("write", write), ("read", read))}


def race(count: int, way: Callable) -> dict:
    "The fastest of some rounds, and the greatest rise of any: of process 0, and of the others."
    with TemporaryDirectory(dir=".") as name:
        found = in_processes(count, partial(member, way=way, folder=Path(name)))
        size = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    told: dict = {"count": count, "way": way.__name__, "parameters": sum(p.numel() for p in Transformer(**SHAPE, device="meta").parameters()), "megabytes": size / 1e6}
    for name in "write", "read":
        told[name] = {"seconds": min(seconds for seconds, _ in found[0][name]), "first": max(rise for _, rise in found[0][name]), "others": max(rise for one in found[1:] for _, rise in one[name])}
    return told


def main(words: list[str]) -> None:
    "Both ways on each number of processes; rows of other numbers are kept."
    torch.set_num_threads(1)
    counts = [int(word) for word in words] or [2, 4]
    rows = [row for row in read(Path(__file__).with_suffix(".json")).get("rows", []) if row["count"] not in counts]
    for count in counts:
        for way in one_file, sharded:
            rows.append(race(count, way))
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: row["count"])
    keep(__file__, {"what": "Seconds, and megabytes that processes rise by, for a checkpoint of a model under FSDP and its optimiser, as one file and in slices.", "rows": rows})


if __name__ == "__main__": main(sys.argv[1:])
