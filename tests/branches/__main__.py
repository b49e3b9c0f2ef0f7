"""Is every branch of the code entered by a test, or excused? `make branches` watches the tests and then calls this.

`entered.txt` keeps, for each function, a short mark of each outcome that a watched run has seen; `excused.txt` says for the others why no test enters them, one pattern a line,
in which * stands for anything. So a new branch fails at once, without another watched run: watch the tests that enter it (`make branches TESTS=tests/test_x.py`), or give
a reason. A run of all tests forgets what was seen before.

    python tests/branches                     what is neither entered nor excused
    python tests/branches --saw FOLDER        after a watched run of some tests
    python tests/branches --saw FOLDER --all  after one of all tests"""
import argparse
import hashlib
import re
from pathlib import Path

from sitecustomize import PACKAGE, conditions

here = Path(__file__).parent
root = here.parents[1]
entered, excused = here/"entered.txt", here/"excused.txt"


def outcomes():
    "Every outcome of every condition: its function, and how it is told."
    for path in sorted((root/PACKAGE).rglob("*.py")):
        if path.name == "_modidx.py": continue
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for place, ways in conditions(module, path.read_text("utf-8"))[1].items():
            for way in ways: yield place.partition(": ")[0], f"{place}: {way}"


def mark(line): return hashlib.sha256(line.partition(" ")[2].encode()).hexdigest()[:5]   # without the module, since functions move


def marks():
    "What watched runs have seen: for each function the marks of outcomes."
    lines = entered.read_text("utf-8").splitlines() if entered.exists() else []
    return {function: set(found.split()) for function, found in (line.split(": ") for line in lines)}


def reasons():
    "The patterns, and the reason for each."
    found = dict(re.fullmatch(r"(.+?)  # (.+)", line).groups() for line in excused.read_text("utf-8").splitlines() if line)
    return {re.compile(re.escape(pattern).replace(r"\*", ".*")): why for pattern, why in found.items()}


def told(seen):
    "Each outcome with its function, and whether watched runs have seen it: there, or in the module that the function has come from."
    lines = [*outcomes()]
    here = {function for function, _ in lines}
    gone = {function.split()[1]: found for function, found in seen.items() if function not in here}
    for function, line in lines: yield function, line, mark(line) in seen.get(function, gone.get(function.split()[1], ()))


def missing():
    "Every outcome that no watched run has seen."
    return [line for _, line, seen in told(marks()) if not seen]


def new():
    "Those of them for which there is no reason either."
    known = reasons()
    return [line for line in missing() if not any(pattern.fullmatch(line) for pattern in known)]


def remember(lines, all_tests):
    "Add what a run has seen; what the code no longer has is forgotten."
    found = {}
    for function, line, seen in told({} if all_tests else marks()):
        if seen or line in lines: found.setdefault(function, []).append(mark(line))
    entered.write_text("".join(f"{function}: {' '.join(its)}\n" for function, its in found.items()), "utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saw", type=Path, help="folder of a watched run")
    parser.add_argument("--all", action="store_true", help="were all tests watched?")
    asked = parser.parse_args()
    if asked.saw: remember({*(asked.saw/"seen.txt").read_text("utf-8").splitlines()}, asked.all)
    unexplained = new()
    for line in unexplained: print(f"no test enters: {line}")
    print(f"{len([*outcomes()])} outcomes, {len(missing())} that no watched test has seen, {len(unexplained)} of them without a reason")
    raise SystemExit(bool(unexplained))


if __name__ == "__main__": main()
