"""Render the course's pages to `_docs/`: with Quarto where it is installed, else the same pages with pandoc."""
import ast
import html
import json
import os
import re
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

import api
import book
import card
import chinese
import pypandoc
import yaml
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, Operator, String, _TokenType
from tqdm import tqdm

from llm_course.engine.commands import run_command

root, web = Path(__file__).parents[1], Path(__file__).parent
LABELS = {"to-text": "To the text", "on-page": "On this page", "to-top": "To the top"}   # of every page, in English
MADE = ("api/", "cn/")   # folders whose pages are made at build
COLOURS = {   # of each kind of word in code, and of the kinds below it: a class of style.css
    Comment: "co", String.Doc: "co", String: "st", Number: "dv", Keyword: "kw", Keyword.Constant: "", Operator.Word: "kw",
    Name.Builtin: "fu", Name.Builtin.Pseudo: "", Name.Decorator: "fu", Name.Function.Magic: "fu", Name.Tag: "fu"}


@dataclass(frozen=True)
class Config:
    "Render the site."
    output: str = "_docs"   # Folder for the pages
    pandoc: bool = False    # Use pandoc even where Quarto is installed?


def text(field) -> str:
    "A notebook's field, which may be one string or a list of lines."
    return "".join(field or "")


def address(page: str) -> str:
    "Where a notebook's page lies: `nbs/06_rmsnorm.ipynb` is `nbs/rmsnorm.html`."
    return re.sub(r"(?:\d\d_)?(\w+)\.(?:ipynb|qmd)$", r"\1.html", page)


# ---- The first half, for Quarto and pandoc alike: notebooks as readers see them, in _proc/

def process(proc: Path) -> Path:
    """Let nbdev filter the notebooks into `proc`, executing nothing; then give each page its number, its badge and its anchors.

    Beside them the pages on the package, and the picture for links to the site."""
    from execnb.nbio import read_nb, write_nb
    from nbdev.config import get_config
    from nbdev.processors import FilterDefaults
    shutil.rmtree(proc, ignore_errors=True)
    proc.mkdir()
    for file in root/"_quarto.yml", root/"index.qmd", web/"404.qmd", *sorted((web/"quarto").iterdir()), *sorted((web/"static").iterdir()): shutil.copy(file, proc)
    anchors, modules = anchors_of(root/"llm_course"/"_modidx.py"), {}
    with chdir(root):   # where nbdev looks for its settings
        # The page shows the source, which says more than show_doc; and nbdev would link words such as `store` to other libraries.
        get_config().d["skip_procs"] = "add_links,add_show_docs,exec_show_docs,insert_warning,mv_exports"
        for path in book.pages():
            name = path.relative_to(root).as_posix()
            page, target, module = read_nb(path), proc/name, book.module(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            for cell in page.cells:   # nbdev drops what is exported without being listed; the checks stay, folded
                summary = "" if "\n#| code-summary: " in cell.source else '#| code-summary: "The checks, as code"\n'
                cell.source = re.sub(r"^#\| exporti\n#\| code-fold: true\n", "#| code-fold: true\n" + summary, cell.source)
            FilterDefaults()(page)
            write_nb(page, target)
            notebook, source = json.loads(target.read_text("utf-8")), json.loads(path.read_text("utf-8"))
            for cell in notebook["cells"]:   # nbdev gives what is exported a summary, also where it has one of its own
                if text(cell["source"]).count("\n#| code-summary: ") > 1: cell["source"] = text(cell["source"]).replace('#| code-fold: show\n#| code-summary: "Exported source"\n', "", 1)
            if module: modules[name] = module
            finish(notebook["cells"], source["cells"], path, module, anchors[address(name)])
            embed_html(notebook["cells"])
            split_lines(notebook["cells"])
            target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), "utf-8", newline="\n")
    config = book.config()
    api.write(proc, config, modules, {name: front_of(proc/name)["title"] for name in modules})
    for page in chinese.PAGES: write_chinese(proc, page)
    card.draw(proc/config["website"]["image"].lstrip("/"), config["website"]["title"], config["website"]["description"])
    machine(proc/"machine")
    return proc


