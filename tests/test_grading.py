"""The grader refuses what is wrong, says why, and is not misled by what is right but written otherwise."""
import csv
import io
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path

import planted
import pytest
import torch
from apart import apart
from conftest import stable_id
from right import RIGHT, careful
from test_checks import FAULTY
from torch import nn

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checks import CHECKS
from llm_course.grading import grading
from llm_course.grading.grading import (
    ALIASES,
    MISTAKES,
    QUESTIONS,
    SYMPTOMS,
    TooLong,
    answers,
    asked,
    check,
    compare,
    describe,
    differ,
    grade,
    judge,
    load,
    main,
    ranked,
    reason,
    reference,
    same,
    symptom,
    traces,
    truth_about,
    untouched,
    within,
)
from llm_course.rmsnorm import rms_norm
from llm_course.softmax import softmax
from llm_course.transformer import ModelConfig

pytestmark = pytest.mark.usefixtures("without_shapes")
grading.learn_mistakes()
components = pytest.mark.parametrize("component", CHECKS)
AROUND = [name for name, checks in CHECKS.items() if all(check.run.__module__.endswith("mistakes_world") for check in checks.values())]


@components
def test_each_component_has_questions_and_mistakes(component):
    few = {"perplexity": 4, "bits_per_byte": 4, "random_states": 7, "stream": 7}
    assert component in QUESTIONS and len(MISTAKES[component]) >= few.get(component, 8)


def test_no_table_names_what_is_no_component():
    assert {*QUESTIONS, *MISTAKES, *SYMPTOMS, *(name for name, _ in ALIASES.values())} <= CHECKS.keys()


@components
def test_our_own_part_passes_and_has_no_symptom(component):
    verdict = judge(reference(component), component)
    assert not verdict.claim, verdict
    assert len(verdict.passed) == len(CHECKS[component]) and symptom(reference(component), component) == ""


@components
def test_each_mistake_is_refused_and_told_from_all_others(component):
    "Of each the answers are judged; the first, for all, as a part that is handed in."
    found, truth = traces(component), truth_about(component)
    for hint, mine in found.items(): assert any(differ(mine, truth, True)) and compare(mine, component) == hint, (hint, ranked(mine, component)[:2])
    hint, part = next(iter(MISTAKES[component].items()))
    verdict = judge(part, component)
    assert verdict.claim and verdict.hint == hint, verdict


@components
def test_labels_are_the_same_for_every_version(component):
    labels = [where for where, _ in asked(reference(component), component)]
    assert len(labels) == len(truth_about(component)) and grading.UNASKED not in map(str, truth_about(component)) and all(label == "" or label.split()[0] in ("in", "for", "where", "with", "without", "along", "far", "among", "at", "when", "on", "after", "beside") for label in labels)


@pytest.mark.parametrize("component", FAULTY)
def test_faulty_parts_written_beside_the_checks_are_refused_and_nine_in_ten_get_a_hint(component):
    verdicts = [judge(part, component) for part in FAULTY[component]]
    assert all(verdict.claim for verdict in verdicts), [v for v in verdicts if not v.claim]
    assert sum(bool(verdict.hint) for verdict in verdicts) >= .9 * len(verdicts), [v for v in verdicts if not v.hint]


def is_short(hints):
    words = sorted(len(hint.split()) for hint in hints)
    return words[len(words) // 2] <= 15 and words[-1] <= 30


@pytest.fixture(scope="module")
def blind():
    "Verdicts on the parts that were written without sight of the grader, each with what its hint must say."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading, "SEARCH", 0.)   # as for a test
        return [(part, fits, judge(part, component)) for component, parts in planted.FAULTY.items() for part, _, fits in parts]


def test_parts_written_without_sight_of_the_grader_are_refused(blind):
    assert not [part for part, _, verdict in blind if not verdict.claim]


def test_nine_in_ten_of_them_get_the_hint_that_fits(blind):
    assert is_short([verdict.hint for *_, verdict in blind])
    strangers = [(part.__name__, fits, verdict.hint) for part, fits, verdict in blind if not fits or fits not in verdict.hint]
    assert len(strangers) <= .1 * len(blind), strangers


def test_a_hint_never_holds_code():
    for component, found in MISTAKES.items():
        for hint in [*found, *SYMPTOMS.get(component, {})]: assert "torch." not in hint and "(x)" not in hint.replace("σ(x)", "") and "self." not in hint, f"a hint says what is wrong, and no code such as `torch.`, `(x)` or `self.`: {component}: {hint}"


# ---- Right, but written otherwise

@components
def test_right_versions_pass(component):
    "Three of each, or one beside our own and the formula of the mistakes with no switch turned."
    makers = {version.made[0] for version in MISTAKES[component].values() if hasattr(version, "made")} if component in AROUND else ()
    assert len(RIGHT[component]) >= (1 if makers else 3)
    for part in [*RIGHT[component], *(make() for make in makers)]: assert not (verdict := judge(part, component)).claim, (part, verdict)


functions = {
    "attention": RIGHT["ScaledDotProductAttention"][1](), "softmax": softmax, "silu": nn.functional.silu,
    "linear": nn.functional.linear, "embedding": lambda ids, weight: nn.functional.embedding(ids, weight),
    "rms_norm": careful(lambda x, gain, eps=1e-5: nn.functional.rms_norm(x.to(torch.promote_types(x.dtype, torch.float32)), gain.shape, gain.to(torch.promote_types(x.dtype, torch.float32)), eps).to(x.dtype), rms_norm),
    "swiglu": lambda x, w1, w2, w3: nn.functional.silu(x @ w1.T) * (x @ w3.T) @ w2.T,
    "cross_entropy": RIGHT["CrossEntropyLoss"][1](),
}

@pytest.mark.parametrize("name", ALIASES)
def test_a_function_stands_for_the_layer_whose_work_it_does(name):
    assert not grade(name, functions[name]).claim
    assert grade(name, lambda *inputs, **more: functions[name](*inputs, **more) * 1.1).claim


# ---- Whatever a part does

def module(forward): return type("Part", (nn.Module,), {"forward": forward})

