"""The search for the one change after which a part is right: each kind of edit once, and what it must leave alone."""
import ast
import contextlib
import copy
import json
import linecache
from itertools import product

import pytest
import torch
from conftest import stable_id

from llm_course.grading import grading
from llm_course.grading.grading import TooLong, answers, grade, load, mended, truth_about, within
from llm_course.grading.one_change import changes, excerpt, one_change, source_of


@contextlib.contextmanager
def closed():
    raise ValueError("nobody gets in")
    yield


def part_of(text, where="part.py"):
    "What a text defines last, with its source at hand."
    linecache.cache[where] = len(text), None, text.splitlines(True), where
    space = {"torch": torch, "closed": closed, "__name__": "part"}
    exec(compile(text, where, "exec", dont_inherit=True), space)
    return list(space.values())[-1]


def said_of(text, right, inputs, **more):
    "What the search says of a function or class; `right` gives the wanted answers."
    def answers(f): return [repr(f(*copy.deepcopy(given))) for given in inputs]
    wanted = answers(right)
    def is_right(make):
        try:
            with within(.2): return answers(make()) == wanted
        except TooLong: return False   # a change may make a loop endless
    part = part_of(text)
    return one_change(part, is_right, **more)


NUMBERS = [*product((-3, 0, 1, 2, 7), repeat=2)]
LISTS = [([3, 1, 2], 1), ([5, 5, 0, -1], 2), ([1, 2], 0), ([4, 2, 8, 6, 7], 3)]

OF_NUMBERS = {   # what is wrong there → a faulty line, and the right one
    "the operator of `x - y` is wrong": ("x - y", "x + y"),
    "the two sides of `x - y` are exchanged": ("x - y", "y - x"),
    "the right side of `x * 3 + y` should not be there": ("x * 3 + y", "x * 3"),
    "the left side of `y + x * 3` should not be there": ("y + x * 3", "x * 3"),
    "brackets are missing or wrong in `x * y - abs(x)`": ("x * y - abs(x)", "x * (y - abs(x))"),
    "brackets are missing or wrong in `x * (y - abs(x))`": ("x * (y - abs(x))", "x * y - abs(x)"),
    "`3`, in `x * 3`, is the wrong number": ("x * 3 + y", "x * 4 + y"),
    "`5`, in `x * 5`, is the wrong number": ("x * 5 + y", "x * 2.5 + y"),
    "the sign in `-x` should not be there": ("-x * 3 + y", "x * 3 + y"),
    "the `not` in `not x` should not be there": ("[not x]", "[x]"),
    "`x < y` compares wrongly": ("x < y", "x <= y"),
    "`x in (y, 0)` compares wrongly": ("x in (y, 0)", "x not in (y, 0)"),
    "`and` and `or` are confused in `x > 0 and y > 0`": ("x > 0 and y > 0", "x > 0 or y > 0"),
    "it should not depend on `y > abs(x)`": ("x > 0 and y > abs(x) and x + y < 5", "x > 0 and x + y < 5"),
    "it should not depend on `x or y > x`": ("x + 7 if x or y > x else x * 4 + y", "x * 4 + y"),
    "the two cases of `x if x < 2 or y > 1 else y` are exchanged": ("x if x < 2 or y > 1 else y", "y if x < 2 or y > 1 else x"),
    "`x` stands where `y` belongs": ("x * 4 + x", "x * 4 + y"),
    "`max` is the wrong operation or type, in `max`": ("max(x, y)", "min(x, y)"),
    "`abs` should not be there, in `abs(x * y - 2)`": ("abs(x * y - 2) * 3", "(x * y - 2) * 3"),
    "`max` should not be given `[9]`": ("max([x], [y], [9])", "max([x], [y])"),
    "two arguments of `pow` are exchanged in `pow(2, abs(x))`": ("pow(2, abs(x))", "pow(abs(x), 2)"),
    "`(x, y)` is in the wrong order": ("(x, y)", "(y, x)"),
    "`x * y` is off by one": ("[x * y]", "[x * y - 1]"),
    "the sign of `x` is wrong": ("[x, y]", "[-x, y]"),
    "a square, a root or a reciprocal of `x * y` is missing": ("[x * y]", "[(x * y) ** 2]"),
    "a factor is missing at `x + 5`": ("[x + 5]", "[(x + 5) * y]"),
    "`y` is not passed on to `dict`": ("dict(x=x)", "dict(x=x, y=y)"),
}
OF_LISTS = {
    "`x[0]` stands where `n` belongs": ("[x[0] * 7]", "[n * 7]"),
    "`True`, in `[n, True]`, is the wrong truth value": ("[n, True]", "[n, False]"),
    "`sorted` sorts the other way round": ("sorted(x)", "sorted(x, reverse=True)"),
    "`sorted` should not be given `reverse=True`": ("sorted(x, reverse=True)", "sorted(x)"),
    "the index of `x[n:]` should not be there": ("x[n:] + [n]", "x + [n]"),
    "the slice `x[n:]` begins or ends at the wrong place": ("x[n:]", "x[n:-1]"),
    "the step of `x[0:4:n + 2]` is wrong": ("x[0:4:n + 2]", "x[0:4]"),
    "`x[n]` takes one, where several belong": ("x[n]", "x[:n]"),
    "it should not depend on `a > n`": ("[a * n for a in x if a > n]", "[a * n for a in x]"),
}


