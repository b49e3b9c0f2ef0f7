"""`silu` is rounded once, `swiglu` multiplies exactly and keeps tokens apart, `FFN` adds up from torch's parts."""
import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.ffn import FFN, SiLu, silu, swiglu

dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def reference(x, w1, w2, w3): return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_silu_agrees_with_torch(dtype, device):
    x = torch.linspace(-50, 50, 10_001, device=device).to(dtype)
    assert silu(x).dtype == dtype
    assert_close(silu(x), F.silu(x))
    assert_close(SiLu()(x), F.silu(x))


@pytest.mark.parametrize("dtype, wrong", [(torch.float16, 10), (torch.bfloat16, 40)], ids=str)
def test_silu_of_every_half_precision_number_is_the_nearest(dtype, wrong, device):
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    y = silu(x.to(device)).cpu()
    assert y.isfinite().all()
    assert (y != silu(x.double()).to(dtype)).sum() <= wrong   # twice rounded, a thousand or more would be


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_silu_is_finite_at_the_extremes(dtype, device):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, 0., 1e4, -1e4], device=device, dtype=dtype).requires_grad_()
    y = silu(x)
    y.sum().backward()
    assert_close(y.detach(), torch.tensor([largest, 0., 0., 1e4, 0.], device=device, dtype=dtype))
    assert_close(x.grad, torch.tensor([1., 0., .5, 1., 0.], device=device).to(dtype))


def test_silu_by_hand():
    z = math.log(3)
    assert_close(silu(torch.tensor([z, -z, 0.])), torch.tensor([z*3/4, -z/4, 0.]))


@pytest.mark.parametrize("dtype", dtypes, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 3, 7), (3, 0, 7), (1, 1, 7)], ids=str)
def test_ffn_agrees_with_torch(shape, dtype, device):
    layer = FFN(7, 19, device=device, dtype=dtype)
    x = torch.randn(shape, device=device, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype and y.shape == shape
    assert_close(y, reference(x, layer.w1.weight, layer.w2.weight, layer.w3.weight))


@pytest.mark.parametrize("dtype", dtypes[1:], ids=str)
def test_error_is_at_most_twice_that_of_torch(dtype, device):
    layer, x = FFN(64, 170, device=device, dtype=dtype), torch.randn(200, 64, device=device, dtype=dtype)
    weights = [layer.w1.weight, layer.w2.weight, layer.w3.weight]
    exact = reference(x.double(), *(w.double() for w in weights))
    ours, theirs = ((y.double() - exact).abs().max() for y in (layer(x), reference(x, *weights)))
    assert ours <= 2*theirs


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 9), st.integers(1, 9))
def test_any_shape(leading, d_model, d_ff):
    x, layer = torch.randn(*leading, d_model, dtype=torch.float64), FFN(d_model, d_ff, dtype=torch.float64)
    assert_close(layer(x), reference(x, layer.w1.weight, layer.w2.weight, layer.w3.weight))


def test_two_gated_features_multiply():
    w1, w3, w2 = torch.tensor([[1., 0.], [-1., 0.]]), torch.tensor([[0., 1.], [0., -1.]]), torch.ones(2, 2)
    x = 10*torch.randn(100, 2)
    assert_close(swiglu(x, w1, w2, w3), (x[:, :1] * x[:, 1:]).expand(-1, 2))


def test_the_gate_is_w1_and_the_value_w3():
    one = torch.ones(1, 1)
    assert_close(swiglu(2*one, one, one, 5*one), 10*silu(2*one))   # silu(2) · 10, and not silu(10) · 2


def test_tokens_do_not_touch(device):
    layer, x = FFN(8, 24, device=device, dtype=torch.float64), torch.randn(2, 5, 8, device=device, dtype=torch.float64)
    other = x.clone()
    other[0, 2] += 100
    changed = (layer(other) != layer(x)).any(-1)
    assert changed.nonzero().tolist() == [[0, 2]]


def test_gradient_is_exact():
    layer = FFN(4, 6, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = [w.detach().requires_grad_() for w in (layer.w1.weight, layer.w2.weight, layer.w3.weight)]
    assert torch.autograd.gradcheck(swiglu, (x, *weights))
    assert torch.autograd.gradcheck(silu, (torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True),))


def test_non_contiguous_input(device):
    layer, x = FFN(8, 24, device=device), torch.randn(8, 5, device=device).mT
    assert_close(layer(x), layer(x.contiguous()))


def test_gradients_repeat_to_the_last_bit(device):
    layer, x = FFN(32, 80, device=device), torch.randn(4, 16, 32, device=device)
    first, second = (torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_parameters():
    layer = FFN(12, 32)
    assert {name: tuple(w.shape) for name, w in layer.state_dict().items()} == {
        "w1.weight": (32, 12), "w2.weight": (12, 32), "w3.weight": (32, 12)}
    assert not [*SiLu().parameters()]


@pytest.mark.parametrize("d_model, d_ff", [(0, 3), (3, 0)])
def test_refuses_an_empty_middle(d_model, d_ff):
    with pytest.raises(ValueError, match="needs features on both sides"): FFN(d_model, d_ff)


def test_meta_copy_and_pickle():
    assert FFN(8, 24, device="meta")(torch.empty(4, 8, device="meta")).shape == (4, 8)
    layer, x = FFN(8, 24), torch.randn(4, 8)
    for twin in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert torch.equal(twin(x), layer(x)) and twin.w1.weight is not layer.w1.weight
