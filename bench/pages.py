"""Measure how much processor time each notebook takes, its kernel's start included, on one thread: `python -m bench.pages` writes pages.json."""
import datetime
import json
import os
import resource
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bench.machine import machine
from bench.runner import commit, root
from llm_course.engine.commands import whole_file

sys.path.insert(0, str(root/"web"))
import book


def spent() -> float:
    "Seconds of processor time that ended kernels, and all that these started, have taken."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(path: Path) -> float:
    "Execute a notebook where it lies, without keeping what it shows."
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if "#| eval: false" not in cell.source]
    before = spent()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return spent() - before


def main(names: list[str]) -> None:
    "Measure all pages; or those that are named, with a note of where that was, and keep the others' times."
    os.environ["OMP_NUM_THREADS"] = "1"
    output, paths = root/"bench"/"pages.json", book.pages()
    here = {"machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    kept = json.loads(output.read_text("utf-8")) if output.exists() else {}
    found, alone = kept.get("seconds", {}), kept.get("alone", {}) if names else {}
    for path in paths:
        name = book.name(path)
        if names and name not in names: continue
        found[name] = round(seconds(path), 1)
        if names: alone[name] = here | {"machine": here["machine"]["kind"]}
        print(f"{name:26} {found[name]:5.1f} s", flush=True)
        result = {"what": "Seconds of processor time that each notebook takes, from the start of its kernel, on one thread; `alone`: measured later, each by itself.",
                  "seconds": {name: found[name] for name in map(book.name, paths) if name in found},
                  **{key: kept.get(key, value) if names else value for key, value in here.items()}, "alone": alone}
        with whole_file(output, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1:])
