import numpy as np
import pytest
import torch

from llm_course.engine.ngrams import NgramCounts, mixed_nats


def by_dictionaries(ids, vocab_size, longest, context, token, n):
    "Kneser and Ney's formula for n-grams of n tokens, where `longest` is the table's order."
    if n == 0: return 1 / vocab_size
    length = n if n == longest else n + 1
    grams = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    if n < longest: grams = [gram[1:] for gram in set(grams)]
    counts = {gram: grams.count(gram) for gram in grams}
    once, twice = (list(counts.values()).count(k) for k in (1, 2))
    discount = once / (once + 2 * twice) if once else 0
    shorter = by_dictionaries(ids, vocab_size, longest, context, token, n - 1)
    if len(context) < n - 1: return shorter
    followed = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == tuple(context[len(context) - n + 1:])}
    if not followed: return shorter
    return (max(followed.get(token, 0) - discount, 0) + discount * len(followed) * shorter) / sum(followed.values())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_counts_follow_the_formula_and_add_up_to_one(order):
    rng = np.random.default_rng(order)
    ids = rng.choice(6, 80, p=[.4, .3, .15, .1, .05, 0.])   # one token is never seen
    counts = NgramCounts(ids, 6, order)
    for length in range(5):   # contexts that are shorter and longer than an n-gram
        context = rng.integers(6, size=length)
        rows = np.array([[0, *context, token] for token in range(6)])[:, 0 if length == 0 else 1:]
        known = rows[0, :-1].tolist()
        p = counts.probabilities(rows)[:, -1]
        np.testing.assert_allclose(p, [by_dictionaries(ids.tolist(), 6, order, known, token, order) for token in range(6)], rtol=1e-12)
        np.testing.assert_allclose(p.sum(), 1)


def test_a_row_knows_nothing_of_its_neighbours_or_of_what_follows():
    ids = np.random.default_rng(0).integers(9, size=500)
    counts = NgramCounts(ids, 9)
    rows = ids[:60].reshape(6, 10)
    p = counts.probabilities(rows)
    for row, expected in zip(rows, p): np.testing.assert_array_equal(counts.probabilities(row[None])[0], expected)
    other = rows.copy()
    other[:, 6:] = (other[:, 6:] + 1) % 9
    np.testing.assert_array_equal(counts.probabilities(other)[:, :5], p[:, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_mean_of_both_is_near_the_better_of_them(dtype):
    ids = np.tile(np.arange(5), 20)
    counts = NgramCounts(ids, 5)
    rows = torch.from_numpy(ids[:12].reshape(2, 6))
    wrong = torch.full((2, 5, 5), -100., dtype=dtype)
    wrong[..., 0] = 100.
    nats = mixed_nats(wrong, rows, counts, .35)
    assert nats.shape == (2, 5) and (nats <= -np.log(.35) - torch.from_numpy(np.log(counts.probabilities(rows.numpy()))) + 1e-9).all() and nats.isfinite().all()


@pytest.mark.parametrize("ids, vocab_size, order, message", [
    ([0, 1, 2], 3, 0, "order must be at least 1"), ([0, 1, 2], 2**16, 4, "take a smaller order"), ([0, 1, 3], 3, 2, "ids from 0 to 2"),
    ([0, -1, 1], 3, 2, "ids from 0 to 2"), ([0], 3, 2, "needs at least 2 ids"), ([], 3, 1, "needs at least 1 ids")])
def test_what_cannot_be_counted_is_refused(ids, vocab_size, order, message):
    with pytest.raises(ValueError, match=message): NgramCounts(np.array(ids, np.int64), vocab_size, order)


@pytest.mark.parametrize("share", [-.1, 1.1, float("nan")])
def test_a_share_is_a_part_of_the_whole(share):
    counts = NgramCounts(np.arange(5), 5)
    with pytest.raises(ValueError, match="share must be between 0 and 1"): mixed_nats(torch.zeros(1, 3, 5), torch.zeros(1, 4, dtype=torch.long), counts, share)
