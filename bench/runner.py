"""Time pairs of functions fairly: by turns, in many short rounds, so that whatever else the machine does hits both alike."""
import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import torch
from tqdm import tqdm
from tyro.conf import Positional, arg

from bench.machine import imitation, kind, machine
from llm_course.checkpoint import pick_device
from llm_course.engine.commands import by_default, output_path, whole_file

root = Path(__file__).parents[1]
LONG = 3.25                     # seconds of a round that are too many for a quick look
kinds = root/"bench"/"results"   # a file of results for each kind of processor


@dataclass(frozen=True)
class Case:
    "A race between ours and a peer, beside a part of the work that is timed alone."
    name: str                   # What to call it
    make: Callable              # Takes a device; returns two functions, ours and the peer's, and a third one for the limit
    peer: str                   # Who the peer is
    package: str                # Whose version to note
    limit: str | None = None    # The part of the work that is timed alone, where there is one
    bound: bool = True          # Whether nobody can leave it out or do it faster; only then is our share of it a result

cases: dict[str, Case] = {}


def case(peer: str, package: str = "torch", limit: str | None = None, bound: bool = True):
    "Register a function of `bench.cases` as a race."
    def register(make):
        cases[make.__name__] = Case(make.__name__, make, peer, package, limit, bound)
        return make
    return register


