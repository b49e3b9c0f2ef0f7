"""Chapter 22: a table is finished by whoever goes on, laws are found again, recipes are dry-run, and the race is judged from end to end, cheats included."""
import ctypes
import io
import json
import math
import os
import subprocess
import sys
from statistics import fmean

import pytest
import torch

import bench.experiments
from bench.experiments import ablations, distributed, mup, scaling, small
from bench.runner import read, root
from llm_course.engine import race, recipes
from llm_course.engine.commands import parse
from llm_course.engine.run_config import TrainConfig, check_flags
from llm_course.experiments import (
    Law,
    best_allocation,
    bootstrap_laws,
    compare,
    fit_law,
    is_significant,
    main,
    mup_groups,
    mup_start,
    p_value,
    run_cells,
)
from llm_course.transformer import Transformer

LETTERS = '''
def train(folder, seed, threads, recipe):
    import numpy as np
    from safetensors.numpy import save_file
    from llm_course.bpe_tokenizer import BpeTokenizer
    BpeTokenizer.train(folder/"train.txt", 256, []).save(folder/"tokenizer.json")
    text = np.frombuffer((folder/"train.txt").read_bytes(), np.uint8)
    logits = np.log((np.bincount(text, minlength=256) + 1 + seed) / (len(text) + 256))
    save_file({"logits": logits.astype(np.float32)}, folder/"model.safetensors")

def make(recipe, vocab_size):
    import torch
    class Letters(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(vocab_size))
        def forward(self, ids): return self.logits.expand(*ids.shape, -1)
    return Letters()
'''
SECRET = b"that is the question"
WAYS = '''   # to reach a text; each returns what it has read
import ctypes, mmap, os, shutil
libc, size = ctypes.CDLL(None), 20

def plain(path): return open(path, "rb").read()
def code(path):
    import io
    return io.open_code(path).read()
def numpy(path):
    import numpy
    return numpy.fromfile(path, "u1").tobytes()
def memmap(path):
    import numpy
    return numpy.memmap(path, "u1", "r").tobytes()
def mapped(path):
    with open(path, "rb") as file: return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)[:]
def of_os(path): return os.read(os.open(path, os.O_RDONLY), size)
def by_folder(path): return os.read(os.open(os.path.basename(path), os.O_RDONLY, dir_fd=os.open(os.path.dirname(path), os.O_RDONLY)), size)
def sent(path):
    out = os.open("sent", os.O_WRONLY | os.O_CREAT)
    os.sendfile(out, os.open(path, os.O_RDONLY), 0, size)
    return plain("sent")
def copied(path): return plain(shutil.copy(path, "copied"))
def linked(path):
    os.link(path, "linked")
    return plain("linked")
def symlinked(path):
    os.symlink(path, "symlinked")
    return plain("symlinked")
def renamed(path):
    os.rename(path, "renamed")
    text = plain("renamed")
    os.rename("renamed", path)
    return text
def replaced(path):
    os.replace(path, "replaced")
    text = plain("replaced")
    os.replace("replaced", path)
    return text
def moved(path):
    text = plain(shutil.move(path, "moved"))
    shutil.move("moved", path)
    return text
def program(path):
    import subprocess
    return subprocess.run(["cat", path], capture_output=True).stdout
def forked(path):
    if os.fork() == 0:
        try: shutil.copy(path, "forked")
        finally: os._exit(0)
    os.wait()
    return plain("forked")
def memory(path, judge, at):
    with open(f"/proc/{judge}/mem", "rb", 0) as file:
        file.seek(at)
        return file.read(size)
def by_c(path):
    text = ctypes.create_string_buffer(size)
    libc.read(libc.open(path.encode(), 0), text, size)
    return text.raw
def linked_by_c(path):
    libc.link(path.encode(), b"linked_by_c")
    return plain("linked_by_c")
def renamed_by_c(path):
    libc.rename(path.encode(), b"renamed_by_c")
    text = plain("renamed_by_c")
    libc.rename(b"renamed_by_c", path.encode())
    return text
def memory_by_c(path, judge, at):
    text = ctypes.create_string_buffer(size)
    class Part(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    here, there = Part(ctypes.addressof(text), size), Part(at, size)
    libc.process_vm_readv(judge, ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0))
    return text.raw
def torch(path):
    import torch
    return torch.from_file(path, size=size, dtype=torch.uint8).numpy().tobytes()

def read(path, judge, at):
    found = []
    for name, way in list(globals().items()):
        if name == "read" or getattr(way, "__module__", None) != __name__ or not hasattr(way, "__code__"): continue
        try: text = way(path, judge, at) if "memory" in name else way(path)
        except Exception: continue
        if b"the question" in text: found.append(name)
    return found
'''
NATIVE = {"by_c", "linked_by_c", "renamed_by_c", "memory_by_c", "torch"}   # which Python's hook does not see
CHEATS = {   # what the entry's train does, and what the judge says
    "opens the text": ("open(recipe['there']).read()", "may not open"),
    "opens it by way of os": ("import os; os.open(recipe['there'], os.O_RDONLY)", "may not open"),
    "lets another program open it": ("import subprocess; subprocess.run(['cat', recipe['there']])", "may not use"),
    "opens it in a fork": ("import os\n    if os.fork() == 0: open(recipe['there']); os._exit(0)\n    assert os.wait()[1] == 0, 'the fork failed'", "the fork failed"),
    "leaves what it has learned to the next run": ("open(recipe['there'] + '.weights', 'w')", "may not write"),
    "leaves a process behind": ("import os, time\n    if os.fork() == 0: os.setsid(); time.sleep(60)", "left 1 processes"),
    "works in a child": ("import os\n    if os.fork() == 0:\n        while True: pass\n    os.wait()", "more than 0.5 processor seconds"),
    "works in a child that nobody waits for": ("import os, signal, time\n    signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n    if os.fork() == 0:\n        while time.process_time() < .8: pass\n"
                                               "        os._exit(0)\n    time.sleep(1)\n    while time.process_time() < .1: pass", "more than 0.5 processor seconds|left 1 processes"),
}
fenced = pytest.mark.skipif(not race.landlock(), reason="this system has no Landlock")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of all its descendants")


