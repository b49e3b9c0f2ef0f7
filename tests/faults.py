"""Let each call that writes fail, or be the last of its process: `faults.py FOLDER 1` tries them all, `faults.py FOLDER 7` every seventh.

A helper of test_whole_folders, in a process of its own that imports once and forks a child for each attempt. What is left is read by the course's own readers: it must
be the old files, the new ones, or be refused in one line; what else lies in the folder must be as it was; and the same command must then go through, and clear up."""
import builtins
import errno
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llm_course import bpe_tokenizer, checkpoint, data, pretrained
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, read_checkpoint
from llm_course.data import load_ids
from llm_course.engine import data_command, diary, hf_folders
from llm_course.engine.commands import run_command
from llm_course.engine.whole_folders import check_folder
from llm_course.optim import AdamW
from llm_course.pretrained import load_pretrained
from llm_course.training import TrainConfig, settle, train
from llm_course.transformer import Transformer

DEATH = "death"
HOW = errno.EIO, errno.ENOSPC, DEATH


class Faults:
    "Counts the calls of this process that change a disk, and lets one of them fail or be the last."
    def __init__(self, at=None, how=DEATH, below=""): self.at, self.how, self.below, self.seen = at, how, str(below), []

    def tell(self, event, path=""):
        if not isinstance(path, int) and not str(path).startswith(self.below): return   # such as the caches of a library
        self.seen.append(event)
        if len(self.seen) - 1 != self.at: return
        if self.how == DEATH: os._exit(9)
        if event == "rust": raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(self.how)} (os error {self.how})")
        raise OSError(self.how, os.strerror(self.how))

    def install(self):
        faults, real_open, real_save, real_low = self, builtins.open, hf_folders.save_file, os.open

        class Raw(io.FileIO):
            def write(self, some):
                faults.tell("write")
                return super().write(some)

        def opened(path, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
            if not set(mode) & set("wax+") or isinstance(path, int) or not str(path).startswith(self.below):
                return real_open(path, mode, buffering, encoding, errors, newline, closefd, opener)
            self.tell("open")
            raw = Raw(path, mode.replace("b", "").replace("t", ""), opener=opener)
            file = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

        def low(path, flags, *more, **named):
            if flags & (os.O_WRONLY | os.O_RDWR): self.tell("open", path)
            return real_low(path, flags, *more, **named)

        def saved(tensors, path, *more):
            self.tell("rust")
            result = real_save(tensors, path, *more)
            self.tell("rust")
            return result

        def watched(event, call): return lambda first, *more, **named: (self.tell(event, first), call(first, *more, **named))[1]
        builtins.open = io.open = opened
        os.open, hf_folders.save_file = low, saved
        for name in "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "remove", "chmod": setattr(os, name, watched(name, getattr(os, name)))


def forked(work, said):
    "Let a child do some work, with its words in a file; how it ended."
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with open(said, "wb") as file:
                for stream in 1, 2: os.dup2(file.fileno(), stream)
            work()
            status = 0
        except SystemExit as stop: status = stop.code
        except BaseException:
            import traceback
            os.write(2, traceback.format_exc().encode())
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Kind:
    "A way to write: `write(folder, which)` with the first or the second of two inputs; `read(folder)` gives what cannot be confused, or raises in one line."
    def __init__(self, base): self.base = base
    first_edition = None   # takes away what the first edition did not write


class Tokenizer(Kind):
    def write(self, folder, which): bpe_tokenizer.main(["--corpus", str(self.base/f"{which}.txt"), "--vocab_size", "270", "--output", str(folder/"tokenizer.json")])
    def read(self, folder): return BpeTokenizer.load(folder/"tokenizer.json").merges


class Data(Kind):
    def write(self, folder, which):
        data.main(["--tokenizer", str(self.base/f"{which}.json"), "--corpus", str(self.base/"first.txt"), "--val_corpus", str(self.base/"second.txt"), "--output", str(folder)])
    def read(self, folder):
        ids = [load_ids(folder/name, 300).tolist() for name in ("train.bin", "val.bin")]
        return ids, BpeTokenizer.load(folder/"tokenizer.json").merges
    def first_edition(self, folder): (folder/"data.manifest.json").unlink()


class Texts(Kind):
    def write(self, folder, which):
        with patch.object(data_command, "fetch", lambda *_: self.base/f"{which}.txt"): data.main(["--fetch", "shakespeare", "--output", str(folder)])
    def read(self, folder):
        for name in "train.txt", "val.txt": check_folder(folder/name, "texts")   # as each command that reads a corpus does
        return [(folder/name).read_bytes() for name in ("train.txt", "val.txt")]


class Checkpoint(Kind):
    def write(self, folder, which):
        model = load_model(self.base/f"{which}.pt", "cpu")
        run_command(TrainConfig, lambda _: checkpoint.save_checkpoint(model, AdamW(model.parameters(), 1e-3), 1, folder/"checkpoint.pt"), ["--train_data", "a", "--val_data", "b"])
    def read(self, folder): return read_checkpoint(folder/"checkpoint.pt")["model"]["head.weight"].tolist()


class Safetensors(Kind):
    def write(self, folder, which): checkpoint.main(["--model_path", str(self.base/f"{which}.pt"), "--output", str(folder/"model.safetensors")])
    def read(self, folder): return load_model(folder/"model.safetensors", "cpu").head.weight.tolist()


class Exported(Kind):
    output = "."
    def write(self, folder, which):
        pretrained.main(["export", "--model_path", str(self.base/f"{which}.pt"), "--tokenizer_path", str(self.base/f"{which}.json"), "--output", str(folder/self.output)])
    def read(self, folder):
        model, tokenizer = load_pretrained(folder/self.output, "cpu")
        return model.config, model.head.weight.tolist(), tokenizer.merges


class Gguf(Exported):
    output = "model.gguf"


class Folder(Exported):
    def read(self, folder):
        said = [json.loads((folder/name).read_bytes()) for name in ("generation_config.json", "tokenizer_config.json") if (folder/name).exists()]
        return super().read(folder), said
    def first_edition(self, folder):
        said = json.loads((folder/"config.json").read_bytes())
        del said[hf_folders.STAMP]
        (folder/"config.json").write_text(json.dumps(said), "utf-8", newline="\n")
        tensors = load_file(folder/"model.safetensors")
        save_file({name: x.clone() for name, x in tensors.items()}, folder/"model.safetensors", {"format": "pt"})


class Training(Kind):
    "Reads what training leaves by going on with it: the losses must be those of a run that nobody stopped."
    def config(self, folder):
        return settle(TrainConfig(
            train_data=self.base/"train.bin", val_data=self.base/"val.bin", tokenizer_path=self.base/"first.json", output=folder, max_seq_len=8, d_model=8, num_layers=1,
            num_heads=2, d_ff=12, batch_size=4, lr_max=1e-2, log_interval=1, val_interval=2, val_batches=1, checkpoint_interval=2, device="cpu", iterations=4, resume=True))
    def write(self, folder, which):
        config = self.config(folder)
        if which == "first": config = replace(config, iterations=2, cos_cycle_iters=4, warmup_iters=0)
        run_command(TrainConfig, lambda _: train(config), ["--train_data", "a", "--val_data", "b"])
    def read(self, folder):
        if not (folder/"checkpoint.pt").exists(): return None
        step = read_checkpoint(folder/"checkpoint.pt")["iteration"]
        load_model(folder/"checkpoint.pt", "cpu")
        return step, BpeTokenizer.load(folder/"tokenizer.json").merges
    def losses(self, folder): return [[line[k] for k in line if k.endswith("loss") or k in ("iteration", "grad_norm")] for line in diary.read_history(folder, 10)]


KINDS = {kind.__name__.lower(): kind for kind in (Tokenizer, Data, Texts, Checkpoint, Safetensors, Gguf, Folder, Training)}


def state_of(kind, folder, known):
    "What a folder holds: one of the `known` contents, by name; `refused`, in one line; or `mixed`."
    try: found = kind.read(folder)
    except (ValueError, OSError) as error:
        assert "\n" not in str(error), error
        return "refused"
    return next((name for name, content in known.items() if content == found), "mixed")


def attempt(kind, start, folder, at, how):
    "Start from a copy of a folder, write the second input, and let one call fail; how it ended, and the calls."
    shutil.copytree(start, folder)
    temporary = folder.with_name("temporary")
    temporary.mkdir(exist_ok=True)
    def work():
        tempfile.tempdir = str(temporary)
        faults = Faults(at, how, folder)
        faults.install()
        try: kind.write(folder, "second")
        finally:
            if at is None: folder.with_name("calls.json").write_bytes(json.dumps(faults.seen).encode())
    status = forked(work, folder.with_name("said.txt"))
    said = folder.with_name("said.txt").read_text("utf-8", errors="replace")
    shutil.rmtree(temporary)
    return status, said


def try_kind(name, base, every, counts):
    "Fail each call of a kind of writing in each way, over old files, over those of the first edition, and in an empty folder."
    kind, place = KINDS[name](base), base/name
    others = {"notes.txt": b"of the user", "more/notes.txt": b"of the user, too"}
    starts = {"empty": place/"empty"/"folder", "old": place/"old"/"folder"}
    for start in starts.values():
        for other, content in others.items():
            (start/other).parent.mkdir(parents=True, exist_ok=True)
            (start/other).write_bytes(content)
    assert forked(lambda: kind.write(starts["old"], "first"), place/"said.txt") == 0, (place/"said.txt").read_text("utf-8")
    shutil.copytree(starts["old"], place/"new"/"folder")
    assert forked(lambda: kind.write(place/"new"/"folder", "second"), place/"said.txt") == 0, (place/"said.txt").read_text("utf-8")
    known = {"old": kind.read(starts["old"]), "new": kind.read(place/"new"/"folder")}
    assert known["old"] != known["new"]
    if kind.first_edition:
        starts["first edition"] = place/"first"/"folder"
        shutil.copytree(starts["old"], starts["first edition"])
        kind.first_edition(starts["first edition"])
        assert state_of(kind, starts["first edition"], known) == "old"
    if name == "training":
        known |= {"nothing": None}
        starts.pop("empty")   # see tests/killed.py
    number = 0
    for started, start in starts.items():
        work = place/started/"work"
        assert attempt(kind, start, work, None, None)[0] == 0
        calls = json.loads(work.with_name("calls.json").read_bytes())
        shutil.rmtree(work)
        for at, call in enumerate(calls):
            for how in HOW:
                number += 1
                if number % every: continue
                where = f"{name}, {started} folder, call {at} ({call}), {how}"
                status, said = attempt(kind, start, work, at, how)
                found = state_of(kind, work, known)
                if how == DEATH: assert status == 9, f"{where}: it ended with {status}: {said}"
                elif status: assert status == 2 and "Traceback" not in said and [line[:7] for line in said.splitlines()].count("error: ") == 1, f"{where}: {said}"
                else: assert found == "new", f"{where}: it is {found}, and nothing was said"
                assert found != "mixed", f"{where}: mixed"
                assert all((work/other).read_bytes() == content for other, content in others.items()), f"{where}: a file of the user is lost"
                counts[found] += 1
                assert forked(partial(kind.write, work, "second"), place/"said.txt") == 0, f"{where}: {(place/'said.txt').read_text('utf-8')}"
                assert state_of(kind, work, known) == "new", f"{where}: not new after another try"
                left = [path for path in work.rglob("*") if "partial" in path.name or path.name == ".lock"]
                assert not left, f"{where}: {left} stayed"
                if name == "training": assert kind.losses(work) == kind.losses(place/"new"/"folder"), f"{where}: other losses"
                shutil.rmtree(work)


def prepare(base):
    "Two texts, two tokenizers and two models."
    for number, which in enumerate(("first", "second")):
        words = "the moth and the flame\nare thin\n" if number else "a cat sat on a mat\nand that is that\n"
        (base/f"{which}.txt").write_bytes(words.encode() * 40)
        BpeTokenizer.train([words], 270, ["<|endoftext|>"]).save(base/f"{which}.json")
        torch.manual_seed(number)
        model = Transformer(270, 16, 8, num_layers=1, num_heads=2, d_ff=12)
        checkpoint.save_checkpoint(model, AdamW(model.parameters(), 1e-3), number, base/f"{which}.pt")
    for name in "train", "val": (np.arange(600, dtype=np.uint16) * 7 % 270).tofile(base/f"{name}.bin")


def main(base, every, kinds):
    torch.set_num_threads(1)
    diary.tqdm = partial(diary.tqdm, disable=True)
    diary.losses_as_svg = lambda history: b"<svg/>"   # to draw takes longer than all the rest
    prepare(base)
    total = Counter()
    for name in kinds or KINDS:
        counts = Counter()
        try_kind(name, base, every, counts)
        print(f"{name:12} {counts.total():5} faults: {dict(sorted(counts.items()))}", flush=True)
        total += counts
    print(f"{'all':12} {total.total():5} faults: {dict(sorted(total.items()))}; 0 mixed, 0 files lost")


if __name__ == "__main__": main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
