"""The benchmark's runner: it measures what it says, keeps what was there, and its committed results are whole."""
import json
import sys
import time
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
import bench.cases  # noqa: E402, F401  registers the cases
from bench import runner  # noqa: E402
from llm_course.commands import run_command  # noqa: E402


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
    path.write_text('{"other/cpu": 1}')
    command("fake", "--rounds", 5, "--seconds", .01, "--output", path)
    results = json.loads(path.read_text())
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
    path.write_text(text)
    with pytest.raises(SystemExit) as exit: command("fake", "--output", path)
    assert exit.value.code == 2 and f"--output {path} holds no results" in capsys.readouterr().err and path.read_text() == text


def test_the_committed_results_are_whole():
    results = json.loads((root/"bench"/"results.json").read_text("utf-8"))
    for name, result in results.items(): check_schema(name, result)
    assert {name.partition("/")[0] for name in results} == runner.cases.keys(), "a case without a result, or a result without a case"
