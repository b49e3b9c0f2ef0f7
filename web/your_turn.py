"""Take the parts out of the chapters: write to `nbs/your_turn/` each lesson with stubs where the exported code was."""
import ast
import json
import re
from collections.abc import Container
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from book import cells as cells_of
from book import module, parts, room, root
from book import pages as pages_of_the_course

here = root/"nbs"/"your_turn"
settings = ConfigParser()
settings.read(root/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

STUB = "raise NotImplementedError"
WIDTH = 88   # of a line of code at most, as on every page
ASKED = {"__init__", "forward", "update", "load_state_dict", "encode", "decode", "encode_iterable"}   # methods of a graded class without which it is not right; test_your_turn.py tries each, and all others
MARK = "#| export-yours"   # what `python -m llm_course.grading` reads of a page; nbdev passes it over
HOW = ("This is a chapter with its parts taken out: the prose and the checks are here, the code is yours. Write a part where it says "
       "`raise NotImplementedError`. What is *required* is graded in the last cell. All else is *optional*, and so are the exercises. To go on "
       "without writing a part, import it instead, as in `from llm_course.{module} import {lent}`. A cell fails as long as a part that it "
       "needs is missing, and the others go on; what earlier chapters have made comes from the package. The page as it was meant, with its "
       "pictures, is [here]({page}).")


def badge(path: str) -> str:
    "Open a notebook in Colab."
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab(path)})"


def colab(path: str) -> str:
    return f"https://colab.research.google.com/github/{settings['user']}/{settings['repo']}/blob/{settings['branch']}/{path}"


# ---- One cell

