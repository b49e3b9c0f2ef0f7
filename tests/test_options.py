"""What users of other training programs look for: fine-tuning, a file of flags, several training sets, early stopping, older checkpoints, averaged weights, dropout, a deliberate change on resume. From Python and from the command line."""
import json
import re
import shutil
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_course import checkpoint, training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, read_checkpoint, save_model
from llm_course.data import get_batch, windows
from llm_course.engine import bookkeeping, data_command, exchange, run_config, text_files
from llm_course.engine.commands import names_of, parse
from llm_course.engine.data_command import DataConfig
from llm_course.engine.diary import report
from llm_course.engine.evaluation_command import EvaluationConfig
from llm_course.engine.flags import GenerateConfig, ServeConfig, TrainConfig
from llm_course.engine.mixture import Mixture, cards_for, deal, draw_batch
from llm_course.engine.rollouts import RewardsConfig
from llm_course.engine.run_config import settle
from llm_course.engine.tokenizer_command import TokenizerConfig
from llm_course.engine.tokens import TokensConfig
from llm_course.engine.tuning import InstructConfig
from llm_course.pretrained import export_gguf, export_pretrained
from llm_course.training import evaluate, train
from llm_course.transformer import ModelConfig, Transformer

SHAPE = dict(vocab_size=50, max_seq_len=8, d_model=16, num_layers=1, num_heads=2, d_ff=24)


@pytest.fixture
def asked(tmp_path):
    "A small run over ids that follow a rule: each is the last one plus one."
    for name in "train.bin", "val.bin": (np.arange(2_000, dtype=np.uint16) % 50).tofile(tmp_path/name)
    return TrainConfig(train_data=tmp_path/"train.bin", val_data=tmp_path/"val.bin", output=tmp_path/"run", **SHAPE, batch_size=8, iterations=8,
                       log_interval=3, val_interval=4, val_batches=2, checkpoint_interval=5, cos_cycle_iters=8, warmup_iters=1, device="cpu", precision="float32", live_plot=False)


def words_of(config, *but):
    "A configuration as one would type it."
    words = []
    for f in fields(config):
        value = getattr(config, f.name)
        if value == f.default or f.name in but: continue
        if isinstance(value, bool): words.append(f"--{f.name}" if value else f"--no_{f.name}")
        else: words += [f"--{f.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def refusal(capsys, words):
    with pytest.raises(SystemExit) as stopped: training.main(words)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1
    return errors[0]


# ---- A model to begin with

@pytest.fixture
def begun(tmp_path):
    "A model of another shape than the defaults, with a tokenizer that data and model share."
    torch.manual_seed(3)
    model = Transformer(257, 16, 32, num_layers=2, num_heads=4, d_ff=40, num_kv_heads=2, norm_eps=1e-6)
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)} | {256: b"th"}, [(b"t", b"h")])
    (tmp_path/"model").mkdir()
    tokenizer.save(tmp_path/"tokenizer.json"), tokenizer.save(tmp_path/"model"/"tokenizer.json")
    save_model(model, tmp_path/"model"/"model.safetensors", torch.float32)
    export_pretrained(model, tokenizer, tmp_path/"export")
    export_gguf(model, tokenizer, tmp_path/"model"/"model.gguf")
    return model


def unshaped(asked): return replace(asked, **{name: f.default for name, f in TrainConfig.__dataclass_fields__.items() if name in SHAPE})


@pytest.mark.parametrize("start", ["model/model.safetensors", "export", "model/model.gguf"])
def test_a_run_begins_with_given_weights_of_any_kind(start, begun, asked, tmp_path):
    "A rate of nothing leaves them as they are, and the shape is the model's."
    config = replace(unshaped(asked), init_from=tmp_path/start, lr_max=0., iterations=1)
    training.main(words_of(config))
    ids = torch.arange(8)[None]
    torch.testing.assert_close(load_model(asked.output/"checkpoint.pt", "cpu")(ids), begun(ids), rtol=1e-4, atol=1e-4)
    said = json.loads((asked.output/"config.json").read_text("utf-8"))
    assert said["init_from"] == str(tmp_path/start) and not said.keys() & {"d_model", "num_kv_heads", "max_seq_len", "vocab_size"}   # they follow the model


