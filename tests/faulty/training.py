"""Training steps, with mistakes."""
from types import SimpleNamespace

import torch
from torch.nn import functional as F


def stepper(name, before=lambda opt: opt.zero_grad(), between=lambda opt: None, scale=lambda loss, n: loss / n, clip=True, step=lambda opt: opt.step(), give=lambda losses, norm: (sum(losses) / len(losses), norm),
            loss=lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()), zero_is_a_limit=False, late_clip=False):
    "A `train_step` that is right but for what is given."
    def part(model, optimizer, scaler, batches, max_norm):
        before(optimizer)
        losses = []
        for x, y in batches:
            between(optimizer)
            one = loss(model(x), y)
            scaler.scale(scale(one, len(batches))).backward()
            losses.append(one.detach())
        scaler.unscale_(optimizer)
        steps = SimpleNamespace(step=lambda: scaler.step(optimizer), again=optimizer.step)
        if late_clip: step(steps)
        limit = max_norm if max_norm or zero_is_a_limit else float("inf")
        norm = torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit if clip else float("inf"))
        if not late_clip: step(steps)
        scaler.update()
        return give(losses, norm)
    part.__name__ = name
    return part


def measures_again(model, optimizer, scaler, batches, max_norm):
    _, norm = stepper("")(model, optimizer, scaler, batches, max_norm)
    return torch.stack([F.cross_entropy(model(x).flatten(0, 1), y.flatten()) for x, y in batches]).mean().detach(), norm


def steps_for_each(model, optimizer, scaler, batches, max_norm):
    return [stepper("")(model, optimizer, scaler, [batch], max_norm) for batch in batches][-1]


FAULTY = {"train_step": [
    stepper("never_clears", before=lambda opt: None), stepper("clears_for_each_batch", between=lambda opt: opt.zero_grad()), stepper("adds_up_gradients", scale=lambda loss, n: loss),
    stepper("never_steps", step=lambda opt: None), stepper("steps_twice", step=lambda opt: (opt.step(), opt.again())), stepper("never_clips", clip=False), stepper("clips_at_zero", zero_is_a_limit=True),
    stepper("clips_too_late", late_clip=True), stepper("returns_the_last_loss", give=lambda losses, norm: (losses[-1], norm)), stepper("returns_the_sum", give=lambda losses, norm: (sum(losses), norm)),
    stepper("returns_the_loss_alone", give=lambda losses, norm: losses[0]), stepper("returns_them_swapped", give=lambda losses, norm: (norm, losses[0])),
    stepper("predicts_the_same_token", loss=lambda logits, y: F.cross_entropy(logits[:, 1:].flatten(0, 1), y[:, :-1].flatten())), measures_again, steps_for_each,
]}
