"""Damage files that may come from strangers, and read each in a child with little memory: `python tests/fuzz.py --n 200`.

A mutant must be refused in one line that names it, or be read. No traceback, no hang, no memory out of proportion, no file touched elsewhere."""
import argparse
import base64
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"   # a thread that waits does not survive a fork

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llm_course import training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import save_checkpoint, save_model
from llm_course.data import load_ids, write_ids
from llm_course.engine.commands import parse, run_command
from llm_course.engine.exchange import open_model
from llm_course.engine.sampling import name_model_in_errors
from llm_course.generating import generate
from llm_course.optim import AdamW
from llm_course.pretrained import export_gguf, export_pretrained
from llm_course.transformer import Transformer

SECONDS, ROOM = 10, 1 << 30   # processor time, and bytes above what this process has
SHAPE = dict(vocab_size=320, max_seq_len=16, d_model=16, num_layers=2, num_heads=2, d_ff=24, num_kv_heads=1)
TEXT = "the cat sat on the mat, and the dog sat on the cat; in 1969 they ate 12 rats.\n" * 40


# ---- Damage

ODD = [None, True, False, 0, 1, -1, 2, 3, 1.5, -0.5, 1e300, float("nan"), float("inf"), 10**7, 2**24 - 1, 2**31, 2**63, -2**63, 10**400, "", "x", "../x", "/etc/passwd",
       [], {}, [1], ["x"], [[]], {"a": 1}, [None] * 3, "\ud800", "\x00", "ab" * 5000]
NUMBERS = [struct.pack(code, number) for code, number in [
    ("<i", 0), ("<i", 1), ("<i", -1), ("<i", -32), ("<i", 2**31 - 1), ("<I", 2**31), ("<I", 2**32 - 1), ("<I", 2**24 - 1), ("<I", 10**7), ("<q", -1), ("<Q", 2**63), ("<Q", 2**64 - 1),
    ("<q", 2**40), ("<f", float("nan")), ("<f", float("inf")), ("<f", 1e38)]]


def cut(data, dice): return data[:dice.randrange(len(data))]
def flip(data, dice):
    at = place(data, dice)
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1:]
def noise(data, dice):
    at = place(data, dice)
    return data[:at] + dice.randbytes(dice.choice([1, 4, 16])) + data[at + 4:]
def number(data, dice):
    at, new = place(data, dice) & ~3, dice.choice(NUMBERS)
    return data[:at] + new + data[at + len(new):]
def swap(data, dice):
    size = dice.choice([1, 2, 4, 8, 64])
    a, b = sorted([place(data, dice), place(data, dice)])
    if a + size > b: return flip(data, dice)
    return data[:a] + data[b:b + size] + data[a + size:b] + data[a:a + size] + data[b + size:]
def drop(data, dice):
    at = place(data, dice)
    return data[:at] + data[at + dice.choice([1, 4, 8, 32]):]
def repeat(data, dice):
    at, size = place(data, dice), dice.choice([1, 4, 8, 32, 256])
    return data[:at] + data[at:at + size] + data[at:]
def append(data, dice): return data + dice.choice([b"\0", b"\n", b"x" * 100, data[:64]])

def place(data, dice):
    "Anywhere; more often at the front, where sizes are."
    if not data: return 0
    return dice.randrange(min(len(data), dice.choice([64, 1024, len(data)])))

BYTES = [cut, flip, flip, noise, number, number, swap, drop, repeat, append]

def change_bytes(data, dice):
    how = dice.choice(BYTES)
    return how(data, dice), how.__name__

def change_lines(data, dice):
    "For texts: whole lines, or digits in them."
    lines = data.split(b"\n")
    at = dice.randrange(len(lines))
    how = dice.choice(["double", "drop", "swap", "number", "bytes"])
    if how == "double": lines.insert(at, lines[at])
    elif how == "drop": del lines[at]
    elif how == "swap": lines[at], lines[0] = lines[0], lines[at]
    elif how == "number": lines[at] = re.sub(rb"\d+", str(dice.choice([-5, 0, 2**31, 2**63, 10**400])).encode(), lines[at], count=1)
    else: return change_bytes(data, dice)
    return b"\n".join(lines), f"line {at}: {how}"