def test_fine_tuning_learns_resumes_and_begins_again_from_its_run_folder(begun, asked, tmp_path):
    config = replace(unshaped(asked), init_from=tmp_path/"model"/"model.safetensors", lr_max=1e-2, max_seq_len=8)
    whole = train(replace(config, output=tmp_path/"whole"))
    assert not same(whole.model, begun) and whole.model.config == begun.config and whole.config.max_seq_len == 8   # shorter rows
    train(replace(config, iterations=5))
    (tmp_path/"model"/"model.safetensors").unlink()   # no longer needed
    assert same(train(replace(config, resume=True)).model, whole.model)
    again = train(replace(config, init_from=tmp_path/"whole", output=tmp_path/"again", lr_max=0., iterations=1))
    assert same(again.model, load_model(tmp_path/"whole"/"best.pt", "cpu")) and again.done == 1   # fresh steps, a fresh optimiser


def test_a_model_may_be_handed_over(begun, asked, tmp_path):
    run = train(replace(unshaped(asked), iterations=2), model=begun)
    assert run.model is begun and begun.training and run.config.d_model == 32
    said = json.loads((asked.output/"config.json").read_text("utf-8"))
    assert (said["d_model"], said["num_kv_heads"], said["max_seq_len"]) == (32, 2, 16) and "vocab_size" not in said   # no flag names the model, but one the tokenizer
    with pytest.raises(ValueError, match=r"export is not a model of this course; open it with load_pretrained, and hand it over"):
        train(replace(unshaped(asked), init_from=tmp_path/"export", output=tmp_path/"other"))


@pytest.mark.parametrize("change, message", [
    (dict(d_model=64), "--d_model is 64, but the model to begin with has 32; leave the flag out"), (dict(max_seq_len=99), "--max_seq_len is 99, but the model to begin with has 16"),
    (dict(tie=True), "--tie is True, but"), (dict(vocab_size=99), "--vocab_size is 99, but"), (dict(init_from=Path("nowhere.pt")), "--init_from nowhere.pt does not exist")], ids=str)
def test_what_does_not_fit_the_model_is_one_line(change, message, begun, asked, tmp_path, capsys):
    config = replace(unshaped(asked), **{"init_from": tmp_path/"model"/"model.safetensors"} | change)
    assert message in refusal(capsys, words_of(config))


def test_another_tokenizer_is_refused(begun, asked, tmp_path, capsys):
    BpeTokenizer.train(["the moth and the thing"], 256 + 4).save(tmp_path/"tokenizer.json")
    config = replace(unshaped(asked), init_from=tmp_path/"model"/"model.safetensors")
    assert "is a different tokenizer from that of" in refusal(capsys, words_of(config))
    with pytest.raises(ValueError, match="has 260 ids, and the model to begin with knows 257"): train(config)


# ---- A file of flags

def test_a_runs_own_configuration_is_a_file_of_flags(asked, tmp_path, capsys):
    first = train(asked)
    training.main(["--config", str(asked.output/"config.json"), "--output", str(tmp_path/"again")])
    assert same(load_model(tmp_path/"again"/"checkpoint.pt", "cpu"), first.model)
    before, after = (json.loads((folder/"config.json").read_text("utf-8")) for folder in (asked.output, tmp_path/"again"))
    assert after == before | {"output": str(tmp_path/"again")}
    assert settle(parse(TrainConfig, ["--config", str(asked.output/"config.json")])) == first.config   # from Python