@pytest.mark.parametrize("said", OF_NUMBERS)
def test_an_edit_of_an_expression_is_found(said):
    wrong, right = OF_NUMBERS[said]
    assert said_of(f"def f(x, y): return {wrong}", eval(f"lambda x, y: {right}"), NUMBERS) == f"line 1: {said}"


def test_where_zero_is_taken_for_nothing_it_is_told():
    text = "def f(x, n): return x[n:] if n else 'all'"
    assert said_of(text, lambda x, n: "all" if n is None else x[n:], [*LISTS, ([1, 2], None)]) == "line 1: for `n` of 0, or empty, the answer should be yes"


@pytest.mark.parametrize("said", OF_LISTS)
def test_an_edit_of_a_list_is_found(said):
    wrong, right = OF_LISTS[said]
    assert said_of(f"def f(x, n): return {wrong}", eval(f"lambda x, n: {right}"), LISTS) == f"line 1: {said}"


LINES = {   # what is wrong on which line → a faulty function of numbers and n, and the right one
    "line 3: `s = 0` should not be there": ("s = n|s = 0|for a in x: s += a|return s", "n + sum(x)"),
    "line 2: `x = x + x` comes too early": ("x = x + x|n = len(x)|return x, n", "(x + x, len(x))"),
    "line 4: it should not depend on `a in seen`": ("s, seen = n, [3, 8]|for a in x:|    if a in seen: s += n|    s += a|return s", "n + sum(x)"),
    "line 3: it should not depend on `n > 1`": ("s = n|if n > 1: s = 3|else: s = 7 * n|return s", "7 * n"),
    "line 4: the operator of `s += a` is wrong": ("s = n|for a in x:|    s += a|return s", "n - sum(x)"),
    "line 4: `s += a * 2` keeps what was there": ("s = n|for a in x:|    s += a * 2|return s", "x[-1] * 2"),
    "line 4: `s = a` forgets what was there": ("s = n|for a in x:|    s = a|return s", "n + sum(x)"),
    "line 3: `r += [s]`, at the end of this block, belongs after it": ("s, r = n, [n]|for a in x:|    s += a|    r += [s]|return r", "[n, n + sum(x)]"),
    "line 3: `s = n`, at its beginning, belongs before it": ("s = 0|for a in x:|    s = n|    s += a|return s", "n + sum(x)"),
    "line 3: `r += [s]`, just after this block, belongs inside": ("s, r = n, []|for a in x: s += a|r += [s]|return r", "[n + sum(x[:i + 1]) for i in range(len(x))]"),
    "line 3: `s = n` belongs inside the loop": ("r = []|s = n|for a in x:|    s += a|    r += [s]|return r", "[n + a for a in x]"),
    "line 3: `y += [n]` changes in place what others hold": ("y = x|y += [n]|return len(x), y", "(len(x), x + [n])"),
    "line 2: `r = s = [n]` gives one thing two names": ("r = s = [n]|r.append(0)|return s, r", "([n], [n, 0])"),
    "line 2: the operator of `x[0] += n` is wrong": ("x[0] += n|return x", "[x[0] * n] + x[1:]"),
    "line 2: `3`, in `3 <= x[0] < 7`, is the wrong number": ("return 1 if n == 'a' else 3 <= x[0] < 7", "3 < x[0] < 7"),
    "line 6: the operator of `g() + 1` is wrong": ("if n > 1:|    s = 4|def g():|    return n|return g() + 1", "n"),
    "line 2: the `with` of `closed()` should not be there": ("with closed():|    return x + [n]", "x + [n]"),
    "line 5: `'q'`, in `t['q']`, is the wrong name": ("t = {}|t['p'] = n + 5|t['q'] = len(x)|return t['q'] + t['q']", "n + 5 + len(x)"),
}


