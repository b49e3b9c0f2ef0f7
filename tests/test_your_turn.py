"""The course with its parts taken out is in step with the course, and holds stubs where the exported code was."""
import ast
import contextlib
import inspect
import io
import json
import os
import re
import symtable
import sys
from importlib import import_module
from pathlib import Path

import book
import filled
import installed
import pytest
import your_turn
from apart import apart

from llm_course import checks

root = Path(__file__).parents[1]
written = your_turn.pages()
chapters = {name: (json.loads((root/"nbs"/name).read_text("utf-8"))["cells"], json.loads(text)["cells"]) for name, text in written.items() if name != "index.ipynb"}
each = pytest.mark.parametrize("name", chapters)


@pytest.fixture(autouse=True)
def no_check_of_a_page_stays():
    "A page that is executed here enters its own checks; the next test finds the package's."
    from llm_course.grading.grading import learn_mistakes
    learn_mistakes()   # so that all have been entered
    before = {component: dict(found) for component, found in checks.CHECKS.items()}
    yield
    checks.CHECKS.clear()
    checks.CHECKS.update(before)


source = lambda cell: "".join(cell["source"])


def test_the_committed_pages_are_what_is_generated():
    committed = {path.name: path.read_text("utf-8") for path in (root/"nbs"/"your_turn").glob("*.ipynb")}
    assert committed.keys() == written.keys()
    stale = [name for name in written if committed[name] != written[name]]
    assert not stale, f"{stale} differ from the chapters; run python web/your_turn.py"


def test_no_line_of_code_is_wider_than_on_other_pages():
    wide = [(name, cell["id"], line) for name, (_, after) in chapters.items() for cell in after if cell["cell_type"] == "code"
            for line in source(cell).splitlines() if len(line) > your_turn.WIDTH and not line.lstrip().startswith("%pip")]
    assert not wide


def test_what_would_be_too_wide_is_broken():
    long = ", ".join(f"argument_{i}" for i in range(5))
    stub = f"{your_turn.STUB}   # optional"
    assert your_turn.fitted(f"  def f({long}): {stub}\ndef g(): {stub}") == f"  def f({long}):\n      {stub}\ndef g(): {stub}"
    assert your_turn.call("f", ["a", "b"]) == "f(a, b)"
    assert your_turn.call("f", [long, long]) == f"f(\n    {long},\n    {long},\n)"


def emptied(code):
    "The tree of some code without what its functions do."
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef): node.body = [s for s in node.body[:1] if ast.get_docstring(node)] or [ast.Pass()]
    return ast.dump(tree)


def from_engine(node): return isinstance(node, ast.ImportFrom) and node.module.startswith("llm_course.engine")


def lent_by(code): return [{alias.asname or alias.name for alias in node.names} for node in ast.parse(code).body if from_engine(node)]


def without_engine(code, kept):
    "Some code, of whose imports from the engine room these are left."
    tree = ast.parse(code)
    for node in tree.body:
        if from_engine(node): node.names = [alias for alias in node.names if (alias.asname or alias.name) in kept]
    tree.body = [node for node in tree.body if not from_engine(node) or node.names]
    return ast.unparse(tree)


@each
def test_what_was_exported_is_a_stub_and_all_else_is_there(name):
    before, after = chapters[name]
    left = {cell["id"]: source(cell) for cell in after}
    for cell in before:
        code = source(cell)
        if cell["cell_type"] != "code" or not re.search(r"^#\| exports?$", code, re.M): continue
        if cell["id"] not in left:
            assert re.search(r"^(_all_ =|if __name__)", code, re.M), f"{cell['id']} is gone"
            continue
        code, stub = filled.plain(code), left[cell["id"]].removeprefix(f"{your_turn.MARK}\n")
        code = without_engine(code, {name for names in lent_by(stub) for name in names})
        if "@check_of(" in code:   # checks stay; what they call, which may be an answer, is lent
            tree, left_over = ast.parse(code).body, ast.parse(stub).body
            lent = [node.name for node in tree if isinstance(node, ast.FunctionDef) and node.name.startswith("_")]
            assert [alias.name for node in left_over if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name.startswith("_")] == lent
            whole = [ast.dump(node) for node in tree if getattr(node, "name", "") not in lent]
            assert [ast.dump(node) for node in left_over][len(lent):] == whole
        else:
            assert emptied(stub) == emptied(code)   # names, signatures, shapes, docstrings, tables
            for _, node in your_turn.bodies(ast.parse(stub)):
                assert isinstance(node.body[-1], ast.Raise | ast.Expr) and len(node.body) <= 2, f"{node.name} still does something"


