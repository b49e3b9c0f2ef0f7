"""Chapter 21's classes: what assignment 2 of Stanford's CS336 asks of a data parallel model and a sharded optimiser, by our own tests of that behaviour; and what may go wrong."""
import os
import signal
import subprocess
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.engine.commands import parse
from llm_course.engine.flags import TrainConfig
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.transformer import Transformer

dist = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(not (dist.is_available() and hasattr(os, "fork")), reason="needs torch.distributed and fork")
if dist.is_available():
    from llm_course.distributed import (
        DataParallel,
        ShardedModule,
        ShardedOptimizer,
        TensorParallelFFN,
        fill_buckets,
        in_processes,
        shard_model,
    )

root = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def loaded():
    "What each process would load by itself: an optimiser needs much of torch."
    torch.optim.SGD([torch.zeros(1)])


# ---- The adapters of assignment 2

def get_ddp_individual_parameters(module): return DataParallel(module, bucket_size_mb=0)
def ddp_individual_parameters_on_after_backward(model, optimizer): model.finish_gradient_synchronization()
def get_ddp_bucketed(module, bucket_size_mb): return DataParallel(module, bucket_size_mb)
def ddp_bucketed_on_after_backward(model, optimizer): model.finish_gradient_synchronization()
def get_sharded_optimizer(params, optimizer_cls, **settings): return ShardedOptimizer(params, optimizer_cls, **settings)


class Toy(nn.Module):
    "A network with a parameter that is not trained, one without a bias, and perhaps two that are one."
    def __init__(self, tied):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(10, 50), nn.Linear(50, 50, bias=False), nn.Linear(50, 5)
        self.third = nn.Linear(50, 50, bias=False)
        if tied: self.third.weight = self.second.weight
        self.fixed = nn.Parameter(torch.tensor([2., 2.]), requires_grad=False)

    def forward(self, x): return self.last(self.third(self.second(self.first(x).relu()).relu()).relu())


def learns_like_one(rank, count, tied, size):
    "Five steps of SGD on shares of the data, against the same on all of it."
    torch.manual_seed(rank)
    alone = Toy(tied)
    own = {name: p.clone() for name, p in alone.named_parameters()}
    model = get_ddp_individual_parameters(deepcopy(alone)) if size is None else get_ddp_bucketed(deepcopy(alone), size)
    for (name, p), (wrapped, q) in zip(own.items(), model.named_parameters(), strict=True):
        assert wrapped.endswith(name) and torch.equal(p, q) == (rank == 0 or name == "fixed"), "process 0's numbers go to all"
    alone.load_state_dict(model.module.state_dict())
    dice = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 10, generator=dice), torch.randn(20, 5, generator=dice)
    optimizers = [torch.optim.SGD(one.parameters(), lr=.1) for one in (alone, model)]
    for _ in range(5):
        for one, optimizer, (a, b) in zip((alone, model), optimizers, ((x, y), (x.chunk(count)[rank], y.chunk(count)[rank]))):
            optimizer.zero_grad()
            nn.functional.mse_loss(one(a), b).backward()
            if one is model: (ddp_individual_parameters_on_after_backward if size is None else ddp_bucketed_on_after_backward)(model, optimizer)
            optimizer.step()
        for p, q in zip(alone.parameters(), model.parameters(), strict=True): assert_close(p, q, rtol=1e-5, atol=1e-6)
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("size", [None, .0001, .0016, .01, 25.])
@pytest.mark.parametrize("tied", [False, True])
def test_data_parallel_learns_like_one_process(tied, size):
    first, second = in_processes(2, partial(learns_like_one, tied=tied, size=size))
    assert all(map(torch.equal, first, second)), "the copies must stay equal to the last bit"


def accumulates(rank, count):
    "Batches in pieces, a parameter that nothing uses, and another that only one process uses; nothing is sent before the last piece."
    torch.manual_seed(0)
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.sometimes, self.never = (nn.Parameter(torch.ones(3)) for _ in range(3))
        def forward(self, x): return (self.used * x + (self.sometimes * x if rank == 0 else 0)).sum()
    model, sent, real = DataParallel(Odd(), 0), [], dist.all_reduce
    dist.all_reduce = lambda *words, **more: (sent.append(1), real(*words, **more))[1]
    for step in range(2):
        model.zero_grad()
        for piece in range(3):
            model.synchronise = piece == 2
            model(torch.full((3,), float(rank + piece))).backward()
            assert piece == 2 or len(sent) == 3 * step
        model.finish_gradient_synchronization()
    assert len(sent) == 6
    assert model.module.used.grad.tolist() == [(0 + 1 + 2 + 1 + 2 + 3) / 2] * 3
    assert model.module.sometimes.grad.tolist() == [(0 + 1 + 2) / 2] * 3 and model.module.never.grad.tolist() == [0] * 3


def test_pieces_add_up_and_idle_parameters_do_no_harm(): in_processes(2, accumulates)


