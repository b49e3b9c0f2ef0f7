"""Everything that wants a GPU, in one script of less than eight minutes: `python -m bench.gpu` runs the tests for GPUs and measures what they are good at.

Each part runs in a process of its own and has seconds of its own. Whatever it has measured by then is kept if it fails or is cut off, in
`results/gpu/`, a file for each kind of GPU. Nothing is downloaded. The status is 0 if all parts are done, and 0 where there is no GPU; 1 if a part failed or was cut off."""
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.nn import functional as F
from tyro.conf import Positional, arg

from bench.cases.generating import VECTORS, llama, only_vectors, writers
from bench.cases.machine import PRODUCTS, only_products, steppers
from bench.cases.pairs import back
from bench.machine import kind, machine
from bench.runner import Case, clock, commit, enough, kinds, race, root, spread
from llm_course.engine.commands import by_default, output_path, run_command, whole_file

# Operations per second that the makers promise for dense products in bfloat16 with sums in float32, for GPUs that `training` does not know.
MORE_PEAKS = {"B200": 2250e12, "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12, "L40S": 362e12}


@dataclass(frozen=True)
class Setup:
    "What is measured: a model of 124 million parameters, or a toy by which a CPU can run the same lines."
    device: str
    toy: bool

    @property
    def shape(self) -> tuple:
        "Of `Transformer`: vocabulary, context, width, layers, heads, hidden width, base of RoPE, heads of keys and values, tied?"
        if self.toy: return 64, 16, 32, 1, 2, 48, 1e4, None, True
        return 50_304, 1024, 768, 12, 12, 2048, 1e4, None, True

    @property
    def rows(self) -> int:
        "Sequences in a batch: a quarter as many as the GPU has GiB, as a power of two, and no more than 16."
        if self.toy: return 2
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        return next((n for n in (16, 8, 4, 2) if 4 * n <= gib), 1)

    @property
    def precision(self) -> str:
        "bfloat16, if the hardware has it."
        has = self.device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has else "float32"

    @property
    def dtype(self) -> torch.dtype: return getattr(torch, self.precision)

    @property
    def rounds(self) -> int: return 3 if self.toy else 5

    @property
    def seconds(self) -> float: return 1e-4 if self.toy else 0.2   # that each side runs in a round, at least

    def model(self, device: str):
        "Ours, of this shape."
        from llm_course.transformer import Transformer
        return Transformer(*self.shape, device=device)


def peak(name: str, precision: str) -> float | None:
    "Operations per second that a GPU is said to be capable of; `None` where we know of no promise."
    from llm_course.engine.diary import peak_flops
    words = set(name.split())
    if "Laptop" in words: return None   # slower than its namesake
    more = [flops for known, flops in MORE_PEAKS.items() if words.issuperset(known.split()) and precision != "float32"]
    return peak_flops(name, precision) or (more[0] if more else None)


def share_of_peak(setup: Setup, flops: float, seconds: float) -> dict:
    "What was reached, and what share of the promise that is, if there is one."
    promised = peak(torch.cuda.get_device_name(), setup.precision) if setup.device == "cuda" else None
    reached = flops / seconds
    return {"flops_per_second": float(f"{reached:.4g}"), "share_of_peak": round(reached / promised, 4) if promised else "unknown"}


def duel(setup: Setup, what: str, peer: str, make: Callable, limit: str | None = None, package: str = "torch") -> dict:
    "A race as `python -m bench` runs them."
    def made(device): return make()
    made.__doc__ = what
    return race(Case(what, made, peer, package, limit), setup.device, setup.rounds, setup.seconds)


def alone(setup: Setup, function: Callable) -> dict:
    "The time of one function."
    calls = enough(function, setup.device, setup.seconds)
    return spread([clock(function, setup.device, calls) for _ in range(setup.rounds)])


# ---- The parts. Each yields names and functions; what a function returns is kept under its name.

Measurements = Iterator[tuple[str, Callable[[], dict]]]


def tests(setup: Setup) -> Measurements:
    "All tests marked gpu, by pytest; at toy size those of one file, which a CPU skips."
    def run():
        files = ["tests/test_rmsnorm.py"] if setup.toy else ["tests"]
        words = ["-m", "gpu", "-p", "no:cacheprovider", "-rfE", "--tb=short", "--continue-on-collection-errors", *files]
        done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace")
        print(done.stdout[-20_000:], flush=True)
        last = done.stdout.strip().splitlines()[-1:]
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|deselected|errors?)", " ".join(last))}
        if done.returncode or not (counts.get("passed") or counts.get("skipped")): raise RuntimeError(f"pytest ended with status {done.returncode}: {' '.join(last)}")
        return counts
    yield "pytest", run


