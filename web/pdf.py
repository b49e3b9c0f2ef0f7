"""The whole book as one PDF: `python web/pdf.py`, after `web/render.py --pandoc`.

Chromium prints the pages of the site one by one, and pypdf joins them: links between them lead to places in the book."""
import html
import shutil
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from time import monotonic
from urllib.parse import unquote

import book
from playwright.sync_api import Browser, Page, sync_playwright
from pypdf import PageObject, PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    Fit,
    FloatObject,
    IndirectObject,
    NameObject,
    NullObject,
    TextStringObject,
)
from render import address
from tqdm import tqdm

import llm_course
from llm_course.engine.commands import run_command

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome", "msedge"
FLAGS = "--no-sandbox", "--allow-file-access-from-files"   # the second, for the font of the formulas
PATIENCE = 120_000   # milliseconds for one page
FRONT = "book.html"  # title and contents, written into the site's folder for as long as they are printed
HEADER = '<div style="width: 100%; font: 8px sans-serif; text-align: center; color: #555">{}</div>'

# Everything unfolded, but for the code that draws a picture: the picture is there. Chromium notes the places that a page itself links to, so each page gets a link to all its places.
PREPARE = '''async () => {
  for (const fold of document.querySelectorAll("details")) {
    if (fold.matches(".code") && fold.nextElementSibling?.matches("figure")) fold.remove()
    else fold.open = true
  }
  for (const part of document.querySelectorAll("footer, .colab")) part.remove()
  const ids = [...document.querySelectorAll("main [id]")].map(part => part.id)
  document.body.append(...ids.map(id => Object.assign(document.createElement("a"), {href: "#" + id})))
  await document.fonts.ready
  return {title: document.querySelector("h1").innerText, sections: [...document.querySelectorAll("main h2[id]")].map(part => [part.id, part.innerText.replace(/\\s+/g, " ")])}
}'''

STYLE = '''body { display: block; } h1.title { margin-top: 70mm; font-size: 36pt; } h2 { break-before: page; } a { color: inherit; text-decoration: none; }
.contents { columns: 2; column-gap: 10mm; font-size: 9.5pt; } ul { list-style: none; padding: 0; margin: 0 0 .6rem; } strong { display: block; margin-top: .5rem; }
li:not(:has(ul)) { display: flex; justify-content: space-between; gap: .8rem; } li:has(ul) > strong { break-after: avoid; }'''


@dataclass(frozen=True)
class Config:
    "Print the book."
    site: str = "_docs"              # Folder of the rendered site
    output: str = "llm_course.pdf"   # The PDF to write


@dataclass
class Printed:
    "A page of the site, printed, and where it lies in the book."
    title: str                      # Its heading
    sections: list                  # Of each section the id and the heading
    pdf: PdfReader                  # Its sheets
    first: int = 0                  # The first of them, counted from the book's first sheet
    places: dict = field(default_factory=dict)   # Of each id the sheet, and the point on it


def print_page(window: Page, path: Path) -> Printed:
    "Print one page of the site."
    window.goto(path.resolve().as_uri(), wait_until="load")
    found = window.evaluate(PREPARE)
    header = HEADER.format(html.escape(found["title"]) if path.name != FRONT else "")
    sheets = window.pdf(format="A4", print_background=True, display_header_footer=True, header_template=header, footer_template="<span></span>")
    return Printed(found["title"], found["sections"], PdfReader(BytesIO(sheets)))


def contents(items: list, parts: dict[str, Printed], numbers: dict[str, int]) -> str:
    "The table of contents: the parts, and in each its pages with their numbers."
    rows = []
    for item in items:
        if isinstance(item, dict):
            inside = contents(item["contents"], parts, numbers)
            if "<a" in inside: rows.append(f"<li><strong>{html.escape(item['section'])}</strong>{inside}</li>")
        elif (page := address(item)) in parts:
            rows.append(f'<li><a href="{page}">{html.escape(parts[page].title)}</a><span>{numbers[page]}</span></li>')
    return f"<ul>{''.join(rows)}</ul>"


