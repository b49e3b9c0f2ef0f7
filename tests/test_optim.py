"""`llm_course.optim`: torch's numbers, torch's checkpoints, and nothing ignored."""
import copy
import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from apart import apart
from torch import nn
from torch.testing import assert_close

from llm_course.checks import CHECKS
from llm_course.engine.muon import Muon, Together, orthogonalise
from llm_course.optim import AdamW, SGDDecay, gradient_clip, params_for_decay

shapes = [(4, 3), (5,), (2, 1, 3), ()]


def twins(device="cpu", dtype=torch.float64):
    "The same parameters twice."
    ours = [nn.Parameter(torch.randn(shape, dtype=dtype, device=device)) for shape in shapes]
    return ours, [nn.Parameter(p.detach().clone()) for p in ours]


def give(*sides, missing=()):
    "One random gradient for each parameter, the same on all sides."
    for i, params in enumerate(zip(*sides)):
        grad = None if i in missing else torch.randn_like(params[0]) * 10.**torch.randint(-4, 4, ())
        for p in params: p.grad = None if grad is None else grad.clone()


def assert_same(ours, theirs, rtol=1e-9):
    for a, b in zip(ours, theirs): assert_close(a, b, rtol=rtol, atol=0)


@pytest.mark.parametrize("settings", [
    dict(), dict(lr=0.05, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3), dict(weight_decay=0.), dict(betas=(0., 0.)), dict(lr=0.)], ids=str)
def test_adamw_is_torchs_over_1000_steps(settings, device):
    if device == "mps": pytest.skip("no float64 there")
    ours, theirs = twins(device)
    a, b = AdamW(ours, **settings), torch.optim.AdamW(theirs, **settings)
    for _ in range(1000):
        give(ours, theirs)
        a.step(); b.step()
    assert_same(ours, theirs)


def test_adamw_in_float32(device):
    ours, theirs = twins(device, torch.float32)
    a, b = AdamW(ours, lr=0.01), torch.optim.AdamW(theirs, lr=0.01)
    for _ in range(20):
        give(ours, theirs)
        a.step(); b.step()
    for x, y in zip(ours, theirs): assert_close(x, y)


def scheduled(optimizer, last_epoch=-1): return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / math.sqrt(t + 1), last_epoch)


def test_sgd_decay_is_sgd_with_its_schedule():
    ours, theirs = twins()
    a, b = SGDDecay(ours, lr=0.3), torch.optim.SGD(theirs, lr=0.3)
    schedule = scheduled(b)
    for step in range(1000):
        give(ours, theirs, missing={step % 5})
        a.step(); b.step(); schedule.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [0, 1, 400])
def test_sgd_decay_goes_on_where_torchs_sgd_stopped(steps):
    ours, theirs = twins()
    b = torch.optim.SGD(theirs, lr=0.3)
    schedule = scheduled(b)
    for _ in range(steps): give(theirs); b.step(); schedule.step()
    for x, y in zip(ours, theirs): x.data.copy_(y)
    a = SGDDecay(ours, lr=7.)
    a.load_state_dict(b.state_dict())
    for _ in range(5): give(ours, theirs); a.step(); b.step(); schedule.step()
    assert a.param_groups[0]["lr"] == 0.3 and a.param_groups[0]["t"] == steps + 5
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [0, 1, 400])
def test_torchs_sgd_goes_on_where_sgd_decay_stopped(steps):
    ours, theirs = twins()
    a, b = SGDDecay(ours, lr=0.3), torch.optim.SGD(theirs, lr=7.)
    for _ in range(steps): give(ours); a.step()
    for x, y in zip(ours, theirs): y.data.copy_(x)
    b.load_state_dict(a.state_dict())
    for group in b.param_groups: group["initial_lr"] = group["lr"]   # which torch's schedulers ask for when they resume
    schedule = scheduled(b, steps - 1)
    for _ in range(5): give(ours, theirs); a.step(); b.step(); schedule.step()
    assert_same(ours, theirs)


