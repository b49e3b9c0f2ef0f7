"""Contracts of `llm_course.multihead`."""

from functools import partial

import einx
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.attention import attention
from llm_course.engine.attention_kernel import fused_attention
from llm_course.engine.families import FamilyAttention
from llm_course.engine.kv_cache import KVCache, new_cache
from llm_course.engine.rope_tables import RopeScaling
from llm_course.multihead import MultiHeadAttention, grouped_attention, head_weights, merge_heads, split_heads
from llm_course.rmsnorm import RmsNorm
from llm_course.rope import RoPE

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
versions = pytest.mark.parametrize("attend", [attention, fused_attention], ids=lambda f: f.__name__)
sharing = pytest.mark.parametrize("num_kv_heads", [4, 2, 1])


def layer(num_kv_heads=None, **options):
    return MultiHeadAttention(32, 4, num_kv_heads, max_seq_len=64, **options)


@pytest.mark.parametrize("attend, dtype", [(fused_attention, dtype) for dtype in dtypes] + [(attention, dtype) for dtype in dtypes[:2]], ids=lambda x: getattr(x, "__name__", str(x)))
def test_agrees_with_torch_when_nothing_is_turned(attend, dtype):
    "With our own attention in half precision, where torch rounds the weights and we don't, the errors are compared: `test_layers`."
    ours, x = layer(attend=attend, dtype=dtype), torch.randn(2, 9, 32, dtype=dtype)
    theirs = nn.MultiheadAttention(32, 4, bias=False, batch_first=True, dtype=dtype)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.out_proj.weight.copy_(ours.output_proj.weight)
    forbidden = torch.ones(9, 9).triu(1).bool()
    there = torch.zeros(9, dtype=torch.long)
    with torch.no_grad(): got = ours(x, there)   # where gradients are wanted, ours is the more exact one in half precision
    assert_close(got, theirs(x, x, x, attn_mask=forbidden, need_weights=False)[0].detach())


@sharing
@pytest.mark.parametrize("pieces", [(9,), (1,)*9, (4, 1, 3, 1), (1, 8), (8, 1)], ids=str)
def test_a_cache_changes_nothing(pieces, num_kv_heads):
    ours, x = layer(num_kv_heads), torch.randn(3, 9, 32)
    with torch.inference_mode():
        for attend in attention, fused_attention:
            ours.attend = attend
            cache = new_cache(ours, 3, max_seq_len=9)
            place = cache.keys.data_ptr()
            assert_close(torch.cat([ours(piece, cache=cache) for piece in x.split(pieces, 1)], 1), ours(x))
            assert cache.length == 9 and cache.keys.data_ptr() == place
            assert cache.keys.shape == cache.values.shape == (3, num_kv_heads, 9, 8)


def test_a_cache_forgets_what_its_length_leaves_out():
    ours, x = layer(2), torch.randn(1, 6, 32)
    with torch.inference_mode():
        cache = new_cache(ours, 1)
        ours(torch.randn(1, 5, 32), cache=cache)
        cache.length = 0
        assert_close(ours(x, cache=cache), ours(x))


@versions
@sharing
@pytest.mark.parametrize("pieces", [(9,), (1,)*9, (4, 1, 3, 1), (1, 8), (8, 1)], ids=str)
def test_texts_of_different_lengths_get_what_each_gets_alone(pieces, num_kv_heads, attend):
    "Whatever stands in the padding, in float32 at the default tolerances, and nobody outside of it gets a nan from it."
    ours, x = layer(num_kv_heads, attend=attend), torch.randn(4, 9, 32)
    padding = torch.tensor([0, 3, 8, 1])
    for junk in 0., 1e4:
        beside = x.clone()
        for row, places in zip(beside, padding.tolist()): row[:places] = junk
        with torch.inference_mode():
            cache = new_cache(ours, 4)
            cache.padding = padding
            got = torch.cat([ours(piece, cache=cache) for piece in beside.split(pieces, 1)], 1)
            for row, places in enumerate(padding.tolist()):
                assert_close(got[row, places:], ours(x[row, places:]))
                assert not got[row, :places].any()   # who may look nowhere hears nothing


def test_half_precision_beside_padding_is_finite():
    for dtype in torch.bfloat16, torch.float16:
        ours, x = layer(2).to(dtype), torch.randn(2, 9, 32).to(dtype)
        with torch.inference_mode():
            cache = new_cache(ours, 2)
            cache.padding = torch.tensor([6, 0])
            got = ours(x, cache=cache)
            assert got.isfinite().all() and cache.keys.dtype == dtype
            want = ours(x[0, 6:])   # sums in another order are rounded otherwise
            assert (got[0, 6:] - want).abs().max() < 0.02 * want.abs().max()


