"""Ways to sample, with mistakes."""
import torch

from llm_course.generating import keep_min_p, keep_top_k, keep_top_p, penalise


def named(name, part):
    part.__name__ = name
    return part


def cumulative(name, drop=lambda total, p, share: total - p >= share, descending=True, unsort=True, all_at_one=True, keep_first=True):
    "A `keep_top_p` that is right but for what is given."
    def part(logits, share):
        if share >= 1 and all_at_one: return logits
        ranked, order = logits.sort(dim=-1, descending=descending, stable=True)
        p = ranked.float().softmax(-1)
        out = drop(p.cumsum(-1), p, share)
        if keep_first: out[..., 0] = False
        ranked = ranked.masked_fill(out, -torch.inf)
        return torch.empty_like(logits).scatter(-1, order, ranked) if unsort else logits.masked_fill(out, -torch.inf)
    return named(name, part)


def by_threshold(logits, k):
    if k == 0: return logits
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1, None]
    return logits.masked_fill(logits < least, -torch.inf)


def first_rows_threshold(logits, k): return logits if k == 0 else logits.masked_fill(logits < logits.flatten().topk(min(k, logits.numel())).values[-1], -torch.inf)


FAULTY = {
    "keep_top_k": [
        by_threshold, first_rows_threshold,
        named("more_than_the_kth", lambda z, k: z.masked_fill(z <= z.topk(min(k or z.shape[-1], z.shape[-1])).values[..., -1, None], -torch.inf)),
        named("one_more", lambda z, k: keep_top_k(z, k + 1 if k else 0)), named("none_at_zero", lambda z, k: keep_top_k(z, k) if k else torch.full_like(z, -torch.inf)),
        named("the_least_likely", lambda z, k: -keep_top_k(-z, k).nan_to_num(neginf=torch.inf) if k else z), named("zeros_instead", lambda z, k: keep_top_k(z, k).nan_to_num(neginf=0.)),
        named("values_only", lambda z, k: z.topk(min(k or z.shape[-1], z.shape[-1])).values), named("probabilities", lambda z, k: keep_top_k(z, k).softmax(-1)),
        named("crashes_beyond_the_vocabulary", lambda z, k: keep_top_k(z, k) if k <= z.shape[-1] else z.topk(k)),
        named("front_of_the_list", lambda z, k: torch.where(torch.arange(z.shape[-1]) < (k or z.shape[-1]), z, -torch.inf)),
    ],
    "keep_top_p": [
        cumulative("drops_what_crosses", drop=lambda total, p, share: total > share), cumulative("one_too_many", drop=lambda total, p, share: (total - p).roll(1, -1) >= share),
        cumulative("from_the_bottom", descending=False), cumulative("mask_not_brought_back", unsort=False), cumulative("each_by_itself", drop=lambda total, p, share: p < share),
        cumulative("nothing_at_zero", keep_first=False), cumulative("drops_at_one", drop=lambda total, p, share: total - p >= min(share, .98), all_at_one=False),
        named("in_order_of_ids", lambda z, p: z.masked_fill(z.softmax(-1).cumsum(-1) - z.softmax(-1) >= p, -torch.inf) if p < 1 else z),
        named("share_left_out", lambda z, p: keep_top_p(z, 1 - p)), named("like_min_p", keep_min_p), named("renormalised", lambda z, p: keep_top_p(z, p).log_softmax(-1)),
        named("higher_id_first", lambda z, p: keep_top_p(z.flip(-1), p).flip(-1)), named("whole_batch", lambda z, p: keep_top_p(z.flatten(), p).view_as(z)),
    ],
    "keep_min_p": [
        named("absolute", lambda z, p: z.masked_fill(z.softmax(-1) < p, -torch.inf)), named("of_the_scores", lambda z, p: z.masked_fill(z < p * z.amax(-1, keepdim=True), -torch.inf)),
        named("of_the_whole_batch", lambda z, p: z.masked_fill(z.softmax(-1) < p * z.softmax(-1).max() * .999, -torch.inf)), named("strictly_above", lambda z, p: z.masked_fill(z.softmax(-1) <= p * z.softmax(-1).amax(-1, keepdim=True) * 1.00001, -torch.inf)),
        named("turned_round", lambda z, p: keep_min_p(z, 1 - p)), named("keeps_the_rest", lambda z, p: z.masked_fill(z.softmax(-1) >= p * z.softmax(-1).amax(-1, keepdim=True), -torch.inf)),
        named("logarithm_forgotten", lambda z, p: z.masked_fill(z < z.amax(-1, keepdim=True) - p, -torch.inf)), named("like_top_p", keep_top_p), named("shares_out", lambda z, p: keep_min_p(z, p).softmax(-1)),
        named("of_the_mean", lambda z, p: z.masked_fill(z.softmax(-1) < p * z.softmax(-1).mean(-1, keepdim=True), -torch.inf)),
    ],
    "penalise": [
        named("always_divides", lambda z, ids, p: z.scatter(-1, ids, z.gather(-1, ids) / p)), named("always_subtracts", lambda z, ids, p: z.scatter(-1, ids, z.gather(-1, ids) - p)),
        named("once_for_each_time", lambda z, ids, p: z - (z.abs() * (p - 1) / p) * torch.zeros_like(z).scatter_add(-1, ids, torch.ones(ids.shape))),
        named("everything", lambda z, ids, p: torch.where(z > 0, z / p, z * p)), named("rewards", lambda z, ids, p: penalise(z, ids, 1 / p)), named("bans", lambda z, ids, p: z.scatter(-1, ids, -torch.inf)),
        named("first_row_for_all", lambda z, ids, p: penalise(z, ids if ids.ndim < 2 else ids[:1].expand_as(ids), p)), named("last_token_only", lambda z, ids, p: penalise(z, ids[..., -1:], p)),
        named("does_nothing", lambda z, ids, p: z), named("in_place", lambda z, ids, p: z.copy_(penalise(z, ids, p))), named("needs_a_word", lambda z, ids, p: penalise(z, ids, p) if ids.shape[-1] else z[..., 1:]),
    ],
}


def chain(name, order="penalty heat k p m", end=lambda z: z.softmax(-1), heat=lambda z, t: z / t):
    "A `next_probabilities` that is right but for what is given."
    def part(logits, ids, how):
        if how.temperature == 0 and "penalty" in order: logits = penalise(logits, ids, how.repetition_penalty)
        if how.temperature == 0: return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        does = dict(penalty=lambda z: penalise(z, ids, how.repetition_penalty), heat=lambda z: heat(z, how.temperature), k=lambda z: keep_top_k(z, how.top_k), p=lambda z: keep_top_p(z, how.top_p), m=lambda z: keep_min_p(z, how.min_p))
        for word in order.split(): logits = does[word](logits)
        return end(logits)
    return named(name, part)


FAULTY["next_probabilities"] = [
    chain("temperature_at_the_end", "penalty k p m heat"), chain("no_temperature", "penalty k p m"), chain("multiplies", heat=lambda z, t: z * t), chain("no_top_k", "penalty heat p m"), chain("no_top_p", "penalty heat k m"),
    chain("no_min_p", "penalty heat k p"), chain("no_penalty", "heat k p m"), chain("min_p_before_top_p", "penalty heat k m p"), chain("top_p_before_top_k", "penalty heat p k m"), chain("scores", end=lambda z: z),
    chain("logarithms", end=lambda z: z.log_softmax(-1)), chain("penalty_last", "heat k p m penalty"),
    named("divides_by_zero", lambda z, ids, how: chain("")(z / how.temperature, ids, how) if how.temperature else (z / 0.).softmax(-1)),
]
