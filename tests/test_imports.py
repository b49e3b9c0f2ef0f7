"""Imports run one way: a lesson needs lower lessons, and pages of the engine room that need no more than those; and nothing goes in a circle.

Imports inside functions count, too, but for a door: a function called `main` may lead from a lesson up to the command behind it."""
import ast
from graphlib import CycleError, TopologicalSorter

import book
import pytest

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


def exported(path):
    "The code that a page exports. (In the package's own files imports are relative, which says less.)"
    sources = ["".join(cell["source"]) for cell in book.cells(path) if cell["cell_type"] == "code"]
    return "\n".join(source for source in sources if source.startswith(("#| export", "#|export")))


pages = {book.module(path): path for path in book.pages() if book.module(path)}
sources = {module: exported(path) for module, path in pages.items()}
numbers = {module: book.number(path) for module, path in pages.items() if book.room(path) == "lesson"}
graph = {module: imports_of(source, pages) - {module} for module, source in sources.items()}
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


def needed_by(names, graph):
    "All modules that some modules need, themselves included."
    found, todo = set(), list(names)
    while todo:
        if (name := todo.pop()) in found: continue
        found.add(name)
        todo += graph[name]
    return found


COMMANDS = [name for name, source in sources.items() if 'if __name__ == "__main__"' in source and "\ndef main" in source]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_not_read_twice(name):
    "A module that runs as `__main__`, and is imported by what it runs, would have two of each of its classes."
    door = next(node for node in ast.parse(sources[name]).body if isinstance(node, ast.FunctionDef) and node.name == "main")
    door.name = "opened"   # `imports_of` passes by doors
    behind = (imports_of(ast.unparse(door), pages) | graph[name]) - {name}
    again = name in needed_by(behind, graph)
    assert again == (f'sys.modules["llm_course.{name}"] = sys.modules["__main__"]' in sources[name])


def test_the_graph_knows_what_lessons_need():
    assert {"linear", "softmax"} <= needed_by(["transformer"], graph) and "transformer" in needed_by(["engine.run_config"], graph)
