"""`llm_course.loss`: exact, finite, and no hungrier than the built-in."""
import math
import os
from functools import partial

import pytest
import torch
from apart import apart
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.checks import CHECKS
from llm_course.loss import CrossEntropyLoss, bits_per_byte, cross_entropy, perplexity


def reference(logits, targets, **kwargs): return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 5), (2, 1, 3)], ids=str)
def test_loss_and_gradient_agree_with_torch(shape, dtype, device):
    logits = (3 * torch.randn(*shape, 11, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(11, shape, device=device)
    ours, theirs = CrossEntropyLoss()(logits, targets), reference(logits, targets)
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(2 * loss, logits)[0] for loss in (ours, theirs)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 100), st.data())
def test_any_small_case_agrees_with_torch(rows, vocab, scale, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = (scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor(data.draw(st.lists(st.sampled_from([-100, *range(vocab)]), min_size=rows, max_size=rows)))
    assert_close(cross_entropy(logits, targets), reference(logits, targets), equal_nan=True)
    if (targets >= 0).any():
        assert_close(*(torch.autograd.grad(f(logits, targets), logits)[0] for f in (cross_entropy, reference)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_errors_are_at_most_twice_those_of_torch(dtype, device):
    logits, targets = (4 * torch.randn(200, 1000, device=device)).to(dtype).requires_grad_(), torch.randint(1000, (200,), device=device)
    rows = lambda x: torch.stack([cross_entropy(row, target) for row, target in zip(x[:, None], targets[:, None])])
    truth, ours, theirs = (f(x) for f, x in ((partial(F.cross_entropy, target=targets, reduction="none"), logits.double()), (rows, logits),
                                             (partial(F.cross_entropy, target=targets, reduction="none"), logits)))
    for a, b, t in (ours, theirs, truth), *zip(*(torch.autograd.grad(y.sum(), logits, retain_graph=True) for y in (ours, theirs, truth))):
        assert (a.double() - t).abs().max() <= 2 * (b.double() - t).abs().max()


def test_second_derivative_is_refused_rather_than_wrong():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="cross_entropy has no second derivative"): torch.autograd.grad(loss, logits, create_graph=True)


def test_the_formula_has_a_second_derivative():
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: cross_entropy(x, torch.tensor([0, 2]), fused=False), logits)


@pytest.mark.parametrize("check", CHECKS["CrossEntropyLoss"].values(), ids=lambda check: check.name)
def test_the_formula_passes_our_checks(check):
    check(lambda: partial(cross_entropy, fused=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_both_ways_agree(dtype, ignore_index, device):
    if device == "mps" and dtype == torch.float64: pytest.skip("no float64 there")
    logits = (5 * torch.randn(3, 40, 700, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(4, (3, 40), device=device)
    targets[0, :9] = ignore_index
    fused, formula = (cross_entropy(logits, targets, ignore_index, fused=fused) for fused in (True, False))
    assert fused.dtype == formula.dtype
    assert_close(fused, formula)
    assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (fused, formula)))


def test_a_graph_can_be_walked_twice():
    logits = torch.randn(4, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.arange(4))
    first, = torch.autograd.grad(loss, logits, retain_graph=True)
    assert_close(torch.autograd.grad(loss, logits)[0], first, rtol=0, atol=0)


def test_a_confident_model_is_priced_to_the_last_digit():
    logits = torch.tensor([[10_000., 9_990.]])   # adding the peak before subtracting the target would round this to a multiple of 1/1024
    assert_close(cross_entropy(logits, torch.tensor([0])).item(), math.log1p(math.exp(-10)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_wide(dtype, device):
    logits = torch.randn(64, 1000, device=device).to(dtype).requires_grad_()
    targets = torch.randint(1000, (64,), device=device)
    loss, wide = cross_entropy(logits, targets), logits.detach().float().requires_grad_()
    assert loss.dtype == torch.float32
    assert_close(loss, reference(wide, targets))
    (1024 * loss).backward()      # as a loss scale would
    (1024 * reference(wide, targets)).backward()
    assert logits.grad.dtype == dtype
    assert_close(logits.grad, wide.grad.to(dtype))


def test_minus_infinity_bars_a_token():
    logits = torch.tensor([[0., -math.inf, 0.]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([2]))
    assert_close(loss.item(), math.log(2))
    loss.backward()
    assert_close(logits.grad, torch.tensor([[0.5, 0., -0.5]]))


@pytest.mark.parametrize("ignored", [-100, 0, 3, -1])
def test_ignored_targets_leave_loss_and_gradient_alone(ignored):
    logits, targets = torch.randn(6, 4, requires_grad=True), torch.tensor([1, 2, 1, 2, 1, 2])
    targets[::3] = ignored
    ours, theirs = CrossEntropyLoss(ignored)(logits, targets), reference(logits, targets, ignore_index=ignored)
    assert_close(ours, theirs)
    ours.backward()
    assert_close(logits.grad, torch.autograd.grad(theirs, logits)[0])
    assert logits.grad[::3].eq(0).all()


def test_nothing_that_counts_is_nan_as_in_torch():
    logits = torch.randn(3, 4, requires_grad=True)
    assert cross_entropy(logits, torch.full((3,), -100)).isnan()
    assert cross_entropy(torch.empty(0, 4), torch.empty(0, dtype=torch.long)).isnan()


def test_non_contiguous_logits_and_narrow_ids():
    logits, targets = torch.randn(5, 3, 2).permute(2, 1, 0), torch.randint(5, (3, 2)).T
    assert not logits.is_contiguous()
    assert_close(cross_entropy(logits, targets.to(torch.int32)), reference(logits, targets))


@pytest.mark.parametrize("bad", [4, -1, -101, 1000])
def test_targets_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(ValueError, match=rf"targets must lie in 0\.\.3, but one is {bad}; does the tokenizer fit the model\?"):
        cross_entropy(torch.zeros(2, 4), torch.tensor([1, bad]))


def test_without_ignore_index_even_minus_100_is_refused():
    with pytest.raises(ValueError, match="one is -100"): cross_entropy(torch.zeros(1, 4), torch.tensor([-100]), ignore_index=None)
    assert_close(cross_entropy(torch.zeros(1, 4), torch.tensor([3]), ignore_index=None).item(), math.log(4))


def run(code):
    "Python without the shape checks that pytest turns on; they would answer first."
    done = apart(["-c", code], os.environ | {"JAXTYPING_DISABLE": "1"})
    return done.returncode, done.stdout, done.stderr


def test_what_cannot_be_targets_is_refused():
    code, out, err = run("""
import torch; from llm_course.loss import cross_entropy
for targets in torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 5), torch.zeros(2, 5).bool():
    try: cross_entropy(torch.zeros(2, 5, 3), targets)
    except (ValueError, TypeError) as error: print(type(error).__name__, error)
""")
    assert code == 0, err
    assert out.splitlines() == [
        "ValueError each row of logits needs one target, but (2, 5) rows met (2, 4) targets",
        "TypeError targets must be token ids, so integers, but are torch.float32",
        "TypeError targets must be token ids, so integers, but are torch.bool"]


def peak_memory(loss, logits, targets):
    "Most bytes allocated at once, forward and backward, as torch's own allocator tells it."
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(loss(logits, targets), logits)
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_peak_memory_is_no_more_than_the_built_in():
    logits, targets = torch.randn(128, 1000, requires_grad=True), torch.randint(1000, (128,))
    assert peak_memory(lambda x, t: (x.exp().sum(-1).log() - x[:, 0]).sum(), logits, targets) > 0   # the ruler measures something
    assert peak_memory(cross_entropy, logits, targets) <= peak_memory(reference, logits, targets)


def test_compiles_to_one_graph():
    code, out, err = run("""
import torch; from llm_course.loss import cross_entropy
logits, targets = torch.randn(4, 7, requires_grad=True), torch.tensor([0, 6, -100, 3])
compiled = torch.compile(cross_entropy, fullgraph=True, backend="aot_eager")
for f in compiled, cross_entropy: print(f"{f(logits, targets).item():.5f}", *(f"{g:.5f}" for g in torch.autograd.grad(f(logits, targets), logits)[0].flatten()))
""")
    assert code == 0, err
    compiled, eager = out.splitlines()
    assert compiled == eager


def test_a_loss_past_all_numbers_has_an_infinite_perplexity():
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_bits_per_byte_need_tokens_and_bytes():
    for tokens, size in ((0, 5), (5, 0), (-1, 5)):
        with pytest.raises(ValueError, match=f"tokens and bytes must be positive, but there are {tokens} tokens and {size} bytes"):
            bits_per_byte(1., tokens, size)
