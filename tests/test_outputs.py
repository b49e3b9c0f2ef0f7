"""The comparison of committed outputs with new ones, by which `installed.py` judges every page: what it lets pass, and what it notices."""
import re
from pathlib import Path

import book
import installed
import nbformat
import outputs
import pytest

root = Path(__file__).parents[1]

pages = {path.stem: book.cells(path) for path in book.pages()}
code = [(page, cell["id"], "".join(cell["source"])) for page, cells in pages.items() for cell in cells if cell["cell_type"] == "code"]


def printed(*texts, name="stdout"): return [{"output_type": "stream", "name": name, "text": text} for text in texts]
def result(text, kind="text/plain"): return [{"output_type": "execute_result", "data": {kind: text}}]
picture = [{"output_type": "display_data", "data": {"image/svg+xml": ["<svg/>"], "text/plain": ["<Figure>"]}}]


@pytest.mark.parametrize("before, after, reason", [
    (printed("a 1\n"), printed("a 1\n"), None),
    (printed("a\n", "b\n"), printed("a\nb\n"), None),                                    # in one piece or in two
    (printed("loss 2.34"), printed("loss 2.35"), None),                                   # the last digit
    (printed("[ 1.00, 10.00]"), printed("[1.00, 10.00]"), None),                          # blanks that align
    (printed("-0.00"), printed("0.00"), None),
    (result("<Split at 0x7f16>"), result("<Split>"), None),                               # an address in memory
    (picture, [picture[0] | {"data": {"image/svg+xml": ["<svg>other</svg>"], "text/plain": ["<Figure>"]}}], None),
    (printed("1") + picture, picture + printed("1"), None),
    (printed("took 3 ms, 1/65 of it"), printed("took 900.5 ms, 1/9 of it"), "time"),
    (printed("error 3.1e-08"), printed("error 9.7e-07"), "rounding"),
    (printed("1,000 gave 2.30"), printed("1,001 gave 2.35"), "rounding"),
    (printed("lost 2.0"), printed("lost 1.5"), "training"),
    (printed("ROMEO: Ay."), printed("ROMEO: No, 3 times."), "text"),
])
def test_honest_outputs_pass(before, after, reason): assert not list(outputs.differences(before, after, reason))


@pytest.mark.parametrize("before, after, reason", [
    (printed("a cat 1"), printed("a dog 1"), None),
    (printed("loss 2.34"), printed("loss 2.36"), None),
    (printed("-0.50"), printed("0.50"), None),
    (printed("7 tokens"), printed("8 tokens"), None),                                     # a count is exact
    (printed("1.2e-05"), printed("1.2e-06"), None),
    (printed("a 1 b"), printed("a b"), None),
    (printed("a"), [], None), ([], printed("a"), None), (picture, [], None), (printed("a"), result("a"), None),
    (printed("a"), printed("a", name="stderr"), None),
    (printed("a"), printed("a") + picture, None),
    (printed("a"), [{"output_type": "error", "ename": "ValueError"}], None),
    (result("<table>1</table>", "text/html"), result("<table>2</table>", "text/html"), None),
    (result("**1.5 ×**", "text/markdown"), result("**2.5 ×**", "text/markdown"), None),
    (printed("ours 3 ms"), printed("theirs 3 ms"), "time"),
    (printed("7 tokens\nin 3 ms"), printed("8 tokens\nin 4 ms"), "time"),
    (printed("3 ms\n4 ms"), printed("3 ms"), "time"),
    (printed("loss 2.30"), printed("loss 2.50"), "rounding"),
    (printed("loss 2.30"), printed("less 2.30"), "rounding"),
    (printed("error 1.0e-3"), printed("error 9.0e-07"), "rounding"),
    (printed("lost 2.0"), printed("won 2.0"), "training"),
    (printed("ROMEO: Ay."), [], "text"),
])
def test_untrue_outputs_are_noticed(before, after, reason): assert list(outputs.differences(before, after, reason))


def test_a_complaint_shows_both_lines_and_no_others():
    found, = outputs.differences(printed("same\nloss 2.3\n"), printed("same\nloss 2.9\n"))
    assert "loss 2.3" in found and "loss 2.9" in found and "same" not in found


def test_a_page_is_run_and_every_untrue_output_of_it_is_reported(tmp_path):
    "Without the folder bench first, as its readers have it, and then with it; two untrue cells, and both are named."
    cells = [("true", "print(6 * 7)", "42\n"), ("stale", "print(6 * 7)", "41\n"), ("clock", "#| varies: time\nimport time\nprint(f'{time.time():.0f} s')", "1 s\n"),
             ("bench", "#| reads: bench\nfrom pathlib import Path\nif Path('../bench/results/intel-avx512-amx.json').exists(): print('found')", "found\n"),
             ("lost", "pass", "a picture\n"), ("off", "#| eval: false\n1 / 0", "")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id=name, outputs=[nbformat.v4.new_output("stream", text=text)] * bool(text)) for name, source, text in cells])
    nbformat.write(notebook, tmp_path/"page.ipynb")
    found = installed.run_page(tmp_path/"page.ipynb", "python3")
    assert re.findall(r"^(\w+): ", found, re.M) == ["stale", "lost"] and "committed: 41" in found and "now: 42" in found
    assert not installed.run_page(tmp_path/"page.ipynb", "python3", compare=False)


def test_a_page_that_fails_says_where(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0", id="boom")]), tmp_path/"page.ipynb")
    assert "ZeroDivisionError" in installed.run_page(tmp_path/"page.ipynb", "python3", compare=False)


def test_every_mark_is_one_that_is_understood():
    for page, name, source in code:
        assert outputs.directive(source, "varies") in (None, *outputs.REASONS), (page, name)
        assert outputs.directive(source, "reads") in (None, "bench"), (page, name)


def test_every_cell_that_quotes_a_measurement_says_so():
    quotes = [(page, name, source) for page, name, source in code if re.search(r"\brecords\(", source) and page != "notation"]
    assert quotes and not [(page, name) for page, name, source in quotes if outputs.directive(source, "reads") != "bench"]
    assert not [(page, name) for page, name, source in code if re.search(r"bench\b.*read_text|open\(.*\bbench\b", source)]   # there is one way


def test_every_cell_that_shows_a_time_says_so():
    timed = re.compile(r"\d ?(?:ms|µs|MB/s)\b|\d × the time|as fast\b|times as long")
    shown = [(page, cell["id"], "".join(cell["source"])) for page, cells in pages.items() for cell in cells if cell["cell_type"] == "code"
             and any(timed.search(text) for kind, text in outputs.texts(cell["outputs"]) if kind in ("stdout", "text/plain", "text/markdown"))]
    assert shown and not [(page, name) for page, name, source in shown if outputs.directive(source, "varies") not in ("time", "text") and outputs.directive(source, "reads") != "bench"]
