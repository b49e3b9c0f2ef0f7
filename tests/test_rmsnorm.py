"""`rms_norm` is torch's, sees only direction, and neither overflows nor widens half precision."""
import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.rmsnorm import RmsNorm, rms_norm

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_only_direction_counts():
    x, ones = torch.randn(5, 8), torch.ones(8)
    for power in 2.**-20, 0.5, 2.**20: assert torch.equal(rms_norm(power*x, ones, eps=0.), rms_norm(x, ones, eps=0.))
    assert torch.equal(rms_norm(-x, ones), -rms_norm(x, ones))


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


def test_float32_gain_with_half_precision_vectors_rounds_once():
    x, gain = torch.randn(50, 8).bfloat16(), torch.randn(8)
    y = rms_norm(x, gain)
    assert y.dtype == torch.bfloat16
    assert_close(y, F.rms_norm(x.double(), (8,), gain.double(), eps=1e-5).bfloat16(), rtol=2**-8, atol=0)


def test_refuses_ids():
    with pytest.raises(TypeError, match=r"takes floating-point vectors, not torch\.int64; embed token ids first"):
        inspect.unwrap(rms_norm)(torch.tensor([3, 4]), torch.ones(2))   # beneath the hook that enforces shapes here


def test_loads_what_torch_saves_and_the_other_way_round():
    ours, theirs = RmsNorm(8), nn.RMSNorm(8, eps=1e-5)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8)
    assert_close(ours(x), theirs(x))
    assert [*ours.state_dict()] == ["weight"] and torch.equal(RmsNorm(8).weight, torch.ones(8))


def test_eps_is_used_and_shown():
    assert RmsNorm(2, eps=12.5)(torch.tensor([3., 4.]))[0].item() == pytest.approx(3/5)
    assert repr(RmsNorm(8, eps=1e-6)) == "RmsNorm(8, eps=1e-06)"