def swallowing(self, x):
    while True:
        try: x = x + 0
        except: pass   # noqa: E722

def loop(self, x):
    while True: pass

def talk(self, x):
    for i in range(1000): print(i)
    return nn.functional.silu(x)

class NoModule:
    def __init__(self, *sizes): pass

@pytest.mark.parametrize("part, said", [
    (module(lambda self, x: sys.exit(3)), "SystemExit"), (module(loop), "not come to an end"), (module(swallowing), "not come to an end"),
    (module(lambda self, x: {}["no such thing"]), "no such thing"), (module(lambda self, x: None), "its result is None"), (module(lambda self, x: "text"), "cannot be used"),
    (module(lambda self, x: x.half() * torch.nan), "must give 0.824"), (module(lambda self, x: x.long()), "must give 0.824"), (module(lambda self: 3), "positional argument"),
    (module(lambda self, x: input("your name? ")), "EOFError"), (module(lambda self, x: torch.empty(10**14)), "memory"), (module(lambda self, x: self(x)), "ecursion"),
    (NoModule, "not callable"), (None, "can be called"), (3, "this is a int"), (lambda: 3, "not callable"), (lambda: (lambda x: x, 1), "not callable")], ids=stable_id)
def test_nothing_that_a_part_does_ends_the_program(part, said):
    patience = 1. if "to an end" in said else 60.   # of the processor's time: for what ends, however long that takes
    verdict = judge(part, "SiLu", patience=patience)
    assert verdict.claim and said in verdict.why + verdict.claim, verdict


def test_patience_counts_work_and_not_the_time_that_passes():
    "To a part, a busy machine looks like a nap."
    with within(2.): time.sleep(3)
    with pytest.raises(TooLong), within(.05):   # but a nap without end is none
        while True: time.sleep(.01)


def test_what_is_printed_is_counted_and_not_shown(capsys):
    verdict = judge(module(talk), "SiLu")
    assert not verdict.claim and verdict.note.startswith("it printed ") and capsys.readouterr().out == ""


def test_a_raised_error_is_shown_with_its_line_and_explained():
    def forward(self, x): raise KeyError("no such thing")
    verdict = judge(module(forward), "SiLu")
    assert 'raise KeyError("no such thing")' in verdict.why and verdict.hint.startswith("it raises KeyError: something is looked up")


def test_a_wrong_signature_is_told_the_right_one():
    class Part(nn.Module):
        def __init__(self, d_model): super().__init__()
        def forward(self, x, y): return x
    assert "RmsNorm(d_model, eps=1e-05, device=None, dtype=None)" in reason(TypeError("Part.__init__() got an unexpected keyword argument 'eps'"), "RmsNorm")
    assert "RmsNorm" in judge(Part, "RmsNorm").hint


@pytest.mark.parametrize("stub", [module(lambda self, x: 1 / 0), NoModule, torch.relu], ids=stable_id)
def test_only_a_stub_is_not_written_yet(stub):
    def silu(x): raise NotImplementedError
    assert not grade("silu", silu).written and grade("SiLu", stub).written
    class Part(nn.Module): pass   # no forward: torch raises NotImplementedError then
    assert judge(Part, "SiLu").written


def test_manners():
    import numpy as np
    state = torch.random.get_rng_state()
    for name, part, said in [("softmax", lambda x, dim=-1: x.sub_(x.amax(dim, keepdim=True)).softmax(dim), "argument 0"),
                             ("softmax", lambda x, dim=-1: (torch.manual_seed(3), x.softmax(dim))[1], "random numbers"),
                             ("softmax", lambda x, dim=-1: (torch.rand(1), x.softmax(dim))[1], "random numbers"),
                             ("softmax", lambda x, dim=-1: (np.random.rand(1), x.softmax(dim))[1], "random numbers"),
                             ("softmax", lambda x, dim=-1: (torch.set_default_dtype(torch.float64), x.softmax(dim))[1], "for everybody else"),
                             ("merge", lambda ids, pair, new: (ids.append(1), ids)[1], "argument 0")]:
        verdict = grade(name, part)
        assert verdict.claim.startswith("It returns something") and said in verdict.why and verdict.hint
    assert torch.equal(state, torch.random.get_rng_state()) and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_what_is_unknown_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no component RMSNorm; did you mean RmsNorm"): check(RMSNorm=torch.relu)
    with pytest.raises(ValueError, match="there are "): check(xyzzy=torch.relu)


def test_a_report_is_text_and_a_table():
    report = check(softmax=softmax, silu=torch.relu)
    assert not report.passed and check(softmax=softmax).passed
    assert "  ✓    " in repr(report) and "  hint this is ReLU" in repr(report)
    assert report._repr_html_().count("<tr>") == 2 + sum(len(v.lines) for v in report) and "<b>this is ReLU</b>" in report._repr_html_()
    assert "&lt;" in grading.Report([grading.Verdict("x", (), "a < b", "", "")])._repr_html_()


# ---- Files

GOOD = "import torch\nfrom llm_course.linear import Linear\ndef softmax(x, dim=-1): return torch.softmax(x, dim).nan_to_num()\ndef merge(ids, pair, new): raise NotImplementedError\n"

def notebook(*cells): return json.dumps({"cells": [{"cell_type": "code", "id": f"c{i}", "source": cell.splitlines(True)} for i, cell in enumerate(cells)]})

def test_parts_are_found_in_modules_and_exported_cells(tmp_path):
    (tmp_path/"a.py").write_text(GOOD, "utf-8", newline="\n")
    (tmp_path/"b.ipynb").write_text(notebook("%pip install x\n1/0", "#| export\nimport torch", "#| exports\ndef silu(x):\n    return x * torch.sigmoid(-x)"), "utf-8", newline="\n")
    (tmp_path/"c.ipynb").write_text(notebook("%matplotlib inline\nx = 1", "1 / 0", "def perplexity(nats): return 2.718281828**nats"), "utf-8", newline="\n")
    assert [(list(parts), troubles) for parts, troubles in (load(tmp_path/name) for name in ("a.py", "b.ipynb", "c.ipynb"))] == [
        (["softmax", "merge"], []), (["silu"], []), (["perplexity"], ["c.ipynb, cell c1: ZeroDivisionError: division by zero"])]


