"""What every test may ask for, and the caches, which are empty when the tests begin."""
import gc
import os
import re
import shutil
import sys
import tempfile
import threading
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import get_annotations, isgeneratorfunction
from pathlib import Path
from typing import get_args

import jaxtyping
import pytest
from beartype import BeartypeConf

# Nothing may depend on what an earlier run, or another program, has left; matplotlib and others look for their places when they are imported.
caches = tempfile.mkdtemp(prefix="caches-")
os.environ |= {"XDG_CACHE_HOME": caches, "LOCALAPPDATA": caches, "MPLCONFIGDIR": f"{caches}/matplotlib", "HF_HOME": f"{caches}/hub"}
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"   # a pool of compilers imports torch once more, for a kernel or two
if sys.platform == "linux": os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")   # to compile a program for each set of instructions, and see that it runs, takes ten seconds and more

import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from tqdm import tqdm  # noqa: E402


def lock_of_one_s_own():
    "For the bars: their usual lock is shared with forked processes, and whoever keeps it stops all others."
    tqdm.set_lock(threading.RLock())


tqdm.monitor_interval = 0   # no thread that waits for that lock, too
if hasattr(os, "register_at_fork"): os.register_at_fork(after_in_child=lock_of_one_s_own)


def pytest_runtest_setup(): lock_of_one_s_own()   # a test that was interrupted while a bar was drawn may have kept the last one


def pytest_unconfigure(): shutil.rmtree(caches, ignore_errors=True)


def tells_shapes(kind):
    "Are there shapes in an annotation, or a text that may hold some?"
    return isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray)) or any(map(tells_shapes, get_args(kind)))


AS_TYPE_ERROR = BeartypeConf(violation_type=jaxtyping.TypeCheckError)   # which is how Python itself would refuse most of it


def checked(part=None, *, typechecker, with_shapes=jaxtyping.jaxtyped):
    """Check what a function is given and gives, each time that it is called: what `--jaxtyping-packages` puts around all of ours.

    `jaxtyped` binds the arguments and checks them twice, which takes longer than most of our functions. Here it binds where the annotations tell shapes, and the checker looks once."""
    if part is None: return partial(checked, typechecker=typechecker)
    look = partial(typechecker, conf=AS_TYPE_ERROR)
    if isinstance(part, type):
        if is_dataclass(part) and "__init__" in vars(part): part.__init__ = checked(part.__init__, typechecker=typechecker)
        return part
    if isgeneratorfunction(part): return with_shapes(part, typechecker=look)   # the way below would look at no shape of that kind any more, wherever it stands
    kinds = get_annotations(part).values()
    if not kinds: return part   # as the checker itself does, after a look that takes longer than most functions within functions
    if not any(map(tells_shapes, kinds)): return look(part)
    looked_at = with_shapes(look(part), typechecker=None)

    @wraps(part)
    def either(*given, **named): return part(*given, **named) if unwatched else looked_at(*given, **named)
    return either


unwatched = []   # while something is in it, no shapes are looked at


@pytest.fixture
def without_shapes():
    "For tests that ask our parts thousands of times what other tests have asked them under watch: a third of their time goes to the shapes."
    unwatched.append(True)
    yield
    unwatched.pop()


jaxtyping.jaxtyped = checked   # before any module of ours is imported


root = Path(__file__).parents[1]
sys.path[:0] = [str(root/"web"), str(root)]   # where the tools for pages lie, and `bench`

cuda = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])
devices = ["cpu", cuda] + ["mps"]*torch.backends.mps.is_available()


