"""Several processes, with gloo on the CPU: FSDP's shares move like the whole, at sizes and in shapes where a special path begins."""
import math
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from apart import apart
from torch import nn
from torch.testing import assert_close

from llm_course.engine.muon import Muon
from llm_course.optim import AdamW, SGDDecay, gradient_clip

if torch.distributed.is_available():
    from llm_course.distributed import in_processes

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")


# ---- Optimisers on shares

SHAPES = [(257, 515), (4, 3), (2, 64), (7,), (1, 5)]   # above 65,536 numbers and uneven on 2 and 3 processes; fewer rows than processes


def optimizer_of(name, params):
    matrices = [p for p in params if p.ndim == 2]
    return {"AdamW": partial(AdamW, params, lr=0.01, weight_decay=0.1), "formulas": partial(AdamW, params, lr=0.01, weight_decay=0.1, fused=False),
            "SGDDecay": partial(SGDDecay, params, lr=0.1), "Muon": partial(Muon, matrices, lr=0.05)}[name]()


def walk(name, cut):
    "Some steps with clipped gradients, of whole tensors or of shares; parameters, states and norms, whole again."
    from llm_course.engine.kernels import gathered
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

    from llm_course.engine.kernels import gathered
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

SHAPE = dict(vocab_size=101, max_seq_len=8, d_model=18, num_layers=2, num_heads=3, d_ff=35)   # rows that neither 2 nor 3 nor 4 divide
KINDS = {   # on how many processes, flags, the type of the weights, and how far losses may differ
    "tied": (2, dict(tie=True), torch.float64, 1e-9), "bfloat16": (4, dict(precision="bfloat16"), torch.float32, 1e-5),
    "float16": (2, dict(precision="float16"), torch.float32, 1e-5),   # the first scale is too large for it, so that all leave a step out
    "Muon": (3, dict(muon_lr=.02), torch.float64, 1e-9), "Muon, tied, in float32": (4, dict(tie=True, muon_lr=.02), torch.float32, 1e-5)}
STEPS = 4


def learn(kind, way=None, rank=0, count=1, pieces=1):
    "Losses and norms of some steps of two batches each, by one process (which may cut them up), DDP or FSDP; the parameters; how often something was sent in the last step."
    from llm_course.engine.kernels import gathered
    from llm_course.engine.processes import distribute, fast_forward, mean_over_processes
    from llm_course.engine.run_config import optimizer_for
    from llm_course.training import TrainConfig, train_step
    from llm_course.transformer import Transformer
    _, flags, dtype, _ = KINDS[kind]
    config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device="cpu", parallel=way, lr_max=3e-3, warmup_iters=0, **SHAPE, **flags)
    torch.manual_seed(0)
    model = Transformer(**SHAPE, tie=config.tie).to(dtype)
    forward, optimizer = fast_forward(model if count == 1 else distribute(model, config), config), optimizer_for(model, config)
    scaler, dice, losses, norms = torch.amp.GradScaler("cpu", 2.**21 / count, enabled=config.precision == "float16"), torch.Generator().manual_seed(1), [], []
    for step in range(STEPS):
        ids = torch.randint(0, 12, (2, 12, 9), generator=dice)
        own = [batch.chunk(count)[rank] for batch in ids]
        batches = [(some[:, :-1], some[:, 1:]) for mine in own for some in mine.chunk(pieces)]
        with torch.profiler.profile() if way and step == STEPS - 1 else nullcontext() as seen: loss, norm = train_step(forward, optimizer, scaler, batches, .4)
        losses += mean_over_processes([loss], "cpu", count)
        norms.append(float(norm))
    sent = Counter(event.name for event in seen.events()) if way else None
    return losses, norms, {name: gathered(x) for name, x in model.state_dict().items()}, sent


