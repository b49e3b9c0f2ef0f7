"""What all command lines share: flags, refusals, and files that are whole or not there."""
import errno
import inspect
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import pytest
import torch

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_checkpoint, load_model, read_safetensors
from llm_course.data import load_ids
from llm_course.engine import commands
from llm_course.engine.commands import by_default, input_file, one_line, output_path, parse, run_command, whole_file, with_dashes
from llm_course.engine.exchange import CheckConfig, ExportConfig
from llm_course.engine.files import read_text
from llm_course.engine.flags import GenerateConfig
from llm_course.engine.gguf import open_gguf
from llm_course.engine.hub import find_model
from llm_course.engine.llama2c import open_llama2c
from llm_course.engine.spelling import letter_bytes
from llm_course.engine.tokens import open_tokenizer
from llm_course.generating import main as generating
from llm_course.pretrained import load_pretrained


@dataclass(frozen=True)
class Config:
    "Do something."
    text:str=""                   # A text
    several:tuple[str, ...]=()    # Texts


def refusal(capsys, work, *words):
    "The one line with which a command refuses."
    with pytest.raises(SystemExit) as stopped: run_command(Config, work, list(words))
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@dataclass(frozen=True, kw_only=True)
class Place:
    "Where it happens."
    data_path:str                                   # A file
    begin:Annotated[str, by_default("a line break")]="\n"  # Its first letters
    order:Annotated[tuple[str, ...], by_default("nobody")]=()   # Names
    limit:Annotated[int|None, by_default("as many as there are")]=None   # How many

@dataclass(frozen=True, kw_only=True)
class Both(Config, Place):
    "Do it somewhere."


def test_dataclasses_that_one_inherits_from_are_groups(capsys):
    assert parse(Both, ["--data_path", "a", "--several", "b", "c"]) == Both(data_path="a", several=("b", "c"))
    with pytest.raises(SystemExit): parse(Both, ["--help"])
    shown = capsys.readouterr().out
    assert shown.index("config options") < shown.index("Do something.") < shown.index("--several") < shown.index("place options") < shown.index("--data_path")
    assert "(default: nobody)" in shown and "(default: a line break)" in shown and "--limit INT " in shown and "--config PATH " in shown and "Do it somewhere." in shown


@dataclass(frozen=True)
class Numbers:
    "Count."
    whole:int=1                         # A whole number
    share:float=.5                      # A share
    pair:tuple[float, ...]|None=None    # Two of them
    limit:int|None=None                 # A limit
    name:str=""                         # A name
    sure:bool=False                     # Is it?
    way:Literal["up", "down"]="up"      # Which way


@pytest.mark.parametrize("words, message", [
    ("--whole ten", "--whole ten is not a whole number"), ("--whole=1.5", "--whole 1.5 is not a whole number"), ("--share -x", "--share -x is not a number"), ("--pair 1 two", "--pair two is not a number"),
    ("--limit ten --whole 3", "--limit ten is not a whole number"), ("--name a --limit=", "--limit  is not a whole number"), ("--way left", "--way left is not one of up, down"),
    ("--whole", "--whole needs a value"), ("--name --sure", "--name needs a value"), ("--name -x", "--name needs a value; one that begins with - is typed as --name=-x")])
def test_a_word_where_a_number_should_be_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped: run_command(Numbers, print, words.split(" "))
    assert stopped.value.code == 2 and capsys.readouterr().err == f"error: {message}".replace("  ", " ") + "\n"


@pytest.mark.parametrize("words", ["--whole -3 --share=1e-3 --pair 1 -2 --limit 4 --name ten", "--whole=-3 --limit=4 --name=ten --no_sure --pair 1 -2 --share .001 --way up"])
def test_numbers_are_read_wherever_they_stand(words): assert parse(Numbers, words.split()) == Numbers(-3, 1e-3, (1., -2.), 4, "ten")


def test_help_may_be_asked_for_behind_a_list(capsys):
    for words in ["-h"], ["--pair", "1", "-h"]:
        with pytest.raises(SystemExit) as stopped: parse(Numbers, words)
        assert stopped.value.code == 0 and "--pair FLOAT [FLOAT ...]" in capsys.readouterr().out


def test_a_value_may_begin_with_a_dash(): assert parse(Numbers, ["--name=-x"]).name == "-x" and parse(Config, ["--several", "-"]).several == ("-",)


def test_a_warning_shows_its_message_and_no_code_of_ours():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        commands.warn("it is late")
    [one] = heard
    assert warnings.formatwarning(one.message, one.category, one.filename, one.lineno, one.line) == "llm_course:1: UserWarning: it is late\n"
    package = Path(commands.__file__).parents[1]
    assert [path.name for path in sorted(package.rglob("*.py")) if "warnings.warn(" in path.read_text("utf-8")] == ["bpe.py", "incremental_bpe.py", "mistakes_text.py"]   # whose caller is meant


