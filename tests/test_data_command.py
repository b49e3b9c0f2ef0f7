"""The command that fetches corpora and turns texts into ids."""
import gzip
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.data import load_ids, main
from llm_course.engine.corpora import end_of_text
from llm_course.engine.data_command import DataConfig


@pytest.fixture
def tokenizer_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path/"tok.json")
    return tmp_path/"tok.json"


def test_the_command_writes_both_files_and_the_tokenizer(corpus, tokenizer, tokenizer_file, tmp_path, capsys):
    main(["--tokenizer", str(tokenizer_file), "--corpus", str(corpus), "--output", str(tmp_path/"out")])
    out, text = tmp_path/"out", corpus.read_text("utf-8")
    assert load_ids(out/"train.bin", tokenizer.vocab_size).tolist() == tokenizer.encode(text[:1800])
    assert load_ids(out/"val.bin", tokenizer.vocab_size).tolist() == tokenizer.encode(text[1800:])
    assert (out/"tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["data.manifest.json", "tokenizer.json", "train.bin", "val.bin"]
    printed = capsys.readouterr().out
    assert re.search(r"train\.bin: [\d,]+ tokens, 1\.\d\d bytes per token", printed) and re.search(r"2,000 bytes in .* MB/s", printed)


def test_several_files_and_a_validation_text(corpus, tokenizer, tokenizer_file, tmp_path):
    (tmp_path/"b.txt").write_text("beth", "utf-8", newline="\n"); (tmp_path/"v.txt").write_text("valeth", "utf-8", newline="\n"); (tmp_path/"w.txt").write_text("weth", "utf-8", newline="\n")
    main(["--tokenizer", str(tokenizer_file), "--corpus", str(corpus), str(tmp_path/"b.txt"), "--val_corpus", str(tmp_path/"v.txt"),
          str(tmp_path/"w.txt"), "--val_fraction", "7", "--output", str(tmp_path)])   # the fraction isn't used
    assert np.load(tmp_path/"train.bin").tolist() == tokenizer.encode(corpus.read_text("utf-8") + "beth")   # the first brings its own end
    assert np.load(tmp_path/"val.bin").tolist() == tokenizer.encode(f"valeth{end_of_text}weth")


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("ends", ["", end_of_text, end_of_text + "\n \n"], ids=["none", "token", "token and white space"])
def test_between_two_files_stands_one_end_of_text(ends, processes, tokenizer, tokenizer_file, tmp_path):
    "However many files go to training and to validation; where a file is cut, nothing is put in."
    paths = [tmp_path/f"{i}.txt" for i in range(5)]
    for i, path in enumerate(paths): path.write_text(f"the {i}th moth {ends}", "utf-8", newline="\n")
    main(["--tokenizer", str(tokenizer_file), "--corpus", *map(str, paths), "--val_fraction", "0.4", "--num_processes", processes, "--output", str(tmp_path/"out")])
    wanted = [f"the {i}th moth {ends}" + (not ends) * end_of_text for i in range(5)]
    last = len(end_of_text) * (not ends)   # behind the last one there is none
    for name, texts in ("train", wanted[:3]), ("val", wanted[3:]):
        text = "".join(texts)
        assert np.load(tmp_path/"out"/f"{name}.bin").tolist() == tokenizer.encode(text[:len(text) - last])


def test_whole_documents_that_are_far_from_the_fraction_are_noted(tokenizer_file, tmp_path, capsys):
    paths = [tmp_path/f"{i}.txt" for i in range(5)]
    for path in paths: path.write_text("0123456789", "utf-8", newline="\n")
    words = ["--tokenizer", str(tokenizer_file), "--corpus", *map(str, paths), "--output", str(tmp_path/"out"), "--val_fraction"]
    main([*words, "0.2"])
    assert "note" not in capsys.readouterr().err
    main([*words, "0.01"])
    assert "so validation gets 20.0% of the text and not 1.0%" in capsys.readouterr().err


def test_a_tokenizer_without_the_token_joins_files_and_says_so(tmp_path, capsys):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], [])
    tokenizer.save(tmp_path/"tok.json")
    for name in "abc": (tmp_path/name).write_text(name * 9, "utf-8", newline="\n")
    main(["--tokenizer", str(tmp_path/"tok.json"), "--corpus", str(tmp_path/"a"), str(tmp_path/"b"), "--val_corpus", str(tmp_path/"c"), "--output", str(tmp_path/"out")])
    assert np.load(tmp_path/"out"/"train.bin").tobytes() == b"a" * 9 + b"b" * 9
    assert f"note: the tokenizer has no {end_of_text}, so files are joined as they are" in capsys.readouterr().err