CELLS = {   # what IPython takes
    "implicit continuation": "def silu(x):\n    i, n = 7, 3\n    return (i\n% n)", "a command": "!nvidia-smi\ndef silu(x): return x", "a magic over two lines": "%pip install \\\n    einops\ndef silu(x): return x",
    "a captured command": "files = !ls\nn = len(files)\ndef silu(x): return x + n", "an if that holds a magic": "import sys\nif sys:\n    %pip install einops\ndef silu(x): return x",
    "help": "silu?\ndef silu(x): return x", "help of a method": "?str.join\ndef silu(x): return x", "a timed cell": "%%time\ndef silu(x):\n    return x", "a captured cell": "%%capture out\n%pip install x\ndef silu(x): return x",
    "a timed line": "%time silu = lambda x: x", "an assigned magic": "here = %pwd\ndef silu(x): return x", "a blank line first": "\n%matplotlib inline\ndef silu(x): return x", "Colab": "if 'google.colab' in str(get_ipython()):\n    %cd /content\ndef silu(x): return x",
    "await": "import asyncio\nawait asyncio.sleep(0)\ndef silu(x): return x", "display": "display(3)\ndef silu(x): return x", "prompts": ">>> def silu(x):\n...     return x", "an indented cell": "    def silu(x): return x",
    "a line that a command said": "files = !ls\nassert files[0] == files.n == files.s\ndef silu(x): return x", "a timed value": "n = %time 3\ndef silu(x): return x + n", "an import of get_ipython": "from IPython import get_ipython\nget_ipython().run_line_magic('matplotlib', 'inline')\ndef silu(x): return x",
    "a percent in a text": 'def silu(x):\n    """\n%d of these\n!\n"""\n    return x', "a modulo at the end": "def silu(x): return (7 %\n  3)"}

@pytest.mark.parametrize("what", CELLS)
def test_a_notebook_is_read_as_ipython_reads_it(tmp_path, what):
    pytest.importorskip("IPython")
    (tmp_path/"a.ipynb").write_text(notebook("%%bash\nls | wc -l", "pip install x", "%%writefile mine.py\nno python", CELLS[what], "%%html\n<b>", "rm = 3\nassert rm == 3"), "utf-8", newline="\n")
    parts, troubles = load(tmp_path/"a.ipynb")
    assert [*parts] == ["silu"] and not troubles and not (tmp_path/"mine.py").exists()


def test_a_verdict_quotes_the_line_of_a_cell_with_magics(tmp_path):
    pytest.importorskip("IPython")
    for first in "%matplotlib inline", "%%time":
        (tmp_path/"a.ipynb").write_text(notebook(f"{first}\ndef silu(x):\n    return {{}}[0]"), "utf-8", newline="\n")
        parts, _ = load(tmp_path/"a.ipynb")
        assert "line 3: return {}[0]" in grade("silu", parts["silu"]).why


def test_a_future_statement_holds_for_later_cells(tmp_path):
    (tmp_path/"a.ipynb").write_text(notebook("from __future__ import annotations", "def silu(x: Unknown): return x"), "utf-8", newline="\n")
    assert [*load(tmp_path/"a.ipynb")[0]] == ["silu"]


def test_a_cell_that_needs_ipython_says_so_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.core.inputtransformer2", None)
    (tmp_path/"a.ipynb").write_text(notebook("%pip install x", "def silu(x): return x"), "utf-8", newline="\n")
    parts, troubles = load(tmp_path/"a.ipynb")
    assert [*parts] == ["silu"] and "pip install ipython" in troubles[0] and len(troubles) == 1


