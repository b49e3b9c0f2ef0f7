"""Learning merges, held against a slow version that follows the definition word by word."""
import random
import sys

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llm_course.engine
from llm_course.bpe import GPT2, PATTERNS, _first_difference, count_words, learn_merges, pre_tokens
from llm_course.engine.fast_bpe import (
    as_in_unicode_16,
    cut_like,
    gpt2_pre_tokens,
    gpt2_starts,
    quick_pre_tokens,
    splitter,
    unassigned_characters,
)
from llm_course.engine.files import count_corpus, in_threads
from llm_course.engine.incremental_bpe import MOST_MERGES, Shelves, compiled_loops, index_pairs, join_everywhere, learn_plainly

pytestmark = pytest.mark.filterwarnings("ignore:no pair is left")


@given(st.dictionaries(st.binary(min_size=1, max_size=12).map(lambda word: bytes(b"ab\x00\xff"[b % 4] for b in word)),
                       st.integers(1, 4), max_size=8), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_merges_equal_the_slow_ones(words, num_merges):
    merges = learn_merges(words, num_merges)
    assert _first_difference(words, merges, num_merges) == (None, [])
    if merges: assert _first_difference(words, merges[:-1], num_merges) == (len(merges) - 1, merges[-1:])
    assert _first_difference(words, [*merges, (b"z", b"z")], num_merges)[0] == len(merges)


def test_the_slow_merges_by_hand():
    "Of three times low and twice lowest, (o, w) is joined first and (l, ow) second."
    words = {b"low": 3, b"lowest": 2}
    assert _first_difference(words, [(b"o", b"w"), (b"l", b"ow")], 2) == (None, [])
    assert _first_difference(words, [(b"l", b"o")], 2) == (0, [(b"o", b"w")])


@given(st.dictionaries(st.text("ab\x00é", max_size=12).map(str.encode), st.integers(1, 4), max_size=8), st.integers(0, 40))
@settings(max_examples=80, deadline=None)
def test_compiled_merges_are_the_plain_ones(words, num_merges):
    loops = pytest.importorskip("llm_course.engine.compiled_bpe")
    told = []
    merges = loops.learn_compiled(words, num_merges, told.append)
    assert merges == learn_plainly(words, num_merges) and _first_difference(words, merges, num_merges) == (None, []) and sum(told) == len(merges)


@given(st.lists(st.text("ab '\n\tdéstmlvre19९!漢\u00a0\u2003\u0378\U0001f600_\x00", max_size=30), max_size=5))
@example(["can't", "'", "'l", "x'v", "e", " 's", "  ", " \n"])
@settings(max_examples=200, deadline=None)
def test_compiled_counts_are_those_of_the_pattern(texts):
    loops = pytest.importorskip("llm_course.engine.compiled_bpe")
    assert loops.count_compiled(texts) == count_words(texts)


def test_large_corpora_are_learnt_alike_with_and_without_numba(monkeypatch, tmp_path):
    pytest.importorskip("llm_course.engine.compiled_bpe")
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=rng.randrange(1, 15))) for _ in range(40_000))
    text = f"{text} " * (1 + (1 << 22) // len(text)) + "<|end|>'ve"
    path = tmp_path/"text.txt"
    path.write_text(text, "utf-8", newline="")
    found = count_corpus(path, ["<|end|>"], num_processes=2)
    words = {word.encode(): n for word, n in found.items()}
    assert sum(map(len, words)) > 200_000
    merges = learn_merges(words, 50)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "llm_course.engine.compiled_bpe")
    monkeypatch.delattr(llm_course.engine, "compiled_bpe")
    assert compiled_loops() is None
    assert count_corpus(path, ["<|end|>"]) == found == count_words(text.split("<|end|>"))
    assert learn_merges(words, 50) == merges


def test_threads_answer_in_order_and_tell_what_went_wrong():
    assert list(in_threads(int, map(str, range(20)), 3)) == list(range(20)) and not list(in_threads(int, [], 2))
    with pytest.raises(ValueError, match="'x'"): list(in_threads(int, ["1", "2", "x", "3"], 2))


