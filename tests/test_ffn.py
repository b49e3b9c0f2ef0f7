"""`silu` is rounded once, `swiglu` multiplies exactly and keeps tokens apart, `FFN` adds up from torch's parts."""

import pytest
import torch
from torch.testing import assert_close

from llm_course.engine.backward_passes import fused_gate, fused_rms_norm
from llm_course.ffn import FFN, silu, swiglu

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype, wrong", [(torch.float16, 10), (torch.bfloat16, 40)], ids=str)
def test_silu_of_every_half_precision_number_is_the_nearest(dtype, wrong):
    x = torch.arange(-2**15, 2**15).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    y = silu(x)
    assert y.isfinite().all()
    assert (y != silu(x.double()).to(dtype)).sum() <= wrong   # twice rounded, a thousand or more would be


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_silu_is_finite_at_the_extremes(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, 0., 1e4, -1e4], dtype=dtype).requires_grad_()
    y = silu(x)
    y.sum().backward()
    assert_close(y.detach(), torch.tensor([largest, 0., 0., 1e4, 0.], dtype=dtype))
    assert_close(x.grad, torch.tensor([1., 0., .5, 1., 0.]).to(dtype))


def test_two_gated_features_multiply():
    w1, w3, w2 = torch.tensor([[1., 0.], [-1., 0.]]), torch.tensor([[0., 1.], [0., -1.]]), torch.ones(2, 2)
    x = 10*torch.randn(100, 2)
    assert_close(swiglu(x, w1, w2, w3), (x[:, :1] * x[:, 1:]).expand(-1, 2))


@pytest.mark.parametrize("d_model, d_ff", [(0, 3), (3, 0)])
def test_refuses_an_empty_middle(d_model, d_ff):
    with pytest.raises(ValueError, match="needs at least one feature on each side"): FFN(d_model, d_ff)


@pytest.mark.parametrize("function, shapes", [(fused_gate, [(3, 4), (3, 4)]), (fused_rms_norm, [(3, 4), (4,)])], ids=["gate", "norm"])
@pytest.mark.parametrize("learns", [(True, False), (False, True), (True, True)], ids=["first", "second", "both"])
def test_written_out_passes_have_second_derivatives_when_an_input_is_frozen(function, shapes, learns):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=learn) for shape, learn in zip(shapes, learns, strict=True)]
    assert torch.autograd.gradgradcheck(function, inputs)
