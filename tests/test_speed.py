"""What chapter 20 measures by: clocks, shares, limits, and a layer that is computed again."""
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from llm_course.speed import GROUPS, Limits, best_time, measure_limits, part_shares, profile_shares, recompute
from llm_course.transformer import TransformerBlock


def test_the_fastest_call_counts_and_the_first_does_not(monkeypatch):
    now, calls = [0.], []
    monkeypatch.setattr("llm_course.speed.perf_counter", lambda: now[0])

    def work():
        now[0] += [100., 3., 2., 5.][len(calls)]
        calls.append(1)
    assert best_time(work, calls=3) == 2 and len(calls) == 4


def test_shares_add_up_and_go_to_the_right_group():
    a = torch.randn(400, 400)
    shares = profile_shares(lambda: a @ a)
    assert shares.keys() == {*GROUPS, "all else"} and sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == "matrix products"
    big = torch.randn(10**6)
    shares = profile_shares(lambda: big.exp(), {"powers": ("aten::exp",)})
    assert max(shares, key=shares.get) == "powers"


class Wide(nn.Linear): "A part whose time is that of a product."


class Slow(nn.Module):
    "A part whose time goes to its gradient; around another."
    def __init__(self):
        super().__init__()
        self.inner = Wide(300, 300)

    def forward(self, x): return Squared.apply(self.inner(x))


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        for _ in range(10): x.exp()
        return grad


def test_the_time_of_a_part_is_that_of_both_passes():
    model, x = Slow(), torch.randn(3000, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    step()
    shares = part_shares(step, {"Slow": "slow", "Wide": "wide"})
    assert list(shares) == ["slow", "wide", "optimiser", "loss"] and sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    assert shares["slow"] + shares["wide"] > .8 and shares["slow"] > .3
    assert part_shares(step, {"Slow": "all of it"})["all of it"] > .8   # a part within another that nobody asked for
    assert max(part_shares(lambda: x.exp(), {}).items(), key=lambda share: share[1])[0] == "loss"


def test_a_step_that_fails_leaves_no_hooks_behind():
    class Fails(nn.Module):
        def forward(self, x): raise KeyError("on purpose")
    with pytest.raises(KeyError, match="on purpose"): part_shares(lambda: Fails()(1), {})
    hooks = nn.modules.module
    assert not hooks._global_forward_pre_hooks and not hooks._global_forward_hooks


def test_the_roof_has_a_slope_and_a_flat_part():
    limits = Limits(operations=100., bytes=10.)
    assert [limits.at(i) for i in (.5, 1, 10, 1000)] == [5, 10, 100, 100]
    measured = measure_limits(64, 2**16)
    assert measured.operations > 0 and measured.bytes > 0


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 8)), TransformerBlock(8, 2, 24)], ids=["linear", "sequence", "block"])
def test_a_layer_that_is_computed_again_has_the_same_gradients(layer):
    x = torch.randn(2, 5, 8, requires_grad=True)
    frozen = next(layer.parameters())
    for trains in True, False:
        frozen.requires_grad_(trains)
        learn = [x, *(p for p in layer.parameters() if p.requires_grad)]
        wanted = torch.autograd.grad(layer(x).square().sum(), learn)
        for a, b in zip(torch.autograd.grad(recompute(layer, x).square().sum(), learn), wanted, strict=True): assert_close(a, b, rtol=0, atol=0)


def test_another_precision_the_second_time_is_refused():
    x = torch.randn(2, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match=r"under autocast use torch\.utils\.checkpoint"): recompute(nn.Linear(8, 8), x)