def test_sgd_decay_resumes_where_it_was():
    ours, theirs = twins()
    a, b = SGDDecay(ours, lr=0.3), SGDDecay(theirs, lr=0.1)
    give(ours); a.step()
    for x, y in zip(ours, theirs): y.data.copy_(x)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    give(ours, theirs); a.step(); b.step()
    assert_same(ours, theirs, rtol=0)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"fused": True}, {"capturable": True}], ids=str)
def test_checkpoints_pass_between_torch_and_us(back, flags, tmp_path):
    ours, theirs = twins()
    sides = [(ours, AdamW(ours, lr=0.02)), (theirs, torch.optim.AdamW(theirs, lr=0.02, **({} if flags == {"capturable": True} else flags)))]
    (source, first), (target, second) = reversed(sides) if back else sides
    give(source); first.step()
    if back: first.param_groups[0] |= flags
    torch.save(first.state_dict(), tmp_path/"state.pt")
    for x, y in zip(source, target): y.data.copy_(x)
    second.load_state_dict(torch.load(tmp_path/"state.pt", weights_only=True))
    if back: first.param_groups[0]["capturable"] = False   # which a CPU cannot run
    for _ in range(5):
        give(source, target)
        first.step(); second.step()
    assert_same(ours, theirs)


SIZES = [(1000, 257), (129, 1031), (257,), (), (0, 4)]   # beyond what a cache, a vector register and a piece for a thread hold
CLOSE = {torch.float32: dict(rtol=1e-5, atol=1e-6), torch.float64: dict(rtol=1e-9, atol=1e-12), torch.bfloat16: dict(rtol=2e-2, atol=2e-2), torch.float16: dict(rtol=3e-3, atol=3e-3)}


def by_both_ways(device, dtype, sizes=SIZES, **settings):
    "The same parameters twice, in two groups; the formulas for one set, the kernel for the other."
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(size, device=device).to(dtype)) for size in sizes]
    second = [nn.Parameter(p.detach().clone()) for p in first]
    def groups(p): return [{"params": p[:2], "weight_decay": 0.1}, {"params": p[2:], "weight_decay": 0., "lr": 0.02, "betas": (0.8, 0.9)}]
    return first, second, AdamW(groups(first), fused=False, **settings), AdamW(groups(second), **settings)


def kernel_steps(monkeypatch):
    "How many parameters each call of the kernel steps."
    from llm_course.engine import kernels
    found, kernel = [], kernels.adamw_fused
    monkeypatch.setattr(kernels, "adamw_fused", lambda params, *rest: (found.append(len(params)), kernel(params, *rest)))
    return found


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_the_kernel_goes_the_way_of_the_formulas(dtype, device, monkeypatch):
    if device == "mps" and dtype == torch.float64: pytest.skip("no float64 there")
    steps = kernel_steps(monkeypatch)
    readable, fused, a, b = by_both_ways(device, dtype, lr=0.01)
    for step in range(30):
        for p, q in zip(readable, fused):
            p.grad = torch.randn_like(p) * 10.**(step % 5 - 3)
            q.grad = p.grad.clone()
        if step % 3 == 1: readable[1].grad = fused[1].grad = None
        a.step(); b.step()
    assert steps == 30 * [2, 3] or steps == [n for step in range(30) for n in (1 + (step % 3 != 1), 3)]
    for p, q in zip(readable, fused):
        assert_close(q, p, **CLOSE[dtype])
        for name in "exp_avg", "exp_avg_sq": assert_close(b.state[q][name], a.state[p][name], **CLOSE[dtype])
        assert float(a.state[p]["step"]) == float(b.state[q]["step"])


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_way_goes_on_from_the_state_of_the_other(dtype, there, device, monkeypatch, tmp_path):
    "As a saved file, and when somebody turns the switch in the middle."
    readable, fused, a, b = by_both_ways(device, dtype, lr=0.01)
    for step in range(12):
        for p, q in zip(readable, fused):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        if step == 5:
            source, target = (a, b) if there else (b, a)
            torch.save(source.state_dict(), tmp_path/"state.pt")
            kept = [group["fused"] for group in target.param_groups]
            target.load_state_dict(torch.load(tmp_path/"state.pt", weights_only=True))
            for group, ways in zip(target.param_groups, kept): group["fused"] = ways
            for p, q in zip(readable, fused): (q if there else p).data.copy_(p if there else q)
        if step == 9:
            for optimizer in a, b:
                for group in optimizer.param_groups: group["fused"] = not group["fused"]
        a.step(); b.step()
    for p, q in zip(readable, fused): assert_close(q, p, **CLOSE[dtype])