def learn_all_ways(rank, count, wanted, begun, long):
    for way in "ddp", "fsdp":
        torch.testing.assert_close(learn_long(way, rank, count), long[:LONG[count]], rtol=1e-5, atol=0, msg=lambda m, way=way: f"losses of {LONG[count]} steps by {way} on {count} processes: {m}")
    for kind, (losses, norms, end, _) in wanted.items():
        if KINDS[kind][0] != count: continue
        for way in "ddp", "fsdp":
            close, told = KINDS[kind][3], f"{kind} by {way} on {count} processes"
            found = learn(kind, way, rank, count)
            torch.testing.assert_close(found[0], losses, rtol=close, atol=0, msg=lambda m, told=told: f"losses of {told}: {m}")
            torch.testing.assert_close(found[1], norms, rtol=100 * close, atol=0, msg=lambda m, told=told: f"norms of {told}: {m}")
            for name, x in found[2].items():
                moved, off = (end[name] - begun[kind][name]).norm(), (x - end[name]).norm()
                assert moved > 0 and off < .001 * moved, f"{name} ended elsewhere, {told}"
            sent = found[3]   # gradients only once in a step of two batches: FSDP's embedding with head and norm, and two blocks; the copies' in two buckets at most
            if way == "fsdp": assert sent["c10d::_reduce_scatter_base_"] == 3, (told, sent)
            else: assert 1 <= sent["c10d::allreduce_"] <= 2, (told, sent)


@pytest.fixture(scope="module")
def one_process():
    "What one process learns, and where it begins."
    from llm_course.transformer import Transformer
    begun = {}
    for kind, (_, flags, dtype, _) in KINDS.items():
        torch.manual_seed(0)
        begun[kind] = Transformer(**SHAPE, tie=flags.get("tie", False)).to(dtype).state_dict()
    # half precision rounds the sum of each process's gradients by itself, so there one process takes the shares one after another
    wanted = {kind: learn(kind, pieces=count if "precision" in flags else 1) for kind, (count, flags, *_) in KINDS.items()}
    torch.testing.assert_close(wanted["bfloat16"][0], learn("bfloat16")[0], rtol=2e-4, atol=0)   # and a whole batch differs by that rounding alone
    assert math.isinf(wanted["float16"][1][0]) and max(wanted["float16"][1][1:]) < 1
    assert all(losses[-1] < losses[0] - .02 and max(norms) > .4 for losses, norms, *_ in wanted.values())   # and gradients are clipped
    return wanted, begun


WIDE = dict(vocab_size=4_097, max_seq_len=4, d_model=128, num_layers=2, num_heads=4, d_ff=341)   # rows of the vocabulary and of the FFN that no number of processes divides
LONG = {2: 10, 3: 50, 4: 10}   # steps, by the number of processes


def learn_long(way=None, rank=0, count=1):
    "The losses of many steps in float32, each of one batch, which processes share."
    from llm_course.engine.processes import distribute, fast_forward, mean_over_processes
    from llm_course.engine.run_config import optimizer_for
    from llm_course.training import TrainConfig, train_step
    from llm_course.transformer import Transformer
    config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device="cpu", parallel=way, lr_max=1e-3, warmup_iters=0, **WIDE)
    torch.manual_seed(0)
    model = Transformer(**WIDE)
    forward, optimizer = fast_forward(model if count == 1 else distribute(model, config), config), optimizer_for(model, config)
    scaler, dice, losses = torch.amp.GradScaler("cpu", enabled=False), torch.Generator().manual_seed(1), []
    for _ in range(LONG.get(count, 50)):
        ids = torch.multinomial(1 / torch.arange(1., 4_098), 12 * 5, replacement=True, generator=dice).view(12, 5)   # frequent ids and rare ones, as in a text
        mine = ids.chunk(count)[rank]
        loss, _ = train_step(forward, optimizer, scaler, [(mine[:, :-1], mine[:, 1:])], 1.)
        losses += mean_over_processes([loss], "cpu", count)
    return losses


@pytest.fixture(scope="module")
def long_alone():
    "What one process gives."
    return learn_long()


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("count", [2, 3, 4])
def test_one_process_ddp_and_fsdp_learn_the_same(count, one_process, long_alone):
    wanted, begun = one_process
    assert long_alone[-1] < long_alone[0] - .5
    in_processes(count, partial(learn_all_ways, wanted=wanted, begun=begun, long=long_alone))


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

