"How the next token is drawn, that the cache changes nothing, and that text comes whole."
import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from functools import partial
from itertools import pairwise

import pytest
import torch
from apart import apart
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine import decoding, int8
from llm_course.engine.decoding import Step, bind_product, count_parts, is_plain, processor_maker
from llm_course.engine.int8 import RoundedLinear, at_precision
from llm_course.engine.kv_cache import new_cache
from llm_course.engine.reader import Reader, last_scores, side_by_side
from llm_course.engine.sampling import draw, quick_probabilities
from llm_course.engine.speaking import GenerateConfig, open_models
from llm_course.engine.speculation import accept_guesses, speculate
from llm_course.engine.voices import END, Voice, first_ids
from llm_course.generating import (
    Sampling,
    generate,
    generate_ids,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    load_demo,
    main,
    next_probabilities,
    penalise,
    pick,
    stream,
    stream_ids,
)
from llm_course.linear import Linear
from llm_course.softmax import softmax
from llm_course.transformer import Transformer

inf = math.inf
P = torch.tensor([.5, .3, .15, .05])
NOTHING = torch.tensor([], dtype=torch.int64)


def kept(logits): return [i for i, x in enumerate(logits.tolist()) if x > -inf]

def small(device="cpu", vocab=300, room=16, **more):
    "An untrained model whose answers are far from level, so that its favourites are no matter of rounding."
    torch.manual_seed(1)
    model = Transformer(vocab, room, 32, 2, 4, 48, **more, device=device)
    with torch.no_grad(): model.head.weight.normal_(std=0.5)
    return model.eval()

def chances(how): return partial(next_probabilities, how=how)

def text(b, t, device="cpu", vocab=300): return torch.randint(vocab, (b, t), generator=torch.Generator().manual_seed(2)).to(device)

def forced(favourites):
    "A model of no layers that matter: after token `i` it is nearly sure of `favourites[i]`."
    n = len(favourites)
    model = Transformer(n, 8, n + n % 2, 1, 1, 2).eval()
    with torch.no_grad():
        for p in model.blocks.parameters(): p.zero_()
        model.embedding.weight.copy_(torch.eye(n, n + n % 2))
        model.head.weight.zero_()
        for i, j in enumerate(favourites): model.head.weight[j, i] = 50.
    return model

def bytes_only(*special): return BpeTokenizer({i: bytes([i]) for i in range(256)}, [], special)


# ---- What is kept

scores = st.lists(st.sampled_from([-inf, -80., -3., -1.5, -1., 0., 0.25, 1., 2., 7., 80.]), min_size=1, max_size=12).filter(lambda x: max(x) > -inf)

def ranked(logits): return sorted(range(len(logits)), key=lambda i: (-logits[i], i))

def shares(logits):
    powers = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(powers) for x in powers]


@pytest.mark.parametrize("name, hint", [("max_new_tokens", "did you mean max_tokens"), ("topk", "did you mean top_k"), ("temperatur", "did you mean temperature"), ("temp", "did you mean temperature"), ("num_beams", "there are ")])
def test_a_name_of_another_library_is_refused_with_the_nearest_of_ours(name, hint):
    model, tokenizer = load_demo("cpu")
    for call, words in ((generate, (tokenizer, "O")), (generate, (tokenizer, ["O"])), (stream, (tokenizer, "O")), (generate_ids, (torch.tensor([[5]]), 1))):
        with pytest.raises(TypeError, match=rf"^{call.__name__}\(\) takes no {name}; {hint}") as caught: call(model, *words, **{name: 3})
        listed = str(caught.value).partition("there are ")[2].split(", ")
        dials = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} | ({"max_tokens", "seed", "stop", "draft", "ahead"} if call is not generate_ids else {"stop_id", "generator", "padding"})
        assert {*listed} == dials and len(listed) == len(dials)
    assert generate(model, tokenizer, "O", max_tokens=3, seed=0, top_k=1) == generate(model, tokenizer, "O", 3, 0.)


@given(scores, st.integers(0, 14))
@settings(max_examples=100, deadline=None)
def test_top_k_keeps_the_first_in_rank(logits, k):
    want = [i for i in sorted(ranked(logits)[:k or None]) if logits[i] > -inf]
    assert kept(keep_top_k(torch.tensor(logits), k)) == want


@given(scores, st.sampled_from([0., 0.0999, 0.2501, 0.4999, 0.5001, 0.7499, 0.9001, 0.98765, 1.]))
@settings(max_examples=100, deadline=None)
def test_top_p_keeps_the_fewest_that_hold_p(logits, p):
    probabilities, want, held = shares(logits), [], 0.
    order = ranked(logits)
    while order and (not want or held < p or p == 1):
        held += probabilities[order[0]]
        if abs(held - p) < 1e-5 and p < 1: return   # on the border float32 decides
        want.append(order.pop(0))
    assert kept(keep_top_p(torch.tensor(logits), p)) == sorted(i for i in want if logits[i] > -inf)


@given(scores, st.sampled_from([0., 1e-9, 0.1, 0.35, 0.7, 0.9, 1.]))
@settings(max_examples=100, deadline=None)
def test_min_p_keeps_what_comes_near_the_best(logits, p):
    want = [i for i, x in enumerate(logits) if x > -inf and (p == 0 or x >= max(logits) + math.log(p))]
    assert kept(keep_min_p(torch.tensor(logits), p)) == want


cuts = [lambda x: keep_top_k(x, 3), lambda x: keep_top_p(x, 0.8), lambda x: keep_min_p(x, 0.3)]

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("cut", cuts, ids=["k", "p", "min"])
def test_half_precision_keeps_what_double_does(cut, dtype):
    logits = torch.randn(50, 200).mul(3).to(dtype)
    out = cut(logits)
    assert out.dtype == dtype
    assert torch.equal(out.isfinite(), cut(logits.double()).isfinite())


@pytest.mark.parametrize("cut", cuts, ids=["k", "p", "min"])
def test_scores_need_not_lie_in_a_row(cut, device):
    logits = torch.randn(2, 7, 3, device=device).mT
    assert torch.equal(cut(logits), cut(logits.contiguous()))


def test_exact_shares_are_enough_and_what_cuts_nothing_copies_nothing():
    logits = torch.tensor([0., -20., -21., -90.])
    assert [len(kept(keep_top_p(torch.zeros(4), p))) for p in (0.25, 0.2501, 0.5, 0.75)] == [1, 2, 2, 3]   # exact shares: `p` is enough
    assert keep_top_k(logits, 0) is logits and keep_top_k(logits, 4) is logits and keep_min_p(logits, 0.) is logits


