"""Contracts of `llm_course.attention`."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.attention import attention, causal_mask, join_masks
from llm_course.engine.attention_kernel import fused_attention
from llm_course.multihead import MultiHeadAttention

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
versions = pytest.mark.parametrize("attend", [attention, fused_attention], ids=lambda f: f.__name__)


def qkv(*lead, t=5, s=5, d=8, d_v=8, dtype=torch.float32):
    return (torch.randn(*lead, n, size).to(dtype) for n, size in ((t, d), (s, d), (s, d_v)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_half_precision_is_rounded_once(lead, dtype):
    "So it is torch's answer in float32, rounded; torch's own kernels round the weights, too."
    q, k, v = qkv(*lead, t=4, s=7, d_v=3, dtype=dtype)
    mask = torch.rand(4, 7) < .6
    assert_close(attention(q, k, v, mask), F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(dtype))


@pytest.mark.parametrize("causal", [False, True], ids=["free", "causal"])
@pytest.mark.parametrize("t", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_fused_equals_readable_forward_and_back(masked, t, causal):
    q, k, v = (x.requires_grad_() for x in qkv(2, 3, t=t, s=6))
    mask = torch.rand(2, 1, t, 6) < .4 if masked else None   # some rows may be empty
    outs = [attend(q, k, v, mask, causal) for attend in (attention, fused_attention)]
    assert_close(*outs)
    assert_close(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in outs))


@versions
def test_those_who_ask_are_the_last(attend):
    q, k, v = qkv(2, 3, t=6, s=6)
    whole = attend(q, k, v, causal=True)
    for t in range(1, 6): assert_close(attend(q[..., -t:, :], k, v, causal=True), whole[..., -t:, :])


def test_causal_mask_by_hand():
    assert causal_mask(3).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(1, 4).all()


def test_joined_masks_allow_what_both_allow():
    mask = torch.tensor([[False, True, True]])
    assert join_masks(mask, True, 3, 3).int().tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert join_masks(mask, False, 3, 3) is mask and join_masks(None, False, 3, 3) is None
    assert join_masks(None, True, 1, 3) is None   # the last may see all


def test_a_mask_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"must be boolean, true where t may look at s, not torch\.float32"):
        join_masks(torch.ones(3, 3), False, 3, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["alone", "autocast"])
def test_gradients_in_half_precision_are_as_exact_as_torchs(dtype, autocast):
    q, k, v = (torch.randn(2, 4, 33, 16).to(dtype).requires_grad_() for _ in range(3))
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    grad = torch.randn(2, 4, 33, 16).to(dtype)
    truth = torch.autograd.grad(attention(*wide, causal=True), wide, grad.double())
    error = lambda grads: max((g.double() - t).abs().max() for g, t in zip(grads, truth))
    with torch.autocast(q.device.type, dtype, enabled=autocast): out = fused_attention(q, k, v, causal=True)
    assert out.dtype == dtype
    theirs = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), grad)
    assert error(torch.autograd.grad(out, (q, k, v), grad)) <= error(theirs)


def test_gradients_of_gradients_by_the_way_that_the_page_names():
    layer, x = MultiHeadAttention(8, 2, attend=attention), torch.randn(1, 5, 8, requires_grad=True)
    slope, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert "torch cannot differentiate the gradients" in fused_attention.__doc__
