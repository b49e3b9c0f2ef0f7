"""A few damaged files of each kind, as `fuzz.py` makes them by the hundred; and faults of every kind, which it must find."""
import os
import sys
from pathlib import Path

import pytest
from apart import apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory, and counts it, as Linux does")
HERE = Path(__file__).parent
FAULTS = """
import sys
import fuzz

def hang(folder):
    while True: pass

def touch(folder): (folder.parent/"outside"/"canary").write_text("!", "utf-8")

def fill(folder): bytearray(2 * fuzz.ROOM)

def grow(folder): return len(b"x" * (fuzz.ROOM * 3 // 4))

def refuse(folder, name): raise ValueError(f"{name} is no good")

def read(fault):
    def after_the_first(folder):
        if (folder/"file").read_bytes() != b"whole": return fault(folder)
    return after_the_first

fuzz.SECONDS = 5   # to fill memory takes up to one where the machine is slow
fuzz.make = lambda folder: (folder/"file").write_bytes(b"whole")
faults = {"traceback": lambda folder: {}["x"], "hang": hang, "touched": touch, "blow-up": fill, "blow-up too": grow, "different": lambda folder: 3, "equal": lambda folder: None,
          "clear": lambda folder: refuse(folder, folder/"file"), "unclear": lambda folder: refuse(folder, "it"), "traceback, by the system": lambda folder: fuzz.os.abort()}
fuzz.KINDS = {name: fuzz.Kind(["file"], lambda data, dice: (b"damaged", "changed"), read(fault)) for name, fault in faults.items()}
for name, counts in fuzz.fuzz(fuzz.KINDS, 1).items(): assert list(counts)[0] == name.removesuffix(" too").split(",")[0], (name, counts)
"""


def run(*words):
    ended = apart(words, os.environ | {"OMP_NUM_THREADS": "1"}, HERE)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-2000:]


def test_damaged_files_are_read_or_refused(): run("fuzz.py", "--n", "5")


def test_every_fault_is_found(): run("-c", FAULTS)
