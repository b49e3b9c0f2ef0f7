"""The anatomy of every notebook: what a reader may count on, whichever page they open.

Each check takes a page and yields its complaints. Every check runs on every page of the course; and every check is shown here
to complain about a page that was broken on purpose, for a check that cannot fail guards nothing."""
import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cached_property
from pathlib import Path

import book
import colab
import pytest

root = Path(__file__).parents[1]

project = tomllib.loads((root/"pyproject.toml").read_text("utf-8"))["project"]
distributions = lambda listed: {re.match(r"[\w-]+", name)[0].replace("-", "_").lower() for name in listed}
importable = distributions(project["dependencies"]) | {"IPython", "llm_course", *sys.stdlib_module_names}
extras = project["optional-dependencies"]
interop = distributions(extras["fast"] + extras["interop"] + extras["parquet"] + extras["serve"])   # exported functions may import these when they are called
own_path = re.compile(r"(?<![\w.])(?:/home/\w|/root/|/Users/\w|/tmp/\w|/content/\w)|[A-Z]:\\+Users|ipykernel_\d+|" + re.escape(str(root)))


class Page:
    "A notebook, with the questions that the checks ask of it."
    def __init__(self, name, cells, exported=None):
        self.name, self.cells, self._exported = name, [Cell(cell) for cell in cells], exported
        self.path = root/"nbs"/f"{name}.ipynb"

    @property
    def room(self): return book.room(self.path)
    @property
    def number(self): return book.number(self.path)
    @property
    def module(self):   # as its first cell says; the name of a page and that of its module agree, but for these
        own = {"00_tools": "checks", "reference/notation": "style"}.get(self.name, re.sub(r"^\d\d_", "", self.name.rpartition("/")[2]))
        return f"{self.room}.{own}" if self.room in ("engine", "grading") else own
    @property
    def is_chapter(self): return self.name not in ("index", "00_tour", "reference/glossary", "reference/references")   # a page with a module
    @property
    def code(self): return [cell for cell in self.cells if cell.kind == "code"]
    @property
    def exports(self): return [cell for cell in self.code if cell.is_export]
    @property
    def head(self): return self.cells[1 if self.is_chapter else 0].source
    @property
    def exercises(self):   # where they begin
        return next((i for i, cell in enumerate(self.cells) if cell.kind == "markdown" and re.search(r"^## Exercises", cell.source, re.M)), len(self.cells))
    @property
    def exported(self):   # name → was it made in this module? (else it is passed on from another)
        return names_of(root/"llm_course"/f"{self.module.replace('.', '/')}.py") if self._exported is None else self._exported


class Cell:
    "A cell, with its directives (`#| name: value`) read."
    def __init__(self, raw):
        self.raw, self.kind, self.source = raw, raw["cell_type"], "".join(raw["source"])
        self.outputs = raw.get("outputs", [])

    def __repr__(self): return f"cell {self.raw.get('id')!r}"

    @cached_property
    def directives(self):
        found = re.findall(r"^#\| *([\w-]+) *:? *(.*)$", self.source, re.M) if self.kind == "code" else []
        return {name: value.strip().strip("\"'") for name, value in found}
    @property
    def is_export(self): return bool(self.directives.keys() & {"export", "exports", "exporti"})
    @property
    def runs(self): return self.directives.get("eval") != "false"
    @cached_property
    def tree(self): return ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", self.source, flags=re.M))
    @property
    def is_check(self):   # checks, and perhaps what several of them need, under a name that begins with _
        others = [node for node in self.tree.body if not is_check(node)]
        return self.is_export and len(others) < len(self.tree.body) and all(getattr(node, "name", "").startswith("_") for node in others)
    @property
    def pictures(self): return [o for o in self.outputs if is_drawing(o) or any(kind.startswith("image/") for kind in o.get("data", {}))]


def is_drawing(output):
    "Is this SVG in HTML, whose parts may be links?"
    return "<svg" in "".join(output.get("data", {}).get("text/html", ""))


def is_check(node):
    "Is this a function under `@check_of(...)`? Only those may assert, and lean on torch's own layers."
    return isinstance(node, ast.FunctionDef) and any(isinstance(d, ast.Call) and getattr(d.func, "id", "") == "check_of" for d in node.decorator_list)


