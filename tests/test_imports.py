"""Imports run one way: a lesson needs lower lessons, and pages of the engine room that need no more than those; and nothing goes in a circle.

Imports inside functions count, too, but for a door: a function called `main` may lead from a lesson up to the command behind it."""
import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import book
import pytest

root = Path(__file__).parents[1]
ABOVE:set[tuple[str, str]] = set()   # still to be turned round: this list may only shrink


def imports_of(source, modules):
    "The modules of the package that a piece of code imports, at once or when it is called; doors aside."
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == "main")]
    found = set()
    for node in ast.walk(tree):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if not name.startswith("llm_course."): continue
            name = name.removeprefix("llm_course.")
            found |= {f"{name}.{alias.name}" for alias in node.names if f"{name}.{alias.name}" in modules} or {name if name in modules else f"{name}.{name}"}
    return found


def circle(graph):
    "A circle in the graph, or nothing."
    try: TopologicalSorter(graph).prepare()
    except CycleError as error: return error.args[1]


def highest(module, graph, numbers, seen=()):
    "The number of the highest lesson that a module needs, itself aside."
    return max((max(numbers.get(name, 0), highest(name, graph, numbers, (*seen, name))) for name in graph[module] if name not in seen), default=0)


def complaints(graph, numbers):
    "Each lesson that needs one that is not below it."
    for module, number in numbers.items():
        if (needed := highest(module, graph, numbers)) >= number: yield f"{module} is lesson {number} and needs lesson {needed}"


pages = {book.module(path): path for path in book.pages() if book.module(path)}
numbers = {module: book.number(path) for module, path in pages.items() if book.room(path) == "lesson"}
graph = {module: imports_of((root/"llm_course"/f"{module.replace('.', '/')}.py").read_text("utf-8"), pages) - {module} for module in pages}
settled = {module: {name for name in needed if (module, name) not in ABOVE} for module, needed in graph.items()}


def test_there_is_no_circle():
    assert not circle(settled)


def test_a_lesson_needs_lower_lessons_alone():
    assert not [*complaints(settled, {name: number for name, number in numbers.items() if number})]


def test_what_is_still_excused_is_still_there():
    assert {(module, name) for module, needed in graph.items() for name in needed} >= ABOVE


@pytest.mark.parametrize("graph, said", [
    ({"a": {"b"}, "b": {"a"}}, "circle"), ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, "circle"),
    ({"a": {"b"}, "b": set()}, "a is lesson 1 and needs lesson 2"), ({"a": {"engine.x"}, "engine.x": {"b"}, "b": set()}, "a is lesson 1 and needs lesson 2")])
def test_a_wrong_way_is_noticed(graph, said):
    assert (["circle"] if circle(graph) else [*complaints(graph, {"a": 1, "b": 2})]) == [said]


def test_imports_are_found_wherever_they_stand_but_behind_a_door():
    source = "def main():\n    from llm_course import door\n    from llm_course.door import open\n"
    assert not imports_of(source, ["door"])
    source = "from llm_course.a import f\nimport llm_course.b\ndef g():\n    from llm_course.engine import c\n    from llm_course.grading import check\n    import torch"
    assert imports_of(source, ["a", "b", "engine.c", "grading.grading"]) == {"a", "b", "engine.c", "grading.grading"}
