"""The student's pages with the course's own answers in them, for test_your_turn.py and installed.py."""
import ast
import re
from pathlib import Path

import book
import your_turn

SOLUTION = '#| code-summary: "Solution"'


def plain(source: str) -> str:
    "A cell without its directives."
    return re.sub(r"^#\|.*\n?", "", source, flags=re.M)


def question(source: str) -> tuple[str, list[ast.expr], int] | None:
    "What tries an exercise's answers, those answers, and the line it begins at; `None` for a cell that asks for nothing."
    body = your_turn.parsed(source).body
    if not body: return None
    last = body[-1]
    if isinstance(last, ast.FunctionDef) and last.decorator_list:
        call = last.decorator_list[0]
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "exercise": return last.name, call.args, call.lineno
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and ast.unparse(last.value.func) == "check":
        return "check", [keyword.value for keyword in last.value.keywords], last.lineno
    return None


def answered(exercise: str, solution: str) -> str:
    "An exercise with a solution in place of its stub: what the solution hands to the check is what the student hands in."
    name, places, line = question(exercise)
    lines, made, values = exercise.splitlines(), [], []
    for statement in ast.parse(plain(solution)).body:
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
        if calls:
            values = calls[0].args or [keyword.value for keyword in calls[0].keywords]
            break
        made.append(ast.unparse(statement))
    made += [f"{ast.unparse(place)} = {ast.unparse(value)}" for place, value in zip(places, values)]
    asked = "\n".join(lines[line - 1:])
    if name == "check": asked = f"assert {asked}.passed"
    return "\n".join([*lines[:line - 1], *made, asked])


def page(path: Path) -> dict[str, str]:
    "The code of a student's page, by cell: the chapter's own in place of the stubs, and the solutions in place of the exercises'."
    chapter = {cell["id"]: "".join(cell["source"]) for cell in book.cells(path) if cell["cell_type"] == "code"}
    solutions, solution = {}, ""   # of each cell, the solution that comes next
    for id, source in reversed(chapter.items()):
        if SOLUTION in source: solution = source
        solutions[id] = solution
    filled = {}
    for cell in your_turn.page(path):
        id, source = cell["id"], "".join(cell["source"])
        if cell["cell_type"] != "code": continue
        if id in chapter and not your_turn.components(source): source = plain(chapter[id])
        if id in chapter and question(source): source = answered(source, solutions[id])
        elif question(source): source = f"assert {source}.passed"   # how far you are
        filled[id] = source
    return filled


def exercises(path: Path) -> dict[str, str]:
    "The cells of a filled page from its exercises on; none for a page without parts to write."
    if path not in book.parts(): return {}
    cells = page(path)
    first = [*cells].index("exercise-imports")
    return dict([*cells.items()][first:])
