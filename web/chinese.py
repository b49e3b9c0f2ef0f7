"""The front page and the tour in Chinese: `web/chinese/` has their text, cell by cell; code, outputs and pictures are those of the English pages.

The lists of chapters are those of README_cn.md. Nothing else is kept twice, and tests compare the numbers, links, code and formulas of each cell."""
import json
import re
from pathlib import Path

root = Path(__file__).parents[1]
PAGES = {"cn/index.qmd": "nbs/index.ipynb", "cn/tour.qmd": "nbs/00_tour.ipynb"}
WORDS = {"| part | its chapters, and minutes to read each | all | to run |": "| 部分 | 各章及阅读所需分钟数 | 合计 | 运行时间 |",
         "The whole course: ": "整门课程：", " hours.": " 小时。"}
LABELS = {"to-text": "跳到正文", "on-page": "本页内容", "to-top": "回到顶部"}   # of every page


def texts_of(page: str) -> dict[str, str]:
    "The Chinese texts of a page, by the cell (`plan`) or the cell and its directive (`fig-dice fig-cap`)."
    source = (root/"web"/"chinese"/Path(page).with_suffix(".md").name).read_text("utf-8")
    _, *found = re.split(r"^<!-- (.+) -->\n", source, flags=re.M)
    return {name: text.strip() for name, text in zip(*[iter(found)] * 2)}


def english_of(page: str) -> dict[str, str]:
    "The English texts that the Chinese ones stand for, by the same names."
    found = {}
    for cell in json.loads((root/PAGES[page]).read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown": found[cell["id"]] = re.sub(r"^\[!\[Open in Colab.*$", "", source, flags=re.M).strip()
        elif not re.search(r"^#\| hide", source, re.M):
            for name, text in re.findall(r'^#\| (fig-cap|fig-alt|code-summary): "(.*)"$', source, re.M): found[f"{cell['id']} {name}"] = text
    return found


def chapters() -> str:
    "The tables of chapters in README_cn.md, and what follows from them."
    text = (root/"README_cn.md").read_text("utf-8").replace("](nbs/", "](")
    return "\n\n".join(re.search(rf"^\| {first} \|.*?(?=\n\n)", text, re.M | re.S)[0] for first in ("部分", "页面"))


def translated(page: str) -> list[dict]:
    "The cells of a page with their Chinese texts; what is hidden is left out."
    texts, cells = texts_of(page), []
    titles = {place: title for title, place in re.findall(r"\[([^]]+)\]\(([\w/]+\.ipynb)\)", chapters())}
    for cell in json.loads((root/PAGES[page]).read_text("utf-8"))["cells"]:
        name, source = cell["id"], "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = texts[name]
            if name == "title":
                title, promise = re.fullmatch(r"# (.+)\n\n> (.+)", source).groups()
                source = f"---\ntitle: {title}\ndescription: {promise}\nlang: zh\nrepo-actions: false\nimage: /card.png\n---"
            source = source.replace("{chapters}", chapters())
        elif re.search(r"^#\| hide", source, re.M): continue
        else:
            def chosen(found: re.Match, name: str = name) -> str: return f"#| {found[1]}: {json.dumps(texts[f'{name} {found[1]}'], ensure_ascii=False)}"
            source = re.sub(r"^#\| (fig-cap|fig-alt|code-summary): .*$", chosen, source, flags=re.M)
            for output in cell["outputs"]:
                data = output.get("data", {})
                if "text/markdown" not in data: continue
                shown = re.sub(r"\[[^]]+\]\(([\w/]+\.ipynb)\)", lambda found: f"[{titles[found[1]]}]({found[1]})", "".join(data["text/markdown"]))
                for english, chinese in WORDS.items(): shown = shown.replace(english, chinese)
                data["text/markdown"] = shown
        cells.append(cell | {"source": source})
    return cells


def led_back(source: str) -> str:
    "Links to notebooks, as seen from the folder of these pages."
    return re.sub(r"(?<=\]\()(?=[\w/]+\.ipynb)", "../nbs/", source)
