"""Note which way each condition of `llm_course` goes. Python imports this file by itself where its folder is on PYTHONPATH, in every process; `make branches` puts it there.

Lines are not enough, since an `if` and what follows it often stand on one. So the modules are compiled with a call around each condition and at the beginning of each `except`."""
import ast
import builtins
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

PACKAGE = "llm_course"


class Conditions(ast.NodeTransformer):
    "Wrap conditions, and take down where each is: the function, the text."
    def __init__(self, module):
        self.module, self.names, self.found = module, [], []

    def watch(self, what, at):
        "A call that notes `what`, or that it was reached at all."
        text = " ".join(ast.unparse(what).split()) if what else at
        self.found.append((".".join(self.names) or "module", text, what is not None))
        arguments = [ast.Constant(f"{self.module} {len(self.found) - 1}"), what or ast.Constant(True)]
        return ast.Call(ast.Name("__branch__", ast.Load()), arguments, [])

    def inside(self, node):
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = inside

    def tested(self, node):
        node.test = ast.copy_location(self.watch(node.test, ""), node.test)
        self.generic_visit(node)
        return node

    visit_If = visit_While = visit_IfExp = tested

    def visit_comprehension(self, node):
        node.ifs = [ast.copy_location(self.watch(test, ""), test) for test in node.ifs]
        self.generic_visit(node)
        return node

    def visit_ExceptHandler(self, node):
        kind = ast.unparse(node.type) if node.type else ""
        node.body.insert(0, ast.copy_location(ast.Expr(self.watch(None, f"except {kind}".strip())), node.body[0]))
        self.generic_visit(node)
        return node


def conditions(module, source):
    "The tree of a module with its conditions wrapped, and a list of them."
    visitor = Conditions(module)
    tree = visitor.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), visitor.found


class Loader(SourceFileLoader):
    def get_code(self, fullname):   # never from, and never into, the cache of bytecode
        path = self.get_filename(fullname)
        return compile(conditions(fullname, self.get_data(path).decode("utf-8"))[0], path, "exec", dont_inherit=True)


class Finder:
    "Load the package's modules by the loader above."
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != PACKAGE: return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and type(spec.loader) is SourceFileLoader: spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install(folder):
    "Write each outcome to a file at once, the first time that it is seen: a process may be killed."
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = os.open(Path(folder)/"seen.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    seen = set()
    def branch(place, value):
        outcome = True if value else False
        if (place, outcome) not in seen:
            seen.add((place, outcome))
            os.write(file, f"{place} {outcome}\n".encode())
        return outcome
    builtins.__dict__["__branch__"] = branch
    sys.meta_path.insert(0, Finder)


if os.environ.get("LLM_COURSE_BRANCHES"): install(os.environ["LLM_COURSE_BRANCHES"])
