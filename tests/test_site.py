"""The site: its list of pages, and the pages that pandoc makes of them. (What Quarto makes is not tested here: it is not in any package registry.)"""
import gzip
import json
import math
import re
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from textwrap import dedent

import api
import book
import chinese
import jsonschema
import pytest
import render
from font import characters_of
from test_notebooks import names_of

pytest.importorskip("pypandoc")
root = Path(__file__).parents[1]

config = book.config()
listed = book.listed(config)
modules = {path.relative_to(root).as_posix(): book.module(path) for path in book.pages() if book.module(path)}
settings = dict(re.findall(r"^(\w+) = (.*)$", (root/"settings.ini").read_text("utf-8"), re.M))


# ---- The list

def test_every_page_is_listed_once_and_every_listed_page_exists():
    there = [path.relative_to(root).as_posix() for path in book.pages()]
    assert sorted(listed) == sorted([*there, *api.parts_of(config, modules), *chinese.PAGES]) and all((root/page).is_file() for page in there)
    assert all(any(Path(page).match(pattern) for pattern in config["project"]["render"]) for page in listed)   # and Quarto is told of each


def test_pages_are_in_reading_order():
    assert listed[0] == "nbs/index.ipynb"
    numbers = [number[1] for page in listed if (number := re.match(r"nbs/(\d\d)_", page))]
    assert numbers == sorted(numbers)


def test_nothing_is_executed():
    assert config["execute"] == {"enabled": False}


def test_quarto_and_nbdev_agree():
    site, repo = config["website"]["site-url"], config["website"]["repo-url"]
    assert repo == f"https://github.com/{settings['user']}/{settings['repo']}" and config["website"]["repo-branch"] == settings["branch"]
    assert site == f"https://{settings['user']}.github.io/{settings['repo']}"
    assert config["project"]["output-dir"] == settings["doc_path"] and settings["custom_sidebar"] == "True"
    assert config["website"]["title"] == settings["title"] and config["website"]["description"] == settings["description"]


# ---- Quarto's own rules, as far as web/quarto.schema.json has them

schema = jsonschema.Draft202012Validator(json.loads((root/"web"/"quarto.schema.json").read_text("utf-8")))


def test_the_configuration_follows_the_schema():
    jsonschema.Draft202012Validator.check_schema(schema.schema)
    assert not [f"{error.json_path}: {error.message}" for error in schema.iter_errors(config)]


@pytest.mark.parametrize("path, value", [
    ("project.type", "site"), ("project.rendre", []), ("project.render", "index.qmd"), ("execute.enabled", "no"), ("lang", "English"), ("format.pdf", {}),
    ("format.html.theme", {"night": "darkly"}), ("format.html.toc", "yes"), ("format.html.code-copy", "always"), ("format.html.html-math-method", "mathmal"),
    ("format.html.grid", {"body-width": 820}), ("website.titel", "x"), ("website.site-url", "llm-course.github.io"), ("website.repo-actions", ["edit", "isue"]),
    ("website.search", {"location": "top"}), ("website.open-graph", "yes"), ("website.sidebar.style", "fixed"), ("website.sidebar.contents", []),
    ("website.sidebar.contents", ["nbs/01_bpe.py"]), ("website.sidebar.contents", [{"part": "I", "contents": ["a.ipynb"]}]), ("website", None), ("books", {}),
])
def test_a_slip_in_the_configuration_is_noticed(path, value):
    changed = at = deepcopy(config)
    *way, last = path.split(".")
    for name in way: at = at[name]
    at[last] = value
    assert not schema.is_valid(changed)


# ---- A page, small enough to know all of it

svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle r="3"/></svg>'
drawn = '<svg viewBox="0 0 9 9" role="group" aria-label="Two links"><a href="07_ffn.ipynb"><text>07</text></a><a href="07_ffn.ipynb#there"><text>there</text></a></svg>'
small = [
    ("raw", "---\ntitle: '06 Small'\ndescription: A promise.\noutput-file: small.html\n---\n"),
    ("markdown", "## An idea {#sec-idea}\n\nFor $x^2$, $\\ln V$ and $\\ln(3)$ see @fig-dot, @fig-map, @eq-one, @tbl-two and @sec-idea.\n\n$$a = b$$ {#eq-one}\n\n"
                 "| a | b |\n|---|---|\n| 1 | 2 |\n\n: Two. {#tbl-two}\n\n::: {.callout-tip title=\"Mind\"}\nthe gap\n:::\n\n"
                 "<details><summary>Hint</summary>\n\n```python\nx = '`'\n```\n\n</details>\n\n"
                 "[next](07_ffn.ipynb#there) [`f`](https://llm-course.github.io/llm_course/nbs/other.html#f)"),
    ("code", '#| code-fold: true\n#| label: fig-dot\n#| fig-cap: "A *dot*, [3, 4]."\n#| fig-alt: "A \\"dot\\"."\nplot();',
             {"output_type": "display_data", "data": {"image/svg+xml": [svg], "text/plain": ["<Figure>"]}}),
    ("code", "#| code-fold: true\n#| label: fig-map\n#| fig-cap: 'A map, with [links](07_ffn.ipynb).'\ndraw()", {"output_type": "execute_result", "data": {"text/html": [drawn], "text/plain": ["<HTML>"]}}),
    ("code", "#| echo: false\nsecret = 1", {"output_type": "stream", "name": "stdout", "text": ["2 < 3\n"]},
             {"output_type": "stream", "name": "stdout", "text": ["4 > 3\n"]}),
    ("code", '#| code-fold: show\n#| code-summary: "Exported"\n# ``` fences\ndef f(): ...'),
]


