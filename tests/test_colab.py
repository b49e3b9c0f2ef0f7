"""Notebooks in Colab: what the first cell does there, that it does nothing elsewhere, and what a page's metadata asks for."""
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("IPython")
import book
import colab
from IPython.core.interactiveshell import InteractiveShell

root = Path(__file__).parents[1]

names = [book.name(path) for path in book.pages()]


@pytest.mark.parametrize("name", names)
def test_a_page_is_as_the_script_would_make_it(name):
    notebook = json.loads((root/"nbs"/f"{name}.ipynb").read_text("utf-8"))
    assert colab.prepare(notebook, name) == notebook, "run python web/colab.py"
    assert notebook["metadata"].get("accelerator") == ("GPU" if name in colab.GPU else None)


@pytest.mark.parametrize("name", names)
def test_a_gpu_is_asked_for_where_a_page_uses_one_and_nowhere_else(name):
    "Cells that only explain name the CPU, or a number of threads; models that would go to the best device there is are loaded with its name."
    cells = json.loads((root/"nbs"/f"{name}.ipynb").read_text("utf-8"))["cells"]
    shown = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and not "".join(c["source"]).startswith("#| export")]
    assert any("torch.cuda.is_available()" in cell for cell in shown) == (name in colab.GPU)
    loads = [call for cell in shown for call in re.findall(r"(?<!def )\b(?:load_model|load_pretrained)\([^\n]*", cell)]
    assert all('"cpu"' in call or "device" in call for call in loads), loads


def test_a_new_page_is_made_whole():
    "Badge, cell and metadata are put where they belong, once."
    notebook = {"metadata": {"accelerator": "TPU"}, "cells": [
        {"cell_type": "code", "id": "default-exp", "source": ["#| default_exp speed"]},
        {"cell_type": "markdown", "id": "title", "source": ["# Speed\n", "\n", "> A promise.\n", "\n", "## More"]},
        {"cell_type": "code", "id": "imports", "source": ["import math"]}]}
    made = colab.prepare(notebook, "17_training")
    assert [cell["id"] for cell in made["cells"]] == ["default-exp", "title", "colab", "imports"]
    assert "".join(made["cells"][1]["source"]) == f"# Speed\n\n> A promise.\n\n{colab.badge('17_training')}\n\n## More"
    assert made["metadata"] == {"accelerator": "GPU", "colab": {"gpuType": "T4"}}
    assert colab.prepare(made, "17_training") == made


def test_a_page_that_was_begun_in_colab_gets_ids():
    "Colab writes nbformat 4.0, whose cells have none; so may a page to which Colab added some."
    bare = {"nbformat": 4, "nbformat_minor": 0, "metadata": {"colab": {"provenance": []}}, "cells": [
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": ["#| default_exp mine"]},
        {"cell_type": "markdown", "metadata": {}, "source": "# Mine\n\n> A promise."},
        {"cell_type": "code", "id": "cell-1", "metadata": {}, "outputs": [], "execution_count": None, "source": []}]}
    made = colab.prepare(bare, "99_mine")
    assert [cell["id"] for cell in made["cells"]] == ["cell-2", "cell-3", "colab", "cell-1"] and made["nbformat_minor"] == 5
    assert colab.badge("99_mine") in "".join(made["cells"][1]["source"]) and "colab" not in made["metadata"]
    assert colab.prepare(made, "99_mine") == made
    with pytest.raises(ValueError, match="99_mine has no title"): colab.prepare(bare | {"cells": bare["cells"][:1]}, "99_mine")


class Shell(InteractiveShell):
    "An IPython that notes what it is asked to install."
    def init_magics(self):
        super().init_magics()
        self.asked = []
        self.register_magic_function(self.asked.append, "line", "pip")


class Colab(Shell):
    def __str__(self): return "<google.colab._shell.Shell object at 0x7f>"


@pytest.mark.parametrize("name", ["01_bpe", "23_pretrained"])
def test_the_first_cell_installs_the_course_and_names_the_torch_that_is_there(name):
    shell = Colab()
    shell.run_cell(colab.install(name)).raise_error()
    extras = "[interop]" if name == "23_pretrained" else ""
    assert shell.asked == [f'install -q torch=={version("torch")} "llm_course{extras} @ git+https://github.com/llm-course/llm_course@main"']


def test_elsewhere_it_does_nothing():
    shell = Shell()
    shell.run_cell(colab.install("01_bpe")).raise_error()
    assert not shell.asked and "version" not in shell.user_ns