@each
def test_prose_stays_and_solutions_go(name):
    before, after = chapters[name]
    text = "\n".join(map(source, after))
    assert "Solution" not in text and "What it means" not in text and not re.search(r"^#\| (?!export-yours$)", text, re.M) and "## Exercises" in text
    assert not any(cell.get("outputs") for cell in after)
    kept = {cell["id"] for cell in after}
    assert all(cell["id"] in kept for cell in before if cell["cell_type"] == "markdown" and not re.match(r"(<details>|## What we exported)", source(cell)))
    assert f"blob/main/nbs/your_turn/{name}" in source(after[0])


def test_each_component_is_asked_for_on_its_page():
    from llm_course.grading.grading import CHECKS, learn_mistakes, reference
    learn_mistakes()
    asked = {found for _, after in chapters.values() for found in re.findall(r"(\w+)=\1", source(after[-1]))}
    beyond = {"answer_loss", "dpo_loss", "advantages", "policy_loss"}   # of lessons after the last that has stubs
    engine = {name for name in CHECKS if reference(name).__module__.startswith("llm_course.engine.")}   # their pages have no stubs
    assert asked <= CHECKS.keys(), f"asked for in your_turn/, but without a check: {asked - CHECKS.keys()}"
    assert CHECKS.keys() - asked - engine == beyond, f"graded, but asked for by no lesson in your_turn/, or the other way round: {(CHECKS.keys() - asked - engine) ^ beyond}"


@each
def test_what_the_engine_room_lends_is_used(name):
    "An import of the engine room that only the taken-out code used could be its answer; one that the page or a solution uses is there."
    before, after = chapters[name]
    solutions = [filled.plain(source(cell)) for cell in before if filled.SOLUTION in source(cell)]
    used_here = set().union(*(your_turn.read_names(code) for code in [*solutions, *(code for _, code in code_of(after))]))
    lent = set().union(*(names for cell in after if source(cell).startswith(your_turn.MARK) for names in lent_by(source(cell))))
    had = set().union(*(names for cell in before if your_turn.is_export(source(cell)) for names in lent_by(filled.plain(source(cell)))))
    assert lent == had & used_here


@each
def test_each_stub_says_whether_it_is_required(name):
    before, after = chapters[name]
    graded = set(re.findall(r"(\w+)=\1", source(after[-1])))
    module = import_module(f"llm_course.{book.module(root/'nbs'/name)}")
    stubs = 0
    for cell in after:
        if cell["cell_type"] != "code": continue
        code, given = source(cell), cell["id"] in {other["id"] for other in before if your_turn.is_export(source(other))}
        told = {at: line.rpartition("# ")[2].partition(":")[0] for at, line in enumerate(code.splitlines(), 1)
                if re.search(rf"\b{your_turn.STUB}|^\w[\w, ]* = \.\.\.", line)}
        stubs += len(told)
        assert {*told.values()} <= {"required", "optional"}, (cell["id"], told)
        for owner, node in your_turn.bodies(your_turn.parsed(code)):
            if (word := told.get(node.end_lineno)) is None: continue
            needed = owner in graded and (owner == node.name or node.name in your_turn.ASKED)
            assert (word == "required") == needed, (owner, node.name, word)
            assert not given or hasattr(module, owner), f"{owner} cannot be imported instead"
    assert stubs


def methods_of(part):
    "The methods of a class, its properties among them, each with the function inside."
    for name, value in vars(part).items():
        inside = value if inspect.isfunction(value) else getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "func", None)
        if inspect.isfunction(inside): yield name, value, inside


def not_written(method, inside, ours=()):
    "A method that is a stub, but for those of its class's own that call it."
    def stub(*inputs, **more):
        above, frame = set(), sys._getframe(1)   # a table of known answers, and checks of types, may stand between
        while frame and len(above) < 16: above, frame = above | {frame.f_code}, frame.f_back
        if not above & {*ours}: raise NotImplementedError
        return inside(*inputs, **more)
    if inspect.isfunction(method): return stub
    return type(method)(stub)