@dataclass(frozen=True)
class Config:
    "Time what the course builds beside what everyone uses.\n\nExample: python -m bench encode adamw --rounds 9"
    cases: Annotated[tuple[str, ...], Positional, arg(metavar="CASE [CASE ...]", help_behavior_hint="(default: every case)")] = ()   # Which cases, as --list names them
    list: bool = False                        # Only list them
    quick: bool = False                       # 3 short rounds for each case, kept only where --output is given: to see that all of it runs
    resume: bool = False                      # Leave out what this commit has measured already in as many rounds, and go on from there
    rounds: int = 31                          # Rounds for each case, at most
    minutes: float = 25.                      # For all cases together: long ones get fewer rounds, but three
    seconds: float = 0.05                     # Seconds that each side runs in a round, at least
    device: str = "cpu"                       # Where: cpu, cuda or mps
    output: Annotated[Path | None, by_default("the file of this kind of processor in bench/results; nowhere for an imitation")] = None   # File that collects the results

    def __post_init__(self):
        import bench.cases  # noqa: F401  registers them
        if unknown := set(self.cases) - cases.keys(): raise ValueError(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
        if self.rounds < 3: raise ValueError(f"--rounds must be at least 3, for there to be quartiles, but it is {self.rounds}")
        if not 0 < self.minutes < math.inf: raise ValueError(f"--minutes must be positive and finite, but it is {self.minutes}")
        if not 0 < self.seconds < math.inf: raise ValueError(f"--seconds must be positive and finite, but it is {self.seconds}")
        if self.output and imitation() and self.output.resolve().parent == kinds:
            raise ValueError(f"--output {self.output} is kept for results of real processors, and {' '.join(imitation())} makes this one imitate another")


def main(config: Config) -> None:
    "Run the cases, and keep each result as soon as it is there."
    chosen = [cases[name] for name in config.cases or cases]
    if config.list:
        for c in chosen: print(f"{c.name:16} {c.make.__doc__}\n{'':16} beside {c.peer}")
        return
    device = pick_device(config.device).type
    path = output_for(config, device)
    found = read(path) if path else {}   # a file of another kind is refused before the work, and kept
    most, seconds = (3, 0.002) if config.quick else (config.rounds, config.seconds)
    per_round = {c.name: seconds_per_round(c, device, seconds) for c in chosen}
    if config.quick and not config.cases:   # what takes longer is run when it is asked for by name
        chosen = [c for c in chosen if per_round[c.name] < LONG]
        if left := per_round.keys() - {c.name for c in chosen}: print(f"too long for a quick look: {', '.join(sorted(left))}")
    planned = plan({c.name: per_round[c.name] for c in chosen}, most, 60 * config.minutes)
    print(f"{len(chosen)} cases, some {sum(took for _, took in planned.values()) / 60:.0f} minutes", flush=True)
    for c in chosen:
        before, rounds = found.get(f"{c.name}/{device}", {}), planned[c.name][0]
        if config.resume and before.get("commit") == commit() and before.get("rounds", 0) >= rounds:
            print(f"{c.name:16} measured already", flush=True)
            continue
        torch.manual_seed(0)
        result = race(c, device, rounds, seconds)
        if path: merge(path, f"{c.name}/{device}", result)
        if not c.limit: beside = ""
        elif c.bound: beside = f"   limit {show(result['limit'])}, of which we reach {result['share']['median']:.0%}"
        else: beside = f"   {c.limit} {show(result['limit'])}"
        print(f"{c.name:16} ours {show(result['ours'])}   {c.peer} {show(result['peer'])}   ratio {result['ratio']['median']:.2f}{beside}", flush=True)
    print(f"kept in {path}" if path else f"not kept: {' '.join(imitation())} makes this processor imitate another; --output names a file for that")


def seconds_per_round(c: Case, device: str, seconds: float) -> float:
    "How long a round of a case takes: all its sides, once or until `seconds` are over, as the slowest kind of machine that measured it had them."
    sides = ["ours", "peer", "limit"][: 3 if c.limit else 2]
    stored = [read(path).get(f"{c.name}/{device}", {}) for path in sorted(kinds.glob("*.json"))]
    found = [sum(max(result.get(side, result["ours"])["median"], 1.2 * seconds) for side in sides) for result in stored if result]
    return max(found, default=2. * len(sides))   # never measured: some seconds


def plan(per_round: dict[str, float], most: int, total: float) -> dict[str, tuple[int, float]]:
    "Share the seconds among the cases: for each its rounds, at least three, and its time with what it takes to set up and to warm up."
    spent = lambda rounds: {name: (n, (n + 1) * per_round[name] + 2) for name, n in rounds.items()}
    longest = max(per_round.values(), default=0.) * (most + 2)   # seconds that a case may take; lowered until all fit
    while True:
        rounds = {name: max(3, min(most, int(longest / took) - 2)) for name, took in per_round.items()}
        if sum(took for _, took in spent(rounds).values()) <= total or all(n == 3 for n in rounds.values()): return spent(rounds)
        longest *= .9


def output_for(config: Config, device: str) -> Path | None:
    "Where results are kept: in the file that was asked for, or that of this kind of processor, which neither an imitation nor a quick look ever fills."
    if config.output: return output_path(config.output, "--output")
    return None if imitation() or config.quick else kinds/f"{kind(device)}.json"


def race(c: Case, device: str, rounds: int, seconds: float) -> dict:
    "Time all sides in alternating order; ratio and share are taken within each round."
    sides = c.make(device)
    assert len(sides) == (3 if c.limit else 2), f"{c.name} must return two functions, and a third one where it names a limit"
    calls = [enough(side, device, seconds) for side in sides]
    times = [[] for _ in sides]
    for turn in tqdm(range(rounds), c.name, leave=False):
        order = range(len(sides))
        for i in order if turn % 2 else reversed(order): times[i].append(clock(sides[i], device, calls[i]))
    ours, peer = times[:2]
    result = {
        "what": c.make.__doc__, "unit": "seconds", "rounds": rounds, "calls_per_round": calls,
        "ours": spread(ours), "peer": {"name": c.peer} | spread(peer), "ratio": spread([a / b for a, b in zip(ours, peer)]),
    }
    if c.limit: result["limit"] = {"name": c.limit} | spread(times[2])
    if c.limit and c.bound: result["share"] = spread([a / b for a, b in zip(times[2], ours)])
    versions = {name: importlib.metadata.version(name) for name in sorted({"torch", c.package})} | {"python": platform.python_version()}
    return result | {"machine": machine(device), "versions": versions, "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def clock(function: Callable, device: str, calls: int) -> float:
    "Seconds for one call, from the time of several."
    wait(device)
    began = time.perf_counter()
    for _ in range(calls): function()
    wait(device)
    return (time.perf_counter() - began) / calls


def wait(device: str) -> None:
    "Accelerators work on after a call returns; wait until they are done."
    if device != "cpu": getattr(torch, device).synchronize()


def enough(function: Callable, device: str, seconds: float) -> int:
    "How many calls take so long together; finding out warms up."
    calls = 1
    while (took := calls * clock(function, device, calls)) < seconds: calls = max(calls + 1, min(10 * calls, round(calls * 1.2 * seconds / took)))
    return calls


def spread(values: list[float]) -> dict:
    "Median and quartiles, to four digits."
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {name: float(f"{value:.4g}") for name, value in (("median", median(values)), ("lower_quartile", low), ("upper_quartile", high))}


def show(side: dict) -> str:
    return f"{1e3 * side['median']:.3g} ms"


def commit() -> str | None:
    "The commit, marked if files differ from it; nothing outside a repository."
    git = lambda *words: subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip()
    try: return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "llm_course", "bench/*.py") else "")
    except (OSError, subprocess.CalledProcessError): return None


def read(path: Path) -> dict:
    "The results of earlier runs."
    if not path.exists(): return {}
    try: results = json.loads(path.read_text("utf-8"))
    except ValueError: results = None
    if not isinstance(results, dict): raise ValueError(f"--output {path} holds no results of an earlier run; name another file")
    return results


def merge(path: Path, name: str, result: dict) -> None:
    "Put one result among the others."
    with whole_file(path, "w") as file: file.write(json.dumps(dict(sorted((read(path) | {name: result}).items())), indent=1, ensure_ascii=False) + "\n")
