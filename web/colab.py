"""Give every notebook what it needs to open and run in Colab: its badge, a first cell that installs the course there, and a GPU where one helps."""
import configparser
import json
import re
from itertools import count

from book import name as name_of
from book import pages, root

settings = configparser.ConfigParser()
settings.read(root/"settings.ini", encoding="utf-8")
repository = "{user}/{repo}".format_map(settings["DEFAULT"])
branch = settings["DEFAULT"]["branch"]

GPU = "17_training", "engine/flash_triton"   # pages whose runs go to a GPU where there is one
EXTRAS = dict.fromkeys(("23_pretrained", "engine/gguf", "engine/gguf_file", "engine/foreign_tokenizers", "engine/exchange"), "[interop]") | {"engine/serve": "[serve]", "engine/loops": "[fast]", "engine/compiled_bpe": "[fast]"}   # pages that need more than the package does


def badge(name: str) -> str:
    "The picture that opens a page in Colab."
    address = f"https://colab.research.google.com/github/{repository}/blob/{branch}/nbs/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def install(name: str) -> str:
    "The first cell to run: elsewhere it does nothing."
    return ('#| hide\n'
            "# in Colab: fetch the package of this page, and keep the torch that is there\n"
            'if "google.colab" in str(get_ipython()):\n'
            '    from importlib.metadata import version\n'
            f'    %pip install -q torch=={{version("torch")}} "llm_course{EXTRAS.get(name, "")} @ git+https://github.com/{repository}@{branch}"')


def named(cells: list[dict]) -> list[dict]:
    "The same cells, each with an id; a page that was begun in Colab has none."
    taken = {cell.get("id") for cell in cells}
    free = (f"cell-{number}" for number in count(1) if f"cell-{number}" not in taken)
    return [cell if "id" in cell else cell | {"id": next(free)} for cell in cells]


def prepare(notebook: dict, name: str) -> dict:
    "The same notebook, ready for Colab."
    cells = [cell for cell in named(notebook["cells"]) if cell["id"] != "colab"]
    metadata = {key: value for key, value in notebook["metadata"].items() if key not in ("accelerator", "colab")}
    title = next((at for at, cell in enumerate(cells) if cell["cell_type"] == "markdown"), None)
    if title is None: raise ValueError(f"{name} has no title; give it a text cell that begins with \"# \"")
    text = "".join(cells[title]["source"])
    if "[![Open in Colab" in text: text = re.sub(r"^\[!\[Open in Colab.*$", badge(name), text, flags=re.M)
    else: text = re.sub(r"^> .+$", lambda promise: f"{promise[0]}\n\n{badge(name)}", text, count=1, flags=re.M)
    cells[title] = cells[title] | {"source": text.splitlines(keepends=True)}
    cell = {"cell_type": "code", "execution_count": None, "id": "colab", "metadata": {}, "outputs": [], "source": install(name).splitlines(keepends=True)}
    if name in GPU: metadata |= {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
    parts = {"cells": [*cells[:title + 1], cell, *cells[title + 1:]], "metadata": dict(sorted(metadata.items()))}
    return notebook | parts | {"nbformat_minor": max(5, notebook.get("nbformat_minor", 5))}   # from 5 on, cells have ids


def main() -> None:
    "Prepare all pages; `make export` calls it."
    for path in pages():
        before = path.read_text("utf-8")
        after = json.dumps(prepare(json.loads(before), name_of(path)), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if after != before: path.write_text(after, "utf-8", newline="\n")


if __name__ == "__main__": main()
