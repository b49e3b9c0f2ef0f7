"""Every command line of the course, on a tiny corpus, from text to generated text; and what each says to bad input."""
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import book
import numpy as np
import pytest
import torch
from apart import apart

from llm_course.engine import commands
from llm_course.engine.commands import parse, run_command

root = Path(__file__).parents[1]

SHAPE = "--max_seq_len 16 --d_model 16 --num_layers 1 --num_heads 2 --d_ff 24 --batch_size 4".split()
SHORT = "--iterations 3 --cos_cycle_iters 3 --warmup_iters 1 --log_interval 1 --val_interval 2 --val_batches 1 --checkpoint_interval 2 --device cpu".split()


def run(module, *words, launcher=(), **env):
    "Run a command as a user would, in a process of its own."
    done = apart([*launcher, "-m", f"llm_course.{module}", *words], {**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, done.stderr
    return done


def here(module, *words):
    "Run a command in this process, which spares an import of torch."
    importlib.import_module(f"llm_course.{module}").main([*map(str, words)])


@pytest.fixture(scope="session")
def made(made_once):
    "A corpus, and all that the commands make of it."
    return made_once("commands", make)


def make(folder):
    lines = [f"SPEAKER {i % 7}:\nThe {i}th line of a play that nobody wrote.\n\n" for i in range(400)]
    (folder/"corpus.txt").write_text("".join(lines[:200]) + "<|endoftext|>" + "".join(lines[200:]) + "<|endoftext|>", "utf-8", newline="\n")
    run("bpe_tokenizer", "--corpus", folder/"corpus.txt", "--vocab_size", 300, "--output", folder/"tokenizer.json")
    run("data", "--tokenizer", folder/"tokenizer.json", "--corpus", folder/"corpus.txt", "--output", folder, "--val_fraction", 0.3)
    data = ["--train_data", folder/"train.bin", "--val_data", folder/"val.bin"]
    run("training", *data, *SHAPE, *SHORT, "--output", folder/"run", "--vocab_size", 300)


def test_tokenizer_is_read_by_hugging_face(made):
    from tokenizers import Tokenizer

    from llm_course import BpeTokenizer
    text = (made/"corpus.txt").read_text("utf-8")
    ours = BpeTokenizer.load(made/"tokenizer.json").encode(text)
    assert ours == Tokenizer.from_file(str(made/"tokenizer.json")).encode(text).ids
    assert len(ours) == sum(len(np.load(made/f"{split}.bin", mmap_mode="r")) for split in ("train", "val"))


def test_run_folder_holds_what_the_design_says(made):
    assert {p.name for p in (made/"run").iterdir()} == {"config.json", "metrics.jsonl", "loss.svg", "checkpoint.pt", "best.pt", "tokenizer.json"}
    lines = [json.loads(line) for line in (made/"run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert all({"train_loss", "lr", "grad_norm", "tokens_per_second"} <= line.keys() for line in lines)
    rows = re.findall(r"^\| (`.+?) \|", next("".join(cell["source"]) for cell in book.cells(root/"nbs/engine/diary.ipynb") if cell["id"] == "names-md"), re.M)
    assert set().union(*lines) <= {name for row in rows for name in re.findall(r"\w+", row)}   # each is explained
    assert "val_loss" in lines[1] and lines[2]["bits_per_byte"] > 0
    assert abs(lines[0]["train_loss"] - np.log(300)) < 0.5   # an untrained model knows nothing
    assert (made/"run/loss.svg").read_text("utf-8").lstrip().startswith("<?xml")


def test_generating_speaks(made):
    words = ["--model_path", made/"run/checkpoint.pt", "--tokenizer_path", made/"tokenizer.json", "--prompt", "SPEAKER", "--max_tokens", 5]
    said = [run("generating", *words, "--temperature", 0.8, "--top_p", 0.9, "--device", "cpu", "--seed", 1).stdout for _ in range(2)]
    assert said[0] == said[1] and said[0].startswith("SPEAKER") and len(said[0]) > len("SPEAKER\n")


def test_generating_finds_the_tokenizer_beside_the_model(made, capsys):
    here("generating", "--model_path", made/"run/best.pt", "--prompt", "The", "--max_tokens", 2)
    assert capsys.readouterr().out.startswith("The")


def test_a_run_folder_stands_for_its_best_model(made, tmp_path, capsys):
    from llm_course.checkpoint import load_model
    from llm_course.engine.exchange import open_model
    from llm_course.engine.run_config import model_in
    said = []
    for path in made/"run", made/"run/best.pt":
        here("generating", "--model_path", path, "--prompt", "The", "--max_tokens", 4, "--seed", 0, "--device", "cpu")
        said.append(capsys.readouterr().out)
    opened, best = open_model(made/"run", "--model_path", "cpu")[0], load_model(made/"run/best.pt", "cpu")
    assert said[0] == said[1] and all(torch.equal(a, b) for a, b in zip(opened.parameters(), best.parameters(), strict=True))
    (tmp_path/"export").mkdir(); (tmp_path/"best.pt").touch()
    assert model_in(tmp_path) == tmp_path/"export"   # a run that taught a model has a tokenizer there alone


def test_a_run_folder_means_its_best_model_from_python_too_and_for_the_weights_alone(made, tmp_path):
    from llm_course import checkpoint, load_model, load_pretrained
    checkpoint.main(["--model_path", str(made/"run"), "--output", str(tmp_path/"alone.safetensors"), "--dtype", "float32"])
    best = load_model(made/"run/best.pt", "cpu").state_dict()
    for path in made/"run", tmp_path/"alone.safetensors": assert all(torch.equal(x, best[name]) for name, x in load_model(path, "cpu").state_dict().items())
    with pytest.raises(ValueError, match="run is a run folder of this course: load_model opens it"): load_pretrained(made/"run")
    with pytest.raises(ValueError, match=r"best\.pt is a checkpoint of this course: load_model opens it"): load_pretrained(made/"run/best.pt")
    (tmp_path/"none").mkdir()
    with pytest.raises(ValueError, match="none is a folder without a checkpoint of this course; load_pretrained opens"): load_model(tmp_path/"none")


def test_a_folder_of_hugging_faces_takes_the_tokenizer_that_is_named(made, tmp_path, capsys):
    from llm_course import BpeTokenizer, export_pretrained, generating, load_model, load_pretrained, training
    model, tokenizer, said = load_model(made/"run", "cpu"), BpeTokenizer.load(made/"tokenizer.json"), set()
    export_pretrained(model, tokenizer, tmp_path/"bare")
    (tmp_path/"bare/tokenizer.json").unlink()
    for path in tmp_path/"bare", made/"run":
        generating.main(["--model_path", str(path), "--tokenizer", str(made/"tokenizer.json"), "--max_tokens", "4", "--seed", "0", "--device", "cpu"])
        said.add(capsys.readouterr().out)
    assert len(said) == 1
    again, named = load_pretrained(tmp_path/"bare", "cpu", tokenizer=tokenizer)
    assert named is tokenizer and torch.equal(again.head.weight, model.head.weight)
    data = ["--train_data", str(made/"train.bin"), "--val_data", str(made/"val.bin"), "--batch_size", "4", "--max_seq_len", "16"]   # its tokenizer lies beside it
    training.main([*data, *SHORT, "--init_from", str(tmp_path/"bare"), "--iterations", "1", "--output", str(tmp_path/"tuned")])
    with pytest.raises(ValueError, match=r"bare lacks tokenizer\.json; save the tokenizer there, too, .* or name one by --tokenizer_path"): load_pretrained(tmp_path/"bare")


def test_generating_without_a_model_uses_the_demo(capsys):
    here("generating", "--prompt", "ROMEO:", "--max_tokens", 8, "--seed", 0)
    assert capsys.readouterr().out.startswith("ROMEO:")


OWN_PARTS = """from torch import nn
class Halved(nn.RMSNorm):
    def forward(self, x): return super().forward(x) / 2
parts = {"norm": Halved}
"""


def test_a_model_with_parts_of_ones_own_opens_where_their_file_is_named(made, tmp_path, capsys):
    from llm_course import checkpoint, generating
    from llm_course.engine.parts import read_parts
    from llm_course.optim import AdamW
    from llm_course.transformer import Transformer
    (tmp_path/"own.py").write_text(OWN_PARTS, "utf-8", newline="\n")
    model = Transformer(300, 16, 16, 1, 2, 24, parts=read_parts(tmp_path/"own.py"))
    checkpoint.save_checkpoint(model, AdamW(model.parameters()), 0, tmp_path/"own.pt")
    own = ["--parts", str(tmp_path/"own.py")]
    checkpoint.main(["--model_path", str(tmp_path/"own.pt"), "--output", str(tmp_path/"own.safetensors"), "--dtype", "float32", *own])
    said = set()
    for file in "own.pt", "own.safetensors":
        words = ["--model_path", str(tmp_path/file), "--tokenizer_path", str(made/"tokenizer.json"), "--max_tokens", "4", "--seed", "0", "--device", "cpu"]
        capsys.readouterr()
        generating.main([*words, *own])
        said.add(capsys.readouterr().out)
        with pytest.raises(SystemExit): generating.main(words)
        assert "needs parts that are not this course's own (norm: own.Halved); name a file that defines them by --parts" in (error := capsys.readouterr().err) and "--parts" in error
    assert len(said) == 1
    with pytest.raises(SystemExit): importlib.import_module("llm_course.pretrained").main(["export", "--model_path", str(tmp_path/"own.pt"), "--output", str(tmp_path/"export")])
    assert "it cannot be exported to other programs" in capsys.readouterr().err


@pytest.mark.parametrize("source, said", [
    ("parts = 1/0", "cannot be run: ZeroDivisionError"), ("def", "cannot be run: SyntaxError"), ("part = {}", "must define a dictionary parts"), ("parts = {'nrom': print}", "no role 'nrom'"),
    (None, "does not exist")], ids=str)
def test_a_file_of_parts_that_is_none_is_refused(source, said, tmp_path, capsys):
    from llm_course import generating
    if source is not None: (tmp_path/"own.py").write_text(source, "utf-8", newline="\n")
    with pytest.raises(SystemExit) as stop: generating.main(["--parts", str(tmp_path/"own.py")])
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_a_prompt_is_not_repeated_where_that_is_not_wanted(capsys):
    words = ["--prompt", "ROMEO:", "--max_tokens", 4, "--seed", 0, "--device", "cpu"]
    here("generating", *words)
    whole = capsys.readouterr().out
    here("generating", *words, "--no_echo")
    assert "ROMEO:" + capsys.readouterr().out == whole


def test_exported_model_gives_the_same_text(made, tmp_path, capsys):
    here("checkpoint", "--model_path", made/"run/checkpoint.pt", "--output", tmp_path/"model.safetensors", "--dtype", "float32")
    words = "--tokenizer_path", made/"tokenizer.json", "--prompt", "The", "--max_tokens", 4, "--temperature", 0
    capsys.readouterr()
    said = []
    for path in made/"run/checkpoint.pt", tmp_path/"model.safetensors":
        here("generating", "--model_path", path, *words)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0].startswith("The")


def values(folder, key): return [json.loads(line)[key] for line in (folder/"metrics.jsonl").read_text("utf-8").splitlines()]


def losses(folder): return values(folder, "train_loss")


def test_resuming_gives_the_same_losses(made, tmp_path, capsys):
    data = ["--train_data", made/"train.bin", "--val_data", made/"val.bin", *SHAPE, *SHORT, "--output", tmp_path/"parts"]
    run("training", *data, "--iterations", 2)
    resumed = run("training", *data, "--resume")
    assert losses(made/"run") == losses(tmp_path/"parts")
    assert "nats per token" in resumed.stdout
    capsys.readouterr()
    here("training", *data, "--resume")   # nothing left to do
    assert capsys.readouterr().out == resumed.stdout and len(losses(tmp_path/"parts")) == 3


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_starts_two_processes_again_which_learn_what_one_does(made, tmp_path, parallel):
    "One of them is killed after the first checkpoint."
    data = ["--train_data", made/"train.bin", "--val_data", made/"val.bin", *SHAPE, *SHORT]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max_restarts", "1", Path(__file__).with_name("killed_ranks.py")]
    done = run("training", *data, "--output", tmp_path/"two", "--parallel", parallel, "--parallel_timeout", 900, "--resume", launcher=torchrun)
    assert re.findall(r"attempt 1, step (\d)", done.stdout) == ["3"]   # it went on
    if sys.platform != "win32":   # where a process that is ended hears nothing of it
        said = re.findall("process 0 of 2 was told to end .*checkpoint.pt is whole; .*--resume goes on from it|another process of this run has ended.*--resume goes on", done.stderr)
        assert len(said) == 1 and (parallel == "fsdp" or "was told to end" in said[0]), done.stderr
    np.testing.assert_allclose(losses(tmp_path/"two"), losses(made/"run"), rtol=1e-5)
    np.testing.assert_allclose(values(tmp_path/"two", "grad_norm"), values(made/"run", "grad_norm"), rtol=1e-4)
    here("generating", "--model_path", tmp_path/"two/checkpoint.pt", "--prompt", "The", "--max_tokens", 2)   # the file is whole


@pytest.mark.long
def test_half_precision_compile_and_accumulation_run(made, tmp_path):
    data = ["--train_data", made/"train.bin", "--val_data", made/"val.bin", *SHAPE, *SHORT]
    run("training", *data, "--output", tmp_path/"bf16", "--precision", "bfloat16", "--compile")
    np.testing.assert_allclose(losses(tmp_path/"bf16"), losses(made/"run"), rtol=0.02)
    here("training", *data, "--output", tmp_path/"fp16", "--precision", "float16")
    np.testing.assert_allclose(losses(tmp_path/"fp16"), losses(made/"run"), rtol=0.02)
    here("training", *data, "--output", tmp_path/"parts", "--batch_size", 2, "--grad_accumulation", 2)
    np.testing.assert_allclose(losses(tmp_path/"parts"), losses(made/"run"), rtol=1e-4)


# What follows is called in this process, which spares an import of torch for each line.

@pytest.fixture
def junk(tmp_path, made):
    "Files that no command should accept."
    (tmp_path/"empty.txt").touch()
    (tmp_path/"tiny.txt").write_text("ab", "utf-8", newline="\n")
    (tmp_path/"latin1.txt").write_bytes(b"caf\xe9\n" * 50)
    (tmp_path/"junk.json").write_text("{", "utf-8", newline="\n")
    (tmp_path/"other.json").write_text('{"model": 1}', "utf-8", newline="\n")
    (tmp_path/"junk.pt").write_bytes(b"not a checkpoint")
    (tmp_path/"junk.safetensors").write_bytes(b"not a model")
    (tmp_path/"junk.bin").write_bytes(b"\x93NUMPY junk")
    (tmp_path/"odd.bin").write_bytes(b"\x01\x02\x03")
    (tmp_path/"empty.bin").touch()
    for name, array in {"float": np.zeros(99), "high": np.arange(400, dtype=np.uint16), "short": np.zeros(5, dtype=np.uint16)}.items():
        with open(tmp_path/f"{name}.bin", "wb") as file: np.save(file, array)
    torch.save({"weights": torch.ones(2)}, tmp_path/"foreign.pt")
    vast = b"{'descr': '<i8', 'fortran_order': False, 'shape': (10000000000000000000000,)}".ljust(117) + b"\n"
    (tmp_path/"vast.bin").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + vast + b"\0"*80)
    torch.save(SystemError("code"), tmp_path/"code.pt")
    (tmp_path/"train.bin").write_text("a text by this name\n" * 9, "utf-8", newline="\n")
    tokenizer = json.loads((made/"tokenizer.json").read_text("utf-8"))
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("
    (tmp_path/"pattern.json").write_text(json.dumps(tokenizer), "utf-8", newline="\n")
    (tmp_path/"own").mkdir()
    torch.save({"iteration": 1, "config": None, "model": {}, "optimizer": {}}, tmp_path/"own/checkpoint.pt")
    (tmp_path/"torn").mkdir()
    (tmp_path/"torn/val.bin").mkdir()
    (tmp_path/"file").write_text("in the way", "utf-8", newline="\n")
    return tmp_path


TRAIN = f"training --train_data MADE/train.bin --val_data MADE/val.bin --output OUT {' '.join(SHAPE + SHORT)}"
REFUSED = {   # the command: what its one line must mention
    "bpe_tokenizer --corpus missing.txt": "--corpus missing.txt does not exist",
    "bpe_tokenizer --corpus JUNK": "is not UTF-8",
    "bpe_tokenizer --corpus JUNK/empty.txt --output OUT/t.json": "empty.txt",
    "bpe_tokenizer --corpus JUNK/latin1.txt --output OUT/t.json": "UTF-8",
    "bpe_tokenizer --corpus MADE/corpus.txt --vocab_size 255 --output OUT/t.json": "--vocab_size",
    "bpe_tokenizer --corpus MADE/corpus.txt --vocab_size -1 --output OUT/t.json": "--vocab_size",
    "bpe_tokenizer --corpus MADE/corpus.txt --output JUNK/file/t.json": "--output",
    "bpe_tokenizer --corpus MADE/corpus.txt --output JUNK": "--output JUNK is a folder",
    "data --tokenizer MADE/tokenizer.json --corpus missing.txt --output OUT": "--corpus missing.txt does not exist",
    "data --tokenizer missing.json --corpus MADE/corpus.txt --output OUT": "--tokenizer missing.json does not exist",
    "data --tokenizer JUNK/junk.json --corpus MADE/corpus.txt --output OUT": "junk.json",
    "data --tokenizer JUNK/other.json --corpus MADE/corpus.txt --output OUT": "other.json",
    "data --tokenizer MADE/tokenizer.json --corpus JUNK --output OUT": "is not UTF-8",
    "data --tokenizer MADE/tokenizer.json --corpus JUNK/empty.txt --output OUT": "empty",
    "data --tokenizer MADE/tokenizer.json --corpus JUNK/latin1.txt --output OUT": "UTF-8",
    "data --tokenizer MADE/tokenizer.json --corpus MADE/corpus.txt --output JUNK/file": "--output",
    "data --tokenizer MADE/tokenizer.json --corpus MADE/corpus.txt --output OUT --val_fraction 1.5": "--val_fraction",
    "data --tokenizer MADE/tokenizer.json --corpus JUNK/train.bin --output JUNK": "--corpus JUNK/train.bin would be overwritten",
    "data --tokenizer MADE/tokenizer.json --corpus MADE/corpus.txt --output JUNK/torn": "torn/val.bin",
    "data --fetch nothing --output OUT": "shakespeare",
    f"{TRAIN} --train_data missing.bin": "--train_data missing.bin does not exist",
    f"{TRAIN} --train_data JUNK": "--train_data JUNK is a folder",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/junk.bin": "junk.bin",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/odd.bin": "odd.bin",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/empty.bin": "empty",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/float.bin": "float64",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/high.bin": "300",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/short.bin": "JUNK/short.bin must hold more than --max_seq_len = 16 ids",
    f"{TRAIN} --vocab_size 300 --val_data JUNK/short.bin": "JUNK/short.bin must hold more than --max_seq_len = 16 ids",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/vast.bin": "vast.bin",
    f"{TRAIN} --tokenizer_path JUNK/pattern.json": "pattern.json",
    f"{TRAIN} --train_data JUNK/high.bin": "--vocab_size is needed",
    f"{TRAIN} --vocab_size 299": "--vocab_size 299 does not fit",
    f"{TRAIN} --num_heads 3": "--num_heads must divide --d_model, but 16 % 3 = 1",
    f"{TRAIN} --num_heads 16": "even",
    f"{TRAIN} --num_kv_heads 3": "num_kv_heads",
    f"{TRAIN} --d_model 0": "d_model must be at least 1",
    f"{TRAIN} --num_layers -2": "num_layers must be at least 1",
    f"{TRAIN} --batch_size 0": "--batch_size must be at least 1",
    f"{TRAIN} --iterations -1": "--iterations must be at least 1",
    f"{TRAIN} --num_threads 0": "--num_threads must be at least 1",
    f"{TRAIN} --sample_interval -1": "--sample_interval must be at least 0",
    f"{TRAIN} --vocab_size 300 --train_data JUNK/high.bin --sample_interval 2": "--sample_interval needs a tokenizer",
    f"{TRAIN} --wandb course": "--wandb needs the package wandb",
    f"{TRAIN} --warmup_iters 9": "warmup",
    f"{TRAIN} --lr_max -1": "--lr_max",
    f"{TRAIN} --lr_max inf": "--lr_max",
    f"{TRAIN} --beta2 1": "--beta2",
    f"{TRAIN} --seed -1": "--seed",
    f"{TRAIN} --max_seq_len 0": "--max_seq_len must be at least 1",
    f"{TRAIN} --d_model 1000000000000": "not enough memory",
    f"{TRAIN} --device teapot": "--device teapot",
    f"{TRAIN} --device cuda:99": "--device cuda:99",
    f"{TRAIN} --precision float8": "--precision float8",
    f"{TRAIN} --parallel ddp": "torchrun",
    f"{TRAIN} --parallel teapot": "--parallel teapot",
    f"{TRAIN} --tokenizer_path JUNK/junk.json": "junk.json",
    f"{TRAIN} --output JUNK/file": "--output",
    f"{TRAIN} --output MADE/run": "--resume",
    f"{TRAIN} --output MADE/run --resume --batch_size 2": "--batch_size was 4",
    f"{TRAIN} --output MADE/run --resume --d_ff 32": "and is 32 now; the shape of a model cannot change",
    f"{TRAIN} --output JUNK/own --resume": "own/checkpoint.pt was not written by the training command",
    "generating --model_path missing.pt": "--model_path missing.pt does not exist",
    "generating --model_path JUNK": "JUNK lacks config.json",
    "generating --model_path JUNK/junk.pt --tokenizer_path MADE/tokenizer.json": "junk.pt",
    "generating --model_path JUNK/foreign.pt --tokenizer_path MADE/tokenizer.json": "foreign.pt",
    "generating --model_path JUNK/code.pt --tokenizer_path MADE/tokenizer.json": "code",
    "generating --model_path JUNK/junk.safetensors --tokenizer_path MADE/tokenizer.json": "junk.safetensors",
    "generating --model_path MADE/run/best.pt --tokenizer_path JUNK/junk.json": "junk.json",
    "generating --model_path JUNK/junk.pt": "JUNK/junk.pt is not a checkpoint",
    "generating --tokenizer_path MADE/tokenizer.json": "300",
    "generating --max_tokens -1": "max_tokens",
    "generating --temperature -1": "temperature",
    "generating --top_p 1.5": "top_p",
    "generating --top_k -1": "top_k",
    "generating --min_p 2": "min_p",
    "generating --repetition_penalty 0": "repetition_penalty",
    "generating --num_samples 0": "num_samples",
    "generating --device teapot": "--device teapot",
    "evaluation --model_path missing.pt --tasks sums": "--model_path missing.pt does not exist",
    "evaluation --tasks sums --output JUNK": "--output JUNK is a folder",
    "grading": "there is nothing to grade",
    "grading missing.py": "missing.py is not a folder, Python file or notebook",
    "grading JUNK/own": "there is no part to grade",
    "pretrained export --model_path missing.pt --output OUT": "--model_path missing.pt does not exist",
    "pretrained export --model_path MADE/run/best.pt --output OUT --dtype int8": "--dtype int8 is not one of",
    "pretrained export --model_path MADE/run --output MADE/run": "run/config.json was not written by an export, and would be lost",
    "pretrained check --model_path JUNK": "JUNK lacks config.json",
    "pretrained check --model_path JUNK/junk.bin": "junk.bin is a file; name a Hugging Face folder",
    "pretrained check --model_path MADE/run": "run is a run folder of this course",
    "checkpoint --model_path missing.pt": "--model_path missing.pt does not exist",
    "checkpoint --model_path JUNK/junk.pt --output OUT/m.safetensors": "junk.pt",
    "checkpoint --model_path MADE/run/best.pt --dtype int8 --output OUT/m.safetensors": "--dtype int8",
    "checkpoint --model_path MADE/run/best.pt --output JUNK": "--output JUNK is a folder",
    "checkpoint --model_path MADE/run/best.pt --output MADE/run/best.pt": "must end in .safetensors",
    "checkpoint --model_path JUNK/junk.safetensors --output JUNK/junk.safetensors": "--output JUNK/junk.safetensors is the checkpoint itself",
}


@pytest.mark.parametrize("command", REFUSED, ids=lambda c: c.replace(TRAIN, "training …"))
def test_bad_input_gets_one_line_and_leaves_nothing(command, made, junk, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    def fill(text): return text.replace("MADE", str(made)).replace("JUNK", str(junk)).replace("OUT", str(tmp_path/"out"))
    module, *words = fill(command).split()
    before = {p: p.stat().st_mtime_ns for root in (made, junk) for p in root.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as stop: importlib.import_module(f"llm_course.{module}").main(words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ") and fill(REFUSED[command]) in error
    after = {p: p.stat().st_mtime_ns for root in (made, junk) for p in root.rglob("*") if p.is_file()}
    assert before == after, "something was left half-written"


def test_an_error_stands_on_a_line_of_its_own_below_the_bar(made, tmp_path, capsys):
    words = TRAIN.replace("MADE", str(made)).replace("OUT", str(tmp_path/"out")).split()[1:]
    with pytest.raises(SystemExit) as stop: importlib.import_module("llm_course.training").main([*words, "--lr_max", "1e30"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the loss stopped being a number")


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
def test_a_terminated_command_clears_its_files_and_processes_away(made, tmp_path):
    with open(tmp_path/"large.txt", "w", encoding="utf-8", newline="\n") as file: file.writelines(f"line {i} of a text {i * 7919 % 100003:x}\n" for i in range(2_000_000))
    words = ["--corpus", tmp_path/"large.txt", "--tokenizer", made/"tokenizer.json", "--output", tmp_path/"out", "--num_processes", 2]
    process = subprocess.Popen([sys.executable, "-m", "llm_course.data", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.glob("out/*.partial")): time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=900)   # ends only when the helpers, who write to the same pipe, have ended too
    assert process.returncode == 143 and not list((tmp_path/"out").iterdir())


@pytest.mark.parametrize("command", ["bpe_tokenizer", "engine.tokens", "data", "training", "generating", "checkpoint", "evaluation", "grading", "instruct", "rewards", "engine.serve", "pretrained export", "pretrained check"])
def test_a_misspelt_flag_is_refused_and_help_explains_every_flag(command, capsys):
    module, *verb = command.split()
    main = importlib.import_module(f"llm_course.{module}").main
    with pytest.raises(SystemExit) as stop: main([*verb, "--corpsu", "x"])
    assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop: main([*verb, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    check_help(shown, f"python -m llm_course.{command}")


def check_help(shown, prog):
    "A line of description and an example, with flags that there are; an explanation for each flag, with a default that says something; groups where there are many."
    shown = re.sub(r"[│╭╮╰╯─]", " ", shown)
    usage, description, example = re.split(r"\n\n+", shown, maxsplit=3)[:3]
    assert usage.split()[:len(prog.split()) + 1] == ["usage:", *prog.split()] and description.endswith(".") and example.startswith(f"Example: {prog}")
    flags, texts = re.split(r"^ {1,3}(?:-h, )?(--\w+|PATH(?= \[))", shown.partition(example)[2], flags=re.M)[1:], {}
    for flag, text in zip(flags[::2], flags[1::2]): texts[flag] = " ".join(text.split())
    assert texts and set(re.findall(r"--\w+", example)) <= texts.keys()
    for flag, text in texts.items():
        if flag == "--help": continue
        assert re.search(r"[a-z]{3}.*\((required[^)]*|default: [^)\s].*)\)", text) and "None" not in text, f"{flag} {text}"
    assert len(texts) < 11 or shown.count(" options ") >= 3
    assert "--config" in texts and not re.search(r"[{[](STR|PATH|INT|FLOAT|\[)( \[|\[)", shown.partition(example)[2])   # as in {[FLOAT [FLOAT ...]]}
    for flag, text in texts.items():
        if flag[2:] in ("order", "decay", "parallel", "precision", "method", "dtype", "pattern", "score", "on_error"): assert text.startswith("{"), flag
        if re.search(r"_path|corpus|output|_data|_from|_dir|config", flag): assert text.startswith("PATH"), flag


def printed_lines():
    "The command lines that a reader copies and pastes, and where they stand."
    texts = {name: (root/name).read_text("utf-8") for name in ("README.md", "README_cn.md", "CONTRIBUTING.md")}
    for path in book.pages(): texts[book.name(path)] = "\n\n".join("".join(cell["source"]) for cell in book.cells(path) if cell["cell_type"] == "markdown")
    for name, text in texts.items():
        for line in re.findall(r"(?:llm-course |-m llm_course\.)\w[^`\n|]* --[^`\n|]*", text.replace("\\\n", " ")): yield line, name


@pytest.mark.parametrize("line, name", [*printed_lines()])
def test_every_command_line_that_is_printed_can_be_typed(line, name, monkeypatch, capsys):
    "It is read by its command's own parser; no work is done."
    def only_parsed(*given):
        parse(*given)
        raise SystemExit(0)
    monkeypatch.setattr(commands, "parse", only_parsed)
    verb, *words = shlex.split(re.sub(r"llm-course |-m llm_course\.", "", line))
    if words[-1] == "--model_path": words.append("best.pt")   # in a table
    if "..." in words: words = ["--train_data", "a.bin", "--val_data", "b.bin", *words[words.index("...") + 1:]]
    module, _ = commands.VERBS.get(verb, (verb, ""))
    with pytest.raises(SystemExit) as stop: importlib.import_module(f"llm_course.{module}").main(words)
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("name", ["runner", "nanogpt", "ladder", "memory", "reference", "four_bits", "serving", "browser", "table", "gpu"])
def test_benchmarks_explain_themselves(name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    prog = "python -m bench" + f".{name}" * (name != "runner")
    with pytest.raises(SystemExit) as stop: run_command(importlib.import_module(f"bench.{name}").Config, print, ["--help"], prog)
    assert stop.value.code == 0
    if name != "table": check_help(capsys.readouterr().out, prog)