def stubbed(source: str, names: set[str] | None = None, required: Container[str] = ()) -> str:
    """The same code with a stub for the body of each function and method, or of those named; signatures, docstrings and tables stay.

    A stub says whether it is `required`: a function that is, or a method in `ASKED` of a class that is."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines: starts.append(starts[-1] + len(line))
    place = lambda line, column: starts[line - 1] + len(lines[line - 1].encode()[:column].decode())   # ast counts bytes
    for owner, node in reversed(bodies(parsed(source), names)):
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if not body: continue
        first, end = place(body[0].lineno, body[0].col_offset), place(node.end_lineno, node.end_col_offset)
        decorators = getattr(body[0], "decorator_list", [])
        if decorators: first = place(decorators[0].lineno, decorators[0].col_offset - 1)
        before = re.sub(r"(\n[ \t]*)(?:#[^\n]*\n[ \t]*)+\Z", r"\1", source[:first])   # what is said of a body goes with it
        needed = owner in required and (owner == node.name or node.name in ASKED)
        told = f"{STUB}   # {'required' if needed else 'optional'}"
        source = before + told + re.sub(r"\A[ \t]*#[^\n]*", "", source[end:])
    return source


def bodies(tree: ast.AST, names: set[str] | None = None, owner: str = "") -> list[tuple[str, ast.FunctionDef]]:
    "The functions of a cell and the methods of its classes, in order, or those that are named, each with its own name or its class's; functions inside functions aside."
    found = []
    for node in ast.iter_child_nodes(tree):
        name = getattr(node, "name", "")
        ours = names is None or name in names
        if isinstance(node, ast.FunctionDef): found += [(owner or name, node)] * ours
        elif isinstance(node, ast.ClassDef): found += bodies(node, None, owner or name) * ours
        elif not isinstance(node, ast.expr): found += bodies(node, names, owner)
    return found


def optional(source: str) -> str:
    "An exercise whose open places say that nobody has to fill them."
    source = re.sub(rf"{STUB}$", rf"{STUB}   # optional", source, flags=re.M)
    return re.sub(r"^(\w[\w, ]* = \.\.\.(?:, \.\.\.)*)(?:\s*# (.*))?$", lambda found: f"{found[1]}   # optional" + (f": {found[2]}" if found[2] else ""), source, flags=re.M)


def fitted(source: str) -> str:
    "The same code; where a line would be too long with its stub, the stub gets a line of its own."
    def split(found: re.Match) -> str: return found[0] if len(found[0]) <= WIDTH else f"{found[1]}{found[2]}\n{found[1]}    {found[3]}"
    return re.sub(rf"^( *)(def .*:) ({STUB}.*)$", split, source, flags=re.M)


def call(name: str, words: list[str]) -> str:
    "A call on one line, or with a line for each argument where one would be too long."
    on_one = f"{name}({', '.join(words)})"
    return on_one if len(on_one) <= WIDTH else "{}(\n    {},\n)".format(name, ",\n    ".join(words))


def components(source: str) -> list[str]:
    "What a cell has checks of."
    return re.findall(r'^@check_of\("(\w+)"\)', source, re.M)


@cache
def checked_elsewhere() -> list[str]:
    "What the pages on grading have checks of: parts of lessons whose pages hold none."
    found = []
    for path in pages_of_the_course():
        if room(path) == "grading":
            for cell in cells_of(path): found += components("".join(cell["source"]))
    return found


def is_export(source: str) -> bool: return bool(re.search(r"^#\| export[si]?$", source, re.M))


def parsed(source: str) -> ast.Module: return ast.parse(re.sub(r"^(\s*)[!%].*", r"\1pass", source, flags=re.M))


def names_in(tree: ast.Module) -> set[str]: return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def converted(cell: dict, exported: set[str], required: set[str], here_too: set[str], module: str) -> str | None:
    "A cell as the student gets it; `None` for one that goes. Earlier versions of what is exported are taken out, too."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        source = re.sub(r"<details><summary>What it means</summary>.*?</details>\s*", "", source, flags=re.S)
        source = re.sub(r"\]\(([\w/]+)(?=\.ipynb)", lambda found: found[0] if found[1] in here_too else f"](../{found[1]}", source)   # pages that stay as they are lie one folder up
        return source.partition("## What we exported")[0].strip() or None
    if '#| code-summary: "Solution"' in source or source.startswith("#| default_exp"): return None
    code = re.sub(r"^#\|.*\n", "", source, flags=re.M)
    if not is_export(source): return optional(stubbed(code, exported, required)).strip("\n") or None
    if re.search(r"^(if __name__ ==|_all_ =)", code, re.M): return None
    if components(code): return lent(code.strip("\n"), module)
    return f"{MARK}\n" + stubbed(code, required=required).strip("\n")


def lent(code: str, module: str) -> str:
    "Checks without the functions that they call: those come from the package, since some of them are what the student is to write."
    helpers = [node for node in parsed(code).body if isinstance(node, ast.FunctionDef) and node.name.startswith("_")]
    lines = code.splitlines()
    for node in reversed(helpers):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        del lines[first - 1: node.end_lineno]
    kept = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return "".join(f"from llm_course.{module} import {node.name}\n" for node in helpers) + ("\n" if helpers else "") + kept


def read_names(source: str) -> set[str]:
    "The names that some code reads, in its annotations as well."
    return {node.id for node in ast.walk(parsed(source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def without_imports(source: str, needed: Container[str]) -> str:
    """A cell without those imports of the engine room that nothing needs: what only the taken-out code called may be an answer.

    What comes from other lessons and from elsewhere stays, since an answer may need it."""
    lines = source.splitlines()
    for node in reversed(parsed(source).body):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("llm_course.engine"): continue
        kept = [alias for alias in node.names if (alias.asname or alias.name) in needed]
        if len(kept) == len(node.names): continue
        said = ast.unparse(ast.ImportFrom(node.module, kept, node.level)) if kept else ""
        if len(said) > WIDTH: said = "from {} import (\n    {},\n)".format(node.module, ",\n    ".join(map(ast.unparse, kept)))
        lines[node.lineno - 1: node.end_lineno] = said.splitlines()
    return "\n".join(lines)


# ---- A page

@cache
def page(path: Path) -> list[dict]:
    "The cells of a chapter without its parts."
    source_cells, here_too = cells_of(path), {chapter.stem for chapter in parts()}
    texts = ["".join(cell["source"]) for cell in source_cells if cell["cell_type"] == "code"]
    exported = set().union(*(names_in(ast.parse(source)) for source in texts if is_export(source)))
    asked = [name for text in texts for name in components(text)] + [name for name in checked_elsewhere() if name in exported]
    names = [name for name in dict.fromkeys(asked) if name in exported]
    owners = [owner for text in texts if is_export(text) and not components(text) for owner, _ in bodies(parsed(text)) if not owner.startswith("_")]
    lent = next((owner for owner in owners if owner not in names), owners[0])
    cells = []
    for at, cell in enumerate(source_cells):
        source = converted(cell, exported, set(names), here_too, module(path))
        if source is None: continue
        if at == 1: source = opening(source, path, lent)
        if cell["cell_type"] == "code": source = fitted(source)
        cells.append(made(cell["cell_type"], source, cell["id"]))
    left = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    solutions = [re.sub(r"^#\|.*\n", "", text, flags=re.M) for text in texts if '#| code-summary: "Solution"' in text]
    needed = set().union(*map(read_names, left + solutions))
    for cell in cells:
        source = "".join(cell["source"])
        if source.startswith(MARK): cell["source"] = without_imports(source, needed).splitlines(keepends=True)
    if names:
        cells += [made("markdown", "## How far you are\n\nWhat is right has a tick, and what is not yet gets a hint at the cause.", "how-far"),
                  made("code", "from llm_course.grading import check", "how-far-import"),
                  made("code", call("check", [f"{name}={name}" for name in names]), "how-far-check")]
    return cells


def opening(source: str, path: Path, lent: str) -> str:
    "Title and promise, the badge of this version, and what to do here; `lent` is a part that may be imported."
    head = source.partition("[![Open in Colab]")[0].strip()
    published = f"https://{settings['user']}.github.io/{settings['repo']}/nbs/{path.stem[3:]}.html"
    return f"{head}\n\n{badge(f'nbs/{here.name}/{path.name}')}\n\n{HOW.format(page=published, module=module(path), lent=lent)}"


def start(chapters: list[Path]) -> list[dict]:
    "The page to begin with: all chapters, and how to grade them."
    title = {path: cells_of(path)[1]["source"][0].strip("# \n") for path in chapters}
    rows = "\n".join(f"| {path.stem[:2]} | [{title[path]}]({path.name}) | [in Colab]({colab(f'nbs/{here.name}/{path.name}')}) |" for path in chapters)
    return [made("markdown", f"# Your turn\n\n> The course with its parts taken out, for you to write.\n\n{badge(f'nbs/{here.name}/index.ipynb')}\n\n"
                 "Take the chapters in their order or begin anywhere: each lends you the parts of all others. "
                 f"Whatever you have written is graded at the end of its page. In a clone of the repository one command grades all of it:\n\n"
                 f"```bash\npython -m llm_course.grading nbs/{here.name}\n```\n\n| | chapter | |\n|---|---|---|\n{rows}", "start")]


def made(kind: str, source: str, id: str) -> dict:
    cell = {"cell_type": kind, "id": id, "metadata": {"tags": ["raises-exception"]} if kind == "code" else {}, "source": source.splitlines(keepends=True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def text(cells: list[dict], like: Path) -> str:
    "A notebook as nbdev writes it, for the kernel and the machine that another one asks for."
    metadata = json.loads(like.read_text("utf-8"))["metadata"]
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def pages() -> dict[str, str]:
    "All that is to lie there, by name."
    chapters = parts()
    return {path.name: text(page(path), path) for path in chapters} | {"index.ipynb": text(start(chapters), chapters[0])}


if __name__ == "__main__":
    for name, content in pages().items(): (here/name).write_text(content, "utf-8", newline="\n")
