"""Several processes, with gloo on the CPU: FSDP's shares move like the whole, at sizes and in shapes where a special path begins."""
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.testing import assert_close

from llm_course.engine.muon import Muon
from llm_course.optim import AdamW, SGDDecay, gradient_clip, params_for_decay

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")


def enter(rank, count, port, task, results):
    "One process: join the others, work, and send back what came out, or what went wrong."
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    try: results.put((rank, task(rank, count), None))
    except Exception: results.put((rank, None, traceback.format_exc()))
    finally: torch.distributed.destroy_process_group()


def in_processes(count, task):
    "Run `task(rank, count)` in some new processes; what they returned, by rank."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=enter, args=(rank, count, port, task, results)) for rank in range(count)]
    for worker in workers: worker.start()
    try: found = [results.get(timeout=300) for _ in workers]
    finally:
        for worker in workers: worker.join(30)
        for worker in workers: worker.kill()
    for rank, _, error in found: assert error is None, f"process {rank} of {count}: {error}"
    return [value for _, value, _ in sorted(found, key=lambda one: one[0])]


# ---- Optimisers on shares

SHAPES = [(257, 515), (4, 3), (2, 64), (7,), (1, 5)]   # above 65,536 numbers and uneven on 2 and 3 processes; fewer rows than processes


def optimizer_of(name, params):
    matrices = [p for p in params if p.ndim == 2]
    return {"AdamW": partial(AdamW, params, lr=0.01, weight_decay=0.1), "formulas": partial(AdamW, params, lr=0.01, weight_decay=0.1, fused=False),
            "SGDDecay": partial(SGDDecay, params, lr=0.1), "Muon": partial(Muon, matrices, lr=0.05)}[name]()


def walk(name, cut):
    "Some steps with clipped gradients, of whole tensors or of shares; parameters, states and norms, whole again."
    from llm_course.checkpoint import gathered
    torch.manual_seed(0)
    params = [nn.Parameter(cut(torch.randn(shape))) for shape in SHAPES]
    optimizer, norms = optimizer_of(name, params), []
    for step in range(4):
        for p, shape in zip(params, SHAPES): p.grad = cut(torch.randn(shape) * 10.**(step - 2))
        if step == 2: params[1].grad = None
        norms.append(gradient_clip(params, 5.))
        optimizer.step()
    state = [{key: gathered(x) for key, x in optimizer.state[p].items()} for p in params if p in optimizer.state]
    return [gathered(p.detach()) for p in params], state, norms


def compare_shares(rank, count):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    mesh = init_device_mesh("cpu", (count,))
    for name in "AdamW", "formulas", "SGDDecay", "Muon":
        wanted = walk(name, lambda x: x)
        for placement in Shard(0), Replicate():
            found = walk(name, lambda x, placement=placement: distribute_tensor(x, mesh, [placement]))
            assert not any(isinstance(norm, DTensor) for norm in found[2])
            assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        resume_shares(mesh, name)
    p = nn.Parameter(distribute_tensor(torch.ones(257, 300), mesh, [Shard(0)]))   # 1: what a review found to stand still
    p.grad = distribute_tensor(torch.ones(257, 300), mesh, [Replicate()])   # and a gradient that lies otherwise than its parameter
    for steps, make in enumerate((partial(AdamW, lr=0.1, weight_decay=0.), partial(AdamW, lr=0.1, weight_decay=0., fused=False), partial(SGDDecay, lr=0.1)), 1):
        make([p]).step()
        assert_close(p.full_tensor().detach(), torch.full((257, 300), 1 - 0.1 * steps))