def products(setup: Setup) -> Measurements:
    "How fast one large matrix product is: the peak in practice."
    def run():
        n = 64 if setup.toy else 8192
        a, b, out = (torch.randn(n, n, device=setup.device, dtype=setup.dtype) for _ in range(3))
        found = alone(setup, lambda: torch.mm(a, b, out=out))
        return found | share_of_peak(setup, 2 * n**3, found["median"])
    yield f"matrix_product_{setup.precision}", run


def training(setup: Setup, compiled: bool) -> Measurements:
    "A training step: ours beside Llama, both with the fused AdamW, and the limit."
    from llm_course.engine.diary import step_flops
    way = "compiled" if compiled else "eager"
    def run():
        def make():
            pair = steppers(setup.device, setup.shape, setup.rows, setup.precision, compiled, llama, lr=1e-4)
            return *pair, only_products(setup.device, setup.shape[:6], setup.rows, setup.dtype)
        tokens = setup.rows * setup.shape[1]
        what = f"A step of training, {setup.rows} sequences of {setup.shape[1]} tokens, {setup.precision}, {way}."
        found = duel(setup, what, "transformers.LlamaForCausalLM", make, PRODUCTS, "transformers")
        flops = step_flops(setup.model("meta"), tokens)
        for side in "ours", "peer":
            seconds = found[side]["median"]
            found[side] |= {"tokens_per_second": round(tokens / seconds)} | share_of_peak(setup, flops, seconds)
        return found
    yield f"step_{setup.precision}_{way}", run


def eager(setup: Setup) -> Measurements:
    "A training step as it stands."
    return training(setup, compiled=False)


def compiled(setup: Setup) -> Measurements:
    "A training step by torch.compile."
    return training(setup, compiled=True)


def generation(setup: Setup) -> Measurements:
    "128 tokens, beside Hugging Face's library and the limit; then ours in half precision, one text and many."
    from llm_course.generating import generate_ids
    what = "128 tokens, greedily, after a prompt of 16, float32."
    shape = (*setup.shape[:1], 256, *setup.shape[2:])
    yield "float32", lambda: duel(setup, what, "transformers generate", lambda: writers(setup.device, *shape), VECTORS, "transformers")

    def half(rows):
        model = setup.model(setup.device).to(setup.dtype).eval()
        ids = torch.randint(setup.shape[0], (rows, 4 if setup.toy else 16), device=setup.device)
        count = 8 if setup.toy else 128
        found = alone(setup, lambda: generate_ids(model, ids, count, temperature=0.))
        if rows == 1: found["limit"] = {"name": VECTORS} | alone(setup, only_vectors([p.detach() for p in model.parameters() if p.ndim == 2], count))
        return found | {"tokens_per_second": round(rows * count / found["median"])}
    for rows in 1, 64: yield f"{setup.precision}_{rows}", lambda rows=rows: half(rows)


