"""Run `make demo` from the beginning, without the installation: `python -m bench.demo` writes demo.json, which says what each command printed and how long it worked. `python -m bench.table` shows it in the READMEs."""
import datetime
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.machine import machine
from bench.runner import commit, root
from llm_course.engine.commands import output_path, run_command, whole_file

TARGETS = "runs/demo/train.txt", "runs/demo/tokenizer.json", "runs/demo/train.bin", "demo"   # in the order in which make comes to them
COMMAND = re.compile(r"^\.venv/bin/(python -m llm_course\..+)\n", re.M)   # as make shows it before it runs it


@dataclass(frozen=True)
class Config:
    "Run make demo in an empty folder, and keep what it prints.\n\nExample: python -m bench.demo"
    output: Path = Path("bench/demo.json")   # File for the results


def processor_seconds() -> float:
    "What all processes that have ended have taken."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def printed(shown: str) -> dict[str, str]:
    "The commands in what make showed, and what each of them printed; the advice at the end is make's own."
    _, *pairs = COMMAND.split(shown.partition("\nLook at ")[0])
    return {command: output.strip("\n") for command, output in zip(pairs[::2], pairs[1::2], strict=True)}


def measured() -> dict:
    "Each step by its command: what it printed, and the processor seconds of each target; the last trains and writes."
    outputs, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in "Makefile", "requirements.txt", "pyproject.toml", ".venv": (Path(folder)/name).symlink_to(root/name)
        for target in TARGETS:
            before = processor_seconds()
            run = subprocess.run(["make", "-o", ".venv/installed", target], cwd=folder, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            seconds[target] = round(processor_seconds() - before, 1)
            outputs |= printed(run.stdout)
            print(f"{target:26} {seconds[target]:6.1f} s of processor time", flush=True)
    return {"processor_seconds": seconds, "printed": outputs}


def main(config: Config) -> None:
    "Run it once, and keep what was printed, with the machine and its load."
    output, load, began = output_path(config.output, "--output"), os.getloadavg()[0], time.perf_counter()
    found = measured()
    result = {"what": "make demo from the beginning, without the installation; Shakespeare's plays were in the cache already.", **found,
              "wall_seconds": round(time.perf_counter() - began), "load": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
              "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(output, "w") as file: file.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.demo")
