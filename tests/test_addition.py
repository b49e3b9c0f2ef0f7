"""The smallest model that adds: an entry is judged from end to end, learned numbers are counted wherever they are, and cheats that can be seen are refused."""
import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench.runner import read, root
from llm_course.engine import addition, recipes
from llm_course.engine.addition import EQUALS, PLUS, PROMPT, count_numbers, draw_pairs, examine, fill, judge, right_answers, spell
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
    fill(model, weights)
    assert count_numbers(weights) == 19 and model.two.weight.eq(1).all() and model.seen.eq(1).all()
    assert count_numbers({"wide": torch.ones(3, dtype=torch.complex64), "narrow": torch.ones(3, dtype=torch.float16)}) == 9
    with pytest.raises(Refused, match="no weights called message"): fill(model, weights | {"message": torch.ones(1)})
    del weights["seen"]
    with pytest.raises(Refused, match="left no weights for seen"): fill(model, weights)


@pytest.mark.parametrize("cheat, said", [(Adder(), "random weights"), (Reader(), "values of its tokens")])
def test_code_that_adds_is_refused(cheat, said):
    assert right_answers(cheat, pairs).all()
    with pytest.raises(Refused, match=said): examine(cheat, {"gate": torch.tensor(2.)}, pairs)


def test_an_honest_entry_is_judged_from_end_to_end(tmp_path):
    entry, told = write_entry(tmp_path/"entry"), []
    line = judge(entry, tries=1, questions=50, tell=told.append)
    run, = line["runs"]
    assert line["parameters"] == run["parameters"] == 144 and line["right"] == run["right"] < .5 and not line["adds"]
    assert line["code"] == len(GUESSER) + len(json.dumps(RECIPE)) and 0 < run["seconds"] < 100 and len(set(run["seeds"])) == 2
    assert told[0].startswith("144 parameters, 0.00% right") and {path.name for path in entry.iterdir()} == {"model.py", "recipe.json"}


def test_the_worst_training_counts_and_a_missing_file_is_refused(tmp_path, monkeypatch):
    entry, shares = write_entry(tmp_path/"entry"), [1., .985, .995]
    def trained(entry, folder, seed, threads, limit):
        if shares: (folder/"model.safetensors").touch()
        return 9.
    monkeypatch.setattr(addition, "train_entry", trained)
    monkeypatch.setattr(addition, "_python", lambda *words, **more: None)
    monkeypatch.setattr(addition, "_answer", lambda done: {"parameters": 5, "right": shares.pop()})
    line = judge(entry, tell=lambda said: None)
    assert line["right"] == .985 and not line["adds"] and len(line["runs"]) == 3
    with pytest.raises(Refused, match=r"left no model\.safetensors"): judge(entry)
    (entry/"weights.bin").touch()
    with pytest.raises(Refused, match=r"nothing else, but .* has model.py, recipe.json, weights.bin"): judge(entry)


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


def test_the_scorer_and_the_command(tmp_path, monkeypatch, capsys):
    entry, fenced = write_entry(tmp_path/"entry"), []
    monkeypatch.setattr(addition, "guard", lambda *folders: fenced.append(folders))
    save_file({"weight": torch.eye(12)}, tmp_path/"weights.safetensors")
    addition.main([str(entry), str(tmp_path/"weights.safetensors"), "40", "3"])
    assert json.loads(capsys.readouterr().out) == {"parameters": 144, "right": 0.} and entry in fenced[0][0] and entry not in fenced[0][1]
    line = {"parameters": 7, "right": .999, "adds": True, "runs": [{}] * 3, "code": 5}
    monkeypatch.setattr(addition, "judge", lambda entry: line)
    recipes.main(["add", str(entry), "--output", str(tmp_path/"table.json")])
    assert "7 parameters, 99.90% right in the worst of 3" in capsys.readouterr().out
    assert read(tmp_path/"table.json")["entry"].items() >= (line | {"commit": recipes.importlib.import_module("bench.runner").commit()}).items()


@pytest.mark.parametrize("name", sorted(path.name for path in (root/"bench"/"adders").iterdir()))
def test_our_entries_are_what_was_judged(name, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)   # an entry has two files and nothing else
    folder, table = root/"bench"/"adders"/name, root/"bench"/"addition.json"
    model = _own_module(folder).make(json.loads((folder/"recipe.json").read_text("utf-8")))
    assert model(spell(pairs)).shape == (50, 33, 10) and not right_answers(model, pairs).any()
    line = (read(table) if table.is_file() else {}).get(name)
    if line is None: return   # not judged yet
    assert line["parameters"] == sum(p.numel() for p in model.parameters()) and line["adds"] == (line["right"] >= addition.ENOUGH)
    assert line["code"] == sum(len(path.read_bytes()) for path in folder.iterdir() if path.is_file())
    assert line["right"] == min(run["right"] for run in line["runs"]) and len({*map(tuple, (run["seeds"] for run in line["runs"]))}) == 3
