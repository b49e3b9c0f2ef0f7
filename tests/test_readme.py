"""The READMEs: the table is what was measured, commands and outputs are real, and both languages say the same."""
import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import book
import pytest
from test_notebooks import figure

from bench.demo import TARGETS
from bench.table import DEMO, browser, demo, race, table
from llm_course import BpeTokenizer, TrainConfig
from llm_course.engine.budget import describe
from llm_course.engine.commands import Flags, parse
from llm_course.engine.diary import RUN_FILES, report
from llm_course.engine.run_config import account_of, check_types

root = Path(__file__).parents[1]


names = "README.md", "README_cn.md"
texts = {name: (root/name).read_text("utf-8") for name in names}
blocks = {name: re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S) for name, text in texts.items()}
sections = {name: re.split(r"^#+ .*\n", text, flags=re.M) for name, text in texts.items()}


@pytest.mark.parametrize("name", names)
def test_the_tables_are_what_was_measured(name):
    for rows in table(name), race(name), browser(name): assert f"\n{rows}\n\n" in texts[name], "run python -m bench.table"


@pytest.mark.parametrize("name", names)
def test_the_demo_is_what_was_measured(name):
    "Its time, its text and the output below each of its commands come from bench/demo.json, and nothing of it is typed."
    found = json.loads((root/"bench"/"demo.json").read_text("utf-8"))
    assert demo(name, texts[name]) == texts[name], "run python -m bench.table"
    outputs = [body.rstrip("\n") for kind, body in blocks[name] if kind == "text"]
    assert len(found["printed"]) == 5 and set(found["printed"].values()) <= set(outputs)
    assert found["processor_seconds"].keys() == set(TARGETS) and found["load"].keys() == {"before", "after"} and found["machine"]["kind"] in texts[name]


def test_a_demo_of_other_figures_would_be_shown():
    "What is drawn is drawn whole: no output that the file does not have stays behind."
    spoiled = re.sub(r"\d\.\d+(?= (?:nats|bits|s,|MB/s))|\d+(?= s of processor)", "0.5", texts["README.md"])
    assert spoiled != texts["README.md"] and demo("README.md", spoiled) == texts["README.md"]
    assert DEMO.keys() == set(names)


@pytest.mark.parametrize("name", names)
def test_the_first_screen_has_all_that_it_must(name):
    "One sentence, the two commands, what they print, the loss curve, the chapters; in this order, before the second heading."
    first = texts[name].partition("\n## ")[0]
    places = [first.index(part) for part in ("# llm_course", "make demo ", "make test ", "```text\nROMEO:", "(llm_course/demo/loss.svg)", "(nbs/00_tour.ipynb)")]
    assert places == sorted(places)


def test_both_have_the_same_headings_and_rows():
    levels = {name: re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M) for name, text in texts.items()}
    rows = {name: [line.count("|") for line in text.splitlines() if line.startswith("|")] for name, text in texts.items()}
    assert levels["README.md"] == levels["README_cn.md"] and rows["README.md"] == rows["README_cn.md"]


def test_both_have_the_same_commands_outputs_and_code():
    bare = {name: [(kind, re.sub(r" +# .*", "", body)) for kind, body in found] for name, found in blocks.items()}
    assert bare["README.md"] == bare["README_cn.md"]


def test_both_have_the_same_figures_section_by_section():
    for english, chinese in zip(*sections.values(), strict=True):
        figures = [sorted(re.findall(r"\d+(?:[.,]\d+)*", text)) for text in (english, chinese)]
        assert figures[0] == figures[1], english[:60]


def test_both_link_to_the_same_places_and_these_are_there():
    links = {name: sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - set(names)) for name, text in texts.items()}
    assert links["README.md"] == links["README_cn.md"]
    assert all(re.match("https://", link) or (root/link).exists() for link in links["README.md"])
    assert {path.relative_to(root).as_posix() for path in book.pages()} <= set(links["README.md"])


def test_prose_types_no_measurement():
    prose = re.sub(r"^```.*?^```$|^\|.*$|`[^`\n]*`", "", texts["README.md"], flags=re.M | re.S)   # the other README has the same figures
    assert not figure.findall(prose) and figure.search("It took 3 ms.")


def test_the_demo_says_what_the_readme_shows(capsys):
    command, shown = next((body, after) for (kind, body), (_, after) in zip(blocks["README.md"], blocks["README.md"][1:]) if body.startswith("llm-course generate"))
    words = re.fullmatch(r'llm-course generate --prompt "(.+)" --max_tokens (\d+) --seed (\d+)\n', command).groups()
    flags = [*zip(("--prompt", "--max_tokens", "--seed"), words)]
    importlib.import_module("llm_course.generating").main([word for pair in flags for word in pair] + ["--device", "cpu"])
    assert capsys.readouterr().out.rstrip() == shown.rstrip()


