"""Longer runs of what a page shows in short. Each script takes the functions from the page's own cells, and its results lie beside it, for the page to read."""
import datetime
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from bench.runner import commit, machine, read, root
from llm_course.engine.commands import whole_file


def cells(page: str, *names: str) -> dict:
    "What a page's module has, and what these cells define beside it, run in this order. Raises `KeyError` for a cell that the page lacks."
    sources = {cell["id"]: "".join(cell["source"]) for cell in json.loads((root/"nbs"/f"{page}.ipynb").read_text("utf-8"))["cells"]}
    made = {**vars(import_module(f"llm_course.{sources['default-exp'].split()[-1]}"))}
    for name in names: exec(compile(sources[name], f"{page}, cell {name}", "exec"), made)
    return made


def keep(script: str, found: dict) -> None:
    "Write what was found beside the script, with the machine, the code and the day."
    result = found | {"machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(Path(script).with_suffix(".json"), "w") as file: file.write(json.dumps(result, indent=1) + "\n")


def resume(script: str, what: str, grid: list[dict], run: Callable[..., dict]) -> None:
    "Make each run of a grid that the script's file lacks, and keep each as soon as it is there."
    def runs() -> list[dict]: return read(Path(script).with_suffix(".json")).get("runs", [])
    for settings in grid:
        if any(settings.items() <= old.items() for old in runs()): continue
        found = settings | run(**settings)
        print(found, flush=True)
        keep(script, {"what": what, "runs": [*runs(), found]})   # another process may have added to it meanwhile