def test_a_penalty_below_one_raises_and_ids_may_be_of_any_integer_type(device):
    logits = torch.tensor([[2., 1., 0., -2.], [4., -4., 1., -inf]], device=device)
    said = torch.tensor([[0, 3, 3], [1, 0, 3]], device=device)
    assert_close(penalise(logits, said.int(), 0.5), torch.tensor([[4., 1., 0., -1.], [8., -2., 1., -inf]], device=device))
    assert penalise(logits, said, 1.) is logits


# ---- What is drawn from

@pytest.mark.parametrize("how, want", [
    (Sampling(1., 0.9), [10/19, 6/19, 3/19, 0]),
    (Sampling(1., 0.7, top_k=3), [5/8, 3/8, 0, 0]),             # top-p counts shares of what top-k left
    (Sampling(1., 0.52, top_k=3), [1, 0, 0, 0]),                # 10/19 is more than 0.52, 0.5 is not
    (Sampling(1., 0.6, min_p=0.7), [1, 0, 0, 0]),
    (Sampling(2., 0.75), [*(P[:3].sqrt() / P[:3].sqrt().sum()).tolist(), 0]),   # temperature comes before top-p
    (Sampling(1., 0.), [1, 0, 0, 0]),
    (Sampling(0., 0.5, 2), [1, 0, 0, 0]),
    (Sampling(1e-40, 1.), [1, 0, 0, 0]),
    (Sampling(1e-300, 1.), [1, 0, 0, 0]),
    (Sampling(1e30, 1.), [.25]*4),
], ids=str)
def test_distribution_is_the_one_worked_out_by_hand(how, want, device):
    got = next_probabilities(P.log().to(device), NOTHING.to(device), how)
    assert_close(got.cpu(), torch.tensor(want, dtype=torch.float32))


@pytest.mark.parametrize("how", [Sampling(1., 1.), Sampling(0.7, 0.8), Sampling(1.5, 1., top_k=3), Sampling(1., 1., min_p=0.1), Sampling(1., 0.9, repetition_penalty=1.5)], ids=str)
def test_draws_follow_the_distribution(how, device):
    "Pearson's chi-square, at a level that one seed in a thousand would miss."
    logits, said, n = torch.tensor([1., 2., .5, -1., 0., 1.5, -inf], device=device), torch.tensor([1, 3], device=device), 20_000
    want = next_probabilities(logits, said, how).cpu().double()
    generator = torch.Generator(device).manual_seed(0)
    counts = pick(logits.expand(n, -1), said.expand(n, -1), how, generator).flatten().cpu().bincount(minlength=7)
    assert counts[want == 0].sum() == 0
    inside = want > 0
    chi2 = ((counts - n*want)[inside]**2 / (n*want)[inside]).sum().item()
    limit = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}[int(inside.sum()) - 1]   # 99.9 % quantiles, by degrees of freedom
    assert chi2 < limit


def test_generated_texts_follow_the_products_of_their_tokens():
    "Two tokens drawn in a row from a real model: its 16 two-token texts come as often as the chain rule says."
    model, n = small(vocab=4), 8_000
    with torch.no_grad(): model.head.weight.mul_(0.6)
    how = Sampling(1.3, 0.97)
    start = torch.tensor([[2]])
    first = next_probabilities(model(start)[:, -1], start, how)[0].double()
    pairs = torch.cat([start.expand(4, 1), torch.arange(4)[:, None]], -1)
    want = (first[:, None] * next_probabilities(model(pairs)[:, -1], pairs, how).double()).flatten().detach()
    out = generate_ids(model, start.expand(n, 1), 2, 1.3, 0.97, generator=torch.Generator().manual_seed(0))
    counts = (out[:, 1] * 4 + out[:, 2]).bincount(minlength=16)
    assert counts[want == 0].sum() == 0
    inside = want > 0
    assert inside.sum() > 4
    assert ((counts - n*want)[inside]**2 / (n*want)[inside]).sum() < 37.7   # 99.9 % for 15 degrees of freedom, and more for fewer


def test_greedy_takes_the_best_and_of_equals_the_lower_id(device):
    logits = torch.tensor([[0., 3., 3., 1.], [-inf, -5., -inf, -5.]], device=device)
    state = torch.get_rng_state()
    assert pick(logits, NOTHING.expand(2, 0).to(device), Sampling(0.)).tolist() == [[1], [1]]
    assert torch.equal(torch.get_rng_state(), state)   # no chance was spent


@pytest.mark.parametrize("dtype, big", [(torch.float16, 65504.), (torch.bfloat16, 3e38), (torch.float32, 3e38), (torch.float64, 1e300)])
@pytest.mark.parametrize("temperature", [0., 1e-40, 1., 10.])
def test_huge_scores_are_no_trouble(dtype, big, temperature, device):
    logits = torch.tensor([[-big, 0., big, -inf]], dtype=dtype, device=device)
    got = next_probabilities(logits, NOTHING[None].to(device), Sampling(temperature, 0.9))
    assert_close(got.cpu(), torch.tensor([[0., 0., 1., 0.]], dtype=got.dtype))
    assert pick(logits, NOTHING[None].to(device), Sampling(temperature, 0.9)).item() == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_widened_first(dtype):
    logits = torch.randn(5, 64).mul(4).to(dtype)
    how = Sampling(0.7, 0.95, repetition_penalty=1.3)
    said = torch.randint(64, (5, 9))
    assert_close(next_probabilities(logits, said, how), next_probabilities(logits.float(), said, how))


@pytest.mark.parametrize("row", [[math.nan, 1.], [inf, 1.], [-inf, -inf]], ids=str)
@pytest.mark.parametrize("temperature", [0., 1.])
def test_scores_that_are_no_numbers_are_refused(row, temperature):
    with pytest.raises(ValueError, match="did training diverge"): pick(torch.tensor([[0., 1.], row]), NOTHING.expand(2, 0), Sampling(temperature))