def test_keys_and_values_are_two_halves_of_one_memory():
    cache = KVCache(3, 2, 5, 8)
    cache.append(*torch.randn(2, 3, 2, 4, 8))
    assert torch.equal(cache.both[0], cache.keys) and torch.equal(cache.both[1], cache.values) and cache.both.shape == (2, 3, 2, 5, 8)
    assert cache.mask() is None
    cache.padding = torch.tensor([0, 2, 4])
    assert cache.mask().flatten(1).tolist() == [[True]*4, [False]*2 + [True]*2, [False]*4]


def test_a_full_cache_refuses_and_stays_what_it_was():
    cache = KVCache(1, 2, 4, 8)
    cache.append(*torch.ones(2, 1, 2, 3, 8))
    with pytest.raises(ValueError, match=r"room for 4 positions, but 3 \+ 2 are wanted"): cache.append(*torch.ones(2, 1, 2, 2, 8))
    assert cache.length == 3 and (cache.keys[..., 3:, :] == 0).all()


@pytest.mark.parametrize(("shape", "message"), [
    ((32, 5), "num_heads must divide d_model, but 32 % 5 = 2"), ((32, 4, 3), "num_kv_heads must divide num_heads, but 4 % 3 = 1"),
    ((32, 0), "must be positive"), ((32, 4, 0), "must be positive"), ((-4, 4), "must be positive"), ((12, 4), "d_k must be even"),
], ids=str)
def test_sizes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message): MultiHeadAttention(*shape)


def test_texts_longer_than_the_table_are_refused():
    ours = layer()
    with pytest.raises(ValueError, match="positions must lie from 0 to 63, but these go from 0 to 64"): ours(torch.randn(1, 65, 32))
    with pytest.raises(ValueError, match="from 0 to 64"): ours(torch.randn(1, 2, 32), torch.tensor([0, 64]))


def test_heads_are_slices():
    x = torch.randn(2, 5, 12)
    assert torch.equal(split_heads(x, 4), einx.id("b t (h d) -> b h t d", x, h=3))
    assert torch.equal(merge_heads(split_heads(x, 4)), x)
    q, k, v = torch.randn(2, 6, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    for h in range(6): assert_close(grouped_attention(q, k, v)[:, h], attention(q[:, h], k[:, h // 3], v[:, h // 3], causal=True))


class Attending(nn.Module):
    def forward(self, q, k, v, **limits): return attention(q, k, v, **limits)


@sharing
def test_head_weights_are_shares_that_look_back(num_kv_heads):
    ours, x = layer(num_kv_heads), torch.randn(2, 5, 32)
    weights = head_weights(ours, x)
    assert weights.shape == (2, 4, 5, 5) and (weights.triu(1) == 0).all()
    assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert ours.attend is fused_attention
    assert (head_weights(ours, x[:, :1]) == 1).all()
    ours.attend = Attending()   # a layer may play the role, too
    assert_close(head_weights(ours, x), weights)
    assert type(ours.attend) is Attending


@sharing
def test_parameters_only_and_under_their_names(num_kv_heads):
    state = layer(num_kv_heads).state_dict()
    wanted = {"q_proj.weight": (32, 32), "k_proj.weight": (8*num_kv_heads, 32), "v_proj.weight": (8*num_kv_heads, 32), "output_proj.weight": (32, 32)}
    assert {name: tuple(w.shape) for name, w in state.items()} == wanted


def test_options_change_nothing_unless_asked():
    assert not [name for name in MultiHeadAttention(16, 4).state_dict() if "bias" in name or "norm" in name]
    odd = FamilyAttention(16, 4, 2, max_seq_len=8, d_k=6, qkv_bias=True, qk_norm=partial(RmsNorm, eps=1e-6), rope=partial(RoPE, scaling=RopeScaling()))
    assert {name: tuple(p.shape) for name, p in odd.state_dict().items()} == {
        "q_proj.weight": (24, 16), "k_proj.weight": (12, 16), "v_proj.weight": (12, 16), "output_proj.weight": (16, 24),
        "q_proj.bias": (24,), "k_proj.bias": (12,), "v_proj.bias": (12,), "q_norm.weight": (6,), "k_norm.weight": (6,)}
    assert odd.rope.scaling == RopeScaling()
    with pytest.raises(ValueError, match="num_kv_heads must divide num_heads"): FamilyAttention(16, 4, 3, d_k=6)
    with pytest.raises(ValueError, match="must be even"): FamilyAttention(16, 4, d_k=5)


def test_options_agree_with_the_cache():
    odd, x = FamilyAttention(16, 4, 2, max_seq_len=8, d_k=6, qkv_bias=True, qk_norm=partial(RmsNorm, eps=1e-6)), torch.randn(2, 7, 16)
    for p in odd.parameters(): torch.nn.init.normal_(p)
    cache = new_cache(odd, 2)
    with torch.no_grad(): assert_close(torch.cat([odd(piece, cache=cache) for piece in x.split((3, 1, 3), 1)], 1), odd(x))