def of_ranks(*words):
    "What killed_ranks.py prints."
    told = apart([Path(__file__).with_name("killed_ranks.py"), *words])
    assert told.returncode == 0, told.stderr
    return told.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("way, kills", [("ddp", "2"), ("fsdp", "1")])
def test_one_killed_process_ends_all_and_the_run_goes_on(tmp_path, way, kills):
    "`python -m bench.experiments.distributed kills` kills 20 times."
    assert of_ranks(tmp_path, "2", kills, way) == f"{kills} kills of one of 2\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_at_fault_ends_all_and_each_says_one_line(tmp_path):
    gone, again = "another process of this run {}, so this one ends, too; the same command with --resume goes on from the last checkpoint", "; start all of them with the same flags"
    wanted = {
        "slow 0": "2 " + gone.format("has not answered for 900 seconds (raise --parallel_timeout to wait longer)"), "slow 1": "2 " + gone.format("has ended"),
        "fails 0": "2 " + gone.format("has ended"), "fails 1": "2 --val_data nowhere.bin does not exist; check the spelling, or make it first",
        "differs 0": "2 --batch_size is 4 for process 0, but 8 for process 1" + again, "differs 1": "2 --batch_size is 4 for process 0, but 8 for process 1" + again,
        "never 0": "2 process 0 could not meet the others at 127.0.0.1:PORT; did all of them start? (WHY)", "never 1": "0 "}
    said = re.sub(r"1:\d+; did all of them start\? \(.*\)", "1:PORT; did all of them start? (WHY)", of_ranks(tmp_path, "faults"))
    assert dict(line.split(": ", 1) for line in said.splitlines()) == wanted


def other_flags(rank, count):
    from llm_course.engine.processes import check_alike
    from llm_course.training import TrainConfig
    config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device=f"cuda:{rank}")
    check_alike(config)   # each has a device of its own
    with pytest.raises(ValueError, match=r"--batch_size is 8 for process 0, but 16 for process 1; start all of them with the same flags"):
        check_alike(replace(config, batch_size=8 * (rank + 1)))


def share_a_mean(rank, count):
    "Of splits of all lengths, also of fewer rows than processes; and no process reads what another could."
    from llm_course.data import windows
    from llm_course.engine.processes import shared_mean
    for length in (2, 4, 7, 10, 13, 14, 25, 27, 200):
        read = []
        def mean(batches, read=read):
            targets = [targets for _, targets in batches]
            read.append(sum(y.numel() for y in targets))
            return float(torch.cat([y.flatten() for y in targets]).double().mean())
        split = lambda length=length: windows(np.arange(length), 2 * count, 3)
        wanted, found = mean(split()), shared_mean(mean, split(), rank, count, "cpu")
        assert abs(found - wanted) < 1e-9 and sum(read[1:]) <= read[0] / count + 3 * 2 * count, (length, found, wanted, read)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("work", [other_flags, share_a_mean])
def test_two_processes(work):
    "They refuse to be asked for different runs, and share out a validation split."
    in_processes(2, work)


def test_a_port_in_use_is_said_in_a_line(monkeypatch):
    from llm_course.engine.processes import processes
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items(): monkeypatch.setenv(name, str(value))
        with pytest.raises(ValueError, match=f"port {port} is in use by another program; give torchrun another --master_port"), processes("ddp"): pass


@pytest.mark.parametrize("said, lost", [("Connection closed by peer [127.0.0.1]:3", True), ("Broken pipe", True), ("Timed out waiting 1800000ms for recv operation to complete", True),
                                        ("The size of tensor a (3) must match the size of tensor b (4)", False)])
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_lost_process_is_told_from_a_mistake(monkeypatch, said, lost, torchrun):
    from llm_course.engine import processes
    waited = []
    monkeypatch.setattr(processes, "sleep", waited.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, **({"TORCHELASTIC_RUN_ID": 1} if torchrun else {})}.items(): monkeypatch.setenv(name, str(value))
    for name in "init_process_group", "destroy_process_group": monkeypatch.setattr(torch.distributed, name, lambda *words, **more: None)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *words, **more: iter([(torch.distributed.HashStore(), 0, 1)]))
    with pytest.raises(ConnectionError if lost else RuntimeError, match="--resume goes on" if lost else "size of tensor"), processes.processes("ddp"): raise RuntimeError(said)
    assert waited == [1] * (lost and torchrun)   # one that failed may say why


