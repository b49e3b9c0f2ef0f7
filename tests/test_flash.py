"""Attention in tiles: the same values and gradients as the readable version, whatever the shapes, in memory that grows with the length."""
import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from llm_course.attention import attention
from llm_course.engine.attention_kernel import fused_attention
from llm_course.engine.budget import memory_curve
from llm_course.engine.flash import flash_attention
from llm_course.multihead import MultiHeadAttention


def there_and_back(attend, inputs, causal):
    "Values, and gradients under a sum with weights that differ from place to place."
    out = attend(*inputs, causal=causal)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


def readable(q, k, v, causal):
    "Chapter 09's attention, for heads that share keys as well."
    group = q.shape[1] // k.shape[1] if q.ndim == 4 else 1
    return attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), causal=causal) if group > 1 else attention(q, k, v, causal=causal)


CLOSE = {torch.float64: 1e-7, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def is_attention(attend, inputs, causal, slack=1):
    "The one check of all versions, in tiles, in Triton (see in_triton.py) and torch's own: values, gradients and types of the readable one."
    close = slack * CLOSE[inputs[0].dtype]
    for ours, wanted in zip(there_and_back(attend, inputs, causal), there_and_back(readable, inputs, causal), strict=True):
        assert_close(ours, wanted, rtol=close, atol=close)   # the type as well


def drawn(lead, t, s, d, d_v, dtype, device="cpu"):
    shapes = (*lead, t, d), (*lead, s, d), (*lead, s, d_v)
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]


sizes = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(lead=st.lists(st.integers(1, 3), max_size=2), t=sizes, s=sizes, d=sizes, d_v=sizes, tile=st.integers(1, 12), causal=st.booleans(), seed=st.integers(0, 99))
def test_any_shape_in_any_tiles_is_attention(lead, t, s, d, d_v, tile, causal, seed):
    torch.manual_seed(seed)
    inputs = drawn(lead, t, s, d, d_v, torch.float64)
    is_attention(partial(flash_attention, tile=tile), inputs, causal)
    is_attention(fused_attention, inputs, causal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_types_keep_their_type(dtype, device): is_attention(partial(flash_attention, tile=16), drawn((2, 3), 40, 40, 16, 16, dtype, device), True)


def test_scores_of_any_size_are_finite():
    q, k, v = (torch.full((3, 4), 1e18).requires_grad_() for _ in range(3))
    for causal in False, True:
        for found in there_and_back(flash_attention, (q, k, v), causal): assert found.isfinite().all()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_groups_of_heads_share_keys(heads):
    layer = MultiHeadAttention(16, 4, heads, max_seq_len=30)
    x = torch.randn(2, 30, 16)
    wanted = layer(x)
    layer.attend = partial(flash_attention, tile=8)
    assert_close(layer(x), wanted)


def test_memory_grows_with_the_length_and_not_with_its_square():
    def peak(t):
        inputs = drawn((), t, t, 8, 8, torch.float32)
        return max(memory_curve(lambda: there_and_back(partial(flash_attention, tile=64), inputs, True))[1])
    assert peak(2048) < 2.2 * peak(1024) < 2.2 * 2.2 * peak(512)


def test_what_it_cannot_do_is_refused():
    inputs = drawn((), 3, 3, 2, 2, torch.float32)
    with pytest.raises(ValueError, match="a tile needs at least 1 position"): flash_attention(*inputs, tile=0)
    out = flash_attention(*inputs)
    with pytest.raises(RuntimeError, match="second derivative"): torch.autograd.grad(out.sum(), inputs, create_graph=True)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize("how", ["interpret", "compile"])
def test_the_kernels_in_triton_give_the_same_and_compile_for_a_gpu(how, tmp_path):
    "Not by `apart`, whose processes begin with torch and, by it, with Triton in memory: then it is too late to ask for its interpreter."
    words = [sys.executable, str(Path(__file__).with_name("in_triton.py")), how]
    settings = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [32, 48, 64, 128])
def test_the_kernels_in_triton_give_the_same_on_a_gpu(d, dtype):
    from llm_course.engine.flash_triton import flash_attention_triton
    inputs = [torch.randn(2, heads, 300, d, device="cuda").to(dtype).requires_grad_() for heads in (4, 2, 2)]
    is_attention(flash_attention_triton, inputs, True, slack=10)


def test_without_triton_the_reason_is_told(monkeypatch):
    from llm_course.engine import flash_triton
    inputs = [torch.randn(1, heads, 3, 8) for heads in (3, 2, 2)]
    if flash_triton.triton is not None:
        with pytest.raises(ValueError, match="must divide"): flash_triton.flash_attention_triton(*inputs)
    monkeypatch.setattr(flash_triton, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"): flash_triton.flash_attention_triton(*inputs)