def page_from(cells, folder, page="nbs/06_small.ipynb"):
    proc, output = folder/"_proc", folder/"_docs"
    (proc/page).parent.mkdir(parents=True, exist_ok=True)
    kinds = [{"cell_type": kind, "source": source, **({"outputs": outputs} if kind == "code" else {})} for kind, source, *outputs in deepcopy(cells)]
    render.embed_html(kinds)
    (proc/page).write_text(json.dumps({"cells": kinds}), "utf-8", newline="\n")
    own = config | {"website": config["website"] | {"sidebar": {"contents": ["nbs/index.ipynb", {"section": "Part", "contents": [page, "nbs/07_ffn.ipynb"]}]}}}
    titles = {"nbs/index.ipynb": "Start", page: "06 Small", "nbs/07_ffn.ipynb": "07 FFN"}
    render.render_page(page, proc, output, own, titles, list(titles))
    return (output/render.address(page)).read_text("utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return re.sub(r"\s+", " ", page_from(small, tmp_path_factory.mktemp("site")))


@pytest.mark.parametrize("part", [
    "<title>06 Small – llm_course</title>", "<h1>06 Small</h1>", '<p class="promise">A promise.</p>',
    '<span>Part</span>', '<a href="small.html" aria-current=page>06 Small</a>',
    '← <a href="index.html" rel=prev>Start</a>', '<a href="ffn.html" rel=next>07 FFN</a> →',
    '<a href="ffn.html#there">next</a>', '<a href="../nbs/other.html#f"><code>f</code></a>',
    '<figure id="fig-dot"> <img src="small_files/fig-dot-0.svg" alt="A &quot;dot&quot;." />',
    "<strong>Figure 1.</strong> A <em>dot</em>, [3, 4].", '<a href="#fig-dot">Figure 1</a>', '<a href="#eq-one">Equation 1</a>',
    '<a href="#tbl-two">Table 1</a>', '<a href="#sec-idea">Section 1</a>', '<span class="eqno">(1)</span>',
    '<figure id="fig-map"> <svg viewBox="0 0 9 9" role="group"', '<figcaption><strong>Figure 2.</strong> A map, with <a href="ffn.html">links</a>.</figcaption>', '<a href="#fig-map">Figure 2</a>',
    '<a href="ffn.html"><text>07</text></a>', '<a href="ffn.html#there"><text>there</text></a>',
    '<aside class="callout callout-tip"><p class="title">Mind</p>', "<summary>Hint</summary>", "<math",
    '<mo>&#8289;</mo></mrow><mspace width="0.17em"></mspace><mi>V</mi>', '<mo>&#8289;</mo></mrow><mo ',   # ln V, and ln(3)
    '<details class="code"><summary>Code</summary>', '<details class="code" open><summary>Exported</summary>',
    '<span class="kw">def</span>', "2 &lt; 3 4 &gt; 3</code>", "https://github.com/llm-course/llm_course/edit/main/nbs/06_small.ipynb",
])
def test_a_page_has(html, part):
    assert part in re.sub(r"(<(?:a|summary|details|aside|p|figure)[^>]*>) | (</(?:a|summary)>)", r"\1\2", html) or part in html


@pytest.mark.parametrize("part", ["secret", "#|", "label:", "{#", "@fig", ":::", "&lt;Figure&gt;", "AUTOGENERATED"])
def test_a_page_has_no(html, part):
    assert part not in html


@pytest.mark.parametrize("cells, message", [
    ([("markdown", "See @fig-lost.")], "@fig-lost refers to nothing"),
    ([("markdown", "See @somebody.")], "@somebody refers to nothing"),
    ([small[2], small[2]], "two things are called fig-dot"),
    ([("code", "1/0", {"output_type": "error", "ename": "ZeroDivisionError"})], "ZeroDivisionError"),
], ids=["figure", "citation", "twice", "failed"])
def test_a_broken_page_stops_the_build(cells, message, tmp_path):
    with pytest.raises(ValueError, match=message): page_from([small[0], *cells], tmp_path)


# ---- All pages

class Links(HTMLParser):
    "What a page links to, shows, and can be linked to."
    def __init__(self, text):
        super().__init__()
        self.ids, self.targets, self.blind = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag != "base": self.targets += [attributes[key] for key in ("href", "src") if key in attributes]
        if tag == "img" and not attributes.get("alt"): self.blind.append(attributes["src"])


@pytest.fixture(scope="module")
def site(site_folder):
    return {path.relative_to(site_folder).as_posix(): Links(path.read_text("utf-8")) for path in site_folder.rglob("*.html")} | {"": site_folder}


def test_every_link_leads_somewhere(site):
    home, lost = site[""], []
    for page, links in site.items():
        if not page: continue
        for target in links.targets:
            if re.match(r"[a-z]+:", target): continue
            path, _, anchor = target.partition("#")
            file = (home/page).parent.joinpath(path).resolve() if path else home/page
            if not file.is_file(): lost.append((page, target))
            elif anchor and anchor not in site[file.relative_to(home.resolve()).as_posix()].ids: lost.append((page, target))
    assert not lost


def test_no_word_with_an_at_sign_becomes_an_address(site):
    "pandoc takes pass@8 for an e-mail address, and so does Quarto, which uses the same reader; as code, `pass@8`, it stays what it is."
    mails = {(page, target) for page, links in site.items() if page for target in links.targets if target.startswith("mailto:")}
    assert not [(page, target) for page, target in mails if not re.fullmatch(r"mailto:[\w.+-]+@[\w-]+(\.[\w-]+)+", target)]


def test_every_exported_symbol_can_be_linked_to(site):
    for page, anchors in render.anchors_of(root/"llm_course"/"_modidx.py").items(): assert not set(anchors) - set(site[page].ids), page


def test_every_chapter_has_its_number_and_its_badge(site):
    for page in [page for page in listed[1:] if page.endswith(".ipynb")]:
        text, number = (site[""]/render.address(page)).read_text("utf-8"), re.match(r"nbs/(\d\d )?", page.replace("_", " "))[1] or ""
        assert f"<h1>{number}" in text and f"/blob/main/{page}" in text


def test_every_page_is_made_and_every_picture_described(site):
    assert site.keys() - {""} == {"index.html", "404.html", "machine/index.html", *map(render.address, listed)}
    assert not [(page, links.blind) for page, links in site.items() if page and links.blind]


def test_no_page_names_two_things_alike(site):
    assert not [(page, again) for page, links in site.items() if page and (again := {i for i in links.ids if links.ids.count(i) > 1})]


# ---- The front page

front = {cell["id"]: cell for cell in json.loads((root/"nbs"/"index.ipynb").read_text("utf-8"))["cells"]}
shown = lambda name, kind: "".join(front[name]["outputs"][0]["data"][kind])


def test_the_picture_of_the_machine_leads_to_every_chapter_that_builds_it():
    drawing = Links(shown("machine", "text/html"))
    chapters = [path.name for path in book.parts() if book.number(path) < 20]   # 20 looks at it from outside
    assert set(drawing.targets) == set(chapters)
    named = re.findall(r'<a href="(\d\d)\w+.ipynb" aria-label="(.+?), chapter (\d\d)">.*?<text[^>]*>(.+?) <tspan[^>]*>(\d\d)</tspan>', shown("machine", "text/html"))
    assert len(named) == len(drawing.targets) and all(a == b == c and said == seen for a, said, b, seen, c in named)   # what is read out is what is seen


def test_the_picture_has_the_arrows_of_the_machine():
    "Against the lines that the picture is told from: what flows where, box by box."
    sentences = re.search("<desc[^>]*>(.+)[.]</desc>", shown("machine", "text/html"))[1].split(". ")
    told = {start: set(ends.split(" and to ")) for start, ends in (sentence.split(" leads to ") for sentence in sentences)}
    block = {"stream 1": {"norm 1", "sum 1"}, "norm 1": {"heads"}, "heads": {"sum 1"}, "sum 1": {"stream 2"}, "stream 2": {"norm 2", "sum 2"}, "norm 2": {"FFN"}, "FFN": {"sum 2"}}
    speech = {"text": {"tokenizer", "byte pairs"}, "byte pairs": {"tokenizer"}, "tokenizer": {"ids", "data"}, "ids": {"embedding"}, "embedding": {"stream 1"}, "sum 2": {"norm 3"}, "norm 3": {"head"},
              "head": {"logits"}, "logits": {"softmax 2", "loss"}, "softmax 2": {"sampling"}, "sampling": {"ids", "tokenizer 2"}, "tokenizer 2": {"new text"}}
    learning = {"data": {"ids", "loss"}, "loss": {"clip", "health"}, "clip": {"AdamW"}, "schedule": {"AdamW"}, "AdamW": {"Transformer", "checkpoint"}}
    assert told == block | speech | learning


def test_the_minutes_are_those_of_the_pages():
    "By the page's own rule; a step of five minutes may be missing, so that not every edit needs it run again."
    rule = {"re": re, "math": math}
    exec("".join(front["reading-time"]["source"]), rule)
    table = shown("times", "text/markdown")
    said = {name: int(minutes) for name, minutes in re.findall(r"\(([\w/]+)\.ipynb\) (\d+)", table)}
    wanted = {book.name(path) for path in book.pages() if book.room(path) != "reference" and path.stem != "index"}
    assert said.keys() == wanted and "nan" not in table, "run python -m bench.pages, and the front page again"
    true = {name: rule["reading"](json.loads((root/"nbs"/f"{name}.ipynb").read_text("utf-8"))["cells"]) for name in said}
    assert not {name: (said[name], minutes) for name, minutes in true.items() if abs(said[name] - minutes) > 7.5}, "run the front page again"


def test_a_lesson_is_one_sitting():
    "By the same rule, which counts every line of code that is neither hidden nor folded: exported ones, too."
    rule = {"re": re, "math": math}
    exec("".join(front["reading-time"]["source"]), rule)
    lessons = [path for path in book.pages() if book.room(path) == "lesson" and path.stem != "index"]
    took = {book.name(path): rule["reading"](book.cells(path)) for path in lessons}
    assert len(took) > 25 and not {name: minutes for name, minutes in took.items() if minutes > 35}


def test_the_tour_takes_fifteen_minutes():
    assert "[00 Tour](00_tour.ipynb) 15," in shown("times", "text/markdown")


def test_what_is_searched_holds_every_section_its_words_and_its_code(site):
    found = json.loads((site[""]/"search.js").read_text("utf-8").partition("=")[2])
    assert {address.partition("#")[0] for address, *_ in found} == {*map(render.address, listed)}
    for address, *_ in found:
        page, _, anchor = address.partition("#")
        assert not anchor or anchor in site[page].ids, address
    norm = {heading: (words, code) for address, _, heading, words, code in found if address.startswith("nbs/rmsnorm")}
    assert "residual stream" in norm["The problem"][0]
    assert any("torch.promote_types(x" in code for _, code in norm.values())
    assert not any("torch.promote_types(x" in words or "<" in heading for heading, (words, _) in norm.items())


def test_links_to_the_site_have_a_picture(site):
    picture = (site[""]/config["website"]["image"].lstrip("/")).read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) < 100_000
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (1200, 630)
    text = (site[""]/"nbs"/"rmsnorm.html").read_text("utf-8")
    assert f'<meta property="og:image" content="{config["website"]["site-url"]}/card.png">' in text and 'name="twitter:card"' in text