def test_buckets_are_filled_in_order():
    params = [torch.zeros(n, dtype=t) for n, t in ((10, torch.float32), (10, torch.float32), (30, torch.float32), (1, torch.float32), (1, torch.float64), (1, torch.float64))]
    sizes = lambda size: [len(bucket) for bucket in fill_buckets(params, size)]
    assert sizes(80) == [2, 1, 1, 2] and sizes(0) == [1] * 6 and sizes(1e9) == [4, 2]
    assert all(p is q for p, q in zip([p for bucket in fill_buckets(params, 80) for p in bucket], params, strict=True))


def steps_like_one(rank, count, kind):
    "Ten steps with groups of their own rates, one of them added later, and a rate that changes on the way."
    torch.manual_seed(0)
    models = Toy(False), Toy(False)
    models[1].load_state_dict(models[0].state_dict())
    settings = {"AdamW": dict(lr=.1, weight_decay=.1, betas=(.9, .999), eps=1e-8), "SGD": dict(lr=.1, momentum=.9), "ours": dict(lr=.1, weight_decay=.1)}[kind]
    maker = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD, "ours": AdamW}[kind]
    optimizers = []
    for make, model in zip((maker, partial(get_sharded_optimizer, optimizer_cls=maker)), models):
        optimizer = make([{"params": model.first.parameters()}, {"params": [model.second.weight], "lr": .01}], **settings)
        optimizer.add_param_group({"params": [model.third.weight, *model.last.parameters()]})
        optimizers.append(optimizer)
    for step in range(10):
        x, y = torch.randn(8, 10), torch.randn(8, 5)
        for model, optimizer in zip(models, optimizers):
            if step == 5:
                for group in optimizer.param_groups: group["lr"] /= 2
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
        for p, q in zip(models[0].parameters(), models[1].parameters()): assert_close(p, q)
    held = sum(x.numel() for state in optimizers[1].inner.state.values() for x in state.values() if isinstance(x, torch.Tensor) and x.ndim)
    return held, sum(p.numel() for p in models[0].parameters() if p.requires_grad), optimizers[1].state_dict()


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "ours"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_sharded_optimiser_steps_like_a_whole_one(count, kind):
    found = in_processes(count, partial(steps_like_one, kind=kind))
    numbers = found[0][1] * (1 if kind == "SGD" else 2)
    assert sum(held for held, *_ in found) == numbers and max(held for held, *_ in found) < .75 * numbers, "each number has one owner"


# ---- Every scheme is one process

def whole(model, of):
    "The weights of a model, or their gradients, by name, whatever this process holds of them."
    found = {}
    for place, module in model.named_modules():
        if isinstance(module, ShardedModule): own = module.named(of(module.piece))
        elif isinstance(module, TensorParallelFFN):
            own = {}
            for name, dim in ("w1", 0), ("w2", 1), ("w3", 0):
                mine = of(getattr(module, name)).contiguous()
                pieces = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
                dist.all_gather(pieces, mine)
                own[f"{name}.weight"] = torch.cat(pieces, dim)
        else: own = {name: of(p) for name, p in module.named_parameters(recurse=False)}
        for name, x in own.items(): found[f"{place}.{name}".removeprefix("module.")] = x.detach().clone()
    return found


