"""`linear` is torch's, in every type and shape; `Linear` keeps sizes and loads by torch's names."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.linear import Linear, linear, truncated_normal

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_bias_is_added_before_rounding():
    w, x = torch.tensor([[1., 2**-12]]).half(), torch.ones(1, 2).half()
    assert linear(x, w, torch.tensor([-1.]).half()).item() == 2**-12   # 1 + 2^-12 is not a float16 number


def test_truncated_normal_has_the_spread_asked_for():
    w = truncated_normal(1000, 1000, std=0.3)
    assert abs(w.std().item() / 0.3 - 1) < 0.004 and abs(w.mean().item()) < 0.002
    assert 2.9*0.3 < w.abs().max().item() <= 3*0.3 / 0.986578 * 1.0001


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_truncated_normal_has_tails_in_every_type(dtype):
    w = truncated_normal(200_000, std=1., dtype=dtype)
    assert w.dtype == dtype and w.isfinite().all()
    assert abs((w.abs() > 2).double().mean().item() - 0.0426) < 0.004   # what a normal of spread 1.0136 cut at three has there
    assert w[:1000].unique().numel() > 300


@pytest.mark.parametrize("bias", [False, True])
def test_loads_what_torch_saves_and_the_other_way_round(bias):
    ours, theirs = Linear(7, 5, bias=bias), nn.Linear(7, 5, bias=bias)
    x = torch.randn(2, 3, 7)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(x), theirs(x))
    theirs.load_state_dict(Linear(7, 5, bias=bias).state_dict())
    assert [*ours.state_dict()] == ["weight", "bias"][:1 + bias]


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_dtype_and_device_are_kept(dtype, device):
    layer = Linear(3, 2, bias=True, device=device, dtype=dtype)
    assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(dtype, device)}
    assert layer.to(torch.float32)(torch.randn(4, 3)).dtype == torch.float32


def test_same_seed_same_weights():
    torch.manual_seed(1); first = Linear(5, 4).weight
    torch.manual_seed(1); second = Linear(5, 4).weight
    assert torch.equal(first, second) and not torch.equal(first, Linear(5, 4).weight)


@pytest.mark.parametrize("d_in, d_out", [(0, 3), (3, 0), (-1, 2)])
def test_refuses_a_layer_without_features(d_in, d_out):
    with pytest.raises(ValueError, match=f"has {d_in} in and {d_out} out"): Linear(d_in, d_out)
