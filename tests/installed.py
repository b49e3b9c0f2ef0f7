"""The package as its users have it: built, installed into an environment that holds nothing else, and away from the repository.

The environment is made by uv, as many users make theirs, so it holds no pip; and what is run there finds no cache.
`python tests/installed.py` executes every page there (or the pages it is given) and holds what it shows against the committed outputs;
`test_package.py` asks the installed package a few questions, and makes the demo."""
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

import nbformat
import uv
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).parents[1]
project = tomllib.loads((root/"pyproject.toml").read_text("utf-8"))["project"]
sys.path[:0] = [str(root/"web"), str(root/"tests")]
import book  # noqa: E402
import colab  # noqa: E402
import filled  # noqa: E402
import outputs  # noqa: E402


def build(folder: Path) -> tuple[Path, Path]:
    "The sdist, made from the files that packaging needs, and the wheel, made from the sdist."
    source = folder/"source"
    shutil.copytree(root/"llm_course", source/"llm_course", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "pyproject.toml", "README.md", "LICENSE": shutil.copy(root/name, source)
    quietly(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder/"dist", source)
    return built_in(folder)


def built_in(folder: Path) -> tuple[Path, Path]:
    "The sdist and the wheel that `build` made in this folder."
    return next((folder/"dist").glob("*.tar.gz")), next((folder/"dist").glob("*.whl"))


def environment(folder: Path, wheel: Path, extras: str = "") -> Path:
    "The Python of a new environment without pip, with the wheel, what it depends on, and what a notebook needs; nothing is fetched, all is linked from here."
    quietly(uv.find_uv_bin(), "venv", "--no-config", "--offline", "--python", sys.executable, folder)
    python = python_of(folder)
    site = Path(quietly(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    wanted = project["dependencies"] + (project["optional-dependencies"][extras.strip("[]")] if extras else [])
    for name in closure(*wanted, "ipykernel", "ipywidgets"):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            link(Path(found.locate_file(top)), site/top)
    quietly(uv.find_uv_bin(), "pip", "install", "--no-config", "--offline", "--no-deps", "--python", python, wheel)
    return python


def no_cache(folder: Path) -> dict[str, str]:
    "The environment variables of somebody who comes for the first time: caches and what programs note down lie in an empty folder."
    places = {"XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data", "LOCALAPPDATA": "local", "MPLCONFIGDIR": "matplotlib", "IPYTHONDIR": "ipython",
              "JUPYTER_CONFIG_DIR": "jupyter", "JUPYTER_DATA_DIR": "jupyter", "HF_HOME": "hub", "TORCH_HOME": "torch"}
    for place in places.values(): (folder/place).mkdir(parents=True, exist_ok=True)
    return {name: str(folder/place) for name, place in places.items()}


def python_of(folder: Path) -> Path:
    "The Python of an environment."
    return folder/("Scripts/python.exe" if os.name == "nt" else "bin/python")


def closure(*wanted: str) -> set[str]:
    "The names of the distributions that these requirements bring along, each with its own requirements."
    seen, todo = set(), [Requirement(line) for line in wanted]
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in seen: continue
            seen.add((name, extra))
            todo += [r for r in map(Requirement, metadata.requires(name) or ()) if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def link(source: Path, target: Path) -> None:
    "Let `target` stand for `source`; Windows links folders alone without asking for a privilege."
    if target.exists(): return
    if os.name != "nt": target.symlink_to(source)
    elif source.is_dir():
        import _winapi
        _winapi.CreateJunction(str(source), str(target))
    else: shutil.copy(source, target)


def quietly(*words, **more) -> str:
    "What a command prints; if it fails, all that it said."
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, encoding="utf-8", env=alone(), **more)
    if done.returncode: raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def alone() -> dict[str, str]:
    "The environment variables, without those that lead Python back to the repository."
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")} | {"PYTHONIOENCODING": "utf-8"}


@contextmanager
def kernel(folder: Path, name: str, python: Path):
    "An environment known to Jupyter, and on Linux a process in it that has imported torch and forks its kernels."
    command, waiting = [str(python), "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"], None
    if sys.platform == "linux":
        helper, place = str(root/"tests"/"forked.py"), folder/f"{name}.socket"
        command, waiting = [str(python), helper, str(place), "{connection_file}"], subprocess.Popen([python, helper, place], env=alone(), cwd=folder)
        while not place.exists():
            if waiting.poll() is not None: raise RuntimeError(f"forked.py ended with {waiting.returncode}")
            time.sleep(0.05)
    (folder/"kernels"/name).mkdir(parents=True)
    (folder/"kernels"/name/"kernel.json").write_text(json.dumps({"argv": command, "display_name": name, "language": "python"}), "utf-8", newline="\n")
    try: yield
    finally:
        if waiting is not None:
            waiting.kill()
            waiting.wait()


# Up to its exercises, a student's page with the parts written is the chapter: test_your_turn.py compares the text. There a copy of the kernel goes on as that
# page does, with the solutions in place of the stubs; the kernel itself goes on as the chapter.
AS_FILLED = """
def _go_on_as_filled(space, cells):
    import contextlib, io, os, traceback
    ours, theirs = os.pipe()
    if copy := os.fork():
        os.close(theirs)
        with open(ours, encoding="utf-8") as told: what = told.read()
        os.waitpid(copy, 0)
        if what != "ran": raise AssertionError("the student's page, filled in: " + (what or "the copy of the kernel died"))
        return
    what, said = "ran", io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for name, source in cells.items():
            try: exec(compile(source, name, "exec"), space)
            except BaseException: what = traceback.format_exc()
            if "not written yet" in said.getvalue(): what = name + " is not answered"
            if what != "ran": break
    with open(theirs, "w", encoding="utf-8") as tell: tell.write(what)
    os._exit(0)

_go_on_as_filled(globals(), CELLS)
del _go_on_as_filled
"""


def run_page(path: Path, kernel_name: str, compare: bool = True) -> str:
    "Execute a page in an empty folder; what failed, or, cell by cell, which of the committed outputs are not what came out."
    notebook, answers = nbformat.read(path, 4), filled.exercises(path) if hasattr(os, "fork") else {}
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and outputs.directive(cell.source, "eval") != "false"]
    committed = [cell.outputs for cell in notebook.cells]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)/(path.parent.relative_to(root) if path.is_relative_to(root) else "nbs")
        home.mkdir(parents=True)
        client = NotebookClient(notebook, timeout=1800, kernel_name=kernel_name, resources={"metadata": {"path": str(home)}})
        try:
            with client.setup_kernel(env=alone()):
                for at, cell in enumerate(notebook.cells):
                    if cell.id in answers and cell.id == next(iter(answers)):
                        client.execute_cell(nbformat.v4.new_code_cell(AS_FILLED.replace("CELLS", repr(answers))), at)
                    client.execute_cell(cell, at)
                readers = [at for at, cell in enumerate(notebook.cells) if outputs.directive(cell.source, "reads") == "bench"]
                if readers: shutil.copytree(root/"bench", Path(folder)/"bench", ignore=all_but_results)
                for at in readers: client.execute_cell(notebook.cells[at], at)   # they were seen to do without; now with what a clone has
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error: return str(error)
    return "\n".join(f"{cell.id}: {what}" for cell, before in zip(notebook.cells, committed) if compare
                     for what in outputs.differences(before, cell.outputs, outputs.directive(cell.source, "varies")))


def all_but_results(folder: str, names: list[str]) -> list[str]:
    "What of `bench/` the pages do not read: everything but JSON and the models of entries, at any depth."
    return [name for name in names if not name.endswith(".json") and name != "model.py" and not (Path(folder)/name).is_dir()]


PYTHON = "3.11.7"   # which the committed outputs were made with: some pages learn from texts of Python's own manual, and those change


def as_tested() -> bool:
    "Is this the system, and are these the versions, that the committed outputs were made with?"
    pinned = dict(line.split("==") for line in (root/"requirements.txt").read_text("utf-8").split())
    same = all(metadata.version(name).partition("+")[0] == pinned[name] for name in ("torch", "numpy", "matplotlib", "transformers", "tokenizers"))
    return sys.platform == "linux" and platform.python_version() == PYTHON and same


def longest_first():
    "A key that sorts pages by the time they took when it was measured, and those that were not measured to the front: so no long page is left to the end."
    seconds = json.loads((root/"bench"/"pages.json").read_text("utf-8"))["seconds"]
    return lambda path: (-seconds.get(book.name(path), float("inf")), path.stem)


def main(names: list[str]) -> int:
    "Execute pages, three at a time since each waits for its kernel now and then, and say how long each took; 1 if one failed, or showed something else than what is committed."
    os.environ.setdefault("OMP_NUM_THREADS", "1")   # as make has it: in a copy of a kernel that has begun threads, torch waits for them for ever
    paths = [path for path in sorted(book.pages(), key=longest_first()) if not names or path.stem in names]
    if not (compare := as_tested()): print(f"outputs are not compared: they were made on Linux, with Python {PYTHON} and the versions of requirements.txt")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as kernels:
        folder = Path(folder)
        wheel = build(folder)[1]
        os.environ |= no_cache(folder/"caches") | {"JUPYTER_PATH": str(folder)}
        def begin(extras): kernels.enter_context(kernel(folder, f"course{extras.strip('[]')}", environment(folder/f"env{extras.strip('[]')}", wheel, extras)))
        with ThreadPoolExecutor() as pool: list(pool.map(begin, {colab.EXTRAS.get(book.name(path), "") for path in paths}))   # each imports torch, on one core

        def timed(path):
            began = time.perf_counter()
            wrong = run_page(path, f"course{colab.EXTRAS.get(book.name(path), '').strip('[]')}", compare)
            print(f"{path.stem:18} {time.perf_counter() - began:5.1f} s  {wrong and chr(10)}{wrong or 'ok'}", flush=True)
            return wrong
        with ThreadPoolExecutor(3) as pool: return int(any(list(pool.map(timed, paths))))


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
