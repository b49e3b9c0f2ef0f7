"""Devices without a device: on `meta` tensors have shapes and no numbers, so what runs there makes nothing on the wrong device and waits for no number.

Where the program must wait for a number, it says so by `_local_scalar_dense`; here such a question is counted and answered with one."""
import copy
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from llm_course.engine.kv_cache import new_cache
from llm_course.engine.muon import Muon, Together
from llm_course.engine.run_config import optimizer_for
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW, SGDDecay, gradient_clip, params_for_decay
from llm_course.training import TrainConfig, evaluate, train_step
from llm_course.transformer import Transformer

SHAPE = dict(vocab_size=1100, max_seq_len=16, d_model=64, num_layers=2, num_heads=4, d_ff=96)   # 70,400 numbers in embedding and head


class Waits(TorchDispatchMode):
    "Counts how often the program asks the device for a number."
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.count += 1
            return 1.0
        return function(*args, **(kwargs or {}))


def make(**changes): return Transformer(**{**SHAPE, **changes}, device="meta")


def random_batch(device="meta"): return torch.randint(SHAPE["vocab_size"], (2, 2, 16), device=device).unbind()


OPTIMIZERS = {
    "AdamW": lambda params: AdamW(params), "AdamW by the formulas": lambda params: AdamW(params, fused=False), "SGDDecay": lambda params: SGDDecay(params),
    "AdamW, a rate that is a tensor": lambda params: AdamW(params, lr=torch.tensor(0.1)),
    "Muon": lambda params: Together(Muon([p for p in params if p.ndim == 2]), AdamW([p for p in params if p.ndim != 2]))}


def test_the_counter_counts():
    with Waits() as waits:
        x = torch.ones(3, device="meta")
        assert x.sum().item() == 1 and float(x[0]) == 1 and bool(x[1] > 0)
        torch.ones(3).sum().item()   # of the CPU's own numbers: nobody waits
    assert waits.count == 3
    with pytest.raises(RuntimeError, match="meta"): x.sum().item()


@pytest.mark.parametrize("max_norm", [1., 0.])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_step_waits_for_nothing(name, max_norm):
    model = make()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with Waits() as waits:
        for _ in range(3): loss, norm = train_step(model, optimizer, scaler, [random_batch(), random_batch()], max_norm)
    assert waits.count == 0 and loss.is_meta and norm.is_meta
    assert all(p.grad.is_meta for p in model.parameters())
    for state in optimizer.state.values():
        for key, x in state.items(): assert x.is_meta or (key == "step" and x.is_cpu), f"{key} was made on {x.device}"


@pytest.mark.parametrize("changes", [dict(tie=True, num_kv_heads=2), dict(qk_norm=True, qkv_bias=True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_options_and_half_precision_wait_for_nothing(changes, dtype):
    model, scaler = make(**changes), torch.amp.GradScaler("cpu", enabled=False)
    optimizer = optimizer_for(model, TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), device="cpu", muon_lr=0.02, **SHAPE))   # as the command makes it
    with Waits() as waits: train_step(model, optimizer, scaler, [random_batch()], 1.)
    model = make(**changes, dtype=dtype)   # and with the weights themselves in half precision
    optimizer = AdamW(params_for_decay(model))
    with waits: loss, _ = train_step(model, optimizer, scaler, [random_batch()], 1.)
    assert waits.count == 0 and loss.dtype == torch.float32


def test_an_evaluation_waits_once_however_many_batches():
    with Waits() as waits: assert evaluate(make(), (random_batch() for _ in range(5))) > 0
    assert waits.count == 1


def test_a_float16_step_waits_once_for_the_scaler():
    "It has to know whether any gradient overflowed before it may let the optimiser step."
    model = make()
    optimizer, scaler = AdamW(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.)
    with Waits() as waits: train_step(model, optimizer, scaler, [random_batch(), random_batch()], 1.)
    assert waits.count == 1


def test_the_parts_of_a_loop_wait_for_nothing():
    "Clipping by itself, some targets that don't count, positions of one's own."
    model = make()
    ids, targets = random_batch()
    positions = torch.arange(16, device="meta").expand(2, 16)
    with Waits() as waits:
        cross_entropy(model(ids, positions), targets.where(targets > 5, -100)).backward()
        assert gradient_clip(model.parameters(), 1.).is_meta
    assert waits.count == 0


@pytest.mark.parametrize("own", [False, True], ids=["counted", "given positions"])
def test_steps_of_decoding_through_the_caches_wait_for_nothing(own):
    model = make()
    caches = [new_cache(block.attention, 2) for block in model.blocks]
    with Waits() as waits, torch.inference_mode():
        for start, t in ((0, 5), (5, 1), (6, 1)):
            positions = torch.arange(start, start + t, device="meta").expand(2, t) if own else None
            assert model(torch.zeros(2, t, dtype=torch.long, device="meta"), positions, caches).shape == (2, t, SHAPE["vocab_size"])
    assert waits.count == 0 and all(cache.both.is_meta and cache.length == 7 for cache in caches)


@pytest.mark.parametrize("way", ["assign", "to_empty"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_model_from_meta_with_its_weights_filled_in_speaks_and_learns(tie, way):
    torch.manual_seed(0)
    wanted, model = Transformer(**SHAPE, tie=tie), make(tie=tie)
    if way == "to_empty": model = model.to_empty(device="cpu")
    model.load_state_dict(copy.deepcopy(wanted.state_dict()), assign=way == "assign")
    if tie: model.head.weight = model.embedding.weight   # which torch parts, either way
    ids, targets = random_batch("cpu")
    with torch.inference_mode(): assert_close(model(ids), wanted(ids))
    losses = []
    for one in wanted, model:
        one.requires_grad_(True)
        optimizer = AdamW(params_for_decay(one))
        for _ in range(3): loss, _ = train_step(one, optimizer, torch.amp.GradScaler("cpu", enabled=False), [(ids, targets)], 1.)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1]) and losses[0] < math.log(SHAPE["vocab_size"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_step_on_a_gpu_never_waits(name):
    "torch's own watch, which raises an error where a program waits."
    model = Transformer(**SHAPE, device="cuda")
    optimizer, batch = OPTIMIZERS[name](list(model.parameters())), random_batch("cuda")
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    train_step(model, optimizer, scaler, [batch], 1.)
    torch.cuda.set_sync_debug_mode("error")
    try: train_step(model, optimizer, scaler, [batch], 1.)
    finally: torch.cuda.set_sync_debug_mode("default")