KINDS = {   # what a call may get wrong, and what it is told
    "b'RO'": "prompt must be a text or a list of texts, but has b'RO'; decode them first", "bytearray(b'RO')": "prompt must be a text", "None": "prompt must be a text or a list of texts, but has None", "7": "prompt must be a text or a list of texts, but has 7",
    "['a', b'b']": "but has b'b'; decode them first", "[1, 2]": "but has 1", "Path('a')": "prompt must be a text", "[]": "at least one text", "tokenizer": "prompt must be a text", "'a', stop=b'x'": "stop must be a text or a list of texts, but has b'x'",
    "'a', stop=5": "stop must be a text", "'a', stop=['a', None]": "stop must be a text or a list of texts, but has None", "'a', stop=None": "stop must be a text", "'a', top_k=1.5": "top_k must be a whole number, but is 1.5", "'a', top_k='5'": "top_k must be a whole number, but is '5'",
    "'a', top_k=None": "top_k must be a whole number", "'a', temperature='hot'": "temperature must be a number, but is 'hot'", "'a', temperature=None": "temperature must be a number", "'a', temperature=1j": "temperature must be a number", "'a', top_p='0.9'": "top_p must be a number",
    "'a', min_p=[.1]": "min_p must be a number, but is [0.1]", "'a', repetition_penalty='1'": "repetition_penalty must be a number", "'a', seed=2**70": "seed must be a number of 64 bits, but is 1180591620717411303424", "'a', seed=-2**70": "seed must be a number of 64 bits",
    "'a', seed=1.5": "seed must be a whole number, but is 1.5", "'a', seed='1'": "seed must be a whole number", "'a', max_tokens=1.5": "max_tokens must be a whole number, but is 1.5", "'a', max_tokens='5'": "max_tokens must be a whole number", "'a', max_tokens=None": "max_tokens must be a whole number",
    "'a', max_tokens=-1": "max_tokens must be 0 or more", "'a', draft=model, ahead=1.5": "ahead must be a whole number", "'a', draft=model, ahead=0": "ahead must be at least 1", "'a', draft=model, max_tokens=1.5": "max_tokens must be a whole number"}
IDS = {
    "torch.zeros(2, 3).long()": "ids must be whole numbers in a list, or in an array or a tensor of one axis, but are the shape (2, 3); decode_batch takes several texts", "np.zeros((2, 3), int)": "the shape (2, 3); decode_batch", "torch.tensor(5)": "but are the shape ()",
    "[[1, 2]]": "but are [[1, 2]]", "5": "but are 5", "None": "but are None", "'abc'": "but are 'abc'", "[None]": "but are [None]", "['1']": "but are ['1']", "[1.5]": "but are [1.5]", "[torch.tensor([1, 2])]": "ids must be whole numbers", "torch.tensor([1.5])": "ids must be whole numbers",
    "[99_999]": "id 99999 is not in the vocabulary", "[-1]": "id -1 is not in the vocabulary", "np.array([99_999])": "id 99999 is not in"}
TRIED = """
import json, sys
from pathlib import Path
import numpy as np, torch
from llm_course.generating import generate, load_demo, stream
model, tokenizer = load_demo("cpu")
told = {}
for call in json.loads(sys.argv[1]):
    try: told[call] = repr(eval(call))
    except (TypeError, ValueError) as error: told[call] = str(error)
print(json.dumps(told))
"""


def test_what_is_of_another_kind_is_named():
    "In a process of its own, without the tests' own checks of types."
    wanted = {f"tokenizer.decode({ids})": said for ids, said in IDS.items()}
    for call, said in KINDS.items(): wanted |= {f"generate(model, tokenizer, {call})": said, f"[*stream(model, tokenizer, {call})]": said}
    done = apart(["-c", TRIED, json.dumps([*wanted])])
    told = json.loads(done.stdout)
    assert not {call: told[call] for call, said in wanted.items() if said not in told[call] or "\n" in told[call]}


def test_numbers_of_every_kind_are_taken():
    model, tokenizer = load_demo("cpu")
    said = generate(model, tokenizer, "RO", 4, .8, .9, seed=3, top_k=5)
    more = [f"generate(model, tokenizer, ('RO',), np.int64(4), np.float64(.8), torch.tensor(.9), seed=np.uint8(3), top_k=np.int32(5)) == {[said]!r}"]
    more += [f"generate(model, tokenizer, 'RO', 1, seed={seed}) is None" for seed in ("0", "-1", "2**64 - 1")]
    assert [*json.loads(apart(["-c", TRIED, json.dumps(more)]).stdout).values()] == ["True", "False", "False", "False"]


@pytest.mark.parametrize("bad, message", [
    ({"temperature": -1.}, "temperature must be 0 or more, and finite, but is -1"), ({"temperature": math.nan}, "but is nan"), ({"temperature": inf}, "but is inf"),
    ({"top_p": 1.5}, "top_p must lie between 0 and 1, but is 1.5"), ({"top_p": -.1}, "top_p"), ({"top_p": math.nan}, "top_p"),
    ({"top_k": -1}, r"top_k must be 0 \(all tokens\) or more, but is -1"), ({"min_p": 2.}, "min_p must lie between 0 and 1, but is 2"),
    ({"repetition_penalty": 0.}, "repetition_penalty must be positive, and finite, but is 0"), ({"repetition_penalty": inf}, "but is inf"),
], ids=str)
def test_settings_that_mean_nothing_are_refused(bad, message):
    with pytest.raises(ValueError, match=message): Sampling(**bad)


# ---- The cache changes nothing

@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1}, {"tie": True}], ids=str)
@pytest.mark.parametrize("chunks", [[12], [1]*12, [1, 4, 2, 5], [11, 1]], ids=str)
def test_reading_in_chunks_gives_the_same_scores(chunks, more, device):
    model, ids = small(device, **more), text(3, 12, device)
    reader, end = Reader(model, 3), 0
    for size in chunks:
        end += size
        with torch.no_grad(): assert_close(reader(ids[:, :end]), model(ids[:, :end])[:, -1])
        assert [cache.length for cache in reader.caches] == [end]*2 and reader.step is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_have_caches_of_their_own(dtype):
    model, ids = small().to(dtype), text(2, 12)
    reader = Reader(model, 2)
    assert reader.caches[0].keys.dtype == dtype
    for t in range(3, 13): got = reader(ids[:, :t])
    with torch.no_grad(): want = model(ids)[:, -1]
    assert got.dtype == dtype
    if dtype == torch.float64: assert_close(got, want)
    else: assert (got - want).abs().max() < 0.03 * want.abs().max()   # bfloat16 rounds sums of other orders otherwise


@pytest.mark.parametrize("room", [1, 2, 3, 7, 16])
def test_past_the_context_it_reads_between_half_and_all_of_it_afresh(room, device):
    model, ids = small(device, room=room, num_kv_heads=2), text(2, 60, device)
    reader, longest = Reader(model, 2), 0
    for t in range(1, 61):
        with torch.no_grad(): assert_close(reader(ids[:, :t]), model(ids[:, reader.start:t])[:, -1])
        looked_at = t - reader.start
        longest = max(longest, looked_at)
        assert reader.caches[0].length == looked_at <= room
        assert looked_at == t if t <= room else looked_at >= max(1, room//2)
    assert longest == room


def test_each_token_is_read_about_twice_at_most():
    model, ids, read = small(room=16), text(1, 200), []
    model.embedding.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0].numel()))
    reader = Reader(model)
    for t in range(1, 17): reader(ids[:, :t])
    assert sum(read) == 16
    for t in range(17, 201): reader(ids[:, :t])
    assert sum(read) <= 2 * 200


