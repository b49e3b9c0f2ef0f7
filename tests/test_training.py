"""The training loop: what a step is, what a run keeps, and that nothing but the flags decides what comes out."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from apart import apart
from right import RIGHT

from llm_course import checkpoint, training
from llm_course.attention import attention
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, read_checkpoint
from llm_course.data import get_batch, windows
from llm_course.engine import bookkeeping, budget, commands, diary, run_config
from llm_course.engine.commands import parse
from llm_course.engine.diary import count_bytes, peak_flops, report, vital_signs
from llm_course.engine.processes import fast_forward, moments_of, polite_stop
from llm_course.engine.run_config import PRECISIONS, default_precision, optimizer_for, set_rates
from llm_course.engine.safe_steps import loss_of_next_step
from llm_course.loss import cross_entropy
from llm_course.training import TrainConfig, evaluate, settle, train, train_step
from llm_course.transformer import ModelConfig, Transformer

root = Path(__file__).parents[1]
shape = dict(vocab_size=50, max_seq_len=8, d_model=16, num_layers=1, num_heads=2, d_ff=24)


@pytest.fixture
def asked(tmp_path, device):
    "A small run over ids that follow a rule: each is the last one plus one."
    ids = np.arange(2_000, dtype=np.uint16) % 50
    for name in "train.bin", "val.bin": ids.tofile(tmp_path/name)
    return TrainConfig(train_data=tmp_path/"train.bin", val_data=tmp_path/"val.bin", output=tmp_path/"run", **shape, batch_size=8,
                       iterations=8, log_interval=3, val_interval=4, val_batches=2, checkpoint_interval=5, device=device, precision="float32")


def small(device="cpu"):
    torch.manual_seed(1)
    return Transformer(**shape).to(device)


def no_scaler(): return torch.amp.GradScaler("cpu", enabled=False)


def test_learns_the_rule(asked):
    run = train(replace(asked, iterations=150, lr_max=1e-2))
    assert run.history[0]["train_loss"] == pytest.approx(math.log(50), abs=0.1)
    assert run.history[-1]["whole_val_loss"] < 0.2


def test_a_line_of_metrics_is_written_when_due(asked):
    run = train(asked)
    lines = [json.loads(line) for line in (asked.output/"metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines == run.history
    assert [line["iteration"] for line in lines] == [1, 3, 4, 6, 8]
    assert [line["iteration"] for line in lines if "val_loss" in line] == [4, 8]
    assert "whole_val_loss" in lines[-1] and "bits_per_byte" not in lines[-1]   # no tokenizer, no bytes
    assert json.loads((asked.output/"config.json").read_text("utf-8"))["d_model"] == 16
    assert read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 8


def test_the_end_is_measured_whatever_the_interval(asked): assert "val_loss" in train(replace(asked, iterations=3)).history[-1]


def test_a_run_is_never_overwritten(asked):
    train(replace(asked, iterations=1))
    with pytest.raises(ValueError, match="holds a run already; add --resume to go on with it"): train(asked)
    assert read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 1


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(asked):
    run = train(replace(asked, iterations=12, lr_max=3e-2))
    best = min((line for line in run.history if "val_loss" in line), key=lambda line: line["val_loss"])
    assert read_checkpoint(asked.output/"best.pt")["iteration"] == best["iteration"]
    assert run.best == best["val_loss"]


def test_the_file_holds_the_model(asked):
    run = train(asked)
    ids = torch.arange(8, device=asked.device)[None]
    torch.testing.assert_close(load_model(asked.output/"checkpoint.pt", asked.device)(ids), run.model(ids))


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_resuming_anywhere_changes_nothing(asked, stop):
    whole = train(asked)
    config = replace(settle(asked), output=asked.output.parent/"parts")
    train(replace(config, iterations=stop))
    parts = train(replace(config, resume=True))
    assert parts.history[-1]["val_loss"] == whole.history[-1]["val_loss"]
    for a, b in zip(whole.model.parameters(), parts.model.parameters()): assert torch.equal(a, b)
    for a, b in zip(whole.optimizer.state.values(), parts.optimizer.state.values()): assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_resuming_after_a_death_repeats_no_line(asked):
    train(replace(settle(asked), iterations=5))
    with open(asked.output/"metrics.jsonl", "a", encoding="utf-8", newline="\n") as file: file.write('{"iteration": 6, "train_loss": 1.0}\n[5]\n{"a": 1}\n{"iterat')   # written, then killed
    run = train(replace(settle(asked), resume=True))
    assert [line["iteration"] for line in run.history] == [1, 3, 4, 5, 6, 8]
    assert run.history[4]["train_loss"] != 1.0


def test_a_run_that_left_no_checkpoint_is_begun_anew(asked):
    train(asked)
    (asked.output/"checkpoint.pt").unlink()
    with pytest.warns(UserWarning, match="has no checkpoint.pt to go on from, so the run begins anew, and replaces its best.pt"): run = train(asked)
    assert [json.loads(line) for line in (asked.output/"metrics.jsonl").read_text("utf-8").splitlines()] == run.history


def test_a_run_can_go_on_in_float16_and_back(asked):
    if asked.device == "mps": pytest.skip("half precision is for CPU and CUDA")
    for i, precision in enumerate(["float32", "float16", "float32"], 1):
        assert train(replace(settle(asked), iterations=2*i, resume=True, precision=precision)).done == 2*i


def test_the_scaler_goes_on_where_it_was(asked):
    if asked.device == "mps": pytest.skip("half precision is for CPU and CUDA")
    config = settle(replace(asked, precision="float16"))
    whole = train(replace(config, output=asked.output.parent/"whole"))
    train(replace(config, iterations=5))
    assert train(replace(config, resume=True)).scaler.state_dict() == whole.scaler.state_dict() != {}


def test_losses_that_wait_for_their_line_outlive_a_death(asked, monkeypatch):
    whole, real = train(replace(asked, output=asked.output.parent/"whole")), training.batches_of
    def dying(run):
        if run.done == 5: raise MemoryError   # two steps after a line, and just after a checkpoint
        return real(run)
    monkeypatch.setattr(training, "batches_of", dying)
    with pytest.raises(MemoryError): train(asked)
    monkeypatch.undo()
    def losses(run): return [(line["iteration"], line["train_loss"]) for line in run.history if "train_loss" in line]
    assert losses(train(replace(asked, resume=True))) == losses(whole)


def test_a_resumed_run_remembers_its_best(asked, monkeypatch):
    monkeypatch.setattr(bookkeeping, "measure", lambda run, evaluate: float(run.done))   # it grows worse and worse
    train(replace(settle(asked), iterations=5))
    assert train(replace(settle(asked), resume=True)).best == 4
    assert read_checkpoint(asked.output/"best.pt")["iteration"] == 4


def test_resume_without_a_checkpoint_starts(asked): assert train(replace(asked, resume=True)).done == 8


@pytest.fixture(scope="module")
def by_the_recipe(tmp_path_factory):
    "A run of two steps by the demo's recipe, with the course's own parts."
    folder = tmp_path_factory.mktemp("recipe")
    for name, count in ("train.bin", 4_000), ("val.bin", 300): (np.arange(count, dtype=np.uint16) % 1024).tofile(folder/name)
    config = parse(TrainConfig, [*commands.RECIPE.split(), "--train_data", str(folder/"train.bin"), "--val_data", str(folder/"val.bin"), "--vocab_size", "1024", "--device", "cpu",
                                 "--log_interval", "1", "--val_batches", "1"])
    torch.manual_seed(0)
    return train(replace(settle(config), iterations=2, output=folder/"ours"))


@pytest.mark.parametrize("norm", RIGHT["RmsNorm"])
def test_a_students_part_trains_by_the_demos_recipe(by_the_recipe, tmp_path, norm):
    ours = by_the_recipe
    theirs = train(replace(ours.config, output=tmp_path/"theirs"), parts={"norm": norm})
    assert isinstance(theirs.model.norm, norm) and not isinstance(ours.model.norm, norm)
    for a, b in zip(ours.history, theirs.history): assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


def test_same_seed_same_curve_other_seed_other_curve(asked):
    def losses(name, **change): return [line["train_loss"] for line in train(replace(asked, output=asked.output/name, **change)).history if "train_loss" in line]
    assert losses("a") == losses("b") != losses("c", seed=1)


def test_evaluation_weighs_by_tokens_and_learns_nothing():
    model, ids = small(), np.arange(70) % 50
    before = [p.clone() for p in model.parameters()]
    mean = evaluate(model, windows(ids, 3, 8))
    each = [cross_entropy(model(x), y).item() * y.numel() for x, y in windows(ids, 1, 8)]
    assert mean == pytest.approx(sum(each) / 69, rel=1e-5)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters()))


def test_validation_reads_its_own_file_and_always_the_same_batches(asked):
    (np.arange(2_000, dtype=np.uint16)[::-1] % 50).tofile(asked.val_data)   # another rule: each id is the last one minus one
    line = train(replace(asked, iterations=60, lr_max=1e-2)).history[-1]
    assert line["train_loss"] < 2 and min(line["val_loss"], line["whole_val_loss"]) > 4
    np.random.default_rng(0).integers(50, size=2_000).astype(np.uint16).tofile(asked.val_data)
    one, two = (line["val_loss"] for line in train(replace(asked, output=asked.output.parent/"still", lr_max=0.)).history if "val_loss" in line)
    assert one == two


def test_bits_per_byte_counts_the_bytes_of_the_text(asked):
    text = "to be or not to be, that is the question.\n" * 60
    tokenizer = BpeTokenizer.train([text], 270)
    folder = asked.train_data.parent
    tokenizer.save(folder/"tokenizer.json")
    ids = np.array(tokenizer.encode(text), dtype=np.uint16)
    assert count_bytes(ids, tokenizer) == len(text)
    for name in "train.bin", "val.bin": ids.tofile(folder/name)
    run = train(replace(asked, vocab_size=None))
    line = run.history[-1]
    size = len(text) - len(tokenizer.vocab[int(ids[0])])   # the first token is never asked for
    assert line["bits_per_byte"] == pytest.approx(line["whole_val_loss"] / math.log(2) * (len(ids) - 1) / size)
    assert (asked.output/"tokenizer.json").read_bytes() == (folder/"tokenizer.json").read_bytes()


@pytest.mark.parametrize("change", ["contents", "another file", "rows", "batch"])
def test_the_lowest_loss_is_that_of_the_data_it_is_compared_with(asked, change, monkeypatch):
    first = train(replace(asked, lr_max=1e-2, iterations=40))
    other = {"contents": {}, "another file": {"val_data": asked.val_data.parent/"other.bin"}, "rows": {"val_batches": 3}, "batch": {"batch_size": 4, "override": True}}[change]
    if change in ("contents", "another file"): (np.arange(2_000, dtype=np.uint16)[::-1] % 50).tofile(other.get("val_data", asked.val_data))   # whose loss is far higher
    with pytest.warns(UserWarning, match="other rows than before, so the lowest one is forgotten"): run = train(replace(first.config, resume=True, iterations=48, **other))
    new = [line["val_loss"] for line in run.history if "val_loss" in line and line["iteration"] > 40]
    assert run.best == min(new) and read_checkpoint(asked.output/"best.pt")["iteration"] > 40
    assert change in ("rows", "batch") or run.best > first.best
    with warnings.catch_warnings(record=True) as caught:   # it is told once
        warnings.simplefilter("always")
        assert train(replace(run.config, resume=True, iterations=49)).best <= run.best
    assert not [one for one in caught if "is forgotten" in str(one.message)]


@pytest.mark.parametrize("kind", ["moved", "older", "never measured"])
def test_the_lowest_loss_is_kept_where_nothing_says_that_the_data_are_others(asked, kind):
    first = train(asked)
    saved = read_checkpoint(asked.output/"checkpoint.pt")
    moved = asked.val_data.parent/"moved.bin"
    shutil.copy(asked.val_data, moved)
    if kind == "older": del saved["run"]["measured_on"]
    if kind == "never measured": saved["best"] = math.inf
    torch.save(saved, asked.output/"checkpoint.pt")
    if kind != "moved": (np.arange(2_000, dtype=np.uint16)[::-1] % 50).tofile(moved)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = train(replace(asked, resume=True, iterations=9, val_data=moved))
    assert not [one for one in caught if "is forgotten" in str(one.message)]
    assert kind == "never measured" or again.best <= first.best


@pytest.mark.parametrize("where, name", [("schedule", "muon_lr"), ("schedule", "lr_max"), ("run", "seed"), ("run", "measured_on"), (None, "best")])
@pytest.mark.parametrize("value", [torch.zeros(2, 3), math.nan], ids=["a tensor", "no number"])
def test_a_run_whose_settings_are_not_plain_is_refused(where, name, value, asked):
    train(asked)
    saved = read_checkpoint(asked.output/"checkpoint.pt")
    (saved[where] if where else saved)[name] = value
    torch.save(saved, asked.output/"checkpoint.pt")
    with pytest.raises(ValueError, match=rf"not written by the training command: it lacks .*{name}"): train(replace(asked, resume=True, iterations=9))


@pytest.mark.parametrize("poison", [lambda loss: loss * math.nan, lambda loss: loss + 0*(loss - loss.detach()).sqrt()], ids=["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(asked, poison, monkeypatch):
    calls = []
    def sick(logits, targets):
        calls.append(1)
        loss = cross_entropy(logits, targets)
        return poison(loss) if len(calls) > 7 and torch.is_grad_enabled() else loss
    monkeypatch.setattr(training, "cross_entropy", sick)
    with pytest.raises(ValueError, match=r"stopped being a number before iteration .*checkpoint.pt is the last good checkpoint; try a lower --lr_max"):
        train(replace(asked, iterations=20, checkpoint_interval=1, val_interval=100))
    saved = read_checkpoint(asked.output/"checkpoint.pt")
    assert 0 < saved["iteration"] < 8 and all(x.isfinite().all() for x in saved["model"].values())


def is_sound(path, asked):
    "Are weights and moments numbers, and is what the model says?"
    saved, model = read_checkpoint(path), load_model(path, asked.device)
    moments = [x for state in saved["optimizer"]["state"].values() for x in state.values() if torch.is_tensor(x)]
    loss = evaluate(model, [get_batch(np.arange(2_000) % 50, 8, 8, asked.device, iteration=0)])
    return all(x.isfinite().all() for x in [*model.parameters(), *moments]) and math.isfinite(loss)


@pytest.mark.parametrize("rate, change", [
    (1e4, {}), (1e4, {"grad_clip": 0., "weight_decay": 0.}), (1e20, {}), (3e38, {}), (1e20, {"muon_lr": .02}), (1e20, {"precision": "float16"}),
    (1e20, {"log_interval": 100, "val_interval": 100, "grad_clip": 0., "weight_decay": 0.})], ids=str)
def test_the_last_good_checkpoint_is_good_after_its_step(asked, rate, change):
    "The loss of a step is taken before it, so a step that ruins the weights shows in the next one only. A good checkpoint is one from which a run can go on."
    asked = replace(asked, **dict(log_interval=1, val_interval=1, checkpoint_interval=1, val_batches=1, warmup_iters=0) | change)
    train(replace(asked, iterations=2))
    wild = dict(lr_max=rate, muon_lr=rate) if asked.muon_lr else dict(lr_max=rate)
    try:
        with pytest.warns(UserWarning, match="the schedule has changed"): train(replace(asked, resume=True, **wild))
    except ValueError as error: assert "checkpoint.pt is the last good checkpoint; try a lower --lr_max" in str(error)
    else: assert rate == 1e4   # such a run may live on
    assert is_sound(asked.output/"checkpoint.pt", asked) and is_sound(asked.output/"best.pt", asked)
    lines = (asked.output/"metrics.jsonl").read_text("utf-8").splitlines()
    assert lines and all(json.loads(line, parse_constant=pytest.fail) for line in lines)   # JSON knows no NaN
    done = read_checkpoint(asked.output/"checkpoint.pt")["iteration"]
    with pytest.warns(UserWarning, match="the schedule has changed"): assert train(replace(asked, resume=True, iterations=done + 1, lr_max=1e-5)).done == done + 1


def test_weights_that_no_batch_shows_are_looked_at(asked, monkeypatch):
    "A row of the embedding for an id that never comes, and a moment."
    def ruining(model, optimizer, *rest):
        told = train_step(model, optimizer, *rest)
        optimizer.state[run.model.embedding.weight]["exp_avg"][-1] = math.inf
        return told
    run = training.start(settle(replace(asked, vocab_size=60, checkpoint_interval=1)))
    def tried(): return loss_of_next_step(lambda: training.backward_all(run.forward, run.scaler, training.batches_of(run)), run.model, run.optimizer, run.scaler)
    assert math.isfinite(tried())
    run.model.embedding.weight.data[-1] = math.nan
    assert math.isnan(tried())
    run.model.embedding.weight.data[-1] = 0.
    monkeypatch.setattr(training, "train_step", ruining)
    with pytest.raises(ValueError, match="before iteration 2; there is no checkpoint yet"): training.advance(run)


EXTREMES = "nan", "inf", "-inf", "1e308", "3e38", "-0.0", "1e-320", "-1"
FLOATS = [f.name for f in fields(TrainConfig) if "float" in str(f.type)]


@pytest.mark.parametrize("name", FLOATS)
def test_an_extreme_number_trains_or_is_one_line(name, asked, capsys):
    words = [f"--{f.name}={getattr(asked, f.name)}" for f in fields(asked) if f.name in ("train_data", "val_data", *shape, "batch_size", "val_batches", "device")]
    for i, number in enumerate(EXTREMES):
        output = asked.output.parent/f"run{i}"
        try: training.main([*words, f"--output={output}", "--iterations=2", "--live_plot=False", f"--{name}={number}"])
        except SystemExit as stop: assert stop.code == 2
        else: assert load_model(output/"checkpoint.pt", asked.device).head.weight.isfinite().all()
        errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("\r", "note: ")) and line.strip()]
        assert len([line for line in errors if line.startswith("error: ")]) <= 1 and not any("Traceback" in line for line in errors)


@pytest.mark.parametrize("change", [
    {"batch_size": 10**9}, {"d_model": 10**7}, {"num_layers": 10**9}, {"d_ff": 10**12}, {"vocab_size": 10**12}, {"max_seq_len": 10**12}, {"grad_accumulation": 10**12},
    {"d_model": 10**30}, {"batch_size": 10**30}, {"iterations": 10**30}, {"warmup_iters": 10**400}, {"num_threads": 10**9}], ids=lambda change: "".join(f"{name} 1e{len(str(size)) - 1}" for name, size in change.items()))
def test_what_no_machine_holds_is_refused_before_memory_is_taken(asked, change, monkeypatch):
    monkeypatch.setattr(budget, "machine_memory", lambda device: 16 * 10**9)
    (name,) = change
    with pytest.raises(ValueError, match=rf"^--{name} |there is not enough memory: .*; take a smaller .*--{name}"): settle(replace(asked, **change))
    assert not asked.output.exists()


@pytest.mark.parametrize("more", [{}, {"compile": True}], ids=str)
def test_a_run_that_fits_is_not_refused(asked, monkeypatch, more):
    "With `--compile` no more is asked for than what the model and its optimiser take."
    run = train(replace(asked, iterations=1))
    used = sum(x.numel() * x.element_size() for x in [*run.model.parameters()] * 2 + moments_of(run.optimizer))
    config = replace(run.config, **more)
    monkeypatch.setattr(budget, "machine_memory", lambda device: used if more else run_config.account_of(config).peak)
    run_config.check_memory(config, torch.device("cpu"))
    monkeypatch.setattr(budget, "machine_memory", lambda device: used // 2)
    with pytest.raises(ValueError, match="not enough memory"): run_config.check_memory(config, torch.device("cpu"))


def test_a_first_step_that_ruins_the_weights_is_not_saved(asked, monkeypatch):
    def ruining(model, *rest):
        told = train_step(model, *rest)
        for p in model.parameters(): p.data.fill_(math.nan)
        return told
    monkeypatch.setattr(training, "train_step", ruining)
    with pytest.raises(ValueError, match="before iteration 2; there is no checkpoint yet"): train(replace(asked, checkpoint_interval=1))
    assert not (asked.output/"checkpoint.pt").exists()


def test_a_run_that_went_further_than_it_is_asked_for_is_left_alone(asked):
    train(asked)
    before = {path.name: path.read_bytes() for path in asked.output.iterdir()}
    with pytest.raises(ValueError, match=r"--iterations 6 is less than the 8 steps that the run in .* has taken"): train(replace(asked, resume=True, iterations=6))
    assert {path.name: path.read_bytes() for path in asked.output.iterdir()} == before
    assert train(replace(asked, resume=True)).done == 8   # as many as it has taken: nothing to do, and no complaint


def test_a_loss_that_is_no_number_is_never_written_down(asked, monkeypatch):
    monkeypatch.setattr(training, "cross_entropy", lambda logits, targets: cross_entropy(logits, targets) * (math.nan if torch.is_grad_enabled() else 1))
    with pytest.raises(ValueError, match="before iteration 1; there is no checkpoint yet"): train(asked)
    assert not (asked.output/"metrics.jsonl").read_text("utf-8")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_and_the_run_can_go_on(asked, number, monkeypatch, capsys):
    real, whole = training.train_step, train(replace(asked, output=asked.output/"whole"))
    def pressing(*args):
        signal.raise_signal(number)
        return real(*args)
    monkeypatch.setattr(training, "train_step", pressing)
    stopped = train(asked)
    assert stopped.done == 1 and read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 1
    report(stopped.config, stopped.history, stopped.done, stopped.best)
    assert "best.pt" not in capsys.readouterr().out   # there is none yet
    report(replace(stopped.config, output=asked.output/"empty"), [], 0, stopped.best)
    assert "checkpoint.pt" not in capsys.readouterr().out   # nor here, where no step was taken
    monkeypatch.setattr(training, "train_step", real)
    resumed = train(replace(asked, resume=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))


def test_the_second_ctrl_c_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # where tests share processes (pytest -n 3), these ignore it
    try:
        with polite_stop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    finally: signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_put_back_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with polite_stop(): assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    seen = []
    def elsewhere():
        with polite_stop() as stop: seen.append(stop.is_set())
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_settling_fills_in_what_was_left_open(asked):
    settled = settle(replace(asked, iterations=100, lr_max=1e-2))
    assert (settled.warmup_iters, settled.cos_cycle_iters, settled.lr_min) == (5, 100, 1e-3)
    assert None not in {k: v for k, v in asdict(settled).items() if k not in ("tokenizer_path", "num_kv_heads", "num_threads", "parallel", "wandb", "muon_lr", "train_weights", "init_from", "ema", "patience")}.values()
    assert settle(settled) == settled
    assert settle(replace(asked, precision=None)).precision == ("float32" if asked.device != "cuda" else default_precision(torch.device("cuda")))


@pytest.mark.parametrize("device, native, chosen", [("cuda", True, "bfloat16"), ("cuda", False, "float16"), ("mps", False, "float32"), ("cpu", False, "float32")])
def test_half_precision_is_what_the_hardware_is_made_for(device, native, chosen, monkeypatch):
    "A T4, which can only imitate bfloat16, gets float16, and with it a scaler."
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert default_precision(torch.device(device)) == chosen


def test_flags_reach_the_optimiser_and_the_forward_pass(asked, monkeypatch):
    config, model, compiled = settle(replace(asked, beta1=.5, beta2=.6, weight_decay=.7)), small(asked.device), []
    groups = optimizer_for(model, config).param_groups
    assert {group["betas"] for group in groups} == {(.5, .6)} and {group["weight_decay"] for group in groups} == {0., .7}
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    assert fast_forward(model, config) is model and not compiled
    assert fast_forward(model, replace(config, compile=True)) is model and compiled == [model]
    limits, step = [], train_step
    monkeypatch.setattr(training, "train_step", lambda *args: limits.append(args[-1]) or step(*args))
    train(replace(asked, grad_clip=.25))
    assert set(limits) == {.25}
    if asked.device == "mps": return
    ids = torch.arange(8, device=asked.device)[None]
    for precision, dtype in PRECISIONS.items(): assert fast_forward(model, replace(config, precision=precision))(ids).dtype == dtype


def test_threads_are_set_where_asked(asked):
    before = torch.get_num_threads()
    try:
        train(replace(asked, num_threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally: torch.set_num_threads(before)


def test_every_field_of_a_model_is_a_flag():
    foreign = {"norm_eps", "d_k", "qkv_bias", "qk_norm", "rope_scaling", "variant"}   # for models that others have trained
    defaults = {f.name: f.default for f in fields(ModelConfig)} | {"vocab_size": None}   # which the tokenizer decides
    flags = {f.name: f.default for f in fields(TrainConfig) if f.name in defaults}
    assert flags == {name: default for name, default in defaults.items() if name not in foreign}


def test_a_path_may_be_a_text():
    "In a process of its own, since types are checked here."
    code = """from pathlib import Path
