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


FAULTY = {
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