@pytest.mark.parametrize("seed", range(10))
def test_merges_equal_the_reference_on_longer_corpora(seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("aaabbc d\n'sé漢") for _ in range(2000))
    words = {word.encode(): n for word, n in count_words([text]).items()}
    merges = learn_merges(words, 200)
    assert _first_difference(words, merges, 200) == (None, [])
    joined = [left + right for left, right in merges]
    assert len(set(joined)) == len(joined) and min(map(len, joined)) > 1   # no two tokens of the same bytes


def test_a_giant_word_costs_no_square():
    merges = learn_merges({b"a" * 200_000: 1, b"ab" * 50_000: 1}, 8)   # a square would be minutes
    assert merges[0] == (b"a", b"a") and len(merges) == 8


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("words", [{}, {b"a": 3}, {b"": 1}], ids=str)
def test_running_out_of_pairs_is_a_notice(words):
    with pytest.warns(UserWarning, match="no pair is left after 0 of 7 merges"): assert learn_merges(words, 7) == []


@given(st.lists(st.tuples(st.sampled_from(["fall", "birth", "take"]), st.integers(0, 9), st.integers(1, 6)), max_size=40))
@settings(deadline=None)
def test_the_queue_gives_the_best_that_there_is(steps):
    total = {name: 7 for name in "abc"}
    queue, waiting = Shelves(total, size=ord), set("abc")
    for number, (step, which, count) in enumerate(steps):
        if step == "birth":   # never more frequent than what was taken last, as a merge cannot make more pairs than it joins
            total[name := chr(100 + number)] = min(count, queue.level or count)
            queue.put(name)
            waiting.add(name)
        elif step == "fall" and waiting:
            name = sorted(waiting)[which % len(waiting)]
            total[name] = max(0, total[name] - count)
        elif step == "take":
            there = [name for name in waiting if total[name]]
            best = max(there, key=lambda name: (total[name], name), default=None)
            assert queue.take() == best
            waiting.discard(best)


def test_more_merges_than_there_are_letters_are_refused():
    with pytest.raises(ValueError, match=r"at most 1,113,856 merges, but 1,113,857"): learn_merges({b"ab": 1}, MOST_MERGES + 1)


@pytest.mark.parametrize("new", [0x41, 0xD800, 0xDC00, 0xFFFF, 0x10FFFF], ids=hex)
def test_any_number_up_to_the_last_is_a_letter(new):
    words, counts = ["xyzab", "\ud801xy\udc01xyxy"], [2, 3]   # surrogates are no characters by themselves, but letters like others here
    where = index_pairs(words)
    total = {pair: sum(counts[i] for i in at) for pair, at in where.items()}
    join_everywhere("xy", chr(new), words, counts, total, where)
    assert words == [f"{chr(new)}zab", f"\ud801{chr(new)}\udc01{chr(new) * 2}"]
    assert {pair: n for pair, n in total.items() if n} == {pair: sum(counts[i] for i in at) for pair, at in index_pairs(words).items()}


@pytest.mark.parametrize("name", PATTERNS)
@given(st.text(max_size=60))
@settings(max_examples=30, deadline=None)
def test_pre_tokens_lose_nothing(name, text):
    assert "".join(pre_tokens(text, PATTERNS[name])) == text


blanks = st.sampled_from([*map(chr, range(32)), " ", "  ", "\n\n", "\r\n", "\x85", "\xa0", "\u2028", "'s", "'RE", "'\u017f", "a", "Bc", "1234", "é", "漢", ".", "/", "_"])


