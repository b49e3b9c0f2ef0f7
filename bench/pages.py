"""Measure how long each notebook runs, its kernel's start included, on one thread: `python -m bench.pages` writes pages.json."""
import datetime
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from bench.runner import commit, machine, root
from llm_course.commands import whole_file


def seconds(path: Path) -> float:
    "Execute a notebook where it lies, without keeping what it shows."
    notebook = nbformat.read(path, 4)
    notebook.cells = [c for c in notebook.cells if "#| eval: false" not in c.source]
    began = time.perf_counter()
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    return time.perf_counter() - began


def main(names: list[str]) -> None:
    "Measure all pages or those that are named, and keep the others' times."
    os.environ["OMP_NUM_THREADS"] = "1"
    out = root/"bench"/"pages.json"
    found = json.loads(out.read_text("utf-8"))["seconds"] if out.exists() else {}
    paths = sorted((root/"nbs").glob("*.ipynb"))
    for path in paths:
        if names and path.stem not in names: continue
        found[path.stem] = round(seconds(path), 1)
        print(f"{path.stem:18} {found[path.stem]:5.1f} s", flush=True)
    result = {"what": "Seconds that each notebook runs, from the start of its kernel.", "seconds": {p.stem: found[p.stem] for p in paths if p.stem in found},
              "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(out, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main(sys.argv[1:])