def write_entry(folder, code=None, **recipe):
    folder.mkdir()
    (folder/"recipe.json").write_text(json.dumps(recipe), "utf-8", newline="\n")
    if code: (folder/"model.py").write_text(code, "utf-8", newline="\n")
    return folder


@linux
@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused(name, tmp_path):
    line, said = CHEATS[name]
    (tmp_path/"whole.txt").write_text("to be or not to be that is the question", "utf-8", newline="\n")
    entry = write_entry(tmp_path/"entry", f"def train(folder, seed, threads, recipe):\n    {line}\n", there=str(tmp_path/"whole.txt"))
    (tmp_path/"work").mkdir()
    limit = .5 if "child" in name else 60.
    with pytest.raises(race.Refused, match=said): race.attempt(entry, "to be or not to be ", "that is the question", tmp_path/"work", threads=1, limit=limit)


def hidden(folder):
    "A text in a file and in memory, and how an entry's recipe tells where."
    (folder/"whole.txt").write_bytes(SECRET)
    memory = ctypes.create_string_buffer(SECRET)
    return memory, {"path": str(folder/"whole.txt"), "judge": os.getpid(), "at": ctypes.addressof(memory)}


def try_ways(folder, before="pass"):
    "The ways that reach a text in a process of their own."
    (folder/"code").mkdir(parents=True)
    (folder/"work").mkdir()
    _memory, where = hidden(folder)
    (folder/"code"/"ways.py").write_text(WAYS, "utf-8", newline="\n")
    code = f"import json, os, sys; sys.path.append({str(folder/'code')!r}); import ways; {before}; print(json.dumps(ways.read(*{[*where.values()]})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder/"work", capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return {*json.loads(done.stdout)}


