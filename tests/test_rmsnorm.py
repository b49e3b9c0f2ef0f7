"""`rms_norm` is torch's, sees only direction, and neither overflows nor widens half precision."""
import copy
import inspect
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.rmsnorm import RmsNorm, rms_norm

dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", dtypes, ids=str)
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 3, 7), (2, 1, 129)], ids=str)
def test_agrees_with_torch(shape, dtype, device):
    x, gain = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape[-1], device=device, dtype=dtype)
    y = rms_norm(x, gain)
    assert y.dtype == dtype and y.shape == shape
    assert_close(y, F.rms_norm(x, shape[-1:], gain, eps=1e-5))


@pytest.mark.parametrize("dtype", dtypes[1:], ids=str)
def test_error_is_at_most_twice_that_of_torch(dtype, device):
    x, gain = torch.randn(500, 96, device=device, dtype=dtype), torch.randn(96, device=device, dtype=dtype)
    exact = F.rms_norm(x.double(), (96,), gain.double(), eps=1e-5)
    ours, theirs = ((y.double() - exact).abs().max() for y in (rms_norm(x, gain), F.rms_norm(x, (96,), gain, eps=1e-5)))
    assert ours <= 2*theirs


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 9))
def test_any_shape(leading, d_model):
    x, gain = torch.randn(*leading, d_model, dtype=torch.float64), torch.randn(d_model, dtype=torch.float64)
    assert_close(rms_norm(x, gain), F.rms_norm(x, (d_model,), gain, eps=1e-5))


def test_by_hand():
    assert_close(rms_norm(torch.tensor([3., 4.]), torch.ones(2), eps=0.), torch.tensor([3., 4.]) / 12.5**0.5)
    assert_close(rms_norm(torch.tensor([3., 4.]), torch.tensor([2., 0.]), eps=12.5), torch.tensor([6/5, 0.]))   # √(12.5 + 12.5) = 5


def test_only_direction_counts():
    x, ones = torch.randn(5, 8), torch.ones(8)
    for power in 2.**-20, 0.5, 2.**20: assert torch.equal(rms_norm(power*x, ones, eps=0.), rms_norm(x, ones, eps=0.))
    assert torch.equal(rms_norm(-x, ones), -rms_norm(x, ones))


@pytest.mark.parametrize("size", [300., 6e4], ids=str)
def test_float16_does_not_overflow(size, device):
    x = torch.full((2, 8), size, dtype=torch.float16, device=device)   # their squares are past float16's largest number
    assert_close(RmsNorm(8, device=device, dtype=torch.float16)(x), torch.ones_like(x))


def test_zero_stays_zero_with_a_finite_gradient():
    dtype = torch.float64
    x = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    y = rms_norm(x, torch.ones(4, dtype=dtype), eps=1e-4)
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert_close(x.grad, torch.full_like(x, 100.))   # 1/√ε


def test_gradient_is_exact():
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rms_norm, (x, gain))
    assert torch.autograd.gradgradcheck(rms_norm, (x, gain))


def test_non_contiguous_input(device):
    x, gain = torch.randn(8, 3, device=device).mT, torch.randn(8, device=device)
    assert_close(rms_norm(x, gain), F.rms_norm(x.contiguous(), (8,), gain, eps=1e-5))


def test_float32_gain_with_half_precision_vectors_rounds_once(device):
    x, gain = torch.randn(50, 8, device=device).bfloat16(), torch.randn(8, device=device)
    y = rms_norm(x, gain)
    assert y.dtype == torch.bfloat16
    assert_close(y, F.rms_norm(x.double(), (8,), gain.double(), eps=1e-5).bfloat16(), rtol=2**-8, atol=0)


def test_refuses_ids():
    with pytest.raises(TypeError, match=r"takes floating-point vectors, not torch\.int64; embed token ids first"):
        inspect.unwrap(rms_norm)(torch.tensor([3, 4]), torch.ones(2))   # beneath the hook that enforces shapes here


def test_loads_what_torch_saves_and_the_other_way_round(device):
    ours, theirs = RmsNorm(8, device=device), nn.RMSNorm(8, eps=1e-5, device=device)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, device=device)
    assert_close(ours(x), theirs(x))
    assert [*ours.state_dict()] == ["weight"] and torch.equal(RmsNorm(8).weight, torch.ones(8))


def test_eps_is_used_and_shown():
    assert RmsNorm(2, eps=12.5)(torch.tensor([3., 4.]))[0].item() == pytest.approx(3/5)
    assert repr(RmsNorm(8, eps=1e-6)) == "RmsNorm(8, eps=1e-06)"


def test_meta_copy_and_pickle():
    assert RmsNorm(8, device="meta")(torch.empty(4, 8, device="meta")).shape == (4, 8)
    layer, x = RmsNorm(8), torch.randn(4, 8)
    nn.init.normal_(layer.weight)
    for twin in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert torch.equal(twin(x), layer(x)) and twin.weight is not layer.weight
