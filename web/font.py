"""Cut the font for formulas down to what the pages use: `python web/font.py STIXTwoMath-Regular.ttf`, after `pip install brotli` and a `web/render.py`.

The font is STIX Two Math, under the SIL Open Font License (`web/static/math.txt`); the package `ziamath` on PyPI has it. A test says when a page needs a character that is missing."""
import html
import re
import string
import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

web = Path(__file__).parent


def characters_of(site: Path) -> set[str]:
    "All characters inside the formulas of a site, letters also in the italics that browsers make of them; and the sign of a root, which no text names."
    formulas = [formula for page in site.rglob("*.html") for formula in re.findall(r"<math.*?</math>", page.read_text("utf-8"), re.S)]
    used = {character for formula in formulas for character in html.unescape(re.sub(r"<annotation.*?</annotation>|<[^>]+>", "", formula, flags=re.S))}
    used |= {*string.ascii_letters, *map(chr, range(ord("α"), ord("ω") + 1)), *"ΓΔΘΛΞΠΣΦΨΩ"}   # a new page may use any of these
    if any(re.search("<m(?:sqrt|root)", formula) for formula in formulas): used.add("√")
    return {character for character in used if character.isprintable()} | {italic(character) for character in used}


def italic(letter: str) -> str:
    "The letter of mathematics as which a browser shows a single `<mi>`; others are themselves."
    if letter == "h": return "ℎ"   # the Planck constant stands where this letter would
    for first, start in ("A", 0x1D434), ("a", 0x1D44E):
        if "A" <= letter <= "z" and letter.isalpha() and letter.isupper() == first.isupper(): return chr(start + ord(letter) - ord(first))
    for first, last, start in ("Α", "Ω", 0x1D6E2), ("α", "ω", 0x1D6FC):
        if first <= letter <= last: return chr(start + ord(letter) - ord(first))
    return letter


def main(source: str) -> None:
    options = subset.Options()
    options.layout_features, options.flavor, options.name_IDs = ["*"], "woff2", [0, 1, 2, 13, 14]
    font, cutter = TTFont(source), subset.Subsetter(options)
    cutter.populate(unicodes=sorted(map(ord, characters_of(web.parent/"_docs"))))
    cutter.subset(font)
    subset.save_font(font, str(web/"static"/"math.woff2"), options)
    covered = "".join(sorted(map(chr, font.getBestCmap())))
    name = font["name"]
    (web/"static"/"math.txt").write_text(f"{name.getDebugName(0)}\n{name.getDebugName(13)}\n{covered}\n", "utf-8", newline="\n")


if __name__ == "__main__": main(sys.argv[1])
