"""The benchmark's runner: it measures what it says, keeps what was there, and its committed results are whole."""
import json
import sys
import tempfile
import time
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import book
import numpy as np
import pytest
import torch

import bench.cases  # noqa: F401  registers the cases
from bench import demo, experiments, four_bits, gpu, ladder, machine, nanogpt, pages, runner, table
from bench.cases.generating import llama
from bench.cases.machine import built_in
from bench.experiments import growing, ideas, parts, warmup
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.commands import run_command
from llm_course.engine.muon import Muon
from llm_course.engine.run_config import TrainConfig
from llm_course.training import train
from llm_course.transformer import Transformer

root = Path(__file__).parents[1]


def command(*words): run_command(runner.Config, runner.main, [str(word) for word in words])


def check_schema(name, result):
    "A result says what was timed, how, on what, and of which state of the code; and its numbers are possible."
    device = name.partition("/")[2]
    limit = {"limit", "share"} & result.keys()
    assert result.keys() - limit == {"what", "unit", "rounds", "calls_per_round", "ours", "peer", "ratio", "machine", "versions", "commit", "date"}
    assert result["what"].endswith(".") and result["unit"] == "seconds" and result["rounds"] >= 3
    assert limit != {"share"} and len(result["calls_per_round"]) == 2 + bool(limit) and min(result["calls_per_round"]) >= 1
    for side in "ours", "peer", "ratio", *limit:
        low, middle, high = (result[side][key] for key in ("lower_quartile", "median", "upper_quartile"))
        assert 0 < low <= middle <= high
    assert result["peer"]["name"]
    check_quotient(result["ratio"], result["ours"], result["peer"])
    if "share" in limit: check_quotient(result["share"], result["limit"], result["ours"])
    facts = {"system", "cpu", "kind", "cores", "threads", "device"}
    if result["date"] >= "2026-11-29": facts |= {"instruction_sets", "torch_capability", "imitation", "omp_num_threads"}   # not written down before
    assert facts <= result["machine"].keys() and result["machine"]["device"] == device
    assert {"torch", "python"} <= result["versions"].keys() and all(result["versions"].values())
    assert result["commit"] is None or len(result["commit"].removesuffix("+changes")) == 12
    time.strptime(result["date"], "%Y-%m-%d")


def check_quotient(quotient, a, b):
    "It belongs to these times."
    low, high = a["lower_quartile"] / b["upper_quartile"], a["upper_quartile"] / b["lower_quartile"]
    assert .5 * low <= quotient["median"] <= 2 * high


@pytest.fixture(autouse=True)
def honest(monkeypatch):
    "The processor as it is."
    for name in machine.IMITATIONS: monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch):
    "A race whose outcome is known, by a clock that tells the time that each side says it takes."
    now = [0.]
    def sleep(seconds): now[0] += seconds
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])
    def make(device):
        "Sleeping."
        return lambda: sleep(.006), lambda: sleep(.002), lambda: sleep(.0015)
    monkeypatch.setattr(runner, "cases", {"fake": runner.Case("fake", make, "a shorter sleep", "torch", "the shortest sleep")})


def test_a_race_is_measured_and_kept_beside_the_others(fake, tmp_path, capsys):
    path = tmp_path/"results.json"
    path.write_text('{"other/cpu": 1}', "utf-8", newline="\n")
    command("fake", "--rounds", 5, "--seconds", .01, "--output", path)
    results = json.loads(path.read_text("utf-8"))
    assert results.keys() == {"fake/cpu", "other/cpu"} and results["other/cpu"] == 1
    check_schema("fake/cpu", results["fake/cpu"])
    found = results["fake/cpu"]
    assert (found["ours"]["median"], found["ratio"]["median"], found["share"]["median"]) == (.006, 3., .25)
    assert found["limit"] == {"name": "the shortest sleep", "median": .0015, "lower_quartile": .0015, "upper_quartile": .0015}
    assert "ratio 3.00   limit 1.5 ms, of which we reach 25%" in capsys.readouterr().out


def test_each_kind_has_its_file_and_an_imitation_fills_none(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "kinds", tmp_path)
    monkeypatch.setattr(runner, "kind", lambda device: "some-processor")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    command("fake", "--rounds", 3)
    assert not list(tmp_path.iterdir()) and "ATEN_CPU_CAPABILITY=avx2 makes this processor imitate another" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit) as exit: command("fake", "--output", tmp_path/"some-processor.json")
    assert exit.value.code == 2 and "kept for results of real processors" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    elsewhere = tmp_path/"imitations"/"avx2.json"
    elsewhere.parent.mkdir()
    command("fake", "--rounds", 3, "--output", elsewhere)
    assert json.loads(elsewhere.read_text("utf-8"))["fake/cpu"]["machine"]["imitation"] == ["ATEN_CPU_CAPABILITY=avx2"]
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    command("fake", "--rounds", 3)
    assert json.loads((tmp_path/"some-processor.json").read_text("utf-8")).keys() == {"fake/cpu"}


