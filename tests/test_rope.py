"""Contracts of `llm_course.rope`."""
import math
import weakref
from inspect import unwrap

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.engine.rope_tables import RopeScaling, SharedTable, rotate_complex
from llm_course.rope import RoPE, look_up_turns, rope_turns, rotate

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def reference(x, positions, theta=10000.):
    "Turn pair by pair, in plain float64."
    out, d = x.double().clone(), x.shape[-1]
    for i in range(0, d, 2):
        angle = positions.double() * theta ** (-i / d)
        a, b = x[..., i].double(), x[..., i + 1].double()
        out[..., i], out[..., i + 1] = a*angle.cos() - b*angle.sin(), a*angle.sin() + b*angle.cos()
    return out.to(x.dtype)


@pytest.mark.parametrize("sizes", [(10000., 32, 64), (32, 64., 10000.)])
def test_sizes_that_are_no_whole_numbers_are_refused(sizes):
    make = unwrap(SharedTable.__init__)
    with pytest.raises(ValueError, match=r"^(d_k|max_seq_len) must be a whole number, but is (10000|64)\.0; the order is d_k, max_seq_len, theta$"):
        make(RoPE.__new__(RoPE), rope_turns, *sizes)


def test_positions_broadcast_over_leading_axes():
    rope, x = RoPE(8, 32), torch.randn(2, 3, 5, 8)
    run = torch.arange(7, 12)
    for positions in 7, run, run.int(), run.expand(3, 5), run.expand(2, 1, 5), run.expand(2, 3, 5):
        assert_close(rope(x, positions), reference(x, run))
    mixed = torch.stack([run, run - 7]).unsqueeze(1)
    assert_close(rope(x, mixed), torch.stack([rope(x[0], 7), rope(x[1])]))


@pytest.mark.parametrize("turn", [rotate, rotate_complex], ids=lambda f: f.__name__)
def test_both_spellings_take_any_layout(turn):
    turns = rope_turns(6, 4).float()
    whole = torch.randn(2, 4, 9)
    for x in whole[..., 1:7], whole[..., :6].mT.contiguous().mT, whole[:1, :1, 3:].expand(2, 4, 6), torch.randn(2, 6, 4).mT, torch.randn(7)[1:].view(1, 6):
        assert_close(turn(x, turns[:x.shape[-2]]), rotate(x.clone(), turns[:x.shape[-2]]))


@pytest.mark.parametrize("turn", [rotate, rotate_complex], ids=lambda f: f.__name__)
def test_gradient_is_exact(turn):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: turn(x, rope_turns(4, 3)), x)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="d_k must be even, because features turn in pairs, but it is 7"): RoPE(7, 16)


@pytest.mark.parametrize(("max_seq_len", "theta"), [(0, 1e4), (-3, 1e4), (16, 0.), (16, math.nan)])
def test_sizes_must_be_positive(max_seq_len, theta):
    with pytest.raises(ValueError, match="max_seq_len and theta must be positive, but they are"): RoPE(8, max_seq_len, theta)


@pytest.mark.parametrize("positions", [12, -1, torch.tensor([0, 16]), torch.tensor([-1, 3])], ids=["run", "negative run", "tensor", "negative"])
def test_positions_outside_the_table_are_refused(positions):
    x = torch.randn(2 if isinstance(positions, torch.Tensor) else 5, 8)
    with pytest.raises(ValueError, match=r"positions must lie from 0 to 15, but these go from .* raise max_seq_len"):
        RoPE(8, 16)(x, positions)


def test_a_sequence_that_is_too_long_is_refused_and_the_longest_is_not():
    rope = RoPE(8, 16)
    rope(torch.randn(16, 8))
    with pytest.raises(ValueError, match="from 0 to 16"): rope(torch.randn(17, 8))


def test_look_up_copies_nothing_for_a_run():
    turns = rope_turns(4, 10)
    assert look_up_turns(turns, 3, 2).data_ptr() == turns[3].data_ptr()
    assert look_up_turns(turns, torch.empty(0, dtype=torch.long), 0).shape == (0, 2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_change_of_type_leaves_the_table_exact(dtype):
    rope = nn.Sequential(RoPE(8, 4096)).to(dtype)[0]
    assert torch.equal(rope.turns, rope_turns(8, 4096).float())


def test_meta_device_wakes_up_with_the_right_table(device):
    with torch.device("meta"): model = nn.Sequential(RoPE(8, 16, theta=500.))
    assert model[0].turns.is_meta
    assert torch.equal(model.to_empty(device=device)[0].turns, rope_turns(8, 16, 500.).float().to(device))


@pytest.mark.parametrize("inference", [False, True])
def test_a_table_on_meta_is_filled_at_its_first_use(inference, device):
    "As after `load_state_dict(assign=True)`, which knows nothing of tables; in inference first, then in training."
    rope = RoPE(8, 16, theta=500., device="meta")
    x = torch.randn(3, 8, device=device, requires_grad=True)
    with torch.inference_mode(inference): assert_close(rope(x.detach(), 2), RoPE(8, 16, theta=500., device=device)(x.detach(), 2))
    rope(x).sum().backward()
    assert rope.turns.device.type == x.device.type


def test_layers_share_one_table_while_they_live():
    first, second = RoPE(8, 50, 123.), RoPE(8, 50, 123.)
    assert first.turns is second.turns
    assert RoPE(8, 50, 124.).turns is not first.turns and RoPE(8, 50, 123., scaling=RopeScaling()).turns is not first.turns
    with torch.inference_mode(): assert RoPE(8, 50, 123.).turns is not first.turns
    first.double().float().to(second.turns.device)
    assert first.turns is second.turns and first.turns.dtype == torch.float32
    known = weakref.ref(first.turns)
    del first, second
    assert known() is None


@pytest.mark.parametrize("factor, low, high, length", [(8., 1., 4., 8192), (32., 1., 4., 8192), (2., .5, 3., 100)])
def test_scaling_agrees_with_transformers(factor, low, high, length):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=16 * length, rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": length})
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.get_default_device())
    rope = RoPE(64, 2, 5e5, scaling=RopeScaling(factor, low, high, length))
    assert_close(rope.turns[1], torch.stack([theirs.cos(), theirs.sin()], -1))
    assert "RopeScaling" in repr(rope)
    assert_close(rope(torch.ones(2, 64, dtype=torch.float64)), rope(torch.ones(2, 64)).double())   # float64 has a table of its own


@pytest.mark.parametrize("wrong", [dict(factor=.5), dict(low_freq_factor=4.), dict(low_freq_factor=0.), dict(original_max_seq_len=0), dict(factor=math.nan)], ids=str)
def test_scaling_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="a RopeScaling needs"): RopeScaling(**wrong)