def test_no_page_asks_another_server_for_anything(site):
    "Links may lead elsewhere; what a browser fetches by itself lies on the site, in Quarto's pages as in ours."
    asks = re.compile(r'''<(?:img|script|iframe|source|video|audio|embed)\b[^>]*\bsrc="(?:https?:)?//|<link\b(?![^>]*\brel="(?:canonical|next|prev)")[^>]*\bhref="(?:https?:)?//|(?:url\(|@import\s+)["']?(?:https?:)?//''')
    for planted in ('<img alt="a" src="https://x.org/a.svg">', '<link rel="stylesheet" href="//x.org/a.css">', '@import "https://x.org/a.css"', "url(https://x.org/a.woff)"): assert asks.search(planted)
    shown = [path for path in site[""].rglob("*") if path.suffix in (".html", ".css", ".js", ".svg") and path.name not in ("search.js", "demo_model.js", "demo_tokenizer.js")]
    assert len(shown) > 100 and not [path for path in shown if asks.search(path.read_text("utf-8"))]
    proc = site[""].parent/"_proc"
    assert not [path for path in (*proc.glob("*.scss"), *proc.glob("*.css")) if asks.search(path.read_text("utf-8"))]
    assert {*map(str, [config["format"]["html"]["theme"][kind] for kind in ("light", "dark")])} <= {path.name for path in proc.glob("*.scss")}   # none of Bootswatch's, which import fonts
    for path in proc.rglob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        kinds = {kind for cell in cells for output in cell.get("outputs", ()) for kind in output.get("data", {})}
        assert not kinds & {"text/html", "application/javascript", "application/vnd.jupyter.widget-view+json"}, path   # for these Quarto loads jQuery and RequireJS
        assert not [cell for cell in cells if cell["cell_type"] == "markdown" and re.search(r"!\[[^\]]*\]\(https?:", "".join(cell["source"]))], path


