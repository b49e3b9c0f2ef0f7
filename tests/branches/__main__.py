"""Compare the branches that no test has entered with the list of those that are excused: `make branches`.

The list is `known.txt`, one a line: module, function, condition, the outcome that was never seen, and after two spaces and a # the reason. A branch that is missing
and not on the list is an error; one on the list that was entered after all is told, and should be taken off unless another machine needs it."""
import re
import sys
from pathlib import Path

from sitecustomize import PACKAGE, conditions

here = Path(__file__).parent
root = here.parents[1]
known = here/"known.txt"


def missing(seen):
    "Every outcome of every condition that was not seen, as a line of the list."
    for path in sorted((root/PACKAGE).rglob("*.py")):
        if path.name == "_modidx.py": continue
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for number, (where, text, is_test) in enumerate(conditions(module, path.read_text("utf-8"))[1]):
            for outcome in (True, False) if is_test else (True,):
                if f"{module} {number} {outcome}" not in seen: yield f"{module.removeprefix(PACKAGE + '.')} {where}: {text}: {f'never {outcome}' if is_test else 'never'}"


def reasons():
    "The list: a reason for each line."
    lines = known.read_text("utf-8").splitlines() if known.exists() else []
    return dict(re.fullmatch(r"(.+?)(?:  # (.*))?", line).group(1, 2) for line in lines if line)


def main(folder, write=False):
    seen = {*(Path(folder)/"seen.txt").read_text("utf-8").splitlines()}
    found, excused = [*dict.fromkeys(missing(seen))], reasons()
    new = [line for line in found if line not in excused]
    for line in excused:
        if line not in found: print(f"entered after all: {line}")
    if write:
        known.write_text("".join(f"{line}  # {excused.get(line) or '?'}\n" for line in sorted({*found})), "utf-8", newline="\n")
        return print(f"{known}: {len(found)} branches, {len(new)} of them new")
    for line in new: print(f"no test enters: {line}")
    unexplained = [line for line in found if excused.get(line, "") in ("?", None)]
    print(f"{len(seen)} outcomes seen, {len(found)} not; {len(new)} are not on the list, {len(unexplained)} stand there without a reason")
    raise SystemExit(bool(new))


if __name__ == "__main__": main(sys.argv[1], "--write" in sys.argv[2:])