@pytest.mark.parametrize("more", [{}, {"tie": True}, {"num_kv_heads": 1}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("last", [1, 3, 12])
def test_the_last_scores_are_those_of_the_whole(more, last):
    model, ids = small(**more), text(2, 12)
    ours, theirs = ([new_cache(block.attention, 2) for block in model.blocks] for _ in range(2))
    with torch.inference_mode():
        assert_close(last_scores(model, ids, ours, last), model(ids, caches=theirs)[:, -last:])
        for a, b in zip(ours, theirs): assert a.length == b.length == 12 and torch.equal(a.keys, b.keys)
        heard = []
        model.register_forward_hook(lambda *_: heard.append(1))   # whoever listens to the whole model is heard
        last_scores(model, ids[:, :1], ours)
    assert heard


def test_a_prompt_longer_than_the_context_is_read_from_its_last_part():
    model, ids = small(room=16), text(2, 50)
    reader = Reader(model, 2)
    with torch.no_grad(): assert_close(reader(ids), model(ids[:, -16:])[:, -1])
    out = generate_ids(model, ids, 20, 0.)
    assert torch.equal(out[:, :50], ids)
    assert torch.equal(out[:, 50:], generate_ids(model, ids[:, -16:], 20, 0.)[:, 16:])


@pytest.mark.parametrize("lengths", [(0,), (5, 5), (5, 3), (30, 30)], ids=str)
def test_a_text_that_has_not_grown_is_refused(lengths):
    reader, ids = Reader(small(room=16)), text(1, 40)
    for t in lengths[:-1]: reader(ids[:, :t])
    with pytest.raises(ValueError, match=f"a longer text at each call, but this one has {lengths[-1]} tokens"): reader(ids[:, :lengths[-1]])


@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}], ids=str)
def test_greedy_text_is_the_same_without_a_cache(more, device):
    model, ids = small(device, room=24, **more), text(3, 5, device)
    want = ids
    for _ in range(19):
        with torch.no_grad(): want = torch.cat([want, model(want)[:, -1:].argmax(-1)], -1)
    assert torch.equal(generate_ids(model, ids, 19, temperature=0.), want)
    assert torch.equal(generate_ids(model, ids, 19, top_p=0.), want)
    assert torch.equal(generate_ids(model, ids, 19, top_k=1), want)
    assert torch.equal(generate_ids(model, ids, 19, 1e-40), want)
    for row in range(3): assert torch.equal(generate_ids(model, ids[row:row + 1], 19, 0.), want[row:row + 1])


# ---- Loops and their ends

def test_max_tokens_zero_adds_nothing_and_seeds_repeat():
    model, ids = small(), text(2, 4)
    assert torch.equal(generate_ids(model, ids, 0), ids)
    one, two, other = (generate_ids(model, ids, 10, 1., 1., generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert one.shape == (2, 14) and torch.equal(one, two) and not torch.equal(one, other)
    assert not one.requires_grad and torch.equal(one[:, :4], ids)


def test_rows_that_have_ended_are_filled_and_the_loop_ends_with_the_last():
    model = forced([1, 2, 3, 4, 5, 5])   # counts up to 5 and stays there
    out = generate_ids(model, torch.tensor([[0], [3], [1]]), 100, temperature=0., stop_id=4)
    assert out.tolist() == [[0, 1, 2, 3, 4], [3, 4, 4, 4, 4], [1, 2, 3, 4, 4]]
    assert generate_ids(model, torch.tensor([[0], [3]]), 3, temperature=0., stop_id=4).tolist() == [[0, 1, 2, 3], [3, 4, 4, 4]]
    assert generate_ids(model, torch.tensor([[0], [3]]), 3, temperature=0.).tolist() == [[0, 1, 2, 3], [3, 4, 5, 5]]
    assert generate_ids(model, torch.tensor([[4]]), 2, temperature=0., stop_id=4).tolist() == [[4, 5, 5]]   # a prompt may hold it


def test_a_penalty_reaches_all_that_was_said():
    model = forced([1, 0, 2])   # 0 and 1 in turns
    assert generate_ids(model, torch.tensor([[0]]), 4, temperature=0.).tolist() == [[0, 1, 0, 1, 0]]
    assert generate_ids(model, torch.tensor([[0]]), 2, temperature=0., repetition_penalty=1e9).tolist()[0][:2] == [0, 1]
    assert 0 not in generate_ids(small(), torch.tensor([[0]]), 12, temperature=0., repetition_penalty=1e9)[0, 1:]


@pytest.mark.parametrize("ids, max_tokens, message", [(torch.zeros(1, 0, dtype=torch.int64), 1, "at least one token"), (torch.zeros(1, 1, dtype=torch.int64), -1, "max_tokens must be 0 or more, but is -1")])
def test_nothing_to_go_on_from_is_refused(ids, max_tokens, message):
    with pytest.raises(ValueError, match=message): generate_ids(small(), ids, max_tokens)


def test_tokens_come_one_at_a_time():
    model = small()
    calls = []
    model.norm.register_forward_hook(lambda *_: calls.append(1))
    tokens = stream_ids(model, text(2, 3), 50, Sampling())
    first = next(tokens)
    assert first.shape == (2, 1) and len(calls) == 1   # the second has not been worked out
    next(tokens)
    assert len(calls) == 2


def test_ids_of_another_integer_type_will_do():
    model, ids = small(), text(1, 4)
    assert torch.equal(generate_ids(model, ids.int(), 5, 0., repetition_penalty=1.1).long(), generate_ids(model, ids, 5, 0., repetition_penalty=1.1))


# ---- Text

@given(st.binary(max_size=24), st.lists(st.integers(0, 24), max_size=6))
@settings(max_examples=200, deadline=None)
def test_pieces_join_to_what_all_bytes_say_together(data, cuts):
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    voice = Voice(bytes_only())
    assert "".join(voice.say(piece) for piece in pieces) + voice.rest() == data.decode("utf-8", errors="replace")


@given(st.text(max_size=12))
@settings(max_examples=100, deadline=None)
def test_no_half_character_is_ever_shown(text):
    voice = Voice(bytes_only())
    assert [said for byte in text.encode() if (said := voice.take(byte))] == list(text)


def speaker(said, tokenizer):
    "A model that says these bytes after byte 0, if no byte comes twice."
    ids = [0, *(tokenizer.special_tokens.get(x, x) for x in said)]
    favourites = list(range(tokenizer.vocab_size))
    for a, b in pairwise(ids): favourites[a] = b
    return forced(favourites)


def test_stream_holds_back_half_characters_and_shows_broken_ones():
    tokenizer = bytes_only(END)
    model = speaker([*"a♥b".encode(), 0xf0, 0x9f, END], tokenizer)
    assert list(stream(model, tokenizer, "\0", temperature=0.)) == ["a", "♥", "b", "\ufffd"]
    assert list(stream(model, tokenizer, "\0", max_tokens=3, temperature=0.)) == ["a", "\ufffd"]   # cut off in the middle
    assert generate(model, tokenizer, "\0", max_tokens=4, temperature=0.) == "\0a♥"


def test_end_of_text_ends_it_and_is_not_shown_but_other_special_tokens_are():
    tokenizer = bytes_only("<|other|>", END)
    model = speaker([65, "<|other|>", 66, END], tokenizer)
    assert generate(model, tokenizer, "\0", temperature=0.) == "\0A<|other|>B"
    assert generate(model, tokenizer, f"{END}\0", temperature=0.) == f"{END}\0A<|other|>B"   # in the prompt it ends nothing
    assert generate(model, tokenizer, "\0", 0) == "\0" and list(stream(model, tokenizer, "\0", 0)) == []


def test_an_empty_prompt_begins_a_document():
    tokenizer = bytes_only(END)
    model = speaker([], tokenizer)
    with torch.no_grad(): model.head.weight[72, 256] = 99.
    assert first_ids(model, tokenizer, "") == [256]
    assert generate(model, tokenizer, "", 1, 0.) == "H"
    bare = bytes_only()
    with pytest.raises(ValueError, match="the prompt is empty"): first_ids(speaker([], bare), bare, "")


def test_a_foreign_tokenizer_is_refused_before_anything_is_said():
    model, tokenizer = small(), bytes_only(END)
    with pytest.raises(ValueError, match=r"the model knows 300 ids and the tokenizer 257; use the tokenizer\.json"): stream(model, tokenizer, "a")
    with pytest.raises(ValueError, match="300"): generate(model, tokenizer, "a")


@pytest.mark.parametrize("bad", [{"temperature": -1.}, {"top_p": 2.}, {"top_k": -1}, {"min_p": -1.}, {"repetition_penalty": -1.}], ids=str)
def test_bad_settings_are_refused_before_anything_is_said(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must"): stream(small(vocab=257), bytes_only(END), "a", **bad)


def test_an_id_without_a_token_says_nothing():
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)} | {258: b"!!"}, [])   # 257 and 256 are gaps
    model = forced([257, *range(1, 257), 258, 65])
    assert generate(model, tokenizer, "\0", 3, 0.) == "\0!!A"


