"""What a lesson takes from the engine room because it is faster stands on its page beside the plain version, in a cell that checks that both agree."""
import ast
import re

import book
import pytest

# For each page of the engine room that makes something faster: the functions, and what stands for the plain version in the cell that compares the two.
FASTER = {
    "fast_bpe": {"find_pieces": "findall", "gpt2_pre_tokens": "findall", "merge_by_rank": "join_by_rank"},
    "incremental_bpe": {"learn_incrementally": "incremental=False"},
    "encode_files": {"encode_spans": "plain"},
    "backward_passes": {"fused_rms_norm": "rms_norm", "fused_gate": "silu"},
    "attention_kernel": {"fused_attention": "attention"},
    "flash": {"flash_attention": "attention"},
    "rope_tables": {"rotate_complex": "rotate"},
    "kv_cache": {"new_cache": r"(?:shared\(x|say\()"},
    "kernels": {"fused_surprise": "surprise", "step_by_kernel": "adamw_update"},
    "processes": {"fast_forward": "model"},
    "reader": {"Reader": r"model\(ids\)"},
    "sampling": {"quick_probabilities": "keep_top_p", "draw": "expected"},
    "speculation": {"speculate": "generate"},
    "scoring": {"Scorer": "log_likelihoods"}}
# What lessons also take from these pages, and what is none of it faster than something plain: what prepares a call, refuses, or says whether the faster one serves.
HELPERS = {
    "fast_bpe": {"EVERY_KIND", "CacheDict", "look_up_pieces", "special_pattern"}, "encode_files": {"whole_file_span"},
    "backward_passes": {"can_use_fused_backward", "in_func_transform"},
    "rope_tables": {"RopeScaling", "SharedTable"}, "kv_cache": {"KVCache"}, "kernels": {"gathered", "local_share", "gather_tensor"}, "reader": {"pad_with_own", "side_by_side"},
    "sampling": {"BROKEN", "check_dials", "refuse_broken", "seeded_generator", "waiting_is_free"}, "scoring": {"pick_logprobs"}}
BOOKKEEPING = {"processes"}   # pages that have one such function among many others

lessons = [path for path in book.pages() if book.room(path) == "lesson"]


def sources(cells): return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def imported(cells):
    "What a page imports from the engine room: the page there, and the name."
    for source in sources(cells):
        plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines() if "%pip" not in line)
        if "llm_course.engine." not in plain: continue
        for node in ast.walk(ast.parse(plain)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llm_course.engine."):
                for alias in node.names: yield node.module.removeprefix("llm_course.engine."), alias.name


def unchecked(cells):
    "The faster functions that a page uses, and compares with nothing in a cell that a reader sees."
    shown = [source for source in sources(cells) if not re.search(r"^#\| *(?:export\w*|hide|code-fold: true)\b", source, re.M)]
    for page, name in sorted({*imported(cells)}):
        if plain := FASTER.get(page, {}).get(name):
            both = [source for source in shown if re.search(rf"\b{name}\b", source) and re.search(rf"\b(?:{plain})(?!\w)", source) and "assert" in source]
            if not both: yield name


@pytest.mark.parametrize("path", lessons, ids=lambda path: path.stem)
def test_what_is_faster_is_compared_with_what_is_plain(path): assert not [*unchecked(book.cells(path))]


@pytest.mark.parametrize("path", lessons, ids=lambda path: path.stem)
def test_what_comes_from_a_page_about_speed_is_known(path):
    "A name that is new here is either faster than something plain, and then compared with it, or a helper."
    strange = [(page, name) for page, name in imported(book.cells(path)) if page in FASTER.keys() - BOOKKEEPING and name not in FASTER[page] and name not in HELPERS.get(page, ())]
    assert not strange


def test_all_of_the_list_is_in_use():
    used = {pair for path in lessons for pair in imported(book.cells(path))}
    assert not {(page, name) for page, names in FASTER.items() for name in names} - used
    assert not {(page, name) for page, names in HELPERS.items() for name in names} - used


IMPORT = "#| export\nfrom llm_course.engine.rope_tables import rotate_complex"

@pytest.mark.parametrize("checks", [
    [], ["assert_close(rotate_complex(x, t), y)"], ["y = rotate_complex(x, t), rotate(x, t)"], ["#| code-fold: true\nassert_close(rotate_complex(x, t), rotate(x, t))"],
    ["#| exports\nassert_close(rotate_complex(x, t), rotate(x, t))"], ["assert_close(RoPE(8)(x), rotate(x, t))"]])
def test_one_that_is_not_compared_is_noticed(checks):
    cells = [{"cell_type": "code", "source": [source]} for source in [IMPORT, *checks]]
    assert [*unchecked(cells)] == ["rotate_complex"]
    cells.append({"cell_type": "code", "source": ["assert_close(rotate_complex(x, t), rotate(x, t))"]})
    assert not [*unchecked(cells)]
