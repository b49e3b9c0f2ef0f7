"""The whole book as one PDF: `python web/pdf.py`, after `web/render.py --pandoc`.

The pages of the site are joined into one, so that links between them stay inside the book, and Chromium prints it."""
import html
import os
import re
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from time import monotonic

import book
from playwright.sync_api import Browser, sync_playwright
from render import address

from llm_course.engine.commands import run_command

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome", "msedge"
PATIENCE = 1_200_000   # milliseconds
FOOTER = '<div style="width: 100%; font: 8px sans-serif; text-align: center; color: #555"><span class="pageNumber"></span></div>'


@dataclass(frozen=True)
class Config:
    "Print the book."
    site: str = "_docs"              # Folder of the rendered site
    output: str = "llm_course.pdf"   # The PDF to write


def name_of(page: str) -> str:
    "The anchor at which a page begins in the book: `nbs/engine/muon.html` begins at `nbs-engine-muon`."
    return page.removesuffix(".html").replace("/", "-")


def moved(source: str, page: str, pages: set[str], site_url: str) -> str:
    "The text of a page with ids of its own, and with links that lead to places in the book, or out of it to the web."
    folder, own = os.path.dirname(page), name_of(page)

    def link(found: re.Match) -> str:
        target, _, anchor = html.unescape(found[2]).partition("#")
        if re.match(r"[a-z]+:", target): return found[0]
        place = os.path.normpath(os.path.join(folder, target)).replace(os.sep, "/") if target else page
        if found[1] == "src": return f'src="{place}"'
        if place not in pages: return f'href="{site_url}/{place}{"#" + anchor if anchor else ""}"'
        return f'href="#{name_of(place)}{"--" + anchor if anchor else ""}"'

    source = re.sub(r'\b(href|src)="([^"]*)"', link, source)
    return re.sub(r'\bid="([^"]*)"', lambda found: f'id="{own}--{found[1]}"', source)


def contents(items: list, titles: dict[str, str]) -> str:
    "The table of contents: the parts, and in each its pages."
    rows = []
    for item in items:
        if isinstance(item, dict): rows.append(f"<li><strong>{html.escape(item['section'])}</strong>{contents(item['contents'], titles)}</li>")
        elif address(item) in titles: rows.append(f'<li><a href="#{name_of(address(item))}">{titles[address(item)]}</a></li>')
    return f"<ul>{''.join(rows)}</ul>"


def joined(site: Path, config: dict, pages: list[str]) -> str:
    "The whole book as one page: its title, its contents, and the text of each page in reading order."
    website, titles, parts = config["website"], {}, []
    for page in pages:
        source = (site/page).read_text("utf-8")
        text = source.partition('<main id="the-text">')[2].partition('<nav class="turn"')[0]
        titles[page] = re.search(r"<h1>(.*?)</h1>", text, re.S)[1]
        text = moved(text, page, set(pages), website["site-url"]).replace("<h1>", f'<h1 id="{name_of(page)}">', 1)
        parts.append(f'<section class="page">{text}</section>')
    front = f'<h1>{website["title"]}</h1><p class="promise">{website["description"]}.</p><h2>Contents</h2>{contents(website["sidebar"]["contents"], titles)}'
    style = "section.page { break-before: page; } details > summary { list-style: none; } details.code > summary { font-size: 8pt; }"
    return (f'<!DOCTYPE html><html lang="{config["lang"]}"><head><meta charset="utf-8"><title>{website["title"]}</title>'
            f'<link rel="stylesheet" href="style.css"><style>{style}</style></head><body><main id="the-text">{front}{"".join(parts)}</main></body></html>')


def print_alone(browser: Browser, site: Path, config: dict, pages: list[str]) -> BytesIO:
    "Print the pages of a site as one PDF, with contents that lead to them, everything unfolded."
    whole = site/"book.html"
    whole.write_text(joined(site, config, pages).replace("<details", "<details open"), "utf-8", newline="\n")
    try:
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(whole.resolve().as_uri(), wait_until="load")
        footer = {"display_header_footer": True, "header_template": "<span></span>", "footer_template": FOOTER}
        printed = page.pdf(format="A4", print_background=True, outline=True, tagged=True, **footer)
        page.close()
    finally: whole.unlink()
    return BytesIO(printed)


def main(config: Config) -> None:
    "Print the book."
    site, output, began = Path(config.site), Path(config.output), monotonic()
    if not (site/"index.html").exists(): raise ValueError(f"--site {site} holds no site; make one with python web/render.py --pandoc")
    listed = book.config()
    pages = [address(page) for page in book.listed(listed) if not page.startswith("cn/")]
    with sync_playwright() as play:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)   # else the one that playwright has installed
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=PATIENCE)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(print_alone(browser, site, listed, pages).getvalue())
        browser.close()
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB in {monotonic() - began:.0f} s")


if __name__ == "__main__": run_command(Config, main)
