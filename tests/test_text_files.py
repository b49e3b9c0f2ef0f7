"""Texts in all kinds of files, read alike by the three commands that read texts."""
import bz2
import gzip
import io
import json
import lzma
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_course import bpe_tokenizer, data, evaluation
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.corpora import end_of_text
from llm_course.engine.text_files import STDIN, Reading, list_texts, plain_files
from llm_course.generating import DEMO

DOCUMENTS = ["the moth", "Thé\nthin", "and then the thing"]


def write_rows(path, documents, field="text"):
    "A file with a document in each row; what kind, its name says."
    if path.name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": [*range(len(documents))], field: documents}), path)
        return
    lines = "".join(json.dumps({field: text}) + "\n" for text in documents).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@pytest.fixture
def tokenizer_file(tmp_path):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)} | {256: end_of_text.encode()}, [], [end_of_text])
    tokenizer.save(tmp_path/"tok.json")
    return tmp_path/"tok.json"


def ids_of(text): return BpeTokenizer({i: bytes([i]) for i in range(256)} | {256: end_of_text.encode()}, [], [end_of_text]).encode(text)


def refusal(capsys, main, *argv):
    "The one line with which a command refuses."
    with pytest.raises(SystemExit) as stopped: main([str(word) for word in argv])
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_with_null_are_left_out_and_counted(name, tmp_path, capsys):
    write_rows(tmp_path/name, ["a", None, "b", ""])
    [(_, text)] = plain_files([tmp_path/name], tmp_path)
    assert text.read_text("utf-8") == f"a{end_of_text}b{end_of_text}" and capsys.readouterr().err == "note: empty rows left out: 2\n"