def test_what_was_left_open_follows_others_again_in_the_next_run(asked, tmp_path, capsys):
    "A run's own config.json fixes what was typed: not the schedule of its length, nor the tokenizer of its data."
    asked = replace(asked, vocab_size=None, cos_cycle_iters=None, warmup_iters=None)
    for place, letters in (tmp_path, b"th"), (tmp_path/"other", b"an"):
        place.mkdir(exist_ok=True)
        for name in "train.bin", "val.bin": (np.arange(2_000, dtype=np.uint16) % 50).tofile(place/name)
        BpeTokenizer({i: bytes([i]) for i in range(256)} | {256: letters}, [(letters[:1], letters[1:])]).save(place/"tokenizer.json")
    training.main(words_of(asked))
    flags = ["--config", str(asked.output/"config.json")]
    whole = train(replace(asked, output=tmp_path/"whole", iterations=10))
    training.main([*flags, "--iterations", "5", "--output", str(tmp_path/"begun")])
    training.main([*flags, "--iterations", "10", "--output", str(tmp_path/"begun"), "--resume", "--override"])
    assert capsys.readouterr().err.count("note: the schedule has changed") == 1
    other = ["--train_data", str(tmp_path/"other"/"train.bin"), "--val_data", str(tmp_path/"other"/"val.bin"), "--output", str(tmp_path/"third")]
    training.main([*flags, *other, "--iterations", "10"])
    assert (tmp_path/"third"/"tokenizer.json").read_bytes() == (tmp_path/"other"/"tokenizer.json").read_bytes()
    rates = [{line["iteration"]: line["lr"] for line in map(json.loads, (tmp_path/name/"metrics.jsonl").read_text("utf-8").splitlines()) if "lr" in line} for name in ("whole", "third")]
    assert rates[0] == rates[1] and whole.config.cos_cycle_iters == 10
    assert "holds a run already; add --resume" in refusal(capsys, ["--config", str(tmp_path/"begun"/"config.json")])   # a call's own flags are not kept
    (tmp_path/"spaced.json").write_bytes((tmp_path/"tokenizer.json").read_bytes() + b"\n")
    assert run_config.find_tokenizer(replace(asked, tokenizer_path=tmp_path/"spaced.json")) == tmp_path/"spaced.json"   # the same, written otherwise
    old = json.dumps(json.loads((asked.output/"config.json").read_text("utf-8")) | {"tokenizer_path": str(tmp_path/"tokenizer.json"), "vocab_size": 257, "resume": False})
    (tmp_path/"old.json").write_text(old, "utf-8", newline="\n")   # as files of before have it
    assert f"{tmp_path/'other'/'tokenizer.json'} is not the same as {tmp_path/'tokenizer.json'}" in refusal(capsys, ["--config", str(tmp_path/"old.json"), *other[:4], "--output", str(tmp_path/"fourth")])


def test_a_run_that_is_over_says_that_no_step_is_taken(asked, capsys):
    train(asked)
    before = read_checkpoint(asked.output/"checkpoint.pt")["iteration"]
    training.main([*words_of(asked), "--resume"])
    told = capsys.readouterr().err
    assert f"note: the run in {asked.output} is over after 8 steps, so none is taken now; to go on, ask for more --iterations" in told and before == 8


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_flags_of_a_file_are_those_of_the_command_line_and_typed_ones_win(kind, tmp_path):
    sets = {"train_data": ["a.bin", "b.bin"], "val_data": "v.bin", "train_weights": [3, 1], "resume": True, "live_plot": False, "lr_max": 0.25, "sample_prompt": "-a\nb", "iterations": 9, "patience": 4}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sets.items())
    (tmp_path/f"c.{kind}").write_text(lines if kind == "toml" else json.dumps(sets | {"muon_lr": None}), "utf-8-sig", newline="\r\n")   # as Windows writes it
    config = parse(TrainConfig, ["--iterations", "7", f"--config={tmp_path}/c.{kind}", "--live_plot", "--train_data", "c.bin"])
    assert config == TrainConfig(train_data=Path("c.bin"), val_data=Path("v.bin"), train_weights=(3., 1.), resume=True, lr_max=.25, sample_prompt="-a\nb", iterations=7, patience=4)


_ALIASED = [(config, typed, name) for config in (TrainConfig, GenerateConfig, ServeConfig, InstructConfig, EvaluationConfig, exchange.ExportConfig, DataConfig, RewardsConfig, TokensConfig)
            for typed, name in names_of(config).items() if typed != name]


@pytest.mark.parametrize("config, typed, name", _ALIASED, ids=str)
def test_a_file_may_use_every_name_that_may_be_typed(config, typed, name, tmp_path):
    needed = [word for f in fields(config) if f.default is MISSING for word in (f"--{f.name}", "x")]
    sets = "a.json"
    for i, spelt in enumerate((typed, name, name.replace("_", "-"))):
        (tmp_path/f"{i}.json").write_text(json.dumps({spelt: sets}), "utf-8", newline="\n")
        read = parse(config, ["--config", str(tmp_path/f"{i}.json"), *needed])
        assert getattr(read, name) == Path(sets) and read == parse(config, [f"--{typed}", sets, *needed])


