"""The benchmark's runner: it measures what it says, keeps what was there, and its committed results are whole."""
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import book
import pytest
import torch

import bench.cases  # noqa: F401  registers the cases
from bench import four_bits, ladder, nanogpt, pages, runner
from bench.cases.generating import llama
from bench.cases.machine import built_in
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.commands import run_command
from llm_course.transformer import Transformer

root = Path(__file__).parents[1]


def command(*words): run_command(runner.Config, runner.main, [str(word) for word in words])


def check_schema(name, result):
    "A result says what was timed, how, on what, and of which state of the code; and its numbers are possible."
    device = name.partition("/")[2]
    assert result.keys() == {"what", "unit", "rounds", "calls_per_round", "ours", "peer", "ratio", "machine", "versions", "commit", "date"}
    assert result["what"].endswith(".") and result["unit"] == "seconds" and result["rounds"] >= 3
    assert len(result["calls_per_round"]) == 2 and min(result["calls_per_round"]) >= 1
    for side in "ours", "peer", "ratio":
        low, middle, high = (result[side][key] for key in ("lower_quartile", "median", "upper_quartile"))
        assert 0 < low <= middle <= high
    assert result["peer"]["name"]
    low, high = (result["ours"][a] / result["peer"][b] for a, b in (("lower_quartile", "upper_quartile"), ("upper_quartile", "lower_quartile")))
    assert .5 * low <= result["ratio"]["median"] <= 2 * high   # a ratio that belongs to these times
    assert {"system", "cpu", "cores", "threads", "device"} <= result["machine"].keys() and result["machine"]["device"] == device
    assert {"torch", "python"} <= result["versions"].keys() and all(result["versions"].values())
    assert result["commit"] is None or len(result["commit"].removesuffix("+changes")) == 12
    time.strptime(result["date"], "%Y-%m-%d")


@pytest.fixture
def fake(monkeypatch):
    "A race whose outcome is known: ours sleeps three times as long."
    def make(device):
        "Sleeping."
        return lambda: time.sleep(.006), lambda: time.sleep(.002)
    monkeypatch.setattr(runner, "cases", {"fake": runner.Case("fake", make, "a shorter sleep", "torch")})


def test_a_race_is_measured_and_kept_beside_the_others(fake, tmp_path, capsys):
    path = tmp_path/"results.json"
    path.write_text('{"other/cpu": 1}', "utf-8", newline="\n")
    command("fake", "--rounds", 5, "--seconds", .01, "--output", path)
    results = json.loads(path.read_text("utf-8"))
    assert results.keys() == {"fake/cpu", "other/cpu"} and results["other/cpu"] == 1
    check_schema("fake/cpu", results["fake/cpu"])
    assert 1.5 < results["fake/cpu"]["ratio"]["median"] < 4.5
    assert .004 < results["fake/cpu"]["ours"]["median"] < .05
    assert "ratio" in capsys.readouterr().out


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
    results = json.loads((root/"bench"/"results.json").read_text("utf-8"))
    for name, result in results.items(): check_schema(name, result)
    assert {name.partition("/")[0] for name in results} == runner.cases.keys(), "a case without a result, or a result without a case"


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
    assert nanogpt.measure_peer(text, tmp_path) < 3.4   # nats per byte; it has some 30 letters and knew nothing


def test_our_side_counts_bytes_of_the_split_that_the_peer_reads(text, tmp_path):
    train, val = nanogpt.cut(text)
    assert train + val == text.read_text("utf-8") and len(train) == int(0.9 * len(train + val))
    nanogpt.train_ours(text, tmp_path, seed=0, threads=1, iterations=30, d_model=32, num_layers=1, d_ff=64, max_seq_len=16, vocab_size=300)
    assert (tmp_path/"train.txt").read_text("utf-8") == train
    last = json.loads((tmp_path/"run/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    tokens = len(BpeTokenizer.load(tmp_path/"tokenizer.json").encode(val)) - 1
    assert nanogpt.measure_ours(text, tmp_path) == pytest.approx(last["whole_val_loss"] * tokens / len(val.encode()), rel=0.02)


def test_the_race_against_nanogpt_keeps_runs_of_the_same_settings(text, tmp_path, monkeypatch, capsys):
    reached = iter(range(100))
    monkeypatch.setattr(nanogpt, "run_side", lambda side, text, seed, threads, changes: {"seed": seed, "seconds": 10. if side == "ours" else 20., "cpu_seconds": 1., "nats_per_byte": float(next(reached))})
    def command(*words): run_command(nanogpt.Config, nanogpt.main, ["--text", str(text), "--output", str(tmp_path/"out.json"), *words])
    command("--seeds", "0", "1")
    command("--seeds", "2")
    result = json.loads((tmp_path/"out.json").read_text("utf-8"))["text"]
    assert [run["seed"] for run in result["ours"]["runs"]] == [0, 1, 2] and result["ratio_of_seconds"] == 0.5
    assert result["ours"]["nats_per_byte"] == pytest.approx(sum(run["nats_per_byte"] for run in result["ours"]["runs"]) / 3, abs=1e-3)
    command("--seeds", "5", "--changes", '{"lr_max": 0.1}')   # another race under the same name begins anew
    result = json.loads((tmp_path/"out.json").read_text("utf-8"))["text"]
    assert [run["seed"] for run in result["ours"]["runs"]] == [5] and result["recipe"]["lr_max"] == 0.1
    for words, message in (["--seeds"], "--seeds must be some numbers"), (["--sides", "theirs"], "--sides are ours and peer"), (["--changes", "3"], "must be a JSON object"):
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
    def spent(source):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)/"page.ipynb"
            cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": text} for i, text in enumerate(source)]
            path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8", newline="\n")
            return pages.seconds(path)
    idle = spent(["import time; time.sleep(1)", "#| eval: false\n1/0"])
    assert spent(["import time\nwhile time.process_time() < 4: pass"]) > max(3.5, idle)


def test_every_page_was_timed():
    found = json.loads((root/"bench"/"pages.json").read_text("utf-8"))
    assert found["seconds"].keys() >= {book.name(path) for path in book.pages() if book.module(path)}, "run python -m bench.pages for the new page"
    assert min(found["seconds"].values()) > 0
