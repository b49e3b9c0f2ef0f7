"""What surrounds the package: workflows, hooks, templates, and facts that stand in more than one place."""
import configparser
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import yaml

import llm_course

root = Path(__file__).parents[1]
settings = configparser.ConfigParser()
settings.read(root/"settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]
project = tomllib.loads((root/"pyproject.toml").read_text("utf-8"))["project"]
workflows = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted((root/".github/workflows").glob("*.yml"))}
steps = [(name, job, step) for name, flow in workflows.items() for job in flow["jobs"].values() for step in job["steps"]]
read = lambda name: (root/name).read_text("utf-8")


# ---- Files for other tools

@pytest.mark.parametrize("schema, files", [
    ("github-workflows", ".github/workflows/*.yml"), ("github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
    ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"), ("citation-file-format", "CITATION.cff")])
def test_files_follow_their_schema(schema, files):
    from check_jsonschema import main
    from click.testing import CliRunner
    check = lambda paths: CliRunner().invoke(main, ["--builtin-schema", f"vendor.{schema}", *map(str, paths)])
    assert (found := sorted(root.glob(files))) and check(found).exit_code == 0, check(found).output
    assert check([root/"_quarto.yml"]).exit_code == 1   # it can fail


def test_the_hooks_can_be_read_and_their_commands_are_there():
    done = subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", str(root/".pre-commit-config.yaml")], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"] and {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}   # nothing is fetched
    for word in (word for hook in hooks[0]["hooks"] for word in hook["entry"].split() if word.endswith(".py")): assert (root/word).is_file()


# ---- Words

RIDDLES = re.compile(r"\bwhoever\b|\bis the way (?:in|back)\b|\bthere and back\b|\bten thousand million\b", re.I)


@pytest.mark.parametrize("folder", ["web", "bench", ".github", "llm_course", "."])
def test_what_is_printed_and_documented_is_said_plainly(folder):
    files = (root/folder).glob("*.md") if folder == "." else (root/folder).rglob("*")
    texts = {path: path.read_text("utf-8") for path in files if path.suffix in (".py", ".js", ".html", ".md", ".json", ".yml", ".qmd", ".lua", ".css") and "results" not in path.parts}
    assert texts and not [(path.name, found[0]) for path, text in texts.items() if (found := RIDDLES.search(text))]
    assert RIDDLES.search("index.html is the way in")


# ---- Workflows

def test_all_systems_and_the_ends_of_what_is_supported_are_tried():
    matrix = workflows["test"]["jobs"]["platforms"]["strategy"]["matrix"]
    supported = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r"Python :: \d\.", line)]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == [supported[0], supported[-1]] and project["requires-python"] == f">={supported[0]}" and settings["min_python"] == supported[0]
    oldest = next(line for line in project["dependencies"] if line.startswith("torch")).partition(">=")[2]
    assert f'"torch=={oldest}.*"' in read(".github/workflows/test.yml")
    assert workflows["weekly"][True]["schedule"] and "requirements.txt" not in str(workflows["weekly"])   # YAML reads the key `on` as true
    assert workflows["release"][True] == {"push": {"tags": ["v*"]}}


def test_what_runs_on_windows_needs_no_shell():
    for job in workflows["test"]["jobs"]["platforms"], workflows["weekly"]["jobs"]["newest"]:
        for step in job["steps"]: assert re.fullmatch(r"python [\w./ -]+(\[dev(,[\w-]+)?\])?", step.get("run", "python x")), step


def test_the_kernels_in_triton_are_tried_each_week():
    job = workflows["weekly"]["jobs"]["triton"]
    lines = [step["run"] for step in job["steps"] if "run" in step]
    install, there, *tried = lines
    assert job["runs-on"] == "ubuntu-latest" and install == "python -m pip install -e .[dev,triton]" and "import triton" in there
    assert tried == ["python -m pytest tests/test_flash.py", "python -m jupyter execute nbs/engine/flash_triton.ipynb"]
    assert "triton" in read("tests/test_flash.py") and (root/"nbs/engine/flash_triton.ipynb").is_file()


def test_a_release_is_rehearsed_each_week_and_not_published():
    job, flow = workflows["weekly"]["jobs"]["release"], workflows["release"]["jobs"]["build"]
    makes = lambda job: next(step for step in job["steps"] if "make release" in step.get("run", ""))
    assert makes(job) == makes(flow)
    assert "workflow_dispatch" in workflows["weekly"][True]
    assert not re.search("publish|gh release|id-token", str(workflows["weekly"]))


