"""Ids in the shell: a text and its ids, there and back, byte for byte, with the tokenizer of anything."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.data import write_ids
from llm_course.engine import commands, tokens
from llm_course.engine.foreign_tokenizers import SentencePiece
from llm_course.engine.tokens import bytes_of, open_tokenizer, parse_ids
from llm_course.pretrained import export_gguf, export_pretrained
from llm_course.transformer import Transformer

TEXT = "To be,\r\nor not<|end|> to bé: 北京 \x00\x1b end"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "One tokenizer, in all that may lead to it."
    folder = tmp_path_factory.mktemp("places")
    tokenizer = BpeTokenizer.train(["to be or not to be"] * 3, 262, ["<|end|>"])
    model = Transformer(tokenizer.vocab_size, 16, 32, num_layers=1, num_heads=2, d_ff=32)
    (folder/"run"/"export").mkdir(parents=True), (folder/"data").mkdir(), (folder/"taught").mkdir()
    for name in "run", "data": tokenizer.save(folder/name/"tokenizer.json")
    (folder/"run"/"best.pt").touch()   # weights are not read
    with open(folder/"data"/"train.bin", "wb") as file: write_ids(file, [np.array([1, 2, 3])], tokenizer.vocab_size)
    export_pretrained(model, tokenizer, folder/"taught"/"export")
    export_gguf(model, tokenizer, folder/"model.gguf", dtype=torch.float32)
    return folder, tokenizer


@pytest.fixture
def typed(monkeypatch, capfdbinary):
    "What a command writes to standard output, given what comes from standard input."
    def run(*words, given=b""):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given)))
        commands.main(["tokens", *words])
        return capfdbinary.readouterr().out
    return run


@pytest.mark.parametrize("place", ["run", "run/best.pt", "run/tokenizer.json", "data", "data/train.bin", "taught", "taught/export", "model.gguf"])
def test_a_tokenizer_is_found_in_all_that_has_one(place, places):
    folder, tokenizer = places
    found = open_tokenizer(folder/place)
    assert found.vocab == tokenizer.vocab and found.encode(TEXT) == tokenizer.encode(TEXT) and bytes_of(found, found.encode(TEXT)) == TEXT.encode()


@pytest.mark.parametrize("place", ["run", "data/train.bin"])
def test_the_command_does_what_python_does_there_and_back(place, places, typed):
    folder, tokenizer = places
    name = ["--tokenizer", str(folder/place)]
    ids = typed(*name, given=TEXT.encode())
    assert ids.decode() == " ".join(map(str, tokenizer.encode(TEXT))) + "\n"
    assert typed(*name, "--decode", given=ids) == TEXT.encode()
    assert typed(*name, "to", "be", given=b"not read").split() == [str(id).encode() for id in tokenizer.encode("to be")]
    every = bytes(range(256))   # most of it no UTF-8
    assert typed(*name, "--decode", given=str([*range(256)]).encode()) == every == bytes_of(tokenizer, [*range(256)])
    assert typed(*name, "--plain", "<|end|>").split() == [str(id).encode() for id in tokenizer.encode("<|end|>", "none")]
    assert typed(*name, given=b"") == b"\n" and typed(*name, "--decode", given=b"\n") == b""


def test_a_terminal_gets_a_line_of_its_own_after_a_text(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self): return True
    screen = Terminal(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", screen)
    tokens.main(["--decode", "72", "105"])
    screen.flush()
    assert screen.buffer.getvalue() == b"Hi\n"


def test_tokens_and_the_tokenizer_are_shown(places, typed):
    folder, tokenizer = places
    name, end = ["--tokenizer", str(folder/"run")], tokenizer.special_tokens["<|end|>"]
    assert typed(*name, "--show", "--decode", f"10,195,{end}").decode().splitlines() == ["     10  '\\n'", "    195  b'\\xc3'", f"{end:>7}  '<|end|>'  special"]
    told = typed(*name, "--info").decode()
    assert f"{tokenizer.vocab_size:,}" in told and f"{end} '<|end|>'" in told and repr(tokenizer.pattern) in told
    assert typed("--info")   # that of the package


@pytest.mark.parametrize("words, given, message", [
    (["--decode"], b"5 x", "'x' is not an id"), (["--decode", "1.5"], b"", "'1.5' is not an id"), (["--decode", "999"], b"", "id 999 is not in the vocabulary"), (["--decode"], b"3 -1", "id -1 is not in the vocabulary"),
    ([], b"ab\xc3", "standard input is not UTF-8: byte 0xc3 at position 2"), (["--tokenizer", "nowhere", "x"], b"", "nowhere does not exist"), (["--tokenizer", "nowhere.json", "x"], b"", "nowhere.json does not exist"),
    ([], b"\x1f\x8b\x08\0", "position 1; it is packed by gzip; unpack it first with zcat"), (["--tokenizer", ".", "x"], b"", "there is no tokenizer.json in ."), (["--tokenizer", "mine.txt", "x"], b"", "mine.txt is a text, not a tokenizer"), (["--tokenizer", "empty.txt", "x"], b"", "empty.txt")])
def test_what_cannot_be_read_is_one_line_and_nothing_is_written(words, given, message, places, typed, tmp_path, monkeypatch, capfdbinary):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"mine.txt").write_bytes(b"Once upon a time there was a text.\n")
    (tmp_path/"empty.txt").touch()
    name = [] if "--tokenizer" in words else ["--tokenizer", str(places[0]/"run")]
    with pytest.raises(SystemExit) as stopped: typed(*name, *words, given=given)
    out, err = capfdbinary.readouterr()
    assert stopped.value.code == 2 and not out and err.startswith(b"error: ") and message.encode() in err and err.count(b"\n") == 1


def test_a_space_that_the_tokenizer_adds_is_taken_away():
    vocab = {id: bytes([id]) for id in range(256)} | {256: b" a", 257: b" "}
    tokenizer = SentencePiece.__new__(SentencePiece)
    tokenizer.vocab, tokenizer.space_first = vocab, "always"
    assert bytes_of(tokenizer, [256, 98]) == b"ab" and bytes_of(tokenizer, [257, 257, 98]) == b" b" and bytes_of(tokenizer, []) == b""


def test_words_behind_two_dashes_are_no_flags(places, typed):
    assert typed("--tokenizer", str(places[0]/"run"), "--", "--x") == typed("--tokenizer", str(places[0]/"run"), given=b"--x")


def test_ids_may_be_written_in_many_ways():
    assert parse_ids("[1, 2]\n3,4\t 5") == [1, 2, 3, 4, 5] and parse_ids("") == []


def test_a_tokenizer_describes_itself_on_one_line():
    many = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], [f"<|{i}|>" for i in range(1000)])
    assert repr(many).startswith("BpeTokenizer(vocab_size=1256, 0 merges, ['<|0|>', ") and len(repr(many)) < 120 and "\n" not in repr(many)
    assert repr(BpeTokenizer({i: bytes([i]) for i in range(256)}, [], ["<|end|>"])) == "BpeTokenizer(vocab_size=257, 0 merges, ['<|end|>'])"