def test_rows_that_are_read_as_plain_text_are_told(tmp_path, capsys):
    texts = {"a.json": ' [ {"text": "a"}]', "b.json": '["a", "b"]', "c.csv": "text\na", "d.TSV": "text\na", "e.json": '{"text": "a"}', "f.json": "[1, 2]", "g.txt": '["a"]'}
    for name, text in texts.items(): (tmp_path/name).write_text(text, "utf-8-sig" if name == "b.json" else "utf-8", newline="\n")
    assert len(plain_files([tmp_path/name for name in texts], tmp_path/".")) == 7
    assert capsys.readouterr().err == ("note: read as plain text, with all quotes and commas: 4 (a.json, b.json, c.csv, …); "
                                       'for a document in each row write .jsonl, a line such as {"text": "…"} for each\n')
    plain_files([tmp_path/"e.json", tmp_path/"g.txt"], tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.jsonl", "a.NDJSON", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("field", ["text", "body"])
def test_each_row_is_a_document_for_every_command(name, field, tokenizer_file, tmp_path, capsys):
    path, flags = tmp_path/name, [] if field == "text" else ["--text_field", field]
    write_rows(path, DOCUMENTS, field)
    whole = "".join(text + end_of_text for text in DOCUMENTS)
    data.main(["--tokenizer", str(tokenizer_file), "--corpus", str(path), "--val_corpus", str(path), "--output", str(tmp_path/"out"), *flags])
    assert np.load(tmp_path/"out"/"train.bin").tolist() == np.load(tmp_path/"out"/"val.bin").tolist() == ids_of(whole)
    (tmp_path/"plain.txt").write_text(whole, "utf-8", newline="\n")
    for corpus, output in (path, "a.json"), (tmp_path/"plain.txt", "b.json"):
        bpe_tokenizer.main(["--corpus", str(corpus), "--vocab_size", "260", "--output", str(tmp_path/output), *flags])
    assert (tmp_path/"a.json").read_bytes() == (tmp_path/"b.json").read_bytes() and not list(tmp_path.glob(".texts*"))
    capsys.readouterr()
    evaluation.main(["--device", "cpu", "--corpus", str(path), str(tmp_path/"plain.txt"), "--output", str(tmp_path/"bits.json"), *flags])
    told = json.loads((tmp_path/"bits.json").read_text("utf-8"))
    first, second = told["texts"].values()
    assert first == pytest.approx(second) == pytest.approx(told["bits_per_byte"]) and told["texts"].keys() == {str(path), str(tmp_path/"plain.txt")}
    assert f"all 2 texts: {first:.4f} bits per byte" in capsys.readouterr().out


def test_figures_per_file_and_their_mean_by_bytes(tmp_path, capsys):
    texts = {"a.txt": "ROMEO:\nWhat is this?\n", "b.txt": "qqqq xx"}
    for name, text in texts.items(): (tmp_path/name).write_text(text, "utf-8", newline="\n")
    evaluation.main(["--device", "cpu", "--corpus", str(tmp_path), "--output", str(tmp_path/"bits.json")])
    told = json.loads((tmp_path/"bits.json").read_text("utf-8"))
    model, tokenizer = evaluation_demo()
    shown = re.findall(r"([\w ]+(?:\.txt)?): (\S+) bits per byte, (\S+) nats per token, perplexity (\S+), (\d+) tokens, (\d+) bytes", capsys.readouterr().out)
    assert [name for name, *_ in shown] == ["a.txt", "b.txt", "all 2 texts"]
    for (name, *figures), text in zip(shown, [*texts.values(), ""]):
        each, nats, perplexity, tokens, size = map(float, figures)
        assert math.log(perplexity) == pytest.approx(nats, abs=1e-3) and nats * tokens == pytest.approx(each * size * math.log(2), rel=1e-3)
        if text:
            assert (tokens, size) == (len(tokenizer.encode(text)), len(text))
            assert told["counts"][str(tmp_path/name)] == pytest.approx({"bytes": size, "tokens": tokens, "nats_per_token": nats, "perplexity": perplexity}, rel=1e-3)
    bits = {str(tmp_path/name): evaluation.text_bits_per_byte(model, tokenizer, text) for name, text in texts.items()}
    assert told["texts"] == pytest.approx(bits) and 0 < bits[str(tmp_path/"a.txt")] < bits[str(tmp_path/"b.txt")]
    assert told["bits_per_byte"] == pytest.approx(sum(bits[str(tmp_path/name)] * len(text) for name, text in texts.items()) / 28)


def evaluation_demo():
    from llm_course.checkpoint import load_model
    return load_model(DEMO/"model.safetensors", "cpu"), BpeTokenizer.load(DEMO/"tokenizer.json")


def test_a_folder_stands_for_its_texts_in_order_and_tells_what_it_leaves_out(tokenizer_file, tmp_path, capsys):
    folder = tmp_path/"source"
    for name, content in {"b/z.py": b"z = 1", "b/a.py": b"a = 1", "c.txt.gz": gzip.compress(b"packed"), ".git/config": b"no", "b/.env": b"no", "b/__init__.py": b"", "cat.png": b"\x89PNG\0"}.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True); (folder/name).write_bytes(content)
    assert [path.relative_to(folder).as_posix() for path in list_texts([folder], "--corpus")] == ["b/a.py", "b/z.py", "c.txt.gz"]
    assert capsys.readouterr().err == f"note: texts in --corpus {folder}: 3; left out: hidden: 2 (config, .env); empty: 1 (__init__.py); binary: 1 (cat.png)\n"
    data.main(["--tokenizer", str(tokenizer_file), "--corpus", str(folder), "--val_corpus", str(folder/"b"/"a.py"), "--output", str(tmp_path/"out")])
    assert np.load(tmp_path/"out"/"train.bin").tolist() == ids_of(f"a = 1{end_of_text}z = 1{end_of_text}packed")
    assert capsys.readouterr().err.count("left out") == 1   # a folder is walked once
    (tmp_path/"none").mkdir()
    assert "--corpus" in refusal(capsys, data.main, "--tokenizer", tokenizer_file, "--corpus", tmp_path/"none") and list_texts(["-"], "--corpus") == [STDIN]


