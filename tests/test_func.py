"""`torch.func` and forward-mode differentiation follow every layer, the loss and the whole model."""
import pytest
import torch
from specimens import SPECIMENS
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.testing import assert_close

from llm_course.loss import cross_entropy
from llm_course.transformer import Transformer

trained = pytest.mark.parametrize("specimen", [specimen for specimen in SPECIMENS if specimen.trains], ids=str)


def made(specimen):
    "A layer in float64, and what it reads."
    torch.manual_seed(0)
    return specimen.make(3).double(), [x.double() if x.is_floating_point() else x for x in specimen.feed(3, (2,), 4)]


@trained
def test_gradients_by_func_are_those_of_autograd(specimen):
    layer, inputs = made(specimen)
    weights = dict(layer.named_parameters())
    loss = lambda weights, *inputs: functional_call(layer, weights, inputs).square().sum()
    floating = [i for i, x in enumerate(inputs) if x.is_floating_point()]
    to_weights, *to_inputs = grad(loss, (0, *(i + 1 for i in floating)))(weights, *inputs)
    for i in floating: inputs[i] = inputs[i].requires_grad_()
    wanted = torch.autograd.grad(loss(weights, *inputs), [*weights.values(), *(inputs[i] for i in floating)])
    assert_close([*to_weights.values(), *to_inputs], list(wanted))


@trained
def test_rows_can_be_mapped_over(specimen):
    layer, inputs = made(specimen)
    axes = tuple(0 if x.shape[0] == 2 and x.ndim > 1 else None for x in inputs)
    assert_close(vmap(layer, axes)(*inputs), layer(*inputs))


@trained
def test_forward_and_backward_derivatives_are_transposes(specimen):
    layer, inputs = made(specimen)
    x, rest = inputs[0], inputs[1:]
    if not x.is_floating_point(): return
    f, direction = lambda x: layer(x, *rest), torch.randn_like(x)
    out, forward = jvp(f, (x,), (direction,))
    push = torch.randn_like(out)
    assert_close((vjp(f, x)[1](push)[0] * direction).sum(), (forward * push).sum())
    with forward_ad.dual_level(): assert_close(forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent, forward)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(50, 16, 16, 2, 2, 24).double(), torch.randint(50, (3, 8))


def test_a_gradient_for_each_text(model):
    model, ids = model
    weights = dict(model.named_parameters())
    loss = lambda weights, ids: cross_entropy(functional_call(model, weights, (ids[:-1],)), ids[1:])
    each = vmap(grad(loss), (None, 0))(weights, ids)
    for i, row in enumerate(ids):
        assert_close([g[i] for g in each.values()], list(torch.autograd.grad(loss(weights, row), list(weights.values()))))


def test_second_derivatives_by_either_order_agree(model):
    model, ids = model
    weights = dict(model.named_parameters())
    directions = {name: torch.randn_like(p) for name, p in weights.items()}
    slope = grad(lambda weights: cross_entropy(functional_call(model, weights, (ids[0, :-1],)), ids[0, 1:]))
    assert_close(jvp(slope, (weights,), (directions,))[1], vjp(slope, weights)[1](directions)[0])
    block, x = model.blocks[0], torch.randn(3, 16, dtype=torch.float64)
    assert_close(jacfwd(block)(x), jacrev(block)(x))
    row = torch.randn(16, dtype=torch.float64)
    curvature = hessian(lambda row: model.norm(row).pow(3).sum())(row)
    assert_close(curvature, torch.autograd.functional.hessian(lambda row: model.norm(row).pow(3).sum(), row))


def test_models_run_side_by_side(model):
    one, ids = model
    others = [Transformer(50, 16, 16, 2, 2, 24).double() for _ in range(2)]
    weights, buffers = stack_module_state([one, *others])
    together = vmap(lambda weights, buffers: functional_call(one, (weights, buffers), (ids,)))(weights, buffers)
    assert_close(together, torch.stack([m(ids) for m in (one, *others)]))