def strings(notebook):
    "The texts of a notebook that are not lists of lines."
    fields = [cell["source"] for cell in notebook["cells"]]
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", ())):
        fields += [output["text"]] if "text" in output else []
        fields += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return [field for field in fields if isinstance(field, str)]


def test_every_text_that_quarto_reads_is_a_list_of_lines(site):
    "Of one string, Quarto 1.9 loses the ends of the lines: code becomes one line, and the title block shows as text."
    notebooks = {path: json.loads(path.read_text("utf-8")) for path in (site[""].parent/"_proc").rglob("*.ipynb")}
    assert len(notebooks) == len(modules) + 4 and not [path for path, notebook in notebooks.items() if strings(notebook)]
    planted = deepcopy(next(iter(notebooks.values())))
    planted["cells"][0]["source"] = "".join(planted["cells"][0]["source"])
    assert strings(planted)


def test_no_id_of_a_cell_is_that_of_a_heading_or_a_symbol(site):
    "Quarto gives each cell its id as that of a part of the page."
    for path in (site[""].parent/"_proc").rglob("*.ipynb"):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        page = path.relative_to(site[""].parent/"_proc").as_posix()
        assert all(cell["id"].startswith("cell-") for cell in cells)
        assert not {cell["id"] for cell in cells} & {*site[render.address(page)].ids}, page


def test_no_cell_has_two_summaries(site):
    "Quarto refuses an option that is given twice."
    for path in (site[""].parent/"_proc").rglob("*.ipynb"):
        for cell in json.loads(path.read_text("utf-8"))["cells"]: assert "".join(cell["source"]).count("\n#| code-summary: ") < 2, (path.name, cell["id"])


def test_every_page_names_a_picture_for_links_to_it(site):
    "Else Quarto takes the first picture on the page, and social networks show no SVG."
    for path in (site[""].parent/"_proc").rglob("*.ipynb"): assert render.front_of(path)["image"] == config["website"]["image"] == "/card.png"


def test_the_page_for_lost_addresses_works_at_any_depth(site):
    text = (site[""]/"404.html").read_text("utf-8")
    assert '<base href="/llm_course/">' in text and "This page does not exist" in text and 'href="nbs/index.html"' in text
    assert not any("<base" in path.read_text("utf-8") for path in site[""].glob("nbs/*.html"))


def test_every_page_has_a_favicon_a_theme_and_its_contents(site):
    for page in listed:
        text = (site[""]/render.address(page)).read_text("utf-8")
        assert re.search(r'<link rel="icon" href="[./]*favicon.svg"', text) and "machine/theme.js" in text and ('class="toc"' in text) == ("<h2" in text), page