@pytest.mark.parametrize("on_error, kept, note", [
    ("skip", "the moth", "note: files: 4; skipped: 3 (empty.py, latin.txt, torn.gz)"),
    ("replace", f"the moth{end_of_text}caf\ufffd", "note: files: 4; skipped: 2 (empty.py, torn.gz); mended: 1 (latin.txt)")])
def test_bad_files_are_skipped_or_mended_on_request_and_counted(on_error, kept, note, tokenizer, tokenizer_file, tmp_path, capsys, data_refusal):
    (tmp_path/"good.txt").write_text("the moth", "utf-8", newline="\n"); (tmp_path/"empty.py").touch()
    (tmp_path/"latin.txt").write_bytes("café".encode("latin-1")); (tmp_path/"torn.gz").write_bytes(gzip.compress(b"thin" * 999)[:-9])
    corpus = [str(tmp_path/name) for name in ("good.txt", "empty.py", "latin.txt", "torn.gz")]
    words = ["--tokenizer", str(tokenizer_file), "--corpus", *corpus, "--val_corpus", str(tmp_path/"good.txt"), "--output", str(tmp_path/"out")]
    assert "empty.py is empty" in data_refusal(*words)
    main([*words, "--on_error", on_error])
    assert np.load(tmp_path/"out"/"train.bin").tolist() == tokenizer.encode(kept) and note in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path/"out").iterdir()) == ["data.manifest.json", "tokenizer.json", "train.bin", "val.bin"]


def test_nothing_left_is_refused(tokenizer_file, tmp_path, data_refusal):
    (tmp_path/"empty.txt").touch()
    said = data_refusal("--tokenizer", tokenizer_file, "--corpus", tmp_path/"empty.txt", "--on_error", "skip", "--output", tmp_path/"out")
    assert said == "error: no file of --corpus is left to read; name others" and not list((tmp_path/"out").iterdir())


def test_packed_files_and_lines_of_json_are_read(tokenizer, tokenizer_file, tmp_path, capsys):
    lines = "".join(json.dumps({"text": text, "id": 7}) + "\n\n" for text in ("the moth", "", "Thé\nthin", " \n"))   # rows without text make no documents
    (tmp_path/"a.jsonl").write_text(lines, "utf-8", newline="\n"); (tmp_path/"b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path/"c.txt.gz").write_bytes(gzip.compress(b"beth\r\n"))
    (tmp_path/"D.JSONL").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())   # as Windows writes them
    (tmp_path/"E.TXT.GZ").write_bytes(gzip.compress(b"beth\r\n"))
    main(["--tokenizer", str(tokenizer_file), "--corpus", *(str(tmp_path/name) for name in ("a.jsonl", "b.jsonl.gz", "D.JSONL", "c.txt.gz", "E.TXT.GZ")), "--val_corpus",
          str(tmp_path/"a.jsonl"), "--output", str(tmp_path/"out")])
    assert "note: empty rows left out: 6\n" in capsys.readouterr().err
    documents = f"the moth{end_of_text}Thé\nthin{end_of_text}"
    assert np.load(tmp_path/"out"/"train.bin").tolist() == tokenizer.encode(documents * 3 + f"beth\r\n{end_of_text}beth\r\n")
    assert np.load(tmp_path/"out"/"val.bin").tolist() == tokenizer.encode(documents)


