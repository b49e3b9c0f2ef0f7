"""What a run will take is known before it starts: memory as measured, and a shape that cannot fit is refused."""
import os
from copy import deepcopy
from dataclasses import asdict, replace
from functools import lru_cache, partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from llm_course import training
from llm_course.engine import budget, run_config
from llm_course.engine.budget import (
    checkpoint_blocks,
    count_parameters,
    estimate_memory,
    estimate_seconds,
    memory_curve,
    shape_of,
    step_operations,
)
from llm_course.engine.diary import step_flops
from llm_course.engine.families import Variant
from llm_course.engine.run_config import account_of, tell_cost
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.training import TrainConfig, settle, train
from llm_course.transformer import ModelConfig, Transformer

SHAPES = {   # each has its peak somewhere else
    "vocabulary": (ModelConfig(1000, 64, 64, 4, 4, 176), 8),
    "bytes": (ModelConfig(256, 64, 64, 4, 4, 176), 8),
    "large vocabulary": (ModelConfig(4000, 32, 64, 2, 4, 176), 4),
    "very large vocabulary, few tokens": (ModelConfig(50_000, 64, 64, 2, 4, 176), 1),
    "one row, tied": (ModelConfig(4000, 32, 64, 2, 4, 176, tie=True), 1),
    "grouped heads": (ModelConfig(512, 64, 64, 4, 8, 176, num_kv_heads=2), 8),
    "few tokens": (ModelConfig(512, 32, 128, 4, 8, 352), 2),
    "one block, wide": (ModelConfig(300, 32, 64, 1, 4, 512), 32),
    "one head of keys": (ModelConfig(512, 64, 128, 3, 8, 352, num_kv_heads=1), 8),
    "long": (ModelConfig(2000, 256, 64, 3, 2, 176), 2),
    "heads of their own size": (ModelConfig(400, 64, 64, 2, 4, 176, d_k=32), 8),
    "norms and biases": (ModelConfig(400, 64, 64, 2, 4, 176, qkv_bias=True, qk_norm=True), 8),
    "dropout and bent logits": (ModelConfig(1000, 64, 64, 3, 4, 176, dropout=.1, variant=Variant(logit_cap=30.)), 8),
    "windows": (ModelConfig(256, 256, 64, 3, 2, 176, variant=Variant(window=32)), 2),
    "as Gemma 2": (ModelConfig(1000, 64, 64, 4, 4, 176, tie=True, variant=Variant("both", gate="gelu", window=16, pattern="SL", score_cap=50., logit_cap=30., embedding_scale=8.)), 8)}


@lru_cache(1)
def begun(config, rows):
    "A model that has taken a step, and a function for the next, at any precision: the cases of a shape come one after the other, and share them."
    model = Transformer(**asdict(config))
    optimizer = AdamW(model.parameters())
    ids = torch.randint(config.vocab_size, (rows, config.max_seq_len + 1))

    def step(precision="float32"):
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = ids[:, :-1].clone(), ids[:, 1:].clone()
        with torch.autocast(ids.device.type, getattr(torch, precision), enabled=precision != "float32"): logits = model(inputs)
        loss = cross_entropy(logits, targets)
        del logits
        loss.backward()
        optimizer.step()
    step()
    return model, optimizer, step


def step_of(config, rows, precision="float32", checkpointing=False):
    "A training step of a model that has taken one already."
    model, optimizer, step = begun(config, rows)
    for block in model.blocks: vars(block).pop("forward", None)   # as a case before may have left it
    if checkpointing: checkpoint_blocks(model)
    optimizer.zero_grad(set_to_none=True)
    return partial(step, precision)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_account_is_what_the_allocator_saw(name, precision, checkpointing):
    config, rows = SHAPES[name]
    step = step_of(config, rows, precision, checkpointing)
    there = 12 * count_parameters(config)[2]
    measured = max(memory_curve(step)[1])
    account = estimate_memory(config, rows, precision, checkpointing)
    assert account.peak == pytest.approx(there + measured, rel=0.1)
    assert account.peak - there == pytest.approx(measured, rel=0.1)   # what was there before the step could hide an error
    assert account.weights + account.optimizer == there