def names_of(path):
    "The public names of a module, checks aside, without importing it: each with whether the module itself makes it."
    tree = ast.parse(path.read_text("utf-8"))
    values = {t.id: node.value for node in tree.body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}
    passed_on = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    is_type_variable = lambda name: isinstance(values.get(name), ast.Call) and getattr(values[name].func, "id", "") == "TypeVar"
    hidden = {node.name for node in tree.body if is_check(node)}
    return {name: name not in passed_on for name in ast.literal_eval(values["__all__"])
            if not name.startswith("_") and name not in hidden and not is_type_variable(name)}


def at_import(tree):
    "All nodes that run when the cell runs: everything but the bodies of functions."
    todo = [tree]
    while todo:
        yield (node := todo.pop())
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): todo.extend(ast.iter_child_nodes(node))


def imported(node):
    "The modules that an import statement names."
    if isinstance(node, ast.Import): return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom): return ["." * node.level + (node.module or "")]
    return []


# ---- The checks

checks = {}

def check(function):
    checks[function.__name__] = function
    return function


@check
def begins_with_its_module(page):
    found = [cell.directives["default_exp"] for cell in page.code if "default_exp" in cell.directives]
    if page.is_chapter and page.cells[0].source != f"#| default_exp {page.module}": yield f"cell 0 must be '#| default_exp {page.module}'"
    if found != [page.module] * page.is_chapter: yield f"one module per notebook, and none for the front page and the tour, but found {found}"
    if not page.is_chapter and page.exports: yield "only chapters export"


@check
def opens_with_a_title_and_a_promise(page):
    if not re.match(r"# \S.*\n\n> \S.*[.?!]\n\n\S", page.head): yield "must open with '# Title', a blank line, '> promise.', a blank line and the badge"


@check
def opens_in_colab(page):
    raw = [cell.raw for cell in page.cells]
    if colab.prepare({"cells": raw, "metadata": {}}, page.name)["cells"] != raw: yield "lacks its badge below the promise, or the cell `colab` below that; run python web/colab.py"


@check
def folds_its_checks(page):
    for cell in page.exports:
        if cell.is_check and not (cell.source.startswith("#| exporti\n") and cell.directives.get("code-fold") == "true"):
            yield f"{cell} holds checks: let it begin with '#| exporti' and '#| code-fold: true'; what they claim is shown by verify"


# What is longer is cut at the right of a page; ruff looks for it, too.
@check
def lines_fit_a_page(page):
    "Each line of code that is too long, but for directives and the cell that Colab runs."
    for cell in page.code:
        for line in cell.source.splitlines() if cell.raw.get("id") != "colab" else ():
            if len(line) > 88 and not line.startswith("#|"): yield f"{cell} has a line of {len(line)} characters; 88 fit on a page: {line[:60]}…"


@check
def exports_name_the_modules_that_they_import(page):
    for cell in page.exports:
        for node in ast.walk(cell.tree):
            for name in imported(node):
                if name in ("", ".") or name.startswith(".") or (name == "llm_course" and "__version__" not in ast.unparse(node)):
                    yield f"{cell}: import from llm_course.<module>, not from {name or '.'}"


@check
def exports_are_plain_library_code(page):
    allowed = {"functional", "Module", "Parameter", "Buffer", "ModuleList", "ModuleDict", "ParameterList", "Sequential", "init", "parallel"}
    for cell in page.exports:
        checks = [top for top in cell.tree.body if isinstance(top, ast.FunctionDef) and any(called(d) == "check_of" for d in top.decorator_list if isinstance(d, ast.Call))]
        for node in (node for top in cell.tree.body if top not in checks for node in ast.walk(top)) if not cell.is_check else ():
            if isinstance(node, ast.Assert): yield f"{cell}: raise an error that says what is wrong, instead of assert"
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*": yield f"{cell}: name what you import"
            if isinstance(node, ast.ImportFrom) and node.module == "__future__": yield f"{cell}: __future__ turns shapes into strings"
            if isinstance(node, ast.Attribute) and dotted(node.value) in ("F", "nn.functional") and node.attr != "scaled_dot_product_attention":
                yield f"{cell}: {dotted(node)} is torch's own; it is for checks"   # but for the one kernel that Python cannot spell
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn" and node.attr not in allowed:
                yield f"{cell}: nn.{node.attr} is torch's own; it is for checks"