def transposed(p): p.data = p.data.mT.contiguous().mT
def every_other(p): p.data = torch.randn(*p.shape, 2, device=p.device, dtype=p.dtype)[..., 0]
def turned_gradient(p): p.grad = p.grad.mT.contiguous().mT
def wide_state(optimizer, p): optimizer.state[p] |= {name: x.double() for name, x in optimizer.state[p].items() if name != "step"}


@pytest.mark.parametrize("change", [transposed, every_other, turned_gradient, wide_state], ids=lambda f: f.__name__)
def test_what_the_kernel_cannot_serve_goes_by_the_formulas(change, monkeypatch):
    "Parameter by parameter: the neighbour in the group still goes to the kernel."
    steps = kernel_steps(monkeypatch)
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(70, 50)) for _ in range(2)]
    optimizer = AdamW(params, lr=0.01, weight_decay=0.1)
    if change in (transposed, every_other): change(params[0])
    want = [p.detach().double().clone() for p in params]
    means, squares = [[torch.zeros_like(p) for p in want] for _ in range(2)]
    for t in range(1, 8):
        for p in params: p.grad = torch.randn(70, 50)
        for p, x, m, v in zip(params, want, means, squares):   # the formulas, in float64
            m.lerp_(p.grad.double(), 0.1)
            v.mul_(0.999).addcmul_(p.grad.double(), p.grad.double(), value=0.001)
            x.mul_(1 - 0.001).sub_(0.01 * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        if change is turned_gradient: change(params[0])
        if change is wide_state and t > 1: change(optimizer, params[0])
        optimizer.step()
    assert steps == ([2] + 6 * [1] if change is wide_state else 7 * [1])
    for p, x in zip(params, want): assert_close(p.detach(), x.float(), rtol=1e-4, atol=1e-5)


def test_the_kernel_is_for_devices_and_types_where_it_was_tried():
    from llm_course.engine.kernels import can_use_fused_adamw
    x = torch.randn(3)
    assert can_use_fused_adamw(x, x, x, x)
    assert not can_use_fused_adamw(*4 * [x.to(torch.float8_e4m3fn)]) and not can_use_fused_adamw(x, x, x.half(), x) and not can_use_fused_adamw(x, x.to("meta"), x, x)


@pytest.mark.parametrize("check", CHECKS["AdamW"].values(), ids=lambda check: check.name)
def test_the_formulas_pass_our_checks(check):
    check(partial(AdamW, fused=False))


def test_nothing_waits_for_a_compiler_to_be_imported():
    "Two of four seconds of every start were `torch._dynamo`, which a decorator imports."
    code = "import sys; import llm_course.optim, llm_course.training, llm_course.generating; print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_state_is_torchs():
    ours, theirs = twins(dtype=torch.float32)
    a, b = AdamW(ours), torch.optim.AdamW(theirs)
    give(ours, theirs); a.step(); b.step()
    for x, y in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values()):
        assert list(x) == list(y) == ["step", "exp_avg", "exp_avg_sq"]
        for name in x: assert_close(x[name], y[name])
        assert x["step"].dtype == torch.float32