def test_a_line_of_help_is_not_broken_at_a_sign():
    "tyro breaks a comment before a line that begins with no letter."
    for command, (module, name) in FLAG_SETS.items():
        for kind in getattr(import_module(f"llm_course.engine.{module}"), name).__mro__[:-1]:
            source = inspect.getsource(kind)
            assert not re.findall(r"\n    # .*\n    # [^A-Za-z].*", source), (command, kind)
            assert not re.search(r"\n    [^\w\s\"]", source.split('"""')[1] if '"""' in source else ""), (command, kind)


@pytest.mark.parametrize("message, told", [
    ("order must be one of a, b", "--order must be one of a, b"), ("in order must be", "in order must be"), ("orders must be", "orders must be"),
    ("0 < data_path <= 3 must hold, but data_path is 4", "0 < --data_path <= 3 must hold, but --data_path is 4"), ("--data_path is bad", "--data_path is bad"),
    ("a/data_path, my_data_path, data_path.bin and data_path=3", "a/data_path, my_data_path, data_path.bin and data_path=3")])
def test_arguments_are_told_as_flags_where_they_can_be_nothing_else(message, told): assert with_dashes(message, Both) == told


@pytest.mark.parametrize("config, left", [(GenerateConfig, "build it with parts={'a': B, 'c': D}, or name a file that defines them by --parts, if the command has it"), (ExportConfig, "build it with parts={'a': B, 'c': D}"), (CheckConfig, "build it with parts={'a': B, 'c': D}")])
def test_no_flag_is_advised_that_a_command_lacks(config, left):
    assert with_dashes("build it with parts={'a': B, 'c': D}, or name a file that defines them by --parts, if the command has it", config) == left
    advice = ", or name one by --tokenizer_path (from Python: tokenizer=)"
    assert with_dashes(f"save it{advice}", config) == "save it" + advice * (config is not CheckConfig)


def raising(error):
    def work(config): raise error
    return work


@pytest.mark.parametrize("words", [["--text", "a\udcff"], ["--several", "a", "\udcff"]])
def test_bytes_that_are_not_utf8_are_refused_by_the_name_of_their_flag(words, capsys):
    assert f"{words[0]} " in refusal(capsys, print, *words)
    assert parse(Config, ["--text", "é漢😀"]).text == "é漢😀"


@pytest.mark.parametrize("error", [
    MemoryError("Unable to allocate 7.28 TiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore\nlines."), RuntimeError("Storage size calculation overflowed with sizes=[9, 9]")])
def test_want_of_memory_is_one_line(error, capsys):
    line = refusal(capsys, raising(error))
    assert "not enough memory" in line and "smaller" in line


def test_sigterm_unwinds_the_work_and_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    def work(config):
        with whole_file(tmp_path/"model.bin"): signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped: run_command(Config, work, [])
    assert stopped.value.code == 143 and not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) is before


def test_an_interrupt_while_a_command_is_being_loaded_ends_quietly(monkeypatch):
    def interrupted(name): raise KeyboardInterrupt
    monkeypatch.setattr(commands, "import_module", interrupted)
    with pytest.raises(SystemExit) as stopped: commands.main(["train", "--train_data", "a", "--val_data", "b"])
    assert stopped.value.code == 130 and not commands.by_verb.get()


def test_our_own_mistakes_keep_their_traceback():
    for error in RuntimeError("something else"), TypeError(), ZeroDivisionError():
        with pytest.raises(type(error)): run_command(Config, raising(error), [])


def test_a_warning_is_a_note_of_one_line(capsys):
    before = warnings.showwarning
    run_command(Config, lambda config: warnings.warn("two\nlines", stacklevel=1), [])
    assert capsys.readouterr().err == "note: two lines\n" and warnings.showwarning is before


@pytest.mark.parametrize("rank, spoken", [("0", 1), ("1", 0)])
def test_where_torchrun_starts_several_the_first_on_a_machine_speaks(rank, spoken, monkeypatch, capsys, tmp_path):
    "The others keep notes to themselves, and wait before they refuse flags; torchrun ends them meanwhile, if the first refused them, too. Of an error, one speaks."
    slept = []
    monkeypatch.setattr(commands, "sleep", lambda seconds: slept.append((seconds, capsys.readouterr().err)))
    (tmp_path/rank).mkdir()
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": rank, "TORCHELASTIC_ERROR_FILE": str(tmp_path/rank/"error.json")}.items(): monkeypatch.setenv(name, value)
    run_command(Config, lambda config: warnings.warn("a note", stacklevel=1), [])
    assert capsys.readouterr().err.count("note: a note") == spoken and not slept
    def refuse(config): raise ValueError("no")
    def lose(config): raise ConnectionError("another process has ended")
    assert refusal(capsys, refuse) == "error: no" and not slept
    for work in refuse, lose:   # one has said why
        with pytest.raises(SystemExit, match="2"): run_command(Config, work, [])
        assert capsys.readouterr().err == ""
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path/"gone/0/error.json"))
    assert refusal(capsys, lose) == "error: another process has ended"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    assert refusal(capsys, lose) == "error: another process has ended" and not slept
    with pytest.raises(SystemExit) as stopped: parse(Config, ["a"])   # which tyro refuses
    told = capsys.readouterr()
    assert stopped.value.code == 2 and bool(told.out + told.err) == spoken and slept == [(5, "")] * (1 - spoken)


