"""What chapter 21 and its engine pages measure of several processes: `python -m bench.experiments.distributed` with `limited` (root, Linux), `loopback` (a quiet machine), `kills`
(any system that can fork) and `rounding` writes a part of distributed.json.

`limited` and `loopback` hold the ring against its cost model. `limited` gives each process a network namespace of its own, joined by a bridge, and limits what each may send by `tc tbf`. `loopback` needs a bandwidth, which it measures by letting
every process pass one large tensor on to its neighbour at the same time, and a latency, by the same with one number. `kills` kills one process of a training run at 20 random moments,
by DDP and by FSDP; each time the others must end and leave a whole checkpoint, and in the end no loss may differ from those of a run that nobody killed (`tests/killed_ranks.py`).
`rounding` asks how far losses in half precision differ between one process and several, and why."""
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from unittest.mock import patch

import torch
import torch.distributed as dist

from bench.experiments import about
from bench.runner import read, root
from llm_course.distributed import _pass_on, in_processes, ring_all_reduce
from llm_course.engine.commands import whole_file
from llm_course.engine.processes import fast_forward
from llm_course.engine.run_config import optimizer_for
from llm_course.training import TrainConfig, train_step
from llm_course.transformer import Transformer

KILLS = 20
RATE, SIZE, ROUNDS = 200_000_000, 16_000_000, 10   # bits a second, bytes
FEW = 20   # messages
NAME = "ring"   # what the namespaces' names begin with


def timed(*works) -> list[float]:
    "Seconds of the fastest round of each, all processes together; by turns."
    best = [float("inf")] * len(works)
    for _ in range(ROUNDS):
        for i, work in enumerate(works):
            dist.barrier()
            began = perf_counter()
            work()
            dist.barrier()
            best[i] = min(best[i], perf_counter() - began)
    return best


