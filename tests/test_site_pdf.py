"""The book as a PDF: a small one of two pages has a table of contents, an outline, and links that lead to places inside it."""
import re

import book
import pytest

pytest.importorskip("pypandoc")
pypdf = pytest.importorskip("pypdf")
pytest.importorskip("playwright.sync_api")

SMALL = '''<html><main id="the-text"><header><h1>{title}</h1></header><h2 id="part">A part</h2><p>{text}</p>
<details><summary>Hint</summary><p>The hint of {title}.</p></details><details class="code"><summary>Code</summary><p>How it is drawn.</p></details><figure>A picture.</figure><nav class="turn"></nav></main></html>'''


@pytest.fixture(scope="module")
def printed(browser, tmp_path_factory):
    "Two pages, one in a folder below the other's, each with a link to the other and to the web."
    import pdf
    site = tmp_path_factory.mktemp("small")
    (site/"nbs"/"engine").mkdir(parents=True)
    (site/"style.css").write_text((pdf.Path(pdf.__file__).parent/"style.css").read_text("utf-8"), "utf-8", newline="\n")
    texts = {"nbs/opening.html": '<a href="engine/motor.html#deep">onward</a> <a href="unlisted.html#there">beyond</a>',
             "nbs/engine/motor.html": '<a href="../opening.html">back</a> <a href="#part">here</a> <a href="https://example.org/">out</a><h3 id="deep" style="break-before: page">Deep</h3>'}
    for page, text in texts.items(): (site/page).write_text(SMALL.format(title=page[4:-5], text=text), "utf-8", newline="\n")
    config = book.config()
    config = config | {"website": config["website"] | {"sidebar": {"contents": ["nbs/01_opening.ipynb", {"section": "Engine", "contents": ["nbs/engine/motor.ipynb"]}]}}}
    pdf.print_book(browser, site, config, list(texts)).write(site/"book.pdf")
    assert not (site/pdf.FRONT).exists()
    return pypdf.PdfReader(site/"book.pdf")


def links(page):
    return [note.get_object() for note in page.get("/Annots", ()) if note.get_object()["/Subtype"] == "/Link"]


def test_the_book_has_a_title_contents_numbers_and_an_outline(printed):
    title, contents, first, second, third = printed.pages   # the second page of the course takes two sheets, and begins on a new one
    assert "llm_course" in title.extract_text()
    assert re.findall(r"Contents|Engine|opening|engine/motor|\d+", contents.extract_text()) == ["Contents", "opening", "1", "Engine", "engine/motor", "2"]
    assert printed.page_labels == ["i", "ii", "1", "2", "3"]
    assert [sheet.extract_text().split()[-1] for sheet in (first, second, third)] == ["1", "2", "3"]   # as the contents say
    def rows(outline, depth=0):
        for item in outline:
            if isinstance(item, list): yield from rows(item, depth + 1)
            else: yield depth, item.title, printed.get_destination_page_number(item)
    assert [*rows(printed.outline)] == [(0, "opening", 2), (1, "A part", 2), (0, "Engine", 3), (1, "engine/motor", 3), (2, "A part", 3)]


def test_links_lead_to_sheets_of_the_book_and_others_to_the_site(printed):
    numbers = {sheet.indirect_reference.idnum: at for at, sheet in enumerate(printed.pages)}
    inside = [[numbers[list.__getitem__(note["/Dest"], 0).idnum] for note in links(sheet) if "/Dest" in note] for sheet in printed.pages]
    assert inside == [[], [2, 3], [4], [2, 3], []]
    [deep] = [note["/Dest"] for note in links(printed.pages[2]) if "/Dest" in note]
    assert 700 < deep[3] < 842   # at the top of its sheet
    outside = [note["/A"]["/URI"] for sheet in printed.pages for note in links(sheet) if "/A" in note]
    url = book.config()["website"]["site-url"]
    assert outside == [url, f"{url}/nbs/unlisted.html#there", "https://example.org/"]


def test_what_is_folded_on_the_page_is_printed_but_for_the_code_of_pictures(printed):
    assert "The hint of opening." in printed.pages[2].extract_text() and "The hint of engine/motor." in printed.pages[4].extract_text()
    assert "A picture." in printed.pages[2].extract_text() and "How it is drawn." not in printed.pages[2].extract_text()


def test_a_folder_that_holds_no_site_is_refused(tmp_path):
    import pdf
    with pytest.raises(ValueError, match="holds no site"): pdf.main(pdf.Config(site=str(tmp_path)))


def test_a_release_is_built_by_one_command_and_has_the_book():
    "What `make release` makes is what the workflow publishes; to a package index go the wheel and the source archive alone."
    root = book.root
    flow = (root/".github"/"workflows"/"release.yml").read_text("utf-8")
    makefile = (root/"Makefile").read_text("utf-8")
    assert "make release" in flow and 'gh release create "$GITHUB_REF_NAME" dist/* _book/llm_course.pdf' in flow
    assert re.search(r"^release: pdf\n(?:\t.*\n)*\t\$\(PY\) -m build\n", makefile, re.M) and "--output _book/llm_course.pdf" in makefile
