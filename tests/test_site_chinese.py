"""The front page and the tour in Chinese say what the English pages say, as far as a program can tell."""
import re

import book
import chinese
import pytest


def facts(text):
    "What must be the same in both languages: numbers, links, code and formulas."
    links = re.findall(r"\]\(([^)]+)\)", text)
    code = re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    formulas = re.findall(r"\$+([^$]+)\$+", text)
    bare = re.sub(r"\]\([^)]+\)|`[^`]+`|\$+[^$]+\$+", " ", text)
    return sorted(links), sorted(code), sorted(formulas), sorted(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", bare))


@pytest.mark.parametrize("page", chinese.PAGES)
def test_each_cell_has_its_numbers_links_code_and_formulas(page):
    english, texts = chinese.english_of(page), chinese.texts_of(page)
    assert list(texts) == list(english), "a text is missing, or stands in another place"
    for name, text in texts.items():
        if name == "chapters": continue   # its table is the one of README_cn.md, which has a test of its own
        assert facts(text) == facts(english[name]), name
        assert len(re.findall(r"^#+ ", text, re.M)) == len(re.findall(r"^#+ ", english[name], re.M)), name


def test_a_number_or_a_link_that_differs_is_noticed():
    assert facts("34 plays, [08](08_softmax.ipynb), `f`, $p$") == facts("$p$ `f` [08](08_softmax.ipynb) 34")
    for other in "35 plays, [08](08_softmax.ipynb), `f`, $p$", "34 plays, [08](09_x.ipynb), `f`, $p$", "34 plays, [08](08_softmax.ipynb), `g`, $q$":
        assert facts(other) != facts("34 plays, [08](08_softmax.ipynb), `f`, $p$")


def narrow(text):
    "Where a comma, a colon or a bracket beside a Chinese character is the narrow one of ASCII; code and the addresses of links aside."
    bare = re.sub(r"\]\([^)\s]*\)|\*", lambda found: "]"[:found[0] != "*"], re.sub(r"`[^`\n]*`", "x", text))
    return re.findall(r".{,9}(?:[\u3400-\u9fff][,;:!?()]|[,;:!?()][\u3400-\u9fff]).{,9}", bare)


@pytest.mark.parametrize("name", ["README_cn.md", *(f"web/chinese/{path.name}" for path in (book.root/"web"/"chinese").glob("*.md"))])
def test_marks_between_chinese_characters_are_wide(name):
    assert not narrow((book.root/name).read_text("utf-8"))


def test_a_narrow_mark_is_noticed():
    for text in "一,二", "一 PyTorch(二", "*一*(nat)", "(`x`一)": assert narrow(text)
    assert not narrow("一，二（`f(一)`）[一](x.ipynb)，nat (GB), 2:3")


def test_the_table_of_chapters_is_the_one_of_the_readme():
    rows = chinese.chapters()
    assert "[01 字节对编码](01_bpe.ipynb)" in rows and "](nbs/" not in rows and rows.count("\n") > 40


@pytest.mark.parametrize("page", chinese.PAGES)
def test_what_is_shown_is_chinese_and_what_is_hidden_stays_hidden(page):
    cells = chinese.translated(page)
    shown = "\n".join("".join(cell["source"]) for cell in cells)
    assert "google.colab" not in shown and "lang: zh" in shown
    for english in chinese.english_of(page).values(): assert english not in shown
    tables = ["".join(output["data"]["text/markdown"]) for cell in cells for output in cell.get("outputs", ()) if "text/markdown" in output.get("data", {})]
    assert not [table for table in tables if "minutes" in table or "course" in table]
    assert chinese.led_back("[x](09_a.ipynb) [y](https://z.org/a.ipynb)") == "[x](../nbs/09_a.ipynb) [y](https://z.org/a.ipynb)"
