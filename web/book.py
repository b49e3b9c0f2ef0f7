"""The pages of the course: the one list of them, in reading order, that every tool and every test goes by."""
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

root = Path(__file__).parents[1]
ROOMS = {"nbs": "lesson", "engine": "engine", "grading": "grading", "reference": "reference"}   # a page's folder, and what kind of page lies there


def config() -> dict:
    "What `_quarto.yml` says of the site."
    return yaml.safe_load((root/"_quarto.yml").read_text("utf-8"))


def listed(config: dict) -> list[str]:
    "All that stands in the sidebar, in reading order: notebooks, and the pages on the package that are made at build."
    def walk(items: list) -> Iterator[str]:
        for item in items:
            if isinstance(item, dict): yield from walk(item["contents"])
            else: yield item
    return list(walk(config["website"]["sidebar"]["contents"]))


def pages() -> list[Path]:
    "The notebook of every page, in reading order. Those in `nbs/your_turn/` are made from them and are no pages of their own."
    return [root/page for page in listed(config()) if page.endswith(".ipynb")]


def room(path: Path) -> str:
    "What kind of page this is: a lesson, one of the engine room, of grading, or of reference."
    return ROOMS[path.parent.name]


def number(path: Path) -> int | None:
    "The number of a lesson; `None` where a page has none."
    found = re.match(r"(\d\d)_", path.name)
    return int(found[1]) if found else None


def cells(path: Path) -> list[dict]:
    "The cells of a notebook."
    return json.loads(path.read_text("utf-8"))["cells"]


@cache
def module(path: Path) -> str:
    "The module that a page makes, below `llm_course`, such as `rmsnorm` or `engine.commands`; an empty word where it makes none."
    found = re.match(r"#\| default_exp (\S+)$", "".join(cells(path)[0]["source"]))
    return found[1] if found else ""


def name(path: Path) -> str:
    "A page's place below `nbs/`, such as `06_rmsnorm` or `engine/commands`."
    return path.relative_to(root/"nbs").with_suffix("").as_posix()


def parts() -> list[Path]:
    "The lessons whose parts a reader may write: all but the tour, before those that speak of the world outside."
    return [path for path in pages() if 1 <= (number(path) or 0) < 23]


if __name__ == "__main__":   # the paths of all pages, for `jupyter execute`
    for path in pages(): print(path.relative_to(root).as_posix())
