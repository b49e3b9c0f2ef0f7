"""Part I: from a text file to ids on disk, whole processes; and from ids to batches."""
from functools import cache

from bench.runner import case, root

# What the regex library takes to cut the text. It is no bound: our loops cut the default pattern by comparing neighbours, which is faster.
PATTERN = "the pattern alone, on the same text in as many processes"


@case(peer="tokenizers' encode_batch_fast, 2 threads", package="tokenizers", limit=PATTERN, bound=False)
def encode_file(device):
    "40 MB of sources and documentation to ids on disk, from the start of the process to its end; two processes."
    return race_files("tokenizers")


@case(peer="tiktoken's encode_ordinary_batch, 2 threads", package="tiktoken", limit=PATTERN, bound=False)
def encode_file_tiktoken(device):
    "40 MB of sources and documentation to ids on disk, from the start of the process to its end; two processes."
    return race_files("tiktoken")


@case(peer="a training step (vocabulary 1,024, d_model 128, 4 layers, 12 rows of 64)")
def get_batch(device):
    "The batch for a small training step; the ratio is the part of the step that it would add."
    import numpy as np
    import torch

    from llm_course.data import get_batch
    from llm_course.transformer import AdamW, CrossEntropyLoss, Transformer
    ids = np.random.default_rng(0).integers(1024, size=1_000_000).astype(np.uint16)
    model = Transformer(1024, 64, 128, 4, 4, 344).to(device)
    optimizer, loss = AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), CrossEntropyLoss()
    inputs, targets = get_batch(ids, 12, 64, device)

    def step():
        loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert torch.isfinite(loss(model(inputs), targets))
    return lambda: get_batch(ids, 12, 64, device), step


@cache
def files():
    "A folder with the text, a tokenizer of 10,000 tokens trained on its first six megabytes, and a line to validate on."
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from llm_course.bpe_tokenizer import BpeTokenizer
    folder = TemporaryDirectory(prefix="bench-")
    home = Path(folder.name)
    mixed_text(home/"text.txt", 40_000_000)
    with open(home/"text.txt", encoding="utf-8", newline="") as file: BpeTokenizer.train([file.read(6_000_000)], 10_000).save(home/"tokenizer.json")
    (home/"val.txt").write_text("One line\nor two.\n", "utf-8", newline="\n")
    return folder, home


def mixed_text(path, size):
    "Write so many bytes of sources and documentation of the installed packages, shuffled, each with an end-of-text token."
    import random
    import sysconfig
    from pathlib import Path
    kinds = {".py", ".pyi", ".md", ".rst", ".txt", ".json", ".h"}
    found = sorted(file for place in {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")} for file in Path(place).rglob("*")
                   if file.suffix in kinds and file.is_file() and file.stat().st_size < 300_000)
    random.Random(0).shuffle(found)
    written = 0
    with open(path, "wb") as out:
        while written < size:
            for file in found:
                data = file.read_bytes()
                try: data.decode()
                except UnicodeDecodeError: continue
                written += out.write(data.replace(b"<|endoftext|>", b"") + b"<|endoftext|>")
                if written >= size: break


def race_files(library):
    "Our command and the peer's script, as processes of their own, which must end in the same file; and the pattern alone."
    import subprocess
    import sys
    _, home = files()

    def run(*words): subprocess.run([sys.executable, *map(str, words)], cwd=root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def ours(): run("-m", "llm_course.data", "--tokenizer", home/"tokenizer.json", "--corpus", home/"text.txt", "--val_corpus", home/"val.txt",
                    "--output", home/"ours", "--num_processes", 2)
    def theirs(): run("-m", "bench.encode_file", library, home/"tokenizer.json", home/"text.txt", home/"theirs.bin")
    ours(); theirs()
    assert (home/"ours/train.bin").read_bytes() == (home/"theirs.bin").read_bytes()
    return ours, theirs, lambda: cut_in_processes(home/"text.txt", 2)


def cut_in_processes(path, count):
    "Cut a text by the pattern alone, in processes of their own."
    import subprocess
    import sys
    running = [subprocess.Popen([sys.executable, "-m", "bench.pattern", str(path), str(part), str(count)], cwd=root) for part in range(count)]
    assert not any([process.wait() for process in running])