graded_classes = [(name, part) for name, (_, after) in chapters.items() for part in re.findall(r"(\w+)=\1", source(after[-1])) if isinstance(getattr(import_module(f"llm_course.{book.module(root/'nbs'/name)}"), part), type)]


def needs_what_is_required(name, part, monkeypatch):
    "With stubs for all its optional methods it gets full marks; with a stub for any of the others it does not."
    from llm_course.grading import check
    ours = getattr(import_module(f"llm_course.{book.module(root/'nbs'/name)}"), part)
    methods = {method: (value, inside) for method, value, inside in methods_of(ours)}
    own = {inspect.unwrap(inside).__code__ for _, inside in methods.values()}
    needed = methods.keys() & your_turn.ASKED
    assert needed
    for method in methods.keys() - needed:
        stub = not_written(*methods[method], own)
        if hasattr(stub, "__set_name__"): stub.__set_name__(ours, method)
        monkeypatch.setattr(ours, method, stub)
    if methods.keys() - needed: assert check(**{part: ours}).passed
    for method in sorted(needed):
        with monkeypatch.context() as patched:
            patched.setattr(ours, method, not_written(*methods[method]))
            assert not check(**{part: ours}).passed, f"{method} is called required, but nobody asks for it"


NEEDED = """import sys
sys.path[:0] = %r
import json, traceback
import pytest, test_your_turn
from llm_course.grading import grading, mistakes_layers, mistakes_learning, mistakes_machine, mistakes_text, mistakes_world
failed = {}
for name, part in test_your_turn.graded_classes:
    for module in grading, mistakes_layers, mistakes_learning, mistakes_machine, mistakes_text, mistakes_world:   # which remember what our own part has answered
        for value in vars(module).values():
            if hasattr(value, "cache_clear") and value is not grading.learn_mistakes: value.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch: test_your_turn.needs_what_is_required(name, part, patch)
    except Exception: failed[part] = traceback.format_exc()
print(json.dumps(failed))"""


@pytest.fixture(scope="module")
def failed(made_once):
    "What went wrong, by class; in one process, apart from those in which the grader shall remember."
    def ask(folder):
        done = apart(["-c", NEEDED % sys.path])
        assert not done.returncode, done.stderr
        (folder/"failed.json").write_text(done.stdout, "utf-8", newline="\n")
    return json.loads((made_once("methods", ask)/"failed.json").read_text("utf-8"))


@pytest.mark.parametrize("part", [part for _, part in graded_classes])
def test_a_class_needs_the_methods_that_are_required_and_no_others(part, failed): assert part not in failed, failed[part]


def assigned(table): return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def used(table, inside=True):
    "The names of its page that some code reads, also inside its functions."
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")}
    return own.union(*(used(child) for child in table.get_children() if inside or child.get_type() == "class"))


def what_makes(names, cells):
    "The cells that make these names, and those that make what these cells need, in their order."
    wanted, kept = set(names), []
    for id, code in reversed(cells):
        table = symtable.symtable(code, id, "exec")
        if wanted & assigned(table):
            wanted |= used(table)
            kept.append((id, code))
    return kept[::-1]


def code_of(cells): return [(cell["id"], re.sub(r"^(\s*)[!%].*", r"\1pass", source(cell), flags=re.M)) for cell in cells if cell["cell_type"] == "code" and cell["id"] != "colab"]


@each
def test_an_exercise_that_nobody_touched_says_what_is_missing(name, tmp_path, monkeypatch):
    """On an untouched page, of which the cells run that make what the exercises need: each says that it is not written yet, or names the stub that it met.

    Where the grader is asked, it is not called here: that it says so of a stub is a test of its own."""
    monkeypatch.chdir(tmp_path)
    cells = code_of(chapters[name][1])
    first = [id for id, _ in cells].index("exercise-imports")
    exercises = [cell for cell in cells[first:] if not cell[0].startswith("how-far")]
    # what tries an answer is not run before there is one
    needed = set().union(*(used(symtable.symtable(code, id, "exec"), inside=not filled.question(code)) for id, code in exercises))
    space = {"__name__": "__main__"}
    for id, code in what_makes(needed, cells[:first]):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception): exec(compile(code, id, "exec"), space)
    space["check"] = lambda **parts: print(*("not written yet" for part in parts.values() if checks._is_stub(part)))
    for id, code in exercises:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try: exec(compile(code.replace("from llm_course.grading import check", ""), id, "exec"), space)
            except NotImplementedError: continue
        assert not filled.question(code) or "not written yet" in said.getvalue(), (id, said.getvalue())


