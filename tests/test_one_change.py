"""The search for the one change after which a part is right: each kind of edit once, and what it must leave alone."""
import json
import linecache
import time
from itertools import product

import pytest
import torch

from llm_course.grading import grading
from llm_course.grading.grading import grade, load, mended, reference
from llm_course.grading.one_change import EDITS, changed, changes, excerpt, one_change, source_of


def part_of(text, where="part.py"):
    "What a text defines last, with its source at hand."
    linecache.cache[where] = len(text), None, text.splitlines(True), where
    space = {"torch": torch, "__name__": "part"}
    exec(compile(text, where, "exec", dont_inherit=True), space)
    return list(space.values())[-1]


def said_of(text, right, inputs, **more):
    "What the search says of a function or class; `right` gives the wanted answers."
    def answers(f): return [repr(f(*given)) for given in inputs]
    wanted = answers(right)
    def is_right(make):
        try: return answers(make()) == wanted
        except Exception: return False
    part = part_of(text)
    assert not is_right(lambda: part), "this is right already"
    return one_change(part, is_right, **more)


NUMBERS = [*product((-3, 0, 1, 2, 7), repeat=2)]
LISTS = [([3, 1, 2], 1), ([5, 5, 0, -1], 2), ([1, 2], 0), ([4, 2, 8, 6, 7], 3)]

OF_NUMBERS = {   # what is wrong there → a faulty line, and the right one
    "the operator of `x - y` is wrong": ("x - y", "x + y"),
    "the two sides of `x - y` are exchanged": ("x - y", "y - x"),
    "the right side of `x * 3 + y` should not be there": ("x * 3 + y", "x * 3"),
    "the left side of `y + x * 3` should not be there": ("y + x * 3", "x * 3"),
    "brackets are missing or wrong in `x - y - abs(x)`": ("x - y - abs(x)", "x - (y - abs(x))"),
    "brackets are missing or wrong in `x - (y - abs(x))`": ("x - (y - abs(x))", "x - y - abs(x)"),
    "`3`, in `x * 3`, is the wrong number": ("x * 3 + y", "x * 4 + y"),
    "`5`, in `x * 5`, is the wrong number": ("x * 5 + y", "x * 2.5 + y"),
    "the sign in `-x` should not be there": ("-x * 3 + y", "x * 3 + y"),
    "the `not` in `not x` should not be there": ("[not x]", "[x]"),
    "`x < y` compares wrongly": ("x < y", "x <= y"),
    "`x in (y, 0)` compares wrongly": ("x in (y, 0)", "x not in (y, 0)"),
    "`and` and `or` are confused in `x > 0 and y > 0`": ("x > 0 and y > 0", "x > 0 or y > 0"),
    "it should not depend on `y > abs(x)`": ("x > 0 and y > abs(x) and x + y < 5", "x > 0 and x + y < 5"),
    "it should not depend on `x % 2 > y % 2`": ("x + 7 if x % 2 > y % 2 else x * 4 + y", "x * 4 + y"),
    "the two cases of `x if x < 2 or y > 1 else y` are exchanged": ("x if x < 2 or y > 1 else y", "y if x < 2 or y > 1 else x"),
    "`x` stands where `y` belongs": ("x * 4 + x", "x * 4 + y"),
    "`abs(x)` stands where `y` belongs": ("abs(x) * 4 + x", "y * 4 + x"),
    "`max` is the wrong operation or type, in `max`": ("max(x, y)", "min(x, y)"),
    "`abs` should not be there, in `abs(x * y - 2)`": ("abs(x * y - 2) * 3", "(x * y - 2) * 3"),
    "`max` should not be given `abs(x)`": ("max(x, y, abs(x))", "max(x, y)"),
    "two arguments of `pow` are exchanged in `pow(2, abs(x))`": ("pow(2, abs(x))", "pow(abs(x), 2)"),
    "`(x, y)` is in the wrong order": ("(x, y)", "(y, x)"),
    "`x * y` is off by one": ("[x * y]", "[x * y - 1]"),
    "the sign of `x` is wrong": ("[x, y]", "[-x, y]"),
    "a square, a root or a reciprocal of `x * y` is missing": ("[x * y]", "[(x * y) ** 2]"),
    "a factor is missing at `x + 5`": ("[x + 5]", "[(x + 5) * y]"),
    "`y` is not passed on to `dict`": ("dict(x=x)", "dict(x=x, y=y)"),
}
OF_LISTS = {
    "`True` is the wrong truth value": ("sorted(x, reverse=True)", "sorted(x)"),
    "`sorted` sorts the other way round": ("sorted(x)", "sorted(x, reverse=True)"),
    "`sorted` should not be given `key=abs`": ("sorted(x, key=abs)[::n + 1]", "sorted(x)[::n + 1]"),
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


@pytest.mark.parametrize("said", OF_LISTS)
def test_an_edit_of_a_list_is_found(said):
    wrong, right = OF_LISTS[said]
    assert said_of(f"def f(x, n): return {wrong}", eval(f"lambda x, n: {right}"), LISTS) == f"line 1: {said}"

