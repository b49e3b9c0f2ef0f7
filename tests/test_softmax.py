"""Contracts of `llm_course.softmax`."""
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specimens import LAYOUTS
from torch.testing import assert_close

from llm_course.softmax import softmax

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_is_finite_for_any_finite_scores(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, largest], [-largest, largest], [-largest, -largest]], dtype=dtype, requires_grad=True)
    out = softmax(x)
    assert_close(out, torch.tensor([[.5, .5], [0, 1], [.5, .5]], dtype=dtype))
    out.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_minus_infinity_is_a_share_of_zero_and_a_row_of_it_all_zeros(dtype):
    inf = torch.inf
    x = torch.tensor([[0., -inf, 0.], [-inf, -inf, -inf], [-inf, 3., -inf]], dtype=dtype, requires_grad=True)
    out = softmax(x)
    assert torch.equal(out, torch.tensor([[.5, 0, .5], [0, 0, 0], [0, 1, 0]], dtype=dtype))
    (out * torch.arange(9).view(3, 3)).sum().backward()
    assert x.grad.isfinite().all() and (x.grad[1] == 0).all()


def test_nan_is_not_hidden():
    assert softmax(torch.tensor([0., torch.nan])).isnan().any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(-4000, 4000), st.sampled_from([*LAYOUTS]), st.data())
def test_shift_and_permutation(shape, shift, layout, data):
    x = LAYOUTS[layout](torch.randint(-80, 80, shape) / 8)   # exact in float32, before and after the shift
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    out = softmax(x, dim)
    assert torch.equal(softmax(x + shift, dim), out)
    if shape[dim]: assert_close(out.sum(dim), torch.ones_like(out.sum(dim)))
    order = torch.randperm(x.shape[dim])
    assert_close(softmax(x.index_select(dim, order), dim), out.index_select(dim, order))


def test_gradient_is_exact():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, x)
    assert torch.autograd.gradgradcheck(softmax, x)


def test_integers_are_refused():
    ours = inspect.unwrap(softmax)   # without the check of types, which would be first to complain
    with pytest.raises(TypeError, match=r"floating-point scores, not torch\.int64"): ours(torch.tensor([1, 2]))