@linux
def test_python_s_hook_alone_stops_what_python_sees(tmp_path):
    unfenced = try_ways(tmp_path/"free")
    assert NATIVE | {"plain", "memmap", "linked", "replaced", "program", "forked", "sent"} <= unfenced | {"memory_by_c"}
    hook = ("from pathlib import Path; from llm_course.engine import race; race.fence_in = lambda *paths: False; "
            "race.guard(race._own_folders(), [Path.cwd()])")
    assert try_ways(tmp_path/"hooked", hook) <= NATIVE


@fenced
def test_no_way_leads_to_the_text(tmp_path):
    _memory, where = hidden(tmp_path)
    code = WAYS + "def train(folder, seed, threads, recipe): raise SystemExit('read by ' + (', '.join(read(**recipe)) or 'nothing'))"
    entry, work = write_entry(tmp_path/"entry", code, **where), tmp_path/"work"
    work.mkdir()
    with pytest.raises(race.Refused, match="read by nothing"): race.attempt(entry, "to be or not to be ", SECRET.decode(), work, threads=1, limit=60.)
    assert {path.name for path in tmp_path.iterdir()} == {"entry", "work", "whole.txt"} and (tmp_path/"whole.txt").read_bytes() == SECRET


SPY = '''
        def forward(self, ids):
            import gc, sys
            frame = sys._getframe()
            while frame:   # who called, and with what?
                if "targets" in frame.f_locals: return answer(frame.f_locals["targets"])
                frame = frame.f_back
            for found in gc.get_objects():
                if type(found) is torch.Tensor and found.dtype == torch.long and found.shape == ids.shape and found is not ids: return answer(found)
            return self.logits.expand(*ids.shape, -1)
'''
CACHE = '''
        last = None
        def forward(self, ids):
            half = ids.shape[1] // 2
            if self.last is not None and self.last[0].shape == ids[:, :half].shape and (self.last[0] == ids[:, :half]).all(): return self.last[1]
            self.last = ids[:, :half].clone(), answer(ids.roll(-1, 1))
            return self.last[1]
'''
FORWARD = "        def forward(self, ids): return self.logits.expand(*ids.shape, -1)\n"
PRINT = '''
        def forward(self, ids):
            import os
            print('\\n{"nats": 0.0}', flush=True)
            os._exit(0)
'''


@pytest.mark.parametrize("forward, said", [(SPY, None), (CACHE, "should predict"), (PRINT, "said nothing|failed")])
def test_the_model_does_not_score_itself(forward, said, tmp_path):
    code = LETTERS.replace(FORWARD, forward) + "\ndef answer(ids): import torch; return 30. * torch.nn.functional.one_hot(ids, 256)\n"
    assert code.count("def forward") == 1
    (tmp_path/"train.txt").write_text("to be or not to be " * 50, "utf-8", newline="\n")
    entry = write_entry(tmp_path/"entry", code, max_seq_len=8)
    scope = {}
    exec(LETTERS, scope)
    scope["train"](tmp_path, 0, 1, {})
    if said is None: assert 2 < race._score(entry, tmp_path, SECRET.decode(), 1) < math.log(256)
    else:
        with pytest.raises(race.Refused, match=said): race._score(entry, tmp_path, SECRET.decode(), 1)
    (tmp_path/"tokenizer.json").write_text("{", "utf-8", newline="\n")
    with pytest.raises(race.Refused, match="no tokenizer"): race._score(entry, tmp_path, SECRET.decode(), 1)