def test_the_tokenizer_is_among_those_names():
    assert {typed for _, typed, _ in _ALIASED} >= {"tokenizer"} and len({config for config, *_ in _ALIASED}) == 9


@pytest.mark.parametrize("text, message", [
    ('{"d_modle": 3}', "sets d_modle, which is not a flag; did you mean --d_model?"), ('{"tokeniser": "t"}', "sets tokeniser, which is not a flag; did you mean tokenizer?"), ('{"zzz": 3}', "sets zzz, which is not a flag; leave it out"), ("{", "is not TOML or JSON"),
    ("[1]", "must hold names and values of flags"), ('{"seed": {"a": 1}}', "sets seed to a table"),
    ('{"iterations": "ten"}', "c.json sets iterations to 'ten', which is not a whole number"), ('{"resume": 1}', "sets resume to 1, which is not true or false"), ('{"train_weights": [1, true]}', "sets --train_weights to True, which is not a number")])
def test_a_file_of_flags_that_is_none_is_one_line(text, message, tmp_path, capsys):
    (tmp_path/"c.json").write_text(text, "utf-8", newline="\n")
    assert message in refusal(capsys, ["--config", str(tmp_path/"c.json")])
    assert "does not exist" in refusal(capsys, ["--config", str(tmp_path/"none.json")]) and "--config needs the name of a file" in refusal(capsys, ["--config"])
    assert "--config can name only one file" in refusal(capsys, [f"--config={tmp_path}/c.json", "--config", "w.json"])


# ---- Several training sets

@pytest.mark.parametrize("total", [0, 7, 1000, 2345])
def test_rows_of_each_set_are_counted(total):
    sets = Mixture([np.arange(9), np.arange(9), np.arange(9)], (3, 1, .5))
    dealt = [deal(sets.cards, 5, row)[0] for row in range(total)]
    assert sets.rows(total, 5) == [dealt.count(which) for which in range(3)]