def print_front(window: Page, site: Path, config: dict, parts: dict[str, Printed]) -> Printed:
    "Print the title and the contents. Their own sheets are not counted, so that the numbers are known before."
    website, numbers, sheets = config["website"], {}, 1
    for page, part in parts.items():
        numbers[page] = sheets
        sheets += len(part.pdf.pages)
    text = (f'<h1 class="title">{website["title"]}</h1><p class="promise">{website["description"]}.</p><p>Version {llm_course.__version__}. '
            f'The pages are also at <a href="{website["site-url"]}">{website["site-url"]}</a>, where they can be searched and opened in Colab, and where the code of each picture can be unfolded.</p>'
            f'<h2>Contents</h2><div class="contents">{contents(website["sidebar"]["contents"], parts, numbers)}</div>')
    path = site/FRONT
    path.write_text(f'<!DOCTYPE html><html lang="{config["lang"]}"><head><meta charset="utf-8"><title>{website["title"]}</title>'
                    f'<link rel="stylesheet" href="style.css"><style>{STYLE}</style></head><body><main id="the-text">{text}</main></body></html>', "utf-8", newline="\n")
    try: return print_page(window, path)
    finally: path.unlink()


def join(parts: dict[str, Printed], site: Path, site_url: str) -> PdfWriter:
    "Put the sheets of all parts into one PDF, with links, numbers and an outline."
    whole = PdfWriter()
    for part in parts.values():
        part.first = len(whole.pages)
        for sheet in part.pdf.pages: whole.add_page(sheet, excluded_keys=["/Annots", "/StructParents"])
        for name, place in part.pdf.named_destinations.items():
            part.places[name.removeprefix("/")] = part.first + part.pdf.get_destination_page_number(place), place.left, place.top
    sheets = [page.indirect_reference for page in whole.pages]
    front = len(parts[FRONT].pdf.pages)
    stamp = Stamp(whole)
    for page, part in parts.items():
        for at, sheet in enumerate(part.pdf.pages, part.first):
            links = [link(note.get_object(), page, parts, sheets, site, site_url) for note in sheet.get("/Annots", ()) if note.get_object()["/Subtype"] == "/Link"]
            if links: whole.pages[at][NameObject("/Annots")] = ArrayObject(map(whole._add_object, links))
            if at >= front: stamp.number(whole.pages[at], at - front + 1)
    whole.set_page_label(0, front - 1, style="/r")
    if len(sheets) > front: whole.set_page_label(front, len(sheets) - 1, style="/D", start=1)
    return whole


def link(note: DictionaryObject, page: str, parts: dict[str, Printed], sheets: list[IndirectObject], site: Path, site_url: str) -> DictionaryObject:
    "A link of one page, as one of the book: to a sheet, or to the web."
    own = site.resolve().as_uri() + "/"
    made = DictionaryObject({NameObject("/Type"): NameObject("/Annot"), NameObject("/Subtype"): NameObject("/Link"), NameObject("/Rect"): ArrayObject(map(FloatObject, note["/Rect"])),
                             NameObject("/Border"): ArrayObject(map(FloatObject, (0, 0, 0)))})
    if "/Dest" in note: target, anchor = page, str(note["/Dest"]).removeprefix("/")
    else:
        uri = str(note["/A"]["/URI"])
        target, _, anchor = uri.removeprefix(own).partition("#")
        if not uri.startswith(own) or target not in parts:
            uri = uri.replace(own, site_url + "/", 1)
            made[NameObject("/A")] = DictionaryObject({NameObject("/S"): NameObject("/URI"), NameObject("/URI"): TextStringObject(uri)})
            return made
    part = parts[target]
    sheet, left, top = part.places.get(unquote(anchor), (part.first, None, None))
    point = [NullObject() if x is None else FloatObject(x) for x in (left, top)]
    made[NameObject("/Dest")] = ArrayObject([sheets[sheet], NameObject("/XYZ"), *point, NullObject()])
    return made


