"""The plain statement instead of the clever expression: what the style of the code forbids, and a machine can find."""
import ast

import book
import pytest


def shortcuts(source):
    "Where an expression does the work of an `if`, or of a line of its own: the line, and what it is."
    letters = ast.List, ast.Tuple, ast.ListComp, ast.JoinedStr
    functions = "bool", "isinstance", "hasattr", "any", "all"
    def a_sequence(node):
        return isinstance(node, letters) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))
    def a_truth(node):
        return (isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
                or (isinstance(node, ast.Constant) and isinstance(node.value, bool))
                or (isinstance(node, ast.BoolOp) and any(map(a_truth, node.values)))
                or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(left=left, op=ast.Mult(), right=right) if any(a_sequence(a) and a_truth(b) for a, b in ((left, right), (right, left))):
                yield node.lineno, "a sequence times a truth"
            case ast.Expr(value=ast.IfExp() | ast.BoolOp() | ast.ListComp()): yield node.lineno, "an expression as a statement"
            case ast.For(target=target) | ast.comprehension(target=target) if any(isinstance(part, ast.Attribute | ast.Subscript) for part in ast.walk(target)):
                yield target.lineno, "an attribute or an item as the target of a loop"
            case ast.NamedExpr(target=target, value=value) if any(isinstance(part, ast.Name) and part.id == target.id for part in ast.walk(value)):
                yield node.lineno, "a walrus that changes what it reads"


@pytest.mark.parametrize("path", sorted((book.root/"llm_course").rglob("*.py")), ids=lambda path: path.stem)
def test_an_if_is_written_as_one(path): assert not [*shortcuts(path.read_text("utf-8"))]


@pytest.mark.parametrize("line", [
    "x = [3] * (version > 5)", "x = (version > 5) * [3]", "x = f'{n}' * bool(n)", "x = 'and more' * (len(n) > 2)", "x = (1, 2) * (not n)", "x = [3] * isinstance(n, int)",
    "x = 'a' * (n > 1 and m)", "go() if n else stay()", "n and go()", "[go(i) for i in n]", "for p.grad in n: go()", "x = [p for p.grad in n]",
    "if (n := n + 1) > 2: go()"])
def test_one_that_is_not_is_noticed(line): assert len([*shortcuts(line)]) == 1


def test_other_products_and_loops_are_as_good_as_ever():
    assert not [*shortcuts("x = [3] * n\ny = '-' * len(n)\nz = n * (m > 2)\nx = 1 if n else 2\nfor i, (a, b) in n: go()\nwhile (a := next(n)): go(a)\n2 * [None]\nm = a * b > c")]


def beginnings(source):
    "Where one line gives a name nothing, or a constant, to begin with, and another name something computed: two lines say it better."
    def a_beginning(node):
        if ast.unparse(node) == "math.inf": return True
        bare = isinstance(node, ast.List | ast.Dict | ast.Constant) and not getattr(node, "elts", None) and not getattr(node, "keys", None)
        return bare or (isinstance(node, ast.Call) and not node.args and not node.keywords and ast.unparse(node.func).partition("[")[0] in ("set", "list", "dict"))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)) if all(isinstance(name, ast.Name) for name in names):
                if len({a_beginning(value) for value in values}) == 2: yield node.lineno, ast.unparse(node)


lessons = [path for path in sorted((book.root/"llm_course").glob("*.py")) if path.stem != "_modidx"]


@pytest.mark.parametrize("path", lessons, ids=lambda path: path.stem)
def test_a_lesson_begins_one_thing_a_line(path): assert not [*beginnings(path.read_text("utf-8"))]


@pytest.mark.parametrize("line", ["model, losses = Model(3), []", "n, found = len(x), {}", "device, found = pick(x), list[float]()", "a, total = b, 0.", "a, b, c = f(x), set(), 1"])
def test_two_things_in_a_line_are_noticed(line): assert len([*beginnings(line)]) == 1


def test_related_things_may_share_a_line():
    assert not [*beginnings("out, i = [], 0\nfirst, second = f(x), f(y)\nbest, least = None, math.inf\nrun.clock, run.ticks = now(), 0\na, b = b, a\nn = 0\nx, y = pair")]
