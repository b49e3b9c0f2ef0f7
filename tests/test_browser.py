"""The pages that pandoc makes, opened in a real browser: Chromium, as the system has it. (What Quarto makes is not tested here.)"""
import posixpath
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import book
import pytest
import render
from conftest import FLAT, PATIENCE

pytest.importorskip("pypandoc")
AXE_FILE_PATH = pytest.importorskip("axe_playwright_python.base").AXE_FILE_PATH
root = Path(__file__).parents[1]

pages = [*map(render.address, book.listed(book.config()))]
phone, desk = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words): pass


@pytest.fixture(scope="module")
def address(site_folder):
    "The site, served on loopback."
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site_folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def beyond(url):
    "Does this lie outside the site, such as Colab's badge?"
    return url.startswith("https://")


@pytest.fixture(scope="module")
def context(browser):
    "Both windows have one cache; and axe at hand on each page, which costs less than to send it there each time."
    with browser.new_context() as context:
        context.add_init_script(path=AXE_FILE_PATH)
        yield context


@pytest.fixture(scope="module", params=[(phone, "light"), (desk, "dark")], ids=["phone", "desk"])
def window(request, context, address):
    "A window of each kind, which sees no world beyond the site; what goes wrong in it is noted in `.troubles`. (To answer in the world's place would switch off the cache.)"
    size, scheme = request.param
    window = context.new_page()
    window.set_viewport_size(size)
    window.emulate_media(color_scheme=scheme)
    window.set_default_timeout(PATIENCE)
    window.troubles, window.looks = [], set()
    window.on("console", lambda message: window.troubles.append(message.text) if message.type in ("error", "warning") and not beyond(message.location["url"]) else None)
    window.on("pageerror", lambda error: window.troubles.append(str(error)))
    window.on("response", lambda response: window.troubles.append(f"{response.status} {response.url}") if response.status >= 400 else None)
    yield window
    window.close()


HIDDEN = """() => {
  const seen = element => { const box = element.getBoundingClientRect(); return box.width > 1 && box.height > 1 }
  for (const fold of document.querySelectorAll("main details")) fold.open = true
  return [...document.querySelectorAll("main img")].filter(image => !image.src.startsWith("https://") && (!image.naturalWidth || !seen(image))).map(image => image.src)
    .concat([...document.querySelectorAll("main math")].filter(maths => !seen(maths)).map(maths => maths.textContent)) }"""
TOO_WIDE = "() => document.scrollingElement.scrollWidth - innerWidth"


# Of the texts that look alike (letters and all that lies behind them) one is enough, on whichever page: to look at every one takes many times as long.
LOOKS = """known => {
  const behind = new Map(), seen = new Set(known)
  const ground = element => {
    if (!element) return ""
    if (!behind.has(element)) {
      const style = getComputedStyle(element)
      behind.set(element, [style.backgroundColor, style.backgroundImage, style.opacity, ground(element.parentElement)].join())
    }
    return behind.get(element) }
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility() || ![...element.childNodes].some(child => child.nodeType == Node.TEXT_NODE && child.data.trim())) continue
    const style = getComputedStyle(element), look = [style.color, style.fontSize, style.fontWeight, ground(element)].join()
    if (!seen.has(look)) element.setAttribute("data-look", "")
    seen.add(look)
  }
  return [...seen] }"""


def violations(window):
    "What axe finds wrong; it need not describe all that is right. On a wide screen only colours are looked at: the rest is that of the phone."
    def found(where=None, **options):
        return window.evaluate("([where, options]) => axe.run(where || document, options).then(found => found.violations)", [where, {"resultTypes": ["violations"], **options}])
    looks = set(window.evaluate(LOOKS, sorted(window.looks)))
    colours = found({"include": ["[data-look]"]}, runOnly=["color-contrast"]) if looks > window.looks else []
    window.looks = looks
    if window.viewport_size == desk: return colours
    window.evaluate(FLAT)
    return colours + found(rules={"color-contrast": {"enabled": False}})


@pytest.mark.parametrize("page", [*pages, "machine/index.html"])
def test_a_page_opens_fits_and_can_be_read_by_all(window, address, page):
    window.troubles.clear()
    window.goto(f"{address}/{page}", wait_until="load")
    assert not window.troubles
    assert not window.evaluate(HIDDEN), "pictures or formulas that do not show"
    assert window.evaluate(TOO_WIDE) <= 0, "the page is wider than its window"
    assert not [(rule["id"], rule["help"], rule["nodes"][0]["html"][:200]) for rule in violations(window)]


def test_next_walks_the_whole_course_and_previous_walks_back(browser, address, site_folder):
    def walk(page, relation):
        seen = [page]
        while link := re.search(rf'<a href="([^"]+)" rel={relation}>', (site_folder/page).read_text("utf-8")):
            page = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[1]))
            seen.append(page)
        return seen
    assert walk(pages[0], "next") == pages and walk(pages[-1], "prev") == pages[::-1]
    window = browser.new_page()
    window.set_default_timeout(PATIENCE)
    window.goto(f"{address}/index.html")
    window.wait_for_url(f"{address}/{pages[0]}")   # the root leads to the first page
    for relation, page in ("next", pages[1]), ("prev", pages[0]):
        window.locator(f"nav.turn a[rel={relation}]").click()
        window.wait_for_url(f"{address}/{page}")


def test_search_finds_a_section(window, address):
    window.goto(f"{address}/{pages[0]}", wait_until="load")
    window.evaluate("document.querySelector('nav.book details').open = true")
    window.locator("nav.book input").fill("pushes hypotenuse")
    window.wait_for_selector("nav.book ol", state="hidden")
    window.locator("nav.book input").fill("hypotenuse")
    link = window.locator("nav.book ol a", has_text="RMSNorm").first
    link.click()
    window.wait_for_url(re.compile(re.escape(f"{address}/nbs/rmsnorm.html#")))


def test_a_fault_is_noticed(window, address):
    window.troubles.clear()
    window.goto(f"{address}/{pages[0]}", wait_until="load")
    window.set_content("<title>t</title><main><img src='/lost.png'><p style='width: 3000px; color: #eee; background: #fff'>pale</p><script>console.error('oh')</script></main>")
    assert any("oh" in trouble for trouble in window.troubles) and any("404" in trouble for trouble in window.troubles)
    assert window.evaluate(HIDDEN) and window.evaluate(TOO_WIDE) > 0
    wanted = {"color-contrast"} if window.viewport_size == desk else {"image-alt", "color-contrast"}
    assert wanted <= {rule["id"] for rule in violations(window)}