def learned(scheme, dtype, rank, count):
    "The losses of some steps of a Transformer, the gradients of the first, and the weights after the last."
    torch.manual_seed(0)
    model, finish, make, losses = Transformer(31, 8, d_model=16, num_layers=2, num_heads=2, d_ff=24).to(dtype), lambda: None, AdamW, []
    if scheme in ("data parallel", "ZeRO 1"):
        model = DataParallel(model, .003)
        finish = model.finish_gradient_synchronization
    if scheme == "ZeRO 1": make = partial(ShardedOptimizer, optimizer_class=AdamW)
    if scheme in ("ZeRO 2", "ZeRO 3"): shard_model(model, keep=scheme == "ZeRO 2")
    if scheme == "tensor parallel":
        for block in model.blocks: block.ffn = TensorParallelFFN(block.ffn)
    optimizer = make(model.parameters(), lr=1e-2)
    for step in range(4):
        ids = (torch.randint(31, (8, 1), generator=torch.Generator().manual_seed(step)) + torch.arange(9)) % 31
        mine = ids if scheme in ("one process", "tensor parallel") else ids.chunk(count)[rank]
        loss = cross_entropy(model(mine[:, :-1]), mine[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        finish()
        if step == 0: gradients = whole(model, lambda p: p.grad)
        optimizer.step()
        loss = loss.detach()
        if len(mine) < len(ids):
            dist.all_reduce(loss)
            loss /= count
        losses.append(loss)
    return torch.stack(losses), gradients, whole(model, lambda p: p.detach())


def learn_like_one(rank, count):
    for dtype in torch.float32, torch.float64:
        wanted = learned("one process", dtype, rank, count)
        for scheme in "data parallel", "ZeRO 1", "ZeRO 2", "ZeRO 3", "tensor parallel":
            for what, a, b in zip(("losses", "gradients", "weights"), learned(scheme, dtype, rank, count), wanted, strict=True):
                if what == "weights" and dtype == torch.float32: continue   # Adam magnifies rounding
                assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m, told=f"{what} of {scheme} on {count} processes, {dtype}: ": told + m)


@pytest.mark.parametrize("count", [2, 4])
def test_every_scheme_learns_like_one_process(count): in_processes(count, learn_like_one)


# ---- Beyond the page

def odd_sizes(rank, count):
    "Modules whose parameters no number of processes divides, and fewer numbers than processes; nothing of the whole is left behind."
    torch.manual_seed(rank)   # process 0's numbers count
    for shape, keep in ((3, 5), True), ((3, 5), False), ((1, 1), False):
        layer = nn.Linear(*shape)
        whole = deepcopy(layer)
        for p in whole.parameters(): dist.broadcast(p.detach(), 0)
        sharded = ShardedModule(layer, keep)
        assert sum(p.numel() for p in layer.parameters()) == 0 and [*dict(sharded.named_parameters())] == ["piece"]
        x = torch.randn(4, shape[0], generator=torch.Generator().manual_seed(rank))
        loss, wanted = sharded(x).square().sum(), whole(x).square().sum()
        assert_close(loss, wanted)
        loss.backward()
        wanted.backward()
        for p in whole.parameters():
            dist.all_reduce(p.grad)
            p.grad /= count
        for name, grad in sharded.named(sharded.piece.grad).items(): assert_close(grad, whole.get_parameter(name).grad)
        with torch.no_grad(): assert_close(sharded(x), whole(x))


@pytest.mark.parametrize("count", [2, 3])
def test_sharded_modules_of_odd_sizes(count): in_processes(count, odd_sizes)


def test_a_layer_that_cannot_be_cut_is_refused():
    from llm_course.ffn import FFN
    with pytest.raises(ValueError, match=r"d_ff must be a multiple of the 2 processes, but 5 % 2 = 1"): in_processes(2, lambda rank, count: TensorParallelFFN(FFN(4, 5)))


def test_the_first_error_comes_back_with_its_process_and_a_killed_process_is_named():
    def fail(rank, count):
        if rank == 1: raise KeyError("gone")
        dist.barrier()
    with pytest.raises(KeyError, match="gone") as error: in_processes(3, fail)
    assert "in process 1 of 3" in error.value.__notes__[0]
    with pytest.raises(RuntimeError, match="a process was killed"): in_processes(1, lambda rank, count: os.kill(os.getpid(), signal.SIGKILL))


# ---- Launch files

@pytest.mark.skipif(sys.platform == "win32", reason="bash")
@pytest.mark.parametrize("name, asked, wanted", [
    ("one_host.sh", {"PROCESSES": "2"}, ["--standalone", "--nproc_per_node", "2"]),
    ("several_hosts.sh", {"HOSTS": "4", "MEETING": "first-host:29500"}, ["--nnodes", "4", "--nproc_per_node", "gpu", "--rdzv_endpoint", "first-host:29500"]),
    ("slurm.sh", {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "77"}, ["--nnodes", "4", "--rdzv_endpoint", "n1:29500", "--rdzv_id", "77"])])
def test_launch_files_start_what_they_say(name, asked, wanted, tmp_path):
    "Programs of the same names only say how they were called; torchrun's own parser and the training command's then read it."
    from torch.distributed.run import get_args_parser
    for program, says in ("torchrun", 'printf "%s\\n" "$@"'), ("srun", 'while [ "$1" != torchrun ]; do shift; done; "$@"'), ("scontrol", 'printf "n1\\nn2\\n"'):
        (tmp_path/program).write_text(f"#!/usr/bin/env bash\n{says}\n", "utf-8", newline="\n")
        (tmp_path/program).chmod(0o755)
    script, flags = str(root/"launch"/name), ["--train_data", "a b.bin", "--val_data", "v.bin", "--batch_size", "64"]
    assert subprocess.run(["bash", "-n", script]).returncode == 0 and os.access(script, os.X_OK)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run([script, *flags], env=own | asked, capture_output=True, text=True, encoding="utf-8", check=True).stdout.splitlines()
    assert " ".join(wanted) in " ".join(said) or all(word in said for word in wanted)
    read = get_args_parser().parse_args(said)
    assert read.training_script == "llm_course.training" and read.module and int(read.max_restarts) == 3
    config = parse(TrainConfig, read.training_script_args)
    assert config.resume and config.parallel == "fsdp" and config.train_data == Path("a b.bin") and config.batch_size == 64
    if name == "several_hosts.sh":
        lacking = subprocess.run([script], env=own, capture_output=True, text=True, encoding="utf-8")
        assert lacking.returncode and "how many machines?" in lacking.stderr
    if name == "slurm.sh": assert "#SBATCH --ntasks-per-node=1" in Path(script).read_text("utf-8")