def drawn_shape(seed):
    "From 50 to 50,000 ids, and from one token to 2,048; fewer where the logits would be large."
    rng = Random(seed)
    def between(low, high): return round(low * (high / low)**rng.random())
    heads = rng.choice([1, 2, 4])
    d_model = 8 * heads * rng.randint(1, 16 // heads)
    vocab, length, rows = between(50, 50_000), between(1, 128), between(1, 16)
    while length * rows * vocab > 4_000_000: length, rows = max(1, length // 2), max(1, rows // 2)
    d_ff = 8 * round(d_model * rng.choice([1, 2.75, 4]) / 8)
    return ModelConfig(vocab, length, d_model, rng.randint(1, 4), heads, d_ff, tie=rng.random() < .3), rows


@pytest.mark.parametrize("seed", range(16))
def test_the_account_holds_for_shapes_that_nobody_chose(seed):
    config, rows = drawn_shape(seed)
    for precision in "float32", "bfloat16":
        for checkpointing in False, True:
            measured = max(memory_curve(step_of(config, rows, precision, checkpointing))[1])
            account = estimate_memory(config, rows, precision, checkpointing)
            assert account.peak - 12 * count_parameters(config)[2] == pytest.approx(measured, rel=0.1), (config, rows, precision, checkpointing)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_account_is_what_a_gpu_saw(precision, checkpointing):
    config, rows = ModelConfig(8000, 512, 512, 6, 8, 1408), 16
    with torch.device("cuda"): step = step_of(config, rows, precision, checkpointing)
    torch.cuda.reset_peak_memory_stats()
    step()
    assert estimate_memory(config, rows, precision, checkpointing, device="cuda").peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)


@pytest.fixture
def asked(tmp_path):
    "A run of two steps, both of which are logged and validated."
    ids = np.random.default_rng(0).integers(0, 256, 4_000).astype(np.uint16)
    ids.tofile(tmp_path/"train.bin")
    ids[:1100].tofile(tmp_path/"val.bin")   # a whole batch, and some
    return TrainConfig(train_data=tmp_path/"train.bin", val_data=tmp_path/"val.bin", output=tmp_path/"run", vocab_size=256, max_seq_len=64, d_model=128,
                       num_layers=2, num_heads=4, d_ff=352, batch_size=16, iterations=2, val_batches=2, device="cpu", precision="float32")


@pytest.mark.parametrize("flags", [
    {}, {"vocab_size": 2000, "batch_size": 2}, {"activation_checkpointing": True}, {"grad_accumulation": 3}, {"muon_lr": 0.02}, {"ema": .9, "dropout": .2}, {"ema": .9, "batch_size": 1, "max_seq_len": 8, "d_model": 256},
    {"muon_lr": 0.02, "batch_size": 1, "max_seq_len": 8, "d_model": 256}, {"precision": "bfloat16", "batch_size": 64}], ids=str)
def test_the_account_of_a_run_covers_its_diary(asked, flags):
    config = settle(replace(asked, **flags))
    most = max(memory_curve(lambda: train(config))[1])
    assert account_of(config).peak == pytest.approx(most, rel=0.1)


def test_the_account_is_of_the_model_that_was_given(asked):
    "What no flag says of it counts as well."
    torch.manual_seed(0)
    model = Transformer(256, 64, 64, 3, 4, 176, tie=True, qk_norm=True, variant=Variant("both", score_cap=50., logit_cap=30.))
    config = settle(replace(asked, d_model=256, num_layers=4, num_heads=8, d_ff=704, ema=.9), model)
    most = max(memory_curve(lambda: train(config, model=model))[1]) + 4 * sum(p.numel() for p in model.parameters())
    assert account_of(config, model).peak == pytest.approx(most, rel=0.1)
    assert account_of(config).peak < .8 * most


@pytest.mark.parametrize("options", [{}, {"tie": True}, {"num_kv_heads": 2}, {"d_k": 6, "qkv_bias": True, "qk_norm": True},
                                     {"qk_norm": True, "variant": {"norms": "both", "wide_qk_norm": True}}, {"variant": {"norms": "after"}}], ids=str)
def test_sizes_and_work_are_those_of_the_model(options):
    config = ModelConfig(50, 8, 16, 3, 4, 24, **options)
    model = Transformer(**asdict(config), device="meta")
    assert count_parameters(config)[2] == sum(p.numel() for p in model.parameters())
    assert count_parameters(config)[1] == sum(p.numel() for p in model.blocks[0].parameters())
    if not options.keys() & {"d_k"}: assert step_operations(config, 100) == step_flops(model, 100)


def test_a_model_that_computes_blocks_again_learns_the_same(asked):
    plain, again = (train(replace(asked, output=asked.output/name, activation_checkpointing=name == "again")) for name in ("plain", "again"))
    for p, q in zip(plain.model.parameters(), again.model.parameters(), strict=True): assert torch.equal(p, q)
    assert plain.model.state_dict().keys() == again.model.state_dict().keys()
    assert [line["train_loss"] for line in plain.history] == [line["train_loss"] for line in again.history]


def test_a_copy_of_a_model_computes_its_own_blocks_again():
    model = Transformer(50, 8, 16, 2, 2, 24)
    checkpoint_blocks(model)
    copy = deepcopy(model)
    with torch.no_grad():
        for p in copy.blocks.parameters(): p.zero_()
    x = torch.randn(1, 8, 16)
    assert torch.equal(copy.blocks[0](x), x) and not torch.equal(model.blocks[0](x), x)


def words(asked): return ["--train_data", str(asked.train_data), "--val_data", str(asked.val_data), "--output", str(asked.output), "--device", "cpu",
                          "--vocab_size", "256", "--d_model", "16", "--num_heads", "2", "--d_ff", "24", "--max_seq_len", "8"]


def test_a_dry_run_tells_the_cost_and_leaves_nothing(asked, capsys):
    training.main([*words(asked), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["memory", "operations", "time"]
    with pytest.raises(ValueError, match=r"tell_cost\(settle\(config\)\)"): training.train(replace(asked, dry_run=True))   # from Python
    assert not asked.output.exists()
    training.main([*words(asked), "--iterations", "1"])
    assert capsys.readouterr().out.startswith("memory: ")
    assert (asked.output/"checkpoint.pt").exists()


def test_what_cannot_fit_is_refused_in_a_line_before_memory_is_taken(asked, monkeypatch, capsys):
    monkeypatch.setattr(budget, "machine_memory", lambda device: 10**6)
    monkeypatch.setattr(training, "Transformer", None)   # no model may be made
    with pytest.raises(SystemExit) as stop: training.main(words(asked))
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "a training step takes 2.0" in error and "has 1 MB" in error and "\n" not in error
    assert not asked.output.exists()
    monkeypatch.setattr(budget, "machine_memory", lambda device: None)   # where that is unknown, nothing is refused
    settle(asked)


def test_a_dry_run_for_a_larger_machine_tells_the_cost_and_then_that_it_does_not_fit(asked, monkeypatch, capsys):
    small = words(asked)
    for room, time in (2_000_000, "about "), (10_000, "unknown, as cpu has no room to try even two of its blocks"):
        monkeypatch.setattr(budget, "machine_memory", lambda device, room=room: room)
        with pytest.raises(SystemExit) as stop: training.main([*small, "--num_layers", "40", "--dry_run"])
        told = capsys.readouterr()
        lines = told.out.splitlines()
        assert [line.split(":")[0] for line in lines] == ["memory", "operations", "time"] and lines[2].startswith(f"time: {time}") and "measurements " in lines[0]
        assert stop.value.code == 2 and told.err.startswith("error: there is not enough memory: a training step takes") and not asked.output.exists()


@pytest.mark.parametrize("name", ["train_data", "val_data"])
def test_a_text_is_refused_before_the_cost_is_told(name, asked, tmp_path, capsys):
    (tmp_path/"a.txt").write_text("To be, or not to be", "utf-8", newline="\n")
    with pytest.raises(ValueError, match="is a text and not a file of ids"): settle(replace(asked, **{name: tmp_path/"a.txt"}))
    with pytest.raises(SystemExit): training.main([*words(asked), f"--{name}", str(tmp_path/"a.txt")])
    told = capsys.readouterr()
    assert not told.out and "is a text" in told.err and told.err.count("\n") == 1


def test_a_run_that_is_there_already_is_named_before_the_cost_is_told(asked, capsys):
    training.main([*words(asked), "--iterations", "1"])
    capsys.readouterr()
    with pytest.raises(SystemExit): training.main([*words(asked), "--iterations", "1"])
    told = capsys.readouterr()
    assert not told.out and "holds a run already; add --resume" in told.err and told.err.count("\n") == 1
    training.main([*words(asked), "--iterations", "1", "--dry_run"])   # overwrites nothing
    assert "memory: " in capsys.readouterr().out


def test_one_of_several_processes_tells_the_cost(asked, monkeypatch, capsys):
    for rank, told in ("0", 1), ("1", 0):
        monkeypatch.setenv("RANK", rank)
        tell_cost(settle(asked))
        assert capsys.readouterr().out.count("memory: ") == told


def test_this_machine_has_memory():
    there = budget.machine_memory("cpu")
    if hasattr(os, "sysconf"): assert there is not None and 10**8 < there < 10**15


@pytest.mark.parametrize("ratio, precision, warns", [(44., "float16", True), (.5, "bfloat16", False), (44., "float32", False)])
def test_half_precision_that_is_slow_here_is_warned_of(asked, monkeypatch, recwarn, ratio, precision, warns):
    monkeypatch.setattr(run_config, "slowdown", lambda precision: ratio)
    settle(replace(asked, precision=precision))
    assert ["44 times" in str(w.message) for w in recwarn] == [True] * warns


def test_a_small_product_tells_which_precision_is_slow():
    for precision in "bfloat16", "float16": assert 0 < budget.slowdown(precision) < 10**5


def test_the_time_of_a_step_grows_with_what_is_asked():
    config = ModelConfig(100, 32, 32, 2, 2, 64)
    assert 0 < estimate_seconds(config, 2) < estimate_seconds(replace(config, d_model=256, d_ff=1024, num_layers=8), 64)
    assert shape_of(TrainConfig(train_data=Path("a"), val_data=Path("b"), vocab_size=7, d_ff=9)).d_ff == 9