@pytest.mark.parametrize("name, content, message", [
    ("x.gz", b"no gzip", "x.gz is not a complete gzip file"), ("x.gz", gzip.compress(b"the moth" * 99, mtime=0)[:-12], "x.gz is not a complete gzip file"),
    ("x.gz", gzip.compress(b"\xff", mtime=0), "x.gz is not UTF-8"), ("x.gz", gzip.compress(b"", mtime=0), "x.gz has no text in it"),
    ("x.jsonl", b'{"text": "a"}\n{"body": "b"}\n', 'x.jsonl has no field "text"; name another --text_field'), ("x.jsonl", b'{"text": "a"}\n{"text": ["b"]}', 'x.jsonl has no text in "text", but ["b"]'), ("x.jsonl", b'{"text": ""}', "x.jsonl has no text in it"), ("x.jsonl", b'["text"]', "line 1 of "), ("x.jsonl", b'{"text": 7}', "line 1 of "),
    ("x.jsonl", b'{"text": "a"', "is not a JSON object such as"), ("x.jsonl", b'{"text": "\\ud800"}', "x.jsonl has half a character"),
    ("x.txt", gzip.compress(b"the moth", mtime=0), "it is packed by gzip; unpack it first"), ("x.txt.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "it is packed by zstd; unpack it first")])
def test_broken_files_of_other_kinds_end_in_one_line(name, content, message, corpus, tokenizer_file, tmp_path, data_refusal):
    (tmp_path/name).write_bytes(content)
    assert message in data_refusal("--tokenizer", tokenizer_file, "--corpus", tmp_path/name, "--val_corpus", corpus, "--output", tmp_path/"out")
    assert not list((tmp_path/"out").iterdir())


def test_writing_beside_the_tokenizer_keeps_it(corpus, tokenizer, tmp_path):
    tokenizer.save(tmp_path/"tokenizer.json")
    before = (tmp_path/"tokenizer.json").read_bytes()
    main(["--tokenizer", str(tmp_path/"tokenizer.json"), "--corpus", str(corpus), "--output", str(tmp_path)])
    assert (tmp_path/"tokenizer.json").read_bytes() == before


def test_the_process_needs_no_torch(corpus, tokenizer_file, tmp_path):
    code = ("import sys; from llm_course.data import main\n"
            f"main(['--tokenizer', {str(tokenizer_file)!r}, '--corpus', {str(corpus)!r}, '--output', {str(tmp_path/'out')!r}])\n"
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_shares_its_work_between_processes(tokenizer_file, tokenizer, tmp_path):
    path = tmp_path/"x.txt"
    path.write_text(("the moth and then\n" * 20_000 + end_of_text) * 14, "utf-8", newline="\n")   # 5 MB, enough for two processes
    subprocess.run([sys.executable, "-m", "llm_course.data", "--tokenizer", tokenizer_file, "--corpus", path, "--output", tmp_path/"out",
                    "--num_processes", "2"], check=True)
    text = path.read_text("utf-8").split(end_of_text)[0] + end_of_text
    one = tokenizer.encode(text)
    assert np.array_equal(load_ids(tmp_path/"out"/"train.bin"), one * 13) and np.array_equal(load_ids(tmp_path/"out"/"val.bin"), one)


@pytest.mark.parametrize("flags, message", [
    (["--corpus", "{corpus}"], "--tokenizer is missing"),
    (["--tokenizer", "{tokenizer}"], "--corpus is missing"),
    (["--tokenizer", "{tmp}/none.json", "--corpus", "{corpus}"], "--tokenizer {tmp}/none.json does not exist"),
    (["--tokenizer", "{corpus}", "--corpus", "{corpus}"], "is not a tokenizer"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/none.txt"], "--corpus {tmp}/none.txt does not exist"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/none"], "--corpus {tmp}/none holds no text"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/empty.txt"], "--corpus {tmp}/empty.txt is empty"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--val_corpus", "{tmp}/none.txt"], "--val_corpus {tmp}/none.txt does not exist"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/tiny.txt"], "tiny.txt is a single line"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/two.txt"], "would hold 1 ids"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{tmp}/latin.txt"], "latin.txt is not UTF-8: byte 0xe9 at position 2003"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--val_fraction", "1"], "--val_fraction must lie between 0 and 1"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--val_fraction", "nan"], "--val_fraction must lie between 0 and 1"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--num_processes", "0"], "--num_processes must be at least 1"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--output", "{corpus}"], "--output {corpus} cannot be written"),
    (["--fetch", "shakespeare", "--corpus", "{corpus}"], "--fetch only writes texts"),
    (["--fetch", "shakespear"], "there is no corpus shakespear; choose shakespeare, smollm2-135m"),
    (["--tokenizer", "{tokenizer}", "--corpus", "{corpus}", "--val_fraction", "-1"], "--val_fraction must lie between 0 and 1"),
    (["--fetch", "shakespeare", "--val_fraction", "0"], "--val_fraction must lie between 0 and 1"),
])
def test_bad_input_ends_in_one_line(flags, message, corpus, tokenizer_file, tmp_path, data_refusal):
    (tmp_path/"empty.txt").touch(); (tmp_path/"tiny.txt").write_text("x", "utf-8", newline="\n"); (tmp_path/"two.txt").write_text("x\ny", "utf-8", newline="\n")
    (tmp_path/"latin.txt").write_bytes(corpus.read_bytes() + "café\n".encode("latin-1"))
    (tmp_path/"none").mkdir()
    names = {"corpus": corpus, "tokenizer": tokenizer_file, "tmp": tmp_path}
    argv = [flag.format(**names) for flag in flags]
    if "--output" not in argv: argv += ["--output", str(tmp_path/"out")]
    assert message.format(**names) in data_refusal(*argv)
    assert not list((tmp_path/"out").glob("*"))   # nothing half-written