def resume_shares(mesh, name):
    "A run of shares that is saved whole, and goes on in other shares."
    from torch.distributed.tensor import Shard, distribute_tensor

    from llm_course.checkpoint import gathered
    from llm_course.engine.processes import load_sharded
    cut = lambda x: distribute_tensor(x, mesh, [Shard(0)])
    torch.manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    first, second = ([nn.Parameter(cut(p.detach().clone())) for p in whole] for _ in range(2))
    grads = [[torch.randn(shape) for shape in SHAPES] for _ in range(2)]
    optimizers = [optimizer_of(name, params) for params in (whole, first, second)]
    for p, q, grad in zip(whole, first, grads[0]): p.grad, q.grad = grad, cut(grad)
    for optimizer in optimizers[:2]: optimizer.step()
    load_sharded(optimizers[2], gathered(optimizers[1].state_dict()))
    with torch.no_grad():
        for p, q in zip(first, second): q.copy_(p)
    for p, q, grad in zip(whole, second, grads[1]): p.grad, q.grad = grad, cut(grad)
    for optimizer in optimizers[::2]: optimizer.step()
    assert_close([gathered(q.detach()) for q in second], [p.detach() for p in whole], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_move_like_the_whole(count): in_processes(count, compare_shares)


# ---- Training

SHAPE = dict(vocab_size=1025, max_seq_len=16, d_model=66, num_layers=2, num_heads=3, d_ff=175)   # 67,650 numbers in embedding and head; rows that neither 2 nor 3 divide


def learn(way, muon, rank, count):
    "Losses of 50 steps, by one process, DDP or FSDP; then the parameters."
    from llm_course.checkpoint import gathered
    from llm_course.engine.muon import Together
    from llm_course.engine.processes import distribute
    from llm_course.training import TrainConfig, train_step
    from llm_course.transformer import Transformer
    torch.manual_seed(0)
    model = Transformer(**SHAPE)
    config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device="cpu", parallel=way, **SHAPE)
    wrapped = model if way is None else distribute(model, config)
    groups = params_for_decay(model, 0.1)
    inside = [p for p in groups[0]["params"] if muon and p.shape[0] != SHAPE["vocab_size"]]
    groups[0]["params"] = [p for p in groups[0]["params"] if not any(p is q for q in inside)]
    optimizer = AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    if muon: optimizer = Together(Muon(inside), optimizer)
    scaler, dice, losses = torch.amp.GradScaler("cpu", enabled=False), torch.Generator().manual_seed(1), []
    for _ in range(50):
        ids = torch.randint(0, SHAPE["vocab_size"] // 8, (6, 17), generator=dice)
        mine = ids if way is None else ids.chunk(count)[rank]
        loss, _norm = train_step(wrapped, optimizer, scaler, [(mine[:, :-1], mine[:, 1:])], 1.)
        if way is not None: torch.distributed.all_reduce(loss)
        losses.append(float(loss) / (1 if way is None else count))
    return losses, {name: gathered(x) for name, x in model.state_dict().items()}


def learn_all_ways(rank, count, muon=False):
    wanted, end = learn(None, muon, rank, count)
    torch.manual_seed(0)
    from llm_course.transformer import Transformer
    begin = Transformer(**SHAPE).state_dict()
    assert wanted[-1] < wanted[0] - 1
    for way in "ddp", "fsdp":
        losses, params = learn(way, muon, rank, count)
        torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-4, msg=lambda m, way=way: f"{way} on {count}: {m}")
        for name, x in params.items():
            assert not torch.equal(x, begin[name]), f"{way} on {count}: {name} never moved"
            moved = (end[name] - begin[name]).norm()
            assert (x - end[name]).norm() < 0.05 * moved, f"{way} on {count}: {name} ended elsewhere"


@pytest.mark.parametrize("count", [2, 3])
def test_one_process_ddp_and_fsdp_learn_the_same(count): in_processes(count, learn_all_ways)


def test_muon_learns_the_same_on_shares(): in_processes(3, partial(learn_all_ways, muon=True))


# ---- A rate that ruins the weights

def ruin(rank, count, folder):
    "A run that goes on at a rate of 1e20 until it is stopped, then at a small one from its last good checkpoint."
    from llm_course.training import TrainConfig, advance, settle, start
    for way, muon in ("ddp", None), ("fsdp", None), ("fsdp", .02):
        asked = TrainConfig(train_data=folder/"ids.bin", val_data=folder/"ids.bin", output=folder/f"{way} {muon}", vocab_size=50, max_seq_len=8, d_model=16, num_layers=1, num_heads=2, d_ff=24,
                            batch_size=4, iterations=9, log_interval=1, val_interval=1, val_batches=1, checkpoint_interval=1, warmup_iters=0, device="cpu", parallel=way, muon_lr=muon)
        run = start(settle(asked), rank, count)
        advance(run)
        torch.distributed.barrier()   # the first process writes
        run = start(settle(replace(asked, resume=True, lr_max=1e20, muon_lr=muon and 1e20)), rank, count)
        with pytest.raises(ValueError, match=r"checkpoint.pt is the last good checkpoint"):
            while run.done < 9: advance(run)
        torch.distributed.barrier()
        run = start(settle(replace(asked, resume=True, lr_max=1e-5)), rank, count)
        advance(run)
        torch.distributed.barrier()


def test_the_last_good_checkpoint_is_good_on_several_processes(tmp_path):
    import numpy as np

    from llm_course.checkpoint import read_checkpoint
    (np.arange(900, dtype=np.uint16) % 50).tofile(tmp_path/"ids.bin")
    in_processes(2, partial(ruin, folder=tmp_path))
    for path in tmp_path.glob("*/*.pt"):
        saved = read_checkpoint(path)
        moments = [x for state in saved["optimizer"]["state"].values() for x in state.values()]
        assert all(torch.as_tensor(x).isfinite().all() for x in [*saved["model"].values(), *moments]), path


