"""Optimisers and clipping, with mistakes."""
import math

import torch


def adamw(name, **wrong):
    "An `AdamW` that is right but for what is given."
    class Part(torch.optim.Optimizer):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
            super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                (beta1, beta2), lr, eps, decay = group["betas"], group["lr"], group["eps"], group["weight_decay"]
                for p in group["params"]:
                    if p.grad is None and not wrong.get("decays_all"): continue
                    g = torch.zeros_like(p) if p.grad is None else p.grad
                    if wrong.get("l2"): g = g + decay * p
                    if wrong.get("changes_gradient"): g = g.mul_(1 + decay)
                    state = self.state[p]
                    if not state: state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                    state["t"] += 1
                    t = state["t"] - bool(wrong.get("late"))
                    state["m"].lerp_(g, 1 - beta1)
                    state["v"].lerp_(g.abs() if wrong.get("mean_size") else g * g, 1 - beta2)
                    m, v = state["m"], state["v"]
                    if not wrong.get("uncorrected"): m, v = m / max(1 - beta1**t, 1e-3), v / (1 if wrong.get("half_corrected") else max(1 - beta2**t, 1e-6))
                    root = (v + eps).sqrt() if wrong.get("eps_inside") else v.sqrt() + eps
                    if wrong.get("no_root"): root = v + eps
                    if not wrong.get("l2"): p -= p * (decay if wrong.get("decay_without_lr") else lr * decay)
                    p += (1 if wrong.get("uphill") else -1) * lr * m / root
    Part.__name__ = name
    return Part


def sgd(name, rate=lambda lr, t: lr / math.sqrt(t + 1), own=True, idle=False, spoils=False):
    "An `SGDDecay` that is right but for what is given."
    class Part(torch.optim.Optimizer):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, dict(lr=lr))
            self.t = 0

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if idle and p.grad is None: p -= 0.01
                    if p.grad is not None: p -= rate((group if own else self.defaults)["lr"], self.t) * (p.grad.mul_(.5) if spoils else p.grad)
            self.t += 1
    Part.__name__ = name
    return Part


def clip(name, scale=lambda norm, limit: min(1, limit / (norm + 1e-6)), returns=lambda norm, limit: norm, together=True):
    "A `gradient_clip` that is right but for what is given."
    def part(params, max_norm):
        grads = [p.grad for p in params if p.grad is not None]
        norms = [float(g.norm()) for g in grads]
        norm = math.hypot(*norms)
        for g, own in zip(grads, norms): g.mul_(scale(norm if together else own, max_norm))
        return returns(norm, max_norm)
    part.__name__ = name
    return part


def takes_all_for_given(params, max_norm):
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    for p in params: p.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
    return norm


def makes_gradients(params, max_norm):
    for p in params: p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    return takes_all_for_given(params, max_norm)


def muon(name, norm=True, steps=5, ahead=True, shape=True, uphill=False, l2=False, always=True, direct=False):
    "A `Muon` that is right but for what is given."
    class Part(torch.optim.Optimizer):
        def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.01): super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

        @torch.no_grad()
        def step(self):
            for group in self.param_groups:
                lr, beta, decay = group["lr"], group["momentum"], group["weight_decay"]
                for p in group["params"]:
                    g = p.grad + decay * p if l2 else p.grad
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    m.lerp_(g, 1 - beta)
                    x = g.lerp(m, beta) if ahead else m.clone()
                    if direct: x = x.sign()
                    else:
                        if norm: x = x / x.norm().clamp(min=1e-7)
                        for _ in range(steps):
                            a = x @ x.mT
                            x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
                    if not l2 and always: p.mul_(1 - lr * decay)
                    p.add_(x, alpha=(lr if uphill else -lr) * (max(1, p.shape[0] / p.shape[1])**.5 if shape else 1))
    Part.__name__ = name
    return Part


FAULTY = {
    "Muon": [muon("unscaled", norm=False), muon("four_times", steps=4), muon("does_not_look_ahead", ahead=False), muon("forgets_the_shape", shape=False),
             muon("uphill", uphill=True), muon("decays_through_the_gradient", l2=True), muon("never_decays", always=False), muon("a_sign_for_each_number", direct=True)],
    "AdamW": [adamw(name, **{name: True}) for name in (
        "l2", "changes_gradient", "late", "mean_size", "uncorrected", "half_corrected", "eps_inside", "no_root", "decay_without_lr", "uphill", "decays_all")],
    "SGDDecay": [
        sgd("no_decay", lambda lr, t: lr), sgd("decays_like_one_over_t", lambda lr, t: lr / (t + 1)), sgd("t_from_one", lambda lr, t: lr / math.sqrt(t + 2)),
        sgd("uphill", lambda lr, t: -lr / math.sqrt(t + 1)), sgd("one_rate_for_all_groups", own=False), sgd("moves_what_is_idle", idle=True),
        sgd("spoils_the_gradient", spoils=True)],
    "gradient_clip": [
        clip("each_tensor_by_itself", together=False), clip("always_scales", lambda norm, limit: limit / (norm + 1e-6)),
        clip("returns_the_new_norm", returns=min), clip("never_scales", lambda norm, limit: 1),
        clip("divides_by_the_square", lambda norm, limit: min(1, limit / (norm**2 + 1e-6))), takes_all_for_given, makes_gradients],
}
