"""The schedule, with mistakes."""
import math


def cosine(u): return (1 + math.cos(math.pi * u)) / 2
def line(u): return 1 - u


def schedule(name, climb=lambda it, warm: it / warm, fall=cosine, place=lambda it, warm, end: (it - warm) / (end - warm), after=True, checks=True):
    "A `cos_lr_scheduler` that is right but for what is given."
    def part(it, warmup_iters, cos_cycle_iters, lr_min, lr_max):
        if checks and warmup_iters > cos_cycle_iters: raise ValueError("the warm-up must not exceed the cycle")
        if it < warmup_iters: return lr_max * climb(it, warmup_iters)
        if after and it >= cos_cycle_iters: return lr_min
        return lr_min + (lr_max - lr_min) * fall(place(it, warmup_iters, cos_cycle_iters))
    part.__name__ = name
    return part


FAULTY = {"cos_lr_scheduler": [
    schedule("climbs_from_one_step", climb=lambda it, warm: (it + 1) / warm),
    schedule("a_line_instead_of_a_cosine", fall=line),
    schedule("a_whole_cosine", fall=lambda u: (1 + math.cos(2 * math.pi * u)) / 2),
    schedule("cycle_begins_at_zero", place=lambda it, warm, end: it / end),
    schedule("climbs_again_after_the_end", after=False),
    schedule("takes_any_warm_up", checks=False),
    schedule("one_step_ahead", place=lambda it, warm, end: (it + 1 - warm) / (end - warm)),
    schedule("falls_to_zero", fall=lambda u: 2 * cosine(u) - 1),
    lambda it, warm, end, low, high: schedule("always_warms")(it, max(warm, 1), end, low, high),
],
"linear_lr_scheduler": [
    schedule("a_cosine_instead_of_a_line"), schedule("falls_twice_as_fast", fall=lambda u: 1 - 2*u), schedule("line_begins_at_zero", fall=line, place=lambda it, warm, end: it / end),
    schedule("line_goes_on_below", fall=line, after=False), schedule("line_takes_any_warm_up", fall=line, checks=False),
    schedule("line_climbs_from_one_step", climb=lambda it, warm: (it + 1) / warm, fall=line)]}