def write_chinese(proc: Path, page: str) -> None:
    "Write a page in Chinese into `proc`, with its pictures beside it."
    cells = chinese.translated(page)
    embed_html(cells, "../nbs/")
    target = proc/page
    target.parent.mkdir(exist_ok=True)
    target.write_text(chinese.led_back(markdown(cells, target.with_name(f"{target.stem}_files"))), "utf-8", newline="\n")


def machine(folder: Path) -> None:
    """The page on which the demo model runs, with the model beside it.

    The model is a script and not a file to fetch, so that the page may be forbidden every connection, and works from a disk, too."""
    shutil.copytree(web/"machine", folder)
    demo = root/"llm_course"/"demo"
    tokenizer = json.dumps(json.loads((demo/"tokenizer.json").read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    (folder/"demo_tokenizer.js").write_text(f"llm.demo_tokenizer = {tokenizer}\n", "utf-8", newline="\n")
    (folder/"demo_model.js").write_text(f'llm.demo_model = "{b64encode((demo/"model.safetensors").read_bytes()).decode()}"\n', "utf-8", newline="\n")


def front_of(page: Path) -> dict:
    "What stands at the top of a page in `_proc/`: its title, its promise."
    source = page.read_text("utf-8")
    front = text(json.loads(source)["cells"][0]["source"]) if page.suffix == ".ipynb" else source.split("\n---\n")[0]
    return yaml.safe_load(front.strip("-\n "))


def anchors_of(modidx: Path) -> dict[str, list[str]]:
    "For each page the anchors that nbdev links to, one per exported symbol."
    names = {}
    exec(modidx.read_text("utf-8"), names)
    anchors = defaultdict(list)
    for symbols in names["d"]["syms"].values():
        for where, _ in symbols.values():
            page, anchor = where.split("#")
            if anchor not in anchors[page]: anchors[page].append(anchor)   # a function and its class may share one: softmax, Softmax
    return anchors


def finish(cells: list[dict], source: list[dict], path: Path, module: str, anchors: list[str]) -> None:
    """Put the chapter's number before its title, the link to Colab below it, and each symbol's anchor, and its module, before its code.

    The link is words and not a picture, which would have to be fetched from elsewhere. No id of a cell may be that of a heading, too."""
    front = yaml.safe_load(text(cells[0]["source"]).strip("-\n "))
    number = book.number(path)
    if number is not None: front["title"] = f"{number:02} {front['title']}"
    front["image"] = "/card.png"   # else Quarto takes the page's first picture, which is an SVG
    if path.stem.startswith("mistakes_"): front["search"] = False   # these pages name every term, and would be found first
    cells[0]["source"] = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---"
    badge = re.search(r"\[!\[Open in Colab\]\(.+?\)\]\((.+?)\)", "\n".join(text(cell["source"]) for cell in source[:2]))
    left = [anchor for anchor in anchors if anchor not in heading_ids(cells)]
    for cell in cells: cell["id"] = f"cell-{cell.get('id', 'front')}"
    for at in reversed(range(1, len(cells))):
        if cells[at]["cell_type"] != "code" or "Exported source" not in text(cells[at]["source"]): continue
        defined = {getattr(node, "name", "").lower() for node in ast.parse(text(cells[at]["source"])).body}
        here = [a for a in left if a.split(".")[0] in defined]
        left = [a for a in left if a not in here]
        cells[at]["source"] = text(cells[at]["source"]).replace("Exported source", f"Exported to llm_course.{module}", 1)
        cells.insert(at, markdown_cell(f"anchors-{at}", "".join(f"[]{{#{a}}}" for a in here)))
    link = f"[Open in Colab]({badge[1]}){{.colab}}" if badge else ""
    cells.insert(1, markdown_cell("badge", link + "\n\n" + "".join(f"[]{{#{a}}}" for a in left)))


def heading_ids(cells: list[dict]) -> set[str]:
    "The ids that pandoc gives to the headings of a page, where they have none of their own."
    prose = "\n".join(text(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", prose, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w. -]|^[^a-zA-Z]+", "", heading).replace(" ", "-").lower() for heading in headings}


def embed_html(cells: list[dict], folder: str = "") -> None:
    """Put what a cell shows as HTML into Markdown, and let links to notebooks in it lead to their pages.

    For any output of the type HTML, Quarto's pages load jQuery and RequireJS from other servers."""
    for cell in cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/html" not in data: continue
            shown = re.sub(r'(?<=href=")[\w/]+\.ipynb', lambda found: folder + address(found[0]), text(data["text/html"]))
            block = f"```{{=html}}\n{shown}\n```"
            options = options_of(text(cell["source"]))
            if options.get("label", "").startswith("fig-"):
                block = f"::: {{#{options['label']}}}\n\n{block}\n\n{options['fig-cap']}\n\n:::"
                cell["source"] = re.sub(r"^#\| (?:label|fig-cap|fig-alt):.*\n", "", text(cell["source"]), flags=re.M)
            output["data"] = {"text/markdown": block}


def split_lines(cells: list[dict]) -> None:
    "Let every text be a list of lines: of one string, Quarto loses the ends of the lines."
    for cell in cells:
        cell["source"] = text(cell["source"]).splitlines(keepends=True)
        for output in cell.get("outputs", ()):
            if "text" in output: output["text"] = text(output["text"]).splitlines(keepends=True)
            for kind in output.get("data", {}):
                if kind.startswith("text/"): output["data"][kind] = text(output["data"][kind]).splitlines(keepends=True)


def options_of(source: str) -> dict:
    "What the directives of a cell, `#| name: value`, ask for."
    return yaml.safe_load("\n".join(line[2:].strip() for line in source.splitlines() if line.startswith("#|"))) or {}


def markdown_cell(name: str, source: str) -> dict:
    return {"cell_type": "markdown", "id": f"cell-{name}", "metadata": {}, "source": source}


# ---- The second half, where Quarto is missing: a notebook as pandoc's Markdown, and that as a page

def markdown(cells: list[dict], files: Path) -> str:
    "A whole notebook as Markdown; pictures go to the folder `files`."
    parts = []
    for at, cell in enumerate(cells):
        source = text(cell["source"])
        parts.append(code(source, cell["outputs"], files, at) if cell["cell_type"] == "code" else source)
    return "\n\n".join(parts) + "\n"


def code(source: str, outputs: list[dict], files: Path, at: int) -> str:
    "A code cell: its source, folded if it asks for it, and what came out."
    options = options_of(source)
    source = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip("\n")
    parts = []
    if options.get("include") is False: return ""
    if options.get("echo") is not False and source:
        fold, summary = options.get("code-fold"), options.get("code-summary", "Code")
        block = fenced(source, ".python")
        parts.append(f"<details class=\"code\"{' open' * (fold == 'show')}><summary>{summary}</summary>\n\n{block}\n\n</details>" if fold else block)
    if options.get("output") is not False:
        name, unlabelled = options.get("label", f"cell-{at}"), {key: value for key, value in options.items() if key != "label"}
        for i, o in enumerate(joined(outputs)):
            parts.append(output(o, options, files, f"{name}-{i}"))
            if {"image/svg+xml", "image/png"} & {*o.get("data", ())}: options = unlabelled   # the first picture has the label, whatever was printed before it
    return "\n\n".join(parts)


def joined(outputs: list[dict]) -> list[dict]:
    "The outputs, with what was printed in several pieces in one."
    out = []
    for o in outputs:
        if out and o["output_type"] == "stream" and out[-1].get("name") == o["name"]: out[-1] = out[-1] | {"text": text(out[-1]["text"]) + text(o["text"])}
        else: out.append(o)
    return out


def output(out: dict, options: dict, files: Path, name: str) -> str:
    "One output: the richest form of it that a page can show."
    if out["output_type"] == "error": raise ValueError(f"{files.parent.name}/{files.stem} holds a cell that failed: {out['ename']}; mend it first")
    if out["output_type"] == "stream": return fenced(text(out["text"]), f".output .{out['name']}")
    data = {kind: text(value) for kind, value in out["data"].items() if kind != "application/json"}
    for kind, suffix in ("image/svg+xml", "svg"), ("image/png", "png"):
        if kind not in data: continue
        files.mkdir(parents=True, exist_ok=True)
        (files/f"{name}.{suffix}").write_bytes(data[kind].encode() if suffix == "svg" else b64decode(data[kind]))
        alt = json.dumps(options.get("fig-alt", ""), ensure_ascii=False)
        label = f"#{options['label']} " if "label" in options else ""
        return f"![{options.get('fig-cap', '')}]({files.name}/{name}.{suffix}){{{label}alt={alt}}}"
    if "text/markdown" in data: return data["text/markdown"]
    return fenced(data["text/plain"], ".output")


def fenced(source: str, classes: str) -> str:
    "A block of code that is safe whatever backticks it holds."
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", source)), default=0))
    return f"{fence} {{{classes}}}\n{source.rstrip()}\n{fence}"


def sidebar(items: list, titles: dict[str, str], here: str) -> str:
    "The list of parts and pages, as seen from the page `here`."
    rows = []
    for item in items:
        if isinstance(item, dict):
            rows.append(f"<li><span>{html.escape(item['section'])}</span>\n{sidebar(item['contents'], titles, here)}</li>")
        else: rows.append(f"<li>{link(item, titles, here)}</li>")
    return "<ul>" + "\n".join(rows) + "</ul>"


def link(page: str, titles: dict[str, str], here: str, relation: str = "") -> str:
    "A link from one page to another."
    href = os.path.relpath(address(page), Path(address(here)).parent).replace(os.sep, "/")
    return f'<a href="{href}"{relation and f" rel={relation}"}{" aria-current=page" * (page == here)}>{html.escape(titles[page])}</a>'


def render_page(page: str, proc: Path, output: Path, config: dict, titles: dict[str, str], pages: list[str]) -> None:
    "Make one page of the site."
    target = output/address(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    if page.endswith(".ipynb"): source = markdown(json.loads((proc/page).read_text("utf-8"))["cells"], target.with_name(target.stem + "_files"))
    else: source = (proc/page).read_text("utf-8")
    lang = front_of(proc/page).get("lang", config["lang"])
    at, website = pages.index(page) if page in pages else 0, config["website"]
    variables = {
        "site": website["title"], "root": os.path.relpath(output, target.parent), "lang": lang,
        "sidebar": sidebar(website["sidebar"]["contents"], titles, page),
        "previous": link(pages[at - 1], titles, page, "prev") if at > 0 else "",
        "next": link(pages[at + 1], titles, page, "next") if at + 1 < len(pages) else "",
        "card": website["site-url"] + website["image"], "card-alt": website["image-alt"], "url": f"{website['site-url']}/{address(page)}",
        "base": urlsplit(website["site-url"]).path + "/" if page == "404.qmd" else "",   # it answers for addresses of any depth
        "edit": f"{website['repo-url']}/edit/{website['repo-branch']}/{page}" if page in pages and not page.startswith(MADE) else "",
    }
    extra = ["--standalone", "--mathml", "--syntax-highlighting=none", "--toc", "--toc-depth=3", "--columns=9999", f"--template={web/'page.html'}", f"--lua-filter={web/'quarto.lua'}",
             f"--metadata=page:{page}", f"--metadata=site-url:{website['site-url']}", f"--metadata=root:{variables['root']}"]
    variables |= chinese.LABELS if lang == "zh" else LABELS
    extra += [f"--variable={key}={value}" for key, value in variables.items() if value]
    try: pypandoc.convert_text(source, "html5", format="markdown+autolink_bare_uris", outputfile=str(target), extra_args=extra, verify_format=False)
    except RuntimeError as error: raise ValueError(f"{page}: {error}") from None
    blocks = r'<pre class="(?!output)(\w+)"><code>(.*?)</code></pre>'
    made = re.sub(blocks, lambda found: coloured(html.unescape(found[2]), found[1]), spaced(target.read_text("utf-8")), flags=re.S)
    target.write_text(made, "utf-8", newline="\n")


def coloured(source: str, language: str) -> str:
    "A block of code, a span for each line, its words in colours: pandoc takes half a second to get ready for that, for every page."
    tokens, lines = get_lexer_by_name(language, stripnl=False, ensurenl=False).get_tokens(source), [""]
    for colour, alike in groupby(tokens, lambda token: colour_of(token[0])):
        for at, part in enumerate(html.escape("".join(words for _, words in alike), quote=False).split("\n")):
            if at: lines.append("")
            lines[-1] += f'<span class="{colour}">{part}</span>' if colour and part else part
    shown = "\n".join(f"<span>{line}</span>" for line in lines)
    return f'<div class="sourceCode"><pre class="sourceCode {language}"><code>{shown}</code></pre></div>'


@cache
def colour_of(kind: _TokenType) -> str:
    "The class of a kind of word, or of the nearest kind above it; empty for most."
    return next((COLOURS[above] for above in reversed(kind.split()) if above in COLOURS), "")


def spaced(source: str) -> str:
    "A thin space between a function such as ln and what it is taken of, where no bracket stands between them: browsers leave none."
    return re.sub(r"(<mo>&#8289;</mo></mrow>)(?!<mo|<mrow><mo)", r'\1<mspace width="0.17em"></mspace>', source)


def render_with_pandoc(proc: Path, output: Path) -> None:
    "Make all pages that `_quarto.yml` lists, and the root page that leads to them."
    config = book.config()
    pages = book.listed(config)
    if missing := [page for page in pages if not (proc/page).exists()]: raise ValueError(f"_quarto.yml lists {missing}, which do not exist; write or unlist them")
    titles = {page: front_of(proc/page)["title"] for page in pages}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = [pool.submit(render_page, page, proc, output, config, titles, pages) for page in ("index.qmd", "404.qmd", *pages)]
        for page in tqdm(made, "pages"): page.result()
    for file in web/"style.css", web/"site.js", proc/config["website"]["image"].lstrip("/"), *(web/"static").iterdir(): shutil.copy(file, output)
    for folder in proc/"machine", *proc.glob("cn/*_files"): shutil.copytree(folder, output/folder.relative_to(proc))
    sections = [found for page in pages for found in sections_of(address(page), titles[page], (output/address(page)).read_text("utf-8"))]
    (output/"search.js").write_text(f"window.course = {json.dumps(sections, ensure_ascii=False)}\n", "utf-8", newline="\n")


def sections_of(page: str, title: str, source: str) -> list[tuple[str, str, str, str, str]]:
    "What can be searched for: of each section of a page its address, the page's title, its own heading, its words and its code."
    body = source.partition("</header>")[2].partition('<nav class="turn"')[0]
    body = re.sub(r'<(math|script|style|svg)\b.*?</\1>|<a [^>]*class="colab".*?</a>', " ", body, flags=re.S)
    promise = re.search(r'<p class="promise">(.*?)</p>', source, re.S)
    plain = lambda part: " ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split())
    def row(at: str, heading: str, part: str) -> tuple[str, str, str, str, str]:
        code = " ".join(re.findall(r"<pre\b.*?</pre>", part, flags=re.S))
        prose = re.sub(r"<pre\b.*?</pre>", " ", part, flags=re.S)
        return at, title, plain(heading), plain(re.sub(r"(?=</(?:p|li|t[dh]|summary|figcaption)>)", " ", prose)), plain(code)
    first, *rest = re.split(r'<h[23][^>]*? id="([^"]+)"[^>]*>(.*?)</h[23]>', body, flags=re.S)
    return [row(page, "", (promise[0] if promise else "") + first)] + [row(f"{page}#{at}", heading, part) for at, heading, part in zip(*[iter(rest)] * 3)]


def render(config: Config) -> None:
    "Render the site."
    output = Path(config.output).resolve()
    if output.exists() and not (output/"index.html").exists(): raise ValueError(f"--output {output} holds something else than a site; name another folder")
    proc = process(root/"_proc")
    shutil.rmtree(output, ignore_errors=True)
    if shutil.which("quarto") and not config.pandoc:
        subprocess.run(["quarto", "render", str(proc), "--no-cache"], check=True)
        shutil.move(proc/"_docs", output)
    else: render_with_pandoc(proc, output)
    print(f"The site is in {output}; open {output/'index.html'}")


if __name__ == "__main__":
    run_command(Config, render)