def test_the_front_page_lets_the_same_model_speak():
    "Its model is rounded to half precision, so the two part ways at last."
    spoken = next("".join(cell["outputs"][0]["text"]) for cell in json.loads((root/"nbs"/"index.ipynb").read_text("utf-8"))["cells"] if cell["id"] == "spoken")
    shown = next(body for kind, body in blocks["README.md"] if kind == "text")
    assert spoken.splitlines()[:8] == shown.splitlines()[:8]


def shown_after(start):
    "The output that stands below a command."
    return next(after for (kind, body), (_, after) in zip(blocks["README.md"], blocks["README.md"][1:]) if body.startswith(start))


def test_training_ends_as_the_readme_shows(capsys, tmp_path, monkeypatch):
    "The words are those of the loop, and the figures belong together: nats per token are bits per byte times bytes per token."
    shown = shown_after("python -m llm_course.training ")
    nats, bits, best = map(float, re.findall(r"\d\.\d{4}", shown))
    said = re.search(r"python -m llm_course.training (.*?)\n```", texts["README.md"], re.S)[1].replace("\\\n", " ").split()
    config = parse(TrainConfig, said)
    monkeypatch.chdir(tmp_path)
    config.output.mkdir(parents=True)
    for name in {*RUN_FILES} - {"average.safetensors"}: (config.output/name).touch()
    report(config, [{"iteration": config.iterations, "whole_val_loss": nats, "bits_per_byte": bits}], config.iterations, best)
    memory, _, end = shown.partition("\n")   # said before the run begins
    assert memory == describe(account_of(replace(config, vocab_size=1024, precision="float32", device="cpu")))
    assert capsys.readouterr().out.replace("\\", "/") == end
    bytes_per_token = float(re.search(r"val\.bin: .* (\d\.\d+) bytes per token", texts["README.md"])[1])
    assert nats / math.log(2) / bytes_per_token == pytest.approx(bits, rel=0.005)


def test_the_tokenizer_that_comes_along_is_the_one_that_the_readme_trains():
    shown, tokenizer = shown_after("python -m llm_course.bpe_tokenizer "), BpeTokenizer.load(root/"llm_course/demo/tokenizer.json")
    size, merges, special = map(lambda n: int(n.replace(",", "")), re.search(r"vocabulary +([\d,]+) = 256 bytes, (\d+) merges, (\d+) special", shown).groups())
    assert (size, merges, special) == (tokenizer.vocab_size, len(tokenizer.merges), len(tokenizer.special_tokens))
    assert {word.encode() for word in re.findall(r"'(.+?)'", shown)} <= set(tokenizer.vocab.values())


def test_the_steps_are_those_of_make_demo():
    makefile = re.sub(r"\$\((\w+)\)", lambda found: {"RUN": "runs/demo", "PY": "python"}.get(found[1], found[0]), (root/"Makefile").read_text("utf-8"))
    makefile = makefile.replace("$(RECIPE)", re.search(r"RECIPE := (.*?)\n\n", makefile, re.S)[1]).replace("\\\n", " ").replace("$@", "runs/demo/tokenizer.json").replace("$<", "runs/demo/tokenizer.json")
    flat = " ".join(makefile.split())
    steps = [" ".join(body.replace("\\\n", " ").split()) for kind, body in blocks["README.md"] if kind == "bash" and body.startswith("python -m llm_course.")]
    assert len(steps) == 5 and all(step in flat for step in steps)


@pytest.mark.parametrize("line", [line for kind, body in blocks["README.md"] if kind == "python" for line in [body]])
def test_the_python_example_names_what_there_is(line, monkeypatch):
    import llm_course
    for name in re.search(r"from llm_course import (.+)", line)[1].split(", "): assert name in llm_course.__all__
    if "TrainConfig(" in line:   # its values are of the types that mypy asks for, before a text becomes a path
        monkeypatch.setattr(Flags, "__post_init__", lambda self: None)
        exec("from pathlib import Path\nfrom llm_course import TrainConfig\n" + re.search(r"^demo = .*\n^config = .*", line, re.M)[0], place := {})
        check_types(place["config"])


def test_the_targets_are_those_of_the_makefile():
    targets = set(re.search(r"\.PHONY: (.*)", (root/"Makefile").read_text("utf-8"))[1].split())
    rows = set(re.findall(r"^\| `([\w-]+)` \|", texts["README.md"].partition("| target |")[2], re.M))
    assert rows == targets
