"""The grader refuses what is wrong, says why, and is not misled by what is right but written otherwise."""
import sys

import planted
import pytest
import torch
from test_checks import FAULTY
from torch import nn

from llm_course import grading
from llm_course.checks import CHECKS
from llm_course.grading import (
    ALIASES,
    MISTAKES,
    QUESTIONS,
    SYMPTOMS,
    answers,
    check,
    compare,
    describe,
    grade,
    judge,
    reference,
    same,
    symptom,
    untouched,
    within,
)

components = pytest.mark.parametrize("component", CHECKS)
mistakes = pytest.mark.parametrize("component, hint", [(c, hint) for c, found in MISTAKES.items() for hint in found])


@components
def test_each_component_has_questions_and_mistakes(component):
    assert component in QUESTIONS and len(MISTAKES[component]) >= (8 if component not in ("perplexity", "bits_per_byte") else 4)


def test_no_table_names_what_is_no_component():
    assert {*QUESTIONS, *MISTAKES, *SYMPTOMS, *(name for name, _ in ALIASES.values())} <= CHECKS.keys()


@components
def test_our_own_part_passes_and_has_no_symptom(component):
    verdict = judge(reference(component), component)
    assert not verdict.claim, verdict
    assert len(verdict.passed) == len(CHECKS[component]) and symptom(reference(component), component) == ""


@mistakes
def test_each_mistake_is_refused_and_told_from_all_others(component, hint):
    verdict = judge(MISTAKES[component][hint], component)
    assert verdict.claim and verdict.hint == hint


@pytest.mark.parametrize("component", FAULTY)
def test_faulty_parts_written_elsewhere_are_refused(component):
    for part in FAULTY[component]: assert judge(part, component).claim, part.__name__


def test_nine_in_ten_of_them_get_a_hint():
    verdicts = [judge(part, component) for component, parts in FAULTY.items() for part in parts]
    assert sum(bool(verdict.hint) or verdict.claim.startswith("It leaves") for verdict in verdicts) >= .9 * len(verdicts)


def test_parts_written_without_sight_of_the_grader_are_refused_and_four_in_five_get_a_hint():
    verdicts = [judge(part, component) for component, parts in planted.FAULTY.items() for part, _ in parts]
    assert all(verdict.claim for verdict in verdicts)
    assert sum(bool(verdict.hint) for verdict in verdicts) >= .8 * len(verdicts)   # nine in ten is the aim


def test_a_hint_never_holds_code():
    for component, found in MISTAKES.items():
        for hint in [*found, *SYMPTOMS.get(component, {})]: assert "torch." not in hint and "(x)" not in hint.replace("σ(x)", "") and "self." not in hint, hint


# ---- Right, but written otherwise

class OtherNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d_model)), eps
    def forward(self, x):
        wide = x.double() if x.dtype == torch.float64 else x.float()
        return (torch.rsqrt(torch.einsum("...d,...d->...", wide, wide)[..., None] / x.shape[-1] + self.eps) * wide * self.weight).to(x.dtype)


class OtherAdamW(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, t=0))
    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            g["t"] += 1
            (b1, b2), t = g["betas"], g["t"]
            for p in (p for p in g["params"] if p.grad is not None):
                m, v = self.state[p].setdefault("mv", [torch.zeros_like(p), torch.zeros_like(p)])
                m += (1 - b1) * (p.grad - m)
                v += (1 - b2) * (p.grad.square() - v)
                p.copy_(p - g["lr"] * (g["weight_decay"] * p + (m / (1 - b1**t)) / (g["eps"] + (v / (1 - b2**t)).sqrt())))


def other_attention(q, k, v, mask=None):
    bias = torch.zeros(q.shape[-2], k.shape[-2]) if mask is None else torch.zeros(mask.shape).masked_fill(mask.logical_not(), -torch.inf)
    kind = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("...td,...sd->...ts", q.to(kind), k.to(kind)) / q.shape[-1]**.5 + bias.to(kind)
    top = scores.detach().amax(-1, keepdim=True)
    powers = torch.exp(scores - torch.where(top == -torch.inf, 0, top))
    return (torch.einsum("...ts,...sd->...td", powers, v.to(kind)) / powers.sum(-1, keepdim=True).clamp(min=1e-30)).to(v.dtype)


def other_merge(ids, pair, new):
    out = []
    for id in ids:
        if out and id == pair[1] and out[-1] == (pair[0], "old"): out[-1] = (new, "new")
        else: out.append((id, "old"))
    return [id for id, _ in out]


right = {
    "RmsNorm": OtherNorm, "AdamW": OtherAdamW, "attention": other_attention, "merge": other_merge,
    "softmax": lambda x, dim=-1: torch.softmax(x, dim),
    "rms_norm": lambda x, gain, eps=1e-5: nn.functional.rms_norm(x.float() if x.dtype != torch.float64 else x, (x.shape[-1],), gain.to(torch.promote_types(x.dtype, torch.float32)), eps).to(x.dtype),
    "silu": nn.functional.silu, "linear": nn.functional.linear, "embedding": lambda ids, weight: nn.functional.embedding(ids, weight),
    "swiglu": lambda x, w1, w2, w3: nn.functional.silu(x @ w1.T) * (x @ w3.T) @ w2.T,
    "cross_entropy": lambda z, y: nn.functional.cross_entropy(z.flatten(0, -2).float() if z.dtype != torch.float64 else z.flatten(0, -2), y.flatten()),
    "perplexity": lambda nats: 2.718281828459045**nats if nats < 700 else float("inf"),
    "gradient_clip": lambda params, max_norm: nn.utils.clip_grad_norm_(params, max_norm),
}