def change_diary(data, dice):
    "A value in a line of metrics, or a line."
    if dice.random() < .4: return change_lines(data, dice)
    lines = data.splitlines()
    at = dice.randrange(len(lines))
    tree, how = change_tree(json.loads(lines[at]), dice)
    lines[at] = json.dumps(tree).encode()
    return b"\n".join([*lines, b""]), how

def places(tree, path=""):
    "Every container in a tree, with each of its keys, and the way there."
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    if len(items) > 30: items = items[:10] + items[-20:]
    found = [(tree, key, f"{path}/{str(key)[:20]}") for key, _ in items]
    for (_, value), (*_, way) in zip(items, found): found += places(value, way)
    return found

def change_tree(tree, dice, odd=ODD):
    "Change one value, or take it away, or put it elsewhere; the tree is changed in place."
    found = places(tree)
    if not found: return None, "empty"
    owner, key, way = dice.choice(found)
    how = dice.choice(["value", "value", "value", "delete", "swap", "rename", "whole", "nest"])
    if how == "whole" and dice.random() < .8: how = "value"
    if how == "value": owner[key] = new = dice.choice(odd)
    elif how == "delete": del owner[key]
    elif how == "swap":
        other, there, _ = dice.choice(found)
        owner[key], other[there] = other[there], owner[key]
    elif how == "rename" and isinstance(owner, dict): owner[dice.choice(["x", "", "a.b", "0"])] = owner.pop(key)
    elif how == "nest":
        owner[key] = [owner[key]]
        for _ in range(dice.choice([0, 3, 500])): owner[key] = [owner[key]]
    else: return dice.choice(odd), "the whole"
    return tree, f"{how} {way}" + (f" = {short(new)}" if how == "value" else "")

def short(value):
    if isinstance(value, torch.Tensor): return f"tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, list | dict): return f"{type(value).__name__} of {len(value)}"
    return str(value)[:20]

def to_json(tree): return json.dumps(tree, indent=1, ensure_ascii=True).encode()

def change_json(data, dice):
    if dice.random() < .15: return change_bytes(data, dice)
    if dice.random() < .1:   # a key twice, the second with an odd value
        found = list(re.finditer(rb'"\w+":', data))
        if found:
            at = dice.choice(found)
            return data[:at.start()] + at[0] + json.dumps(dice.choice(ODD)).encode() + b"," + data[at.start():], f"double {at[0].decode()}"
    tree, how = change_tree(json.loads(data), dice)
    return to_json(tree), how

def change_safetensors(data, dice):
    "Bytes, or the header with its length put right, or what our files say in it, or the numbers."
    size, = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8:8 + size]), data[8 + size:]
    kind = dice.choice(["bytes", "header", "header", "config", "config", "tensors", "double"])
    if kind == "bytes": return change_bytes(data, dice)
    if kind == "tensors":
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(data)
            file.flush()
            tensors, about = load_file(file.name), header.get("__metadata__")
            name = dice.choice(sorted(tensors))
            tensors[name], how = odd_tensor(tensors[name], dice, plain=True)
            save_file(tensors, file.name, about)
            return Path(file.name).read_bytes(), f"{name}: {how}"
    if kind == "double":
        text = data[8:8 + size].decode().rstrip()
        name = dice.choice(list(header))
        text = text[:-1] + f",{json.dumps(name)}:{json.dumps(header[name])}" + "}"
        return struct.pack("<Q", len(text)) + text.encode() + rest, f"double {name}"
    about = header.get("__metadata__", {})
    if kind == "config" and "config" in about:
        tree, how = change_tree(json.loads(about["config"]), dice)
        about["config"] = json.dumps(tree)
    else: header, how = change_tree(header, dice)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest, how

