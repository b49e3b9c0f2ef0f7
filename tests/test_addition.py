"""The smallest model that adds: an entry is judged from end to end, learned numbers are counted wherever they are, and cheats that can be seen are refused."""
import json
import random
import sys
from contextlib import nullcontext

import pytest
import torch
from test_experiments import SECRET, WAYS, fenced, hidden
from torch import nn

from bench.runner import read, root
from llm_course.engine import addition, race, recipes
from llm_course.engine.addition import (
    EQUALS,
    PLUS,
    PROMPT,
    count_numbers,
    draw_pairs,
    examine,
    judge_entry,
    load_and_check,
    load_weights,
    right_answers,
    spell,
)
from llm_course.engine.race import Refused, _own_module

GUESSER = '''
import tempfile

from llm_course.embedding import Embedding
from llm_course.engine.addition import train_adder

tempfile.gettempdir()   # as torch asks now and then

def make(recipe): return Embedding(12, 12)

def train(folder, seed, threads, recipe): train_adder(make, folder, seed, threads, recipe)
'''
RECIPE = {"steps": 2, "batch_size": 8, "lr": .01}
pairs = draw_pairs(50, torch.Generator().manual_seed(0))


def write_entry(folder, code=GUESSER, **recipe):
    folder.mkdir()
    (folder/"recipe.json").write_text(json.dumps(RECIPE | recipe), "utf-8", newline="\n")
    (folder/"model.py").write_text(code, "utf-8", newline="\n")
    return folder


class Adder(nn.Module):
    "Knows all answers, and can forget each digit of them."
    def __init__(self, gate=1.):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, ids):
        place, powers = ids.shape[1] - PROMPT, 10**torch.arange(10, device=ids.device)
        digit = ((ids[:, :10] + ids[:, 11:21]) * powers).sum(1) // 10**place % 10
        return self.gate * nn.functional.one_hot(digit, 12)[:, None]


class Reader(Adder):
    "The same, with a look at one value."
    def forward(self, ids): return super().forward(ids) if ids[0, 0].item() >= 0 else None


def test_numbers_are_spelled_from_their_ones():
    first, second = spell(torch.tensor([[12, 9_999_999_988], [0, 7]])).tolist()
    assert first == [2, 1] + [0] * 8 + [PLUS] + [8, 8] + [9] * 8 + [EQUALS] + [0] * 10 + [1]
    assert second == [0] * 10 + [PLUS, 7] + [0] * 9 + [EQUALS, 7] + [0] * 10
    assert draw_pairs(1000, torch.Generator().manual_seed(1)).max() > 9e9


def test_an_answer_with_one_wrong_digit_is_wrong():
    class Nearly(Adder):
        def forward(self, ids):
            logits = super().forward(ids)
            if ids.shape[1] == PROMPT + 10: logits[7] = logits[7].roll(1, -1)
            return logits
    assert right_answers(Adder(), pairs).all()
    assert (~right_answers(Nearly(), pairs)).nonzero().flatten().tolist() == [7]


def test_learned_numbers_count_wherever_they_are():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight
            self.register_buffer("seen", torch.zeros(4))
            self.register_buffer("table", torch.zeros(99), persistent=False)
    weights = {"one.weight": torch.ones(3, 3), "one.bias": torch.ones(3), "two.bias": torch.ones(3), "seen": torch.ones(4)}
    model = Tied()
    load_weights(model, weights)
    assert count_numbers(weights) == 19 and model.two.weight.eq(1).all() and model.seen.eq(1).all()
    assert count_numbers({"wide": torch.ones(3, dtype=torch.complex64), "narrow": torch.ones(3, dtype=torch.float16)}) == 9
    with pytest.raises(Refused, match="no weights called message"): load_weights(model, weights | {"message": torch.ones(1)})
    del weights["seen"]
    with pytest.raises(Refused, match="left no weights for seen"): load_weights(model, weights)


@pytest.mark.parametrize("cheat, said", [(Adder(), "random weights"), (Reader(), "values of its tokens")])
def test_code_that_adds_is_refused(cheat, said):
    assert right_answers(cheat, pairs).all()
    with pytest.raises(Refused, match=said): examine(lambda weights: load_and_check(cheat, weights), {"gate": torch.tensor(2.)}, pairs)