def test_the_command_tells_the_rows_of_each_set(asked, tmp_path, capsys):
    more = shutil.copyfile(asked.train_data, tmp_path/"more.bin")
    config = replace(asked, train_data=(asked.train_data, more), iterations=2)
    training.main(words_of(config))
    told = re.findall(r"rows of .*\.bin: (\d+)", capsys.readouterr().out)
    assert len(told) == 2 and sum(map(int, told)) == 2 * config.batch_size


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_a_mixture_keeps_its_shares_and_is_a_function_of_seed_and_step(order):
    sets = Mixture([np.arange(k * 1000, k * 1000 + 500) for k in range(3)], (5, 3, 2))
    def batch(i, seed=0): return draw_batch(sets, 20, 6, seed=seed, iteration=i, order=order)
    drawn = [batch(i) for i in range(50)]
    counts = np.bincount(torch.cat([inputs[:, 0] for inputs, _ in drawn]).numpy() // 1000)
    assert counts.tolist() == [500, 300, 200]
    assert all(torch.equal(inputs[:, 1:], targets[:, :-1]) for inputs, targets in drawn)
    assert torch.equal(batch(33)[0], drawn[33][0]) and not torch.equal(batch(33, seed=1)[0], drawn[33][0])
    starts = [set((inputs[:, 0][inputs[:, 0] // 1000 == k] % 1000).tolist()) for inputs, _ in drawn[:3] for k in (0, 1)]
    assert starts[0] != starts[1]   # two files are not read in step
    if order == "epochs":   # the 82 rows of a file come once before any comes again
        first = [start for inputs, _ in drawn for start in inputs[:, 0].tolist() if start < 1000][:82]
        assert len(set(first)) == 82


def test_one_file_is_read_as_ever():
    ids = np.arange(300)
    for order in "random", "epochs":
        a, b = (f(ids, 4, 8, "cpu", seed=1, iteration=5, order=order)[0] for f in (draw_batch, get_batch))
        assert torch.equal(a, b)


def test_a_run_learns_from_several_files_and_resumes(asked, tmp_path, capsys):
    (np.arange(1_000, dtype=np.uint16)[::-1] % 50).tofile(tmp_path/"b.bin")
    asked = replace(asked, train_data=(asked.train_data, tmp_path/"b.bin"), train_weights=(3., 1.))
    whole = train(replace(asked, output=tmp_path/"whole"))
    training.main(words_of(replace(asked, iterations=5)))
    training.main([*words_of(asked), "--resume"])
    assert same(load_model(asked.output/"checkpoint.pt", "cpu"), whole.model)
    assert whole.history[-1]["epochs"] == pytest.approx(8 * 8 * 8 / 3000)
    said = json.loads((asked.output/"config.json").read_text("utf-8"))
    assert said["train_data"] == [str(path) for path in asked.train_data] and said["train_weights"] == [3, 1]
    assert "--train_weights was (3.0, 1.0) when the run" in refusal(capsys, [*words_of(replace(asked, train_weights=(1., 1.))), "--resume"])
    assert not same(train(replace(asked, train_weights=None, output=tmp_path/"third")).model, whole.model)


@pytest.mark.parametrize("change, message", [
    (dict(train_weights=(1.,)), "a positive number for each of the 2 files"), (dict(train_weights=(1., 0.)), "a positive number for each"), (dict(train_weights=(1., float("nan"))), "a positive number"),
    (dict(train_weights=(1., 1e-9)), "must give each file a thousandth or more, but are 1, 1e-09")], ids=str)
def test_weights_that_cannot_be_are_one_line(change, message, asked, tmp_path, capsys):
    shutil.copy(asked.train_data, tmp_path/"b.bin")
    assert message in refusal(capsys, words_of(replace(asked, train_data=(asked.train_data, tmp_path/"b.bin"), **change)))


def test_cards_add_up():
    for weights in (1,), (1, 1, 1), (7, 2, 1), (999, 1), (1e-3, 1e-3): assert sum(cards_for(weights)) == 1000 and len(cards_for(weights)) == len(weights)


def test_files_of_two_tokenizers_are_refused(asked, tmp_path):
    for name, size in ("a", 257), ("b", 258):
        (tmp_path/name).mkdir()
        shutil.copy(asked.train_data, tmp_path/name/"t.bin")
        BpeTokenizer.train(["the the"], size).save(tmp_path/name/"tokenizer.json")
    with pytest.raises(ValueError, match="were not made by the same tokenizer"): train(replace(asked, vocab_size=None, train_data=(tmp_path/"a"/"t.bin", tmp_path/"b"/"t.bin")))
    held_out = replace(asked, vocab_size=None, train_data=tmp_path/"a"/"t.bin", val_data=tmp_path/"b"/"t.bin")
    with pytest.raises(ValueError, match="so the file of --val_data was not made by the same tokenizer"): train(held_out)
    with pytest.raises(ValueError, match="so the file of --val_data was not made by that one"): train(replace(held_out, tokenizer_path=tmp_path/"a"/"tokenizer.json"))
    shutil.copy(tmp_path/"a"/"tokenizer.json", tmp_path/"b"/"tokenizer.json")
    assert train(held_out).config.vocab_size == 257


# ---- When to stop, what to keep

def test_patience_ends_a_run_which_stays_ended(asked, monkeypatch, capsys):
    asked = replace(asked, iterations=16, cos_cycle_iters=16, val_interval=2, patience=3)
    monkeypatch.setattr(bookkeeping, "measure", lambda run, evaluate: float(abs(run.done - 6)))   # it grows worse after step 6
    training.main(words_of(asked))   # no exit status but 0
    said = capsys.readouterr().out
    assert "stopped after 12 of 16 steps: the validation loss has not fallen for 3 measurements" in said and "whole validation split: " in said
    assert read_checkpoint(asked.output/"checkpoint.pt")["iteration"] == 12 and read_checkpoint(asked.output/"best.pt")["iteration"] == 6
    with pytest.warns(UserWarning, match="is over after 12 steps, so none is taken now; to go on, ask for more --patience"): assert train(replace(asked, resume=True)).done == 12
    assert train(replace(asked, resume=True, patience=4)).done == 14
    assert train(replace(asked, resume=True, patience=None)).done == 16


def test_the_last_checkpoints_are_kept_and_open(asked):
    asked = replace(asked, checkpoint_interval=2, keep_checkpoints=2)
    training.main(words_of(asked))
    assert sorted(path.name for path in asked.output.glob("checkpoint*.pt")) == ["checkpoint.pt", "checkpoint_6.pt", "checkpoint_8.pt"]
    assert [read_checkpoint(asked.output/f"checkpoint_{step}.pt")["iteration"] for step in (6, 8)] == [6, 8]
    assert same(load_model(asked.output/"checkpoint_8.pt", "cpu"), load_model(asked.output/"checkpoint.pt", "cpu"))


# ---- Averaged weights and dropout

@pytest.mark.parametrize("change", [dict(ema=.9), dict(ema=.9, muon_lr=.02, tie=True), dict(dropout=.3), dict(dropout=.3, grad_accumulation=2, activation_checkpointing=True)], ids=str)
def test_resuming_anywhere_changes_nothing(asked, change, tmp_path):
    asked = replace(asked, **change)
    whole = train(replace(asked, output=tmp_path/"whole"))
    for stop in 3, 5: train(replace(asked, iterations=stop, resume=True))
    parts = train(replace(asked, resume=True))
    assert same(whole.model, parts.model) and whole.history[-1]["val_loss"] == parts.history[-1]["val_loss"]
    if asked.ema is None: return
    averages = [load_model(folder/"average.safetensors", "cpu") for folder in (tmp_path/"whole", asked.output)]
    assert same(*averages) and not same(averages[0], whole.model)


def test_the_mean_is_that_of_the_weights_and_leaves_the_run_alone(asked, tmp_path, monkeypatch, capsys):
    seen, real = [], training.train_step
    def watching(*args):
        told = real(*args)
        seen.append(run_model[0].head.weight.detach().clone())
        return told
    run_model, start = [], training.start
    def started(*args):
        run = start(*args)
        run_model.append(run.model)
        return run
    monkeypatch.setattr(training, "start", started)
    monkeypatch.setattr(training, "train_step", watching)
    run = train(replace(asked, ema=.5))
    mean = seen[0]
    for n, weights in enumerate(seen, 1): mean = mean.lerp(weights, 1 - min(.5, (1 + n) / (10 + n)))
    torch.testing.assert_close(load_model(asked.output/"average.safetensors", "cpu").head.weight, mean)
    assert same(run.model, train(replace(asked, output=tmp_path/"plain")).model)
    report(run.config, run.history, run.done, run.best)
    told = capsys.readouterr().out
    assert "average.safetensors (the mean of the weights)" in told
    report(replace(run.config, ema=None), run.history, 8, 1.)   # it went on without
    assert (asked.output/"average.safetensors").exists() and "average.safetensors" not in capsys.readouterr().out
    whole = evaluate(load_model(asked.output/"average.safetensors", "cpu"), windows(run.val_ids, run.config.batch_size, run.config.max_seq_len, "cpu"))
    assert f"{whole:.4f} nats per token with the mean of the weights" in told and abs(whole - run.history[-1]["whole_val_loss"]) > 1e-3


def test_dropout_acts_while_learning_alone_and_lies_in_the_file(asked, tmp_path):
    run, plain = train(replace(asked, dropout=.4)), train(replace(asked, output=tmp_path/"plain"))
    assert not same(run.model, plain.model)
    assert run.history[0]["train_loss"] != plain.history[0]["train_loss"]
    model, ids = load_model(asked.output/"checkpoint.pt", "cpu"), torch.arange(8)[None]
    assert model.config == replace(ModelConfig(**SHAPE), dropout=.4) and torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))
    with torch.no_grad(): assert torch.equal(model(ids), run.model(ids))   # in training mode, too
    undone = Transformer(**asdict(replace(model.config, dropout=0.)))
    undone.load_state_dict(model.state_dict())
    torch.testing.assert_close(undone(ids), model.eval()(ids))
    for share in -.1, 1., float("nan"):
        with pytest.raises(ValueError, match="dropout must"): replace(model.config, dropout=share)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    model = Transformer(**SHAPE, dropout=.25)
    out = model.embedding(torch.zeros(4000, 8, dtype=torch.long))
    assert (out == 0).float().mean() == pytest.approx(.25, abs=.01)
    with torch.no_grad(): torch.testing.assert_close(out.mean((0, 1)), model.embedding(torch.zeros(1, dtype=torch.long))[0], rtol=.05, atol=.01)


def test_exports_leave_dropout_out(tmp_path):
    from llm_course.pretrained import load_pretrained
    torch.manual_seed(0)
    model = Transformer(256, 8, 16, 1, 2, 24, dropout=.5)
    export_pretrained(model, BpeTokenizer({i: bytes([i]) for i in range(256)}, []), tmp_path)
    read, _ = load_pretrained(tmp_path, "cpu")
    assert read.config.dropout == 0 and same(read, model)


# ---- A deliberate change

def test_override_lets_a_run_go_on_in_another_way(asked):
    train(replace(asked, iterations=4))
    changed = replace(asked, resume=True, batch_size=4, seed=3)
    with pytest.raises(ValueError, match="use 8, name another folder, or let it change with --override"): train(changed)
    with pytest.warns(UserWarning, match="from now on") as notes: run = train(replace(changed, override=True))
    assert run.done == 8 and sum("from now on" in str(note.message) for note in notes) == 2
    assert read_checkpoint(asked.output/"checkpoint.pt")["run"]["batch_size"] == 4
    with pytest.raises(ValueError, match=r"--d_model was 16 when the run in .* began, and is 32 now; the shape of a model cannot change"): train(replace(changed, override=True, d_model=32))


def test_a_change_is_refused_let_through_or_noted_on_the_command_line(asked, capsys):
    train(replace(asked, iterations=4, dropout=.2))
    changed = [*words_of(replace(asked, batch_size=4, dropout=.1)), "--resume"]
    assert "--batch_size was 8 when the run" in refusal(capsys, changed)
    training.main([*changed, "--override"])
    notes = [line for line in capsys.readouterr().err.splitlines() if line.endswith("from now on")]
    assert len(notes) == 2 and notes[1] == "note: --dropout was 0.2, and is 0.1 from now on"
    assert load_model(asked.output/"checkpoint.pt", "cpu").config.dropout == .1


def test_the_command_line_does_what_python_does(asked, tmp_path):
    asked = replace(asked, ema=.9, dropout=.3, keep_checkpoints=1, patience=9)
    run = train(replace(asked, output=tmp_path/"python"))
    training.main(words_of(asked))
    assert same(load_model(asked.output/"checkpoint.pt", "cpu"), run.model)
    assert {path.name for path in asked.output.iterdir()} == {path.name for path in (tmp_path/"python").iterdir()} >= {"average.safetensors", "checkpoint_8.pt"}
    assert same(*(load_model(folder/"average.safetensors", "cpu") for folder in (asked.output, tmp_path/"python")))


def test_settled_flags_settle_to_themselves(asked, begun, tmp_path):
    settled = settle(replace(unshaped(asked), init_from=tmp_path/"model"/"model.safetensors"), begun)
    assert settle(settled, begun) == settled


# ---- Examinations on the way

def test_tasks_are_asked_on_the_way_and_change_nothing(asked, tmp_path, capsys):
    from llm_course.engine.evaluation_command import examiner
    from llm_course.generating import DEMO
    shutil.copy(DEMO/"tokenizer.json", tmp_path/"tokenizer.json")
    plain = replace(asked, vocab_size=None, max_seq_len=32)
    asking = replace(plain, output=tmp_path/"asking", eval_tasks=("speaker", "sums_written"), eval_interval=5, eval_questions=4)
    training.main(words_of(asking))
    lines = [json.loads(line) for line in (asking.output/"metrics.jsonl").read_text("utf-8").splitlines()]
    told = {line["iteration"]: line["accuracy_speaker"] for line in lines if "accuracy_speaker" in line}
    assert told.keys() == {5, 8} and all(0 <= x <= 1 for x in told.values()) and all("accuracy_sums_written" in line for line in lines if line["iteration"] in told)
    assert same(train(plain).model, load_model(asking.output/"checkpoint.pt", "cpu"))
    assert told[8] == examiner(replace(asking, tokenizer_path=tmp_path/"tokenizer.json"))(load_model(asking.output/"checkpoint.pt", "cpu"))["accuracy_speaker"]
    capsys.readouterr()
    assert "there is no task spaeker" in refusal(capsys, words_of(replace(asking, output=tmp_path/"other", eval_tasks=("spaeker",))))
    (tmp_path/"tokenizer.json").unlink()
    assert "--eval_tasks needs a tokenizer" in refusal(capsys, words_of(replace(asked, output=tmp_path/"other", eval_tasks=("speaker",))))
    with pytest.raises(ValueError, match="eval_tasks needs train"): train(replace(asking, output=tmp_path/"third"))


def test_a_run_that_left_no_checkpoint_names_none(asked, capsys):
    run = train(replace(asked, iterations=2))
    (asked.output/"checkpoint.pt").unlink()
    capsys.readouterr()
    report(run.config, run.history, run.done, run.best)
    assert "checkpoint.pt" not in capsys.readouterr().out


def test_a_model_without_a_shape_is_resumed_without_a_look_at_it(asked):
    assert run_config._check_shape(asked, None, asked.output/"checkpoint.pt") is None


def test_a_long_list_of_files_is_cut_and_bytes_need_no_listener():
    assert text_files._counted({"skipped": list("abcd"), "mended": []}) == "skipped: 4 (a, b, c, …)"
    assert [ids.tolist() for ids in data_command._take_bytes(iter([(3, np.array([1])), (2, np.array([2]))]), 3)] == [[1]]


def test_an_export_beside_its_tokenizer_needs_no_hint(asked, tmp_path, capsys):
    train(replace(asked, iterations=2))
    (tmp_path/"alone").mkdir()
    for hints in 1, 0:
        capsys.readouterr()
        checkpoint.main(["--model_path", str(asked.output/"checkpoint.pt"), "--output", str(tmp_path/"alone"/f"{hints}.safetensors")])
        assert capsys.readouterr().out.count("copy the tokenizer.json") == hints
        (tmp_path/"alone"/"tokenizer.json").touch()


@pytest.mark.parametrize("kind, given, wanted", [
    (DataConfig, dict(corpus="c.txt"), dict(corpus=(Path("c.txt"),))), (DataConfig, dict(corpus=["c.txt", "d.txt"]), dict(corpus=(Path("c.txt"), Path("d.txt")))), (DataConfig, dict(val_corpus=Path("c.txt")), dict(val_corpus=(Path("c.txt"),))),
    (TokenizerConfig, dict(corpus="c.txt", vocab_size=300), dict(corpus=(Path("c.txt"),))), (TokenizerConfig, dict(corpus=[Path("c.txt")], vocab_size=300), dict(corpus=(Path("c.txt"),))), (TokenizerConfig, dict(corpus="c.txt", vocab_size=300, special_tokens="<x>"), dict(special_tokens=("<x>",))),
    (EvaluationConfig, dict(model_path="a", tasks="sums", corpus="c.txt"), dict(model_path=Path("a"), tasks=("sums",), corpus=(Path("c.txt"),))), (GenerateConfig, dict(model_path="a", stop="b"), dict(model_path=Path("a"), stop=("b",))),
    (ServeConfig, dict(model_path="a"), dict(model_path=Path("a"))), (InstructConfig, dict(train_data="t", val_data="v", init_from="a", lora_targets="w2"), dict(train_data=Path("t"), init_from=Path("a"), lora_targets=("w2",))),
    (RewardsConfig, dict(prompts="p", reward="a:b", output="o"), dict(prompts=Path("p"), reward="a:b", output=Path("o"))), (exchange.ExportConfig, dict(model_path="a"), dict(model_path=Path("a"), dtype=None)), (checkpoint.ExportConfig, dict(model_path="a"), dict(model_path=Path("a"), dtype="float16")),
    (TrainConfig, dict(train_data="a", val_data="b", eval_tasks="sums"), dict(train_data=Path("a"), val_data=Path("b"), eval_tasks=("sums",))), (TrainConfig, dict(train_data=["a", "b"], val_data="c", train_weights=[1, 2]), dict(train_data=(Path("a"), Path("b")), train_weights=(1, 2)))],
    ids=lambda value: getattr(value, "__name__", ""))
def test_every_command_takes_texts_and_lists_from_python(kind, given, wanted):
    config = object.__new__(kind)   # as its constructor would, but in tests beartype refuses a text where a path is announced
    for field in fields(kind): object.__setattr__(config, field.name, given.get(field.name, field.default))
    config.__post_init__()
    assert {name: getattr(config, name) for name in wanted} == wanted
