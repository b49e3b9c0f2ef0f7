"""The tool behind `make branches`: what it watches, what it reports, and that its list does not rot."""
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


SOURCE = '''
def f(x):
    if x > 0: return 1
    while x < -1: x += 1
    try: y = [i for i in range(3) if i != x]
    except TypeError: y = []
    return 1 if y else 0

class C:
    def __init__(self, x):
        self.y = f(x) if x else None   # a name with two underscores would be read as the class's own
'''


def test_both_outcomes_of_each_condition_are_watched(monkeypatch):
    tree, found = load("sitecustomize", monkeypatch).conditions("m", SOURCE)
    assert [text for _, text, _ in found] == ["x > 0", "x < -1", "i != x", "except TypeError", "y", "x"] and {where for where, _, _ in found} == {"f", "C.__init__"}
    seen = set()
    space = {"__branch__": lambda place, value: seen.add((place, bool(value))) or value}
    exec(compile(tree, "m.py", "exec"), space)
    assert [space["f"](x) for x in (1, -3, 0)] == [1, 1, 1] and space["C"](1).y == 1
    assert seen == {("m 0", True), ("m 0", False), ("m 1", True), ("m 1", False), ("m 2", True), ("m 2", False), ("m 4", True), ("m 5", True)}


def test_a_process_writes_what_it_saw_and_what_is_missing_is_told(tmp_path, monkeypatch):
    code = "import sys; from llm_course.schedule import cos_lr_scheduler as f; f(1, 2, 4, 0., 1.); print('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root)]), "LLM_COURSE_BRANCHES": str(tmp_path)})
    seen = {*(tmp_path/"seen.txt").read_text("utf-8").splitlines()}
    missing = [line for line in load("__main__", monkeypatch).missing(seen) if line.startswith("schedule cos_lr_scheduler: ")]
    assert missing == ["schedule cos_lr_scheduler: it < 0: never True", "schedule cos_lr_scheduler: not 0 <= warmup_iters <= cos_cycle_iters: never True",
                       "schedule cos_lr_scheduler: not 0 <= lr_min <= lr_max < math.inf: never True", "schedule cos_lr_scheduler: it < warmup_iters: never False",
                       "schedule cos_lr_scheduler: it >= cos_cycle_iters: never True", "schedule cos_lr_scheduler: it >= cos_cycle_iters: never False"]


def test_every_line_of_the_list_has_a_reason_and_is_still_in_the_code(monkeypatch):
    tool = load("__main__", monkeypatch)
    every = {*tool.missing(set())}
    assert not [line for line, reason in tool.reasons().items() if line not in every or reason in (None, "?")]


@pytest.mark.parametrize("listed, status", [("", 1), ("a f: x: never True  # no such machine here\n", 0)])
def test_a_branch_that_is_not_on_the_list_fails(listed, status, tmp_path, monkeypatch, capsys):
    tool = load("__main__", monkeypatch)
    (tmp_path/"known.txt").write_text(listed, "utf-8", newline="\n")
    (tmp_path/"seen.txt").touch()
    monkeypatch.setattr(tool, "known", tmp_path/"known.txt")
    monkeypatch.setattr(tool, "missing", lambda seen: ["a f: x: never True"])
    with pytest.raises(SystemExit) as stop: tool.main(tmp_path)
    assert stop.value.code == status and ("no test enters: a f: x: never True" in capsys.readouterr().out) == bool(status)