def test_workflows_name_files_that_are_there():
    for name, _, step in steps:
        for word in re.findall(r"[\w./-]+\.(?:py|txt|ini|md|toml)\b", step.get("run", "")):
            assert (root/word).is_file() or word == "notes.md", f"{name}: {word}"


def test_workflows_may_do_no_more_than_they_must():
    for name, flow in workflows.items():
        assert flow["permissions"] == {"contents": "read"}, name
        assert all("timeout-minutes" in job or "environment" in job for job in flow["jobs"].values()), name
    assert not [step for _, _, step in steps if "uses" in step and not re.fullmatch(r"[\w-]+/[\w/-]+@(v\d+|release/v1)", step["uses"])]


# ---- One fact, several places

def test_the_version_is_the_one_of_settings():
    assert settings["version"] == llm_course.__version__ == yaml.safe_load(read("CITATION.cff"))["version"]
    assert re.search(r"^## (\S+?),? ", read("CHANGELOG.md"), re.M)[1] == settings["version"]


def test_the_address_is_the_one_of_settings():
    address = f"https://github.com/{settings['user']}/{settings['repo']}"
    assert project["urls"]["Repository"] == address == yaml.safe_load(read("CITATION.cff"))["repository-code"]
    assert address in read(".github/ISSUE_TEMPLATE/config.yml")


def test_no_module_is_spared_any_kind_of_error():
    "Neither by a setting, nor by a comment; libraries without types are the one exception."
    settings = tomllib.loads(read("pyproject.toml"))["tool"]["mypy"]
    overrides = settings.pop("overrides")
    assert settings == {"files": ["llm_course"], "exclude": ["_modidx"], "python_version": "3.11", "check_untyped_defs": True, "warn_unused_ignores": True,
                        "warn_redundant_casts": True, "enable_error_code": ["ignore-without-code"]}
    for each in overrides:
        assert each.keys() == {"module", "ignore_missing_imports"}
        assert not [module for module in each["module"] if module.startswith("llm_course")]
    assert not [name for name in ("mypy.ini", ".mypy.ini") if (root/name).exists()]   # they would come before pyproject.toml
    spared = re.compile(r"#\s*(?:type:\s*ignore|mypy:)|no_type_check")
    assert not [path.name for path in sorted((root/"llm_course").rglob("*.py")) if spared.search(path.read_text("utf-8"))]


def test_every_tool_of_the_makefile_is_a_tested_version():
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in read("requirements.txt").split()}
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in ("evaluation-referee", "triton")]   # large, and for few tests
    wanted = project["dependencies"] + [line for lines in extras for line in lines]
    named = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", line)[0]).lower() for line in wanted}
    assert named - pinned == {"llm-course"}


TRITON = {"2.13.0": "3.7.1"}   # by version of torch: what its CUDA wheel for Linux asks for


def test_triton_is_the_one_of_torch_s_wheel_for_gpus():
    torch = re.search(r"^torch==(.*)$", read("requirements.txt"), re.M)[1]
    assert project["optional-dependencies"]["triton"] == [f"triton=={TRITON[torch]}; sys_platform == 'linux'"]
    if version("torch") == torch:   # a wheel for GPUs is installed: it says so itself
        assert [re.match(r"triton==([\d.]+)", line)[1] for line in requires("torch") if line.startswith("triton")] in ([], [TRITON[torch]])


@pytest.mark.network
@pytest.mark.parametrize("torch, triton", TRITON.items())
def test_that_wheel_asks_for_it(torch, triton):
    words = [sys.executable, "-m", "uv", "pip", "compile", "-", "--no-header", "--no-annotate", "--python-platform", "x86_64-manylinux_2_28"]
    done = subprocess.run(words, input=f"torch=={torch}\n", capture_output=True, text=True, encoding="utf-8")
    if done.returncode: pytest.skip(f"no package index: {done.stderr[:200]}")
    assert f"triton=={triton}" in done.stdout.splitlines()


def test_the_steps_of_the_overview_are_those_of_the_makefile():
    from llm_course.engine.commands import RECIPE
    recipe = re.search(r"^RECIPE := (.*?)\n\n", read("Makefile"), re.M | re.S)[1].replace("\\\n", " ").split()
    assert " ".join(RECIPE.split()) == " ".join(recipe).partition(" --val_interval")[0]
