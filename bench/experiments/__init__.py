"""Longer runs of what a page shows in short. Each script takes the functions from the page's own cells, and its results lie beside it, for the page to read."""
import datetime
import json
import platform
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from bench.runner import commit, machine, root
from llm_course.engine.commands import whole_file
from llm_course.experiments import run_cells


def cells(page: str, *names: str) -> dict:
    "What a page's module has, and what these cells define beside it, run in this order. Raises `KeyError` for a cell that the page lacks."
    sources = {cell["id"]: "".join(cell["source"]) for cell in json.loads((root/"nbs"/f"{page}.ipynb").read_text("utf-8"))["cells"]}
    made = {**vars(import_module(f"llm_course.{sources['default-exp'].split()[-1]}"))}
    for name in names: exec(compile(sources[name], f"{page}, cell {name}", "exec"), made)
    return made


def about() -> dict:
    "The machine, the versions, the code and the day."
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"machine": machine("cpu"), "versions": versions, "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def keep(script: str | Path, found: dict) -> None:
    "Write what was found beside the script, with what it was found on."
    with whole_file(Path(script).with_suffix(".json"), "w") as file: file.write(json.dumps(found | about(), indent=1) + "\n")


def resume(script: str, what: str, grid: list[dict], run: Callable[..., dict]) -> None:
    "Make each run of a grid that the script's file lacks, and keep each as soon as it is there."
    def told(**settings):
        found = run(**settings)
        print(settings | found, flush=True)
        return found
    run_cells(Path(script).with_suffix(".json"), grid, told, lambda: {"what": what} | about())
