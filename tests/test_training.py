"""The training loop: what a step is, what a run keeps, and that nothing but the flags decides what comes out."""
import json
import math
import signal
import threading
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch

from llm_course import training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, read_checkpoint
from llm_course.data import get_batch, windows
from llm_course.loss import cross_entropy
from llm_course.optim import AdamW
from llm_course.training import TrainConfig, count_bytes, evaluate, polite_stop, settle, train, train_step
from llm_course.transformer import ModelConfig, Transformer

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
    lines = [json.loads(line) for line in (asked.output/"metrics.jsonl").read_text().splitlines()]
    assert lines == run.history
    assert [line["iteration"] for line in lines] == [1, 3, 4, 6, 8]
    assert [line["iteration"] for line in lines if "val_loss" in line] == [4, 8]
    assert "whole_val_loss" in lines[-1] and "bits_per_byte" not in lines[-1]   # no tokenizer, no bytes
    assert json.loads((asked.output/"config.json").read_text())["d_model"] == 16
    assert read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 8


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
    with open(asked.output/"metrics.jsonl", "a") as file: file.write('{"iteration": 6, "train_loss": 1.0}\n[5]\n{"a": 1}\n{"iterat')   # written, then killed
    run = train(replace(settle(asked), resume=True))
    assert [line["iteration"] for line in run.history] == [1, 3, 4, 5, 6, 8]
    assert run.history[4]["train_loss"] != 1.0


def test_a_run_that_left_no_checkpoint_is_begun_anew(asked):
    train(asked)
    (asked.output/"checkpoint.pt").unlink()
    run = train(asked)
    assert [json.loads(line) for line in (asked.output/"metrics.jsonl").read_text().splitlines()] == run.history


def test_a_run_can_go_on_in_float16_and_back(asked):
    if asked.device == "mps": pytest.skip("half precision is for CPU and CUDA")
    for i, precision in enumerate(["float32", "float16", "float32"], 1):
        assert train(replace(settle(asked), iterations=2*i, resume=True, precision=precision)).done == 2*i


def test_resume_without_a_checkpoint_starts(asked): assert train(replace(asked, resume=True)).done == 8


def test_same_seed_same_curve_other_seed_other_curve(asked):
    def losses(name, **change): return [line["train_loss"] for line in train(replace(asked, output=asked.output/name, **change)).history if "train_loss" in line]
    assert losses("a") == losses("b") != losses("c", seed=1)


@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_small_batches_add_up_to_a_large_one(pieces, device):
    inputs, targets = get_batch(np.arange(100) % 50, 8, 8, device)
    after = []
    for k in 1, pieces:
        model = small(device)
        batches = list(zip(inputs.chunk(k), targets.chunk(k)))
        loss, norm = train_step(model, AdamW(model.parameters(), eps=1e-3), no_scaler(), batches, 0.5)
        after.append([loss, norm, *model.parameters()])
    for one, many in zip(*after): torch.testing.assert_close(one, many)


def test_a_step_clips_and_zero_lets_all_pass():
    batch = [get_batch(np.arange(100) % 50, 8, 8)]
    for limit in 1e-3, 0.:
        model = small()
        _, norm = train_step(model, AdamW(model.parameters(), lr=0.), no_scaler(), batch, limit)
        length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        assert length == pytest.approx(limit or norm.item(), rel=1e-2)


def test_evaluation_weighs_by_tokens_and_learns_nothing():
    model, ids = small(), np.arange(70) % 50
    before = [p.clone() for p in model.parameters()]
    mean = evaluate(model, windows(ids, 3, 8))
    each = [cross_entropy(model(x), y).item() * y.numel() for x, y in windows(ids, 1, 8)]
    assert mean == pytest.approx(sum(each) / 69, rel=1e-5)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters()))


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_and_the_run_can_go_on(asked, number, monkeypatch, capsys):
    real, whole = training.train_step, train(replace(asked, output=asked.output/"whole"))
    def pressing(*args):
        signal.raise_signal(number)
        return real(*args)
    monkeypatch.setattr(training, "train_step", pressing)
    stopped = train(asked)
    assert stopped.done == 1 and read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 1
    training.report(stopped)
    assert "best.pt" not in capsys.readouterr().out   # there is none yet
    monkeypatch.setattr(training, "train_step", real)
    resumed = train(replace(asked, resume=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters()))


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
    assert None not in {k: v for k, v in asdict(settled).items() if k not in ("tokenizer_path", "num_kv_heads", "num_threads", "parallel")}.values()
    assert settle(settled) == settled
    assert settle(replace(asked, precision=None)).precision == ("float32" if asked.device != "cuda" else training.default_precision(torch.device("cuda")))


def test_threads_are_set_where_asked(asked):
    before = torch.get_num_threads()
    try:
        train(replace(asked, num_threads=before + 1))
        assert torch.get_num_threads() == before + 1
    finally: torch.set_num_threads(before)


def test_every_field_of_a_model_is_a_flag():
    foreign = {"norm_eps", "d_k", "qkv_bias", "qk_norm", "rope_scaling"}   # for models that others have trained
    assert {f.name for f in fields(ModelConfig)} - foreign <= {f.name for f in fields(TrainConfig)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_on_cuda(asked, precision):
    if asked.device != "cuda": pytest.skip("for CUDA alone")
    run = train(replace(asked, precision=precision, iterations=150, lr_max=1e-2))
    assert run.history[-1]["whole_val_loss"] < 0.3