def member(rank: int, count: int) -> None:
    "One process of a limited network; the first says how long a ring took."
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://10.77.0.1:29500", rank=rank, world_size=count)
    x = torch.ones(SIZE // 4)
    [seconds] = timed(lambda: ring_all_reduce(x))
    if rank == 0: print(seconds, flush=True)
    dist.destroy_process_group()


def system(line: str) -> None: subprocess.run(line.split(), check=True)


def limited(count: int) -> dict:
    "A ring of processes, each in a network of its own."
    system(f"ip link add {NAME} type bridge")
    system(f"ip link set {NAME} up")
    try:
        for rank in range(count):
            system(f"ip netns add {NAME}{rank}")
            system(f"ip link add {NAME}-{rank} type veth peer name eth0 netns {NAME}{rank}")
            system(f"ip link set {NAME}-{rank} master {NAME} up")
            inside = f"ip netns exec {NAME}{rank}"
            system(f"{inside} ip addr add 10.77.0.{rank + 1}/24 dev eth0")
            system(f"{inside} ip link set lo up")
            system(f"{inside} ip link set eth0 up")
            system(f"{inside} tc qdisc add dev eth0 root tbf rate {RATE}bit burst 64kb latency 10ms")
        words = [sys.executable, "-m", "bench.experiments.distributed", "member"]
        own = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        members = [subprocess.Popen(["ip", "netns", "exec", f"{NAME}{rank}", *words, str(rank), str(count)], stdout=subprocess.PIPE, encoding="utf-8", env=own) for rank in range(count)]
        told = [one.communicate()[0] for one in members]
        return {"count": count, "bytes": SIZE, "rate": RATE, "seconds": float(told[0])}
    finally:
        for rank in range(count): subprocess.run(["ip", "netns", "del", f"{NAME}{rank}"])
        system(f"ip link del {NAME}")


def loopback(count: int) -> dict:
    "A ring over the machine's own loopback, and what all processes need at the same time to pass on one large tensor, and one number."
    def work(rank, _):
        x, y, little = torch.ones(SIZE // 4), torch.ones(SIZE // 4), torch.ones(2)
        def pass_little():
            for _ in range(FEW): _pass_on(little[:1], little[1:])
        return timed(lambda: _pass_on(x, y), pass_little, lambda: ring_all_reduce(x))
    large, small, ring = map(max, zip(*in_processes(count, work)))
    return {"count": count, "bytes": SIZE, "bandwidth": SIZE / large, "latency": small / FEW, "seconds": ring}


def kills() -> list[dict]:
    "Kill a random process of a run, again and again; what was found, or an error where anything was lost."
    found = []
    for count, way in (2, "ddp"), (2, "fsdp"):
        with TemporaryDirectory() as folder:
            words = [sys.executable, root/"tests/killed_ranks.py", folder, str(count), str(KILLS), way]
            told = subprocess.run(words, check=True, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
        assert told.stdout == f"{KILLS} kills of one of {count}\n", told.stdout
        [slowest] = re.findall(r"the others ended within ([\d.]+) s", told.stderr)
        found.append({"count": count, "way": way, "kills": KILLS, "lost": 0, "seconds": float(slowest)})
        print(found[-1], flush=True)
    return found


# ---- Half precision

SHAPE = {"vocab_size": 4_097, "max_seq_len": 4, "d_model": 128, "num_layers": 2, "num_heads": 4, "d_ff": 341}
ROWS, STEPS, FIRST = 12, 30, 4   # of a batch; of a run; at its beginning


class _WideSum(torch.autograd.Function):
    "A product in bfloat16, of which the gradient of the weight is summed in float32 and not rounded."
    @staticmethod
    def forward(ctx, x, weight):
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return (grad @ weight).float(), grad.flatten(0, -2).float().mT @ x.flatten(0, -2).float()


def _wide_linear(x, weight, bias=None):
    with torch.autocast("cpu", enabled=False): return _WideSum.apply(x, weight)


def losses(precision: str, pieces: int = 1, wide: bool = False, nudged: bool = False) -> torch.Tensor:
    "The losses of one process, which may take a batch in pieces, as several processes do; sum the gradients of weights in float32; or begin with weights whose last digit is one higher."
    config = TrainConfig(train_data=Path(), val_data=Path(), device="cpu", lr_max=1e-3, warmup_iters=0, precision=precision, **SHAPE)
    torch.manual_seed(0)
    model, found = Transformer(**SHAPE), []
    if nudged:
        for p in model.parameters(): p.data = p.data.nextafter(torch.tensor(torch.inf))
    forward, optimizer = fast_forward(model, config), optimizer_for(model, config)
    scaler, dice = torch.amp.GradScaler("cpu", enabled=False), torch.Generator().manual_seed(1)
    often = 1 / torch.arange(1., SHAPE["vocab_size"] + 1)   # some ids are frequent, as in a text
    with ExitStack() as changed:
        if wide:
            for place in "llm_course.linear.linear", "llm_course.ffn.linear", "torch.nn.functional.linear": changed.enter_context(patch(place, _wide_linear))
        for _ in range(STEPS):
            ids = torch.multinomial(often, ROWS * 5, replacement=True, generator=dice).view(ROWS, 5)
            loss, _ = train_step(forward, optimizer, scaler, [(some[:, :-1], some[:, 1:]) for some in ids.chunk(pieces)], 1.)
            found.append(float(loss))
    return torch.tensor(found, dtype=torch.float64)


def rounding() -> list[dict]:
    "How far losses are off from those of one process and whole batches, in the first steps and in all."
    torch.set_num_threads(1)
    found = []
    for precision in "float32", "bfloat16":
        for wide in (False, True)[:1 + (precision == "bfloat16")]:
            alone = losses(precision, wide=wide)
            for how in {"pieces": 2}, {"pieces": 4}, {"nudged": True}:
                off = (losses(precision, wide=wide, **how) / alone - 1).abs()
                found.append({"precision": precision, "wide": wide, **how, "first": float(off[:FIRST].max()), "all": float(off.max())})
                print(found[-1], flush=True)
    return found


def main(words: list[str]) -> None:
    "Run what was asked for, and keep it beside what there is."
    if words[:1] == ["member"]: return member(int(words[1]), int(words[2]))
    path = Path(__file__).with_suffix(".json")
    for name in words:
        rows = {"limited": lambda: [*map(limited, (2, 4))], "loopback": lambda: [*map(loopback, (2, 4))], "kills": kills, "rounding": rounding}[name]()
        kept = {**read(path), name: rows, "on": {**read(path).get("on", {}), name: about()}}
        with whole_file(path, "w") as file: file.write(json.dumps(kept, indent=1) + "\n")
    return None


if __name__ == "__main__": main(sys.argv[1:])