def test_a_missing_gradient_leaves_parameter_and_state_alone():
    ours, theirs = twins()
    a, b = AdamW(ours), torch.optim.AdamW(theirs)
    for step in range(20):
        give(ours, theirs, missing={0} if step < 10 else {step % 4})
        a.step(); b.step()
        if step == 9: assert ours[0] not in a.state
    assert_same(ours, theirs)


def test_groups_have_settings_of_their_own():
    ours, theirs = twins()
    def groups(p): return [{"params": p[:2], "lr": 0.1, "betas": (0.5, 0.6)}, {"params": p[2:], "weight_decay": 0., "eps": 1e-2}]
    a, b = AdamW(groups(ours)), torch.optim.AdamW(groups(theirs))
    for _ in range(10):
        give(ours, theirs)
        a.step(); b.step()
    assert_same(ours, theirs)


def test_a_scheduler_of_torchs_can_drive_it():
    ours, theirs = twins()
    sides = [(Opt(p, lr=0.1), p) for Opt, p in ((AdamW, ours), (torch.optim.AdamW, theirs))]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o, _ in sides]
    for _ in range(10):
        give(ours, theirs)
        for (optimizer, _), schedule in zip(sides, schedules): optimizer.step(); schedule.step()
    assert_same(ours, theirs)


def test_lr_may_be_a_tensor():
    ours, theirs = twins()
    a, b = AdamW(ours, lr=torch.tensor(0.25)), AdamW(theirs, lr=0.25)
    give(ours, theirs); a.step(); b.step()
    assert_same(ours, theirs)