def stable_id(value):
    "A parameter's name in a test's, without its place in memory: the processes that share the tests must call them alike."
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    "Each process begins with its part of the long tests, so that none is left to the end, where the others would wait for it."
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    long, rest = [], []
    for item in items: (long if item.get_closest_marker("long") else rest).append(item)
    ends = [len(items) * (i + 1) // processes for i in range(processes)]   # each gets an equal run of the list, and others may take from its end
    items.clear()
    for i, end in enumerate(ends):
        items += long[i::processes]
        room = max(end - len(items), 0)
        items += rest[:room]
        rest = rest[room:]


def pytest_collection_finish():
    "What is there when the tests begin stays to the end: the collector need not look at all of it again and again."
    gc.collect()
    gc.freeze()


@pytest.fixture(params=devices, scope="session")
def device(request):
    "Each device in turn; the tests for CUDA are listed as skipped where there is none."
    return request.param


@pytest.fixture(scope="module")
def on_device(device):
    "Whatever the tests of a file make is made on each device in turn: `pytestmark = pytest.mark.usefixtures(\"on_device\")`."
    with torch.device(device): yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    "Skip what asks an MPS device for float64, which it has not."
    try: return (yield)
    except TypeError as error:
        if "MPS" in str(error) and "float64" in str(error): pytest.skip("no float64 there")
        raise


@pytest.fixture(autouse=True)
def seeded():
    "The same random numbers for every run of a test."
    torch.manual_seed(0)


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_as_at_first():
    "A run may set torch's number of threads; more than there are cores to spare would make all tests after it slow."
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture
def drawn():
    "Asked for by tests that look at the picture of a run's losses."
    from matplotlib import pyplot
    pyplot.switch_backend("agg")   # it looks for a notebook the first time


@pytest.fixture(autouse=True)
def plain_picture(request, monkeypatch):
    "To draw the losses takes longer than all the rest of a small run: the picture is drawn where it is looked at, and in processes of their own."
    diary = sys.modules.get("llm_course.engine.diary")
    if diary and "drawn" not in request.fixturenames: monkeypatch.setattr(diary, "losses_as_svg", lambda history: b"<svg/>")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)` gives a folder that `make(folder)` filled: once in a run of the tests, however many processes share it (`pytest -n 3`).

    Whoever comes second waits, and nobody may change what is in it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ: base = base.parent   # each process has its own below that of the run
    def folder_of(name, make):
        folder, whole = base/name, base/f"{name}.whole"
        with FileLock(base/f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)   # what a failed attempt left
                folder.mkdir()
                make(folder)
                whole.touch()
        return folder
    return folder_of


@pytest.fixture(scope="session")
def site_folder(made_once):
    "The whole site, as pandoc makes it."
    pytest.importorskip("pypandoc")
    pytest.importorskip("nbdev")
    import render
    return made_once("site", lambda folder: render.render_with_pandoc(render.process(folder/"_proc"), folder/"_docs"))/"_docs"


# ---- A small corpus, for the tests that write data

@pytest.fixture
def tokenizer():
    "Bytes, one merge, and the end-of-text token."
    from llm_course.bpe_tokenizer import BpeTokenizer
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"th", 257: b"<|endoftext|>"}
    return BpeTokenizer(vocab, [(b"t", b"h")], ["<|endoftext|>"])


@pytest.fixture
def corpus(tmp_path):
    "Twenty documents of 100 bytes."
    path, end = tmp_path/"corpus.txt", "<|endoftext|>"
    path.write_text("".join((f"{i:02} the thin moth\n" + "th " * 40)[:99 - len(end)] + "\n" + end for i in range(20)), "utf-8", newline="\n")
    assert path.stat().st_size == 2000
    return path


@pytest.fixture
def data_refusal(capsys):
    "The one line with which the command that writes data refuses some words."
    from llm_course.data import main
    def refusal(*argv):
        with pytest.raises(SystemExit) as stopped: main([str(word) for word in argv])
        printed = capsys.readouterr()
        assert stopped.value.code == 2 and "Traceback" not in printed.err
        lines = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
        return lines[0]
    return refusal


PATIENCE = 600_000   # milliseconds: a busy machine is no fault of the pages

# For axe: the first block of code stays as it is; the coloured words of the others, three quarters of a page's elements, are of the same kinds.
FLAT = """() => { for (const code of [...document.querySelectorAll("pre code")].slice(1)) code.textContent = code.textContent }"""


@pytest.fixture(scope="module")
def browser():
    "Chromium, as the system has it; it knows no host but this one."
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge"))), None)
    if not path and "CI" not in os.environ: pytest.skip("needs Chromium")
    with playwright.sync_playwright() as play:
        yield (started := play.chromium.launch(executable_path=path, args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"], timeout=PATIENCE))
        started.close()