@check
def exports_name_no_other_module(page):
    for cell in page.exports:
        for name in "export", "exports", "exporti":
            if cell.directives.get(name): yield f"{cell} exports to {cell.directives[name]}; one module per notebook"


@check
def imports_stand_alone(page):
    for cell in page.code:
        has_imports = any(imported(node) for node in cell.tree.body)
        other = [node for node in cell.tree.body if not imported(node) and (cell.is_export or not is_call(node))]
        if has_imports and other and cell.runs: yield f"{cell} mixes imports with other code (only a call such as set_style() may stand below them)"


@check
def needs_only_its_own_dependencies(page):
    own = distributions(extras["fast"]) if colab.EXTRAS.get(page.name) == "[fast]" else set()   # Colab is told
    for cell in page.code:
        at_once = set(at_import(cell.tree))
        for_checkers = {node for part in ast.walk(cell.tree) if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING" for node in ast.walk(part)}
        for node in set(ast.walk(cell.tree)) - for_checkers:
            allowed = importable | own | (interop if cell.is_export and node not in at_once else set())
            for name in imported(node):
                if cell.runs and name.split(".")[0] not in allowed: yield f"{cell} imports {name}, which llm_course does not depend on"


@check
def ran_without_error(page):
    for cell in page.code:
        for out in cell.outputs:
            if out["output_type"] == "error": yield f"{cell} failed: {out.get('ename')}"
            if out.get("name") == "stderr" and not "".join(out["text"]).startswith("error: "):   # a command's own refusal may be shown
                yield f"{cell} wrote to stderr: {''.join(out['text'])[:80]}"
        if not cell.runs and cell.outputs: yield f"{cell} has outputs, but is not to be run"


@check
def is_clean(page):
    for cell in page.code:
        if cell.raw.get("execution_count") is not None or any(o.get("execution_count") is not None for o in cell.outputs):
            yield f"{cell} has an execution count; run nbdev_clean"
    ids = Counter(cell.raw.get("id") for cell in page.cells)
    if again := [i for i, n in ids.items() if n > 1]: yield f"cells share the ids {again}"


@check
def outputs_are_committed(page):
    for cell in page.code:
        if cell.runs and shows_something(cell) and not cell.outputs: yield f"{cell} shows something, but its output is not there; run the notebook"


@check
def outputs_are_short(page):
    for cell in page.code:
        for out in cell.outputs:
            lines = "".join(out.get("text", out.get("data", {}).get("text/plain", ""))).splitlines()
            if len(lines) > 40: yield f"{cell} prints {len(lines)} lines; show less"


@check
def pictures_are_labelled(page):
    for cell in page.code:
        if not (cell.pictures or "label" in cell.directives): continue
        if not cell.directives.get("label", "").startswith("fig-"): yield f"{cell} draws, and needs '#| label: fig-…'"
        drawing = len(cell.pictures) == 1 and is_drawing(cell.pictures[0])
        if drawing and not re.search(r'<svg[^>]* aria-label="[^"]{20,}".*<desc[^>]*>[^<]{20,}', "".join(cell.pictures[0]["data"]["text/html"]), re.S): yield f"{cell} draws in HTML, and needs an aria-label and a <desc>"
        for name in "fig-cap", *["fig-alt"] * (not drawing):
            if len(cell.directives.get(name, "")) < 20: yield f"{cell} draws, and needs '#| {name}: …' that says something"
        if cell.directives.get("code-fold") != "true": yield f"{cell} draws, and needs '#| code-fold: true'"
        if not drawing and (len(cell.pictures) != 1 or "image/svg+xml" not in cell.pictures[0]["data"]): yield f"{cell} must show one picture, as SVG"


@check
def refers_to_its_own_pictures(page):
    labels = {cell.directives.get("label") for cell in page.code}
    for cell in page.cells:
        if cell.kind != "markdown": continue
        for name in re.findall(r"(?<![\w`])@(fig-[\w-]+)", cell.source):
            if name not in labels: yield f"{cell} refers to @{name}, which is not on this page"


@check
def has_a_picture(page):
    if page.is_chapter and page.name != "00_tools" and page.room in ("lesson", "grading") and not any(cell.pictures for cell in page.code): yield "a chapter needs a picture"


@check
def checks_its_claims(page):
    asserts = [node for cell in page.cells[:page.exercises] if cell.kind == "code" and cell.runs and not cell.is_export for node in ast.walk(cell.tree)
               if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and called(node).startswith("assert"))]
    if page.is_chapter and len(asserts) < 3: yield f"a chapter needs three checks or more, not {len(asserts)}"