def test_a_case_returns_a_function_for_each_side_that_it_names():
    bare = lambda device: (time.time, time.time)
    with pytest.raises(AssertionError, match="a third one"): runner.race(runner.Case("bare", bare, "it", "torch", "a limit"), "cpu", rounds=3, seconds=1e-6)


@pytest.mark.parametrize("info, kind", [
    ({"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "17", "flags": "avx avx2 avx512f"}, "amd-zen4-avx512"),
    ({"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "1", "flags": "avx avx2"}, "amd-zen3-avx2"),
    ({"vendor_id": "AuthenticAMD", "cpu family": "23", "model": "49", "flags": "avx avx2"}, "amd-zen2-avx2"),
    ({"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143", "flags": "avx avx2 avx512f amx_tile"}, "intel-avx512-amx"),
    ({"vendor_id": "GenuineIntel", "cpu family": "6", "model": "15", "flags": "sse2"}, "intel"),
    ({"model name": "Apple M2 (virtual)", "Features": "asimd"}, "apple-m2-virtual"),
])
def test_kinds_of_processors_have_names(info, kind): assert machine.processor_kind(info) == kind


def test_the_processor_at_hand_is_described():
    found = machine.machine("cpu")
    assert found["kind"] and found["threads"] == torch.get_num_threads() and found["imitation"] == []
    assert set(found["instruction_sets"]) <= set(machine.SETS) and isinstance(found["torch_capability"], str)
    if Path("/proc/cpuinfo").exists() and "vendor_id" in machine.cpuinfo(): assert found["cpu"] == machine.cpuinfo()["model name"]


def test_without_proc_the_name_is_still_one(tmp_path): assert machine.cpuinfo(tmp_path/"none") == {} and machine.processor_kind({})


def test_the_table_has_a_column_for_each_kind(tmp_path, monkeypatch):
    spread = lambda value: {"median": value}
    monkeypatch.setattr(table, "kinds", tmp_path)
    (tmp_path/"a.json").write_text(json.dumps({"adamw/cpu": {"ratio": spread(1.104), "share": spread(.5)}, "encode/cpu": {"ratio": spread(.004)}}), "utf-8", newline="\n")
    (tmp_path/"b.json").write_text(json.dumps({"adamw/cpu": {"ratio": spread(1.004)}}), "utf-8", newline="\n")
    (tmp_path/"gpu.json").write_text(json.dumps({"adamw/cuda": {"ratio": spread(1.)}}), "utf-8", newline="\n")
    rows = table.table("README.md").splitlines()
    assert rows[:2] == ["| what, on a CPU | peer | a | b |", "|---|---|---|---|"]
    assert "| a step of AdamW | AdamW(foreach=True) | **1.10** · 50% | 1.00 |" in rows
    assert "| encoding, one thread | tokenizers | 0.0040 | – |" in rows


def test_a_share_is_taken_only_of_work_that_nobody_can_leave_out(fake, tmp_path, monkeypatch, capsys):
    "A program may be faster than what is no bound, such as the regex library; a share above 100 % would say nothing."
    monkeypatch.setitem(runner.cases, "fake", replace(runner.cases["fake"], bound=False))
    command("fake", "--rounds", 3, "--seconds", .01, "--output", tmp_path/"results.json")
    found = json.loads((tmp_path/"results.json").read_text("utf-8"))["fake/cpu"]
    check_schema("fake/cpu", found)
    assert found["limit"]["median"] == .0015 and "share" not in found and "ratio 3.00   the shortest sleep 1.5 ms" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(runner.kinds.glob("*.json")), ids=lambda path: path.stem)
def test_no_share_is_above_one(path):
    for name, result in json.loads(path.read_text("utf-8")).items():
        if "share" in result: assert runner.cases[name.partition("/")[0]].bound and result["share"]["median"] <= 1


def test_the_demo_keeps_what_each_command_printed(tmp_path, monkeypatch, capsys):
    "Make shows a command, then what it prints; its advice at the end belongs to none."
    shown = ".venv/bin/python -m llm_course.data --output runs/demo\na: 1\nb: 2\n.venv/bin/python -m llm_course.generating --seed 0\nROMEO:\n\nAy.\n\nLook at runs/demo/loss.svg\n"
    assert demo.printed(shown) == {"python -m llm_course.data --output runs/demo": "a: 1\nb: 2", "python -m llm_course.generating --seed 0": "ROMEO:\n\nAy."}
    assert demo.printed("") == {}
    asked = []
    def make(words, **options):
        asked.append(words[-1])
        return SimpleNamespace(stdout=shown if words[-1] == "demo" else "")
    monkeypatch.setattr(demo.subprocess, "run", make)
    monkeypatch.setattr(demo, "commit", lambda: None)
    run_command(demo.Config, demo.main, ["--output", str(tmp_path/"demo.json")])
    found = json.loads((tmp_path/"demo.json").read_text("utf-8"))
    assert asked == [*demo.TARGETS] == [*found["processor_seconds"]] and found["printed"] == demo.printed(shown)
    assert "runs/demo/train.bin" in capsys.readouterr().out and found["machine"]["device"] == "cpu"


def test_a_run_goes_on_where_another_stopped(fake, tmp_path, monkeypatch, capsys):
    path = tmp_path/"results.json"
    words = "fake", "--rounds", 5, "--seconds", .01, "--resume", "--output", path
    monkeypatch.setattr(runner, "commit", lambda: "one")
    for told in "ratio 3.00", "measured already":
        command(*words)
        assert told in capsys.readouterr().out
    monkeypatch.setattr(runner, "commit", lambda: "two")   # other code: measured anew
    command(*words)
    assert "ratio 3.00" in capsys.readouterr().out


def test_a_quick_look_is_short_and_fills_no_kinds_file(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "kinds", tmp_path)
    command("fake", "--quick")
    assert "ratio 3.00" in capsys.readouterr().out and not list(tmp_path.iterdir())
    command("fake", "--quick", "--output", tmp_path/"quick.json")
    assert json.loads((tmp_path/"quick.json").read_text("utf-8"))["fake/cpu"]["rounds"] == 3


def test_listing_times_nothing(fake, tmp_path, capsys):
    command("--list", "--output", tmp_path/"results.json")
    assert "fake" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_sides_take_turns_at_going_first():
    order = []
    def make(device):
        "Noting."
        return lambda: (order.append("ours"), time.sleep(.001)), lambda: (order.append("peer"), time.sleep(.001))
    runner.race(runner.Case("turns", make, "it", "torch"), "cpu", rounds=4, seconds=1e-6)
    assert order[-8:] == ["peer", "ours", "ours", "peer"] * 2


@pytest.mark.parametrize("words, message", [
    (["nope"], "there is no case nope"), (["--rounds", "2"], "at least 3"), (["--seconds", "0"], "must be positive"), (["--seconds", "inf"], "finite"),
    (["--device", "abacus"], "--device abacus"), (["--device", "meta"], "--device meta"),
], ids=["case", "rounds", "seconds", "endless", "device", "no_device"])
def test_refusals(fake, words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit: command(*words, "--output", tmp_path/"results.json")
    assert exit.value.code == 2 and message in " ".join(capsys.readouterr().err.replace("│", " ").split()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a letter", "[1]"])
def test_a_file_that_holds_no_results_is_refused_and_kept(fake, text, tmp_path, capsys):
    path = tmp_path/"letter.txt"
    path.write_text(text, "utf-8", newline="\n")
    with pytest.raises(SystemExit) as exit: command("fake", "--output", path)
    assert exit.value.code == 2 and f"--output {path} holds no results" in capsys.readouterr().err and path.read_text("utf-8") == text


def test_the_committed_results_are_whole():
    names = set()
    for path in runner.kinds.glob("*.json"):
        results = json.loads(path.read_text("utf-8"))
        for name, result in results.items():
            check_schema(name, result)
            assert result["machine"]["kind"] == path.stem and not result["machine"].get("imitation")
            case = runner.cases[name.partition("/")[0]]
            assert result["date"] < "2026-11-29" or ("limit" in result) == bool(case.limit), name
        names |= {name.partition("/")[0] for name in results}
    assert names == runner.cases.keys(), "a case without a result on any kind"


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("peer", [built_in, llama], ids=lambda peer: peer.__name__)
def test_the_models_of_the_step_races_are_one_model(peer, compiling, monkeypatch):
    if compiling: monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)   # another way to turn
    torch.manual_seed(0)
    model, ids = Transformer(50, 16, 32, 2, 4, 40), torch.randint(50, (2, 16))
    theirs = peer(model)
    logits = [model(ids), theirs(ids) if peer is built_in else theirs(ids).logits]
    torch.testing.assert_close(*logits)
    for out in logits: torch.nn.functional.cross_entropy(out.flatten(0, 1), ids.flatten()).backward()
    lengths = [sorted(p.grad.norm().item() for p in m.parameters()) for m in (model, theirs)]
    assert len(lengths[0]) == len(lengths[1]) == 21 and lengths[0] == pytest.approx(lengths[1], rel=1e-4)


@pytest.fixture
def text(tmp_path):
    path = tmp_path/"text.txt"
    path.write_text("".join(f"The {n}th day of the month, and naïve as ever.\n" for n in range(800)), "utf-8", newline="\n")
    return path


def test_nanogpts_stand_in_has_its_shape_and_learns(text, tmp_path):
    assert sum(p.numel() for p in nanogpt.Peer(65).parameters()) == 65*128 + 64*128 + 4*(12*128*128 + 2*128) + 128   # 0.80 million
    nanogpt.train_peer(text, tmp_path, seed=0, threads=1, steps=40, warmup=4)
    assert nanogpt.measure_peer(text, tmp_path)["nats_per_byte"] < 3.4   # nats per byte; it has some 30 letters and knew nothing


def test_our_side_counts_bytes_of_the_split_that_the_peer_reads(text, tmp_path):
    train, val = nanogpt.cut(text)
    assert train + val == text.read_text("utf-8") and len(train) == int(0.9 * len(train + val))
    nanogpt.train_mixed(text, tmp_path, seed=0, threads=1, iterations=30, d_model=32, num_layers=1, d_ff=64, max_seq_len=16, vocab_size=300)
    assert (tmp_path/"train.txt").read_text("utf-8") == train
    last = json.loads((tmp_path/"run/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    tokens = len(BpeTokenizer.load(tmp_path/"tokenizer.json").encode(val)) - 1
    alone, mixed = nanogpt.measure_ours(text, tmp_path), nanogpt.measure_mixed(text, tmp_path)
    assert alone["nats_per_byte"] == pytest.approx(last["whole_val_loss"] * tokens / len(val.encode()), rel=0.02)
    assert mixed["shares"]["0.0"] == pytest.approx(alone["nats_per_byte"], rel=1e-3) and mixed["nats_per_byte"] < min(mixed["shares"]["0.0"], mixed["shares"]["1.0"])
    assert list(mixed["shares"]) == [str(i / 10) for i in range(11)] and mixed["orders"]["4"] == mixed["shares"]["1.0"] < mixed["orders"]["1"]


def test_our_side_may_have_an_embedding_of_pairs(text, tmp_path):
    nanogpt.train_mixed(text, tmp_path, seed=0, threads=1, iterations=3, d_model=32, num_layers=1, d_ff=64, max_seq_len=16, vocab_size=300, pairs=True)
    alone, mixed = nanogpt.measure_ours(text, tmp_path), nanogpt.measure_mixed(text, tmp_path)
    assert mixed["shares"]["0.0"] == pytest.approx(alone["nats_per_byte"], rel=1e-3)


def test_the_race_against_nanogpt_keeps_runs_of_the_same_settings(text, tmp_path, monkeypatch, capsys):
    reached = iter(range(100))
    monkeypatch.setattr(nanogpt, "run_side", lambda side, text, seed, threads, changes: {"seed": seed, "seconds": 20. if side == "peer" else 10., "cpu_seconds": 1., "nats_per_byte": float(next(reached))})
    def command(*words): run_command(nanogpt.Config, nanogpt.main, ["--text", str(text), "--output", str(tmp_path/"out.json"), *words])
    command("--seeds", "0", "1")
    command("--seeds", "2")
    result = json.loads((tmp_path/"out.json").read_text("utf-8"))["text"]
    assert [run["seed"] for run in result["ours"]["runs"]] == [0, 1, 2] and result["ratio_of_seconds"] == 0.5
    assert result["ours"]["nats_per_byte"] == pytest.approx(sum(run["nats_per_byte"] for run in result["ours"]["runs"]) / 3, abs=1e-3)
    command("--seeds", "5", "--changes", '{"lr_max": 0.1}')   # another race under the same name begins anew
    result = json.loads((tmp_path/"out.json").read_text("utf-8"))["text"]
    assert [run["seed"] for run in result["ours"]["runs"]] == [5] and result["recipe"]["lr_max"] == 0.1
    command("--seeds", "0", "--sides", "mixed", "peer", "--name", "counts")
    result = json.loads((tmp_path/"out.json").read_text("utf-8"))["counts"]
    assert "ours" not in result and (result["ratio_of_seconds"], result["ratio_of_cpu_seconds"]) == (.5, 1.)
    for words, message in (["--seeds"], "--seeds must be some numbers"), (["--sides", "theirs"], "--sides are ours, mixed and peer"), (["--changes", "3"], "must be a JSON object"):
        with pytest.raises(SystemExit): command(*words)
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_ladder_climbs_to_our_recipe_and_keeps_its_runs(text, tmp_path, monkeypatch):
    rungs = ladder.rungs()
    climbed = [changes for kind, side, changes in rungs.values() if (kind, side) == ("rung", "ours")]
    recipe = nanogpt.RECIPE | {"vocab_size": nanogpt.VOCAB}
    assert recipe | climbed[-1] == recipe and all(recipe | one != recipe | two for one, two in pairwise(climbed))
    seen = []
    def run_side(side, text, seed, threads, changes):
        seen.append((side, text.read_text("utf-8"), json.loads(changes)))
        return {"seed": seed, "seconds": 1., "cpu_seconds": 1., "nats_per_byte": 1. + seed}
    monkeypatch.setattr(ladder, "run_side", run_side)
    def command(*words): run_command(ladder.Config, ladder.main, ["--text", str(text), "--output", str(tmp_path/"out.json"), *words])
    command("--seeds", "0")
    assert [(side, changes) for side, _, changes in seen] == [(side, changes) for _, side, changes in rungs.values()]
    assert {known for _, known, _ in seen} == {nanogpt.cut(text)[0]}   # the last tenth stays unseen
    command("--seeds", "1", "--only", "Muon")
    results = json.loads((tmp_path/"out.json").read_text("utf-8"))
    assert results.keys() == rungs.keys() and [run["seed"] for run in results["Muon, fewer and larger steps"]["runs"]] == [0, 1]
    assert results["Muon, fewer and larger steps"]["nats_per_byte"] == 1.5 and len(results["nanoGPT's recipe"]["runs"]) == 1
    before = len(seen)
    command("--seeds", "0", "1", "--only", "Muon", "nanoGPT", "--resume")
    assert len(seen) == before + 1   # of these four runs one was missing


def test_each_rung_of_ours_is_an_entry_of_the_race(tmp_path, capsys):
    with pytest.raises(SystemExit): run_command(ladder.Config, ladder.main, [])
    assert "--text is missing" in capsys.readouterr().err
    run_command(ladder.Config, ladder.main, ["--entries", str(tmp_path)])
    made, kept = ({path.relative_to(folder): json.loads(path.read_text("utf-8")) for path in folder.rglob("*.json")} for folder in (tmp_path, runner.root/"bench"/"entries"))
    assert made == kept and len(kept) == len(ladder.rungs()) - 1   # nanoGPT's own is what they are compared with
    for recipe in kept.values(): TrainConfig(train_data=Path("a"), val_data=Path("b"), **{name: value for name, value in recipe.items() if name != "vocab_size"})


def test_a_dose_is_an_error_of_rounding():
    "Even over half a step to either side, in the matrices of the blocks alone; variances add up."
    spread = []
    for doses in 0, 1, 2:
        torch.manual_seed(0)
        model = Transformer(vocab_size=40, max_seq_len=8, d_model=64, num_layers=1, num_heads=2, d_ff=96)
        before = {name: p.clone() for name, p in model.named_parameters()}
        four_bits.disturb(model, doses, seed=1)
        for name, p in model.named_parameters():
            if p.ndim == 1 or not name.startswith("blocks"): assert torch.equal(p, before[name]), name
        groups = before["blocks.0.ffn.w1.weight"].reshape(-1, 32)
        error = (model.blocks[0].ffn.w1.weight.detach().reshape(-1, 32) - groups) / ((groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True)) / 15)
        assert error.abs().max() <= doses / 2 + 1e-4
        spread.append(error.square().mean().item())
    assert spread[0] == 0 and abs(12 * spread[1] - 1) < .1 and abs(12 * spread[2] - 2) < .2


def test_doses_are_whole():
    found = json.loads((root/"bench"/"four_bits.json").read_text("utf-8"))
    assert sorted((each["doses"], each["seed"]) for each in found["found"]) == [(0, 0), *((doses, seed) for doses in (1, 2, 3) for seed in (0, 1))]
    for each in found["found"]:
        assert 0 < each["bits_per_byte"] < 8 and each["right"].keys() == found["asked"].keys()
        for kind, share in each["right"].items(): assert abs(share * found["asked"][kind] - round(share * found["asked"][kind])) < 1e-9   # a number of questions


def test_a_page_is_timed_by_the_processor():
    "Work counts, and waiting does not; nor does a cell that is not to be run."
    pytest.importorskip("ipykernel")
    source = ["import time\nwhile time.process_time() < 2: pass", "#| eval: false\n1/0",
              "time.sleep(5)\nwith open('spent', 'w') as file: file.write(str(time.process_time()))"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"page.ipynb"
        cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": text} for i, text in enumerate(source)]
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8", newline="\n")
        found = pages.seconds(path)
        own = float((Path(folder)/"spent").read_text("utf-8"))   # as the kernel itself counts
    assert 2 <= own <= found + .1 and found < own + 4   # it takes little to end; with the five seconds of waiting it would be more


def test_every_page_was_timed():
    found = json.loads((root/"bench"/"pages.json").read_text("utf-8"))
    assert found["seconds"].keys() >= {book.name(path) for path in book.pages() if book.module(path)}, "run python -m bench.pages for the new page"
    assert min(found["seconds"].values()) > 0


def test_a_page_that_is_timed_alone_says_where_and_changes_nothing_else(monkeypatch, tmp_path):
    (tmp_path/"bench").mkdir()
    monkeypatch.setattr(pages, "root", tmp_path)
    monkeypatch.setattr(pages, "seconds", lambda path: 2.)
    monkeypatch.setattr(pages, "commit", lambda: "first")
    output = tmp_path/"bench"/"pages.json"
    pages.main([])
    before = json.loads(output.read_text("utf-8"))
    assert before["commit"] == "first" and before["alone"] == {} and set(before["seconds"].values()) == {2.}
    monkeypatch.setattr(pages, "commit", lambda: "second")
    monkeypatch.setattr(pages, "seconds", lambda path: 3.)
    pages.main(["06_rmsnorm"])
    after = json.loads(output.read_text("utf-8"))
    assert after["alone"]["06_rmsnorm"]["commit"] == "second" and after["seconds"]["06_rmsnorm"] == 3.
    assert {key: value for key, value in after.items() if key not in ("seconds", "alone")} == {key: value for key, value in before.items() if key not in ("seconds", "alone")}


# ---- The script for a GPU

@pytest.fixture
def toy(monkeypatch):
    "Nothing is compiled, and torch has its threads back afterwards."
    monkeypatch.setattr(torch, "compile", lambda function: function)
    threads = torch.get_num_threads()
    yield gpu.Setup("cpu", toy=True)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("part", gpu.NAMES)
def test_each_part_for_a_gpu_runs_at_toy_size(part, toy, tmp_path, capsys):
    assert gpu.measure(part, toy, tmp_path/"found.json"), (tmp_path/"found.json").read_text("utf-8")
    found = json.loads((tmp_path/"found.json").read_text("utf-8"))
    assert found and not [name for name, value in found.items() if "error" in value] and gpu.summary(found)


def test_what_was_measured_before_a_failure_is_kept(toy, tmp_path, monkeypatch, capsys):
    seen = []
    def fragile(setup):
        yield "one", lambda: {"median": 1.}
        yield "two", lambda: seen.append(json.loads((tmp_path/"found.json").read_text("utf-8"))) or 1 / 0
        yield "three", lambda: sys.exit(2)
        yield "four", lambda: {"median": 4.}
    monkeypatch.setattr(gpu, "NAMES", {"fragile": fragile})
    assert not gpu.measure("fragile", toy, tmp_path/"found.json")
    found = json.loads((tmp_path/"found.json").read_text("utf-8"))
    assert seen == [{"one": {"median": 1.}}]   # on disk before the second began
    assert found == {"one": {"median": 1.}, "two": {"error": "ZeroDivisionError: division by zero"}, "three": {"error": "SystemExit: 2"}, "four": {"median": 4.}}


def test_a_part_has_a_process_and_a_time_of_its_own():
    done = gpu.run_part("products", gpu.Setup("cpu", toy=True), 300)
    assert done["status"] == "done" and done["found"]["matrix_product_bfloat16"]["median"] > 0, done
    failed = gpu.run_part("products", gpu.Setup("abacus", toy=True), 300)
    assert failed["status"] == "failed" and "abacus" in failed["said"]
    late = gpu.run_part("products", gpu.Setup("cpu", toy=True), 0.01)
    assert late["status"] == "cut off" and late["found"] == {}


@pytest.fixture
def large(monkeypatch):
    "A machine that says it has a large GPU."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **how: True)
    about = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30, major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    return about


def run_gpu(*words): run_command(gpu.Config, gpu.main, [str(word) for word in words])


def test_results_for_a_gpu_are_written_after_each_part(large, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "kinds", tmp_path)
    path, seen = tmp_path/"gpu"/"nvidia-h200.json", []
    def run_part(name, setup, seconds):
        assert setup == gpu.Setup("cuda", toy=False) and 0 < seconds <= {part.__name__: limit for part, limit in gpu.PARTS.items()}[name]
        seen.append(json.loads(path.read_text("utf-8"))["parts"] if path.exists() else {})
        return {"status": "cut off", "seconds": seconds, "found": {}, "said": "too long"} if name == "compiled" else {"status": "done", "seconds": 1., "found": {"x": {"median": 1.}}}
    monkeypatch.setattr(gpu, "run_part", run_part)
    with pytest.raises(SystemExit) as exit: run_gpu()
    assert exit.value.code == 1 and "too long" in capsys.readouterr().out   # one part was cut off
    assert [len(parts) for parts in seen] == list(range(len(gpu.PARTS)))
    about = json.loads(path.read_text("utf-8"))["about"]
    assert about["rows"] == 16 and about["parameters"] == 123_587_328 and about["gpu"]["peak_flops"] == 989e12 and about["precision"] == "bfloat16"
    run_gpu("eager")   # again, and the others' results are kept
    kept = json.loads(path.read_text("utf-8"))["parts"]
    assert kept.keys() == gpu.NAMES.keys() and kept["compiled"]["status"] == "cut off"
    with pytest.raises(SystemExit) as exit: run_gpu("eager", "kernels", "--seconds", 1e-9)
    assert exit.value.code == 1 and json.loads(path.read_text("utf-8"))["parts"]["kernels"]["status"] == "no time left"


def test_all_parts_for_a_gpu_take_less_than_eight_minutes(): assert sum(gpu.PARTS.values()) <= gpu.Config().seconds < 480


def test_where_there_is_no_gpu_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run_gpu("--output", tmp_path/"none.json")
    assert len(capsys.readouterr().out.splitlines()) == 1 and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit: run_gpu("nope")
    assert exit.value.code == 2 and "there is no part nope" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_toys_are_kept_nowhere_unless_asked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "run_part", lambda *given: {"status": "done", "seconds": 1., "found": {}})
    monkeypatch.setattr(gpu, "kinds", tmp_path/"kinds")
    run_gpu("--toy")
    assert not list(tmp_path.iterdir())
    run_gpu("--toy", "--output", tmp_path/"toy.json")
    assert json.loads((tmp_path/"toy.json").read_text("utf-8"))["about"]["toy"]


@pytest.mark.parametrize("gib, rows", [(139, 16), (79, 16), (39, 8), (23, 4), (15, 2), (7, 1)])
def test_a_smaller_gpu_has_a_smaller_batch(large, gib, rows):
    large.total_memory = gib * 2**30
    assert gpu.Setup("cuda", toy=False).rows == rows


@pytest.mark.parametrize("name, precision, promised", [
    ("NVIDIA H200", "bfloat16", 989e12), ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12), ("Tesla T4", "float32", 8.1e12), ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
    ("NVIDIA GeForce RTX 4090", "float32", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None), ("Abacus", "bfloat16", None)])
def test_promises_of_makers(name, precision, promised): assert gpu.peak(name, precision) == promised


def test_a_share_of_the_peak_is_told(large):
    assert gpu.share_of_peak(gpu.Setup("cuda", toy=True), 989e12, 2.) == {"flops_per_second": 4.945e14, "share_of_peak": 0.5}
    assert gpu.share_of_peak(gpu.Setup("cpu", toy=True), 1e9, 2.)["share_of_peak"] == "unknown"


@pytest.mark.parametrize("script, grid", [(parts, parts.grid(parts.functions()["changes"])), (warmup, warmup.GRID),
                                           (growing, growing.grid(growing.functions()["ladder"]))], ids=["parts", "warmup", "growing"])
def test_every_run_of_an_experiment_is_there_once(script, grid):
    found = json.loads(Path(script.__file__).with_suffix(".json").read_text("utf-8"))["runs"]
    for settings in grid: assert sum(settings.items() <= run.items() for run in found) == 1, settings
    assert len(found) == len(grid)


def test_the_runs_of_ideas_are_of_its_grid_and_none_is_there_twice():
    found = json.loads((root/"bench"/"experiments"/"ideas.json").read_text("utf-8"))["runs"]
    asked = [cell for cells in ideas.grid() for cell in cells]
    for run in found: assert sum(settings.items() <= run.items() for settings in asked) == 1, run
    for settings in asked: assert sum(settings.items() <= run.items() for run in found) <= 1, settings
    ratio = {run["idea"]: run["ratio"] for run in found if run["measured"] == "cost"}
    for run in found:
        if run["measured"] == "loss": assert run["steps"] == round(ideas.STEPS / ratio.get(run["idea"], 1.)), run   # equal seconds of the processor


def test_ideas_are_tried_beside_the_recipe_itself(tmp_path):
    "The script's loop is the course's own: after three steps by the recipe both have the same weights, to the bit."
    ids = np.random.default_rng(0).integers(0, nanogpt.VOCAB, 6000)
    ids.astype(np.uint16).tofile(tmp_path/"ids.bin")
    recipe = nanogpt.RECIPE | {"iterations": 3}
    config = TrainConfig(train_data=tmp_path/"ids.bin", val_data=tmp_path/"ids.bin", output=tmp_path/"run", vocab_size=nanogpt.VOCAB, seed=5, device="cpu", num_threads=1, live_plot=False, val_interval=4, val_batches=1, checkpoint_interval=4, **recipe)
    theirs = train(config).model
    *_, ours = ideas.steps_of(ideas.IDEAS[ideas.BASE], ids, 3, seed=5)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True): assert torch.equal(p, q), name


def test_each_idea_changes_what_it_says():
    ids = np.random.default_rng(0).integers(0, nanogpt.VOCAB, 6000)
    def fresh(name):
        torch.manual_seed(0)
        return Transformer(nanogpt.VOCAB, 64, 32, 3, 4, 48, parts=ideas.IDEAS[name].parts()).eval()
    rows = torch.from_numpy(ids[:40].reshape(2, 20))
    for name in "value embeddings", "an embedding of the last two tokens", "one product for q, k and v":
        model, plain = fresh(name), fresh(ideas.BASE)
        for p, q in zip(plain.parameters(), [p for path, p in model.named_parameters() if not path.endswith((".values", ".pairs"))], strict=True): p.data.copy_(q)
        torch.testing.assert_close(model(rows), plain(rows), msg=name)   # what an idea adds begins at zero
        for path, p in model.named_parameters():
            if path.endswith((".values", ".pairs")): torch.nn.init.normal_(p)
        later = rows.clone()
        later[:, -1] = (later[:, -1] + 1) % nanogpt.VOCAB
        assert torch.equal(model(rows)[:, :-1], model(later)[:, :-1]), f"{name} looks ahead"
        assert (name == "one product for q, k and v") == torch.allclose(model(rows), plain(rows), atol=1e-4)
    matrix, plain = (torch.nn.Parameter(torch.zeros(6, 4)) for _ in range(2))
    matrix.grad = plain.grad = torch.randn(6, 4)
    ideas.EvenRows([matrix], weight_decay=0.).step()
    Muon([plain], weight_decay=0.).step()
    assert torch.allclose(matrix.norm(), plain.norm()) and matrix.norm(dim=1).std() < 1e-6 < plain.norm(dim=1).std()
    still = ideas.EvenRows([matrix], lr=0.)
    still.step()
    assert matrix.isfinite().all()
    usual = ideas.muon.orthogonalise
    with ideas.Orthogonal(3): assert ideas.muon.orthogonalise is not usual
    assert ideas.muon.orthogonalise is usual
    dealt = [sum(ideas.IDEAS[name].deals(step / 100) for step in range(100)) for name in (ideas.BASE, "small batches first")]
    assert dealt[0] == dealt[1]   # of the same rows


def test_the_runs_of_the_parts_are_those_of_the_page():
    "The page's own functions give the same loss again, but for rounding."
    settings = {"variant": "no attention", "blocks": 2, "rate": 0.01, "seed": 1}
    kept, = (run["nats"] for run in json.loads((root/"bench"/"experiments"/"parts.json").read_text("utf-8"))["runs"] if settings.items() <= run.items())
    again = parts.functions()["exchanged"]("no attention", seed=1, lr=0.01, blocks=2)
    assert abs(again - kept) < .02, "run python -m bench.experiments.parts"


@pytest.mark.parametrize("model", [growing.TABLE, "bigram"])
def test_the_runs_of_the_ladder_are_those_of_the_page(model):
    kept, = (run for run in json.loads((root/"bench"/"experiments"/"growing.json").read_text("utf-8"))["runs"] if (run["model"], run["seed"]) == (model, 1))
    again = growing.run(growing.functions(), model, seed=1)
    for name in again: assert abs(again[name] - kept[name]) < .02, "run python -m bench.experiments.growing"


def test_an_experiment_goes_on_where_it_was_stopped(tmp_path):
    asked, script, grid = [], str(tmp_path/"some.py"), [{"x": x, "seed": seed} for seed in (0, 1) for x in (2, 3)]
    def run(x, seed):
        asked.append((x, seed))
        if len(asked) == 3: raise KeyboardInterrupt
        return {"y": x + seed}
    with pytest.raises(KeyboardInterrupt): experiments.resume(script, "Sums.", grid, run)
    experiments.resume(script, "Sums.", grid, run)
    assert asked == [(2, 0), (3, 0), (2, 1), (2, 1), (3, 1)]   # what was cut off is made again, and nothing else
    kept = json.loads((tmp_path/"some.json").read_text("utf-8"))
    assert kept["what"] == "Sums." and [run["y"] for run in kept["runs"]] == [2, 3, 3, 4]


def test_experiments_side_by_side_keep_each_others_runs(tmp_path):
    script = str(tmp_path/"some.py")
    def run(x):
        if x == 1: experiments.resume(script, "Sums.", [{"x": 2}], run)   # another process is ready first
        return {"y": x}
    experiments.resume(script, "Sums.", [{"x": 1}], run)
    assert json.loads((tmp_path/"some.json").read_text("utf-8"))["runs"] == [{"x": 2, "y": 2, "sitting": 0}, {"x": 1, "y": 1, "sitting": 0}]


def test_an_experiment_takes_cells_that_are_there(tmp_path):
    assert experiments.cells("15_transformer", "imports-page", "floor", "growing")["d_model"] == 32
    with pytest.raises(KeyError, match="no-such-cell"): experiments.cells("15_transformer", "no-such-cell")
    experiments.keep(str(tmp_path/"some.py"), {"what": "Something."})
    kept = json.loads((tmp_path/"some.json").read_text("utf-8"))
    assert kept["what"] == "Something." and {"machine", "commit", "date"} < kept.keys()


def test_the_rounds_are_cut_until_all_cases_fit():
    "Short cases keep theirs; the longest lose most, but three are left even where the time is too short."
    planned = runner.plan({"short": .1, "long": 10., "middle": 1.}, 31, 180.)
    assert planned["short"][0] == 31 and 3 <= planned["long"][0] < planned["middle"][0] <= 31
    assert sum(took for _, took in planned.values()) <= 180
    assert [n for n, _ in runner.plan({"a": 9., "b": 5.}, 31, 1.).values()] == [3, 3] and runner.plan({}, 31, 1.) == {}


def test_the_peers_of_all_cases_are_pinned_in_an_extra():
    pinned = (root/"requirements.txt").read_text("utf-8").splitlines()
    named = {line.partition("==")[0]: line for line in pinned if "==" in line}
    wanted = {c.package for c in runner.cases.values()} - {"torch", "regex"}   # which the course itself needs
    assert tomllib.loads((root/"pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["peers"] == [named[name] for name in sorted(wanted)]


def test_all_cases_are_expected_to_fit_into_their_time():
    "By the stored times of the slowest kind of machine: half an hour, and five minutes for a quick look."
    def minutes(most, seconds, total, longest=float("inf")):
        per_round = {name: took for name, c in runner.cases.items() if (took := runner.seconds_per_round(c, "cpu", seconds)) < longest}
        return sum(took for _, took in runner.plan(per_round, most, total).values()) / 60
    config = runner.Config()
    assert minutes(config.rounds, config.seconds, 60 * config.minutes) < 30 and minutes(3, .002, 60 * config.minutes, runner.LONG) < 5
