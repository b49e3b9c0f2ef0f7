"""Every check of the course passes on our own part, refuses at least one faulty version, and leaves the world as it was."""
import importlib
import pkgutil
from functools import partial

import faulty
import planted
import pytest
import torch
from conftest import stable_id

import llm_course
from llm_course.attention import attention
from llm_course.checks import CHECKS, Check, check_of, exercise, verify
from llm_course.engine.attention_kernel import fused_attention
from llm_course.grading.grading import MISTAKES, reference
from llm_course.multihead import MultiHeadAttention

modules = [importlib.import_module(module.name) for module in pkgutil.walk_packages(llm_course.__path__, "llm_course.")
           if not module.name.rpartition(".")[2].startswith("_")]
FAULTY = {}   # component → its faulty versions
for module in pkgutil.iter_modules(faulty.__path__): FAULTY |= importlib.import_module(f"faulty.{module.name}").FAULTY

every = pytest.mark.parametrize("check", [check for checks in CHECKS.values() for check in checks.values()], ids=lambda c: f"{c.component}-{c.name}")


def ours(component):
    "The part that bears this name in the package."
    return reference(component)


def refused(check, part):
    try: check(part)
    except AssertionError as error: return str(error)
    except Exception as error: return f"{type(error).__name__}: {error}"   # the grader reports that, too


SPELLINGS = {   # further versions of our own, which owe the same
    "ScaledDotProductAttention": [lambda: fused_attention],
    "MultiHeadAttention": [partial(MultiHeadAttention, attend=attention)],
}


@every
def test_our_part_passes_and_the_random_numbers_go_on(check, device):
    before = torch.random.get_rng_state()
    for part in ours(check.component), *SPELLINGS.get(check.component, []):
        with torch.device(device): check(part)
    assert torch.equal(torch.random.get_rng_state(), before)


@every
def test_a_faulty_version_is_refused(check):
    parts = [*FAULTY.get(check.component, []), *(part for part, *_ in planted.FAULTY.get(check.component, []))] or MISTAKES[check.component].values()
    assert any(refused(check, part) for part in parts), "this check passes on everything: guard something, or go"


@pytest.mark.parametrize("component, part", [(name, part) for name, parts in FAULTY.items() for part in parts], ids=lambda x: getattr(x, "__name__", x))
def test_a_mistake_is_found_and_explained(component, part):
    said = [why for check in CHECKS[component].values() if (why := refused(check, part))]
    assert said, "no check notices this mistake"
    assert all(len(why) > 20 for why in said), said


def test_a_claim_is_a_sentence_and_a_check_is_known_by_its_name():
    for component, checks in CHECKS.items():
        for name, check in checks.items():
            assert check.claim and check.claim[0].isupper() and check.claim.endswith("."), f"{component}, {name}: {check.claim!r}"
            assert (check.component, check.name) == (component, name)


def test_verify_says_what_it_has_shown_and_stops_at_what_is_false(monkeypatch, capsys):
    monkeypatch.setitem(CHECKS, "double", {})
    @check_of("double")
    def doubles(part):
        "Two of three are six."
        assert part(3) == 6, f"fed 3, wanted 6, got {part(3)}"
    assert isinstance(CHECKS["double"]["doubles"], Check)
    verify(lambda x: 2 * x, "double")
    assert capsys.readouterr().out == "✓ Two of three are six.\n"
    with pytest.raises(AssertionError, match="fed 3, wanted 6, got 9"): verify(lambda x: x * x, "double")


def unwritten(*inputs): raise NotImplementedError
def begun(x):
    if x > 0: raise NotImplementedError
@torch.no_grad()
def wrapped(x): raise NotImplementedError
class Unwritten:
    "One method of two is there."
    def size(self): return 2
    def forward(self, x): raise NotImplementedError


@pytest.mark.parametrize("answers, said", [*(((*before, stub), "not written yet\n") for stub in (..., unwritten, begun, wrapped, Unwritten) for before in ((), (1,))),
                                           ((lambda: 2,), "✓ is two\n"), ((2,), "✓ is two\n"), ((torch.tensor(2), 0), "✓ is two\n")], ids=stable_id)
def test_an_exercise_waits_for_its_answers(answers, said, capsys):
    def is_two(answer, rest=None): assert (answer() if callable(answer) else answer) == 2
    assert exercise(*answers)(is_two) is is_two and capsys.readouterr().out == said


def test_a_stub_is_not_tried(capsys):
    "So what else the exercise needs may be missing, too."
    @exercise(unwritten)
    def needs_more(answer): assert answer(made_by_another_part) == 2   # noqa: F821
    assert capsys.readouterr().out == "not written yet\n"


def test_an_exercise_refuses_what_is_wrong_and_hides_no_other_gap():
    with pytest.raises(AssertionError):
        @exercise(3)
        def is_two(answer): assert answer == 2
    with pytest.raises(NotImplementedError, match="for half"):
        @exercise(3)
        def needs_a_kernel(answer): raise NotImplementedError("no kernel for half precision")
