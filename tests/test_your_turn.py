"""The course with its parts taken out is in step with the course, and holds stubs where the exported code was."""
import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("your_turn", root/"web"/"your_turn.py")
your_turn = importlib.util.module_from_spec(spec)
spec.loader.exec_module(your_turn)
written = your_turn.pages()
chapters = {name: (json.loads((root/"nbs"/name).read_text("utf-8"))["cells"], json.loads(text)["cells"]) for name, text in written.items() if name != "index.ipynb"}
each = pytest.mark.parametrize("name", chapters)


@pytest.fixture(autouse=True)
def no_check_of_a_page_stays():
    "A page that is executed here enters its own checks; the next test finds the package's."
    from llm_course.checks import CHECKS
    before = {component: dict(checks) for component, checks in CHECKS.items()}
    yield
    CHECKS.clear()
    CHECKS.update(before)


source = lambda cell: "".join(cell["source"])


def test_the_committed_pages_are_what_is_generated():
    committed = {path.name: path.read_text("utf-8") for path in (root/"nbs"/"your_turn").glob("*.ipynb")}
    assert committed.keys() == written.keys()
    stale = [name for name in written if committed[name] != written[name]]
    assert not stale, f"{stale} differ from the chapters; run python web/your_turn.py"


def emptied(code):
    "The tree of some code without what its functions do."
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef): node.body = [s for s in node.body[:1] if ast.get_docstring(node)] or [ast.Pass()]
    return ast.dump(tree)


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
        code, stub = re.sub(r"^#\|.*\n", "", code, flags=re.M), left[cell["id"]].removeprefix(f"{your_turn.MARK}\n")
        if "@check_of(" in code:   # checks stay; what they call, which may be an answer, is lent
            tree, left_over = ast.parse(code).body, ast.parse(stub).body
            lent = [node.name for node in tree if isinstance(node, ast.FunctionDef) and node.name.startswith("_")]
            assert [alias.name for node in left_over if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name.startswith("_")] == lent
            whole = [ast.dump(node) for node in tree if getattr(node, "name", "") not in lent]
            assert [ast.dump(node) for node in left_over][len(lent):] == whole
        else:
            assert emptied(stub) == emptied(code)   # names, signatures, shapes, docstrings, tables
            for node in your_turn.bodies(ast.parse(stub)):
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
    from llm_course.grading.grading import CHECKS, learn_mistakes
    learn_mistakes()
    asked = {found for _, after in chapters.values() for found in re.findall(r"(\w+)=\1", source(after[-1]))}
    beyond = {"answer_loss", "dpo_loss", "advantages", "policy_loss"}   # of lessons after the last that has stubs
    assert CHECKS.keys() - asked == beyond | {"Muon", "KVCache", "LoraLinear", "minhash", "flash_forward"} and asked <= CHECKS.keys()   # those are built in the engine room


def test_a_page_runs_to_its_end_and_says_that_nothing_is_written():
    made, wrong = {}, []
    for cell in chapters["08_softmax.ipynb"][1]:
        if cell["cell_type"] != "code" or cell["id"] == "colab" or "plt." in source(cell): continue
        try: exec(source(cell), made)
        except NotImplementedError: pass
        except Exception as error: wrong.append((cell["id"], error))
    from llm_course.grading import check
    assert not [error for _, error in wrong if not isinstance(error, NameError)], wrong   # what a stub was to make is not there
    assert not check(Softmax=made["Softmax"]).passed


def test_stubs_keep_signatures_and_lose_what_explains_a_body():
    made = your_turn.stubbed('def f(x,   # What goes in\n):\n    "Say é."\n    # a secret\n    y = x\n    return y   # told\n\ndef g(x): return x + 1\n\nN = 3\nclass C:\n    n = 1\n    def m(self):\n        def inner(): pass\n        return 2\n')
    assert made == 'def f(x,   # What goes in\n):\n    "Say é."\n    raise NotImplementedError\n\ndef g(x): raise NotImplementedError\n\nN = 3\nclass C:\n    n = 1\n    def m(self):\n        raise NotImplementedError\n'
    assert your_turn.stubbed("def f(): return 1\ndef g(): return 2", {"g"}) == "def f(): return 1\ndef g(): raise NotImplementedError"


def filled_in(name, old="", new=""):
    "A page of the student's with the chapter's own code in its stubs, and perhaps one thing changed."
    before, after = chapters[name]
    ours = {cell["id"]: re.sub(r"^#\|.*\n", "", source(cell), flags=re.M) for cell in before}
    done = [cell | {"source": f"{your_turn.MARK}\n" + ours[cell["id"]].replace(old, new)} if source(cell).startswith(your_turn.MARK) else cell for cell in after]
    return json.dumps({"cells": done})


def test_filled_in_pages_get_full_marks_and_a_mistake_its_hint(tmp_path, capsys):
    from llm_course.grading import main
    for name in "06_rmsnorm.ipynb", "14_schedule.ipynb": (tmp_path/name).write_text(filled_in(name), "utf-8", newline="\n")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "✓ RmsNorm" in out and "✓ cos_lr_scheduler" in out and "0 fail, 0 are not written yet" in out
    (tmp_path/"14_schedule.ipynb").write_text(filled_in("14_schedule.ipynb", "lr_max * it / warmup_iters", "lr_max * (it + 1) / warmup_iters"), "utf-8", newline="\n")
    with pytest.raises(SystemExit) as ended: main([str(tmp_path)])
    assert ended.value.code == 1 and "step 0 has the rate 0" in (out := capsys.readouterr().out) and "✓ RmsNorm" in out, out
