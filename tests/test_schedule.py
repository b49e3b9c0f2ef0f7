"""`llm_course.schedule`: up in a straight line, down half a cosine, and then flat."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_course.schedule import cos_lr_scheduler, linear_lr_scheduler


def test_agrees_with_cs336():
    "The values of the assignment's own test: warm-up 7, cycle 21, rates 0.1 and 1."
    expected = [0, 0.14285714285714285, 0.2857142857142857, 0.42857142857142855, 0.5714285714285714, 0.7142857142857143, 0.8571428571428571,
                1.0, 0.9887175604818206, 0.9554359905560885, 0.9018241671106134, 0.8305704108364301, 0.7452476826029011, 0.6501344202803414,
                0.55, 0.44986557971965857, 0.3547523173970989, 0.26942958916356996, 0.19817583288938662, 0.14456400944391146, 0.11128243951817937,
                0.1, 0.1, 0.1, 0.1]
    assert [cos_lr_scheduler(it, 7, 21, 0.1, 1.0) for it in range(25)] == pytest.approx(expected, rel=1e-12)


def test_agrees_with_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for it in range(51):
        assert cos_lr_scheduler(it, 0, 50, 0.1, 1.) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_the_end_is_exact_and_stays(): assert {cos_lr_scheduler(it, 3, 10, 0.1, 0.7) for it in (10, 11, 10**9)} == {0.1}
def test_warmup_may_fill_the_cycle(): assert [cos_lr_scheduler(it, 4, 4, 0.1, 1.) for it in (0, 3, 4, 5)] == [0, 0.75, 0.1, 0.1]
def test_an_empty_cycle_is_constant(): assert cos_lr_scheduler(0, 0, 0, 0.1, 1.) == 0.1


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(0, 200))
def test_stays_between_its_ends_and_turns_once(warmup, extra, low, span, it):
    def rate(it): return cos_lr_scheduler(it, warmup, warmup + extra, low, low + span)
    now, then = rate(it), rate(it + 1)
    assert isinstance(now, float | int)
    assert 0 <= now <= (low + span) * (1 + 1e-12)
    if it + 1 < warmup: assert then >= now
    if it >= warmup: assert low * (1 - 1e-12) <= then <= now * (1 + 1e-12)


@pytest.mark.parametrize("args, message", [
    ((-1, 4, 12, 0.1, 1.), "it counts steps from 0, but is -1"),
    ((0, 20, 12, 0.1, 1.), "0 <= warmup_iters <= cos_cycle_iters must hold, but they are 20 and 12; shorten the warm-up or lengthen the cycle"),
    ((0, -2, 12, 0.1, 1.), "0 <= warmup_iters <= cos_cycle_iters must hold, but they are -2 and 12"),
    ((0, 4, 12, 1., 0.1), "0 <= lr_min <= lr_max < inf must hold, but they are 1.0 and 0.1"),
    ((0, 4, 12, -1., 0.1), "0 <= lr_min <= lr_max < inf must hold, but they are -1.0 and 0.1"),
    ((0, 4, 12, 0., math.nan), "0 <= lr_min <= lr_max < inf must hold, but they are 0.0 and nan"),
    ((0, 4, 12, 0.1, math.inf), "0 <= lr_min <= lr_max < inf must hold, but they are 0.1 and inf"),
])
def test_what_cannot_be_meant_is_refused(args, message):
    with pytest.raises(ValueError) as error: cos_lr_scheduler(*args)
    assert str(error.value).startswith(message)


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1), st.floats(0, 1), st.integers(0, 200))
def test_the_line_is_torchs_and_differs_from_the_cosine_on_the_way_down_alone(warmup, extra, low, span, it):
    numbers = it, warmup, warmup + extra, low, low + span
    rate = linear_lr_scheduler(*numbers)
    if warmup <= it < warmup + extra: assert math.isclose(rate, low + span * (1 - (it - warmup) / extra), abs_tol=1e-12)
    else: assert rate == cos_lr_scheduler(*numbers)


def test_the_line_agrees_with_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1., 0.1, 50)
    for it in range(60):
        assert linear_lr_scheduler(it, 0, 50, 0.1, 1.) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_the_line_refuses_what_the_cosine_refuses():
    with pytest.raises(ValueError, match="they are 20 and 12; shorten the warm-up"): linear_lr_scheduler(0, 20, 12, 0.1, 1.)
    with pytest.raises(ValueError, match="it counts steps from 0, but is -1"): linear_lr_scheduler(-1, 4, 12, 0.1, 1.)