@check
def has_its_sections(page):
    headings = {line[3:].strip() for cell in page.cells if cell.kind == "markdown" for line in cell.source.splitlines() if line.startswith("## ")}
    if page.is_chapter and page.name != "00_tools" and page.room in ("lesson", "grading") and (missing := {"Roads not taken", "Exercises", "What we exported"} - headings): yield f"has no section {sorted(missing)}"


@check
def ends_in_exercises(page):
    if not page.is_chapter or page.name == "00_tools" or page.room not in ("lesson", "grading"): return
    tasks, tried = [], set()   # of each its number, and what follows it
    for cell in page.cells[page.exercises:]:
        if cell.kind == "markdown":
            for _, number in re.findall(r"^(<details><summary>Hint)|^\*\*(\d)\. ", cell.source.partition("## What we exported")[0], re.M):
                if number: tasks.append((int(number), []))
                elif tasks: tasks[-1][1].append("hint")
        elif not cell.runs and not cell.is_export: yield f"{cell} stands among the exercises and is not run"
        elif cell.directives.get("code-summary") == "Solution":
            if tasks: tasks[-1][1].append("solution")
            if cell.directives.get("code-fold") != "true" or not cell.raw["metadata"].get("jupyter", {}).get("source_hidden"): yield f"{cell}: fold the solution"
            if not any(isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and called(node) in tried) for node in ast.walk(cell.tree)): yield f"{cell} is not tried"
        else: tried |= {node.name for node in cell.tree.body if isinstance(node, ast.FunctionDef) and any(called(d) == "exercise" for d in node.decorator_list if isinstance(d, ast.Call))}
    if not 2 <= len(tasks) <= 4 or [number for number, _ in tasks] != [*range(1, len(tasks) + 1)]: yield f"needs two to four exercises, numbered from one, but has {[number for number, _ in tasks]}"
    for number, found in tasks:
        if found != ["hint", "solution"]: yield f"exercise {number} needs a hint and then a solution, but has {found}"


@check
def tells_what_it_exported(page):
    if not page.is_chapter: return
    text = "\n\n".join(cell.source for cell in page.cells if cell.kind == "markdown").partition("## What we exported")[2]
    firsts = [re.split(r"(?<!\\)\|", row)[1] for row in text.splitlines() if row.startswith("|")][2:]
    named = {name for first in firsts for name in re.findall(r"`([A-Za-z_]\w*)[^`]*`", first.replace("`python -m", ""))}
    made = {name for name, own in page.exported.items() if own}
    if forgotten := made - named: yield f"'What we exported' forgets {sorted(forgotten)}"
    if unknown := named - page.exported.keys(): yield f"'What we exported' names {sorted(unknown)}, which llm_course.{page.module} does not export"


# A figure in prose that no cell computes and no file holds will be wrong one day. These may be typed, for they were not measured.
TYPED = {
    ("03_data", "63 %"): "1 - 1/e, derived below it", ("03_data", "30 % of this text"): "60 of 200 bytes, as the cell above has it", ("03_data", "99 %"): "asked for in an exercise",
    ("12_loss", "2.40 to 2.75 nats"): "given in an exercise",
    ("12_loss", "720 nats"): "300 tokens of 2.40 nats", ("12_loss", "0.047 bits per byte"): "the answer to that exercise, which a cell checks",
    ("engine/muon", "300 times longer"): "3 / 0.01", ("engine/model_files", "1.3 times the weights"): "the limit that the tests hold",
    ("grading/mistakes_text", "99 %"): "a supposed case",
}
figure = re.compile(r"(?<![\w.,$\\^_{:/-])\d[\d,]*(?:\.\d+)?(?:(?: to | and | or |–)\d[\d,]*(?:\.\d+)?)?\s?"
                    r"(?:(?:[mµun]?s|seconds?|minutes?|[kMG]i?B/s|[kMGT]?FLOPs?/s|tok(?:en)?s?(?:/s| a second| per second)|nats?|bits? per byte)\b|×(?! ?\d)|%|times (?:as|the|faster|slower|longer|shorter)\b)")