def kernels(setup: Setup) -> Measurements:
    "AdamW, cross-entropy and attention, each beside torch's."
    from llm_course.attention import attention
    from llm_course.engine.attention_kernel import fused_attention
    from llm_course.engine.flash import flash_attention
    from llm_course.engine.flash_triton import flash_attention_triton
    from llm_course.loss import cross_entropy
    from llm_course.optim import AdamW

    def adamw(ours, theirs):
        def make():
            shapes = [p.shape for p in setup.model("meta").parameters()]
            sides = [[torch.nn.Parameter(torch.full(shape, .5, device=setup.device)) for shape in shapes] for _ in range(2)]
            for p, q in zip(*sides): p.grad = q.grad = torch.randn_like(p)
            return AdamW(sides[0], lr=1e-3, **ours).step, torch.optim.AdamW(sides[1], lr=1e-3, **theirs).step
        return duel(setup, "A step of AdamW.", f"torch.optim.AdamW({theirs})", make)
    yield "adamw_default", lambda: adamw({}, {})
    yield "adamw_fused", lambda: adamw({"fused": True}, {"fused": True})

    def loss():
        logits = torch.randn(setup.rows * setup.shape[1], setup.shape[0], device=setup.device, dtype=setup.dtype, requires_grad=True)
        targets = torch.randint(setup.shape[0], logits.shape[:1], device=setup.device)
        return back(lambda x: cross_entropy(x, targets), logits), back(lambda x: F.cross_entropy(x.float(), targets), logits)
    yield "cross_entropy", lambda: duel(setup, f"Cross-entropy of {setup.precision} logits, forward and backward.", "F.cross_entropy in float32", loss)

    _, context, d_model, _, heads = setup.shape[:5]
    def heads_of():
        size = (2, heads, context, d_model // heads) if setup.toy else (8, heads, context, d_model // heads)
        return [torch.randn(size, device=setup.device, dtype=setup.dtype, requires_grad=True) for _ in range(3)]
    theirs = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    def beside(ours):
        q, k, v = heads_of()
        return back(lambda q, k, v: ours(q, k, v, causal=True), q, k, v), back(theirs, q, k, v)
    yield "attention_fused", lambda: duel(setup, "Causal attention, forward and backward, by the fused kernel.", "F.scaled_dot_product_attention", lambda: beside(fused_attention))
    yield "attention_written_out", lambda: duel(setup, "Causal attention, forward and backward, written out.", "F.scaled_dot_product_attention", lambda: beside(attention))
    yield "attention_tiles", lambda: duel(setup, "Causal attention, forward and backward, in tiles of plain PyTorch.", "F.scaled_dot_product_attention", lambda: beside(flash_attention))
    if setup.device == "cuda":   # elsewhere Triton has only its interpreter
        yield "attention_triton", lambda: duel(setup, "Causal attention, forward and backward, in Triton.", "F.scaled_dot_product_attention", lambda: beside(flash_attention_triton))

    def kernel(backend):
        from torch.nn.attention import sdpa_kernel
        try:
            with sdpa_kernel(backend): return alone(setup, back(theirs, *heads_of()))
        except RuntimeError as error: return {"unsupported": str(error).partition("\n")[0]}   # not every kernel fits every GPU and type
    from torch.nn.attention import SDPBackend
    for name in "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH":
        yield f"kernel_{name.lower()}", lambda name=name: kernel(getattr(SDPBackend, name))


def memory(setup: Setup) -> Measurements:
    "The peak of a training step against an estimate from a single row."
    from llm_course.engine.budget import estimate_memory
    from llm_course.engine.diary import peak_memory
    from llm_course.loss import cross_entropy
    from llm_course.optim import AdamW

    def run():
        model = setup.model("cpu").to(setup.device)
        optimizer = AdamW(model.parameters(), lr=1e-4, fused=True)
        batch = torch.randint(setup.shape[0], (setup.rows, setup.shape[1] + 1), device=setup.device)
        saved: dict[int, int] = {}   # bytes kept for the backward pass, by the address of the memory that they lie in

        def note(x):
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x.detach()   # not itself: that would be a circle

        def step(rows, watch):
            optimizer.zero_grad()
            with watch, torch.autocast(setup.device, torch.bfloat16, enabled=setup.precision == "bfloat16"):
                logits = model(rows[:, :-1])
                loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            saved_logits = logits.numel() * logits.element_size()
            del logits
            loss.backward()
            optimizer.step()
            return saved_logits

        logits = step(batch[:1], torch.autograd.graph.saved_tensors_hooks(note, lambda x: x))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept = sum(size for address, size in saved.items() if address not in own)
        numbers = sum(p.numel() for p in model.parameters())
        casts = sum(p.numel() * 2 for p in model.parameters() if p.ndim > 1) if setup.precision == "bfloat16" else 0
        per_row = kept - casts + logits   # autocast keeps its copies of the matrices once; the gradient of the logits is as large as they are
        estimate = 12 * numbers + casts + max(4 * numbers, setup.rows * per_row)   # weights and moments; then gradients, or what waits for them
        if setup.device == "cuda": torch.cuda.reset_peak_memory_stats()
        step(batch, nullcontext())
        step(batch, nullcontext())
        peak_mib = peak_memory(torch.device(setup.device))
        account = estimate_memory(model.config, setup.rows, setup.precision, device=setup.device).peak
        return {"account_mib": round(account / 2**20), "peak_by_account": peak_mib and round(peak_mib * 2**20 / account, 3), "rows": setup.rows, "per_row_mib": round(per_row / 2**20, 1), "estimate_mib": round(estimate / 2**20), "peak_mib": peak_mib and round(peak_mib),
                "peak_of": "the GPU's allocator" if setup.device == "cuda" else "the whole process", "peak_by_estimate": peak_mib and round(peak_mib * 2**20 / estimate, 3)}
    yield f"step_{setup.precision}", run


def demo(setup: Setup) -> Measurements:
    "A short run by the recipe of `make demo`, on Python's own manual, with the tokenizer of the small model that the package carries."
    import shlex
    from pydoc_data.topics import topics

    import numpy as np

    from llm_course import training
    from llm_course.bpe_tokenizer import BpeTokenizer
    from llm_course.data import write_ids
    from llm_course.generating import DEMO, generate, load_model

    def run():
        recipe = re.search(r"^RECIPE := (.*?)\n\n", (root/"Makefile").read_text("utf-8"), re.M | re.S)
        assert recipe, "the Makefile has no recipe"
        steps = 2 if setup.toy else 500
        words = shlex.split(re.sub(r"--iterations \d+", f"--iterations {steps}", recipe[1].replace("\\\n", " ")))
        tokenizer = BpeTokenizer.load(DEMO/"tokenizer.json")
        ids = np.array(tokenizer.encode("\n".join(topics.values())[: 20_000 if setup.toy else None]))
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            tokenizer.save(home/"tokenizer.json")
            for name, part in ("train", ids[: len(ids) * 9 // 10]), ("val", ids[len(ids) * 9 // 10 :]):
                with open(home/f"{name}.bin", "wb") as file: write_ids(file, [part], tokenizer.vocab_size)
            began = time.perf_counter()
            training.main(["--train_data", f"{home}/train.bin", "--val_data", f"{home}/val.bin", "--output", f"{home}/run", "--device", setup.device, *words])
            seconds = time.perf_counter() - began
            last = json.loads((home/"run"/"metrics.jsonl").read_text("utf-8").splitlines()[-1])
            model = load_model(home/"run"/"checkpoint.pt", setup.device)
            text = generate(model, tokenizer, "The ", max_tokens=5 if setup.toy else 60, seed=0)
        return {"iterations": steps, "seconds": round(seconds, 1), "last_line": last, "text": text}
    yield "run", run


def one_of_several(rank: int, count: int, ports: dict[str, int], configs: dict, setup: Setup, told: Any) -> None:
    "A process with a GPU of its own, as torchrun would start it: the two ways to share a run, and an all-reduce."
    import torch.distributed as dist

    from llm_course.training import train
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    for way, config in configs.items():
        os.environ["MASTER_PORT"] = str(ports[way])
        train(config)
    if setup.device == "cuda": torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if setup.device == "cuda" else "gloo", init_method=f"tcp://127.0.0.1:{ports['sum']}", rank=rank, world_size=count)
    x = torch.ones(2**10 if setup.toy else 2**26, device=setup.device)
    seconds = []
    for _ in range(3 + setup.rounds):
        dist.barrier()
        seconds.append(clock(lambda: dist.all_reduce(x), setup.device, 1))
    if rank == 0: told.put({"bytes": x.nbytes} | spread(seconds[3:]))
    dist.barrier()
    dist.destroy_process_group()


def several(setup: Setup) -> Measurements:
    "Training by DDP and FSDP on several GPUs, over NCCL, with the losses of one; and the speed of an all-reduce. Toys have gloo, on the CPU."
    import multiprocessing
    import socket

    import numpy as np
    count = 2 if setup.toy else 2 ** (torch.cuda.device_count().bit_length() - 1)
    if count < 2:
        yield "training", lambda: {"unsupported": "one GPU"}
        return

    def run():
        from llm_course.training import TrainConfig, train
        sizes = (31, 8, 8, 1, 2, 12) if setup.toy else (8192, 512, 512, 4, 8, 1408)
        shape = dict(zip(("vocab_size", "max_seq_len", "d_model", "num_layers", "num_heads", "d_ff"), sizes))
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in ("ddp", "fsdp", "sum")}
        ports = {name: one.getsockname()[1] for name, one in sockets.items()}
        for one in sockets.values(): one.close()
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            ids = np.arange(9 * count * shape["max_seq_len"]) * 7 % shape["vocab_size"]
            ids.astype(np.uint16).tofile(home/"ids.bin")
            def config(way, device):
                return TrainConfig(train_data=home/"ids.bin", val_data=home/"ids.bin", output=home/str(way), batch_size=2 * count, grad_accumulation=2, iterations=8, log_interval=1, val_interval=8,
                                   val_batches=1, warmup_iters=0, precision="float32", device=device, parallel=way, live_plot=False, **shape)
            context = multiprocessing.get_context("fork" if setup.toy and "fork" in multiprocessing.get_all_start_methods() else "spawn")
            told = context.Queue()
            configs = {way: config(way, setup.device) for way in ("ddp", "fsdp")}
            members = [context.Process(target=one_of_several, args=(rank, count, ports, configs, setup, told)) for rank in range(count)]
            for member in members: member.start()
            train(config(None, setup.device))
            for member in members: member.join()
            if any(member.exitcode for member in members): raise RuntimeError(f"the processes ended with {[member.exitcode for member in members]}")
            lines = {way: [json.loads(line) for line in (home/str(way)/"metrics.jsonl").read_text("utf-8").splitlines()] for way in (None, *configs)}
            found = {"count": count, "sum": told.get()}
        found["bytes_per_second"] = round(2 * (count - 1) / count * found["sum"]["bytes"] / found["sum"]["median"])
        for way in configs:
            off = max(abs(line[key] / alone[key] - 1) for line, alone in zip(lines[way], lines[None], strict=True) for key in ("train_loss", "val_loss") if key in line)
            if off > 1e-5: raise RuntimeError(f"{way}: a loss is off by {off:.1e} of its value")
            found[way] = {"off": float(f"{off:.1e}"), "tokens_per_second": round(lines[way][-1]["tokens_per_second"])}
        return found
    yield "training", run


# Each part and its seconds, the start of its process included; together less than eight minutes.
PARTS = {tests: 80, products: 20, eager: 41, kernels: 40, generation: 72, memory: 25, demo: 37, several: 35, compiled: 120}
NAMES = {part.__name__: part for part in PARTS}


# ---- A part runs in a process of its own.

def measure(part: str, setup: Setup, output: Path) -> bool:
    "Run a part here, and keep each of its measurements as soon as it is there; did all succeed?"
    import traceback
    found, good = {}, True
    for name, function in NAMES[part](setup):
        torch.manual_seed(0)
        try: found[name] = function()
        except (Exception, SystemExit) as error:   # commands leave by the latter
            traceback.print_exc()
            found[name], good = {"error": f"{type(error).__name__}: {error}"[:1000]}, False
        with whole_file(output, "w") as file: file.write(json.dumps(found))
        if setup.device == "cuda": torch.cuda.empty_cache()
    return good


def environment(setup: Setup, home: Path) -> dict[str, str]:
    "For a part's process: no network, compiled code beside the results, memory in segments that can grow."
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(home/"inductor"), "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    if setup.toy: settings |= {"TORCH_COMPILE_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return {**settings, **os.environ}


def end(process: subprocess.Popen) -> None:
    "End a process and all that it has started."
    if hasattr(os, "killpg"): os.killpg(process.pid, signal.SIGKILL)
    else: process.kill()
    process.wait()


def run_part(part: str, setup: Setup, seconds: float) -> dict:
    "Let a process measure a part for so many seconds at most; what it found, what became of it, and its last words if that was no good."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home, began = Path(folder), time.perf_counter()
        words = [sys.executable, "-m", "bench.gpu", "--child", part, setup.device, "toy" if setup.toy else "full", str(home/"found.json")]
        with open(home/"log.txt", "wb") as log:
            process = subprocess.Popen(words, cwd=root, env=environment(setup, home), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try: status = "done" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired: status = "cut off"
            finally:
                if process.poll() is None: end(process)
        result = {"status": status, "seconds": round(time.perf_counter() - began, 1), "limit_seconds": round(seconds), "found": {}}
        if (home/"found.json").exists(): result["found"] = json.loads((home/"found.json").read_text("utf-8"))
        if status != "done": result["said"] = (home/"log.txt").read_text("utf-8", errors="replace")[-3000:]
        return result


@dataclass(frozen=True)
class Config:
    "Run the tests for GPUs, and measure training, generation, kernels and memory on one; where there is none, say so.\n\nExample: python -m bench.gpu eager kernels --seconds 120"
    parts: Annotated[tuple[str, ...], Positional, arg(metavar="PART [PART ...]", help_behavior_hint="(default: all)")] = ()   # Which parts: tests, products, eager, kernels, generation, memory, demo, several, compiled
    seconds: float = 470.   # For all parts together, at most
    toy: bool = False       # On the CPU, at toy size: shows that every part runs, and measures nothing
    output: Annotated[Path | None, by_default("the file of this kind of GPU in bench/results/gpu; nowhere for toys")] = None   # File for the results

    def __post_init__(self):
        if unknown := set(self.parts) - NAMES.keys(): raise ValueError(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
        if not self.seconds > 0: raise ValueError(f"--seconds must be positive, but it is {self.seconds}")


def about(setup: Setup) -> dict:
    "What it runs on, and of what."
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for name in "transformers", "triton":
        try: versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: versions[name] = "missing"
    found = {"machine": machine(setup.device), "versions": versions, "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "toy": setup.toy,
             "shape": setup.shape, "parameters": sum(p.numel() for p in setup.model("meta").parameters()), "rows": setup.rows, "precision": setup.precision}
    if setup.device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        promised = peak(gpu.name, setup.precision)
        found["gpu"] = {"name": gpu.name, "memory_mib": gpu.total_memory // 2**20, "capability": f"{gpu.major}.{gpu.minor}", "multiprocessors": gpu.multi_processor_count,
                        "cuda": torch.version.cuda, "peak_flops": promised or "unknown"}
    return found


def main(config: Config) -> None:
    "Run the parts, and keep what each has found as soon as it ends; exit status 1 if one did not end well."
    if not config.toy and not torch.cuda.is_available():
        print("there is no GPU here, so nothing was measured; --toy runs every part on the CPU")
        return
    setup = Setup("cpu" if config.toy else "cuda", config.toy)
    path = output_path(config.output or kinds/"gpu"/f"{kind(setup.device)}.json", "--output") if config.output or not config.toy else None
    results = json.loads(path.read_text("utf-8")) if path and path.exists() else {"parts": {}}
    results |= {"about": about(setup)}
    until = time.perf_counter() + config.seconds
    good = True
    for part, limit in PARTS.items():
        name = part.__name__
        if config.parts and name not in config.parts: continue
        left = until - time.perf_counter()
        result = run_part(name, setup, min(limit, left)) if left > 0 else {"status": "no time left", "found": {}}
        results["parts"][name] = result | {"commit": results["about"]["commit"], "date": results["about"]["date"]}
        if path:
            with whole_file(path, "w") as file: file.write(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        good = good and result["status"] == "done"
        print(f"{name:12} {result['status']:12} {result.get('seconds', 0):6.1f} s   {summary(result['found'])}", flush=True)
        if "said" in result: print(result["said"], flush=True)
    if not good: raise SystemExit(1)


def summary(found: dict) -> str:
    "What was found, in a line."
    words = []
    for name, value in found.items():
        if "ratio" in value: words.append(f"{name} {value['ratio']['median']:.2f} of the peer's time")
        elif "median" in value: words.append(f"{name} {1e3 * value['median']:.3g} ms")
        elif "error" in value or "unsupported" in value: words.append(f"{name} {'failed' if 'error' in value else 'unsupported'}")
        else: words.append(name)
    return ", ".join(words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        part, device, size, output = sys.argv[2:]
        sys.exit(0 if measure(part, Setup(device, size == "toy"), Path(output)) else 1)
    run_command(Config, main, prog="python -m bench.gpu")