def test_seeds_repeat_a_text_and_leave_others_chance_alone(device):
    tokenizer = bytes_only(END)
    model = small(device, vocab=257)
    state = torch.get_rng_state()
    one, two, other = (generate(model, tokenizer, "To", 30, 1., 1., seed=s) for s in (1, 1, 2))
    assert one == two != other
    assert generate(model, tokenizer, "To", 30, 1., 1.) != generate(model, tokenizer, "To", 30, 1., 1.)
    assert torch.equal(torch.get_rng_state(), state)


def test_streamed_pieces_make_the_generated_text():
    model, tokenizer = small(vocab=257), bytes_only(END)
    more = {"seed": 4, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1}
    assert "ab" + "".join(stream(model, tokenizer, "ab", 60, 1.2, 0.95, **more)) == generate(model, tokenizer, "ab", 60, 1.2, 0.95, **more)


# ---- The model that comes along, and the command

def test_the_demo_model_speaks():
    model, tokenizer = load_demo("cpu")
    assert model.config.vocab_size == tokenizer.vocab_size and not model.training
    said = generate(model, tokenizer, "ROMEO:\n", 40, seed=0)
    assert said.startswith("ROMEO:\n") and len(said) > 60 and said == generate(model, tokenizer, "ROMEO:\n", 40, seed=0)


def test_the_command_prints_samples_with_seeds_of_their_own(capsys):
    model, tokenizer, draft = open_models(GenerateConfig(device="cpu"))
    assert draft is None
    main("--prompt My --max_tokens 12 --num_samples 2 --seed 3 --temperature 0.9 --top_p 0.8 --top_k 50 --min_p 0.02 --repetition_penalty 1.2 --device cpu".split())
    texts = [generate(model, tokenizer, "My", 12, 0.9, 0.8, top_k=50, min_p=0.02, repetition_penalty=1.2, seed=s) for s in (3, 4)]
    assert capsys.readouterr().out == f"{texts[0]}\n---\n{texts[1]}\n"
    assert texts[0] != texts[1]


def test_the_module_runs_once():
    "The command stands above the lesson, and finds it as it runs."
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "llm_course.generating", "--help"], capture_output=True, text=True, encoding="utf-8")
    imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines()]
    assert done.returncode == 0 and "llm_course.engine.speaking" in imported and "llm_course.generating" not in imported


@pytest.mark.parametrize("flags, message", [
    ("--seed -1", "--seed must lie between 0 and 2**63 - 1, but is -1"),
    ("--seed 99999999999999999999999", "--seed must"),
    ("--max_tokens -1", "--max_tokens must be 0 or more, but is -1"),
    ("--num_samples 0", "--num_samples must be 1 or more, but is 0"),
    ("--temperature nan", "temperature must"),
    ("--repetition_penalty inf", "repetition_penalty must"),
])
def test_the_command_refuses_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop: main([*flags.split(), "--device", "cpu", "--prompt", "never printed"])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and message in said.err and said.err.count("\n") == 1


# ---- Texts side by side, and the short step

@given(st.integers(0, 2**31), st.sampled_from([0, 1, 5, 100, 250, 2000]), st.sampled_from([0., 0.5, 0.9, 0.999, 1.]), st.sampled_from([0., .05, 1.]),
       st.sampled_from([None, 1, 3]), st.sampled_from([40, 129, 1000]), st.sampled_from([.2, 3.]))
@settings(max_examples=150, deadline=None)
def test_cuts_without_a_sort_give_the_same_numbers_or_nothing(seed, k, p, min_p, decimals, vocab, width):
    logits = width * torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed))
    if decimals is not None: logits = logits.round(decimals=decimals)   # with ties
    logits[0, ::3] = -inf
    scores = logits - logits.amax(-1, keepdim=True)
    for rows in scores, scores[1], scores[:1]:
        plain = softmax(keep_min_p(keep_top_p(keep_top_k(rows, k), p), min_p))
        quick = quick_probabilities(rows, k, p, min_p)
        assert quick is None or torch.equal(quick, plain)


