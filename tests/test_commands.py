"""What all command lines share: flags, refusals, and files that are whole or not there."""
import errno
import io
import os
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import pytest

from llm_course.engine import commands
from llm_course.engine.commands import by_default, input_file, one_line, output_path, parse, run_command, whole_file, with_dashes


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
    assert "(default: nobody)" in shown and "(default: a line break)" in shown and "--limit INT " in shown and "Do it somewhere." in shown


@pytest.mark.parametrize("message, told", [
    ("order must be one of a, b", "--order must be one of a, b"), ("in order must be", "in order must be"), ("orders must be", "orders must be"),
    ("0 < data_path <= 3 must hold, but data_path is 4", "0 < --data_path <= 3 must hold, but --data_path is 4"), ("--data_path is bad", "--data_path is bad"),
    ("a/data_path, my_data_path, data_path.bin and data_path=3", "a/data_path, my_data_path, data_path.bin and data_path=3")])
def test_arguments_are_told_as_flags_where_they_can_be_nothing_else(message, told): assert with_dashes(message, Both) == told


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