def test_texts_of_a_model_have_line_breaks_as_typed_and_those_of_a_file_as_quoted_there(tmp_path):
    @dataclass(frozen=True)
    class Said:
        "Say something."
        text:str=""                # As it is
        prompt:str=""              # With backslashes
        stop:tuple[str, ...]=()    # The same, several
        system:str|None=None       # The same, or nothing
    assert parse(Said, ["--text", r"\n", "--prompt", r"a\nb\\n\t\d", "--stop", r"\n\n", "\n"]) == Said(r"\n", "a\nb\\n\t\\d", ("\n\n", "\n"))
    (tmp_path/"said.toml").write_text('text = "\\\\n"\nprompt = "a\\nb\\\\n"\nstop = ["\\\\n", "\\n"]\n', "utf-8", newline="\n")
    assert parse(Said, ["--config", str(tmp_path/"said.toml")]) == Said("\\n", "a\nb\\n", ("\\n", "\n"))


def test_a_terminal_without_a_letter_shows_its_number(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    run_command(Config, lambda config: print(config.text, flush=True), ["--text", "é漢"])
    assert shown.getvalue().strip() == rb"\xe9\u6f22"


@pytest.fixture
def pipe(tmp_path):
    "Something that is neither file nor folder."
    if not hasattr(os, "mkfifo"): pytest.skip("needs named pipes")
    os.mkfifo(tmp_path/"pipe")
    return tmp_path/"pipe"


def test_a_pipe_is_neither_read_nor_replaced(pipe):
    with pytest.raises(ValueError, match=r"--corpus .*pipe is a pipe or a device"): input_file(pipe, "--corpus")
    with pytest.raises(ValueError, match=r"--output .*pipe is a pipe or a device"): output_path(pipe, "--output")
    with pytest.raises(ValueError, match="not an ordinary file"), whole_file(pipe): pass
    assert pipe.is_fifo() and list(pipe.parent.iterdir()) == [pipe]


DOORS = {   # all that read a file which somebody else has named
    "load_model": lambda p: load_model(p, "cpu"), "load_checkpoint": lambda p: load_checkpoint(p, torch.nn.Linear(1, 1)), "read_safetensors": read_safetensors,
    "load_pretrained": lambda p: load_pretrained(p, "cpu"), "its tokenizer": lambda p: load_pretrained("nowhere", "cpu", tokenizer=p), "find_model": find_model,
    "gguf": open_gguf, "llama2c": open_llama2c, "load": BpeTokenizer.load, "from_hf": BpeTokenizer.from_hf, "vocab": lambda p: BpeTokenizer.from_gpt2(p, p),
    "merges": lambda p: BpeTokenizer.from_gpt2(vocab_of_letters(), p), "tiktoken": BpeTokenizer.from_tiktoken,
    "open_tokenizer": open_tokenizer, "load_ids": load_ids, "ids of 100": lambda p: load_ids(p, 100), "read_text": lambda p: [*read_text(p)]}


def vocab_of_letters():
    "A file with a vocabulary of GPT-2's 256 letters."
    file = Path(tempfile.mkdtemp())/"vocab.json"
    file.write_text(json.dumps({letter: i for i, letter in enumerate(letter_bytes())}), "utf-8", newline="\n")
    return file


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
@pytest.mark.parametrize("door", DOORS)
def test_what_is_neither_file_nor_folder_is_refused_at_once(door, kind, pipe):
    path = pipe
    if kind == "socket":
        path = pipe.with_name("s")
        home = os.getcwd()
        os.chdir(pipe.parent)   # its path has to be short
        try:
            with socket.socket(socket.AF_UNIX) as made: made.bind("s")
        finally: os.chdir(home)
    if kind == "device": path = Path(os.devnull)
    if kind == "link to a pipe":
        path = pipe.with_name("link")
        path.symlink_to(pipe)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is a pipe or a device; write its contents to a file and name that file$"): DOORS[door](path)


def test_a_folder_with_a_pipe_in_it_is_refused_at_once(pipe):
    for name in "checkpoint.pt", "best.pt":
        pipe.rename(pipe.with_name(name))
        pipe = pipe.with_name(name)
        with pytest.raises(ValueError, match="is a pipe or a device"): load_model(pipe.parent, "cpu")


@pytest.mark.parametrize("flag", ["--model_path", "--draft_path", "--tokenizer_path"])
def test_generate_refuses_a_pipe(flag, pipe, capsys):
    with pytest.raises(SystemExit): generating([flag, str(pipe), "--prompt", "a"])
    said = capsys.readouterr().err
    assert "pipe is a pipe or a device; write its contents to a file" in said and said.count("\n") == 1


def test_a_folder_is_refused_before_anything_is_written(tmp_path):
    reached = []
    with pytest.raises(ValueError, match="not an ordinary file"), whole_file(tmp_path): reached.append(1)
    assert not reached and not list(tmp_path.parent.glob(tmp_path.name + ".*"))


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_is_replaced_and_never_followed(tmp_path):
    (tmp_path/"far").mkdir()
    for name in "there.txt", "new.txt":   # the second one's target is not there yet
        if name == "there.txt": (tmp_path/"far"/name).write_text("old", "utf-8", newline="\n")
        for link in name, f"{name}.partial": (tmp_path/link).symlink_to(tmp_path/"far"/name)
        with whole_file(tmp_path/name, "w") as file: file.write("new")
        assert not (tmp_path/name).is_symlink() and (tmp_path/name).read_text("utf-8") == "new"
    assert [(path.name, path.read_text("utf-8")) for path in (tmp_path/"far").iterdir()] == [("there.txt", "old")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "new.txt", "there.txt"]


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path/"model.bin"
    path.write_text("old", "utf-8", newline="\n")
    with pytest.raises(OSError) as caught, whole_file(path): raise OSError(errno.ENOSPC, "No space left on device")
    assert one_line(caught.value) == f"{path}: No space left on device"
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


def test_programs_that_look_at_one_place_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(4) as all_of_them:
        found = list(all_of_them.map(lambda _: output_path(tmp_path/"new", "--output", folder=True), range(400)))
    assert set(found) == {tmp_path/"new"} and not list((tmp_path/"new").iterdir())


FLAG_SETS = {   # module and class, by command
    "data": ("data_command", "DataConfig"), "bpe_tokenizer": ("tokenizer_command", "TokenizerConfig"), "tokens": ("tokens", "TokensConfig"), "training": ("flags", "TrainConfig"), "instruct": ("tuning", "InstructConfig"),
    "rewards": ("rollouts", "RewardsConfig"), "generating": ("flags", "GenerateConfig"), "serve": ("flags", "ServeConfig"), "evaluation": ("evaluation_command", "EvaluationConfig"),
    "pretrained export": ("exchange", "ExportConfig"), "pretrained check": ("exchange", "CheckConfig")}


def test_one_thing_has_one_name_in_all_commands():
    """A tokenizer is also called what the data command always called it. A new flag that names a model, a tokenizer or texts must be entered here."""
    found = {}
    for command, (module, name) in FLAG_SETS.items():
        config = getattr(import_module(f"llm_course.engine.{module}"), name)
        for field in fields(config):
            if re.search(r"model_|token|init|corpus|text|check|folder", field.name): found.setdefault(field.name, set()).add(command)
            if field.name == "tokenizer_path": assert "--tokenizer" in get_type_hints(config, include_extras=True)["tokenizer_path"].__metadata__[0].aliases
    speaking = {"generating", "serve", "evaluation", "pretrained export"}
    texts, learning = {"data", "bpe_tokenizer", "evaluation"}, {"training", "instruct", "rewards"}
    assert {name: commands for name, commands in found.items() if name not in ("max_tokens", "special_tokens", "tokens", "context")} == {
        "model_path": speaking | {"pretrained check"}, "init_from": learning, "tokenizer_path": speaking | learning | {"data", "tokens"}, "text": {"tokens"}, "corpus": texts, "val_corpus": {"data"},
        "train_corpus": {"evaluation"}, "text_field": texts, "keep_checkpoints": {"training"}, "checkpoint_interval": learning, "activation_checkpointing": {"training"}}


def test_a_reader_that_goes_away_is_no_error(tmp_path, monkeypatch):
    "What is left in the buffer is written before Python ends, while its failure can still be met."
    class Gone(io.StringIO):
        def flush(self): raise BrokenPipeError
        def fileno(self): return 99
    closed = []
    monkeypatch.setattr(commands.os, "dup2", lambda old, new: closed.append(new))
    for argv in ["--help"], ["--version"]:
        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(SystemExit) as stopped: commands.main(argv)
        assert stopped.value.code == 1
    for words in [], ["--help"]:
        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(SystemExit) as stopped: run_command(Config, lambda config: print("done"), words)
        assert stopped.value.code == 1
    assert closed == [99] * 4