def test_the_font_has_every_character_of_the_formulas(site):
    font = (root/"web"/"static"/"math.woff2").read_bytes()
    assert font[:4] == b"wOF2" and len(font) <= 120_000
    covered = (root/"web"/"static"/"math.txt").read_text("utf-8").splitlines()[2]
    missing = characters_of(site[""]) - {*covered, "\u2061", "\xa0"}   # what applies a function has no shape
    assert not missing, "run python web/font.py, as its first lines say"


def test_the_sign_of_a_root_counts_though_no_text_has_it(tmp_path):
    (tmp_path/"a.html").write_text("<math><msqrt><mi>x</mi></msqrt></math>", "utf-8", newline="\n")
    assert {"√", "𝑥"} <= characters_of(tmp_path)


def test_a_first_visit_of_a_lesson_is_light(site):
    "150 kB, packed, the font apart: the page, its pictures, and what all pages share."
    packed = lambda path: len(gzip.compress(path.read_bytes()))
    shared = sum(packed(site[""]/name) for name in ("style.css", "site.js", "favicon.svg", "machine/theme.js"))
    for page in (page for page in listed if re.match(r"nbs/\d\d_", page)):
        path = site[""]/render.address(page)
        text = path.read_text("utf-8")
        pictures = [path.parent/name for name in re.findall(r'<img src="([^"]+)"', text)]
        live = [site[""]/"machine"/name for name in ("figures.js", "parts.js", "parts.css")] if "data-figure" in text else []
        assert packed(path) + shared + sum(map(packed, pictures + live)) < 150_000, page


# ---- The pages on the package

def test_every_public_name_is_there_and_its_chapter_is_linked(site):
    for page, (_, notebooks) in api.parts_of(config, modules).items():
        links = site[render.address(page)]
        for notebook in notebooks:
            module = modules[notebook]
            own = {f"{module}.{name}" for name, made_here in names_of(root/"llm_course"/f"{module.replace('.', '/')}.py").items() if made_here}
            assert {i for i in links.ids if i.startswith(f"{module}.")} == own, module
            built = sum(target.partition("#")[0] == f"../{render.address(notebook)}" for target in links.targets)
            assert not own or built >= len(own) + 1   # each name, and the module itself


def described(source, tmp_path):
    (tmp_path/"small").mkdir()
    (tmp_path/"small"/"__init__.py").write_text('"One promise."\n' + dedent(source), "utf-8", newline="\n")
    return api.section(api.griffe.load("small", search_paths=[tmp_path], allow_inspection=False), "nbs/01_small.ipynb", "01 Small", {"small.other": "text.html"})


def test_an_entry_has_signature_types_defaults_comments_and_docstring(tmp_path):
    text = described('''
        from dataclasses import dataclass
        __all__ = ["LIMIT", "f", "C", "D", "_hidden", "checks_it", "T"]
        LIMIT = 3   # no more than this
        T = TypeVar("T")
        @dataclass
        class Base:
            a:int=1 # From the base
        @dataclass
        class D(Base):
            "A record."
            b:str|None=None # Its own
        def f(
            x:Float[Tensor, "... d"], # What goes in
            *,
            scale:float=2.0,          # How much | how far
        )->int: # What comes out
            """Do it.

            Raises `ValueError`."""
        class C:
            "Hold it."
            def __init__(self, size:int): ...   # How large
            def go(self, *steps:int, **more)->None:
                "Go."
            def silent(self): ...
        @check_of("f")
        def checks_it(f): "It holds."
        def _hidden(): ...
        def unlisted(): ...
        ''', tmp_path)
    for part in ("## small {#small}", "One promise. Built in [01 Small](../nbs/01_small.ipynb).", "LIMIT = 3", "no more than this",
                 "f(x: Float[Tensor, '... d'], *, scale: float = 2.0) -> int", "Raises `ValueError`. [Built here](../nbs/01_small.ipynb#f).", "| `x` | What goes in |",
                 "| `scale` | How much \\| how far |", "| *returns* | What comes out |", "C(size: int)", "| `size` | How large |", "go(*steps: int, **more) -> None",
                 "D(a: int = 1, b: str | None = None)", "| `a` | From the base |", "| `b` | Its own |"): assert part in text, part
    for part in "hidden", "checks_it", "unlisted", "silent", "TypeVar", "self": assert part not in text, part