@check
def no_power_stands_on_a_name(page):
    r"Browsers draw the exponent of `\operatorname{f}^2(z)` low: pandoc puts an invisible sign into its base."
    for cell in page.cells:
        if cell.kind != "markdown": continue
        for found in re.finditer(r"\\operatorname\*?\{[^}]*\}\^", cell.source): yield f"{cell} has {found[0]!r}: put the power behind the argument"


@check
def types_no_measurement(page):
    for cell in page.cells:
        if cell.kind != "markdown" or page.name == "reference/references": continue
        text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)", " ", cell.source, flags=re.S)
        for (name, phrase) in TYPED:
            if name == page.name: text = text.replace(phrase, " ")
        for found in figure.finditer(text): yield f"{cell} types {found[0]!r}: let a cell compute it, or read it by `records` from where it was written down"


def test_what_may_be_typed_is_still_there():
    for name, phrase in TYPED: assert any(phrase in cell.source for cell in pages[name].cells), (name, phrase)


@check
def names_no_ones_machine(page):
    for cell in page.cells:
        shown = [out.get("text", "") for out in cell.outputs] + [value for out in cell.outputs for kind, value in out.get("data", {}).items() if kind != "image/png"]
        for part in [cell.source, *map(flat, shown)]:
            if found := own_path.search(part): yield f"{cell} names a path of one machine: {found[0]}"


def flat(field): return "".join(field) if isinstance(field, (str, list)) else json.dumps(field)

def dotted(node): return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")

def is_call(node): return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)

def called(node): return getattr(node.func, "id", getattr(node.func, "attr", ""))

def shows_something(cell):
    "Does it print, or end in a value? (What a call returns cannot be known from here, so a last line that calls does not count.)"
    def prints(body):
        for node in body:
            if is_call(node) and called(node.value) == "print": yield node
            elif isinstance(node, (ast.For, ast.With)): yield from prints(node.body)
    body = cell.tree.body
    last = body and isinstance(body[-1], ast.Expr) and not isinstance(body[-1].value, (ast.Call, ast.Constant)) and not cell.source.rstrip().endswith(";")
    return bool(last or any(prints(body)))


# ---- Every page

pages = {book.name(path): Page(book.name(path), book.cells(path)) for path in book.pages()}


@pytest.mark.parametrize("name", checks)
@pytest.mark.parametrize("page", pages.values(), ids=list(pages))
def test_page(page, name):
    complaints = list(checks[name](page))
    assert not complaints, "\n".join(complaints)


def test_the_list_of_pages_is_the_book():
    tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "nbs/*.ipynb"], cwd=root, capture_output=True, text=True, encoding="utf-8", check=True).stdout.split()
    assert sorted(path.relative_to(root).as_posix() for path in book.pages()) == sorted(path for path in tracked if not path.startswith("nbs/your_turn/") and (root/path).exists())
    assert len({path.stem for path in book.pages()}) == len(book.pages())   # a name says which page


def test_nobody_lists_pages_alone():
    "A tool that looks for notebooks by itself misses those that lie elsewhere, in silence."
    for path in [*root.glob("web/*.py"), *root.glob("tests/*.py"), *root.glob("bench/**/*.py")]:
        found = re.findall(r"r?glob\([^)]*ipynb[^)]*\)", path.read_text("utf-8"))
        assert not found or path.name in ("test_your_turn.py", "test_site.py"), (path, found)   # these look at what was made from the pages


def test_lessons_are_numbered_in_reading_order_without_gaps_but_for_chapters_to_come():
    numbers = [page.number for page in pages.values() if page.number]
    assert numbers == sorted(set(numbers)) and set(range(1, max(numbers))) - set(numbers) <= {20, 21, 22}
    assert not [page.name for page in pages.values() if (page.number is None) != (page.room != "lesson" or page.name == "index")]