def test_standard_input_is_a_text(tokenizer_file, tmp_path, monkeypatch, capsys):
    def type_in(content): monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    (tmp_path/"v.txt").write_text("valeth", "utf-8", newline="\n")
    words = ["--tokenizer", str(tokenizer_file), "--corpus", str(tmp_path/"v.txt"), "-", "--val_corpus", str(tmp_path/"v.txt"), "--output", str(tmp_path/"out")]
    type_in("the Thé\r\n".encode())
    data.main(words)
    assert np.load(tmp_path/"out"/"train.bin").tolist() == ids_of(f"valeth{end_of_text}the Thé\r\n")
    type_in(b"caf\xe9")
    assert "error: standard input is not UTF-8" in refusal(capsys, data.main, *words)
    type_in(b"caf\xe9")
    data.main([*words, "--on_error", "replace"])
    assert np.load(tmp_path/"out"/"train.bin").tolist() == ids_of(f"valeth{end_of_text}caf\ufffd")
    assert "note: files: 2; mended: 1 (standard input)" in capsys.readouterr().err
    assert "can be read only once" in refusal(capsys, data.main, *words, "--val_corpus", "-")
    type_in(b"the moth then the moth")
    bpe_tokenizer.main(["--corpus", "-", "--vocab_size", "260", "--output", str(tmp_path/"t.json")])
    assert BpeTokenizer.load(tmp_path/"t.json").vocab_size == 260
    type_in(b"ROMEO:\n")
    evaluation.main(["--device", "cpu", "--corpus", "-"])
    assert "-: " in capsys.readouterr().out


@pytest.mark.parametrize("content, way", [
    (gzip.compress(b"text " * 99, mtime=0), "packed by gzip; unpack it first with zcat, or give the file a name that ends in .gz"), (bz2.compress(b"text " * 99), "packed by bzip2; unpack it first with bzcat"), (lzma.compress(b"text"), "packed by xz; unpack it first with xzcat"),
    (b"\x28\xb5\x2f\xfd\xff", "packed by zstd; unpack it first with zstdcat"), (b"PK\x03\x04\xff", "a zip archive; unpack it first"), (b"PAR1\xff", "a Parquet table; unpack it first with a program that reads it, or give the file a name that ends in .parquet")], ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("source", ["-", "corpus.dat"])
def test_packed_data_under_another_name_are_recognised(source, content, way, tokenizer_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("corpus.dat").write_bytes(content)
    for main, words in (bpe_tokenizer.main, ["--corpus", source, "--output", "t2.json"]), (data.main, ["--tokenizer", str(tokenizer_file), "--corpus", source, "--output", "out", "--val_fraction", "0"]):
        for on_error in "stop", "replace":   # what is packed cannot be mended
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            with pytest.raises(SystemExit) as stopped: main([*words, "--on_error", on_error])
            err = capsys.readouterr().err
            assert stopped.value.code == 2 and "error: " in err and "iconv" not in err and "mended" not in err
            assert (f"it is {way}" if on_error == "stop" else "skipped: 1") in err


def test_text_that_begins_as_packed_data_do_is_text(tokenizer_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"BZh is how bzip2 begins")))
    data.main(["--tokenizer", str(tokenizer_file), "--corpus", "-", "--val_fraction", "0", "--output", str(tmp_path/"out"), "--on_error", "replace"])
    assert np.load(tmp_path/"out"/"train.bin").tolist() == ids_of("BZh is how bzip2 begins")


@pytest.mark.parametrize("on_error, kept, note", [("skip", {"a.txt"}, "skipped: 2 (b.txt, c.gz)"), ("replace", {"a.txt", "b.txt"}, "skipped: 1 (c.gz); mended: 1 (b.txt)")])
def test_a_bad_file_stops_the_evaluation_or_is_counted_once(on_error, kept, note, tmp_path, capsys):
    for name, content in {"a.txt": b"ROMEO:", "b.txt": b"caf\xe9", "c.gz": b"torn"}.items(): (tmp_path/name).write_bytes(content)
    words = ["--device", "cpu", "--output", str(tmp_path/"bits.json"), "--corpus"]
    assert "b.txt is not UTF-8 text; convert it first, or let --on_error" in refusal(capsys, evaluation.main, *words, tmp_path/"a.txt", tmp_path/"b.txt")
    evaluation.main([*words, str(tmp_path), "--on_error", on_error])
    told = json.loads((tmp_path/"bits.json").read_text("utf-8"))
    assert {*told["texts"]} == {str(tmp_path/name) for name in kept} and f"note: files: 3; {note}\n" == capsys.readouterr().err
    assert "no file of --corpus is left to read" in refusal(capsys, evaluation.main, *words, tmp_path/"c.gz", "--on_error", "skip")