def test_a_failure_leaves_the_old_files_as_they_were(corpus, tokenizer_file, tmp_path, data_refusal):
    out = tmp_path/"out"
    out.mkdir()
    names = "data.manifest.json", "tokenizer.json", "train.bin", "val.bin"
    for name in names: (out/name).write_text(json.dumps(names), "utf-8", newline="\n")
    bad = tmp_path/"bad.txt"
    bad.write_bytes(b"\xff")
    assert "bad.txt is not UTF-8" in data_refusal("--tokenizer", tokenizer_file, "--corpus", corpus, "--val_corpus", bad, "--output", out)
    assert {p.name: p.read_text("utf-8") for p in out.iterdir()} == dict.fromkeys(names, json.dumps(names))


@pytest.mark.parametrize("there, kept", [("train.bin", True), ("val.bin", True), ("tokenizer.json", True), ("the same tokenizer", False), ("notes.txt", False)])
def test_only_files_of_such_a_call_are_replaced(there, kept, corpus, tokenizer_file, tmp_path, data_refusal):
    out, words = tmp_path/"out", ["--tokenizer", str(tokenizer_file), "--corpus", str(corpus), "--output", str(tmp_path/"out")]
    out.mkdir()
    if there == "the same tokenizer": (out/"tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    else: (out/there).write_text("somebody's", "utf-8", newline="\n")
    if kept:
        assert f"{there} was not made by this command" in data_refusal(*words)
        assert [p.name for p in out.iterdir()] == [there]
        return
    main(words)
    before = (out/"train.bin").read_bytes()
    main([*words, "--val_fraction", "0.5"])   # as often as one likes
    assert (out/"train.bin").read_bytes() != before


def test_nothing_need_be_held_back(corpus, tokenizer, tokenizer_file, tmp_path, capsys, data_refusal):
    words = ["--tokenizer", str(tokenizer_file), "--corpus", str(corpus), "--output"]
    main([*words, str(tmp_path/"alone"), "--val_fraction", "0"])
    assert np.load(tmp_path/"alone"/"train.bin").tolist() == tokenizer.encode(corpus.read_text("utf-8"))
    assert sorted(p.name for p in (tmp_path/"alone").iterdir()) == ["data.manifest.json", "tokenizer.json", "train.bin"]
    main([*words, str(tmp_path/"both")])
    assert "val.bin is the validation data of other training data, and --val_fraction 0 writes none; delete it" in data_refusal(*words, tmp_path/"both", "--val_fraction", "0")


@pytest.mark.parametrize("texts, documents", [(["a"], 1), (["a", "b"], 2), ([f"a{end_of_text}b"], 2), ([f"a{end_of_text}b{end_of_text}\n"], 2), ([f"a{end_of_text}", "b", f"c{end_of_text}d"], 4)])
def test_documents_are_counted(texts, documents, tokenizer_file, tmp_path, capsys):
    paths = [tmp_path/f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts): path.write_text(f"the moth {text}", "utf-8", newline="\n")
    main(["--tokenizer", str(tokenizer_file), "--corpus", *map(str, paths), "--val_fraction", "0", "--output", str(tmp_path/"out")])
    assert f", documents: {documents}\n" in capsys.readouterr().out


def test_notes_name_the_files_that_were_given(tokenizer_file, tmp_path, monkeypatch, capsys):
    (tmp_path/"latin.txt").write_bytes(b"one\ncaf\xe9\n" * 9); (tmp_path/"a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 9))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n" * 9)))
    for corpus, name in (tmp_path/"latin.txt", tmp_path/"latin.txt"), (tmp_path/"a.txt.gz", tmp_path/"a.txt.gz"), ("-", "standard input"):
        main(["--tokenizer", str(tokenizer_file), "--corpus", str(corpus), "--on_error", "replace", "--output", str(tmp_path/"out")])
        assert f"note: {name} is a single document, so it is cut between two lines" in capsys.readouterr().err


