"""Measure the peak memory of `python -m llm_course.data` and its helper processes, for 20 MB and 200 MB: `python -m bench.memory` writes memory.json."""
import datetime
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.cases.data import mixed_text
from bench.machine import machine
from bench.runner import commit
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.commands import output_path, run_command, whole_file


def resident(pid: int) -> int:
    "Kilobytes that a process and all its descendants hold, shared pages counted for each (Linux)."
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task/"children").read_text("utf-8").split()]
    except OSError: return 0   # it has ended
    lines = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return (int(lines[0].split()[1]) if lines else 0) + sum(map(resident, children))


def peak(words: list[str]) -> float:
    "Run a command, look every 20 ms, and give its greatest megabytes."
    process, most = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.02)
    if process.returncode: raise ValueError(f"{' '.join(words)} ended with status {process.returncode}")
    return most / 1024


@dataclass(frozen=True)
class Config:
    "Measure the memory that turning 20 MB and 200 MB of text into ids takes.\n\nExample: python -m bench.memory --output memory.json"
    output: Path = Path("bench/memory.json")   # File for the results


def main(config: Config) -> None:
    "Print both peaks, and keep them."
    output = output_path(config.output, "--output")
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for size in 20, 200:
            mixed_text(home/"text.txt", size * 1_000_000)
            if size == 20: BpeTokenizer.train([(home/"text.txt").read_text("utf-8")[:3_000_000]], 4_000).save(home/"tokenizer.json")
            peaks[f"{size} MB"] = most = peak([sys.executable, "-m", "llm_course.data", "--tokenizer", f"{home}/tokenizer.json", "--corpus", f"{home}/text.txt",
                         "--output", f"{home}/out", "--num_processes", "2"])
            print(f"{size} MB: at most {most:.0f} MB in all processes together", flush=True)
    result = {"what": "Peak of the resident memory of all processes, in MB, by the size of the text.", "peaks": {size: round(most) for size, most in peaks.items()},
              "machine": machine("cpu"), "commit": commit(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with whole_file(output, "w") as file: file.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": run_command(Config, main, prog="python -m bench.memory")
