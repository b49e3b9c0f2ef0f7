"""Runs on several processes that go wrong. `killed_ranks.py FOLDER COUNT KILLS` kills one process at random moments of random steps, and then lets the run end (`fsdp` behind it: not by DDP); `killed_ranks.py FOLDER faults` lets one
process be slow, fail at its start, never start, or be asked for another run; `torchrun … killed_ranks.py -m llm_course.training FLAGS` kills one process, once, and leaves the rest to torchrun.

The others must end within a minute, by themselves, with one line; and the losses must be those of a run that nobody killed. Like killed.py, it imports once and forks."""
import os
import random
import signal
import socket
import sys
import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from killed import losses

from llm_course import training
from llm_course.checkpoint import read_checkpoint
from llm_course.engine import bookkeeping, diary
from llm_course.training import TrainConfig, train


def one_rank(config, rank, count, port, live):
    "A process of a run, as torchrun would start it; forked, it does not come back. Errors of the kind that commands print as a line are left in a file."
    if pid := os.fork(): return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    status, said = 1, ""
    try:
        train(live(rank) or config)
        status = 0
    except (ValueError, OSError) as error: status, said = 2, str(error)
    except BaseException as error: print(rank, repr(error), file=sys.stderr, flush=True)
    finally:
        (config.output.parent/f"{rank}.said").write_text(said, "utf-8", newline="\n")
        os._exit(status)


def run(config, count, live=lambda rank: None):
    "How each process of a run ended, what it said, and how long the last of them took once the first had ended."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(count): (config.output.parent/f"{rank}.said").unlink(missing_ok=True)
    ranks = {one_rank(config, rank, count, port, live): rank for rank in range(count)}
    ended, first = {}, None
    for _ in range(count):
        pid, status = os.wait()
        first = first or time.monotonic()
        ended[ranks[pid]] = os.waitstatus_to_exitcode(status)
    said = {rank: path.read_text("utf-8") for rank in range(count) if (path := config.output.parent/f"{rank}.said").exists()}
    return ended, said, time.monotonic() - first


def kills_at_random(config, count, kills):
    "Kill one process after another, each time the run has come to life again; then let it end."
    assert set(run(config, count)[0].values()) == {0}
    dice, real, killed = random.Random(0), training.batches_of, replace(config, output=config.output.with_name("killed"))
    slowest = 0.
    for i in range(kills):
        victim, steps, part = dice.randrange(count), dice.randrange(8), dice.random()
        def live(rank, victim=victim, steps=steps, part=part):
            began = [time.monotonic()]
            def counted(run):
                began.append(time.monotonic())
                if rank == victim and len(began) == steps + 2: signal.setitimer(signal.ITIMER_REAL, part * (began[-1] - began[-2]) + 1e-6)   # SIGALRM ends it
                return real(run)
            training.batches_of = bookkeeping.batches_of = counted
        ended, said, seconds = run(killed, count, live)
        slowest = max(slowest, seconds)
        assert ended.pop(victim) == -signal.SIGALRM, (i, ended)
        assert set(ended.values()) == {2} and seconds < 60, (i, ended, seconds)
        assert all("another process of this run has ended" in line and "--resume goes on" in line and "\n" not in line for line in said.values()), (i, said)
        if (path := killed.output/"checkpoint.pt").exists(): read_checkpoint(path)
    assert set(run(killed, count)[0].values()) == {0}
    assert losses(killed.output) == losses(config.output) and len(losses(killed.output)) == config.iterations
    print(f"the others ended within {slowest:.1f} s", file=sys.stderr)
    print(kills, "kills of one of", count)


def faults(config):
    "What each of two processes says where the second is at fault."
    def slow(rank):   # it takes a step only when the first has given it up
        real, waiting = training.batches_of, config.output.parent/"0.said"
        def late(run):
            if run.done == 2 and rank == 0: torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1), torch.distributed.group.WORLD)
            while run.done == 2 and rank == 1 and not waiting.exists(): time.sleep(.05)
            return real(run)
        training.batches_of = bookkeeping.batches_of = late
    def fails(rank): return replace(config, val_data=Path("nowhere.bin")) if rank else None
    def differs(rank): return replace(config, batch_size=8) if rank else None
    def never(rank): return replace(config, parallel_timeout=1) if rank == 0 else os._exit(0)
    for fault in slow, fails, differs, never:
        ended, said, seconds = run(config, 2, fault)
        for rank in ended: print(f"{fault.__name__} {rank}: {ended[rank]} {said.get(rank, '')}")
        assert seconds < 60


def killed_once(words):
    "The training command, of which the second process dies at step 3 unless it was started again; the first is at work then under DDP, and waits for it under FSDP."
    attempt, real = os.environ["TORCHELASTIC_RESTART_COUNT"], training.set_rates
    def counted(optimizer, config, step):
        if os.environ["RANK"] == "0": print(f"attempt {attempt}, step {step}", flush=True)
        elif attempt == "0" and step == 3: os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        if os.environ["RANK"] == attempt == "0" and step == 3 and config.parallel == "ddp": time.sleep(60)
        real(optimizer, config, step)
    training.set_rates = counted
    training.main(words)


def main(folder, what, kills="0", parallel="ddp"):
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])   # loads what each process would load by itself
    diary.tqdm = partial(diary.tqdm, disable=True)
    for name in "train", "val": (np.arange(600, dtype=np.uint16) * 7 % 31).tofile(folder/f"{name}.bin")
    config = TrainConfig(
        train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"whole", vocab_size=31, max_seq_len=8, d_model=8, num_layers=1, num_heads=2, d_ff=12, batch_size=4,
        iterations=12 * int(kills) + 6, lr_max=1e-2, log_interval=1, val_interval=6, val_batches=1, checkpoint_interval=3, device="cpu", parallel=parallel, parallel_timeout=900, resume=True)
    if what == "faults": faults(config)
    else: kills_at_random(config, int(what), int(kills))


if __name__ == "__main__":
    if sys.argv[1] == "-m": killed_once(sys.argv[3:])
    else: main(Path(sys.argv[1]), *sys.argv[2:])