def odd_tensor(x, dice, plain=False):
    "A tensor of another kind, shape, layout or value."
    kinds = {
        "bool": lambda: x > 0, "integers": lambda: x.to(torch.int8), "uint8": lambda: x.to(torch.uint8), "float8": lambda: x.to(torch.float8_e4m3fn), "float64": lambda: x.double(),
        "nan": lambda: x.float() * float("nan"), "empty": lambda: x[:0], "flat": lambda: x.flatten(), "longer": lambda: torch.cat([x, x]), "scalar": lambda: torch.tensor(1.),
        "1e39": lambda: x.double() * 1e39, "one more axis": lambda: x[None]}
    if not plain: kinds |= {
        "stride 0": lambda: torch.zeros(1).expand(10**9), "stride 0, same shape": lambda: x.float().flatten()[:1].expand(x.shape), "complex": lambda: x.to(torch.complex64),
        "sparse": lambda: x.float().to_sparse(), "meta": lambda: x.to("meta"), "parameter": lambda: torch.nn.Parameter(x.float()),
        "quantised": lambda: torch.quantize_per_tensor(x.float(), .1, 0, torch.qint8), "transposed": lambda: x.float().T.contiguous().T if x.ndim > 1 else x, "a list": lambda: x.tolist(),
        "none": lambda: None, "text": lambda: "x", "bytearray": lambda: bytearray(100)}
    how = dice.choice(list(kinds))
    return kinds[how](), how

def laughs():
    "Thirty lists, each of which holds the one before it twice."
    found = ["ha"]
    for _ in range(30): found = [found, found]
    return found

def change_state(data, dice):
    "A checkpoint: bytes, the pickle with its checksum put right, one value, or one tensor."
    kind = dice.choice(["bytes", "pickle", "pickle", "value", "value", "value", "tensor", "tensor", "deflated", "bomb"])
    if kind == "bytes": return change_bytes(data, dice)
    if kind in ("pickle", "deflated", "bomb"):
        old, file = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
        how = ""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as new:
            for info in old.infolist():
                inside = old.read(info)
                if info.filename.endswith("data.pkl"):
                    if kind == "pickle": inside, how = change_bytes(inside, dice)
                    if kind == "bomb": inside = b"\x80\x02c__builtin__\nbytearray\nq\x00\x8a\x05\x00\xe4\x0bT\x02\x85q\x01Rq\x02."
                elif kind == "deflated" and info.filename.endswith(("/0", "byteorder")): inside = bytes(10**8)
                new.writestr(info.filename, inside)
        return file.getvalue(), f"{kind} {how}"
    state = torch.load(io.BytesIO(data), weights_only=True)
    if kind == "value":
        state, how = change_tree(state, dice, [*ODD, laughs(), torch.zeros(2), torch.zeros(1).expand(10**9), bytearray(8), (1, 2), {1: 2}, {"params": [0]}])
    else:
        owner, name = dice.choice([(owner, name) for owner, name, _ in places(state) if isinstance(owner[name], torch.Tensor)])
        owner[name], how = odd_tensor(owner[name], dice)
        how = f"{name}: {how}"
    file = io.BytesIO()
    try: torch.save(state, file)
    except Exception: return change_bytes(data, dice)   # what even torch cannot write
    return file.getvalue(), how

def change_npy(data, dice):
    if dice.random() < .4: return change_bytes(data, dice)
    at = dice.randrange(10, 80)
    new = dice.choice([b"(", b")", b"'", b",", b"{", b"9" * 30, b"L", b"\\", b"\n", b"\0", b"O", b"-1", b"[" * 20, bytes([data[at] ^ 1 << dice.randrange(8)])])
    return data[:at] + new + data[at + len(new):], f"header at {at}: {new!r}"


# ---- Files to damage, and what reads them

@dataclass
class Kind:
    "What is damaged in a folder, how, and what a command makes of it."
    files: list[str]
    change: Callable
    read: Callable[[Path], str]     # A digest


def digest(*parts):
    found = hashlib.sha256()
    for part in parts: found.update(part if isinstance(part, bytes) else repr(part).encode())
    return found.hexdigest()