from llm_course import TrainConfig
config = TrainConfig(train_data="t.bin", val_data="v.bin", output="run", tokenizer_path="t.json")
assert config == TrainConfig(train_data=Path("t.bin"), val_data=Path("v.bin"), output=Path("run"), tokenizer_path=Path("t.json"))
assert config.output/"x" == Path("run/x")"""
    apart(["-c", code]).check_returncode()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_on_cuda(asked, precision):
    if asked.device != "cuda": pytest.skip("for CUDA alone")
    run = train(replace(asked, precision=precision, iterations=150, lr_max=1e-2))
    assert run.history[-1]["whole_val_loss"] < 0.3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_and_the_share_of_the_gpu_are_told(asked):
    if asked.device != "cuda": pytest.skip("for CUDA alone")
    line = train(replace(asked, precision="float16")).history[-1]
    assert line["memory_mib"] > 0 and (peak_flops(torch.cuda.get_device_name(), "float16") is None or 0 < line["mfu"] < 1)


# ---- What a run shows

@pytest.fixture
def speaking(asked):
    "The same run, with a tokenizer to write texts by."
    BpeTokenizer({i: bytes([i]) for i in range(256)}, []).save(asked.train_data.parent/"tokenizer.json")
    return replace(asked, vocab_size=None)


def test_texts_are_sampled_when_due_and_change_nothing(speaking):
    plain, talking = train(speaking), train(replace(speaking, output=speaking.output.parent/"talking", sample_interval=4, sample_prompt="to"))
    samples = {line["iteration"]: line["sample"] for line in talking.history if "sample" in line}
    assert samples.keys() == {4, 8} and all(text.startswith("to") and len(text) > 2 for text in samples.values())
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), talking.model.parameters()))


def test_samples_need_a_tokenizer(asked):
    with pytest.raises(ValueError, match="--sample_interval needs a tokenizer"): train(replace(asked, sample_interval=4))


def test_tensorboard_gets_the_numbers(speaking):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = train(replace(speaking, tensorboard=True, sample_interval=8))
    events = EventAccumulator(str(speaking.output/"tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("train_loss")]
    assert found == [(line["iteration"], pytest.approx(line["train_loss"])) for line in run.history if "train_loss" in line]
    assert events.Tags()["tensors"]   # the texts


def test_weights_and_biases_gets_the_lines_and_is_closed(asked, monkeypatch):
    calls = []
    project = types.SimpleNamespace(log=lambda line, step: calls.append((step, line)), finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **flags: calls.append(flags) or project))
    run = train(replace(asked, wandb="course"))
    assert calls[0]["project"] == "course" and calls[0]["config"]["d_model"] == 16 and calls[-1] == "finish"
    assert calls[1:-1] == [(line["iteration"], line) for line in run.history]


@pytest.mark.parametrize("flag, module, package", [("wandb", "wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard", "tensorboard")])
def test_a_board_that_is_not_installed_is_refused_in_one_line(asked, flag, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)   # an import now fails
    with pytest.raises(ValueError, match=f"--{flag} needs the package {package}; pip install {package}, or leave the flag out"):
        train(replace(asked, **{flag: "course" if flag == "wandb" else True}))


def test_a_notebook_shows_one_picture_and_updates_it_in_place(asked):
    "In a real kernel: a display with an id, then updates of that display, and one picture in the notebook that is left."
    import nbformat
    from nbclient import NotebookClient
    if asked.device != "cpu": pytest.skip("a kernel for one device is enough")
    class Listening(NotebookClient):
        def process_message(self, message, *rest):
            if message["msg_type"] in ("display_data", "update_display_data"):
                heard.append((message["msg_type"], message["content"]["transient"].get("display_id"), message["content"]["data"].get("image/svg+xml")))
            return super().process_message(message, *rest)
    heard, source = [], f"from pathlib import *\nfrom llm_course.training import TrainConfig, train\nrun = train({replace(asked, log_interval=1)!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    Listening(notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(root)}}).execute()
    pictures = [(kind, name, svg) for kind, name, svg in heard if svg]
    assert [kind for kind, *_ in pictures][:2] == ["display_data", "update_display_data"] and len({name for _, name, _ in pictures}) == 1 and pictures[0][1]
    assert all("<svg" in svg for *_, svg in pictures) and len(pictures[-1][2]) > len(pictures[0][2])   # it has grown
    [left] = [out for out in notebook.cells[0].outputs if "image/svg+xml" in out.get("data", {})]
    assert left["data"]["image/svg+xml"] == pictures[-1][2]


def test_the_curve_is_drawn_live_in_a_notebook(asked, drawn, monkeypatch):
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda picture, display_id: shown.append(picture.data) or types.SimpleNamespace(update=lambda p: shown.append(p.data)))
    monkeypatch.setattr(IPython, "get_ipython", lambda: types.SimpleNamespace(kernel=True))
    train(replace(asked, live_plot=False))
    assert not shown
    train(replace(asked, output=asked.output.parent/"live"))
    assert len(shown) >= 2 and len(shown[0]) < len(shown[-1]) and all(picture.startswith("<svg") for picture in shown)


VITAL = {"stream", "present_loss", "next_loss", "skip_loss", "last_loss", "peek"}


def test_time_memory_and_vital_signs_are_told(asked):
    line = train(asked).history[-1]
    assert {"seconds_per_step", "update_ratio", *VITAL} <= line.keys()
    assert line["tokens_per_second"] == pytest.approx(64 / line["seconds_per_step"], rel=.02)
    assert "mfu" in line or asked.device != "cuda"


@pytest.mark.parametrize("length, told", [(1, {"stream", "last_loss"}), (2, VITAL), (3, VITAL)])
def test_a_model_of_the_shortest_texts_tells_what_can_be_told(asked, length, told):
    line = train(replace(asked, max_seq_len=length)).history[-1]
    assert line.keys() & VITAL == told and all(math.isfinite(line[name]) for name in told)


@pytest.mark.parametrize("width, told", [(2, set()), (3, {"stream", "last_loss"}), (4, VITAL)])
def test_vital_signs_of_short_rows(width, told):
    signs = vital_signs(small(), np.random.default_rng(0).integers(50, size=(6, width)))
    assert signs.keys() == told and all(map(math.isfinite, signs.values()))


def test_the_time_of_a_step_is_the_mean_since_the_last_line(asked, monkeypatch):
    now, real = [100.], training.train_step
    def lasting(*args):   # one second by a clock of ours
        now[0] += 1
        return real(*args)
    monkeypatch.setattr(training, "train_step", lasting)
    monkeypatch.setattr(bookkeeping, "perf_counter", lambda: now[0])
    assert [line["seconds_per_step"] for line in train(asked).history if "seconds_per_step" in line] == [1., 1., 1., 1.]


def test_vital_signs_tell_the_labels_apart():
    class Echo(torch.nn.Module):
        "Says again, with certainty, what it was shown; `shift` later in a text that counts."
        def __init__(self, shift):
            super().__init__()
            self.norm, self.shift = torch.nn.Identity(), torch.nn.Parameter(torch.tensor(float(shift)))
        def forward(self, ids): return self.norm(50 * torch.nn.functional.one_hot((ids + int(self.shift)) % 50, 50).float())
    rows = (np.arange(3)[:, None] + np.arange(12)) % 50
    for shift, name in enumerate(("present_loss", "next_loss", "skip_loss")):
        signs = vital_signs(Echo(shift), rows)
        assert min(("present_loss", "next_loss", "skip_loss"), key=signs.get) == name and signs[name] < .1
        assert (signs["last_loss"] < .1) == (shift == 1) and signs["peek"] == 0


def test_vital_signs_see_a_missing_mask():
    model, rows = small(), np.random.default_rng(0).integers(50, size=(6, 9))
    assert vital_signs(model, rows)["peek"] < 1e-6
    model.blocks[0].attention.attend = lambda q, k, v, causal: attention(q, k, v)
    assert vital_signs(model, rows)["peek"] > 1e-3
    assert vital_signs(model, np.arange(6).repeat(9).reshape(6, 9))["peek"] > 1e-3   # even where each row says one word again and again


# ---- Going on

def test_every_random_state_is_kept(asked, monkeypatch):
    thrown = []
    real = training.train_step
    def throwing(*args):   # a part that throws dice, such as dropout
        thrown.append((np.random.rand(), torch.rand(1).item()))   # Python's own are thrown by beartype too, under pytest; test_checkpoint has them
        return real(*args)
    monkeypatch.setattr(training, "train_step", throwing)
    np.random.seed(1)   # torch's dice are set by the run's own seed
    train(asked)
    unbroken = thrown[:]
    thrown.clear()
    config = replace(settle(asked), output=asked.output.parent/"parts")
    np.random.seed(1)
    train(replace(config, iterations=5))
    state = read_checkpoint(config.output/"checkpoint.pt")["random"]
    np.random.seed(2), torch.manual_seed(2)
    train(replace(config, resume=True))
    assert len(state) == 1 and thrown == unbroken


@pytest.mark.parametrize("change, message", [
    (dict(seed=3), "--seed was 0"), (dict(max_seq_len=4), "--max_seq_len was 8|max_seq_len is 8"), (dict(batch_size=4), "--batch_size was 8"),
    (dict(grad_accumulation=2), "--grad_accumulation was 1")], ids=str)
def test_another_place_in_the_data_is_refused(asked, change, message):
    train(asked)
    with pytest.raises(ValueError, match=message): train(replace(asked, resume=True, **change))


def test_another_file_of_data_is_refused_and_another_schedule_is_told(asked):
    train(settle(asked))
    with pytest.warns(UserWarning, match="the schedule has changed: step 9 would have had the rate"): train(replace(asked, resume=True, iterations=10, lr_max=1e-2))
    (np.arange(900, dtype=np.uint16) % 50).tofile(asked.train_data)
    with pytest.raises(ValueError, match=r"the number of ids in .*train.bin was 2000 when the run in .* began, and is 900 now"): train(replace(asked, resume=True))


# Each flag, another value for it, and what a run that is resumed with it does; a new flag must be entered here.
RESUMED = {
    "acts": dict(eval_interval=3, eval_questions=9, init_from="run/best.pt", override=True, keep_checkpoints=2, patience=5, activation_checkpointing=True, output="run", tokenizer_path="tokenizer.json", resume=True, device="cpu", num_threads=1, parallel_timeout=9,
                 compile=True, iterations=9, log_interval=2, val_interval=3, checkpoint_interval=3, sample_interval=9, sample_prompt="O", tensorboard=True, live_plot=False),
    "noted": dict(lr_max=2e-3, lr_min=5e-4, warmup_iters=3, cos_cycle_iters=20, decay="line", beta1=.8, beta2=.5, weight_decay=0., grad_clip=0., ema=.9, dropout=.1,
                  precision="bfloat16", train_data="train_2.bin", val_data="train.bin", val_batches=1),
    "refused": dict(vocab_size=300, max_seq_len=4, d_model=32, num_layers=2, num_heads=4, d_ff=32, rope_theta=5e3, num_kv_heads=1, tie=True, train_weights=(2.,), eval_tasks=("speaker",), batch_size=4, grad_accumulation=2,
                    order="epochs", seed=1, muon_lr=.02, parallel="ddp", wandb="course", dry_run=True),
}


@pytest.fixture(scope="module")
def resumable(made_once):
    "A run of eight steps with its data and a tokenizer, to be copied."
    def make(folder):
        ids = np.arange(2_000, dtype=np.uint16) % 50
        for name in "train.bin", "train_2.bin", "val.bin": ids.tofile(folder/name)
        BpeTokenizer({i: bytes([i]) for i in range(256)}, []).save(folder/"tokenizer.json")
        train(resumable_in(folder))
    return made_once("resumable", make)


def resumable_in(folder):
    return settle(TrainConfig(train_data=folder/"train.bin", val_data=folder/"val.bin", output=folder/"run", **shape | dict(vocab_size=None), batch_size=8, iterations=8,
                              log_interval=4, val_interval=4, val_batches=2, checkpoint_interval=8, cos_cycle_iters=30, device="cpu", precision="float32"))


def test_every_flag_has_its_place_on_resume():
    assert sorted(name for flags in RESUMED.values() for name in flags) == sorted(f.name for f in fields(TrainConfig))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind, name", [(kind, name) for kind, flags in RESUMED.items() for name in flags])
def test_a_flag_on_resume_acts_or_is_refused_or_noted(kind, name, resumable, tmp_path, monkeypatch, recwarn):
    folder, value, compiled = tmp_path/"copy", RESUMED[kind][name], []
    shutil.copytree(resumable, folder)
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(1) or model)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delenv("RANK", raising=False)
    begun = resumable_in(folder)
    asked = begun.output/"config.json"   # which has the paths of the original
    asked.write_text(asked.read_text("utf-8").replace(json.dumps(str(resumable))[1:-1], json.dumps(str(folder))[1:-1]), "utf-8", newline="\n")
    if name in ("train_data", "val_data", "output", "tokenizer_path", "init_from"): value = folder/value
    config = replace(begun, **{"resume": True, "iterations": 9, name: value})
    before = {path.name: path.read_bytes() for path in begun.output.iterdir()}
    if kind == "refused":
        with pytest.raises(ValueError, match=name): train(config)
        assert {path.name: path.read_bytes() for path in begun.output.iterdir()} == before
        return
    run = train(config)
    notes = [str(warning.message) for warning in recwarn if "has changed" in str(warning.message) or "from now on" in str(warning.message)]
    assert run.done == 9 and len(notes) == (kind == "noted")
    assert any(str(warning.message) == f"--init_from {value} is not read: the run goes on from its checkpoint" for warning in recwarn) == (name == "init_from")
    if kind == "noted" and "schedule" not in notes[0]: assert notes[0] == f"--{name} was {getattr(begun, name)}, and is {value} from now on"
    said = json.loads((config.output/"config.json").read_text("utf-8"))
    kept = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in ("resume", "override", "dry_run")}   # those are of one call
    assert said == json.loads(json.dumps(kept, default=str))
    fresh = optimizer_for(run.model, run.config)   # the settings are those of the flags
    set_rates(fresh, run.config, 9)
    settings = [[{key: x for key, x in group.items() if key not in ("params", "averaged")} for group in optimizer.param_groups] for optimizer in (run.optimizer, fresh)]
    assert settings[0] == settings[1] and len(compiled) == (name == "compile")


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"val_batches": {"a": [1]}}', b'{"val_batches": 2}', b"\xff", b"[" * 100_000])
def test_a_run_goes_on_whatever_its_config_says(content, resumable, tmp_path):
    "It is for people to read; the checkpoint has what decides."
    shutil.copytree(resumable, tmp_path/"copy")
    config = resumable_in(tmp_path/"copy")
    if content is None: (config.output/"config.json").unlink()
    else: (config.output/"config.json").write_bytes(content)
    assert train(replace(config, resume=True, iterations=9)).done == 9


def test_another_shape_is_refused_by_its_flag_before_any_note(asked, recwarn):
    train(asked)
    with pytest.raises(ValueError, match=r"^--d_model was 16 when the run in .* began, and is 32 now; the shape of a model cannot change"):
        train(replace(asked, resume=True, override=True, d_model=32, batch_size=4))
    assert not recwarn


def test_muon_goes_on_with_another_rate_but_cannot_go(asked):
    asked = replace(asked, muon_lr=.02)
    train(asked)
    with pytest.raises(ValueError, match=r"--muon_lr was 0.02 when the run .* is left out now"): train(replace(asked, resume=True, iterations=9, muon_lr=None))
    with pytest.warns(UserWarning, match="--muon_lr was 0.02, and is 0.03 from now on"): run = train(replace(settle(asked), resume=True, iterations=9, muon_lr=.03))
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(.03 / asked.lr_max * run.history[-1]["lr"])


@pytest.mark.parametrize("harm, message", [
    (lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(3)), "optimiser is damaged: exp_avg of parameter 0 is"),
    (lambda s: s["optimizer"]["state"][1].update(exp_avg_sq=torch.full_like(s["optimizer"]["state"][1]["exp_avg_sq"], math.nan)), "must hold finite numbers"),
    (lambda s: s["optimizer"]["state"][0].update(exp_avg="many"), "exp_avg of parameter 0 is str"),
    (lambda s: s["optimizer"]["state"].update({99: {}}), "moments for a parameter 99"),
    (lambda s: s["optimizer"].pop("state"), "has no moments"),
    (lambda s: s["random"][0].pop("torch"), "random states of the checkpoint are damaged"),
    (lambda s: s.update(best="low"), "lacks best"), (lambda s: s.pop("schedule"), "lacks schedule"), (lambda s: s.update(best=math.nan), "lacks best"),
    (lambda s: s["optimizer"]["state"][0].update(exp_average=s["optimizer"]["state"][0].pop("exp_avg")), "has other moments than its neighbours"),
    (lambda s: s["optimizer"]["state"][2].update(exp_avg=torch.tensor(0.)), "has other moments than its neighbours"),
    *((lambda s, odd=odd: s["schedule"].update(odd), "checkpoint.pt is not a checkpoint that we can read") for odd in (dict(decay="up"), dict(lr_max="x"), dict(warmup_iters=None), dict(more=1), {3: 4})),
    *((lambda s, odd=odd: s["optimizer"]["param_groups"][0].update(odd), "checkpoint.pt is not a checkpoint") for odd in (dict(betas=3), dict(eps="x"), dict(weight_decay=-1.))),
    (lambda s: s["optimizer"]["param_groups"][0]["params"].__setitem__(0, "x"), "has other groups of parameters"),
    *((lambda s, odd=odd: s.update(odd), "checkpoint.pt is not a checkpoint") for odd in (dict(pending=["x"]), dict(pending=[[]]), dict(random=[]), dict(random=[3]), dict(random=[{"python": (3, 2**70)}]))),
    (lambda s: s["config"].update(rope_scaling=[1]), "its rope_scaling should be"), (lambda s: s["model"].update({"norm.weight": torch.full((16,), torch.nan)}), "norm.weight that are not finite")],
    ids=range(27))
def test_a_forged_checkpoint_is_refused_in_one_line(asked, harm, message):
    train(asked)
    state = read_checkpoint(asked.output/"checkpoint.pt")
    harm(state)
    torch.save(state, asked.output/"checkpoint.pt")
    with pytest.raises(ValueError, match=message) as caught: train(replace(asked, resume=True, iterations=9))
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_compiled_and_uncompiled_go_on_from_each_other(asked):
    "In processes of their own, since shapes are not checked inside a compiled graph."
    words = [f"--{name}={value}" for name, value in {**shape, "train_data": asked.train_data, "val_data": asked.val_data, "batch_size": 8,
             "device": asked.device, "precision": "float32", "cos_cycle_iters": 8, "warmup_iters": 1, "log_interval": 1}.items()]
    def go(folder, iterations, *more):
        done = apart(["-m", "llm_course.training", *words, f"--output={asked.output.parent/folder}", f"--iterations={iterations}", "--resume", *more],
                     {**os.environ, "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["train_loss"] for line in (asked.output.parent/folder/"metrics.jsonl").read_text("utf-8").splitlines()]
    go("mixed", 3, "--compile")
    go("mixed", 6)
    np.testing.assert_allclose(go("mixed", 8, "--compile"), go("plain", 8), rtol=1e-4)


COMPILED = """import hashlib, sys, torch
from llm_course.engine.flags import TrainConfig
from llm_course.engine.processes import fast_forward
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.transformer import Transformer
def digests(threads, times):
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    model = Transformer(300, 32, 64, 1, 4, 128)
    forward = fast_forward(model, TrainConfig(train_data="", val_data="", compile=True, precision="float32", device="cpu"))
    for _ in range(times):
        torch.manual_seed(0)
        model.load_state_dict(Transformer(300, 32, 64, 1, 4, 128).state_dict())
        optimizer = AdamW(model.parameters(), 1e-3)
        for _ in range(12):
            ids = torch.randint(300, (8, 33))
            loss = cross_entropy(forward(ids[:, :-1]), ids[:, 1:])
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        yield hashlib.md5(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()
import torch._dynamo
print(*{*digests(1, 1), *digests(2, 2)})
"""


@pytest.mark.long
def test_compiled_training_is_the_same_on_one_thread_and_two():
    done = apart(["-c", COMPILED], {**os.environ, "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0 and len(done.stdout.split()) == 1, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked, so that torch is imported once")
@pytest.mark.parametrize("how, kills, said", [("random", 20, "20 kills"), ("saving", 4, "deaths")], ids=["at random moments", "at writes, fsync and rename"])
def test_a_killed_run_ends_with_the_same_losses(how, kills, said, tmp_path):
    done = apart(["tests/killed.py", tmp_path, how, kills], {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, root)
    assert done.returncode == 0 and said in done.stdout, done.stderr
    assert json.loads((tmp_path/"whole/metrics.jsonl").read_text("utf-8").splitlines()[-1])["iteration"] >= 9


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl", "loss.svg"])
def test_a_full_disk_ends_in_one_line_and_loses_no_checkpoint(asked, name, monkeypatch):
    config = settle(replace(asked, iterations=10))
    train(replace(config, iterations=5))
    older = (asked.output/"checkpoint.pt").read_bytes()
    real = diary.whole_file
    def full(path, *mode, **more):
        if Path(path).name == name: raise OSError(28, "No space left on device", str(path))
        return real(path, *mode, **more)
    if name == "metrics.jsonl": monkeypatch.setattr(diary, "open", full, raising=False)
    monkeypatch.setattr(checkpoint, "whole_file", full)
    monkeypatch.setattr(diary, "whole_file", lambda path, *mode: full(path, *mode) if name == "loss.svg" else real(path, *mode))
    with pytest.raises(OSError, match="No space left"): train(replace(config, resume=True))
    monkeypatch.undo()
    assert name == "loss.svg" or (asked.output/"checkpoint.pt").read_bytes() == older
    assert train(replace(config, resume=True)).done == 10


def refused_by_the_command(config, capsys):
    "The one line with which the training command ends."
    words = [f"--{name}={value}" for name, value in asdict(config).items() if value not in (None, ()) and not isinstance(value, bool)] + ["--resume"] * config.resume
    with pytest.raises(SystemExit) as stopped: training.main(words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1
    return lines[0]


@pytest.fixture
def begun(asked):
    "A run that has come to its checkpoint at step 5, and would go on."
    config = settle(replace(asked, iterations=10))
    train(replace(config, iterations=5))
    return replace(config, resume=True)


def unharmed(config, older):
    "Its checkpoint is the older one, nothing half-written lies beside it, and the run goes on from there."
    assert (config.output/"checkpoint.pt").read_bytes() == older and not list(config.output.glob("*.partial"))
    return train(config).done == 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits on the size of files")
def test_a_write_that_the_system_cuts_short_loses_no_checkpoint(begun, capsys):
    import resource
    older, limits = (begun.output/"checkpoint.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(older) // 2, limits[1]))
    try: assert ".pt: File too large" in refused_by_the_command(begun, capsys)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert unharmed(begun, older)


def test_a_small_disk_that_runs_full_loses_no_checkpoint(begun, tmp_path, capsys):
    small_disk = tmp_path/"disk"
    small_disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small_disk], capture_output=True).returncode: pytest.skip("may not mount a disk")
    try:
        shutil.copytree(begun.output, small_disk/"run")
        on_disk, older = replace(begun, output=small_disk/"run"), (begun.output/"checkpoint.pt").read_bytes()
        free = shutil.disk_usage(small_disk).free
        (small_disk/"filler").write_bytes(bytes(free - len(older) // 2))
        assert "No space left on device" in refused_by_the_command(on_disk, capsys)
        (small_disk/"filler").unlink()
        assert unharmed(on_disk, older)
    finally: subprocess.run(["umount", small_disk], check=True)


LOCKED = [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")]

@pytest.mark.parametrize("error", LOCKED, ids=["forbidden", "read-only"])
@pytest.mark.parametrize("module", ["pathlib", "commands"], ids=["from the beginning", "on the way"])
def test_an_unwritable_folder_loses_no_checkpoint(module, error, begun, monkeypatch, capsys):
    "Played, since the superuser of many a container may write everywhere."
    older, real_open, real_os_open = (begun.output/"checkpoint.pt").read_bytes(), open, os.open
    def locked(open):
        def attempt(path, mode="r", *rest, **more):
            writes = mode & (os.O_WRONLY | os.O_RDWR) if isinstance(mode, int) else mode[0] in "wax"
            if writes and begun.output in Path(path).parents: raise type(error)(error.errno, error.strerror, str(path))
            return open(path, mode, *rest, **more)
        return attempt
    if module == "pathlib": monkeypatch.setattr(os, "open", locked(real_os_open))   # by which a file is touched
    else: monkeypatch.setattr(commands, "open", locked(real_open), raising=False)
    line = refused_by_the_command(begun, capsys)
    assert error.strerror in line and (f"--output {begun.output} cannot be written" in line or module == "commands")
    monkeypatch.undo()
    assert unharmed(begun, older)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_forbidden_folder_is_refused_before_the_work(asked):
    asked.output.mkdir(mode=0o500)
    with pytest.raises(ValueError, match=r"--output .* cannot be written: Permission denied"): train(asked)


@pytest.mark.parametrize("place", ["a file", *["/proc"] * os.path.isdir("/proc")])
def test_a_place_where_no_folder_can_be_is_refused_before_the_work(place, asked, capsys):
    asked.output.write_text("in the way", "utf-8", newline="\n")
    output = asked.output if place == "a file" else Path(place)/"run"
    assert f"--output {output} cannot be written" in refused_by_the_command(replace(asked, output=output), capsys)
    assert asked.output.read_text("utf-8") == "in the way"


def test_order_and_way_down_are_what_was_asked(asked):
    run = train(replace(asked, order="epochs", decay="line", lr_min=0., warmup_iters=2, lr_max=1e-2))
    rates = {line["iteration"]: line["lr"] for line in run.history if "lr" in line}
    assert rates[8] == 0 and rates[3] == pytest.approx(1e-2 * 5/6) and rates[6] == pytest.approx(1e-2 * 2/6)
    run.done = 3
    wanted = get_batch(run.train_ids, 8, 8, asked.device, seed=0, iteration=3, order="epochs")
    for a, b in zip(training.batches_of(run)[0], wanted): assert torch.equal(a, b)
    assert not torch.equal(wanted[0], get_batch(run.train_ids, 8, 8, asked.device, seed=0, iteration=3)[0])


def test_muon_steps_the_matrices_of_the_blocks_and_resumes(asked):
    asked = replace(asked, muon_lr=0.02, lr_max=1e-2)
    whole = train(asked)
    muon, *rest = whole.optimizer.param_groups
    assert {id(p) for p in muon["params"]} == {id(p) for name, p in whole.model.named_parameters() if "blocks" in name and p.ndim == 2}
    assert sum(len(group["params"]) for group in whole.optimizer.param_groups) == len(list(whole.model.parameters()))
    assert muon["lr"] == pytest.approx(2 * rest[0]["lr"]) and rest[0]["lr"] > 0
    config = replace(settle(asked), output=asked.output.parent/"parts")
    train(replace(config, iterations=5))
    parts = train(replace(config, resume=True))
    for a, b in zip(whole.model.parameters(), parts.model.parameters()): assert torch.equal(a, b)


@pytest.mark.parametrize("change, message", [
    (dict(order="sorted"), "--order sorted is not one of random, epochs"), (dict(decay="root"), "--decay root is not one of cosine, line"),
    (dict(muon_lr=0.), "--muon_lr and --lr_max must be positive, but they are 0.0 and 0.001")])
def test_a_recipe_that_cannot_be_is_refused(asked, change, message):
    with pytest.raises(ValueError, match=message): settle(replace(asked, **change))
