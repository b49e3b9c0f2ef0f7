"""The notation page: every letter that a chapter's formulas use is in one of its tables, and every letter of a table is used."""
import re
from pathlib import Path

import book
import pytest

root = Path(__file__).parents[1]

FREE = set("abcijnrux")   # for whatever is at hand, as the page says
GREEK = "alpha beta gamma delta varepsilon eta theta lambda mu sigma varphi Phi rho tau omega".split()


def text_of(path): return "\n\n".join("".join(cell["source"]) for cell in book.cells(path) if cell["cell_type"] == "markdown")


def letters(formula):
    "The single letters of a formula, without names in several letters and without einx's and LaTeX's own words."
    formula = re.sub(r"\\(?:text|operatorname|mathrm|mathbb|mathit|phantom|begin|end)\{[^}]*\}", " ", formula)
    greek = set(re.findall(rf"\\({'|'.join(GREEK)})(?![a-zA-Z])", formula))
    return {f"\\{name}" for name in greek} | set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", formula)))


def formulas(text): return [one or two for one, two in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S), re.S)]


def tables(text):
    "The letters that always mean the same, and those that a chapter borrows: letter → chapters."
    rows = [row.strip("|").split("|") for row in text.partition("## Letters")[2].partition("## Pictures")[0].splitlines() if row.startswith("| $")]
    axes = set(re.findall(r"^\| `(\w)` \|", text, re.M))
    always = axes | {letter for row in rows if not re.fullmatch(r" *(?:\d\d|[a-z]\w+)(?:, (?:\d\d|[a-z]\w+))* *", row[-1]) for formula in formulas(row[0]) for letter in letters(formula)}
    borrowed = {}
    for row in rows:
        if re.fullmatch(r" *(?:\d\d|[a-z]\w+)(?:, (?:\d\d|[a-z]\w+))* *", row[-1]):
            for formula in formulas(row[0]):
                for letter in letters(formula): borrowed.setdefault(letter, set()).update(re.findall(r"\w+", row[-1]))
    return always, borrowed


notation = text_of(root/"nbs"/"reference"/"notation.ipynb")
chapters = {path.stem: set().union(*map(letters, formulas(text_of(path)))) for path in book.pages() if book.module(path) and path.stem != "notation"}


def place(chapter):
    "How the tables name a page: a lesson by its number, one of the engine room by its name, all pages of grading by one word."
    if chapter[:2].isdigit(): return chapter[:2]
    return "grader" if chapter == "grading" or chapter.startswith("mistakes_") else chapter


@pytest.mark.parametrize("chapter", chapters)
def test_every_letter_is_in_a_table(chapter):
    always, borrowed = tables(notation)
    unknown = {letter for letter in chapters[chapter] - always - FREE if place(chapter) not in borrowed.get(letter, ())}
    assert not unknown, f"say in reference/notation what {sorted(unknown)} mean in {chapter}"


def test_every_borrowed_letter_is_used_where_it_is_said_to_be():
    used = {}
    for chapter, found in chapters.items(): used.setdefault(place(chapter), set()).update(found)
    assert not [(letter, number) for letter, numbers in tables(notation)[1].items() for number in sorted(numbers) if letter not in used[number]]


def test_the_page_says_which_letters_are_free():
    said = re.search(r"The letters (.+) serve for whatever is at hand\.", notation)[1]
    assert set().union(*map(letters, formulas(said))) == FREE


def test_letters_are_read_off():
    assert letters(r"W_{ij} \approx s_i\,\operatorname{softmax}(x)^\top, \eta, d_\text{model}, \beta_1^t") == {"W", "s", "i", "x", r"\eta", "d", r"\beta", "t"}
    assert formulas("a `$b$` and $c$, $$d$$") == ["c", "d"]
    assert tables("## Axes\n\n| `h` | heads |\n\n## Letters\n\n| $x$, $y$ | what | `x` |\n| $T$ | hot | 08, 18 |\n\n## Pictures") == ({"h", "x", "y"}, {"T": {"08", "18"}})