def test_the_judge_believes_no_strange_answer(tmp_path, monkeypatch, capsys):
    asked, said = io.BytesIO(), io.BytesIO()
    for ids in torch.tensor([[1, 2]]), torch.tensor([[3]]): race._send(asked, {"ids": ids})
    asked.seek(0)
    race._serve(lambda told: 2 * told["ids"], asked, said)
    said.seek(0)
    assert [race._receive(said)["answer"].tolist() for _ in range(2)] == [[[2., 4.]], [[6.]]] and race._receive(said) is None
    with pytest.raises(race.Refused, match="two gigabytes"): race._receive(io.BytesIO(b"\xff" * 8))
    strange = object.__new__(race.ModelProcess)
    strange.ask = lambda **told: torch.zeros(2)
    with pytest.raises(race.Refused, match=r"answers \(1, 1\) ids by logits of the shape \(2,\)"): strange(torch.tensor([[3]]))
    entry = write_entry(tmp_path/"entry", LETTERS)
    (tmp_path/"train.txt").write_text("to be or not to be " * 50, "utf-8", newline="\n")
    race._own_module(entry).train(tmp_path, 0, 1, {})
    assert race.answers(entry, tmp_path, torch.get_num_threads())({"ids": torch.tensor([[3]])}).shape == (1, 1, 256)
    monkeypatch.setattr("llm_course.bpe_tokenizer.BpeTokenizer.decode", lambda self, ids: "")
    with pytest.raises(race.Refused, match="changes the text"): race._score(entry, tmp_path, "to be", 1)
    race.main(["reads"])
    assert str(root/"llm_course") in json.loads(capsys.readouterr().out)["places"]


@pytest.mark.parametrize("version, refusals", [(1, [2**13 - 1]), (2, [2**14 - 1]), (3, [2**15 - 1]), (4, [2**15 - 1, 3]), (5, [2**16 - 1, 3]), (6, [2**16 - 1, 3, 3])])
def test_a_fence_refuses_what_its_version_can(version, refusals): assert race._refusals(version) == refusals


def test_a_fence_comes_before_threads_or_not_at_all(monkeypatch):
    monkeypatch.setattr(race, "landlock", lambda: 0)
    assert not race.fence_in([], [])
    monkeypatch.setattr(race, "landlock", lambda: 1)
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    with pytest.raises(RuntimeError, match="second thread"): race.fence_in([], [])


@linux
def test_an_honest_entry_is_judged_from_end_to_end(tmp_path):
    (tmp_path/"whole.txt").write_text("to be or not to be " * 50 + "that is the question", "utf-8", newline="\n")
    entry = write_entry(tmp_path/"entry", LETTERS, max_seq_len=8)
    def cut(path): return path.read_text("utf-8")[:-20], path.read_text("utf-8")[-20:]
    [(name, result)] = race.enter([entry], tmp_path/"whole.txt", cut, lambda seed: race.Run(6. + .01 * seed, 100.), threads=1)
    line = race.summed_up(result)
    assert name == "entry"
    assert line["verdict"] == "better" and line["runs"] == 3 and line["against"] == 6.01 and 0 < line["seconds"] < 100
    assert 2 < line["nats"] < math.log(256)


def test_a_recipe_alone_is_trained_and_scored(tmp_path):
    text = "to be or not to be that is the question " * 40
    (tmp_path/"train.txt").write_text(text, "utf-8", newline="\n")
    entry = write_entry(tmp_path/"entry", d_model=16, num_layers=1, num_heads=1, d_ff=16, max_seq_len=16, batch_size=4, iterations=2, vocab_size=260)
    race.train_recipe(tmp_path, 0, 1, json.loads((entry/"recipe.json").read_text("utf-8")))
    from llm_course.bpe_tokenizer import BpeTokenizer
    from llm_course.checkpoint import load_model
    ids = race._as_array(BpeTokenizer.load(tmp_path/"tokenizer.json").encode(text))
    model = load_model(tmp_path/"run"/"checkpoint.pt", "cpu").eval()
    answer = race.answers(entry, tmp_path, 1)
    with torch.no_grad():
        assert 1 < race.nats_per_byte(model, lambda ids: answer({"ids": ids}), ids, len(text), 16) < math.log(256)


@pytest.mark.parametrize("name", ["09-muon-fewer-and-larger-steps", "11-one-matrix-for-embedding-and-logits", "13-contexts-of-128"])
def test_an_entry_of_ours_trains_in_the_fence(name, tmp_path):
    recipe = json.loads((root/"bench"/"entries"/name/"recipe.json").read_text("utf-8"))
    entry = write_entry(tmp_path/"entry", **recipe | {"iterations": 2, "vocab_size": 270, "max_seq_len": 16})
    (tmp_path/"work").mkdir()
    run = race.attempt(entry, "to be or not to be that is the question " * 100, "that is the question " * 20, tmp_path/"work", threads=1)
    assert 1 < run.nats < math.log(256) and run.seconds > 0