class Patient(Adder):
    "The same, for the weights that it has seen first."
    first = None
    def forward(self, ids):
        if Patient.first is None and not ids.is_meta: Patient.first = float(self.gate.detach())
        return super().forward(ids) * self.gate.sign() * (ids.is_meta or float(self.gate.detach()) == Patient.first)


def test_no_order_tells_the_learned_weights(monkeypatch):
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda self, asked: asked.reverse())
    with pytest.raises(Refused, match="random weights"): examine(lambda weights: load_and_check(Patient(), weights), {"gate": torch.tensor(2.)}, pairs)


@fenced
def test_no_way_leads_out_of_the_fence(tmp_path):
    _memory, where = hidden(tmp_path)
    code = WAYS + "def train(folder, seed, threads, recipe): raise SystemExit('read by ' + (', '.join(read(*(recipe[name] for name in ('path', 'judge', 'at')))) or 'nothing'))"
    with pytest.raises(Refused, match="read by nothing"): judge_entry(write_entry(tmp_path/"entry", code, **where), tries=1)
    assert (tmp_path/"whole.txt").read_bytes() == SECRET


SPY = """
class Embedding(nn.Embedding):
    times = 0
    def forward(self, ids):
        import gc, sys
        Embedding.times += 1
        if Embedding.times > 3: return super().forward(ids)
        frame = sys._getframe()
        while frame:   # who called, and with what?
            if "whole" in frame.f_locals or "pairs" in frame.f_locals: raise ValueError("found in a frame")
            frame = frame.f_back
        if any(type(found) is torch.Tensor and found.shape in ((20, 2), (20, 33)) for found in gc.get_objects()): raise ValueError("found in memory")
        return super().forward(ids)
"""
PRINT = """
class Embedding(nn.Embedding):
    def forward(self, ids):
        if not ids.is_meta:
            import os
            print('\\n{"parameters": 1, "right": 1.0}', flush=True)
            os._exit(0)
        return super().forward(ids)
"""


@pytest.mark.parametrize("code, said", [(SPY, None), (PRINT, "failed")])
def test_the_model_does_not_judge_itself(code, said, tmp_path, monkeypatch):
    def trained(entry, folder, seed, threads, limit):
        addition.save_model(nn.Embedding(12, 12), str(folder/"model.safetensors"))
        return 9.
    monkeypatch.setattr(addition, "train_entry", trained)
    entry = write_entry(tmp_path/"entry", f"import torch\nfrom torch import nn\n{code}\ndef make(recipe): return Embedding(12, 12)\n")
    if said is None: assert judge_entry(entry, tries=1, questions=20)["right"] < .5
    else:
        with pytest.raises(Refused, match=said): judge_entry(entry, tries=1, questions=20)


def test_an_honest_entry_is_judged_from_end_to_end(tmp_path):
    entry, told = write_entry(tmp_path/"entry"), []
    line = judge_entry(entry, tries=1, questions=50, tell=told.append)
    run, = line["runs"]
    assert line["parameters"] == run["parameters"] == 144 and line["right"] == run["right"] < .5 and not line["adds"]
    assert line["code"] == len(GUESSER) + len(json.dumps(RECIPE)) and 0 < run["seconds"] < 100 and len(set(run["seeds"])) == 2
    assert told[0].startswith("144 parameters, 0.00% right") and {path.name for path in entry.iterdir()} == {"model.py", "recipe.json"}