def test_the_sort_is_spared_where_it_can_be_and_only_there():
    "Or the function above might return nothing, always, and pass; and of equals at the border the lower ids must win."
    clear = -torch.arange(1000.)[torch.randperm(1000)] / 100
    for k, p in (0, 1.), (0, .3), (50, 1.), (50, .9), (249, 1.), (2000, 1.): assert quick_probabilities(clear, k, p, 0.) is not None
    level = -torch.arange(3000.)[torch.randperm(3000)] / 1e6
    for p in .1, .9:   # so level that the best 128 tokens are not enough, but 1,024 are; that only all are
        quick = quick_probabilities(level, 0, p, 0.)
        assert torch.equal(quick, softmax(keep_top_p(level, p))) and (quick > 0).sum() == pytest.approx(3000 * p, abs=3)
    for tied in torch.zeros(1000), torch.tensor([0., -1., -1.] + [-50.] * 997):
        assert quick_probabilities(tied, 2, 1., 0.) is None and quick_probabilities(tied, 0, .7, 0.) is None
    assert next_probabilities(torch.zeros(1000), NOTHING, Sampling(1., 1., top_k=2)).nonzero().flatten().tolist() == [0, 1]
    assert quick_probabilities(clear.to("meta"), 50, 1., 0.) is None and quick_probabilities(clear.to("meta"), 0, 1., 0.) is not None   # nobody waits


@given(st.integers(0, 2**31), st.sampled_from([1, 5, 40, 200, 900]), st.sampled_from([0.1, 0.5, 0.9, 0.999]))
@settings(max_examples=40, deadline=None)
def test_the_best_of_many_are_those_of_a_slow_reference(seed, k, p):
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed)).mul(3).round(decimals=1)   # full of ties
    for row in range(2):
        want = ranked(logits[row].tolist())
        assert kept(keep_top_k(logits, k)[row]) == sorted(want[:k])
        held = logits[row].double().softmax(-1)[want].cumsum(-1)
        n = int((held < p).sum()) + 1
        if (held - p).abs().min() > 1e-5: assert kept(keep_top_p(logits, p)[row]) == sorted(want[:n])


@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1}, {"tie": True}], ids=str)
@pytest.mark.parametrize("chunks", [[1]*12, [1, 4, 2, 5], [11, 1], [12]], ids=str)
@pytest.mark.parametrize("padding", [None, (0, 3, 5)], ids=str)
def test_the_short_step_gives_the_models_scores_and_caches(chunks, padding, more, device):
    model, ids = small(device, **more), text(3, 12, device)
    pair = [[new_cache(block.attention, 3) for block in model.blocks] for _ in range(2)]
    if padding:
        for cache in pair[0] + pair[1]: cache.padding = torch.tensor(padding, device=device)
    step, at = Step(model, pair[1]), 0
    with torch.inference_mode():
        for piece in ids.split(chunks, -1):
            want, got, at = model(piece, caches=pair[0]), step(piece), at + piece.shape[1]
            for last in 1, 3, 99:
                for cache in pair[1]: cache.length -= piece.shape[1]
                assert_close(step(piece, last), got[:, -last:])
            for row, places in enumerate(padding or (0, 0, 0)):
                first = max(0, places - (at - piece.shape[1]))
                assert_close(got[row, first:], want[row, first:])
    for a, b in zip(*pair): assert a.length == b.length == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_short_step_in_half_precision(dtype):
    model, ids = small(num_kv_heads=2).to(dtype), text(2, 12)
    step = Step(model, [new_cache(block.attention, 2) for block in model.blocks])
    with torch.inference_mode(): want = model(ids)
    got = torch.cat([step(piece) for piece in ids.split(4, -1)], 1)
    assert got.dtype == dtype and (got - want).abs().max() < 0.03 * want.abs().max()


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_bound_product_is_the_plain_one_in_whatever_parts(parts, bias, add, rows):
    torch.manual_seed(0)
    layer, x, out = Linear(24, 40, bias), torch.empty(rows, 24), torch.empty(rows, 50)[:, :40]   # among others, as queries are
    with torch.inference_mode():
        product = bind_product(layer, x, out, add, parts)
        for _ in range(2):   # the memory stays; what is in it changes
            x.normal_()
            before = out.normal_().clone()
            product()
            assert_close(out, layer(x) + before if add else layer(x))
            layer.weight.mul_(2)   # its matrix is the layer's own


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}, {"tie": True}], ids=str)
def test_a_step_on_either_kind_of_processor(slow, more, monkeypatch):
    "Forced both ways: a matrix in parts, and whole."
    monkeypatch.setattr(decoding, "_mkl_is_slow", lambda: slow)
    asked = []
    monkeypatch.setattr(decoding, "count_parts", lambda *given: asked.append(count_parts(*given)) or asked[-1])
    model, ids = small(**more), text(1, 9)
    reader = Reader(model)
    with torch.inference_mode():
        for t in range(1, 10): assert_close(reader(ids[:, :t]), model(ids[:, :t])[:, -1], rtol=1e-4, atol=1e-4)
    assert asked and (min(asked) >= 2 if slow else set(asked) == {1})


@pytest.mark.parametrize("rows, threads, slow, parts", [(512, 1, True, 2), (512, 2, True, 2), (512, 3, True, 2), (512, 4, True, 4), (512, 64, True, 64),
                                                        (12, 16, True, 4), (7, 4, True, 1), (2, 8, True, 2), (512, 1, False, 1), (512, 8, False, 1)])
def test_as_many_parts_as_threads_where_the_whole_is_slow(rows, threads, slow, parts):
    assert count_parts(rows, threads, slow) == parts


@pytest.mark.parametrize("maker, slow", [("AuthenticAMD", True), ("GenuineIntel", False), ("Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", False),
                                         ("AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", True), ("i386", False)])
@pytest.mark.parametrize("mkl", [True, False])
def test_the_way_is_chosen_by_the_processors_maker(maker, slow, mkl, monkeypatch):
    monkeypatch.setattr(decoding, "processor_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert decoding._mkl_is_slow.__wrapped__() == (slow and mkl)


def test_the_maker_is_read_from_what_the_system_says(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding.platform, "processor", lambda: "elsewhere")
    told = tmp_path/"cpuinfo"
    assert processor_maker(told) == "elsewhere"   # no such file
    told.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: AuthenticAMD?\n\nprocessor\t: 1\nvendor_id\t: AuthenticAMD\n", "utf-8", newline="\n")
    assert processor_maker(told) == "GenuineIntel"
    told.write_text("processor\t: 0\nCPU implementer\t: 0x41\n", "utf-8", newline="\n")   # ARM names no vendor
    assert processor_maker(told) == "elsewhere"


def test_parts_of_ones_own_and_hooks_are_asked_themselves():
    assert is_plain(small()) and not is_plain(small().double())
    hooked, other, own = small(), small(), small()
    hooked.blocks[1].ffn.register_forward_hook(lambda *_: None)
    other.blocks[0].attention.attend = lambda q, k, v, causal=False: v
    class Silent(type(own.norm)):
        def forward(self, x): return x * 0
    own.norm.__class__ = Silent
    assert not is_plain(hooked) and not is_plain(other) and not is_plain(own)
    assert not Reader(own)(text(1, 3)).any()


@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}], ids=str)
@pytest.mark.parametrize("by_heart", [True, False])
def test_prompts_of_different_lengths_get_what_each_gets_alone(by_heart, more, device):
    model = small(device, room=40, **more)
    if not by_heart: model.norm.register_forward_hook(lambda *_: None)
    texts = [text(1, n)[0].tolist() for n in (1, 7, 20, 3)]
    ids, padding = side_by_side(texts, device)
    for penalty in 1., 1.3:
        out = generate_ids(model, ids, 15, 0., padding=padding, repetition_penalty=penalty)
        for row, (said, places) in enumerate(zip(texts, padding.tolist())):
            assert out[row, places:].tolist() == generate_ids(model, torch.tensor([said], device=device), 15, 0., repetition_penalty=penalty)[0].tolist()