@pytest.mark.parametrize("Opt", [AdamW, SGDDecay])
def test_closure_is_called_with_gradients_on(Opt):
    p = nn.Parameter(torch.tensor([1.]))
    optimizer = Opt([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (3 * p).sum()
        loss.backward()
        return loss
    assert optimizer.step(closure).item() == 3 and p.item() < 1


@pytest.mark.parametrize("settings, message", [
    (dict(lr=-1.), "lr must be finite and not negative, but is -1.0"),
    (dict(lr=math.nan), "lr must be finite and not negative, but is nan"),
    (dict(eps=-1e-8), "eps must be finite and not negative, but is -1e-08"),
    (dict(weight_decay=-0.1), "weight_decay must be finite and not negative, but is -0.1"),
    (dict(betas=(0.9, 1.)), "betas must lie in [0, 1), but are (0.9, 1.0)"),
    (dict(betas=(-0.1, 0.9)), "betas must lie in [0, 1), but are (-0.1, 0.9)"),
])
def test_senseless_settings_are_refused(settings, message):
    ours, _ = twins()
    for params, default in ((ours, settings), ([{"params": ours, **settings}], {})):   # as defaults, and in a group
        with pytest.raises(ValueError) as error: AdamW(params, **default)
        assert str(error.value) == message


@pytest.mark.parametrize("flag", ["maximize", "amsgrad", "differentiable", "nesterov", "momentum"])
@pytest.mark.parametrize("Opt", [AdamW, SGDDecay])
def test_flags_that_would_be_ignored_are_refused_by_name(Opt, flag):
    ours, _ = twins()
    with pytest.raises(TypeError, match=flag): Opt(ours, **{flag: True})
    with pytest.raises(ValueError, match=f"{flag}=True is not supported"): Opt([{"params": ours, flag: True}])
    Opt([{"params": ours, flag: False}])


def test_what_belongs_to_another_optimiser_is_refused_by_name():
    ours, theirs = twins()
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 is not supported"): SGDDecay(params_for_decay(nn.Linear(2, 2), 0.1))
    with pytest.raises(ValueError, match=r"momentum=0\.9 is not supported"): SGDDecay(ours).load_state_dict(torch.optim.SGD(theirs, lr=1., momentum=0.9).state_dict())
    with pytest.raises(ValueError, match=r"weight_decay=0\.1 is not supported"): SGDDecay(ours).load_state_dict(torch.optim.SGD(theirs, lr=1., weight_decay=0.1).state_dict())
    adam = AdamW(ours)   # torch's Adam keeps the same state, but puts the decay into the gradient
    with pytest.raises(ValueError, match="decoupled_weight_decay=False is not supported"): adam.load_state_dict(torch.optim.Adam(theirs, weight_decay=0.1).state_dict())
    adam.load_state_dict(torch.optim.Adam(theirs).state_dict())   # without any decay the two are one


def test_a_checkpoint_with_such_a_flag_is_refused_and_changes_nothing():
    ours, theirs = twins()
    a, b = AdamW(ours, lr=0.5), torch.optim.AdamW(theirs, amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad=True is not supported"): a.load_state_dict(b.state_dict())
    assert a.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("Opt", [AdamW, SGDDecay])
def test_sparse_gradients_and_complex_parameters_are_refused(Opt):
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense, but one is sparse"): Opt(table.parameters(), lr=0.1).step()
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="parameters must be real, but one is torch"): Opt([p], lr=0.1).step()


@pytest.mark.parametrize("make", ["AdamW(p, lr=0.01)", "AdamW(p, lr=0.01, fused=False)", "SGDDecay(p, lr=0.01)", "Muon(p[:2], lr=0.01)"])
def test_compiled_step_is_the_same_and_is_not_compiled_again_for_another_rate(make):
    "Outside pytest's shape checks, which `torch.compile` cannot look through."
    code = """
import torch; from torch import nn
from llm_course.engine.muon import Muon
from llm_course.optim import AdamW, SGDDecay
torch.manual_seed(0)
params = [[nn.Parameter(p.clone()) for p in ps] for ps in [[torch.randn(300, 400), torch.randn(3, 4), torch.randn(5)]] * 2]
optimizers = [MAKE for p in params]
compiles = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
steps = [torch.compile(optimizers[0].step, backend=compiles), optimizers[1].step]
for i in range(8):
    for a, b in zip(*params): a.grad = torch.randn_like(a); b.grad = a.grad.clone()
    for o in optimizers: o.param_groups[0]["lr"] = 0.01 * (i + 1)
    for step in steps: step()
    if i == 1: settled = compiles.frame_count   # the first step makes the state
for a, b in zip(*params): torch.testing.assert_close(a, b)
assert compiles.frame_count == settled, f'{settled} pieces of code became {compiles.frame_count}'
""".replace("MAKE", make)
    done = apart(["-c", "import torch._dynamo.testing\n" + code], os.environ | {"JAXTYPING_DISABLE": "1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("max_norm", [1e-3, 1., 1e9, 0., math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clip_is_torchs(max_norm, dtype, device):
    if device == "mps" and dtype == torch.float64: pytest.skip("no float64 there")
    ours, theirs = twins(device, dtype)
    give(ours, theirs, missing={1})
    assert_close(gradient_clip(iter(ours), max_norm), nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(ours, theirs):
        if a.grad is not None: assert_close(a.grad, b.grad)
    assert ours[1].grad is None


def test_clip_takes_one_tensor_and_mixed_types():
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3., 4.])
    assert_close(gradient_clip(p, 1.), torch.tensor(5.))
    mixed = [nn.Parameter(torch.zeros(1, dtype=dtype)) for dtype in (torch.float16, torch.float32, torch.float64)]
    for q, value in zip(mixed, (2., 3., 6.)): q.grad = torch.full_like(q, value)
    assert_close(gradient_clip(mixed, 3.5), torch.tensor(7., dtype=torch.float64))
    assert_close([q.grad.item() for q in mixed], [1., 1.5, 3.], rtol=1e-3, atol=0)


def test_clip_measures_half_precision_wide():
    p = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    p.grad = torch.full_like(p, 60_000.)                     # their norm, 120,000, is past float16's largest number
    assert_close(gradient_clip(p, 1.), torch.tensor(120_000.))
    assert_close(p.grad, torch.full_like(p, 0.5))


def test_a_group_without_parameters_does_no_harm():
    assert gradient_clip([], 1.) == 0
    AdamW(params_for_decay(nn.Linear(2, 2, bias=False))).step()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_clip_reports_what_is_not_finite_and_leaves_it(bad):
    ours, _ = twins()
    give(ours)
    ours[0].grad[0, 0] = bad
    before = [p.grad.clone() for p in ours]
    assert not gradient_clip(ours, 1.).isfinite()
    for p, grad in zip(ours, before): assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [-1., math.nan])
def test_clip_refuses_a_senseless_length(bad):
    with pytest.raises(ValueError, match=f"max_norm must not be negative, but is {bad}"): gradient_clip([], bad)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)], ids=str)
