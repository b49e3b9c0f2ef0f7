"""The glossary: in order, within reach, and linked from where its terms are first used. Each check is shown to complain about a broken book."""
import re
from pathlib import Path

import book as pages
import pytest

root = Path(__file__).parents[1]

TO = r"(?:\.\./)?(?:reference/)?glossary\.ipynb"   # the glossary, seen from another page
LINKED = re.compile(rf"\[([^][]+)\]\((?:{TO})?#([\w-]+)\)")


def text_of(path): return "\n\n".join("".join(cell["source"]) for cell in pages.cells(path) if cell["cell_type"] == "markdown")


book = {path.stem: text_of(path) for path in pages.pages()}


def terms_in(glossary):
    "Each term with its anchor, what is said of it, and the page that builds it."
    found = re.findall(r"^### (.+)\n\n(.+)", glossary, re.M)
    return {term: (re.sub(r"[^\w -]", "", term).lower().replace(" ", "-"), said, (re.findall(r"\[(?:Chapter \d\d|[A-Z][\w ]+)\]\((?:\.\./)?(?:engine/|grading/)?(\w+)\.ipynb\)$", said) or [""])[0]) for term, said in found}


def prose(text):
    "A page's sentences, with headings, tables, code and formulas taken out, and each link as what it says."
    text = re.sub(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|^(?:#|\||>|<)[^\n]*$", "", text, flags=re.S | re.M)
    return re.sub(r"\[([^][]*)\]\([^)]*\)", r"\1", text)


checks = {}

def check(function):
    checks[function.__name__] = function
    return function


@check
def terms_are_sorted_and_under_their_letters(book):
    heads = re.findall(r"^###? (.+)$", book["glossary"], re.M)
    if heads != sorted(heads, key=lambda head: (head[0].lower(), len(head) > 1, head.lower())): yield "the terms are out of order"
    letters = {head for head in heads if len(head) == 1}
    if letters != {head[0].upper() for head in heads if len(head) > 1}: yield "a letter stands alone, or is missing"


@check
def each_term_is_said_in_a_sentence_or_three_and_names_its_page(book):
    for term, (_, said, home) in terms_in(book["glossary"]).items():
        if home not in book: yield f"{term} leads to no chapter"
        if not 5 <= len(re.sub(r"\[[A-Z][\w ]+\]\([^)]*\)$", "", said).split()) <= 50: yield f"{term} takes {len(said.split())} words"


@check
def links_lead_to_terms_that_say_the_same(book):
    anchors = {anchor: term for term, (anchor, *_) in terms_in(book["glossary"]).items()}
    for name, text in book.items():
        for said, anchor in re.findall(rf"\[([^][]+)\]\({TO}#([\w-]+)\)" if name != "glossary" else LINKED, text):
            if anchor not in anchors: yield f"{name}: the glossary has no '{anchor}'"
            elif said.lower().replace(" ", "-")[:2] != anchor[:2] and anchor != "overfitting": yield f"{name}: '{said}' leads to '{anchor}'"


@check
def no_term_is_linked_twice_on_a_page_nor_at_home(book):
    for name, text in book.items():
        if name == "glossary": continue
        found = [anchor for _, anchor in re.findall(rf"\[([^][]+)\]\({TO}#([\w-]+)\)", text)]
        if again := {anchor for anchor in found if found.count(anchor) > 1}: yield f"{name} links {again} twice"
        if home := {term for term, (anchor, _, home) in terms_in(book["glossary"]).items() if home == name and anchor in found}: yield f"{name} explains {home} itself"


@check
def every_term_is_linked(book):
    linked = {anchor for text in book.values() for _, anchor in LINKED.findall(text)}
    for term, (anchor, *_) in terms_in(book["glossary"]).items():
        if anchor not in linked: yield f"nothing leads to {term}"


@check
def the_first_use_in_the_book_is_at_home_or_linked(book):
    "Words that mean many things are left out, and so are the front page and the tour, which run ahead of the book."
    common = {"autograd", "block", "context", "gate", "head", "id", "key", "layer", "mask", "moments", "nat", "query", "surprise", "training", "value"}
    for term, (anchor, _, home) in terms_in(book["glossary"]).items():
        if term in common: continue
        word = re.compile(rf"(?<![\w-]){re.escape(term)}s?(?![\w-])", 0 if re.search("[A-Z]", term) else re.I)
        first = next((name for name in book if name not in ("index", "00_tour", "glossary", "references") and (word.search(prose(book[name])) or name == home)), home)
        if first != home and not re.search(rf"{TO}#{re.escape(anchor)}\)", book[first]): yield f"{first} uses '{term}' before {home} explains it: link it to the glossary"


@pytest.mark.parametrize("name", checks)
def test_book(name): assert not list(checks[name](book))


good = {"glossary": "## A\n\n### atom\n\nWhat cannot be cut, so they said. [Chapter 02](02_b.ipynb)\n\n## B\n\n### bond\n\nWhat holds [atoms](#atom) together for long. [Chapter 01](01_a.ipynb)",
        "01_a": "# Bonds\n\nAn [atom](glossary.ipynb#atom) has bonds.", "02_b": "# Atoms\n\nThe [bond](glossary.ipynb#bond) of an atom."}

@pytest.mark.parametrize("name, page, old, new", [
    ("terms_are_sorted_and_under_their_letters", "glossary", "### bond", "### angle"),
    ("terms_are_sorted_and_under_their_letters", "glossary", "## B\n\n", ""),
    ("each_term_is_said_in_a_sentence_or_three_and_names_its_page", "glossary", "01_a", "03_c"),
    ("each_term_is_said_in_a_sentence_or_three_and_names_its_page", "glossary", "What cannot be cut, so they said.", "Uncut."),
    ("links_lead_to_terms_that_say_the_same", "01_a", "#atom", "#atoms"),
    ("links_lead_to_terms_that_say_the_same", "01_a", "[atom]", "[thing]"),
    ("no_term_is_linked_twice_on_a_page_nor_at_home", "01_a", "bonds.", "bonds of [atoms](glossary.ipynb#atom)."),
    ("no_term_is_linked_twice_on_a_page_nor_at_home", "01_a", "bonds.", "[bonds](glossary.ipynb#bond)."),
    ("every_term_is_linked", "02_b", "[bond](glossary.ipynb#bond)", "bond"),
    ("the_first_use_in_the_book_is_at_home_or_linked", "01_a", "[atom](glossary.ipynb#atom)", "atom"),
])
def test_a_broken_book_is_noticed(name, page, old, new):
    assert old in good[page] and not list(checks[name](good))
    assert list(checks[name](good | {page: good[page].replace(old, new)}))


def test_every_check_was_seen_to_fail():
    mark = next(mark for mark in test_a_broken_book_is_noticed.pytestmark if mark.name == "parametrize")
    assert {name for name, *_ in mark.args[1]} == checks.keys()