@pytest.mark.parametrize(("line", "found"), [("x = 1" + " + 1"*30, True), ("x = 1" + " + 1"*20 + "  # why", True), ('#| fig-cap: "' + "a "*50 + '"', False), ("x = 1", False)])
def test_ruff_finds_a_line_that_is_too_long_for_a_page(line, found):
    page = {"cells": [cell(line)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    words = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", "nbs/06_rmsnorm.ipynb", "-"]
    told = subprocess.run(words, input=json.dumps(page), capture_output=True, text=True, encoding="utf-8", cwd=root)
    assert told.returncode == found and ("E501" in told.stdout) == found, told.stdout + told.stderr


def test_a_label_is_used_once_in_the_book():
    labels = Counter(cell.directives["label"] for page in pages.values() for cell in page.code if "label" in cell.directives)
    assert not [label for label, n in labels.items() if n > 1]


def test_each_module_has_its_notebook_and_each_chapter_its_module():
    files = [path.relative_to(root/"llm_course").with_suffix("") for path in (root/"llm_course").rglob("*.py") if not path.name.startswith("_")]
    in_package = {".".join(path.parts) for path in files}
    assert in_package == {page.module for page in pages.values() if page.is_chapter}


# ---- Every check can fail

def cell(source, kind="code", outputs=(), **rest):
    found = {"cell_type": kind, "id": f"c{abs(hash(source))}", "metadata": {}, "source": source.splitlines(keepends=True)}
    return found | ({"execution_count": None, "outputs": list(outputs)} if kind == "code" else {}) | rest

svg = {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": ["<svg></svg>"]}}
stream = {"output_type": "stream", "name": "stdout", "text": ["1\n"]}
picture = '#| code-fold: true\n#| label: fig-x\n#| fig-cap: "Flat on the left, steep on the right."\n#| fig-alt: "A line, flat and then steep."\nplt.plot(x);'

good = {
    "module": cell("#| default_exp rmsnorm"),
    "head": cell("# Title\n\n> A promise.\n\n[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
                 "(https://colab.research.google.com/github/llm-course/llm_course/blob/main/nbs/06_rmsnorm.ipynb)", "markdown"),
    "colab": cell(colab.install("06_rmsnorm"), id="colab"),
    "imports": cell("#| export\nimport torch\nfrom llm_course.linear import Linear"),
    "export": cell("#| exports\ndef f(x):\n    from llm_course.transformer import late\n    return x"),
    "checks": cell("assert f(1) == 1\nassert f(2) == 2\nassert_close(f(3), 3)"),
    "print": cell("print(f(1))", outputs=[stream]),
    "value": cell("f(1), f(2)", outputs=[{"output_type": "execute_result", "metadata": {}, "execution_count": None, "data": {"text/plain": ["(1, 2)"]}}]),
    "picture": cell(picture, outputs=[svg]),
    "stub": cell("#| eval: false\nanswer = ..."),
    "prose": cell("See @fig-x.\n\n## Roads not taken\n\nNone.\n\n## Exercises\n\n**1. Easy.** Say one.", "markdown"),
    "task": cell("one = ...\n\n@exercise(one)\ndef is_one(one): assert one == 1"),
    "hint": cell("<details><summary>Hint</summary>\n\nCount.\n\n</details>", "markdown"),
    "solution": cell('#| code-fold: true\n#| code-summary: "Solution"\nis_one(1)', metadata={"jupyter": {"source_hidden": True}}),
    "task-2": cell("**2. Hard.** Say two.\n\n<details><summary>Hint</summary>\n\nCount on.\n\n</details>", "markdown"),
    "solution-2": cell('#| code-fold: true\n#| code-summary: "Solution"\nassert f(2) == 2', metadata={"jupyter": {"source_hidden": True}}),
    "table": cell("## What we exported\n\n| symbol | what |\n|---|---|\n| `f(x)` | itself |", "markdown"),
}

def page_of(cells, name="06_rmsnorm"): return Page(name, [c for c in cells.values() if c], exported={"f": True})

def without(*parts): return {key: value for key, value in good.items() if key not in parts}

def replaced(part, old, new):
    text = "".join(good[part]["source"])
    assert old in text
    return good | {part: good[part] | {"source": text.replace(old, new)}}

def with_output(part, *outputs): return good | {part: good[part] | {"outputs": list(outputs)}}

broken = [
    ("begins_with_its_module", without("module")),
    ("begins_with_its_module", replaced("module", "rmsnorm", "norms")),
    ("begins_with_its_module", good | {"again": cell("#| default_exp rmsnorm\n")}),
    ("opens_with_a_title_and_a_promise", replaced("head", "> A promise.", "A promise.")),
    ("opens_with_a_title_and_a_promise", replaced("head", "promise.", "promise")),
    ("opens_in_colab", replaced("head", "06_rmsnorm.ipynb", "6_rmsnorm.ipynb")),
    ("opens_in_colab", replaced("head", "blob/main", "blob/master")),
    ("opens_in_colab", replaced("head", "[![Open in Colab]", "[![Open]")),
    ("opens_in_colab", replaced("colab", "torch=={version(\"torch\")}", "torch")),
    ("opens_in_colab", without("colab")),
    ("folds_its_checks", good | {"checked": cell('#| exports\n@check_of("f")\ndef holds(f): assert f(1) == 1')}),
    ("folds_its_checks", good | {"checked": cell('#| exporti\n@check_of("f")\ndef holds(f): assert f(1) == 1')}),
    ("lines_fit_a_page", replaced("export", "return x", "return x  # " + "long " * 20)),
    ("exports_name_the_modules_that_they_import", replaced("imports", "llm_course.linear", "llm_course")),
    ("exports_name_the_modules_that_they_import", replaced("imports", "llm_course.linear", ".linear")),
    ("exports_name_the_modules_that_they_import", replaced("export", "llm_course.transformer", "llm_course")),
    ("exports_are_plain_library_code", replaced("export", "return x", "assert x")),
    ("exports_are_plain_library_code", replaced("imports", "import Linear", "import *")),
    ("exports_are_plain_library_code", replaced("imports", "import torch", "from __future__ import annotations")),
    ("exports_are_plain_library_code", replaced("export", "return x", "return F.silu(x)")),
    ("exports_are_plain_library_code", replaced("export", "return x", "return nn.functional.silu(x)")),
    ("exports_are_plain_library_code", replaced("export", "return x", "return nn.Linear(x, x)")),
    ("exports_name_no_other_module", replaced("export", "exports", "exports linear")),
    ("imports_stand_alone", replaced("imports", "import torch", "import torch\nset_style()")),
    ("imports_stand_alone", replaced("checks", "assert f(1) == 1", "import math")),
    ("needs_only_its_own_dependencies", replaced("imports", "import torch", "import pandas")),
    ("needs_only_its_own_dependencies", replaced("imports", "import torch", "import transformers")),
    ("needs_only_its_own_dependencies", replaced("export", "llm_course.transformer", "pandas")),
    ("needs_only_its_own_dependencies", replaced("checks", "assert f(1)", "import transformers; assert f(1)")),
    ("ran_without_error", with_output("checks", {"output_type": "error", "ename": "ValueError"})),
    ("ran_without_error", with_output("checks", {**stream, "name": "stderr"})),
    ("ran_without_error", with_output("stub", stream)),
    ("is_clean", good | {"print": good["print"] | {"execution_count": 3}}),
    ("is_clean", good | {"twice": good["print"]}),
    ("outputs_are_committed", with_output("print")),
    ("outputs_are_committed", with_output("value")),
    ("outputs_are_committed", good | {"loop": cell("for i in 1, 2:\n    print(i)")}),
    ("outputs_are_short", with_output("print", {**stream, "text": ["1\n"] * 41})),
    *[("pictures_are_labelled", replaced("picture", *change)) for change in
      [("label: fig-x", "label: x"), ("fig-cap:", "cap:"), ("fig-alt:", "alt:"), ("Flat on the left, steep on the right.", "Flat."), ("fold: true", "fold: false")]],
    ("pictures_are_labelled", with_output("picture")),
    ("pictures_are_labelled", with_output("picture", svg, svg)),
    ("pictures_are_labelled", with_output("picture", {**svg, "data": {"image/png": "AAAA"}})),
    ("pictures_are_labelled", with_output("checks", svg)),
    ("pictures_are_labelled", with_output("picture", {**svg, "data": {"text/html": '<svg aria-label="A line that bends at the end"></svg>'}})),
    *[("types_no_measurement", replaced("prose", "None", f"It took {text}.")) for text in
      ("3 ms", "40 µs", "2.5 s", "12 seconds", "4 to 5 minutes", "6.5 MB/s", "1,000 tok/s", "30 GFLOP/s", "1.4 ×", "7 %", "2 times as long", "1.489 nats", "1.52 bits per byte")],
    *[("no_power_stands_on_a_name", replaced("prose", "None", f"$\\operatorname{star}{{relu}}^2(z)$.")) for star in ("", "*")],
    ("refers_to_its_own_pictures", replaced("prose", "@fig-x", "@fig-y")),
    ("has_a_picture", with_output("picture")),
    ("checks_its_claims", replaced("checks", "assert f(2) == 2", "f(2)")),
    ("checks_its_claims", good | {"checks": cell("#| eval: false\n" + "".join(good["checks"]["source"]))}),
    ("ends_in_exercises", without("task-2", "solution-2")),
    ("ends_in_exercises", without("hint")),
    ("ends_in_exercises", without("solution")),
    ("ends_in_exercises", without("task")),
    ("ends_in_exercises", good | {"hint": good["solution"], "solution": good["hint"]}),
    ("ends_in_exercises", good | {"task": cell("#| eval: false\n" + "".join(good["task"]["source"]))}),
    ("ends_in_exercises", good | {"solution": good["solution"] | {"metadata": {}}}),
    ("ends_in_exercises", replaced("solution", "fold: true", "fold: false")),
    ("ends_in_exercises", replaced("solution-2", "assert f(2) == 2", "f(2)")),
    ("ends_in_exercises", replaced("task-2", "**2. Hard", "**3. Hard")),
    *[("has_its_sections", replaced(*change)) for change in
      [("prose", "## Roads not taken", ""), ("prose", "## Exercises", "### Exercises"), ("table", "What we exported", "Exports")]],
    ("tells_what_it_exported", without("table")),
    ("tells_what_it_exported", replaced("table", "`f(x)`", "`g(x)`")),
    ("tells_what_it_exported", replaced("table", "`f(x)`", "`f(x)`, `g`")),
    ("names_no_ones_machine", replaced("prose", "None", "See /home/ada/notes")),
    ("names_no_ones_machine", with_output("print", {**stream, "text": ["C:\\Users\\ada\n"]})),
    ("names_no_ones_machine", with_output("print", {**stream, "text": ["/tmp/ipykernel_1/2.py:3: Warning\n"]})),
    ("names_no_ones_machine", with_output("value", {"output_type": "execute_result", "data": {"text/plain": ["PosixPath('/root/x')"]}})),
]


def test_a_sound_page_passes():
    assert {name: list(function(page_of(good))) for name, function in checks.items()} == {name: [] for name in checks}


@pytest.mark.parametrize("name, cells", broken, ids=[f"{name}-{i}" for i, (name, _) in enumerate(broken)])
def test_a_broken_page_does_not(name, cells):
    assert list(checks[name](page_of(cells)))


def test_every_check_was_seen_to_fail():
    assert {name for name, _ in broken} == checks.keys()


def test_the_tour_and_the_front_page_export_nothing():
    for name in "00_tour", "index":
        assert list(checks["begins_with_its_module"](page_of(good, name)))
        assert not list(checks["begins_with_its_module"](page_of(without("module", "imports", "export"), name)))


def test_public_names_are_read_without_importing(tmp_path):
    (tmp_path/"m.py").write_text("from a import b\nT = TypeVar('T')\n__all__ = ['T', 'b', 'f', '_g']\ndef f(): ...\n", "utf-8", newline="\n")
    assert names_of(tmp_path/"m.py") == {"b": False, "f": True}


def test_the_front_page_lists_every_chapter_by_its_title():
    text = "\n".join(cell.source for cell in pages["index"].cells if cell.kind == "markdown")
    rows = re.findall(r"^\| \[(?:(\d\d) )?(.+?)\]\(([\w/]+)\.ipynb\) \| .+ \|$", text, re.M)
    wanted = [(f"{page.number:02}" if page.number is not None else "", page.head.partition("\n")[0][2:], name) for name, page in pages.items() if page.room != "reference" and name != "index"]
    assert rows == wanted