@pytest.mark.parametrize("name", PATTERNS)
@given(text=st.lists(blanks | st.characters(max_codepoint=127), max_size=40).map("".join), part=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
@example(text="é    b", part=2)      # no cut inside a run of spaces,
@example(text="é.. b", part=1)       # nor between signs,
@example(text="é'll  'll", part=2)   # nor inside an ending
def test_the_ascii_form_cuts_as_the_pattern_does(name, text, part):
    assert quick_pre_tokens(text, PATTERNS[name], part) == splitter(PATTERNS[name])(text)


newest = st.sampled_from(["\U00032674", "\U00032674's", "ʕ", "\ua7dd", "\u0897", "\U0001fac6", "\ud800"])


@given(st.lists(blanks | st.characters(max_codepoint=127) | newest | st.sampled_from(["'", "'l", "'ve", "'re", "'ll", "l", "e", "s"]),
                min_size=1, max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
@example("".join(map(chr, range(9))))   # no character is left for a mark
@example("don't'")
@example("a'l")
def test_comparing_neighbours_cuts_as_the_pattern_does(text):
    wanted = cut_like(splitter(GPT2)(as_in_unicode_16(text)), text)
    assert gpt2_pre_tokens(text) == wanted
    assert pre_tokens(text * 100) == cut_like(splitter(GPT2)(as_in_unicode_16(text * 100)), text * 100)   # some take the quick way


@given(st.lists(st.lists(st.sampled_from(["a", "'", "s", "l", " ", "  ", "\n", "7", "!", "'s", "é"]), max_size=8).map("".join), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_texts_between_walls_are_cut_each_by_itself(texts):
    text = "\0".join(texts)
    if not text: return
    starts = np.flatnonzero(gpt2_starts(np.array(list(map(ord, text)), "<u4"), "\0"))
    wanted = [piece for one in texts for piece in [*splitter(GPT2)(one), "\0"]][:-1]
    assert [text[i:j] for i, j in zip(starts, [*starts[1:], len(text)])] == wanted


def test_the_list_of_unassigned_code_points_is_that_of_the_peers():
    tokenizers = pytest.importorskip("tokenizers")
    free = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\p{Cn}"), "removed", invert=True)
    for plane in range(17):   # surrogates are not unassigned, and no text
        codes = [code for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code < 0xE000]
        found = {ord(char) for piece, _ in free.pre_tokenize_str("".join(map(chr, codes))) for char in piece}
        assert found == {code for code in codes if unassigned_characters()[code]}, f"plane {plane}"


@pytest.mark.parametrize("name", PATTERNS)
def test_no_letter_is_newer_than_the_peers(name):
    "Whatever Unicode the installed `regex` knows, pieces are those of `tokenizers`, for all that it takes for letters, digits or marks."
    tokenizers = pytest.importorskip("tokenizers")
    every = "".join(chr(code) for code in range(0x40000) if not 0xD800 <= code < 0xE000)
    new = [char for char in regex.findall(r"[\p{L}\p{N}\p{M}]", every) if unassigned_characters()[ord(char)]]
    old = random.Random(0).sample(regex.findall(r"[\p{L}\p{N}\p{M}\s]", every), 3000)
    text = "".join(f"a{char}'s {char}B{char}.{char} 1{char}\n" for char in [*new, *old, "\u0295", "\uffff"])
    pattern = PATTERNS[name].replace(r"\p{N}{1,3}+", r"\p{N}{1,3}")
    theirs = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated").pre_tokenize_str(text)
    assert pre_tokens(text, PATTERNS[name]) == [piece for piece, _ in theirs]


def test_other_patterns_cut_otherwise():
    assert pre_tokens("A 12345", PATTERNS["cl100k"]) == ["A", " ", "123", "45"]
    assert pre_tokens("fooBar", PATTERNS["o200k"]) == ["foo", "Bar"]


@pytest.mark.parametrize("pattern, message", [
    (r"(a)|.", "must not capture"), (r"(", "not a regular expression"), (r"\w+", "leaves out 1 of 3 characters")])
def test_bad_patterns_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message): pre_tokens("a b", pattern)


def test_words_are_counted():
    assert count_words(["a a b", "a"], GPT2) == {"a": 2, " a": 1, " b": 1}