def test_past_the_context_texts_side_by_side_are_read_afresh_from_one_window():
    model, (ids, padding) = small(room=16), side_by_side([[1, 2, 3], [4, 5, 6, 7, 8, 9]])
    out, reader = generate_ids(model, ids, 40, 0., padding=padding), Reader(model, 2, padding)
    for t in range(ids.shape[1], out.shape[1]):
        got = reader(out[:, :t])
        for row, places in enumerate(padding.tolist()):
            with torch.no_grad(): assert_close(got[row], model(out[row, max(places, reader.start):t])[-1])


def test_what_cannot_stand_side_by_side_is_refused():
    for texts in [], [[1], []]:
        with pytest.raises(ValueError, match="at least one token of each"): side_by_side(texts)
    with pytest.raises(ValueError, match="padding must leave a token"): generate_ids(small(), text(2, 3), 1, padding=torch.tensor([0, 3]))


# ---- Guessing ahead

def chi_square(counts, want):
    assert counts[want == 0].sum() == 0
    n, inside = counts.sum(), want > 0
    return ((counts - n*want)[inside]**2 / (n*want)[inside]).sum().item()

def test_accepted_guesses_follow_the_models_distribution():
    ours, theirs = torch.tensor([[.5, .3, .15, .05, 0.]]), torch.tensor([[.1, .1, .2, .2, .4]])
    chance = torch.Generator().manual_seed(0)
    firsts = torch.tensor([accept_guesses(draw(theirs, chance)[0], theirs, torch.cat([ours, ours]), chance)[0] for _ in range(8000)])
    assert chi_square(firsts.bincount(minlength=5).double(), ours[0].double()) < 16.3   # 99.9 %, 3 degrees of freedom


def test_speculated_texts_follow_the_processed_distribution(without_shapes):
    "Three tokens in a row, after temperature and top-p: texts come as often as the chain rule says."
    model, how, start = small(vocab=3), Sampling(1.2, .9), torch.tensor([[1]])
    torch.manual_seed(5)
    draft = Transformer(3, 16, 16, 1, 2, 24).eval()
    with torch.no_grad(): model.head.weight.mul_(.5)
    texts = torch.cartesian_prod(*[torch.arange(3)]*3)
    ids, want = torch.cat([start.expand(27, 1), texts], -1), torch.ones(27, dtype=torch.float64)
    for t in 1, 2, 3:
        with torch.no_grad(): want *= next_probabilities(model(ids[:, :t])[:, -1], ids[:, :t], how).double().gather(-1, ids[:, t:t+1])[:, 0]
    chance, counts = torch.Generator().manual_seed(0), torch.zeros(27, dtype=torch.float64)
    for _ in range(1500):
        a, b, c = (int(x) for x in speculate(model, draft, start, 3, chances(how), chance, ahead=2))
        counts[9*a + 3*b + c] += 1
    assert chi_square(counts, want) < 54.1   # 99.9 % for 26 degrees of freedom


@pytest.mark.parametrize("ahead", [1, 4, 9])
@pytest.mark.parametrize("room, draft_room", [(64, 64), (16, 16), (16, 5), (1, 8)])
def test_speculated_greedy_text_is_the_greedy_text(ahead, room, draft_room):
    model, draft = small(room=room, num_kv_heads=2), small(room=draft_room)
    for how in Sampling(0.), Sampling(0., repetition_penalty=1.2):
        for prompt in text(1, 3), text(1, 30):
            want = [int(x) for x in stream_ids(model, prompt, 25, how)]
            assert [int(x) for x in speculate(model, draft, prompt, 25, chances(how), ahead=ahead)] == want


def test_drafts_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="the model knows 300 ids and the draft 257"): list(speculate(small(), small(vocab=257), text(1, 2), 1, chances(Sampling())))
    with pytest.raises(ValueError, match="ahead must be at least 1"): list(speculate(small(), small(), text(1, 2), 1, chances(Sampling()), ahead=0))
    model = small(vocab=257)
    with pytest.raises(ValueError, match="one prompt at a time"): stream(model, bytes_only(END), ["a", "b"], draft=model)


# ---- Stops, several prompts, smaller numbers

@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 12), max_size=5))
@settings(max_examples=200, deadline=None)
def test_a_stop_ends_a_text_however_it_is_cut(said, stops, cuts):
    ends = [(said.index(s) + len(s), said.index(s)) for s in stops if s in said]
    want = said[:min(ends)[1]] if ends else said
    edges, voice = [0, *sorted(min(c, len(said)) for c in cuts), len(said)], Voice(bytes_only(), stops)
    assert "".join(voice.say(said[a:b].encode()) for a, b in pairwise(edges)) + voice.rest() == want


def test_several_prompts_speak_as_each_does_alone(device):
    tokenizer, model = bytes_only(END), small(device, vocab=257, room=64)
    prompts = ["To", "be or not", "\u2665", ""]
    together = generate(model, tokenizer, prompts, 30, 0., stop=["e", "qu"])
    assert together == [generate(model, tokenizer, prompt, 30, 0., stop=["e", "qu"]) for prompt in prompts]
    with pytest.raises(ValueError, match="must not be empty"): stream(model, tokenizer, "a", stop="")


def test_compiled_loops_leave_torch_its_threads():
    "In a process of its own: numba starts its threads once."
    pytest.importorskip("numba")
    code = "import torch; from llm_course.engine import loops; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout == "1\n", done.stdout + done.stderr


@pytest.fixture(scope="module")
def wide():
    "A small model that is wide enough for compiled loops; no two of its sizes are equal, and rows aren't a multiple of 64."
    torch.manual_seed(0)
    return Transformer(90, 32, 264, 2, 6, 328, num_kv_heads=2, tie=True).eval()


