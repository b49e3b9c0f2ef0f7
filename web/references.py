"""Write `nbs/reference/references.ipynb` from the `references.bib` beside it: each source, with its authors and year, and the pages that cite it.

A page cites by an ordinary link, `[Vaswani et al., 2017](reference/references.ipynb#vaswani2017)`: it reads well on the site, in Jupyter and in Colab alike."""
import json
import os
import re
from pathlib import Path

import book
import pypandoc
from colab import prepare

here = book.root/"nbs"/"reference"
CITED = re.compile(r"\[((?:[^][]|\[[^][]*\])+)\]\((?:\.\./)?(?:reference/)?references\.ipynb#([\w-]+)\)")   # what is said, and of whom
HEAD = """# References

> Every paper, program and course that the pages lean on, with its authors, its year, and the chapters that speak of it."""
FOOT = "The same list for your own bibliography is [references.bib](https://github.com/llm-course/llm_course/blob/main/nbs/reference/references.bib)."


def entries() -> dict[str, dict]:
    "The sources by key, in the order of their first authors' names."
    found = json.loads(pypandoc.convert_file(str(here/"references.bib"), "csljson", format="bibtex"))
    return {entry["id"]: entry for entry in sorted(found, key=lambda entry: (surnames(entry)[0].lower(), year(entry), entry["id"]))}


def year(entry: dict) -> int: return entry["issued"]["date-parts"][0][0]


def surnames(entry: dict) -> list[str]: return [name.get("family") or name["literal"] for name in entry["author"]]


def agrees(text: str, entry: dict) -> bool:
    "Does a text name this source as it should: by its year, and by all its authors or, of three and more, by the first *et al.*?"
    names = surnames(entry)
    few = len(names) > 2 and names[0] in text and re.search("et al|and others", text)
    return str(year(entry)) in text and bool(few or all(name in text for name in names))


def sources() -> dict[Path, str]:
    "The Markdown of each page in reading order; this one aside."
    cells = {path: book.cells(path) for path in book.pages() if path != here/"references.ipynb"}
    return {path: "\n\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "markdown") for path, found in cells.items()}


def title(markdown: str, path: Path) -> str:
    "A page's number and title, as readers know it."
    name = re.search(r"^# (.+)$", markdown, re.M)[1]
    return f"{path.name[:2]} {name}" if book.number(path) is not None else name


def described(entry: dict, pages: dict[Path, str]) -> str:
    "A source in one paragraph, under an anchor."
    people = [" ".join(name[part] for part in ("given", "dropping-particle", "non-dropping-particle", "family", "literal") if part in name) for name in entry["author"]]
    people = ", ".join(people[:-1]) + (" et al." if people[-1] == "others" else " and " * (len(people) > 1) + people[-1])
    where = re.sub("<.*?>", "", entry.get("container-title", entry.get("note", "")))
    number = entry.get("volume", "") + (f" ({entry['issue']})" if "issue" in entry else "")
    where = ", ".join(filter(None, (f"{where} {number}".strip(), entry.get("publisher"), entry.get("page", "").replace("-", "–"))))
    link = entry.get("URL", "")
    name = re.sub(r"https://arxiv\.org/abs/", "arXiv:", re.sub(r"https://doi\.org/", "doi:", re.sub(r"^https://(?!arxiv|doi)", "", link)))
    parts = f"{people} ({year(entry)})", f"*{re.sub('<.*?>', '', entry['title']).rstrip('?')}*" + "?" * entry["title"].endswith("?"), where, link and f"[{name}]({link})"
    cited = ", ".join(f"[{said}]({os.path.relpath(path, here).replace(os.sep, '/')})" for path, said in pages.items())
    text = ". ".join(filter(None, parts)).replace("?. ", "? ")
    return f'<div id="{entry["id"]}">\n\n{text}. Cited in {cited}.\n\n</div>'


def page() -> str:
    "The whole page, as nbdev writes a notebook."
    texts = sources()
    cited = {key: {path: title(text, path) for path, text in texts.items() if key in {found[1] for found in CITED.findall(text)}} for key in entries()}
    body = "\n\n".join(described(entry, cited[key]) for key, entry in entries().items())
    cells = [{"cell_type": "markdown", "id": name, "metadata": {}, "source": text.splitlines(keepends=True)} for name, text in (("title", HEAD), ("list", body), ("bib", FOOT))]
    like = json.loads((book.root/"nbs"/"index.ipynb").read_text("utf-8"))
    return json.dumps(prepare(like | {"cells": cells}, "reference/references"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__": (here/"references.ipynb").write_text(page(), "utf-8", newline="\n")