@each
def test_a_filled_page_is_the_chapter_without_its_solutions(name):
    """With its parts and its exercises filled in, a page is the chapter without the solutions, and needs nothing that was made by a solution.

    So whoever runs the chapter runs that page as far as its exercises; installed.py does, and goes on as that page would."""
    before, after = chapters[name]
    whole, solutions = {cell["id"]: filled.plain(source(cell)) for cell in before if cell["cell_type"] == "code"}, []
    for cell in before:
        if filled.SOLUTION in source(cell): solutions.append(whole.pop(cell["id"]))
    page = filled.page(root/"nbs"/name)
    left_out = [code for id, code in whole.items() if id not in page]
    assert all(re.search(r"^(_all_ =|if __name__)", code, re.M) or not code.strip() for code in left_out), left_out
    assert [id for id in page if not id.startswith("how-far")] == [id for id in whole if id in page]
    for id, code in page.items():
        if id == "exercise-imports": break
        if "@check_of(" not in code: assert code.strip("\n") == whole[id].strip("\n")   # for checks see above
    made = set().union(*(assigned(symtable.symtable(code, name, "exec")) for code in solutions))
    kept = [symtable.symtable(code, id, "exec") for id, code in code_of(after)]
    missing = set().union(*map(used, kept)) & made - set().union(*map(assigned, kept))
    assert not missing, f"{missing} are made by solutions alone"


def test_an_answer_takes_the_place_of_its_stub():
    stub, solution = "def f(x): raise NotImplementedError\n\ny = ...\n\n@exercise(f, y)\ndef is_right(f, y): assert f(y) == 4", "def twice(x): return 2 * x\n\nis_right(twice, 2)\nprint(twice(3))"
    assert filled.answered(stub, solution).endswith("return 2 * x\nf = twice\ny = 2\n@exercise(f, y)\ndef is_right(f, y): assert f(y) == 4")
    assert filled.answered("class C: pass\n\ncheck(Part=C)", "assert check(Part=D).passed") == "class C: pass\n\nC = D\nassert check(Part=C).passed"
    assert filled.question("check(Part=C)\nprint(1)") is filled.question("") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a kernel cannot be copied here")
@pytest.mark.parametrize("cell, wrong", [("assert x == 1", None), ("x = y", "name 'y' is not defined"), ("print('not written yet')", "second is not answered"), ("import os; os._exit(3)", "died")])
def test_a_copy_of_a_kernel_goes_on_and_tells(cell, wrong):
    space = {"x": 1}
    with pytest.raises(AssertionError, match=wrong) if wrong else contextlib.nullcontext():
        exec(installed.AS_FILLED.replace("CELLS", repr({"first": "z = 2", "second": cell})), space)
    assert space["x"] == 1 and "z" not in space


def answers_on(cells, graded, module):
    "What a page shows or imports that does what a required part does: its name, and the part."
    from llm_course.grading import check
    space, shown = {"__name__": "__main__"}, set()
    for id, code in cells:
        for node in ast.parse(code).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom) or your_turn.STUB in (text := ast.unparse(node)): continue
            with contextlib.suppress(NameError): exec(compile(text, id, "exec"), space)
            shown |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else {alias.asname or alias.name for alias in node.names}
    wanted = {part: [*checks.CHECKS[part].values()] for part in graded}

    def passes(shown, part):   # the checks first, since few pass the first of them; then all that the grader asks
        for one in wanted[part]:
            try: one(shown)
            except Exception: return False
        return check(**{part: shown}).passed
    for part in graded: space.setdefault(part, getattr(module, part))   # even for one who has written the parts
    return [(one, part) for one in sorted(shown) if callable(space.get(one)) for part in graded if passes(space[one], part)]