def of_model(model, tokenizer=None):
    "The parameters; the tokens; and a text, which NaN and ids out of range would stop."
    parts = [repr(model.config), *(p.detach().contiguous().float().numpy().tobytes() for p in model.parameters())]
    if tokenizer is not None: parts += [sorted(tokenizer.vocab.items()), tokenizer.merges, tokenizer.special_tokens, tokenizer.pattern, vars(tokenizer).get("ends"), vars(tokenizer).get("roles"),
                                        generate(model, tokenizer, "the ", 3, temperature=0)]
    return digest(*parts)

def own(name):
    def read(folder):
        model, _ = open_model(folder/name, "--model_path", "cpu")
        with name_model_in_errors(folder/name): return of_model(model, BpeTokenizer.load(folder/"tokenizer.json"))
    return read

def foreign(name):
    def read(folder):
        with name_model_in_errors(folder/name): return of_model(*open_model(folder/name, "--model_path", "cpu"))
    return read

def of_tokenizer(tokenizer): return digest(sorted(tokenizer.vocab.items()), tokenizer.merges, tokenizer.special_tokens, tokenizer.pattern, tokenizer.encode(TEXT[:99]))

def flags(folder):
    return [f"--train_data={folder/'ids.bin'}", f"--val_data={folder/'val.bin'}", "--cos_cycle_iters=3", "--warmup_iters=0", "--max_seq_len=8", "--d_model=16", "--num_layers=1", "--num_heads=2", "--d_ff=24",
            "--batch_size=2", "--iterations=3", "--val_batches=1", "--log_interval=1", "--checkpoint_interval=1", "--no-live_plot", "--device=cpu"]

def train_with(folder, *more):
    "As the command does; what goes wrong is told by `run_command` around it."
    training.train(parse(training.TrainConfig, [*flags(folder), f"--output={folder/'run'}", *more]))

def resumed(folder):
    train_with(folder, "--resume", "--iterations=4")
    return digest(*(p.numpy().tobytes() for p in torch.load(folder/"run"/"checkpoint.pt", weights_only=True)["model"].values()))

KINDS = {
    "checkpoint.pt": Kind(["model.pt"], change_state, own("model.pt")),
    "course .safetensors": Kind(["model.safetensors"], change_safetensors, own("model.safetensors")),
    "HF config.json": Kind(["hf/config.json"], change_json, foreign("hf")),
    "HF model.safetensors": Kind(["hf/model.safetensors"], change_safetensors, foreign("hf")),
    "HF index.json": Kind(["shards/model.safetensors.index.json"], change_json, foreign("shards")),
    "HF tokenizer/generation files": Kind(["hf/tokenizer_config.json", "hf/generation_config.json"], change_json, foreign("hf")),
    "tokenizer.json": Kind(["hf/tokenizer.json"], change_json, lambda folder: of_tokenizer(BpeTokenizer.load(folder/"hf"/"tokenizer.json"))),
    ".bin/.npy": Kind(["ids.bin"], change_npy, lambda folder: digest(load_ids(folder/"ids.bin", BpeTokenizer.load(folder/"tokenizer.json").vocab_size).tolist())),
    "GGUF": Kind(["model.gguf"], change_bytes, foreign("model.gguf")),
    "llama2.c": Kind(["c/model.bin"], change_bytes, foreign("c/model.bin")),
    "tokenizer.bin": Kind(["c/tokenizer.bin"], change_bytes, foreign("c/model.bin")),
    "tiktoken": Kind(["ranks.tiktoken"], change_lines, lambda folder: of_tokenizer(BpeTokenizer.from_tiktoken(folder/"ranks.tiktoken"))),
    "GPT-2 files": Kind(["vocab.json", "merges.txt"], lambda data, dice: (change_json if data[:1] == b"{" else change_lines)(data, dice),
                        lambda folder: of_tokenizer(BpeTokenizer.from_gpt2(folder/"vocab.json", folder/"merges.txt"))),
    "run folder": Kind(["run/checkpoint.pt", "run/checkpoint.pt", "run/checkpoint.pt", "run/metrics.jsonl", "run/config.json"],
                       lambda data, dice: (change_state if data[:2] == b"PK" else change_json if data[:2] == b"{\n" else change_diary)(data, dice), resumed),
}