@pytest.mark.parametrize("name", right)
def test_a_right_part_passes_however_it_is_written(name):
    verdict = grade(name, right[name])
    assert not verdict.claim, verdict


# ---- Whatever a part does

class Exits(nn.Module):
    def forward(self, *inputs): sys.exit(3)

class Loops(nn.Module):
    def forward(self, *inputs):
        while True: pass

class Breaks(nn.Module):
    def forward(self, *inputs): raise KeyError("no such thing")

class Silent(nn.Module):
    def forward(self, *inputs): return None

class NoModule:
    def __init__(self, *sizes): pass

@pytest.mark.parametrize("part, said", [(Exits, "SystemExit"), (Loops, "not come to an end"), (Breaks, "no such thing"), (Silent, "cannot be used"), (NoModule, "not callable"), (None, "can be called"), (3, "this is a int")], ids=str)
def test_nothing_that_a_part_does_ends_the_program(part, said):
    verdict = judge(part, "SiLu", patience=.5)
    assert verdict.claim and said in verdict.why + verdict.claim, verdict


def test_a_raised_error_is_shown_with_its_line():
    assert 'raise KeyError("no such thing")' in judge(Breaks, "SiLu").why


def test_manners():
    state = torch.random.get_rng_state()
    for name, part, said in [("softmax", lambda x, dim=-1: x.sub_(x.amax(dim, keepdim=True)).softmax(dim), "argument 0"),
                             ("softmax", lambda x, dim=-1: (torch.manual_seed(3), x.softmax(dim))[1], "random numbers"),
                             ("softmax", lambda x, dim=-1: (torch.rand(1), x.softmax(dim))[1], "random numbers"),
                             ("softmax", lambda x, dim=-1: (torch.set_default_dtype(torch.float64), x.softmax(dim))[1], "for everybody else"),
                             ("merge", lambda ids, pair, new: (ids.append(1), ids)[1], "argument 0")]:
        verdict = grade(name, part)
        assert verdict.claim.startswith("It leaves") and said in verdict.why
    assert torch.equal(state, torch.random.get_rng_state()) and torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_what_is_unknown_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no component RMSNorm; did you mean RmsNorm"): check(RMSNorm=OtherNorm)
    with pytest.raises(ValueError, match="there are "): check(xyzzy=OtherNorm)


def test_a_report_is_text_and_a_table():
    report = check(RmsNorm=OtherNorm, silu=torch.relu)
    assert not report.passed and check(RmsNorm=OtherNorm).passed
    assert "  ✓    " in repr(report) and "  hint this is ReLU" in repr(report)
    assert report._repr_html_().count("<tr>") == 2 + sum(len(v.lines) for v in report) and "<td>✗</td>" in report._repr_html_()
    assert "&lt;" in grading.Report([grading.Verdict("x", (), "a < b", "", "")])._repr_html_()


# ---- The tools

def test_describe_sees_what_can_be_seen():
    truth = [torch.tensor([[1., 2.], [3., 4.]])]
    for wrong, said in (2 * truth[0], "2 times"), (truth[0].T, "changed places"), (truth[0].half(), "came in torch.float16"), (truth[0][0], "came as (2,)"), (truth[0] * torch.nan, "not finite"), (truth[0] + 1, ""):
        assert said in describe([wrong], truth) and bool(said) == bool(describe([wrong], truth))
    assert describe(["ValueError"], truth) == "" == describe(truth, truth)


def test_answers_leave_chance_alone_and_are_the_same_each_time():
    state = torch.random.get_rng_state()
    first, again = (answers(reference("Linear"), "Linear") for _ in range(2))
    assert all(map(same, first, again)) and torch.equal(state, torch.random.get_rng_state())


def test_compare_finds_nothing_in_what_is_right(): assert compare(*[answers(reference("AdamW"), "AdamW")] * 2, "AdamW") == ("", False)


def test_within_puts_the_alarm_back_and_lets_other_threads_wait():
    import signal
    import threading
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(grading.TooLong), within(.05):
        while True: pass
    assert signal.getsignal(signal.SIGALRM) is before
    done = []
    def work():
        with within(.01): done.append(sum(range(10**6)))
    (thread := threading.Thread(target=work)).start()
    thread.join()
    assert done


def test_untouched_sees_lists_arrays_and_nan():
    import numpy as np
    x = torch.tensor([torch.nan, 1.])
    with untouched(x, [1, [2]], np.ones(2), "text", nn.Linear(2, 2)): pass
    for thing, change in ([1, [2]], lambda t: t[1].append(3)), (np.ones(2), lambda t: t.fill(2)), ({"a": 1}, lambda t: t.clear()):
        with pytest.raises(grading.Rude), untouched(thing): change(thing)