@each
def test_nothing_that_stands_on_a_page_passes_as_its_part(name):
    """No function that the student's page shows, or imports, does what a required part does.

    Page 16 begins with a plain loader, and what it builds beyond that is refusals, of which the grader asks too little to tell the two apart."""
    graded = re.findall(r"(\w+)=\1", source(chapters[name][1][-1]))
    assert not answers_on(code_of(chapters[name][1]), graded, import_module(f"llm_course.{book.module(root/'nbs'/name)}"))


def test_an_answer_that_is_imported_or_shown_is_found():
    module = import_module("llm_course.bpe")
    shown = "def mine(words, num_merges): return quickly(words, num_merges)\ndef other(words, num_merges): return []"
    cells = [("a", "import random\nfrom llm_course.engine.incremental_bpe import index_pairs, learn_incrementally as quickly"), ("b", shown)]
    assert answers_on(cells, ["learn_merges"], module) == [(name, "learn_merges") for name in ("mine", "quickly")]
    assert not answers_on([("a", "from llm_course.bpe import _first_difference\nfrom llm_course.engine.incremental_bpe import index_pairs")], ["learn_merges"], module)


def test_imports_that_only_the_taken_out_code_needed_go():
    code = "import re\nfrom llm_course.bpe import merge\nfrom llm_course.engine.a import (\n    b, c,\n)\nfrom llm_course.engine.d import e as f\nx = 1"
    assert your_turn.without_imports(code, {"c", "f"}) == code.replace("(\n    b, c,\n)", "c")
    assert your_turn.without_imports(code, set()) == "import re\nfrom llm_course.bpe import merge\nx = 1"
    many = [f"a_name_that_is_rather_long_{i}" for i in range(5)]
    long = your_turn.without_imports(f"from llm_course.engine.a import {', '.join(many)}, gone", set(many))
    assert max(map(len, long.splitlines())) < 88 and lent_by(long) == [set(many)]


def test_stubs_keep_signatures_and_lose_what_explains_a_body():
    made = your_turn.stubbed('def f(x,   # What goes in\n):\n    "Say é."\n    # a secret\n    y = x\n    return y   # told\n\ndef g(x): return x + 1\n\nN = 3\nclass C:\n    n = 1\n    def m(self):\n        def inner(): pass\n        return 2\n')
    stub = "raise NotImplementedError   # optional"
    assert made == f'def f(x,   # What goes in\n):\n    "Say é."\n    {stub}\n\ndef g(x): {stub}\n\nN = 3\nclass C:\n    n = 1\n    def m(self):\n        {stub}\n'
    assert your_turn.stubbed("def f(): return 1\ndef g(): return 2", {"g"}) == f"def f(): return 1\ndef g(): {stub}"
    both = your_turn.stubbed("class C:\n    def forward(self): return 2\n    def m(self): return 2", required={"C"})
    assert both == f"class C:\n    def forward(self): raise NotImplementedError   # required\n    def m(self): {stub}"


def filled_in(name, old="", new=""):
    "A page of the student's with the chapter's own code in its stubs, and perhaps one thing changed."
    done = filled.page(root/"nbs"/name)
    return json.dumps({"cells": [cell | {"source": f"{your_turn.MARK}\n" + done[cell["id"]].replace(old, new)} if source(cell).startswith(your_turn.MARK) else cell for cell in chapters[name][1]]})


def test_filled_in_pages_get_full_marks_and_a_mistake_its_hint(tmp_path, capsys):
    from llm_course.grading import main
    for name in "06_rmsnorm.ipynb", "14_schedule.ipynb": (tmp_path/name).write_text(filled_in(name), "utf-8", newline="\n")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "✓ RmsNorm" in out and "✓ cos_lr_scheduler" in out and "0 fail, 0 are not written yet" in out
    (tmp_path/"14_schedule.ipynb").write_text(filled_in("14_schedule.ipynb", "lr_max * it / warmup_iters", "lr_max * (it + 1) / warmup_iters"), "utf-8", newline="\n")
    with pytest.raises(SystemExit) as ended: main([str(tmp_path)])
    assert ended.value.code == 1 and "the climb is (it +1)/(w +0)" in (out := capsys.readouterr().out) and "✓ RmsNorm" in out, out
