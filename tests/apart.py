"""Python in a process of its own, which on Linux begins with torch in memory: to import it takes longer than most of what such a process is asked.

`apart(["-c", code, …])`, `apart(["-m", module, …])` and `apart([script, …])` give what `subprocess.run([sys.executable, …])` gives. A helper process imports torch once and
forks for each, and so does one for any other environment whose `python` is named; what Python reads from its environment before it begins, such as PYTHONHASHSEED, is that of the tests. Tests of what a start imports must start Python itself."""
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path


def apart(words, env=None, cwd=None, python=sys.executable):
    "Run Python with these words to its end, with what it prints taken down."
    words, env, cwd = [*map(str, words)], {**(os.environ if env is None else env)}, str(cwd or Path.cwd())
    if sys.platform != "linux": return subprocess.run([python, *words], env=env, cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    heard, told = os.pipe()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        socket.send_fds(helper(python)[0], [json.dumps([words, env, cwd]).encode()], [out.fileno(), err.fileno(), told])
        os.close(told)
        with open(heard, "rb") as status: how = int(status.read())
        for file in out, err: file.seek(0)
        return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(how), *(file.read().decode("utf-8") for file in (out, err)))


@cache
def helper(python=sys.executable):
    "Our end of the line to a process that waits to fork, and ends when we do; and that process. In another environment nothing leads it to ours."
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {name: value for name, value in os.environ.items() if python == sys.executable or name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    process = subprocess.Popen([python, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=env)
    theirs.close()
    return ours, process


def asked(line):
    "Import what nearly all need, and what an optimiser or a compiler would load; then, in a fork for each, what that fork is asked to be."
    import numpy
    import torch._dynamo
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # nobody asks how a fork ended but its own parent, below
    while True:
        message, streams, *_ = socket.recv_fds(line, 1 << 20, 3)
        if not message: sys.exit()
        if os.fork():
            for stream in streams: os.close(stream)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        line.close()
        if child := os.fork():
            os.write(streams[2], str(os.waitpid(child, 0)[1]).encode())
            os._exit(0)
        words, env, cwd = json.loads(message)
        for number, stream in enumerate(streams, 1): os.dup2(stream, number) if number < 3 else os.close(stream)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        if "tqdm.std" in sys.modules: sys.modules["tqdm.std"].tqdm.set_lock(threading.RLock())   # a killed fork would hold the one that all share
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
        numpy.random.seed()
        return words


def become(words):
    "Do what Python would do with these words."
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    here = [str(Path(__file__).parent), *places]
    sys.path[:] = [*places, *(place for place in sys.path if place not in here)]
    kind, *rest = words
    if kind == "-c":
        sys.argv, sys.path[:0] = ["-c", *rest[1:]], [""]
        space = vars(sys.modules["__main__"])
        for name in [*space]:
            if not name.startswith("__"): del space[name]
        exec(compile(rest[0], "<string>", "exec"), space)
    elif kind == "-m":
        sys.argv, sys.path[:0] = rest, [os.getcwd()]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[:0] = words, [str(Path(kind).resolve().parent)]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__": become(asked(socket.socket(fileno=int(sys.argv[1]))))
