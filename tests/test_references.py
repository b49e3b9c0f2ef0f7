"""The bibliography: whoever a page names is in it, by the right names and year, and whoever is in it is named.

Each check takes a page and yields its complaints, as in `test_notebooks.py`, and is shown here to complain about a broken one."""
import re
from pathlib import Path

import book
import pytest
import references

pytest.importorskip("pypandoc")
root = Path(__file__).parents[1]

entries, texts = references.entries(), references.sources()
codes = {path: "\n".join("".join(cell["source"]) for cell in book.cells(path) if cell["cell_type"] == "code") for path in texts}
DATED = r"\b[A-Z][\w’'-]+,? \(?(?:19[4-9]\d|20[0-2]\d)\b"   # Shannon (1948); Kudo, 2018

checks = {}

def check(function):
    checks[function.__name__] = function
    return function


@check
def cites_what_there_is_by_its_name_and_year(text, code=""):
    for said, key in references.CITED.findall(text):
        if key not in entries: yield f"{key} is not in references.bib"
        elif not references.agrees(said, entries[key]): yield f"'{said}' is not how {references.surnames(entries[key])[:3]} ({references.year(entries[key])}) are to be cited"


@check
def links_what_it_cites(text, code=""):
    "A name with a year is a link; and of whoever is *et al.* there is one on the page."
    linked = {key for _, key in references.CITED.findall(text)} & entries.keys()
    bare = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", references.CITED.sub("", text), flags=re.S)
    for found in re.findall(DATED, bare): yield f"'{found}' is no link to references.ipynb"
    for name in re.findall(r"([A-Z][\w-]+) (?:et al\.|and others\b)", bare):
        if not any(name == references.surnames(entries[key])[0] for key in linked): yield f"'{name} et al.' are not cited on this page"


@check
def cites_the_sources_of_its_code(text, code):
    linked = [entries[key] for _, key in references.CITED.findall(text) if key in entries]
    for source in re.findall(r"Source: ([^\"\n]+)", code):
        for part in source.split(";"):
            if re.search(r"\b\d{4}\b", part) and not any(references.agrees(part, entry) for entry in linked): yield f"'Source:{part}' is not cited in the text"


@check
def links_papers_by_way_of_the_list(text, code=""):
    known = {entry.get("URL") for entry in entries.values()}
    for link in re.findall(r"https?://(?:arxiv|doi|dx\.doi|openreview|aclanthology)\.[^\s)>\]]+", text):
        if link not in known: yield f"{link} belongs into references.bib"


@pytest.mark.parametrize("page", texts, ids=book.name)
def test_page(page):
    assert {name: found for name, function in checks.items() if (found := list(function(texts[page], codes[page])))} == {}


def test_whatever_is_listed_is_cited():
    cited = {key for text in texts.values() for _, key in references.CITED.findall(text)}
    assert cited == entries.keys()


def test_the_page_is_in_step_with_the_list_and_the_book():
    assert (root/"nbs"/"reference"/"references.ipynb").read_text("utf-8") == references.page(), "run python web/references.py"


def test_every_entry_has_what_a_reader_needs_to_find_it():
    for key, entry in entries.items():
        assert re.match(r"[a-z]+\d{4}", key) and key.startswith(references.surnames(entry)[0].split("-")[0].replace(" ", "").lower()) and str(references.year(entry)) in key, key
        assert entry["title"] and (entry.get("URL") or entry.get("container-title") or entry.get("note")), key
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}|https://arxiv\.org/abs/1[0-4]\d\d\.\d{4}|https://(?!arxiv|doi).+|https://doi\.org/10\..+|", entry.get("URL", "")), key


good = "As [Vaswani et al. (*Attention Is All You Need*, 2017)](references.ipynb#vaswani2017) say; Vaswani et al. say so $x 2019$ in `Python 2020`."

@pytest.mark.parametrize("name, text, code", [
    ("cites_what_there_is_by_its_name_and_year", good.replace("#vaswani2017", "#vaswani2018"), ""),
    ("cites_what_there_is_by_its_name_and_year", good.replace("2017)](", "2018)]("), ""),
    ("cites_what_there_is_by_its_name_and_year", good.replace("[Vaswani", "[Shazeer"), ""),
    ("cites_what_there_is_by_its_name_and_year", "[Press and Lewis, 2017](references.ipynb#press2017)", ""),
    ("cites_what_there_is_by_its_name_and_year", "[Press, 2017](references.ipynb#press2017)", ""),
    ("links_what_it_cites", good + " (Shannon, 1948)", ""),
    ("links_what_it_cites", good + " Bridle (1990) said", ""),
    ("links_what_it_cites", good + " Dao et al. agree", ""),
    ("cites_the_sources_of_its_code", good, '"Do. Source: Vaswani et al. 2017, eq. 1; Dao et al. 2022."'),
    ("links_papers_by_way_of_the_list", good + " [here](https://arxiv.org/abs/1234.56789)", ""),
])
def test_a_broken_page_is_noticed(name, text, code):
    assert list(checks[name](text, code)) and not list(checks[name](good, '"Do. Source: Vaswani et al. 2017, eq. 1."'))


def test_every_check_was_seen_to_fail():
    mark = next(mark for mark in test_a_broken_page_is_noticed.pytestmark if mark.name == "parametrize")
    assert {name for name, *_ in mark.args[1]} == checks.keys()
