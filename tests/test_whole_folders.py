"""Folders of files that belong together: whole or refused, with one writer at a time, and never a way out of them; see also tests/faults.py."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import faults
import pytest
from apart import apart
from safetensors.torch import load_file, save_file

from llm_course import generating, training
from llm_course.data import load_ids
from llm_course.engine import bookkeeping, diary, hf_folders, whole_folders
from llm_course.engine.whole_folders import check_folder, fingerprint, sole_writer, whole_folder
from llm_course.pretrained import load_pretrained
from llm_course.training import train

root = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no fork, no modes, and links need a privilege there")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    faults.prepare(folder)
    return folder


def refusal(capsys, work, *args):
    "The one line with which a command refuses."
    with pytest.raises(SystemExit) as stopped: work(*args)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == 1, lines
    return lines[0]


@posix
def test_no_fault_leaves_a_mixture_that_is_read(tmp_path):
    "A sample; `python tests/faults.py FOLDER 1` tries every call that writes, in three ways."
    done = apart(["tests/faults.py", tmp_path, "37"], {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, root)
    assert done.returncode == 0 and "0 mixed, 0 files lost" in done.stdout, done.stderr


# ---- Mixed by hand

def data_folders(base, tmp_path):
    for which in "first", "second": faults.Data(base).write(tmp_path/which, which)
    return tmp_path/"first", tmp_path/"second"


@pytest.mark.parametrize("name", ["tokenizer.json", "train.bin", "val.bin"])
def test_ids_and_tokenizers_of_two_folders_are_refused(base, tmp_path, name, capsys):
    one, other = data_folders(base, tmp_path)
    shutil.copy(other/name, one/name)
    for read in "train.bin", "val.bin":
        with pytest.raises(ValueError, match=f"{name} was not written together with"): load_ids(one/read)
    words = ["--train_data", one/"train.bin", "--val_data", one/"val.bin", "--output", tmp_path/"run", "--max_seq_len", 8, "--device", "cpu"]
    assert f"{name} was not written together" in refusal(capsys, training.main, [str(word) for word in words])
    assert not (tmp_path/"run").exists()
    (one/"data.manifest.json").unlink()   # as the cure says, and as in folders of the first edition
    assert len(load_ids(one/"train.bin"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"a": 1}', b'{"train.bin": "x"}', b'{"train.bin": 3, "../../x": []}'])
def test_a_damaged_manifest_is_one_line(base, tmp_path, content):
    one, _ = data_folders(base, tmp_path)
    (one/"data.manifest.json").write_bytes(content)
    try: load_ids(one/"train.bin")
    except ValueError as error: assert str(one) in str(error) and "\n" not in str(error)
    else: assert content == b'{"a": 1}'   # it lists other files


def test_a_fingerprint_sees_every_byte_of_a_file_and_samples_of_a_huge_one(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_folders, "_PIECE", 4)
    path, found = tmp_path/"file", set()
    contents = [bytes(128), *(bytes(i) + b"x" + bytes(127 - i) for i in range(128)), bytes(127), b""]
    for content in contents:
        path.write_bytes(content)
        found.add(fingerprint(path))
    assert len(found) == len(contents)
    path.write_bytes(bytes(100_000)); one = fingerprint(path)
    path.write_bytes(bytes(50_000) + b"x" * 50_000)
    assert fingerprint(path) != one


def exported(base, tmp_path):
    for which in "first", "second":
        (tmp_path/which).mkdir()
        faults.Folder(base).write(tmp_path/which, which)
    return tmp_path/"first", tmp_path/"second"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_configuration_and_weights_of_two_exports_are_refused(base, tmp_path, name):
    one, other = exported(base, tmp_path)
    with warnings.catch_warnings(action="error"): load_pretrained(one, "cpu")   # nothing in it is strange to its readers
    shutil.copy(other/name, one/name)
    with pytest.raises(ValueError, match="of different exports"): load_pretrained(one, "cpu")
    tensors = load_file(one/"model.safetensors")
    save_file({name: x.clone() for name, x in tensors.items()}, one/"model.safetensors", {"format": "pt"})   # as transformers writes it
    load_pretrained(one, "cpu")


def test_the_same_model_is_exported_to_the_same_bytes(base, tmp_path):
    exported(base, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path/"first").iterdir()}
    faults.Folder(base).write(tmp_path/"first", "first")
    assert before == {path: path.read_bytes() for path in (tmp_path/"first").iterdir()}


@pytest.mark.parametrize("name", hf_folders.OTHERS)
def test_an_export_into_a_folder_of_another_model_is_refused(base, tmp_path, name, capsys):
    for other in name, "model-00001-of-00002.safetensors", "notes.txt": (tmp_path/other).write_bytes(b"theirs")
    assert f"holds {name} of another model" in refusal(capsys, faults.Folder(base).write, tmp_path, "first")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"theirs"} and len(list(tmp_path.iterdir())) == 3


# ---- Every command

WRITERS = {name: kind for name, kind in faults.KINDS.items()}


@posix
@pytest.mark.parametrize("name", ["tokenizer", "data", "safetensors", "gguf", "folder", "training"])
def test_a_full_disk_is_one_line_and_what_was_there_stays(base, tmp_path, name, capsys, monkeypatch):
    "The system itself refuses to write more, in whatever language the writer is."
    import resource
    kind, folder, limits = WRITERS[name](base), tmp_path/"out", resource.getrlimit(resource.RLIMIT_FSIZE)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kind.write(folder, "first")
    capsys.readouterr()
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file() and name != "training"}
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try: said = refusal(capsys, kind.write, folder, "second")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "too large" in said and str(folder) in said and ".partial" not in said
    if name == "training": assert kind.read(folder)[0] == 2
    else: assert before == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@posix
@pytest.mark.parametrize("name", WRITERS)
def test_all_files_have_the_mode_that_new_files_have(base, tmp_path, name):
    before = os.umask(0o027)
    try: WRITERS[name](base).write(tmp_path, "first")
    finally: os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@posix
@pytest.mark.parametrize("name", WRITERS)
def test_no_link_leads_out_of_the_folder(base, tmp_path, name):
    "Each file that the command writes, and each name that it uses on the way, is a link to a file or a folder elsewhere."
    kind, folder, far = WRITERS[name](base), tmp_path/"out", tmp_path/"far"
    folder.mkdir(), far.mkdir()
    kind.write(folder, "first")
    names = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        if path.name == "checkpoint.pt" and name == "training": path.rename(far/"checkpoint.pt")   # a run goes on from where the link leads
        path.unlink(missing_ok=True)
    for made in names | {f"{made}.partial" for made in names} | {".lock"}:
        if made != "checkpoint.pt" or name != "training": (far/made).write_bytes(b"theirs")
        (folder/made).symlink_to(far/made)
    (far/"stage").mkdir(), (far/"stage"/"notes.txt").write_bytes(b"theirs")
    (folder/".partial").symlink_to(far/"stage")
    before = {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}
    kind.write(folder, "second")
    assert before == {path: path.read_bytes() for path in far.rglob("*") if path.is_file()}
    assert not [made for made in names if (folder/made).is_symlink()]
    kind.read(folder)


@posix
def test_the_folders_of_boards_are_no_links(base, tmp_path, monkeypatch):
    config = replace(faults.Training(base).config(tmp_path/"run"), tensorboard=True)
    (tmp_path/"run").mkdir(), (tmp_path/"far").mkdir()
    (tmp_path/"run"/"tensorboard").symlink_to(tmp_path/"far")
    monkeypatch.setattr(diary, "import_board", lambda name: pytest.fail("opened"))
    with pytest.raises(ValueError, match="tensorboard is a link"), diary.open_boards(config): pass


# ---- One run at a time

@pytest.fixture
def holder(tmp_path):
    "Another process that holds the lock of `run`."
    (tmp_path/"run").mkdir()
    code = "import sys, time, pathlib\nfrom llm_course.engine.whole_folders import sole_writer\nwith sole_writer(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path/"run"], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout.readline()
    yield process
    process.kill(), process.wait(), process.stdout.close()


def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(base, tmp_path, holder, capsys):
    kind, folder = faults.Training(base), tmp_path/"run"
    said = refusal(capsys, kind.write, folder, "first")
    if os.name != "nt": assert re.search(rf"run is being written by process {holder.pid} on \S+; ", said)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    holder.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL), holder.wait()
    kind.write(folder, "first")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "checkpoint.pt", "config.json", "loss.svg", "metrics.jsonl", "tokenizer.json"]
    with sole_writer(folder):   # who reads does not ask
        generating.main(["--model_path", str(folder/"checkpoint.pt"), "--prompt", "a", "--max_tokens", "2", "--device", "cpu"])
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert f"process {os.getpid()} on " in refusal(capsys, kind.write, folder, "second")
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
    kind.write(folder, "second")
    assert kind.read(folder)[0] == 4


def test_a_disk_without_locks_is_written_to_with_a_note(tmp_path, monkeypatch):
    def none(lock, timeout): raise NotImplementedError("no flock here")
    monkeypatch.setattr(whole_folders.FileLock, "acquire", none)
    with pytest.warns(UserWarning, match="cannot be locked"), sole_writer(tmp_path): (tmp_path/"file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_run_left_is_cleared_away(base, tmp_path):
    for name in diary.RUN_FILES: (tmp_path/f"{name}.partial").write_bytes(b"half")
    (tmp_path/"mine.partial").write_bytes(b"of the user")
    diary.open_folder(faults.Training(base).config(tmp_path), [])
    assert [path.name for path in tmp_path.glob("*.partial")] == ["mine.partial"]


def test_a_refused_run_leaves_no_folder(base, tmp_path):
    (tmp_path/"there").mkdir()
    for name in "new", "there":
        config = replace(faults.Training(base).config(tmp_path/name), max_seq_len=10**4)
        with pytest.raises(ValueError, match="must hold more than max_seq_len"): train(config)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


# ---- A folder that goes away

@pytest.mark.parametrize("room", [True, False])
def test_a_run_whose_folder_is_deleted_is_saved_elsewhere(base, tmp_path, room, monkeypatch, capsys):
    kind, folder = faults.Training(base), tmp_path/"run"
    (tmp_path/"elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path/"elsewhere"))
    real = training.record
    def deleting(run, *args):
        if run.done == 3: shutil.rmtree(folder)
        return real(run, *args)
    monkeypatch.setattr(training, "record", deleting)
    if not room:
        def full(*args): raise OSError(28, "No space left on device")
        monkeypatch.setattr(bookkeeping, "open_folder", lambda config, *more: full() if "elsewhere" in str(config.output) else diary.open_folder(config, *more))
    said = refusal(capsys, kind.write, folder, "second")
    monkeypatch.undo()
    saved = list((tmp_path/"elsewhere").iterdir())
    assert "No such file" in said and not folder.exists() and len(saved) == room
    if not room: return
    assert f"saved in {saved[0]} instead" in said and f"--output {saved[0]} --resume" in said
    for output in saved[0], tmp_path/"whole": kind.write(output, "second")
    assert kind.losses(saved[0]) == kind.losses(tmp_path/"whole") and kind.read(saved[0])[0] == 4
    assert (saved[0]/"best.pt").exists()


# ---- The parts

def test_what_is_not_a_file_is_not_replaced(tmp_path):
    (tmp_path/"config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json is not an ordinary file"), whole_folder(tmp_path, "model") as stage:
        for name in "a.bin", "config.json": (stage/name).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_error_that_is_not_of_the_disk_keeps_its_words(tmp_path):
    with pytest.raises(OSError, match=r"^the network is down$"), whole_folder(tmp_path, "data"): raise OSError("the network is down")
    assert not list(tmp_path.iterdir())


def test_two_exports_into_one_folder_take_turns(tmp_path):
    with whole_folder(tmp_path, "data") as stage:
        (stage/"a").write_bytes(b"first")
        with pytest.raises(ValueError, match="is being written by"), whole_folder(tmp_path, "data"): pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", "data.manifest.json"} and (tmp_path/"a").read_bytes() == b"first"


def test_files_of_other_kinds_are_none_of_its_business(tmp_path):
    with whole_folder(tmp_path, "data") as stage: (stage/"a").touch()
    (tmp_path/"b").touch()
    (tmp_path/"a").write_bytes(b"changed")
    for path, kind in (tmp_path/"b", "data"), (tmp_path/"a", "texts"): check_folder(path, kind)
    with pytest.raises(ValueError, match="a was not written together"): check_folder(tmp_path/"a", "data")