@pytest.mark.parametrize("said", LINES)
def test_an_edit_of_lines_is_found(said):
    lines, right = LINES[said]
    text = "def f(x, n):\n    " + lines.replace("|", "\n    ")
    assert said_of(text, eval(f"lambda x, n: {right}"), LISTS) == said


# ---- Layers, and what the grader makes of it

NORM = """
class RmsNorm(torch.nn.Module):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x):
        "Divide by the size."
        if not x.is_floating_point(): raise TypeError("no floats")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        size = wide.square().mean(-1, keepdim=True) + self.eps
        return (wide * size.rsqrt() * self.weight).to(x.dtype)
"""
SOFTMAX = """
def softmax(x, dim=-1):
    if not x.is_floating_point(): raise TypeError("no floats")
    if not x.numel(): return x.clone()
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.softmax(wide, dim).nan_to_num().to(x.dtype)
"""


AXES = {
    "`sum` is taken along the wrong axes, or loses one, in `x.sum(-2)`": ("x.sum(-2)", lambda x: x.sum(-1)),
    "`max` is taken along the wrong axes, or loses one, in `torch.max(x)`": ("torch.max(x)", lambda x: x.amax(-1, keepdim=True)),
    "`max` is taken along the wrong axes, or loses one, in `torch.max(x, dim=1)`": ("torch.max(x, dim=1)[0]", lambda x: x.amax(0)),
    "`std` divides by one less than the count in `x.std(-1)`": ("x.std(-1)", lambda x: x.std(-1, correction=0)),
    "`sum` is taken along the wrong axes, or loses one, in `x.sum(dim=-2, dtype=torch.float64)`": ("x.sum(dim=-2, dtype=torch.float64)", lambda x: x.sum(-1, dtype=torch.float64)),
    "`.T` should not be there, in `x.T`": ("x.T", lambda x: x),
}


@pytest.mark.parametrize("said", AXES)
def test_a_wrong_axis_is_found(said):
    wrong, right = AXES[said]
    tensors = [(torch.arange(6.).reshape(2, 3) * k + k,) for k in (1, 2, -3)]
    assert said_of(f"def f(x): return {wrong}", right, tensors) == f"line 1: {said}"


BITS = """import math
def bits_per_byte(nats_per_token, num_tokens, num_bytes):
    if num_tokens <= 0 or num_bytes <= 0: raise ValueError("counts are above zero")
    return nats_per_token / math.log(2) * num_tokens / num_bytes
"""


@pytest.mark.parametrize("name, text, was, now, said", [
    ("RmsNorm", NORM, ".mean(-1, keepdim=True)", ".mean(-1, keepdim=True).clamp(max=9.)", "line 12: `clamp` should not be there, in `wide.square().mean(-1, keepdim=True).clamp(…`"),
    ("bits_per_byte", BITS, "<= 0 or", "<= 0 and", "line 3: `and` and `or` are confused in `num_tokens <= 0 and num_bytes <= 0`"),
    ("softmax", SOFTMAX, "wide, dim)", "wide.clamp(max=30.), dim)", "line 6: `clamp` should not be there"),
], ids=["norm", "guard", "softmax"])
def test_the_grader_names_the_line(searched, name, text, was, now, said):
    assert not (verdict := grade(name, part_of(text))).claim, verdict
    verdict = grade(name, part_of(text.replace(was, now)))
    assert verdict.claim and said in verdict.hint, verdict
    assert len(verdict.hint.split()) <= 30


FAULTY = NORM.replace(".mean(-1, keepdim=True)", ".mean(-1, keepdim=True).clamp(max=9.)")


def test_a_sign_is_shown_with_the_line_if_both_are_short(searched, monkeypatch):
    monkeypatch.setattr(grading, "symptom", lambda part, component: "large vectors come out larger")
    assert grade("RmsNorm", part_of(FAULTY)).hint.startswith("large vectors come out larger; line 12: `clamp` should")
    monkeypatch.setattr(grading, "symptom", lambda part, component: "large " * 28)
    assert grade("RmsNorm", part_of(FAULTY)).hint.startswith("line 12: `clamp` should")


