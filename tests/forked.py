"""Kernels for notebooks that begin with torch in memory: half of a page's time went to importing it. A helper of installed.py, on Linux.

`python forked.py PLACE` imports what every page needs, once, and waits at the socket PLACE. `python forked.py PLACE CONNECTION_FILE` is what Jupyter starts in
place of a kernel: it hands its folder, environment and streams over, and the waiting process forks a kernel that lives as long as its client does."""
import gc
import json
import os
import signal
import socket
import sys
import threading


def wait(place: str) -> None:
    "Import, then fork a kernel for each client that comes."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"   # as a kernel sets it, before matplotlib is imported
    import einx  # noqa: F401
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import regex  # noqa: F401
    import torch._dynamo  # noqa: F401   # optimisers load it, and comparisons of tensors what it loads
    import tyro  # noqa: F401
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # nobody asks how a kernel ended
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{place}.new")
        door.listen()
        os.rename(f"{place}.new", place)   # a client that sees the socket may come
        while True:
            client = door.accept()[0]
            if not os.fork():
                door.close()
                run(client)
            client.close()


def run(client: socket.socket) -> None:
    "Be the kernel of this client, and end when it does."
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
    asked = json.loads(words)
    for number, stream in enumerate(streams): os.dup2(stream, number)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["ipykernel_launcher", "--log-level=ERROR", f"--IPKernelApp.parent_handle={os.getppid()}", "-f", asked["connection_file"]]
    sys.path[:] = [place for place in sys.path if os.path.abspath(place) != os.path.dirname(os.path.abspath(__file__))]

    def watch():
        client.recv(1)
        os._exit(0)
    threading.Thread(target=watch, daemon=True).start()
    import numpy
    from ipykernel.kernelapp import launch_new_instance
    numpy.random.seed()   # unlike Python's own, numpy's chance would be that of every other kernel
    launch_new_instance()
    sys.exit()


def ask(place: str, connection_file: str) -> None:
    "Ask for a kernel, and stay as long as it does."
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(place)
        signal.signal(signal.SIGINT, signal.SIG_IGN)   # Jupyter interrupts a kernel before it asks it to end
        words = json.dumps({"folder": os.getcwd(), "environment": dict(os.environ), "connection_file": connection_file})
        socket.send_fds(client, [words.encode()], [0, 1, 2])
        client.recv(1)


if __name__ == "__main__": (ask if len(sys.argv) > 2 else wait)(*sys.argv[1:])
