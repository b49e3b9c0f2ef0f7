"""The health of a run: every fault is named, on stored runs that no threshold was set on and on runs made here; sound runs are left in peace."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_course.attention import attention
from llm_course.data import get_batch
from llm_course.engine import bookkeeping, mixture, run_config
from llm_course.engine.diary import probe_rows, report, update_ratio, update_ratios
from llm_course.health import FAULTS, activation_sizes, band_of_runs, diagnose, overfit, read_traces, series
from llm_course.training import TrainConfig, train
from llm_course.transformer import Transformer

traces = read_traces()


def first(trace): return next(iter(diagnose(trace["history"], trace["vocab_size"])), "none")


def test_every_fault_was_recorded_in_both_parts():
    for part in "tuning", "held out": assert {t["fault"] for t in traces if t["part"] == part} == {"none", *FAULTS}
    names = [t["name"] for t in traces]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("trace", [t for t in traces if t["part"] == "tuning"], ids=lambda t: t["name"])
def test_tuning_runs_are_named(trace): assert first(trace) == trace["fault"]


def test_held_out_runs_are_named_at_the_rates_that_the_page_tells():
    held_out = [t for t in traces if t["part"] == "held out"]
    broken, sound = ([t for t in held_out if (t["fault"] == "none") == healthy] for healthy in (False, True))
    assert np.mean([first(t) == t["fault"] for t in broken]) > .9
    assert np.mean([first(t) != "none" for t in sound]) < .2


@pytest.fixture
def asked(tmp_path):
    "A run whose text can be learnt: words of three letters, one after another at random."
    words = np.random.default_rng(0).integers(60, size=(40, 3))
    ids = words[np.random.default_rng(1).integers(40, size=4_000)].astype(np.uint16).ravel()
    ids[:11_000].tofile(tmp_path/"train.bin"), ids[11_000:].tofile(tmp_path/"val.bin")
    return TrainConfig(train_data=tmp_path/"train.bin", val_data=tmp_path/"val.bin", output=tmp_path/"run", vocab_size=60, max_seq_len=16, d_model=32, num_layers=2,
                       num_heads=2, d_ff=64, batch_size=8, iterations=70, warmup_iters=10, lr_max=5e-3, log_interval=5, val_interval=10, val_batches=2, device="cpu")


def test_a_fresh_run_is_sound(asked): assert diagnose(train(asked).history, 60) == {}


def test_a_tied_run_that_has_learnt_little_is_sound(asked):
    history = train(replace(asked, tie=True, iterations=3, warmup_iters=0, lr_max=1e-3)).history
    assert history[-1]["present_loss"] < .8 * history[-1]["next_loss"] and diagnose(history) == {}


@pytest.mark.parametrize("fault, shift", [("labels not shifted", 0), ("labels shifted twice", 2)])
def test_fresh_runs_with_wrong_labels(asked, fault, shift, monkeypatch):
    def wrong(ids, batch_size, max_seq_len, *rest, **more):
        inputs, targets = get_batch(ids, batch_size, max_seq_len + 1, *rest, **more)
        return inputs[:, :-1], (inputs[:, :-1], targets[:, 1:])[shift > 0]
    for module in bookkeeping, mixture: monkeypatch.setattr(module, "get_batch", wrong)
    assert next(iter(diagnose(train(asked).history))) == fault


def test_a_fresh_run_without_a_mask(asked, monkeypatch):
    def unmasked(*args, **kwargs):
        model = Transformer(*args, **kwargs)
        for block in model.blocks: block.attention.attend = lambda q, k, v, causal, **limits: attention(q, k, v, **limits)
        return model
    monkeypatch.setattr(run_config, "Transformer", unmasked)
    assert next(iter(diagnose(train(asked).history))) == "no causal mask"


def test_a_first_loss_far_from_the_logarithm_is_told():
    assert "it is 9.00" in diagnose([{"iteration": 1, "train_loss": 9.}], 100)["first loss"]
    assert not diagnose([{"iteration": 1, "train_loss": math.log(100)}], 100) and not diagnose([]) and not diagnose([{"iteration": 3}])


@pytest.mark.parametrize("later, faults", [
    (dict(peek=1e-5), []), (dict(peek=2e-3), ["no causal mask"]),   # rounding lets a little through
    (dict(present_loss=3., next_loss=2.), []), (dict(train_loss=1., present_loss=1., next_loss=2.), ["labels not shifted"]),   # the first line says the contrary
    (dict(train_loss=2., present_loss=1., next_loss=2.), []),   # a tied model that is still young learns from the next, as it should
    (dict(peek=.5, train_loss=1., present_loss=1., next_loss=2.), ["no causal mask", "labels not shifted"]),   # the surest first
    (dict(train_loss=2., val_loss=4.5, epochs=.5), ["tokenizer mismatch"]), (dict(train_loss=2., val_loss=4.5, epochs=3.), []),   # learnt by heart, which is no fault of the files
    (dict(train_loss=4.8, val_loss=5., epochs=.5), [])], ids=range(9))   # too little is learnt yet to tell
def test_what_the_last_measurement_says_decides(later, faults):
    first = {"iteration": 1, "train_loss": 5., "val_loss": 5., "peek": 0. if later.get("peek") else .5, "present_loss": 1., "next_loss": 2.}
    assert list(diagnose([first, {"iteration": 2, "peek": 0., "present_loss": 3., "next_loss": 2., **later}])) == faults


def test_the_report_names_the_fault(asked, monkeypatch, capsys):
    run = train(asked)
    report(run.config, run.history, run.done, run.best, diagnose(run.history))
    assert "something may be wrong" not in capsys.readouterr().out
    run.history[-1]["peek"] = .5
    report(run.config, run.history, run.done, run.best, diagnose(run.history))
    assert "something may be wrong: no causal mask" in capsys.readouterr().out


def test_overfit_learns_by_heart_and_leaves_the_model_alone(device):
    model = Transformer(50, 8, 32, 2, 2, 64, device=device)
    before = [p.clone() for p in model.parameters()]
    losses = overfit(model, *get_batch(np.random.default_rng(0).integers(50, size=99), 4, 8, device, iteration=0))
    assert losses[0] == pytest.approx(math.log(50), abs=.2) and losses[-1] < .05
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters()))


def test_activation_sizes_are_those_of_the_stream(device):
    model = Transformer(50, 8, 32, 3, 2, 64, device=device)
    ids = torch.randint(50, (2, 8), device=device)
    sizes, x = activation_sizes(model, ids), model.embedding(ids)
    for size, block in zip(sizes, [None, *model.blocks], strict=True):
        x = x if block is None else block(x)
        assert size == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_step_is_measured_by_the_length_it_starts_from():
    before = [torch.tensor([[3., 4.]]), torch.tensor([[0.], [400.]]), torch.tensor([[2., 0.]]), torch.zeros(1, 1)]
    after = [before[0] + torch.tensor([[0., .5]]), before[1], before[2] + 1, before[3] + 1]
    assert update_ratios(before, after) == pytest.approx([.1, 0, .5**.5, math.inf])
    assert update_ratio(before[:3], after[:3]) == pytest.approx(.1)   # the middle one: the large matrix that stays does not hide the others


def test_leaving_out_the_warm_up_is_no_fault():
    cold = [t for t in traces if t["fault"] == "no warm-up"]
    assert cold and all(first(t) == "none" for t in cold)


def test_the_rows_that_are_watched_reach_from_end_to_end():
    rows = probe_rows(np.arange(500), 8)
    assert rows.shape == (32, 10) and rows[0].tolist() == list(range(10)) and rows[-1].tolist() == list(range(490, 500)) and len(set(rows[:, 0])) == 32
    assert probe_rows(np.arange(9), 8).shape == (32, 9)   # a split can be as short as one row


def test_a_band_holds_what_it_was_made_of():
    histories = [[{"iteration": i, "train_loss": float(i * k)} for i in (1, 2)] + [{"iteration": 3}] for k in (1, 2, 4)]
    at, (low, middle, high) = band_of_runs(histories)
    assert at == [1, 2] and low.tolist() == [1, 2] and middle.tolist() == [2, 4] and high.tolist() == [4, 8]
    assert series(histories[0], "val_loss") == ([], [])