def test_a_model_that_looks_ahead_is_refused():
    def ahead(ids): return 9. * torch.nn.functional.one_hot(ids.roll(-1, 1), 50)   # it copies what comes next
    def behind(ids): return 9. * torch.nn.functional.one_hot(ids, 50)
    ids = race._as_array([7 * i % 50 for i in range(100)])
    with pytest.raises(race.Refused, match="should predict"): race.nats_per_byte(ahead, ahead, ids, 100, 10)
    assert race.nats_per_byte(behind, behind, ids, 100, 10) > 5
    with pytest.raises(race.Refused, match="should predict"): race.nats_per_byte(behind, lambda ids: math.nan * behind(ids), ids, 100, 10)


def test_entries_that_cannot_race_are_refused_before_any_run(tmp_path):
    def start(*entries): return list(race.enter(entries, tmp_path/"whole.txt", lambda path: ("", ""), lambda seed: pytest.fail("a run was started")))
    with pytest.raises(ValueError, match="two entries have one name"): start(tmp_path/"a"/"entry", tmp_path/"b"/"entry")
    with pytest.raises(race.Refused, match=r"needs a recipe\.json"): start(tmp_path/"nowhere")


def test_a_text_within_reach_is_refused(tmp_path):
    entry = write_entry(tmp_path/"entry")
    (entry/"whole.txt").write_bytes(SECRET)
    with pytest.raises(ValueError, match=r"so keep .*whole\.txt elsewhere"): list(race.enter([entry], entry/"whole.txt", lambda path: ("", ""), lambda seed: race.Run(1., 1.)))


def test_entries_that_race_together_share_the_budgets_runs_and_leave_when_decided():
    "Each is decided by its own pairs; one that took longer, or breaks a rule later, does not stop the others."
    asked = []
    def run(name, nats, seconds=9., breaks=None):
        def train(seed):
            asked.append((name, seed))
            if seed == breaks: raise race.Refused("it broke a rule")
            return race.Run(nats + .01 * seed**2 + (name == "close") * (-1)**seed, seconds)
        return train
    entries = {"fast": run("fast", 1.), "slow": run("slow", 1., 11.), "close": run("close", 2.), "cheat": run("cheat", 1., breaks=1)}
    told = []
    found = dict(race.race(entries, run("budget", 2., 10.), told.append))
    assert list(found) == ["cheat", "fast", "slow", "close"]   # in the order of their ends
    assert (found["fast"].verdict, len(found["fast"].ours), len(found["fast"].theirs)) == ("better", 3, 3)
    assert "33.0 processor seconds, and the budget is 30.0" in str(found["slow"]) and "broke a rule" in str(found["cheat"])
    assert (found["close"].verdict, len(found["close"].ours)) == ("undecided", 10)
    assert [seed for name, seed in asked if name == "budget"] == list(range(10))   # each once, for all
    turns = [name for name, seed in asked if seed < 2]
    assert turns == ["budget", "fast", "slow", "close", "cheat", "fast", "slow", "close", "cheat", "budget"]
    assert told[0] == "seed 0: 2.0000 nats a byte in 10.0 processor seconds, the budget"