def test_a_tokenizer_without_the_token_gets_lines(tmp_path):
    "The mark would be spelt out, letter by letter, and learnt."
    BpeTokenizer({i: bytes([i]) for i in range(256)}, [], []).save(tmp_path/"plain.json")
    write_rows(tmp_path/"a.jsonl", ["the moth", "thin"])
    data.main(["--tokenizer", str(tmp_path/"plain.json"), "--corpus", str(tmp_path/"a.jsonl"), "--val_corpus", str(tmp_path/"a.jsonl"), "--output", str(tmp_path/"out")])
    assert np.load(tmp_path/"out"/"train.bin").tobytes() == b"the moth\nthin\n"


def test_a_tokenizer_without_the_token_reads_it_as_text_and_says_so(tmp_path, capsys):
    BpeTokenizer({i: bytes([i]) for i in range(256)}, []).save(tmp_path/"tok.json")
    for text, notes in (f"one{end_of_text}two", [f"note: the tokenizer has no {end_of_text}, which stands in {tmp_path/'a.txt'}, so it is read as ordinary text"]), ("one two", []):
        (tmp_path/"a.txt").write_text(text, "utf-8", newline="\n")
        (tmp_path/"v.txt").write_text("thin", "utf-8", newline="\n")
        data.main(["--tokenizer", str(tmp_path/"tok.json"), "--corpus", str(tmp_path/"a.txt"), "--val_corpus", str(tmp_path/"v.txt"), "--output", str(tmp_path/"out")])
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")] == notes


@pytest.mark.parametrize("row", [r"a\ud83db", r"\udc00", r"\ud83d \ude00"])
def test_half_a_character_in_a_row_is_found_or_replaced(row, tmp_path):
    (tmp_path/"a.jsonl").write_text(f'{{"text": "one"}}\n{{"text": "{row}"}}\n{{"text": "\\ud83d\\ude00"}}\n', "utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"^line 2 of .*a\.jsonl has half a character, such as \\ud83d; write both halves, or neither; --on_error skip leaves the whole file out$"):
        plain_files([tmp_path/"a.jsonl"], tmp_path)
    [(_, plain)] = plain_files([tmp_path/"a.jsonl"], tmp_path, Reading(on_error="replace"))
    one, broken, whole, _ = plain.read_text("utf-8").split(end_of_text)
    assert (one, whole) == ("one", "\U0001f600") and set(broken) <= set("ab \ufffd") and "\ufffd" in broken


def test_a_table_that_is_none_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    write_rows(tmp_path/"a.parquet", DOCUMENTS)
    with pytest.raises(ValueError, match=r"a\.parquet has no column body; name one of id, text with --text_field"): plain_files([tmp_path/"a.parquet"], tmp_path, Reading(text_field="body"))
    with pytest.raises(ValueError, match=r"the column id of .* holds no text"): plain_files([tmp_path/"a.parquet"], tmp_path, Reading(text_field="id"))
    (tmp_path/"b.parquet").write_bytes((tmp_path/"a.parquet").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"b\.parquet is not a complete Parquet file"): plain_files([tmp_path/"b.parquet"], tmp_path)
    assert plain_files([tmp_path/"b.parquet"], tmp_path, Reading(on_error="replace")) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name in "pyarrow", "pyarrow.parquet": monkeypatch.setitem(sys.modules, name, None)
    (tmp_path/"a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet needs the package pyarrow; install it with: pip install pyarrow"): plain_files([tmp_path/"a.parquet"], tmp_path)