class Stamp:
    "Writes numbers below the text of sheets."
    def __init__(self, whole: PdfWriter):
        self.whole = whole
        names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}   # a font that every reader has
        self.font = whole._add_object(DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()}))
        self.save = self.stream("q")   # Chromium leaves its scale behind

    def stream(self, text: str) -> IndirectObject:
        made = DecodedStreamObject()
        made.set_data(text.encode())
        return self.whole._add_object(made)

    def number(self, sheet: PageObject, number: int) -> None:
        middle = float(sheet.mediabox.width) / 2 - 2.2 * len(str(number))   # a digit is 4.4 points wide
        fonts = sheet["/Resources"].get_object().setdefault(NameObject("/Font"), DictionaryObject()).get_object()
        fonts[NameObject("/CourseNumber")] = self.font
        written = self.stream(f"Q BT /CourseNumber 8 Tf 0.33 g {middle:.1f} 28 Td ({number}) Tj ET")
        sheet[NameObject("/Contents")] = ArrayObject([self.save, sheet.raw_get("/Contents"), written])


def outline(whole: PdfWriter, items: list, parts: dict[str, Printed], above: IndirectObject | None = None) -> None:
    "The outline: parts, pages, and the sections of each."
    for item in items:
        if isinstance(item, dict):
            inside = [address(page) for page in book.listed({"website": {"sidebar": {"contents": item["contents"]}}}) if address(page) in parts]
            if not inside: continue
            here = whole.add_outline_item(title=item["section"], page_number=parts[inside[0]].first, parent=above, is_open=False)
            outline(whole, item["contents"], parts, here)
        elif (part := parts.get(address(item))) is not None:
            here = whole.add_outline_item(title=part.title, page_number=part.first, parent=above, is_open=False)
            for anchor, heading in part.sections:
                if anchor not in part.places: continue
                sheet, left, top = part.places[anchor]
                whole.add_outline_item(title=heading, page_number=sheet, parent=here, fit=Fit.xyz(left, top))


def print_book(browser: Browser, site: Path, config: dict, pages: list[str]) -> PdfWriter:
    "Print the pages of a site as one PDF, with a title and contents before them, everything unfolded."
    website = config["website"]
    window = browser.new_page(color_scheme="light")
    window.set_default_timeout(PATIENCE)
    parts = {page: print_page(window, site/page) for page in tqdm(pages, "pages")}
    parts = {FRONT: print_front(window, site, config, parts), **parts}
    window.close()
    whole = join(parts, site, website["site-url"])
    outline(whole, website["sidebar"]["contents"], parts)
    whole.add_metadata({"/Title": website["title"], "/Subject": website["description"]})
    whole.root_object[NameObject("/Lang")] = TextStringObject(config["lang"])
    whole.page_mode = "/UseOutlines"
    return whole


def main(config: Config) -> None:
    "Print the book."
    site, output, began = Path(config.site), Path(config.output), monotonic()
    if not (site/"index.html").exists(): raise ValueError(f"--site {site} holds no site; make one with python web/render.py --pandoc")
    listed = book.config()
    pages = [address(page) for page in book.listed(listed) if not page.startswith("cn/")]
    if missing := [page for page in pages if not (site/page).exists()]: raise ValueError(f"--site {site} lacks {missing[0]}; render it again")
    with sync_playwright() as play:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)   # else the one that playwright has installed
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        whole = print_book(browser, site, listed, pages)
        browser.close()
    output.parent.mkdir(parents=True, exist_ok=True)
    whole.write(output)
    print(f"{output}: {len(whole.pages):,} pages, {output.stat().st_size / 1e6:.1f} MB in {monotonic() - began:.0f} s")


if __name__ == "__main__": run_command(Config, main)