def test_several_folders_are_judged_and_those_refused_are_told(tmp_path, monkeypatch, capsys):
    def enter(entries, text, cut, peer, threads):
        assert peer(3) == race.Run(2., 8.) and threads == 1
        yield "one", race.Result("better", [race.Run(1., 5.)] * 3, [race.Run(2., 8.)] * 3)
        yield "two", race.Refused("the entry failed")
    monkeypatch.setattr(race, "enter", enter)
    monkeypatch.setattr("bench.nanogpt.run_side", lambda side, text, seed, threads, changes: {"nats_per_byte": 2., "cpu_seconds": 8.})
    config = recipes.ExperimentConfig("race", (tmp_path/"one", tmp_path/"two"), corpus=tmp_path/"text", num_threads=1, output=tmp_path/"race.json")
    with pytest.raises(ValueError, match="1 of 2 entries refused"): recipes._work(config)
    line = json.loads((tmp_path/"race.json").read_text("utf-8"))["one"]
    assert (line["nats"], line["against"], line["seconds"], line["budget"], line["threads"]) == (1., 2., 5., 8., 1) and "machine" in line
    assert capsys.readouterr().out == "one: better, 1.0000 nats a byte against 2.0000\ntwo: refused: the entry failed\n"
    monkeypatch.setattr(race, "enter", lambda *given: list(enter(*given))[:1])
    recipes._work(config)
    assert capsys.readouterr().out == "one: better, 1.0000 nats a byte against 2.0000\n"


@pytest.mark.parametrize("recipe", [None, "no json", "[]"])
def test_an_entry_without_a_recipe_is_refused(recipe, tmp_path):
    if recipe: (tmp_path/"recipe.json").write_text(recipe, "utf-8", newline="\n")
    with pytest.raises(race.Refused, match=r"needs a recipe\.json"): race.attempt(tmp_path, "", "", tmp_path)


def test_two_processes_can_share_a_table(tmp_path):
    table, grid = tmp_path/"table.json", [{"seed": seed} for seed in range(4)]
    def run(seed):   # while this one computes the first cell, another process finishes the third
        if seed == 0: run_cells(table, grid[2:3], lambda seed: {"loss": 9.})
        return {"loss": float(seed)}
    rows = run_cells(table, grid, run, lambda: {"what": "A test."})
    assert {row["seed"]: row["loss"] for row in rows} == {0: 0., 1: 1., 2: 9., 3: 3.} and read(table)["what"] == "A test."


def test_each_cell_keeps_the_machine_it_was_made_on(tmp_path):
    table = tmp_path/"table.json"
    table.write_text(json.dumps({"machine": "old", "runs": [{"seed": 0, "loss": 0.}]}), "utf-8", newline="\n")   # as it was once written
    for seed, machine in (1, "new"), (2, "newer"), (3, "new"): run_cells(table, [{"seed": seed}], lambda seed: {"loss": 1.}, lambda: {"machine": machine})   # noqa: B023
    found = read(table)
    assert found["machine"] == "new" and [found["sittings"][row.get("sitting", 0)]["machine"] for row in found["runs"]] == ["old", "new", "newer", "new"]
    assert len(found["sittings"]) == 3


def test_few_or_unequal_runs_show_nothing():
    with pytest.raises(ValueError, match="they have 2 and 3"): compare([1., 2.], [1., 2., 3.])
    with pytest.raises(ValueError, match="at least 3 pairs of runs, not 2"): is_significant([1., 2.], [1.1, 2.1])
    assert compare([1., 2.], [1., 2.]).p == 1 and compare([2., 3.], [1., 2.]).p == 0
    assert [round(p_value(t, n), 3) for t, n in ((1., 2), (3.182, 4), (2.262, 10))] == [.5, .05, .05]   # printed tables


def test_a_law_is_found_in_noisy_runs():
    law, noise = Law(1.2, 20., .46, 60., .38), torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    points = [(P, N, law(P, N) * (1 + .002 * e)) for e, (P, N) in zip(noise, [(P, N) for P in (4e3, 1e4, 2e4, 5e4, 1e5) for N in (5e4, 1e5, 2e5, 5e5)])]
    P, N = best_allocation(law, 6e11)
    told = [other(P, N) for other in bootstrap_laws(points, 20)]
    assert len(told) == 20 and abs(fmean(told) / law(P, N) - 1) < .01 and abs(fit_law(points)(P, N) / law(P, N) - 1) < .01


