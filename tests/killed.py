"""Kill training runs: `killed.py FOLDER random N` at N random moments, `killed.py FOLDER saving 1` at each write, fsync and rename; `saving 4` leaves three of four writes out.

A helper of test_training, in a process of its own that imports once, never trains itself, and forks a child for each attempt."""
import builtins
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from llm_course import training
from llm_course.checkpoint import read_checkpoint
from llm_course.engine import bookkeeping, diary
from llm_course.training import TrainConfig, settle, train


def forked(work):
    "Let a child do some work; its process id."
    if pid := os.fork(): return pid
    status = 1
    try:
        work()
        status = 0
    finally: os._exit(status)


def ended(pid):
    "How a child ended: 0, or minus the signal that killed it."
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def import_what_training_imports(work):
    "Let a child do some work, and import what it had to import: nine tenths of a short run are that, and every child would do it again."
    heard, said = os.pipe()
    def tell():
        work()
        os.close(heard)
        with open(said, "w", encoding="utf-8", newline="\n") as names: names.write("\n".join(sys.modules))
    child = forked(tell)
    os.close(said)
    with open(heard, encoding="utf-8") as names: found = names.read().split("\n")
    assert ended(child) == 0
    for name in found:
        with suppress(Exception): importlib.import_module(name)   # a name may stand for what no file holds


def losses(folder):
    "Everything in the metrics that must be the same however often a run was killed."
    return [{k: v for k, v in json.loads(line).items() if k.endswith("loss") or k in ("iteration", "grad_norm", "lr")}
            for line in (folder/"metrics.jsonl").read_text("utf-8").splitlines()]


def at_random(config, kills):
    "Kill a run `kills` times, a few steps after it came to life again and at any moment of a step; then let it end."
    dice, config, real = random.Random(0), replace(config, output=config.output/"killed", resume=True), training.batches_of
    for i in range(kills):
        steps, part = dice.randrange(6), dice.random()
        def live(steps=steps, part=part):
            began = [time.process_time()]
            def counted(run):
                began.append(time.process_time())
                if len(began) == steps + 2:   # the system kills it, by the time that it works: what else the machine does changes nothing
                    signal.setitimer(signal.ITIMER_PROF, part * (began[-1] - began[-2]) + 1e-6)
                return real(run)
            training.batches_of = bookkeeping.batches_of = counted
            train(config)
        assert ended(forked(live)) == -signal.SIGPROF, f"attempt {i} ended by itself"
    assert ended(forked(lambda: train(config))) == 0
    return config.output


class Deaths:
    "Counts the writes, fsyncs and renames of this process, and dies at one of them."
    def __init__(self, at): self.at, self.seen = at, []
    def tell(self, event):
        if len(self.seen) == self.at: os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(event)

    def install(self):
        deaths, real_open = self, builtins.open
        class Watched(io.BufferedWriter):
            def write(self, data):
                deaths.tell("write")
                return super().write(data)
        def opened(path, mode="r", **more):
            return Watched(io.FileIO(path, "w")) if str(path).endswith(".partial") and mode == "wb" else real_open(path, mode, **more)
        def watched(event, call): return lambda *args: (self.tell(event), call(*args))[1]
        builtins.open, os.fsync, os.replace = opened, watched("fsync", os.fsync), watched("replace", os.replace)


def while_saving(config, every):
    "Kill a run at each fsync and rename of its saving at step 6, and at one of `every` so many writes; what is left must be whole, and go on to the same losses."
    half, real = config.output/"half", training.write_down
    def die_everywhere(run, *args):
        if run.done < 6: return real(run, *args)
        def attempt(name, at):   # in a child of this process, which has come as far as step 6 and only saves from here on
            run.config = replace(run.config, output=config.output/name)
            shutil.copytree(half, run.config.output)
            deaths = Deaths(at)
            def save():
                deaths.install()
                real(run, *args)
                os.write(said, "\n".join(deaths.seen).encode())
            return ended(forked(save))
        heard, said = os.pipe()
        assert attempt("counted", None) == 0
        events, found = os.read(heard, 1 << 16).decode().split("\n"), set()
        tried = [event for at, event in enumerate(events) if event != "write" or at % every == 0]
        for at, event in enumerate(events):
            if event == "write" and at % every: continue
            assert attempt(f"dead{at}", at) == -signal.SIGKILL
            found.add(read_checkpoint(run.config.output/"checkpoint.pt")["iteration"])
            if event == "write" and at % 32: shutil.rmtree(run.config.output)   # it leaves what its neighbours leave
        assert found == {3, 6} and {"write", "fsync", "replace"} == set(events)
        print(len(tried), "deaths:", {event: tried.count(event) for event in sorted(set(tried))}, flush=True)
        os._exit(0)
    def doomed():
        training.write_down = die_everywhere
        train(replace(config, output=half))
    assert ended(forked(doomed)) == 0
    for dead in config.output.glob("dead*"):
        assert ended(forked(lambda dead=dead: train(replace(config, output=dead, resume=True)))) == 0
        assert losses(dead) == losses(config.output/"whole"), dead
        assert not list(dead.glob("*.partial"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    diary.tqdm = partial(diary.tqdm, disable=True)
    diary.losses_as_svg = lambda history: b"<svg/>"   # to draw takes longer than all the rest
    folder, how, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for name in "train", "val": (np.arange(600, dtype=np.uint16) * 7 % 31).tofile(folder/f"{name}.bin")
    steps = {"random": 400, "saving": 9}[how]   # many more than the attempts can make: the clock of processor time ticks seldom
    config = settle(TrainConfig(
        train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder, vocab_size=31, max_seq_len=8, d_model=8, num_layers=1, num_heads=2,
        d_ff=12, batch_size=4, iterations=steps, lr_max=1e-2, log_interval=1, val_interval=6, val_batches=1, checkpoint_interval=5 if how == "random" else 3, device="cpu"))
    import_what_training_imports(lambda: train(replace(config, output=folder/"whole")))
    if how == "random":
        killed = at_random(config, kills)
        assert losses(killed) == losses(folder/"whole") and [line["iteration"] for line in losses(killed)] == list(range(1, steps + 1))
        print(kills, "kills")
    else: while_saving(config, kills)
