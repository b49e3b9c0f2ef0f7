"""The book as a PDF: a small one of two pages has a table of contents, an outline, and links that lead to places inside it."""
import re

import book
import pytest

pytest.importorskip("pypandoc")
pypdf = pytest.importorskip("pypdf")
pytest.importorskip("playwright.sync_api")

SMALL = '''<html><main id="the-text"><header><h1>{title}</h1></header><h2 id="part">A part</h2><p>{text}</p>
<details><summary>Hint</summary><p>The hint of {title}.</p></details><nav class="turn"></nav></main></html>'''


@pytest.fixture(scope="module")
def printed(browser, tmp_path_factory):
    "Two pages, one in a folder below the other's, each with a link to the other and to the web."
    import pdf
    site = tmp_path_factory.mktemp("small")
    (site/"nbs"/"engine").mkdir(parents=True)
    (site/"style.css").write_text((pdf.Path(pdf.__file__).parent/"style.css").read_text("utf-8"), "utf-8", newline="\n")
    texts = {"nbs/opening.html": '<a href="engine/motor.html#part">onward</a> <a href="unlisted.html">beyond</a>',
             "nbs/engine/motor.html": '<a href="../opening.html">back</a> <a href="#part">here</a> <a href="https://example.org/">out</a>'}
    for page, text in texts.items(): (site/page).write_text(SMALL.format(title=page[4:-5], text=text), "utf-8", newline="\n")
    config = book.config()
    config = config | {"website": config["website"] | {"sidebar": {"contents": ["nbs/01_opening.ipynb", {"section": "Engine", "contents": ["nbs/engine/motor.ipynb"]}]}}}
    return pypdf.PdfReader(pdf.print_alone(browser, site, config, list(texts)))


def links(page):
    "Where the links of a page lead: to the web, or to a page of the book by its number."
    return [note.get_object() for note in page.get("/Annots", ()) if note.get_object()["/Subtype"] == "/Link"]


def test_the_book_has_contents_and_an_outline(printed):
    first = printed.pages[0].extract_text()
    assert "Contents" in first and "Engine" in first and first.index("opening") < first.index("motor")
    assert len(printed.pages) == 3   # each page of the course begins on a new one
    def titles(outline): return [name for item in outline for name in (titles(item) if isinstance(item, list) else [item.title])]
    assert [name for name in titles(printed.outline) if name in ("opening", "engine/motor")] == ["opening", "engine/motor"]
    assert titles(printed.outline).count("A part") == 2


def test_links_lead_to_pages_of_the_book_and_others_to_the_site(printed):
    places = {name: printed.get_destination_page_number(place) for name, place in printed.named_destinations.items()}
    inside = [[places[str(note["/Dest"])] for note in links(page) if "/Dest" in note] for page in printed.pages]
    assert inside == [[1, 2], [2], [1, 2]]
    outside = [note["/A"]["/URI"] for page in printed.pages for note in links(page) if "/A" in note]
    assert outside == [f"{book.config()['website']['site-url']}/nbs/unlisted.html", "https://example.org/"]


def test_what_is_folded_on_the_page_is_printed(printed):
    assert "The hint of opening." in printed.pages[1].extract_text() and "The hint of engine/motor." in printed.pages[2].extract_text()


def test_a_folder_that_holds_no_site_is_refused(tmp_path):
    import pdf
    with pytest.raises(ValueError, match="holds no site"): pdf.main(pdf.Config(site=str(tmp_path)))


def test_a_release_is_built_by_one_command_and_has_the_book():
    "What `make release` makes is what the workflow publishes; to a package index go the wheel and the source archive alone."
    root = book.root
    flow = (root/".github"/"workflows"/"release.yml").read_text("utf-8")
    makefile = (root/"Makefile").read_text("utf-8")
    assert "make release" in flow and 'gh release create "$GITHUB_REF_NAME" dist/* book/llm_course.pdf' in flow
    assert re.search(r"^release: pdf\n(?:\t.*\n)*\t\$\(PY\) -m build\n", makefile, re.M) and "--output book/llm_course.pdf" in makefile