def test_muon_goes_where_torchs_goes(shape, device):
    ours, theirs = (nn.Parameter(torch.zeros(shape, device=device)) for _ in range(2))
    a, b = Muon([ours], lr=0.1, weight_decay=0.1), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1)
    for _ in range(10):
        ours.grad = theirs.grad = torch.randn(shape, device=device)
        a.step(); b.step()
        assert_close(a.state[ours]["momentum_buffer"], b.state[theirs]["momentum_buffer"])
    assert_close(ours, theirs, rtol=0, atol=0.1)   # torch computes the iteration in bfloat16, and steps of 0.1 add up to about 0.5
    assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_orthogonalise_turns_with_its_input_and_does_not_see_its_size(device):
    M, turn = torch.randn(2, 7, 4, device=device), torch.linalg.qr(torch.randn(7, 7, device=device))[0]
    tolerance = dict(rtol=0, atol=0.05) if device == "cuda" else {}   # bfloat16 there
    assert_close(orthogonalise(turn @ M), turn @ orthogonalise(M), **tolerance)
    assert_close(orthogonalise(1e3 * M), orthogonalise(M), **tolerance)
    assert_close(orthogonalise(M.mT), orthogonalise(M).mT, **tolerance)
    assert orthogonalise(M.half()).dtype == torch.float16


def test_muon_refuses_what_is_no_matrix_and_torchs_other_settings():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"Muon trains only matrices, but one parameter has the shape \(3,\); leave it to AdamW"): Muon([p]).step()
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), but is 1.0"): Muon([p], momentum=1.)
    with pytest.raises(ValueError, match="nesterov=True is not supported"): Muon([p]).load_state_dict(torch.optim.Muon([nn.Parameter(torch.ones(3, 3))]).state_dict())


def test_together_is_both_and_resumes(tmp_path):
    def make():
        torch.manual_seed(0)
        matrices, vectors = [nn.Parameter(torch.randn(3, 4)) for _ in range(2)], [nn.Parameter(torch.randn(5))]
        return matrices, vectors
    def give(params, step):
        torch.manual_seed(step)
        for p in params: p.grad = torch.randn_like(p)
    (m1, v1), (m2, v2), (m3, v3) = make(), make(), make()
    apart = Muon(m1), AdamW(v1)
    joined = Together(Muon(m2), AdamW(v2))
    for step in range(3):
        give(m1 + v1, step); give(m2 + v2, step)
        for optimizer in *apart, joined: optimizer.step()
    assert_same(m1 + v1, m2 + v2, rtol=0)
    torch.save(joined.state_dict(), tmp_path/"state.pt")
    again = Together(Muon(m3, lr=9.), AdamW(v3, lr=9.))
    again.load_state_dict(torch.load(tmp_path/"state.pt", weights_only=True))
    for p, q in zip(m3 + v3, m2 + v2): p.data.copy_(q)
    give(m2 + v2, 9); give(m3 + v3, 9)
    joined.step(); again.step()
    assert_same(m2 + v2, m3 + v3, rtol=0)
    with pytest.raises(ValueError, match="more than one parameter group"): Together(Muon(m1), AdamW(m1))