@pytest.mark.parametrize("ids", [[[90]], [[-1]], [[3, 95]]])
def test_ids_that_are_none_are_told_by_every_way_to_the_scores(wide, ids):
    for model in wide, deepcopy(wide).bfloat16(), Transformer(90, 32, 32, 2, 4, 48):
        with pytest.raises(IndexError, match=r"token ids must lie in 0…89"): generate_ids(model, torch.tensor(ids), 2)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_one_token_in_compiled_loops_has_the_scores_of_the_model(wide, precision):
    pytest.importorskip("numba")
    model = at_precision(deepcopy(wide), precision)
    with torch.inference_mode():
        slow, fast = ([new_cache(block.attention, 1) for block in model.blocks] for _ in range(2))
        step = Step(model, fast)
        for ids in torch.randint(90, (1, 12)).split([1, 6, 1, 1, 2, 1], -1): torch.testing.assert_close(step(ids), model(ids, caches=slow))
        for wrong in -1, 90:
            with pytest.raises(IndexError, match=f"0…89, not {wrong}"): step(torch.tensor([[wrong]]))
        fast[0].length = 32
        with pytest.raises(ValueError, match="room for 32 positions"): step(torch.tensor([[1]]))
    assert step.alone is not None and all(torch.equal(a.both, b.both) is False for a, b in zip(slow, fast))   # two ways to the same numbers


def test_compiled_loops_serve_what_they_can_compute_and_nothing_else(wide, monkeypatch):
    pytest.importorskip("numba")
    def loops(model, rows=1): return Step(model, [new_cache(block.attention, rows) for block in model.blocks]).alone
    assert loops(wide) is not None
    assert loops(small_model := Transformer(90, 32, 32, 2, 4, 48)) is None and small_model.config.d_model < 256
    assert loops(deepcopy(wide).bfloat16()) is None
    biased = deepcopy(wide)
    biased.blocks[0].attention.q_proj.bias = torch.nn.Parameter(torch.ones(264))
    assert loops(biased) is None
    mixed = deepcopy(wide)
    mixed.blocks[1].ffn.w1 = RoundedLinear(mixed.blocks[1].ffn.w1)
    assert loops(mixed) is None
    padded = [new_cache(block.attention, 1) for block in wide.blocks]
    for cache in padded: cache.padding = torch.tensor([1])
    step = Step(wide, padded)
    with torch.inference_mode(): step(torch.zeros(1, 3, dtype=torch.int64)), step(torch.zeros(1, 1, dtype=torch.int64))
    assert "alone" not in vars(step)
    monkeypatch.setitem(int8._home, "process", -1)   # as in a fork of the process that compiled
    assert loops(wide) is None and not int8.can_compile()


@pytest.mark.parametrize("bits, d_in, d_out, bias", [(8, 32, 48, False), (8, 33, 7, True), (4, 128, 64, True), (4, 64, 3, False)])
@pytest.mark.parametrize("rows", [0, 1, 15, 40])
def test_rounded_weights_are_off_by_half_a_step_and_their_product_is_exact(bits, d_in, d_out, bias, rows, device):
    layer, x = Linear(d_in, d_out, bias=bias, device=device), torch.randn(rows, d_in, device=device)
    if bias: torch.nn.init.normal_(layer.bias)
    short = RoundedLinear(layer, bits)
    step = short.scale.repeat_interleave(d_in // short.scale.shape[1], 1)
    assert ((short.weight - layer.weight).abs() <= step * .501).all() and ((short.weight / step).round().abs() <= 2**(bits - 1) - 1).all()
    want = torch.nn.functional.linear(x, short.weight, layer.bias)
    with torch.no_grad(): torch.testing.assert_close(short(x), want)
    into = torch.ones(rows, 2, d_out, device=device)   # part of a larger memory
    with torch.no_grad(): short.bind(x, into[:, 1], add=True)()
    torch.testing.assert_close(into, torch.stack([torch.ones_like(want), want + 1], 1))


def test_without_numba_and_for_other_types_rounded_weights_are_converted(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    short, x = RoundedLinear(Linear(64, 5), 4), torch.randn(2, 64)
    assert not int8.can_compile()
    torch.testing.assert_close(short(x), x @ short.weight.mT)
    assert short(x.double()).dtype == torch.float64
    x.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(short(x).sum(), x)[0], short.weight.sum(0).expand(2, -1))
    with pytest.raises(ValueError, match="rows whose length is a multiple of 64, not 96"): RoundedLinear(Linear(96, 5), 4)


def test_a_line_break_is_typed_alike_in_every_text(capsys, monkeypatch):
    r"The shell hands over a backslash and an n: `--stop '\n'` ends at a line break, and the same in a prompt is one."
    model, tokenizer = load_demo("cpu")
    whole = generate(model, tokenizer, "ROMEO:\nI", 60, seed=3)
    want = generate(model, tokenizer, "ROMEO:\nI", 60, seed=3, stop="\n")
    assert want != whole
    flags = ["--max_tokens", "60", "--seed", "3", "--precision", "float32", "--device", "cpu", "--stop", r"\n"]
    main(["--prompt", r"ROMEO:\nI", *flags])
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("ROMEO:\\nI\n"))
    main(["--interactive", *flags])
    assert capsys.readouterr().out == 2 * f"{want}\n"


@pytest.mark.parametrize("precision, slack", [("bfloat16", .06), ("int8", .06), ("int4", .4)])
def test_smaller_numbers_say_nearly_the_same(precision, slack):
    model, ids = small(num_kv_heads=2), text(2, 12)
    with torch.no_grad(): want = model(ids)
    other = at_precision(model, precision)
    reader = Reader(other, 2)
    for t in range(1, 13): got = reader(ids[:, :t])
    assert reader.step is not None and (got.float() - want[:, -1]).abs().max() < slack * want.abs().max()
    with torch.no_grad(): assert (other(ids).float() - want).abs().max() < slack * want.abs().max()


def test_interactive_takes_a_prompt_a_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("My\nROMEO:\\nI\n"))
    main("--interactive --max_tokens 6 --seed 3 --stop JULIET --precision float32 --device cpu".split())
    model, tokenizer = load_demo("cpu")
    assert capsys.readouterr().out == "".join(generate(model, tokenizer, prompt, 6, seed=3) + "\n" for prompt in ("My", "ROMEO:\nI"))


def test_a_draft_from_the_command_line(capsys):
    from llm_course.generating import DEMO
    main(["--prompt", "My", "--max_tokens", "12", "--temperature", "0", "--device", "cpu", "--draft_path", str(DEMO/"model.safetensors"), "--ahead", "3"])
    model, tokenizer = load_demo("cpu")
    assert capsys.readouterr().out == generate(model, tokenizer, "My", 12, 0.) + "\n"