def ends_by_sigterm(folder, say):
    "What a process says, and how it ends, that hears SIGTERM while it waits in `end_at_sigterm`; and before, another signal, which changes nothing."
    from llm_course.engine import processes
    heard, told = os.pipe()
    ready, go = os.pipe()
    if not (child := os.fork()):
        os.dup2(told, 2)
        os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
        processes.is_first_to_speak = lambda: say
        signal.signal(signal.SIGINT, lambda *_: os.write(go, b"x"))
        with processes.end_at_sigterm(folder):
            signal.raise_signal(signal.SIGINT)
            time.sleep(60)
        os._exit(1)
    for end in told, go: os.close(end)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    with open(heard, encoding="utf-8") as said: return os.waitstatus_to_exitcode(status), said.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_torchrun_ends_says_what_is_left_and_how_to_go_on(tmp_path):
    begun = "\nprocess 1 of 2 was told to end (SIGTERM), as torchrun does when another has ended; "
    assert ends_by_sigterm(tmp_path, True) == (143, f"{begun}{tmp_path} has no checkpoint yet; the same command with --resume begins\n")
    (tmp_path/"checkpoint.pt").touch()
    assert ends_by_sigterm(tmp_path, True) == (143, f"{begun}{tmp_path}/checkpoint.pt is whole; the same command with --resume goes on from it\n")
    assert ends_by_sigterm(tmp_path, False) == (143, "")   # another has said why


def test_signals_are_put_back_and_other_threads_leave_them_alone(monkeypatch, tmp_path):
    from llm_course.engine.processes import end_at_sigterm
    for name in "RANK", "WORLD_SIZE": monkeypatch.setenv(name, "2")
    now = lambda: (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), threading.active_count())
    before, seen = now(), []
    def elsewhere():
        with end_at_sigterm(tmp_path): seen.append(signal.getsignal(signal.SIGTERM))
    with end_at_sigterm(tmp_path): assert now()[0] != before[0] and now()[1] == before[1]
    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert now() == before and seen == [before[0]]
    assert signal.set_wakeup_fd(-1) == -1


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

    from llm_course.checkpoint import load_model
    from llm_course.training import TrainConfig
    (np.arange(900, dtype=np.uint16) * 7 % 50).tofile(tmp_path/"ids.bin")
    config = TrainConfig(train_data=tmp_path/"ids.bin", val_data=tmp_path/"ids.bin", output=tmp_path/"whole", vocab_size=50, max_seq_len=8, d_model=16, num_layers=1, num_heads=2, d_ff=24,
                         batch_size=6, iterations=9, log_interval=1, val_interval=2, val_batches=2, checkpoint_interval=1, warmup_iters=0, device="cpu", resume=True)
    in_processes(1, partial(go_on, config=config, steps=8))
    for count, way, steps in (1, None, 2), (2, "fsdp", 4), (3, "ddp", 6), (1, None, 8):
        rows = in_processes(count, partial(go_on, config=replace(config, output=tmp_path/"parts", parallel=way), steps=steps))
        assert all({*some} == {6 // count} for some in rows)
    found, wanted = ([json.loads(line) for line in (tmp_path/name/"metrics.jsonl").read_text("utf-8").splitlines()] for name in ("parts", "whole"))
    for key in "train_loss", "val_loss", "grad_norm":
        values = [[line[key] for line in lines if key in line] for lines in (found, wanted)]
        assert len(values[0]) == {"val_loss": 4}.get(key, 8)
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)
    models = [load_model(tmp_path/name/"checkpoint.pt", "cpu").state_dict() for name in ("parts", "whole")]
    torch.testing.assert_close(*models, rtol=1e-2, atol=1e-4)