def make(folder):
    "Write one good file of each kind."
    torch.manual_seed(0)
    tokenizer = BpeTokenizer.train([TEXT], 280, ["<|endoftext|>"])
    model = Transformer(**SHAPE | {"vocab_size": tokenizer.vocab_size})
    optimizer = AdamW(model.parameters())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    save_checkpoint(model, optimizer, 1, folder/"model.pt")
    save_model(model, folder/"model.safetensors")
    tokenizer.save(folder/"tokenizer.json")
    export_pretrained(model, tokenizer, folder/"hf")
    export_pretrained(model, tokenizer, folder/"shards")
    tensors, index = load_file(folder/"hf"/"model.safetensors"), {}
    for i, names in enumerate([sorted(tensors)[::2], sorted(tensors)[1::2]]):
        save_file({name: tensors[name] for name in names}, folder/"shards"/f"model-{i}.safetensors")
        index |= dict.fromkeys(names, f"model-{i}.safetensors")
    (folder/"shards"/"model.safetensors").unlink()
    (folder/"shards"/"model.safetensors.index.json").write_bytes(to_json({"metadata": {"total_size": 1}, "weight_map": index}))
    export_gguf(model, tokenizer, folder/"model.gguf")
    (folder/"c").mkdir()
    write_llama2c(folder/"c")
    byte, joined = [bytes([i]) for i in range(256)], [left + right for left, right in tokenizer.merges]
    (folder/"ranks.tiktoken").write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate([*byte, *joined])))
    from llm_course.engine.spelling import spell
    (folder/"vocab.json").write_bytes(to_json({spell(token): i for i, token in enumerate([*byte, *joined])} | {"<|endoftext|>": tokenizer.vocab_size - 1}))
    (folder/"merges.txt").write_text("".join(f"{spell(left)} {spell(right)}\n" for left, right in tokenizer.merges), "utf-8", newline="\n")
    ids = np.array(tokenizer.encode(TEXT))
    for name in "ids.bin", "val.bin":
        with open(folder/name, "wb") as file: write_ids(file, [ids], tokenizer.vocab_size)
    child(lambda: train_with(folder), folder)   # a process that has trained has threads


def write_llama2c(folder):
    "A model of one block, in version 1, and the pieces beside it."
    d, d_ff, count, dice = 8, 12, 262, np.random.default_rng(0)
    header = struct.pack("<Ii7iB", 0x616b3432, 1, d, d_ff, 1, 2, 2, count, 16, 1)
    numbers = dice.standard_normal(3 * d + count * d + 4 * d * d + 3 * d * d_ff).astype("<f4")
    (folder/"model.bin").write_bytes(header.ljust(256, b"\0") + numbers.tobytes())
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), "t", "h", "th"]
    (folder/"tokenizer.bin").write_bytes(struct.pack("<I", 8) + b"".join(struct.pack("<fi", -float(i), len(piece)) + piece.encode() for i, piece in enumerate(pieces)))


# ---- Children

@dataclass(frozen=True)
class NoFlags:
    "Reads one file."


def child(work, folder):
    "Do some work in a child: its exit status or minus a signal, what it said, its result, and its memory in bytes."
    heard, said = os.pipe()
    errors = tempfile.TemporaryFile()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            import resource
            os.close(heard)
            os.chdir(folder)
            for stream in 1, 2: os.dup2(errors.fileno(), stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            virtual = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (virtual + ROOM,) * 2)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(12 * SECONDS)   # for what sleeps
            os.write(said, str(work()).encode())
            status = 0
        except SystemExit as error: status = error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(said)
    with os.fdopen(heard, "rb") as pipe: result = pipe.read().decode()
    _, status, used = os.wait4(pid, 0)
    errors.seek(0)
    return os.waitstatus_to_exitcode(status), errors.read().decode(errors="replace"), result, used.ru_maxrss << 10


