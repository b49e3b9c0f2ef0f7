"""Batches, with mistakes."""
import numpy as np
import torch


def batches(name, starts=lambda rng, n, b, t: rng.integers(0, n - t, b), ahead=1, rng=lambda seed, it: np.random.default_rng((seed, it)), dtype=torch.int64, finish=lambda x, y: (x, y)):
    "A `get_batch` that is right but for what is given."
    def part(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=0):
        places = starts(rng(seed, iteration), len(dataset), batch_size, max_seq_len)
        take = lambda at: torch.stack([torch.from_numpy(np.asarray(dataset[i + at:i + at + max_seq_len]).astype(np.int64)) for i in places]).to(dtype)
        return tuple(x.to(device) for x in finish(take(0), take(ahead)))
    part.__name__ = name
    return part


def one_too_far(dataset, batch_size, max_seq_len, device="cpu", *, seed=0, iteration=0):
    "The last target would lie behind the end; the row is filled with its beginning instead."
    ids = torch.from_numpy(np.asarray(dataset).astype(np.int64))
    places = torch.randint(len(ids) - max_seq_len + 1, (batch_size,), generator=torch.Generator().manual_seed(1000 * seed + iteration))
    return tuple(torch.stack([ids.roll(-int(i) - k)[:max_seq_len] for i in places]).to(device) for k in (0, 1))


shared = np.random.default_rng(0)

FAULTY = {"get_batch": [
    batches("targets_not_shifted", ahead=0), batches("targets_two_ahead", ahead=2, starts=lambda rng, n, b, t: rng.integers(0, n - t - 1, b)),
    batches("last_start_missing", starts=lambda rng, n, b, t: rng.integers(0, n - t - 1, b)),
    batches("first_start_missing", starts=lambda rng, n, b, t: rng.integers(1, n - t, b)), one_too_far,
    batches("one_batch_for_all_steps", rng=lambda seed, it: np.random.default_rng(seed)),
    batches("seed_not_heard", rng=lambda seed, it: np.random.default_rng(it)),
    batches("goes_on_where_it_was", rng=lambda seed, it: shared),
    batches("seeds_that_meet", rng=lambda seed, it: np.random.default_rng(seed + it)),
    batches("rows_one_after_another", starts=lambda rng, n, b, t: (np.arange(b) * t) % (n - t)),
    batches("favours_the_front", starts=lambda rng, n, b, t: (rng.random(b)**2 * (n - t)).astype(int)),
    batches("int32", dtype=torch.int32), batches("columns_are_rows", finish=lambda x, y: (x.T, y.T)), batches("inputs_and_targets_swapped", finish=lambda x, y: (y, x)),
]}