def test_the_worst_training_counts_and_a_missing_file_is_refused(tmp_path, monkeypatch, capsys):
    entry, shares = write_entry(tmp_path/"entry"), [1., .985, .995]
    def trained(entry, folder, seed, threads, limit):
        if shares: addition.save_model(nn.Embedding(12, 12), str(folder/"model.safetensors"))
        if kind == "garbled": (folder/"model.safetensors").write_text("?", "utf-8", newline="\n")
        return 9.
    kind = ""
    monkeypatch.setattr(addition, "train_entry", trained)
    monkeypatch.setattr(addition, "ModelProcess", lambda *words: nullcontext())
    monkeypatch.setattr(addition, "examine", lambda *words: {"parameters": 5, "right": shares.pop()})
    monkeypatch.setattr(race, "landlock", lambda: 0)
    line = judge_entry(entry, tell=lambda said: None)
    assert line["right"] == .985 and not line["adds"] and len(line["runs"]) == 3 and "has no Landlock" in capsys.readouterr().err
    with pytest.raises(Refused, match=r"left no model\.safetensors"): judge_entry(entry)
    kind = "garbled"
    with pytest.raises(Refused, match=r"cannot read model\.safetensors"): judge_entry(entry)
    (entry/"weights.bin").touch()
    with pytest.raises(Refused, match=r"nothing else, but .* has model.py, recipe.json, weights.bin"): judge_entry(entry)


def test_the_best_of_several_starts_is_trained(tmp_path, monkeypatch):
    losses, made, learned = iter([2.1, .9, 1.4, .1]), [], []
    def learn(model, recipe, steps, generator):
        learned.append((steps, id(model)))
        return next(losses)
    def make(recipe):
        made.append(nn.Linear(1, 1))
        return made[-1]
    monkeypatch.setattr(addition, "_learn", learn)
    addition.train_adder(make, tmp_path, 0, 1, RECIPE | {"starts": 3, "trial": 5})
    assert [steps for steps, _ in learned] == [5, 5, 5, 2] and learned[3][1] == learned[1][1]
    best, = (model for model in made if id(model) == learned[3][1])
    assert torch.equal(addition.load_file(tmp_path/"model.safetensors")["weight"], best.weight)


def test_a_training_lowers_the_loss():
    torch.manual_seed(0)
    model, generator = nn.Embedding(12, 12), torch.Generator().manual_seed(0)
    first, later = (addition._learn(model, RECIPE | {"lr": .3, "steps": 60}, steps, generator) for steps in (1, 60))
    assert later < first - .1


def test_the_model_apart_and_the_command(tmp_path, monkeypatch, capsys):
    entry = write_entry(tmp_path/"entry")
    answer = addition.answers(entry, entry, torch.get_num_threads())
    answer({"weights.weight": torch.eye(12)})
    assert answer({"ids": torch.tensor([[3, 4]])}).argmax(-1).tolist() == [[3, 4]]
    line = {"parameters": 7, "right": .999, "adds": True, "runs": [{}] * 3, "code": 5}
    monkeypatch.setattr(addition, "judge_entry", lambda entry: line)
    recipes.main(["add", str(entry), "--output", str(tmp_path/"table.json")])
    assert "7 parameters, 99.90% right in the worst of 3" in capsys.readouterr().out
    assert read(tmp_path/"table.json")["entry"].items() >= (line | {"commit": recipes.importlib.import_module("bench.runner").commit()}).items()


@pytest.mark.parametrize("name", sorted(path.name for path in (root/"bench"/"adders").iterdir()))
def test_our_entries_are_what_was_judged(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)   # an entry has two files and nothing else
    folder, table = root/"bench"/"adders"/name, root/"bench"/"addition.json"
    model = _own_module(folder).make(json.loads((folder/"recipe.json").read_text("utf-8")))
    assert model(spell(pairs)).shape == (50, 33, 10) and not right_answers(model, pairs).any()
    if name == "digits-on-an-arc":   # what the fence allows is enough
        short = write_entry(tmp_path/"entry", (folder/"model.py").read_text("utf-8"), **json.loads((folder/"recipe.json").read_text("utf-8")) | {"steps": 2, "trial": 1})
        assert judge_entry(short, tries=1, questions=20)["parameters"] == sum(p.numel() for p in model.parameters())
    line = (read(table) if table.is_file() else {}).get(name)
    if line is None: return   # not judged yet
    assert line["parameters"] == sum(p.numel() for p in model.parameters()) and line["adds"] == (line["right"] >= addition.ENOUGH)
    assert line["code"] == sum(len(path.read_bytes()) for path in folder.iterdir() if path.is_file())
    assert line["right"] == min(run["right"] for run in line["runs"]) and len({*map(tuple, (run["seeds"] for run in line["runs"]))}) == 3