@pytest.mark.parametrize("number, left", [("0", [0]), (None, [])])
def test_a_command_of_torchrun_leaves_without_python_s_end(monkeypatch, number, left):
    "Where a gloo thread may want Python's lock; alone, Python's end is waited for as usual."
    from llm_course.engine import processes
    found = []
    monkeypatch.setattr(processes.os, "_exit", found.append)
    monkeypatch.delenv("RANK", raising=False)
    if number: monkeypatch.setenv("RANK", number)
    processes.leave_at_once()
    assert found == left


# ---- What goes wrong between processes

@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_one_killed_process_ends_all_and_the_run_goes_on(tmp_path):
    "`python tests/killed_ranks.py FOLDER 2 20` kills more often."
    told = subprocess.run([sys.executable, "-W", "ignore", Path(__file__).with_name("killed_ranks.py"), tmp_path, "2", "2"], capture_output=True, text=True, encoding="utf-8")
    assert told.stdout == "2 kills of one of 2\n", told.stderr


def other_flags(rank, count):
    from llm_course.engine.processes import check_alike
    from llm_course.training import TrainConfig
    config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device=f"cuda:{rank}")
    check_alike(config)   # each has a device of its own
    with pytest.raises(ValueError, match=r"--batch_size is 8 for process 0, but 16 for process 1; start all of them with the same flags"):
        check_alike(replace(config, batch_size=8 * (rank + 1)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_processes_that_were_asked_for_different_runs_refuse():
    from llm_course.distributed import in_processes as forked
    forked(2, other_flags)


def test_a_port_in_use_is_said_in_a_line(monkeypatch):
    from llm_course.engine.processes import processes
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items(): monkeypatch.setenv(name, str(value))
        with pytest.raises(ValueError, match=f"port {port} is in use by another program; give torchrun another --master_port"), processes("ddp"): pass
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("said, lost", [("Connection closed by peer [127.0.0.1]:3", True), ("Broken pipe", True), ("Timed out waiting 1800000ms for recv operation to complete", True),
                                        ("The size of tensor a (3) must match the size of tensor b (4)", False)])
def test_a_lost_process_is_told_from_a_mistake(monkeypatch, said, lost):
    from llm_course.engine import processes
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}.items(): monkeypatch.setenv(name, str(value))
    for name in "init_process_group", "destroy_process_group": monkeypatch.setattr(torch.distributed, name, lambda *words: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConnectionError if lost else RuntimeError, match="--resume goes on" if lost else "size of tensor"), processes.processes("ddp"): raise RuntimeError(said)
    signal.signal(signal.SIGTERM, before)


def go_on(rank, count, config, steps):
    "Resume a run, or begin it, and take it as far as some step; how many rows each call of the model read."
    from llm_course import training
    rows = []
    run = training.start(training.settle(config), rank, count)
    forward = run.forward
    run.forward = lambda ids: (rows.append(len(ids)), forward(ids))[1]
    while run.done < steps: training.advance(run)
    torch.distributed.barrier()   # the first process writes
    return rows


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_goes_on_with_another_number_of_processes_which_share_its_validation(tmp_path):
    import json

    import numpy as np

    from llm_course.checkpoint import load_model
    from llm_course.distributed import in_processes as forked
    from llm_course.training import TrainConfig
    (np.arange(900, dtype=np.uint16) * 7 % 50).tofile(tmp_path/"ids.bin")
    config = TrainConfig(train_data=tmp_path/"ids.bin", val_data=tmp_path/"ids.bin", output=tmp_path/"whole", vocab_size=50, max_seq_len=8, d_model=16, num_layers=1, num_heads=2, d_ff=24,
                         batch_size=6, iterations=9, log_interval=1, val_interval=2, val_batches=2, checkpoint_interval=1, warmup_iters=0, device="cpu", resume=True)
    forked(1, partial(go_on, config=config, steps=8))
    for count, way, steps in (1, None, 2), (2, "fsdp", 4), (3, "ddp", 6), (1, None, 8):
        rows = forked(count, partial(go_on, config=replace(config, output=tmp_path/"parts", parallel=way), steps=steps))
        assert all({*some} == {6 // count} for some in rows)
    found, wanted = ([json.loads(line) for line in (tmp_path/name/"metrics.jsonl").read_text("utf-8").splitlines()] for name in ("parts", "whole"))
    for key in "train_loss", "val_loss", "grad_norm":
        values = [[line[key] for line in lines if key in line] for lines in (found, wanted)]
        assert len(values[0]) == {"val_loss": 4}.get(key, 8)
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    models = [load_model(tmp_path/name/"checkpoint.pt", "cpu").state_dict() for name in ("parts", "whole")]
    torch.testing.assert_close(*models, rtol=1e-2, atol=1e-4)
