"""What the pages do in a browser: contents, search, light and dark, print, the font of the formulas, the keyboard. Few tests; test_browser.py opens every page."""
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import book
import pytest
from conftest import FLAT, PATIENCE

pytest.importorskip("pypandoc")
LESSON = "nbs/attention.html"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words): pass


@pytest.fixture(scope="module")
def address(site_folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site_folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def opened(browser, address):
    "`opened(width, scheme)` is a window on a lesson; whatever it asks of another server is in its `.elsewhere`."
    windows = []
    def open_window(width=1280, scheme="light", page=LESSON):
        window = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        windows.append(window)
        window.set_default_timeout(PATIENCE)
        window.elsewhere = []
        window.on("request", lambda request: window.elsewhere.append(request.url) if not request.url.startswith((address, "data:")) else None)
        window.goto(f"{address}/{page}", wait_until="load")
        return window
    yield open_window
    for window in windows: window.close()


# For each block of code that shows: how far its lines go beyond its box.
CUT = """() => [...document.querySelectorAll("pre.sourceCode")].filter(block => block.offsetParent)
  .map(block => block.scrollWidth - block.clientWidth).filter(more => more > 1)"""


def look_by_axe(window, what="document"):
    "Axe finds nothing, by all of its rules, in light or dark. In light, test_browser.py looks at every page on a phone."
    axe = pytest.importorskip("axe_playwright_python.base")
    window.evaluate(FLAT)
    if not window.evaluate("'axe' in window"): window.evaluate(axe.AXE_SCRIPT)
    for scheme in ["light", "dark"][window.viewport_size["width"] == 390:]:
        window.emulate_media(color_scheme=scheme)
        wrong = window.evaluate(f"axe.run({what}, {{resultTypes: ['violations']}}).then(found => found.violations.map(rule => [rule.id, rule.nodes[0].html.slice(0, 200)]))")
        assert not wrong, (window.viewport_size, scheme, wrong)


@pytest.mark.parametrize("width, scheme", [(390, "dark"), (768, "light"), (1280, "dark"), (1440, "light")])
def test_contents_code_and_formulas_on_every_width(opened, width, scheme):
    window = opened(width, scheme)
    assert not window.elsewhere
    assert window.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    assert not window.evaluate(CUT), "code is cut at the right"
    assert window.locator("nav.toc details").get_attribute("open") == ("" if width >= 1360 else None)
    if width < 1360: window.locator("nav.toc summary").click()
    window.locator("nav.toc li a").last.click()
    assert window.evaluate("decodeURIComponent(location.hash.slice(1))") == window.locator("nav.toc li a").last.get_attribute("href")[1:]
    assert window.locator("nav.toc summary").is_visible(), "no way back up"
    assert window.evaluate("[...document.fonts].filter(font => font.family.includes('Course Math')).map(font => font.status)") == ["loaded"]
    assert window.locator("nav.book a[aria-current]").is_visible() == (width >= 960)
    if width < 1440: look_by_axe(window)


def test_axe_is_asked_for_everything(opened):
    window = opened(768, page="404.html")
    window.set_content("<title>t</title><main><h1>t</h1><img src='data:,'><p style='color: #eee; background: #fff'>pale</p></main>")
    with pytest.raises(AssertionError, match=r"(?s)color-contrast.*html-has-lang.*image-alt"): look_by_axe(window)


@pytest.mark.parametrize("page", ["nbs/index.html", "nbs/engine/muon.html"])
def test_axe_finds_nothing_on_pages_of_other_kinds(opened, page):
    window = opened(390, "light", page)
    for width in 390, 768, 1280:
        window.set_viewport_size({"width": width, "height": 800})
        look_by_axe(window, "{exclude: ['nav.book']}")   # the list of chapters is that of the lesson above


def test_what_scrolls_says_so(opened):
    window = opened(390)
    window.evaluate("""document.querySelector("main").insertAdjacentHTML("afterbegin", "<pre class=output><code>" + "x".repeat(200) + "</code></pre>"); signWhatScrolls()""")
    window.wait_for_function("document.querySelector('main pre').classList.contains('more')")
    window.evaluate("document.querySelector('main pre').scrollLeft = 10000")
    window.wait_for_function("!document.querySelector('main pre').classList.contains('more')")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_follows_the_system_until_the_reader_chooses(opened, system):
    window = opened(scheme=system)
    page = lambda: sum(map(int, re.findall(r"\d+", window.evaluate("getComputedStyle(document.body).backgroundColor")))) > 380
    assert page() == (system == "light")
    window.locator("button.theme").click()
    assert page() == (system == "dark")
    window.reload()
    assert page() == (system == "dark")   # it stays chosen
    window.locator("button.theme").click()
    assert page() == (system == "light") and window.evaluate("localStorage.length") == 0   # and is the system's again


# What is searched for, and the page that comes first: the lesson about it, or else the page of the engine room that has it in its title.
FIRST = {"softmax": "softmax", "adamw": "optim", "learning rate": "(schedule|experiments)", "check": "checkpoint", "mask": "attention", "kv cache": "(multihead|transformer|generating)", "bpe": "bpe(_tokenizer)?",
         "optimizer": "optim", "temperature": "(softmax|generating)", "lora": "engine/lora", "muon": "engine/muon", "glossary": "reference/glossary"}


def test_search_finds_lessons_first_with_excerpts_and_code_too(opened):
    window = opened()
    asked, rows, said = window.locator("nav.book input"), window.locator("nav.book ol li a"), window.locator("nav.book [role=status]")
    asked.fill("attention")
    window.wait_for_selector("nav.book ol li")
    assert rows.first.inner_text() == "09 Attention" and "places" in said.inner_text()
    assert rows.count() == 20
    window.locator("nav.book ol button").click()
    assert rows.count() == 40
    window.evaluate("search(100000)")
    order = [href for href in window.evaluate("[...document.querySelectorAll('nav.book ol a')].map(link => link.href)")]
    late = ["grading" in href for href in order]
    assert any(late) and late == sorted(late)
    assert window.locator("nav.book ol li p mark").first.inner_text().lower() == "attention"
    asked.fill("promote_types(x.dtype")   # it stands in code alone
    assert any("RMSNorm" in row for row in rows.all_inner_texts())
    for words, first in FIRST.items():
        asked.fill(words)
        assert re.search(rf"nbs/{first}\.html", rows.first.evaluate("link => link.href")), words
    both = []
    for words in "optimizer", "optimiser":
        asked.fill(words)
        both.append(rows.all_inner_texts())
        assert window.locator("nav.book ol li p mark").first.inner_text().lower() == "optimiser"
    assert both[0] == both[1]
    asked.fill("promised hippopotamus")
    assert said.inner_text() == "Nothing found" and rows.count() == 0


def test_printed_with_everything_unfolded(opened, tmp_path):
    pypdf = pytest.importorskip("pypdf")
    window = opened(1280, "dark")
    folded = window.evaluate("[...document.querySelectorAll('main details:not([open])')].map(fold => fold.querySelector('p, code')?.textContent.trim().split(/\\s+/).slice(0, 3).join(' ')).filter(Boolean)")
    assert len(folded) > 5
    window.pdf(path=tmp_path/"page.pdf")
    bare = lambda text: re.sub(r"\W", "", text)
    printed = bare("".join(page.extract_text() for page in pypdf.PdfReader(tmp_path/"page.pdf").pages))
    assert sum(bare(text) in printed for text in folded) > .8 * len(folded)   # formulas and ligatures come out otherwise
    assert window.evaluate("document.querySelectorAll('main details:not([open])').length") == len(window.query_selector_all("main details:not([open])"))
    assert window.evaluate("document.querySelectorAll('[data-opened]').length") == 0   # and folded again


def test_the_keyboard_reaches_the_text_and_the_contents(opened):
    window = opened(390)
    window.keyboard.press("Tab")
    assert window.evaluate("document.activeElement.className") == "skip"
    window.keyboard.press("Enter")
    assert window.evaluate("location.hash") == "#the-text"
    window.locator("nav.toc summary").focus()
    window.keyboard.press("Enter")
    assert window.locator("nav.toc details").get_attribute("open") == ""
    window.keyboard.press("Tab")
    window.keyboard.press("Enter")
    assert window.locator("nav.toc details").get_attribute("open") is None   # chosen, and out of the way


def test_links_in_a_drawing_have_addresses_that_are_strings_under_quarto(browser):
    "Its script calls `href.replace` on all links of a page."
    window = browser.new_page()
    header = book.config()["format"]["html"]["include-in-header"]["text"]
    window.set_content('<svg><a href="x.html"><text>x</text></a></svg>')
    asks = "document.querySelector('svg a').href.replace('x', 'y')"
    with pytest.raises(Exception, match="not a function"): window.evaluate(asks)
    window.set_content(header + '<svg><a href="x.html"><text>x</text></a></svg>')
    assert window.evaluate(asks) == "y.html"
    window.close()