def test_a_mark_before_utf_8_is_no_text(tokenizer, tokenizer_file, tmp_path):
    "Editors of Windows write it; so each file of theirs would begin with a character that nobody sees."
    for name, text in ("a.txt", "the moth"), ("b.txt", "and then"), ("v.txt", "thin"): (tmp_path/name).write_text(text, "utf-8-sig", newline="\n")
    (tmp_path/"c.txt.gz").write_bytes(gzip.compress("\ufeffthe thing".encode()))
    for more in [], ["--on_error", "replace"]:
        main(["--tokenizer", str(tokenizer_file), "--corpus", *(str(tmp_path/name) for name in ("a.txt", "b.txt", "c.txt.gz")), "--val_corpus", str(tmp_path/"v.txt"), "--output", str(tmp_path/"out"), *more])
        assert tokenizer.decode(np.load(tmp_path/"out"/"train.bin").tolist()) == end_of_text.join(["the moth", "and then", "the thing"])
        assert tokenizer.decode(np.load(tmp_path/"out"/"val.bin").tolist()) == "thin"


@pytest.mark.parametrize("same", ["a.txt", "./a.txt"])
def test_a_text_to_train_and_to_validate_on_is_told(same, tokenizer_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "a.txt", "b.txt": (tmp_path/name).write_text("the moth", "utf-8", newline="\n")
    for val, notes in (same, ["note: a.txt is in --corpus and in --val_corpus, so the validation loss will not tell how the model does on new text"]), ("b.txt", []):
        main(["--tokenizer", str(tokenizer_file), "--corpus", "a.txt", "--val_corpus", val, "--output", "out"])
        assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")] == notes


def test_a_tokenizer_may_be_named_by_its_folder(corpus, tokenizer_file, tmp_path, data_refusal):
    (tmp_path/"run").mkdir(); (tmp_path/"none").mkdir()
    (tmp_path/"run"/"tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    for name in tokenizer_file, tmp_path/"run": main(["--tokenizer", str(name), "--corpus", str(corpus), "--output", str(tmp_path/"out")]); assert (tmp_path/"out"/"tokenizer.json").read_bytes() == tokenizer_file.read_bytes()
    assert f"--tokenizer {tmp_path/'none'} is a folder without a tokenizer.json; name the file, or a folder that has one, such as a run folder" in data_refusal("--tokenizer", tmp_path/"none", "--corpus", corpus)
    assert "nowhere does not exist" in data_refusal("--tokenizer", tmp_path/"nowhere", "--corpus", corpus)


def test_flags_have_defaults(): assert DataConfig().val_fraction == 0.1
