"""Note which way each condition of `llm_course` goes. Python imports this file by itself where its folder is on PYTHONPATH, in every process; `make branches` puts it there.

Lines are not enough, since an `if` and what follows it often stand on one. So the modules are compiled with a call around each condition and at the beginning of each `except`."""
import ast
import builtins
import marshal
import os
import sys
import zlib
from collections import Counter
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

PACKAGE = "llm_course"
COMPILED = {"compiled", "_compiled", "in_parallel", "intrinsic", "jit", "one_caller_at_a_time"}   # decorators that hand a function to numba or triton: a call of ours would not be compiled


class Conditions(ast.NodeTransformer):
    "Wrap conditions, and take down each: its place, and the outcomes that it may have."
    def __init__(self, module): self.module, self.names, self.found, self.times, self.compiled = module, [], {}, Counter(), False

    def watch(self, what, text):
        "A call that notes `what`, or that it was reached at all."
        place = f"{self.module} {'.'.join(self.names) or 'module'}: {text}"
        self.times[place] += 1
        if self.times[place] > 1: place += f" [{self.times[place]}]"   # the same words once more
        self.found[place] = ("True", "False") if what else ("entered",)
        return ast.Call(ast.Name("__branch__", ast.Load()), [ast.Constant(place), what or ast.Constant(...)], [])

    def inside(self, node):
        outside, self.compiled = self.compiled, self.compiled or any(ast.unparse(each).split(".")[-1] in COMPILED for each in node.decorator_list)
        self.names.append(node.name)
        self.generic_visit(node)
        self.names.pop()
        self.compiled = outside
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = inside

    def wrapped(self, test):
        if isinstance(test, ast.Constant): return test   # `while True`
        call = self.watch(test, " ".join(ast.unparse(test).split()))
        return test if self.compiled else ast.copy_location(call, test)

    def tested(self, node):
        node.test = self.wrapped(node.test)
        self.generic_visit(node)
        return node

    visit_If = visit_While = visit_IfExp = tested

    def visit_comprehension(self, node):
        node.ifs = [self.wrapped(test) for test in node.ifs]
        self.generic_visit(node)
        return node

    def visit_ExceptHandler(self, node):
        kind = ast.unparse(node.type) if node.type else ""
        node.body.insert(0, ast.copy_location(ast.Expr(self.watch(None, f"except {kind}".strip())), node.body[0]))
        self.generic_visit(node)
        return node


def conditions(module, source):
    "The tree of a module with its conditions wrapped, and the outcomes of each."
    visitor = Conditions(module.removeprefix(f"{PACKAGE}."))
    tree = visitor.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), visitor.found


def compiling(): return False   # until there is torch


def install(folder):
    "Write each outcome to a file at once, the first time that it is seen: a process may be killed."
    folder, seen = Path(folder), set()
    (folder/"code").mkdir(parents=True, exist_ok=True)
    file = os.open(folder/"seen.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def branch(place, value):
        if compiling(): return value   # torch.compile sees the condition itself
        outcome = "entered" if value is ... else bool(value)
        if (place, outcome) not in seen:
            seen.add((place, outcome))
            os.write(file, f"{place}: {outcome}\n".encode())
        return outcome

    class Loader(SourceFileLoader):
        def get_code(self, fullname):   # never from, and never into, Python's cache; ours is for all processes of a run
            source, path = self.get_data(self.path), self.path
            kept = folder/"code"/f"{fullname}.{zlib.crc32(source):x}.{sys.implementation.cache_tag}"
            if kept.exists(): return marshal.loads(kept.read_bytes())
            code = compile(conditions(fullname, source.decode("utf-8"))[0], path, "exec", dont_inherit=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            part.write_bytes(marshal.dumps(code))
            os.replace(part, kept)
            return code

        def exec_module(self, module):
            super().exec_module(module)
            if "torch" in sys.modules: globals()["compiling"] = sys.modules["torch"].compiler.is_compiling

    class Finder:
        "Load the package's modules by the loader above."
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] != PACKAGE: return None
            spec = PathFinder.find_spec(name, path, target)
            if spec and type(spec.loader) is SourceFileLoader: spec.loader = Loader(spec.loader.name, spec.loader.path)
            return spec

    builtins.__dict__["__branch__"] = branch
    sys.meta_path.insert(0, Finder)


if os.environ.get("LLM_COURSE_BRANCHES"): install(os.environ["LLM_COURSE_BRANCHES"])