@pytest.mark.parametrize("name, content", [
    ("a.py", b"\xef\xbb\xbfdef silu(x): return x\n"), ("a.py", "# -*- coding: latin-1 -*-\né = 'ü'\ndef silu(x): return x\n".encode("latin-1")), ("a.py", b"def silu(x): return x\r\n"), ("a.py", b"get_ipython().system('ls')\ndef silu(x): return x"),
    ("a.py", b"here = open(__file__).read()\ndef silu(x): return x"), ("a.ipynb", json.dumps({"cells": [{"cell_type": "code"}, {"cell_type": "code", "source": None}, {"cell_type": "code", "source": "def silu(x): return x"}]}).encode()),
    *(("a.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": source} for source in (f"{mark}\nhalf = .5", f"#| hide\n{mark}\ndef silu(x): return half * x", "1/0")]}).encode()) for mark in ("#| export", "# | export", "#|exports", "#| exporti")),
    ("a.ipynb", b"\xef\xbb\xbf" + json.dumps({"cells": [{"cell_type": "code", "source": "def silu(x): return x"}], "nbformat": 4, "nbformat_minor": 0}).encode()),
    ("a.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": "def silu(x): return x"}]}).encode("utf-16")), ("a.ipynb", json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": ["def silu(x): return x"]}]}]}).encode())])
def test_a_file_is_read_in_its_own_encoding_and_format(tmp_path, name, content):
    (tmp_path/name).write_bytes(content)
    parts, troubles = load(tmp_path/name)
    assert [*parts] == ["silu"] and not troubles


def test_a_notebook_by_the_name_of_a_module_is_told_its_name(tmp_path):
    (tmp_path/"a.py").write_text(notebook("def silu(x): return x"), "utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"a\.py is a notebook; let its name end in \.ipynb"): load(tmp_path/"a.py")


def test_a_part_may_use_what_lies_beside_it(tmp_path):
    (tmp_path/"my_helper.py").write_text("def double(x): return 2 * x", "utf-8", newline="\n")
    (tmp_path/"a.py").write_text("from my_helper import double\ndef silu(x): return double(x)", "utf-8", newline="\n")
    before = [*sys.path]
    assert load(tmp_path/"a.py")[1] == [] and sys.path == before


def test_the_command_prints_progress_and_ends_with_what_it_found(tmp_path, capsys):
    (tmp_path/"a.py").write_text(GOOD, "utf-8", newline="\n")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "✓ softmax" in out and "· merge" in out and out.endswith("1 of 2 parts pass, 0 fail, 1 are not written yet\n")
    (tmp_path/"b.ipynb").write_text(notebook("def silu(x):\n    return {}[0]"), "utf-8", newline="\n")
    with pytest.raises(SystemExit) as ended: main([str(tmp_path/"a.py"), str(tmp_path/"b.ipynb")])
    out = capsys.readouterr().out
    assert ended.value.code == 1 and "✗ silu" in out and "line 2: return {}[0]" in out and "1 of 3 parts pass, 1 fail, 1 are" in out


@pytest.mark.parametrize("name, text, said", [("gone.py", None, "is not a folder, Python file or notebook"), ("a.txt", "x", "is not a folder, Python file or notebook"),
                                              ("a.ipynb", "{", "not a notebook"), ("a.py", "x = 1", "there is no part to grade")])
def test_what_cannot_be_graded_is_refused_in_one_line(tmp_path, capsys, name, text, said):
    if text is not None: (tmp_path/name).write_text(text, "utf-8", newline="\n")
    with pytest.raises(SystemExit) as ended: main([str(tmp_path/name)])
    assert ended.value.code == 2 and said in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_the_command_runs_as_a_module(tmp_path):
    (tmp_path/"a.py").write_text("import torch\ndef silu(x): return torch.relu(x)\n", "utf-8", newline="\n")
    done = apart(["-m", "llm_course.grading", tmp_path], os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 1 and "this is ReLU" in done.stdout and not done.stderr, done


# ---- A class

NEIGHBOURS = """
import os, pathlib, socket
home = pathlib.Path({home!r})
def tried(f):
    try: f()
    except OSError: return "refused"
    return "done"
said = [tried(lambda: (home/"a.py").write_text("")), tried(lambda: socket.create_connection(("127.0.0.1", {port}), 5)), tried(lambda: pathlib.Path("own").write_text("")),
        tried(lambda: (home/"=e.py").unlink()), "alone" if len([p for p in os.listdir("/proc") if p.isdigit()]) < 4 else "seen"]
raise ValueError(" ".join(said))
"""

@pytest.fixture(scope="module")
def a_class(tmp_path_factory):
    "A folder of submissions, and what the command made of it."
    import socket
    folder = tmp_path_factory.mktemp("class")
    (home := folder/"home").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        files = {"a.py": "def perplexity(nats): return 2.718281828459045**nats\n", "b.py": NEIGHBOURS.format(home=str(home), port=server.getsockname()[1]),
                 "c/deep/c.py": "import os\ndef merge(ids, pair, new): os._exit(0)\ndef perplexity(nats): return 2.**nats\nprint('<b>')\n",
                 "=e.py": "def perplexity(nats): raise NotImplementedError\nraise ValueError('<i>\\x1b[2J')\n"}
        for name, text in files.items():
            (home/name).parent.mkdir(parents=True, exist_ok=True)
            (home/name).write_text(text, "utf-8", newline="\n")
        (home/"link.py").symlink_to(home/"a.py")
        done = apart(["-m", "llm_course.grading", home, "--submissions", "--require", "perplexity", "--csv", folder/"t.csv", "--html", folder/"t.html"], os.environ | {"PYTHONIOENCODING": "utf-8"})
    return done, home, [*csv.DictReader((folder/"t.csv").open(encoding="utf-8"))], (folder/"t.html").read_text("utf-8")


def test_a_class_gets_a_table_whatever_one_submission_does(a_class):
    done, _, rows, page = a_class
    assert done.returncode == 1 and "Traceback" not in done.stderr, done
    assert [(row["submission"], row["part"], row["result"]) for row in rows] == [
        ("'=e.py", "", "cannot be run"), ("'=e.py", "perplexity", "not written"), ("a.py", "perplexity", "passes"), ("b.py", "", "cannot be run"), ("c", "merge", "cannot be run"), ("c", "perplexity", "fails")]
    assert rows[5]["hint"] and done.stdout.count("is required, and missing") == 1 and done.stdout.count("is required, and not written") == 1
    assert page.count("<h2") == 4 and "&lt;i&gt;" in page and "\x1b" not in page + done.stdout


@pytest.mark.skipif(not grading.walls_stand(), reason="this system lets nobody build walls")
def test_behind_walls_a_submission_sees_no_network_and_changes_no_other(a_class):
    done, home, rows, _ = a_class
    assert "refused refused done refused alone" in rows[3]["why"] and (home/"a.py").read_text("utf-8") and (home/"=e.py").exists() and not done.stderr, rows[3]


def test_without_walls_a_submission_is_graded_as_it_was_handed_in(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grading, "walls_stand", lambda: False)
    (tmp_path/"a.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path/'b.py')!r}).write_text('def perplexity(n): return 1.')", "utf-8", newline="\n")
    (tmp_path/"b.py").write_text("def perplexity(nats): return 2.718281828459045**nats", "utf-8", newline="\n")
    main([str(tmp_path), "--submissions"])
    assert "✓ perplexity" in (shown := capsys.readouterr()).out and shown.err.startswith("note: this system gives a process no world of its own")


def test_a_submission_ends_when_its_time_is_over():
    submission = grading.grade_apart("slow", {"a.py": b"import threading\nthreading.Event().wait()"}, 3.)
    assert "it was not done after" in next(iter(submission.found.values()))


@pytest.mark.parametrize("idle, said", [(0, ""), (1, "p0"), (2, "p0, p1"), (4, "p0, p1 and 2 more")])
def test_two_idle_parameters_are_named_and_the_others_counted(idle, said):
    layer = grading.Made(lambda self, x: x * self.used, used=torch.ones(1), **{f"p{i}": torch.ones(1) for i in range(idle)})
    assert grading.idle(layer, torch.ones(2)) == said


@pytest.mark.parametrize("words, said", [(["--submissions"], "needs a folder with a file or a folder for each student"), (["--require", "RMSNorm"], "did you mean RmsNorm"), (["--csv", "."], "--csv . is a folder")])
def test_what_a_teacher_mistypes_is_refused_before_anything_runs(tmp_path, capsys, words, said):
    with pytest.raises(SystemExit) as ended: main([str(tmp_path), *words])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_is_required_must_be_there(tmp_path, capsys):
    (tmp_path/"a.py").write_text(GOOD, "utf-8", newline="\n")
    main([str(tmp_path), "--require", "softmax"])
    for required in "merge", "silu":
        with pytest.raises(SystemExit) as ended: main([str(tmp_path), "--require", required])
        assert ended.value.code == 1 and f"{required} " in capsys.readouterr().out


# ---- The tools

def test_of_answers_whose_cause_is_unknown_it_says_what_came_and_what_was_wanted():
    x, where = torch.tensor([1., 2., 4.]), ["", "with a bias", "in half precision", "in its gradient"]
    def told(change, *wrong): return describe([change(x) if i in wrong else x for i in range(4)], [x] * 4, where)
    assert told(lambda x: x) == ""
    assert told(lambda x: 2 * x, 0, 2) == "all numbers are 2 times what they must be"
    assert told(lambda x: -x, 2) == "in half precision, all signs are turned round"
    assert told(lambda x: x + torch.tensor([0., 0., 1.]), 1, 2) == "with a bias, of axis -1, only 2 of 0 to 2 is wrong"
    assert told(lambda x: x + torch.tensor([0., 1., 1.]), 1) == "with a bias, of axis -1, only 1 to 2 of 0 to 2 is wrong"
    assert told(lambda x: x + torch.tensor([1., 0., 1.]), 1) == "with a bias, a number is 2 and must be 1"
    assert told(lambda x: x / 0, 3) == "in its gradient, a number that is not finite comes out"
    assert told(lambda x: -x, 3) == "in its gradient, all signs are turned round; the output is right"
    assert told(torch.Tensor.half, 0) == "the type is torch.float16 and must be torch.float32" and told(lambda x: x[None], 0) == "the shape is (1, 3) and must be (3,)"
    def one(a, t, where=""): return describe([a], [t], [where])
    assert one(x, "ValueError", "for senseless settings") == "for senseless settings, a ValueError must be raised, and none is"
    assert one(grading.attempt(lambda: {}["a"]), x, "for a single row") == "for a single row, it raises KeyError: something is looked up under a name or number that is not there"
    assert one(grading.attempt(lambda: len(3)), x) == "it raises TypeError: object of type 'int' has no len()"
    assert one("'yes'", "'no'", "in whether it trains") == "in whether it trains, it gives 'yes' and must give 'no'"
    assert one(x, "'yes'") == "it gives [1.0, 2.0, 4.0] and must give 'yes'"
    long = [["word", i] for i in range(9)]
    def listed(x): return grading.attempt(lambda: x)
    assert one(listed(long[1:]), listed(long)) == "8 things come, and 9 are wanted" and one(listed([*long[:8], ["x", 8]]), listed(long)) == "it gives ['x', 8] and must give ['word', 8]"
    assert one("'yes'", "'" + "long " * 20 + "'") == one(str({"long " * 20: 1}), torch.tensor(2.)) == "" and one(torch.tensor(2.), torch.tensor(3.)) == "it is 2 and must be 3"
    assert grading.related(x, 0 * x) == grading.related(0 * x, x) == ""


def test_a_part_that_is_right_in_all_questions_gets_the_meaning_of_its_error():
    assert grading.hint_for(reference("perplexity"), "perplexity", error=KeyError("x")).startswith("something is looked up")


def test_two_mistakes_are_no_cause_where_one_says_it_all():
    assert grading.paired(answers(MISTAKES["penalise"]["only the last token is punished"], "penalise"), "penalise") == ""


def test_what_is_saved_besides_is_named():
    class Part(reference("RoPE")):
        def __init__(self, *sizes, **more):
            super().__init__(*sizes, **more)
            self.register_buffer("inv_freq", torch.zeros(4))
    assert judge(Part, "RoPE").hint == "there is a parameter or buffer inv_freq that is not to be"


def test_an_argument_without_effect_is_named():
    def rope(d_k, max_seq_len, theta=10000.): return reference("RoPE")(d_k, max_seq_len)
    def loss(better, worse, ref_better, ref_worse, beta=.1): return 3 * reference("dpo_loss")(better, worse, ref_better, ref_worse)
    assert grading.unheeded(answers(rope, "RoPE"), "RoPE") == "`theta` has no effect"
    assert grading.unheeded(answers(loss, "dpo_loss"), "dpo_loss") == ""   # it explains a few of its faults only


def test_a_mistake_is_named_if_it_explains_all_answers_but_for_refusals_and_corners():
    powers, rate = MISTAKES["Softmax"]["these are powers of two, not of e"], MISTAKES["cos_lr_scheduler"]["the way down is counted from step 0, not from the end of the warm-up"]
    def besides(dim=-1): return lambda x: powers(dim)(x) if x.ndim < 4 else {}["four axes"]
    def trusting(it, warmup, cycle, low, high): return rate(it, min(warmup, cycle), cycle, low, high)
    def often(dim=-1): return lambda x: powers(dim)(x) if x.ndim < 2 else torch.softmax(x, dim)
    assert judge(besides, "Softmax").hint == "these are powers of two, not of e" != judge(often, "Softmax").hint
    assert judge(trusting, "cos_lr_scheduler").hint == "the way down is counted from step 0, not from the end of the warm-up"


def test_of_two_mistakes_that_fit_alike_none_is_named():
    mine = answers(MISTAKES["perplexity"]["one is taken off"], "perplexity")
    assert compare(mine, "perplexity") == "one is taken off"
    assert compare(mine, "perplexity", lambda component: {"one": mine, "other": mine}) == ""


def test_what_changes_an_input_is_refused_wherever_it_is_asked():
    def part(logits, k):
        if logits.dtype == torch.float64: logits.sub_(0.).add_(1.)
        return reference("keep_top_k")(logits, k)
    assert judge(part, "keep_top_k").why == "it changes what it is given, argument 0"


def test_a_checkpoint_that_is_put_back_unseen_is_refused():
    "As the page's first, plain `load` does."
    def part(source, model, optimizer=None):
        state = torch.load(source, weights_only=True)
        model.load_state_dict(state["model"])
        if optimizer: optimizer.load_state_dict(state["optimizer"])
        return state["iteration"]
    verdict = judge(part, "load_checkpoint")
    assert verdict.claim == grading.ALIKE and verdict.hint.startswith("nothing is compared before it is put back")


def test_to_refuse_is_one_answer_whatever_is_raised():
    mine, truth = ["KeyError", "'a'", "KeyError", "KeyError", "None"], ["ValueError", "ValueError", torch.ones(1), "'KeyError'", "ValueError"]
    assert grading.differ(mine, truth, right=True) == [False, True, True, True, True] and all(grading.differ(mine, truth))


def test_what_an_instance_remembers_is_seen_when_it_is_used_again():
    class Part(nn.Module):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return nn.functional.silu(x) * self.calls
    assert "when it is used again" in judge(Part, "SiLu").why


def layer_of(compute, name="Linear"):
    "Our own layer, which computes something else."
    ours = reference(name)
    return type("Part", (ours,), {"forward": lambda self, *inputs, **more: compute(self, lambda *x, **m: ours.forward(self, *x, **m), *inputs, **more)})


def tokenizer_with(**methods): return type("Part", (BpeTokenizer,), methods)


@pytest.mark.parametrize("component, part, said", [
    ("Linear", layer_of(lambda self, ours, x: ours(x.view(-1, x.shape[-1])).view(*x.shape[:-1], len(self.weight))), "a view needs numbers that lie side by side"),
    ("CrossEntropyLoss", lambda: lambda z, y: reference("CrossEntropyLoss")()(z.view(-1, z.shape[-1]), y.view(-1)), "a view needs numbers that lie side by side"),
    ("Transformer", layer_of(lambda self, ours, *x, **m: ours(*x, **m) if self.training else ours(*x, **m).roll(1, -2), "Transformer"), "in evaluation"),
    ("RmsNorm", layer_of(lambda self, ours, x: ours(x).float() * 1. if self.weight.dtype == torch.float32 else ours(x), "RmsNorm"), "in half precision where the gain is not"),
    ("BpeTokenizer", tokenizer_with(decode=lambda self, ids: BpeTokenizer.decode(self, ids).replace(" ,", ",")), "decoding does not give back the text: \"a , b"),
    ("BpeTokenizer", tokenizer_with(save=lambda self, path: BpeTokenizer(self.vocab, self.merges, (), self.pattern).save(path)), "saved and read back, it has lost its special tokens")], ids=stable_id)
def test_what_is_right_in_the_usual_way_only_is_refused(component, part, said):
    verdict = judge(part, component)
    assert verdict.claim == grading.ALIKE and said in verdict.hint, verdict


def test_several_arguments_without_effect_are_all_named():
    class Part(reference("Transformer")):
        def __init__(self, *sizes, embedding=None, head=None, **more): super().__init__(*sizes, **more)
    assert judge(Part, "Transformer").hint in ("`embedding` and `head` have no effect",)


def test_what_a_part_passes_on_to_a_start_that_lacks_it_was_not_asked():
    class Part(reference("RoPE")):
        def __init__(self, d_k, max_seq_len, theta=10000., device=None): super().__init__(d_k, max_seq_len, theta, device)
    class Child(Part):
        def __init__(self, *sizes, **more): super().__init__(*sizes, **more)
    assert grading.attempt(lambda: Child(8, 4, scaling=None)) == grading.UNASKED and not judge(Child, "RoPE").claim


def test_a_checkpoint_without_an_entry_is_told_which():
    def part(model, optimizer, iteration, out, **extra):
        if out is not None: torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": vars(model.config), "step": iteration}, out)
    assert judge(part, "save_checkpoint").hint == "the file has no entry called iteration"


def a_ring(late=0, add=lambda step, n: step < n - 1, to=lambda rank, n: (rank + 1) % n, wait="after"):
    "A ring whose first round ends one piece further than ours, with something changed."
    import torch.distributed as dist
    def part(x):
        rank, n = dist.get_rank(), dist.get_world_size()
        pieces = x.view(-1).tensor_split(n)
        for step in range(2 * (n - 1)):
            at = rank - step - late * (step >= n - 1)
            into, got = pieces[(at - 1) % n], torch.zeros_like(pieces[(at - 1) % n])
            if wait != "late": coming = dist.irecv(got, (rank - 1) % n)
            if wait == "before": coming.wait()
            dist.send(pieces[at % n].clone(), to(rank, n))
            if wait == "after": coming.wait()
            if wait == "late": dist.recv(got, (rank - 1) % n)
            into.copy_(into + got if add(step, n) else got)
    return part

def saving(change=lambda state: state, path=lambda out: out):
    def part(model, optimizer, iteration, out, **extra):
        reference("save_checkpoint")(model, optimizer, iteration, file := io.BytesIO(), **extra)
        if out is None: return
        state = change(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        torch.save(state, path(out) if isinstance(out, str | Path) else out)
    return part

@pytest.mark.parametrize("component, part, said", [
    ("ring_all_reduce", a_ring(), ""), ("ring_all_reduce", a_ring(late=1), "the second round begins with a piece whose sum is not finished"),
    ("ring_all_reduce", a_ring(add=lambda step, n: True), "in the second round finished pieces are added"), ("ring_all_reduce", a_ring(wait=""), "used before it has come"),
    ("ring_all_reduce", a_ring(wait="before"), "each process waits for a message before"), ("ring_all_reduce", a_ring(to=lambda rank, n: rank + 1), "the ring is not closed"),
    ("save_checkpoint", saving(lambda state: state | {"config": ModelConfig(**state["config"])}), "an object with code is config"),
    ("save_checkpoint", saving(path=lambda out: Path(out).with_suffix(".pt")), "run.ckpt becomes run.pt"),
    ("load_checkpoint", lambda source, *run: (reference("load_checkpoint")(source, *run), {"iteration": 2})[1], "and a dict is"),
    ("load_model", lambda path, *more, **settings: (reference("load_model")(path, *more, **settings), 1), "and a tuple is"),
    ("evaluate", lambda model, batches: reference("evaluate")(model, islice(batches, 20)), "it stops at batch 20 of 250"),
    ("evaluate", lambda model, batches: reference("evaluate")(model, batches) * len([*batches]) / len([*batches]), "gone through twice"),
    ("set_random_states", lambda states: reference("set_random_states")(reference("random_states")() | {name: states[name] for name in ("python", "torch")} | states), "a missing numpy"),
    ("ring_all_reduce", a_ring(wait="late"), "each process sends before it is ready to receive"),
    ("save_checkpoint", saving(lambda state: state | {"model": {name.lstrip("module."): x for name, x in state["model"].items()}}), "names of parameters lose their first letters"),
    ("save_checkpoint", lambda model, optimizer, iteration, out, **extra: out.write(b"x"), "not an archive"),
    ("load_checkpoint", lambda source, *run: reference("load_checkpoint")(os.fspath(source), *run), "an open file is not accepted"),
    ("load_model", lambda path, device=None, parts=None: (torch.load(path, weights_only=False), reference("load_model")(path, device, parts))[1], "code in the file is run"),
    ("random_states", lambda: reference("random_states")() | {"torch": torch.initial_seed()}, "no whole state that can be put back, for torch"),
    ("dpo_loss", lambda a, b, c, d, beta=.1: .8 * reference("dpo_loss")(a, b, c, d, beta) + .2 * reference("dpo_loss")(b, a, d, c, beta), "label smoothing"),
    ("dpo_loss", lambda *four, beta=.1: (reference("dpo_loss")(*four, beta), 1), "a tuple comes"),
    ("policy_loss", lambda new, old, said, *more, **most: reference("policy_loss")((((new - old) * said).sum(-1) / said.sum(-1))[:, None].expand_as(old), 0 * old, said, *more, **most), "a whole answer has one ratio"),
    ("flash_forward", lambda *inputs: reference("flash_forward")(*inputs)[0], "both averages and logarithms must be returned")], ids=stable_id)
def test_what_is_seen_without_a_known_version_is_told(component, part, said):
    verdict = judge(part, component)
    assert bool(verdict.claim) == bool(said) and said in verdict.hint, verdict


def epochs(order, count=lambda n, b: n):
    "A `get_batch` that deals out rows by `order(chance, rows, epoch)`, as many of them as is said."
    ours = reference("get_batch")
    def part(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=None, **more):
        if more.get("order", "random") == "random" or iteration is None: return ours(dataset, batch_size, max_seq_len, device, seed=seed, iteration=iteration, **more)
        rows = (len(dataset) - 1) // max_seq_len
        n = count(rows, batch_size)
        starts = [order(seed, rows, at // n)[at % n] * max_seq_len for at in range(iteration * batch_size, (iteration + 1) * batch_size)]
        rows = torch.as_tensor(dataset.astype("int64"))[torch.tensor(starts)[:, None] + torch.arange(max_seq_len + 1)].to(device)
        return rows[:, :-1], rows[:, 1:]
    return part

def shuffled(*seed):
    import numpy as np
    return lambda rows: np.random.default_rng(seed).permutation(rows)

@pytest.mark.parametrize("part, said", [(epochs(lambda seed, rows, epoch: shuffled(seed, epoch)(rows)), ""), (epochs(lambda seed, rows, epoch: shuffled(seed, 1)(rows)), "every epoch deals out its rows in the same order"),
    (epochs(lambda seed, rows, epoch: [(i + seed) % rows for i in range(rows)]), "in the order of the text"), (epochs(lambda seed, rows, epoch: shuffled(seed, epoch)(rows), lambda n, b: n // b * b), "do not fill the last batch")], ids=stable_id)
def test_how_epochs_go_wrong_is_told(part, said):
    verdict = judge(part, "get_batch")
    assert bool(verdict.claim) == bool(said) and said in verdict.hint, verdict


def test_a_hint_is_short():
    "In the tables the median is at most 15 words, and none has more than 30."
    hints = [hint for table in (MISTAKES, SYMPTOMS) for of in table.values() for hint in of] + [*grading.RAISED.values()]
    assert is_short(hints), [hint for hint in hints if len(hint.split()) > 25]


def test_arguments_in_another_order_are_told():
    rate, loss = reference("cos_lr_scheduler"), reference("CrossEntropyLoss")
    assert judge(lambda it, low, high, warmup, cycle: rate(it, warmup, cycle, low, high), "cos_lr_scheduler").hint.startswith("its arguments come in another order: cos_lr_scheduler(it, ")
    assert judge(lambda: lambda targets, logits: loss()(logits, targets), "CrossEntropyLoss").hint.startswith("its arguments come in another order: CrossEntropyLoss.forward(logits, ")
    def unguarded(nats, tokens, size): return nats / float(torch.tensor(2.).log()) * tokens / size
    assert grading.reordered(unguarded, "bits_per_byte") == ""   # it only fails to refuse


def test_two_mistakes_at_once_are_both_named():
    make, eps = MISTAKES["AdamW"]["eps stands inside the root"].made
    _, decay = MISTAKES["AdamW"]["decay is missing"].made
    hint = judge(make(**eps, **decay), "AdamW").hint
    assert "eps stands inside the root" in hint and "decay is missing" in hint
    make, rounded = MISTAKES["dpo_loss"]["the differences are taken in half precision"].made   # the other is seen in the same answer
    hint = judge(make(**rounded, **MISTAKES["dpo_loss"]["beta has no effect"].made[1]), "dpo_loss").hint
    assert "beta has no effect" in hint and "half precision" in hint


def test_a_part_that_lacks_an_argument_was_not_asked_about_it():
    def refuses(q, k, v): return reference("ScaledDotProductAttention")()(q, k, v)
    assert grading.attempt(lambda: refuses(1, 2, 3, mask=4)) == grading.UNASKED != grading.attempt(lambda: refuses(1, 2, 3))
    assert grading.differ([grading.UNASKED, torch.ones(2)], [torch.ones(2), torch.zeros(2)]) == [False, True]


# ---- Settings: each argument of each reference is dropped in turn

UNSEEN = {   # arguments whose loss no answer can show (speed, a bar, a buffer's device), or which the exercise leaves open
    "learn_merges..progress", "learn_merges..incremental", "BpeTokenizer.__init__.rules", "BpeTokenizer.__init__.ignore_merges", "BpeTokenizer.encode_iterable.block", "RoPE.__init__.device", "RoPE.__init__.scaling", "MultiHeadAttention.__init__.attend", "Transformer.__init__.parts", "MultiHeadAttention.__init__.max_seq_len",
    "KVCache.__init__.device", "generate_ids..padding", "stream..draft", "stream..ahead",   # the last two are the engine room's
    "generate..max_tokens", "stream..max_tokens",   # slow without
    "AdamW.__init__.fused", "AdamW.step.closure", "SGDDecay.step.closure", "Muon.step.closure"}

def deaf_versions():
    "For each argument that has a default: the component, the argument's name, and our own version that ignores it."
    for component in CHECKS:
        ours = reference(component)
        for method, one in grading.arguments(ours):
            name = f"{component}.{method}.{one.name}"
            if one.default is one.empty or name in UNSEEN: continue
            yield pytest.param(component, grading.deaf(ours, method, one), id=name)

@pytest.mark.parametrize("component, part", list(deaf_versions()))
def test_a_part_that_is_deaf_to_one_setting_is_refused_with_a_hint(component, part):
    verdict = judge(part, component)
    assert verdict.claim and verdict.hint, verdict


def test_a_parameter_without_influence_is_named():
    class Part(nn.Module):
        def __init__(self, d_model, d_ff):
            super().__init__()
            self.w1, self.w2, self.w3 = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False), nn.Linear(d_model, d_ff, bias=False)
        def forward(self, x): return self.w2(nn.functional.silu(self.w1(x)) * self.w1(x))
    assert "w3" in judge(Part, "FFN").hint


@pytest.mark.parametrize("mine, said", [([("w", (2,))], "buffer w that is not to be, and weight is missing"), ([], "the parameter weight is missing"), ([("weight", (3, 2))], "has the shape (3, 2) instead of (2,)"), ([("weight", (2,)), ("x", (1,))], "buffer x that is not to be")])
def test_parameters_that_differ_are_named(mine, said):
    assert said in grading.parameters_apart(grading.attempt(lambda: mine), grading.attempt(lambda: [("weight", (2,))]))


def test_a_question_may_leave_a_part_unasked(): assert grading.attempt(lambda: grading.UNASKED) is grading.UNASKED


def test_answers_leave_chance_alone_and_are_the_same_each_time():
    state = torch.random.get_rng_state()
    first, again = (answers(reference("Linear"), "Linear") for _ in range(2))
    assert all(map(same, first, again)) and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.filterwarnings("error")
def test_answers_are_the_same_but_for_rounding():
    x, odd = torch.tensor([1., -3., 0.]), torch.tensor([torch.nan, torch.inf, -torch.inf])
    for a, b in (x, x), (x, x + 1e-6), (x, x * 1.0005), (x.half(), x.half() * 1.01), (x.bfloat16(), x.bfloat16() * 1.01), (odd, odd.clone()), (x.long(), x.long()), (x > 0, x > 0), (x[0], x[0] + 1e-6), (x[:0], x[:0]), ("'a'", "'a'"):
        assert same(a, b), (a, b)
    for a, b in (x, x * 1.002), (x, x + torch.tensor([0., 0., 1e-4])), (x.half(), x.half() * 1.05), (x, x[None]), (x, x.double()), (x, "'a'"), ("'b'", "'a'"), (odd, x), (x, odd), (odd, -odd), (odd, odd.flip(0)), (x, x / 0), (x.long(), x.long() + 1), (x > 0, x < 0), (x[0], -x[0]), (torch.tensor([1., torch.inf]), torch.tensor([2., torch.inf])):
        assert not same(a, b) and not same(b, a), (a, b)


def test_a_part_that_fails_in_a_corner_only_is_asked_everything_once(monkeypatch):
    class Part(reference("SiLu")):
        def forward(self, x): return super().forward(x.float())
    asked_of, ask = [], answers
    monkeypatch.setattr(grading, "answers", lambda part, component: (asked_of.append(part), ask(part, component))[1])
    assert judge(Part, "SiLu").claim == grading.ALIKE and sum(isinstance(part, type) and issubclass(part, Part) for part in asked_of) == 1


def test_compare_finds_nothing_in_what_is_right(): assert compare(answers(reference("AdamW"), "AdamW"), "AdamW") == ""


def test_within_stops_loops_on_any_thread_and_leaves_nothing_behind():
    import threading
    ended = []
    def work():
        try:
            with within(.05):
                while True: pass
        except grading.TooLong: ended.append(threading.current_thread())
    for start in work, (thread := threading.Thread(target=work)).start: start()
    thread.join(600)
    assert len(ended) == 2
    with within(30.): x = sum(range(10))
    for _ in range(10**5): x += 1   # nothing rings here
    assert x == 45 + 10**5


def test_untouched_sees_lists_arrays_and_nan():
    import numpy as np
    x = torch.tensor([torch.nan, 1.])
    with untouched(x, [1, [2]], np.ones(2), "text", nn.Linear(2, 2)): pass
    for thing, change in ([1, [2]], lambda t: t[1].append(3)), (np.ones(2), lambda t: t.fill(2)), ({"a": 1}, lambda t: t.clear()):
        with pytest.raises(grading.Rude), untouched(thing): change(thing)


def test_a_part_that_refuses_positions_of_its_own_for_each_row_shares_none():
    def refusing(x, at): return x if at.ndim == 1 else x[at]
    assert not grading._shares_positions(refusing, torch.zeros(2, 3), [0, 1, 9], [3, 4, 9])
    assert grading._shares_positions(lambda x, at: x + (at if at.ndim == 1 else at[:1]), torch.zeros(2, 3), [0, 1, 2], [3, 4, 5])
    assert not grading._shares_positions(lambda x, at: x + at, torch.zeros(2, 3), [0, 1, 2], [3, 4, 5])
