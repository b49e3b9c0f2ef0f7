"""Kill one process of a run on several: `killed_ranks.py FOLDER COUNT KILLS`, at random moments of random steps; then let the run end.

The others must end within a minute, by themselves, with one line; and the losses must be those of a run that nobody killed. Like killed.py, it imports once and forks."""
import os
import random
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from killed import losses

from llm_course import training
from llm_course.checkpoint import read_checkpoint
from llm_course.engine import diary
from llm_course.training import TrainConfig, train

LOST = 7   # how a process ends that says that it lost another


def one_rank(config, rank, count, port, live):
    "A process of a run, as torchrun would start it; forked, it does not come back."
    if pid := os.fork(): return pid
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    status = 1
    try:
        live(rank)
        train(config)
        status = 0
    except ConnectionError as error:
        if "--resume goes on" in str(error) and "\n" not in str(error): status = LOST
    except BaseException as error: print(rank, repr(error), file=sys.stderr, flush=True)
    finally: os._exit(status)


def run(config, count, live=lambda rank: None):
    "How each process of a run ended, and how long the last of them took once the first had ended."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {one_rank(config, rank, count, port, live): rank for rank in range(count)}
    ended, first = {}, None
    for _ in range(count):
        pid, status = os.wait()
        first = first or time.monotonic()
        ended[ranks[pid]] = os.waitstatus_to_exitcode(status)
    return ended, time.monotonic() - first


def main(folder, count, kills):
    for name in "train", "val": (np.arange(600, dtype=np.uint16) * 7 % 31).tofile(folder/f"{name}.bin")
    config = TrainConfig(
        train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"whole", vocab_size=31, max_seq_len=8, d_model=8, num_layers=1, num_heads=2, d_ff=12, batch_size=4,
        iterations=12 * kills + 6, lr_max=1e-2, log_interval=1, val_interval=6, val_batches=1, checkpoint_interval=3, device="cpu", parallel="ddp", resume=True)
    assert set(run(config, count)[0].values()) == {0}
    dice, real, killed = random.Random(0), training.batches_of, replace(config, output=folder/"killed")
    for i in range(kills):
        victim, steps, part = dice.randrange(count), dice.randrange(8), dice.random()
        def live(rank, victim=victim, steps=steps, part=part):
            began = [time.monotonic()]
            def counted(run):
                began.append(time.monotonic())
                if rank == victim and len(began) == steps + 2: signal.setitimer(signal.ITIMER_REAL, part * (began[-1] - began[-2]) + 1e-6)   # SIGALRM ends it
                return real(run)
            training.batches_of = counted
        ended, seconds = run(killed, count, live)
        assert ended.pop(victim) == -signal.SIGALRM, (i, ended)
        assert set(ended.values()) == {LOST} and seconds < 60, (i, ended, seconds)
        if (path := killed.output/"checkpoint.pt").exists(): read_checkpoint(path)
    assert set(run(killed, count)[0].values()) == {0}
    assert losses(killed.output) == losses(config.output) and len(losses(killed.output)) == config.iterations
    print(kills, "kills of one of", count)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])   # loads what each process would load by itself
    diary.tqdm = partial(diary.tqdm, disable=True)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