def test_without_a_search_or_a_line_there_is_a_description(monkeypatch):
    described = grade("RmsNorm", part_of(FAULTY)).hint
    assert "must be" in described
    monkeypatch.setattr(grading, "SEARCH", .01)
    assert grade("RmsNorm", part_of(FAULTY)).hint == described


def test_a_question_that_needs_those_before_it_is_not_asked_alone(searched, monkeypatch):
    part = part_of(FAULTY)
    mine = answers(part, "RmsNorm")
    monkeypatch.setattr(grading, "_alone", lambda component, i: (True, 0.))
    assert mended(part, None, "RmsNorm", mine).startswith("line 12: `clamp`")
    assert "line" in mended(part, None, "RmsNorm", truth_about("RmsNorm"))   # a claim may fail where all answers are right


def test_a_file_that_cannot_be_read_as_python_is_not_searched():
    part = part_of("def f(x): return x", "broken.py")
    linecache.cache["broken.py"] = 5, None, ["def ("], "broken.py"
    assert one_change(part, lambda make: True) == ""


def test_a_class_may_hold_more_than_methods():
    text = "class Part:\n    size = 3\n    def twice(self, x): return x * self.size"
    assert one_change(part_of(text), lambda make: make()().twice(4) == 8) == "line 2: `3` is the wrong number"


def test_a_line_in_a_notebook_is_told_with_its_cell(tmp_path):
    helper = "def doubled(x):\n    return x * 3"
    cells = [{"cell_type": "code", "id": "two", "source": helper}, {"cell_type": "code", "id": "three", "source": "def merge(x): return doubled(x) + 0"}]
    (tmp_path/"mine.ipynb").write_text(json.dumps({"cells": cells}), "utf-8", newline="\n")
    parts, _ = load(tmp_path/"mine.ipynb")
    assert one_change(parts["merge"], lambda make: [make()(x) for x in (1, 5, -2)] == [2, 10, -4]) == "line 2 of cell two: `3`, in `x * 3`, is the wrong number"
    assert parts["merge"](1) == 3   # all is as it was


def test_of_two_lines_none_is_named():
    text = "def f(x):\n    x = x - 1\n    return x - 1"
    assert one_change(part_of(text), lambda make: make()(1) == 1) == ""


def test_what_is_missing_may_be_missing_where_it_is_made_or_used():
    text = "def f(x, y):\n    d = abs(x) + 1\n    return y / d"
    assert said_of(text, lambda x, y: y / (abs(x) + 1) ** .5, NUMBERS) == "line 2: a square, a root or a reciprocal of `abs(x) + 1` is missing"


def test_only_conditions_change_where_an_error_is_lacking():
    text = "def f(x):\n    if x < 0: raise ValueError('negative')\n    assert x != 5\n    return 2 + x"
    def is_right(make):
        try: make()(0)
        except ValueError: return make()(1) == 3
        return False
    assert one_change(part_of(text), is_right, guards=True) == "line 2: `x < 0` compares wrongly"


@pytest.mark.parametrize("part", [len, torch.relu, lambda x: x, 3, type("Made", (), {}), part_of("def make():\n    def f(x): return x\n    return f")(),
                                  part_of("class Empty: pass"), part_of("def f(x): return x", "gone.py")], ids=stable_id)
def test_without_source_nothing_is_searched(part):
    linecache.cache.pop("gone.py", None)
    assert source_of(part) is None and one_change(part, lambda make: True) == ""


def test_what_writes_files_or_asks_for_a_name_is_left_alone():
    lines = ["def store(x): open(x, 'w').close()", "class Part:", "    def keep(self, x): store(x + 1)", "    def f(self, x):", "        if x == 'random': x = 3", "        return id(x)"]
    found = changes(source_of(part_of("\n".join(lines))))
    assert {change.line for change in found} == {5, 6}
    said = {change.said for change in found}
    assert "`x == 'random'` compares wrongly" in said and "it should not depend on `x == 'random'`" not in said and "`id(x)` is off by one" not in said


def test_the_search_ends_in_time():
    text = "def f(x): return x * 2 + x * 3"
    assert one_change(part_of(text), lambda make: True, seconds=-1.) == ""


def test_an_excerpt_is_one_short_line():
    node = ast.parse("{'a':\n 1}").body[0]
    assert excerpt(node) == "`{'a': 1}`" and excerpt(node, 5) == "`{'a'…`"