def state_of(folder):
    "What lies in a folder, to see whether anything was touched."
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def read_as_command(kind, folder):
    found = []
    run_command(NoFlags, lambda _: found.append(kind.read(folder)), [], "fuzz")
    return found[0]


def judge(kind, name, folder, wanted, base):
    "Read a damaged file: the outcome, and what was said."
    began = time.time()
    status, said, result, memory = child(partial(read_as_command, kind, folder), folder)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    last = said.strip().splitlines()[-1:] or [""]
    if status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGALRM): return "hang", last[0]
    if status < 0: return "traceback", f"signal {-status}"
    if memory > base + (ROOM >> 1) or "not enough memory" in said: return "blow-up", f"{(memory - base) >> 20} MiB {last[0]}"
    if status == 0: return "equal" if result == wanted else "different", f"{time.time() - began:.1f} s"
    if status != 2: return "traceback", said[-1500:]
    clear = len(lines) == 1 and "Traceback" not in said and str(folder) in lines[0] and len(lines[0]) < 1000
    return "clear" if clear else "unclear", last[0]


OUTCOMES = ["clear", "unclear", "equal", "different", "traceback", "hang", "blow-up", "touched"]
BAD = {"unclear", "traceback", "hang", "blow-up", "touched"}


def fuzz(names, n, seed=0, tell=lambda *words: None):
    "Try n mutants of each kind; the outcomes, by kind."
    torch.set_num_threads(1)
    table = {}
    with tempfile.TemporaryDirectory() as home:
        good, outside = Path(home)/"good", Path(home)/"outside"
        good.mkdir()
        outside.mkdir()
        (outside/"canary").write_text("untouched\n", "utf-8", newline="\n")
        make(good)
        for name in names:
            kind, counts, dice = KINDS[name], Counter(), random.Random(f"{seed} {name}")
            folder = Path(home)/"mutant"
            shutil.copytree(good, folder)
            status, said, wanted, base = child(partial(read_as_command, kind, folder), folder)
            assert status == 0, said
            for i in range(n):
                shutil.rmtree(folder)
                shutil.copytree(good, folder)
                file = folder/dice.choice(kind.files)
                before, how = file.read_bytes(), "unchanged"
                if name == "run folder" and dice.random() < .05:   # what is written there leads elsewhere
                    how = "link " + dice.choice(["loss.svg", "metrics.jsonl", "checkpoint.pt.partial", "config.json", "tokenizer.json"])
                    (folder/"run"/how.split()[1]).unlink(missing_ok=True)
                    (folder/"run"/how.split()[1]).symlink_to(outside/"canary")
                else:
                    try: data, how = kind.change(before, dice)
                    except (ValueError, TypeError, IndexError, RuntimeError, KeyError, AttributeError): data, how = change_bytes(before, dice)   # what nobody could write
                    file.write_bytes(data)
                calm = state_of(outside), state_of(good)
                outcome, why = judge(kind, name, folder, wanted, base)
                if (state_of(outside), state_of(good)) != calm: outcome, why = "touched", how
                counts[outcome] += 1
                tell(name, i, outcome, f"{file.name}: {how}", why.replace(str(folder), "…"))
            shutil.rmtree(folder)
            table[name] = counts
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="of these alone: " + ", ".join(KINDS))
    parser.add_argument("--show", nargs="*", default=sorted(BAD), help="outcomes to tell one by one")
    asked = parser.parse_args()
    def tell(name, i, outcome, how, why):
        if outcome in asked.show: print(ascii(f"{name} {i}: {outcome}: {how}: {why}")[1:-1], flush=True)
    began = time.time()
    table = fuzz(asked.kind or KINDS, asked.n, asked.seed, tell)
    print("| kind | n | " + " | ".join(OUTCOMES) + " |\n|" + "---|" * (len(OUTCOMES) + 2))
    for name, counts in table.items(): print(f"| {name} | {asked.n} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
    print(f"{time.time() - began:.0f} s")
    sys.exit(any(counts[outcome] for counts in table.values() for outcome in BAD))


if __name__ == "__main__": main()
