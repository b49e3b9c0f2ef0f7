"""The ring of chapter 21 against its cost model: `python -m bench.experiments.distributed limited` (root, Linux) and `… loopback` (a quiet machine) write distributed.json.

`limited` gives each process a network namespace of its own, joined by a bridge, and limits what each may send by `tc tbf`. `loopback` needs a bandwidth, which it measures by letting
every process pass one large tensor on to its neighbour at the same time, and a latency, by the same with one number."""
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist

from bench.experiments import keep
from bench.runner import read
from llm_course.distributed import _pass_on, in_processes, ring_all_reduce

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


def main(words: list[str]) -> None:
    "Run what was asked for, and keep it beside what there is."
    if words[:1] == ["member"]: return member(int(words[1]), int(words[2]))
    old = read(Path(__file__).with_suffix(".json"))
    found = {name: old[name] for name in ("limited", "loopback") if name in old}
    for name in words: found[name] = [{"limited": limited, "loopback": loopback}[name](count) for count in (2, 4)]
    keep(__file__, {"what": "Seconds of a ring all-reduce, beside what the cost model needs to know.", **found})
    return None


if __name__ == "__main__": main(sys.argv[1:])
