"""No branch of the code is without a test or a reason; and the tool behind that, `make branches`: what it watches, remembers and reports."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
folder = root/"tests"/"branches"


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("LLM_COURSE_BRANCHES", raising=False)
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    spec = importlib.util.spec_from_file_location(f"branches_{name}", folder/f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_branch_was_entered_by_a_test_or_there_is_a_reason(monkeypatch):
    tool = load("__main__", monkeypatch)
    assert not tool.new(), "watch the tests that enter these: make branches TESTS=tests/test_x.py"


def test_every_reason_is_still_needed(monkeypatch):
    tool = load("__main__", monkeypatch)
    absent = tool.missing()
    assert not [pattern.pattern for pattern, why in tool.reasons().items() if len(why) < 20 or not any(pattern.fullmatch(line) for line in absent)]


def test_a_reason_names_its_function(monkeypatch):
    "A new branch on CUDA, say, is excused by no reason for another one. Whole modules are those that nothing can watch, and the grader's questions."
    whole = {"engine.compiled_bpe _*", "engine.loops *", "engine.flash_triton *", "grading.mistakes_* *"}
    places = {line.partition(": ")[0] for line in (folder/"excused.txt").read_text("utf-8").splitlines()}
    assert {place for place in places if "*" in place} == whole
    tool = load("__main__", monkeypatch)
    for new in "engine.new f: x.is_cuda: True", "engine.new f: torch.backends.mps.is_available(): True", "experiments module: x: True", "engine.new f: os.name == 'nt': True", "engine.new f: sys.platform == 'darwin': True":
        assert not [pattern.pattern for pattern in tool.reasons() if pattern.fullmatch(new)]


SOURCE = '''
def f(x):
    if x > 0: return 1
    while x < -1: x += 1
    try: y = [i for i in range(3) if i != x]
    except TypeError: y = []
    if x > 0: y = []
    while True: return 1 if y else 0

class C:
    def __init__(self, x):
        self.y = f(x) if x else None   # a name with two underscores would be read as the class's own

@numba.jit
def g(x): return 1 if x else 0   # a call of ours could not be compiled
'''


def test_both_outcomes_of_each_condition_are_watched(monkeypatch):
    tree, found = load("sitecustomize", monkeypatch).conditions("llm_course.m", SOURCE.replace("@numba.jit", ""))
    both = ("True", "False")
    assert found == {"m f: x > 0": both, "m f: x < -1": both, "m f: i != x": both, "m f: except TypeError": ("entered",), "m f: x > 0 [2]": both, "m f: y": both, "m C.__init__: x": both, "m g: x": both}
    seen = set()
    space = {"__branch__": lambda place, value: seen.add((place[2:], bool(value))) or value}
    exec(compile(tree, "m.py", "exec"), space)
    assert [space["f"](x) for x in (1, -3, 0)] == [1, 1, 1] and space["C"](1).y == 1
    assert seen == {("f: x > 0", True), ("f: x > 0", False), ("f: x < -1", True), ("f: x < -1", False), ("f: i != x", True), ("f: i != x", False), ("f: x > 0 [2]", False), ("f: y", True), ("C.__init__: x", True)}


def test_what_is_compiled_is_listed_and_left_alone(monkeypatch):
    tool = load("sitecustomize", monkeypatch)
    import ast
    tree, found = tool.conditions("m", SOURCE)
    assert "m g: x" in found and "__branch__" not in ast.unparse(tree.body[-1])


def test_a_process_writes_what_it_saw_and_torch_may_compile(tmp_path):
    code = """
import torch
from llm_course.schedule import cos_lr_scheduler as f
f(1, 2, 4, 0., 1.)
from llm_course.rmsnorm import RmsNorm
x = torch.ones(2, 4)
assert torch.equal(torch.compile(RmsNorm(4), fullgraph=True, backend="eager")(x), RmsNorm(4)(x))"""
    for _ in range(2):   # the second time from what was compiled the first time
        (tmp_path/"seen.txt").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root)]), "LLM_COURSE_BRANCHES": str(tmp_path)})
        seen = [line for line in (tmp_path/"seen.txt").read_text("utf-8").splitlines() if line.startswith("schedule cos_lr_scheduler: ")]
        assert seen == [f"schedule cos_lr_scheduler: {line}" for line in ("it < 0: False", "not 0 <= warmup_iters <= cos_cycle_iters: False", "not 0 <= lr_min <= lr_max < math.inf: False", "it < warmup_iters: True")]


def test_a_new_branch_fails_until_it_is_seen_or_excused(tmp_path, monkeypatch, capsys):
    tool = load("__main__", monkeypatch)
    module = tmp_path/"llm_course"/"a.py"
    module.parent.mkdir()
    for name, value in ("root", tmp_path), ("entered", tmp_path/"entered.txt"), ("excused", tmp_path/"excused.txt"): monkeypatch.setattr(tool, name, value)
    tool.excused.touch()

    def now(source, *saw, all_tests=False):
        module.write_text(source, "utf-8", newline="\n")
        if saw: tool.remember(set(saw), all_tests)
        return tool.new()
    one, two = "def f(x): return 1 if x else 2\n", "def f(x, y): return 1 if x else 2 if y else 3\n"
    assert now(one) == ["a f: x: True", "a f: x: False"]
    assert now(one, "a f: x: True") == ["a f: x: False"] and now(one, "a f: x: False") == [] and now("# moved\n" + one) == []
    module.rename(module.with_name("b.py"))
    assert now("# nothing is left here\n") == [] and module.with_name("b.py").rename(module)   # a function may move
    tool.excused.write_text("a f: y: *  # no such machine here\n", "utf-8", newline="\n")
    assert now(two) == []
    assert now(two, "a f: x: True", all_tests=True) == ["a f: x: False"]   # a run of all tests forgets what was seen before
    monkeypatch.setattr(sys, "argv", ["branches"])
    with pytest.raises(SystemExit) as stop: tool.main()
    assert stop.value.code == 1 and "no test enters: a f: x: False" in capsys.readouterr().out