def test_mup_changes_nothing_at_the_base_width():
    model = Transformer(**small.shape(64))
    before = model.head.weight.clone()
    mup_start(model, 64)
    assert torch.equal(before, model.head.weight) and {group["lr"] for group in mup_groups(model, .01, 64)} == {.01}
    assert mup.built(128, True, .01, 0)[1].param_groups[0]["lr"] == .005


def test_the_smallest_column_of_each_experiment_runs(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(32, 127, (3000,), generator=draw).to(torch.uint8).numpy()
    monkeypatch.setattr(small, "texts", lambda: (text, text[:300]))
    monkeypatch.setattr(ablations, "STEPS", 2)
    monkeypatch.setattr(mup, "STEPS", 2)
    found = [ablations.run(variant, 0) for variant in ("ours", "Muon", "contexts of 128", "4 blocks of width 24, operations")]
    found += [scaling.THIRD.run(4e7, 8, 0), mup.run(64, True, .01, 0)]
    assert all(2 < row["nats"] < 20 for row in found), found


def test_processes_learn_like_one_in_half_precision_where_sums_are_wide_and_only_for_a_few_steps(monkeypatch):
    "What the page says of `rounding`, on one process that takes shares in turn; and the kills that it quotes are there."
    monkeypatch.setattr(distributed, "STEPS", 2)
    monkeypatch.setattr(distributed, "SHAPE", {**distributed.SHAPE, "vocab_size": 257, "d_model": 32, "d_ff": 85})
    def off(precision, wide, **how): return (distributed.losses(precision, wide=wide, **how) / distributed.losses(precision, wide=wide) - 1).abs().max()
    assert off("bfloat16", True, pieces=2) < 1e-6 < off("bfloat16", False, pieces=2) < 1e-3
    assert off("float32", False, pieces=2) < 1e-6 and 0 < off("float32", False, nudged=True) < 1e-6
    kept = read(root/"bench"/"experiments"/"distributed.json")
    assert [(row["way"], row["kills"]) for row in kept["kills"]] == [("ddp", 20), ("fsdp", 20)]
    for name in kept["on"]: assert {"machine", "versions", "commit", "date"} <= kept["on"][name].keys()


def test_stored_results_say_what_they_were_found_on():
    folder = root/"bench"/"experiments"
    for name in "ablations.json", "mup.json", *scaling.FIRST.files, *scaling.SECOND.files, *scaling.THIRD.files:
        assert {"what", "machine", "versions", "commit", "date"} <= read(folder/name).keys(), name
    for study in scaling.FIRST, scaling.SECOND, scaling.THIRD:
        _, said, came = (read(folder/name) for name in study.files)
        assert said["at"] < came["began"] and said["budget"] == 10 * max(study.budgets)
        assert came["parameters"] * came["tokens"] * 6 == pytest.approx(said["budget"], rel=.01)
        tried = [(miss, steps, width, exponents) for steps, width, *exponents, miss in said.get("held_out", [])]
        if not tried: continue
        _, steps, width, exponents = min(tried)   # the held-out budget chose the fit
        assert (steps, width) == (said["from_steps"], said["from_width"]) and exponents in ([], [[said["law"]["alpha"], said["law"]["beta"]]])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_dry_run(name, tmp_path, capsys):
    recipe = recipes.RECIPES[name]
    main([name, "--dry_run", "--output", str(tmp_path/"run")])
    said = capsys.readouterr().out
    assert "not measured" in said and said.count("python -m llm_course.") == len(recipes.steps(recipe, tmp_path)) and not (tmp_path/"run").exists()
    words = next(words for words in recipes.steps(recipe, tmp_path).values() if words[0] == "training")
    check_flags(parse(TrainConfig, words[1:]))


def test_the_command_lists_what_there_is(capsys):
    main([])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"scaling", "mup", "ablations", "parts", "warmup", "tinystories", "race"} <= set(listed) and "small" not in listed
    with pytest.raises(SystemExit): main(["nothing"])
    assert "there is no nothing; there are" in capsys.readouterr().err
    assert bench.experiments.about()["versions"]["torch"] == torch.__version__
