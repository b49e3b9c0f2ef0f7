"""What must hold on every system: text is UTF-8 with plain line breaks, whatever the locale; helper processes are spawned."""
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import book
import pytest

root = Path(__file__).parents[1]
code = [path for folder in ("llm_course", "web", "bench") for path in sorted((root/folder).rglob("*.py"))]

sources = [*code, *sorted((root/"tests").rglob("*.py")), *book.pages()]


def vague(tree):
    "Calls that read or write text in the encoding, or with the line breaks, that the system happens to have."
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        name, given = getattr(node.func, "attr", getattr(node.func, "id", "")), {keyword.arg: keyword.value for keyword in node.keywords}
        if None in given: continue   # a dictionary of keywords
        named = "encoding" in given or (name in ("read_text", "write_text") and len(node.args) > (name == "write_text"))
        mode = node.args[1] if len(node.args) > 1 else ast.Constant("r")
        modes = [mode.body, mode.orelse] if isinstance(mode, ast.IfExp) else [mode]
        opens = isinstance(node.func, ast.Name) and name == "open" and not all(isinstance(one, ast.Constant) and "b" in one.value for one in modes)
        pipes = isinstance(given.get("text"), ast.Constant) and given["text"].value is True   # a program's words, as `subprocess` reads them
        if (opens or pipes or name in ("read_text", "write_text")) and not named: yield node
        writes = name == "write_text" or (opens and isinstance(mode, ast.Constant) and set(mode.value) & set("wax"))
        if writes and named and "newline" not in given: yield node


def trees(path):
    "The syntax of a module, or of a page's cells that are Python alone."
    if path.suffix == ".py": return [ast.parse(path.read_text("utf-8"))]
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    return [ast.parse(cell) for cell in cells if "    %pip " not in cell]


@pytest.mark.parametrize("path", sources, ids=lambda path: path.relative_to(root).as_posix())
def test_text_has_its_encoding_and_line_breaks_named(path):
    assert not [f"line {node.lineno}: {ast.unparse(node)}" for tree in trees(path) for node in vague(tree)]


@pytest.mark.parametrize("line, found", [
    ("open(p)", 1), ("open(p, 'a')", 1), ("open(p, mode)", 1), ("p.read_text()", 1), ("p.write_text(t)", 1), ("open(p, 'rb')", 0), ("open(p, 'ab' if q else 'wb')", 0), ("open(p, 'a' if q else 'wb')", 1),
    ("open(p, encoding='utf-8')", 0), ("open(p, mode, **text)", 0), ("p.read_text('utf-8')", 0), ("p.write_text(t, 'utf-8')", 1),
    ("p.write_text(t, 'utf-8', newline='')", 0), ("open(p, 'w', encoding='utf-8')", 1), ("run(c, text=True)", 1), ("run(c, text=True, encoding='utf-8')", 0), ("given(text=texts)", 0)])
def test_a_forgotten_encoding_is_noticed(line, found): assert len([*vague(ast.parse(line))]) == found


def test_helper_processes_are_spawned_as_windows_must():
    "A fork would copy threads of torch's; only `spawn` is on all three systems. Chapter 21 forks where it can, and else spawns."
    found = {path.name for path in code if "multiprocessing" in path.read_text("utf-8")}
    made = [(path.name, ast.unparse(node)) for path in code for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("get_context", "Process", "Pool", "ProcessPoolExecutor", "fork", "set_start_method")]
    assert "files.py" in found
    assert all("spawn" in call for _, call in made if not call.startswith("context.Process(")), made


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "A folder, and a way to call a command in it from a system that knows nothing but ASCII."
    folder = tmp_path_factory.mktemp("plain")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIOENCODING"))}
    env = bare | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def call(module, *words):
        done = subprocess.run([sys.executable, "-m", f"llm_course.{module}", *map(str, words)], cwd=folder, env=env, capture_output=True)
        return done.returncode, done.stdout, done.stderr
    return folder, call


def test_the_whole_way_in_a_c_locale(plain):
    folder, call = plain
    (folder/"text.txt").write_bytes("Über 漢字: «ça va»?\nNein, 😀 — so nicht.\n".encode() * 200)
    for words in (["bpe_tokenizer", "--corpus", "text.txt", "--vocab_size", 300, "--num_processes", 2],
                  ["data", "--tokenizer", "tokenizer.json", "--corpus", "text.txt", "--num_processes", 2],
                  ["training", "--train_data", "data/train.bin", "--val_data", "data/val.bin", "--output", "run", "--device", "cpu", "--iterations", 2,
                   "--sample_interval", 1, "--sample_prompt", "U", *"--d_model 16 --num_layers 1 --num_heads 2 --d_ff 24 --max_seq_len 16 --batch_size 2".split()]):
        status, _, error = call(*words)
        assert status == 0, error
    from llm_course import BpeTokenizer
    assert "漢".encode() in b"".join(BpeTokenizer.load(folder/"tokenizer.json").vocab.values())
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".svg", ".txt"): assert b"\r" not in path.read_bytes() and path.read_text("utf-8")
    status, said, error = call("generating", "--model_path", "run/checkpoint.pt", "--prompt", "Nein", "--max_tokens", 5, "--device", "cpu")
    assert status == 0 and said.startswith(b"Nein") and said.isascii(), error   # letters that this terminal lacks are shown by number


def test_a_prompt_that_such_a_terminal_cannot_give_is_refused(plain):
    status, _, error = plain[1]("generating", "--prompt", "Über", "--max_tokens", 1)
    assert status == 2 and b"--prompt" in error and b"UTF-8" in error and error.count(b"\n") == 1
