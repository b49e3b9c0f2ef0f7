"""The tokenizer, held against tiktoken and Hugging Face's tokenizers, which read what it writes."""
import base64
import hashlib
import itertools
import json
import os
import random
import re
import time
import tracemalloc
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from apart import apart
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_course.bpe import GPT2, PATTERNS, learn_merges, pre_tokens
from llm_course.bpe_tokenizer import BpeTokenizer, SplitView, main, readable_token
from llm_course.data import fetch
from llm_course.engine.fast_bpe import join_runs, merge_by_rank, merge_long, special_pattern
from llm_course.engine.files import count_corpus, in_processes, safe_cut
from llm_course.engine.spelling import Rules, Unspelled, check_text, spell
from llm_course.engine.streaming import find_unfinished_token

SPECIAL = ("<|endoftext|>", "<|end|>", "<|end|><|of|>", "é™")
CORPUS = ("The quick brown fox's tail, isn't it? I'LL say we've 1234567 reasons…\r\n\r\n\tdef f(x):\n        return x  # naïve café\n"
          "漢字かな交じり文。한국어 문장, Привет мир! שלום עולם مرحبا 👩‍👩‍👧‍👦 🇫🇷 e\u0301a\u0308 ǅungla HTTPServerError\n   \n\n  x = y\n") * 3

letters = st.characters(exclude_categories=("Cs",)) | st.sampled_from(["\U00032674", "\u0295", "\ua7dd", "\u1acf"])   # some are newer than the peers' Unicode
pieces = st.sampled_from([*SPECIAL, "<|end", "|>", "'", "'s", "'LL", "'ſ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0301", "\u200d", "a", "B",
                          "the", "1", "٣", "²", "漢", "か", "ǅ", "ʰ", "👩‍👧", "/", "//", "!", "…", "\x00", "\x85", "\u2028"])
texts = st.lists(pieces | letters | st.text(letters, max_size=8), max_size=25).map("".join)


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(request):
    return BpeTokenizer.train([CORPUS], 256 + 180 + len(SPECIAL), SPECIAL, request.param)


@pytest.fixture(scope="module")
def as_tiktoken(tokenizer): return tokenizer.to_tiktoken()


@pytest.fixture(scope="module")
def as_hf(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")/"tokenizer.json"
    tokenizer.save(path)
    return tokenizers.Tokenizer.from_file(str(path))


def mixed(size, seed=0):
    "Random text of all scripts, with the runs of blanks and line ends that patterns stumble over."
    rng, known = random.Random(seed), [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) != "Cs"]
    parts = [" ", "  ", "\n", "\r\n", "\n \n", "\t", "'s", "'RE", "word", "Word", "1", "12345", "\u00a0", "\u0301", "\u200d", "!?", "//"]
    return "".join(rng.choice(parts) if rng.random() < .6 else rng.choice(known) for _ in range(size))


def hard_text(size, seed=0):
    "At least so many bytes of what tokenizers get wrong: all scripts, joiners, combining marks, right-to-left, control characters, runs of blanks."
    rng, parts, total = random.Random(seed), [], 0
    known = [chr(c) for c in range(0x40000) if unicodedata.category(chr(c)) != "Cs"]
    kinds = [
        lambda: "".join(rng.choices(known, k=rng.randrange(1, 9))),
        lambda: "".join(rng.choices("漢字仮名交漢語文日本國。、「」한국어ひらカタ", k=rng.randrange(1, 15))),
        lambda: "\u200d".join(rng.choices("👩👨👧👦🏽🏳️‍🌈❤️🇫🇷", k=rng.randrange(1, 6))),
        lambda: rng.choice("aeiounAEN") + "".join(rng.choices("\u0300\u0301\u0308\u0327\u20dd", k=rng.randrange(1, 4))),
        lambda: rng.choice(["שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "١٢٣٤٥٦", "नमस्ते", "ภาษาไทย"]),
        lambda: "".join(map(chr, rng.choices([*range(32), 127, *range(0x80, 0xA0)], k=rng.randrange(1, 5)))),
        lambda: rng.choice([" ", "\n", "\r\n", "\t", "\u00a0", "\u3000", " \n", "\n "]) * rng.randrange(1, 30),
        lambda: rng.choice(["it's", "WE'LL", "I'd", "’s", "'ſ", "camelCase", "HTTPServer", "3.14159", "1234567", "x²", "½", "/path//to", "!?!?\r\n", "---"]),
        lambda: " ".join(rng.choices(["the", "quick", "Brown", "fox", "naïve", "Привет", "Ǆungla", "İstanbul", "ﬁne"], k=rng.randrange(1, 9)))]
    while total < size:
        parts.append(rng.choice(kinds)())
        total += len(parts[-1].encode())
    return "".join(parts)


@pytest.fixture(scope="module")
def megabyte(): return hard_text(1_050_000)


def test_ids_equal_on_a_megabyte_of_hard_unicode(tokenizer, as_tiktoken, as_hf, megabyte):
    assert len(megabyte.encode()) >= 1 << 20
    ids = tokenizer.encode(megabyte, "none")
    assert ids == as_tiktoken.encode(megabyte, disallowed_special=())
    assert ids == as_hf.encode(megabyte, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == megabyte


@pytest.fixture(scope="session")
def gpt2_ranks():
    "GPT-2's ranks as OpenAI's whisper ships them."
    try: path = fetch("gpt2-ranks")
    except OSError as error: pytest.skip(f"no package index: {error}")
    data = path.read_bytes()
    assert len(data) == 835_554 and hashlib.sha256(data).hexdigest() == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    return path


@pytest.fixture(scope="session")
def gpt2(gpt2_ranks): return BpeTokenizer.from_tiktoken(gpt2_ranks, {"<|endoftext|>": 50256}, "gpt2")


@pytest.mark.network
@pytest.mark.parametrize("name", PATTERNS)
def test_ids_equal_under_the_ranks_of_gpt2(gpt2_ranks, gpt2, megabyte, tmp_path, name):
    special = {"<|endoftext|>": 50256}
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, gpt2_ranks.read_bytes().splitlines())}
    theirs = tiktoken.Encoding("gpt2", pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
    ours = BpeTokenizer(gpt2.vocab, gpt2.merges, special, name, ignore_merges=gpt2.ignore_merges)   # the file has no pattern
    assert len(ours.merges) == 50_000 and ours.vocab_size == 50_257
    ids = ours.encode(megabyte)
    assert ids == theirs.encode(megabyte, disallowed_special=()) and ours.decode(ids) == megabyte
    ours.save(tmp_path/"tokenizer.json")
    assert ids == tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json")).encode(megabyte, add_special_tokens=False).ids
    assert list(ours.encode_iterable(megabyte[i:i+999] for i in range(0, len(megabyte), 999))) == ids
    if name == "gpt2": assert ours.encode("Hello, world!<|endoftext|>") == [15496, 11, 995, 0, 50256]   # the ids everyone knows


@given(text=texts)
@settings(max_examples=40, deadline=None)
@example(text="<|end|><|of|><|end|><|of|")
@example(text=" \n  \n  ")
def test_ids_equal_those_of_both_libraries(tokenizer, as_tiktoken, as_hf, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == as_hf.encode(text, add_special_tokens=False).ids
    plain = tokenizer.encode(text, allowed_special="none")
    assert plain == as_tiktoken.encode(text, disallowed_special=())


def test_ids_equal_on_a_long_mixed_text(tokenizer, as_tiktoken, as_hf):
    text = mixed(30_000)
    ids = tokenizer.encode(text)
    assert ids == as_tiktoken.encode(text, disallowed_special=()) == as_hf.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@given(text=texts, data=st.data())
@settings(max_examples=40, deadline=None)
def test_streaming_does_not_see_the_cuts(tokenizer, text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    whole = tokenizer.encode(text)
    assert list(tokenizer.encode_iterable(chunks, block=1)) == whole
    assert list(tokenizer.encode_iterable(text, block=1)) == whole        # one character at a time
    assert list(tokenizer.encode_iterable(chunks)) == whole
    assert list(tokenizer.encode_iterable(text, "none", block=3)) == tokenizer.encode(text, "none")


@pytest.mark.parametrize("text", ["we'RE  \r\n\n x<|end|><|of|>!<|end|><|", "a\u0301'll 12345 \n  \t漢字 ", "<|end<|endoftext|>'ſ  'S"])
def test_streaming_gives_the_same_for_every_way_to_cut(tokenizer, text):
    "All ways to cut it in up to four, and every stretch of ten in all of its 512 ways."
    whole = tokenizer.encode(text)
    for cuts in itertools.combinations_with_replacement(range(len(text) + 1), 3):
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert list(tokenizer.encode_iterable(chunks, block=1)) == whole, chunks
    for start in range(0, len(text) - 9, 5):
        part = text[start:start+10]
        whole = tokenizer.encode(part)
        for cuts in itertools.product([False, True], repeat=9):
            chunks = (part[0] + "".join("\1" * cut + c for cut, c in zip(cuts, part[1:]))).split("\1")
            assert list(tokenizer.encode_iterable(chunks, block=1)) == whole, chunks


def test_streaming_takes_linear_time(tokenizer, monkeypatch):
    "By steps, not by the clock: how many characters are looked at again and again, one character coming at a time."
    looked = []
    for size in 20_000, 40_000:
        looked.append(0)
        def counted(text, pattern):
            looked[-1] += len(text)
            return pre_tokens(text, pattern)
        for module in "bpe_tokenizer", "engine.streaming": monkeypatch.setattr(f"llm_course.{module}.pre_tokens", counted)
        list(tokenizer.encode_iterable("word and word, " * (size // 15), block=64))
    assert looked[1] < 2.1 * looked[0] and looked[0] < 3 * 20_000


def test_streaming_is_lazy_and_handles_one_endless_word(tokenizer):
    def chunks():
        yield "hello world " * 2000
        raise AssertionError("asked for more than was needed")
    assert tokenizer.decode([next(tokenizer.encode_iterable(chunks()))]) in "hello"
    assert list(tokenizer.encode_iterable("a" * 200_000, block=1)) == tokenizer.encode("a" * 200_000)


def test_streaming_takes_less_than_a_megabyte_for_a_text_of_two(tokenizer):
    line = CORPUS[:200] + "\n"
    list(tokenizer.encode_iterable([line] * 200))   # what is made once, such as a table of all characters
    tracemalloc.start()
    for _ in tokenizer.encode_iterable(itertools.repeat(line, (2 << 20) // len(line.encode()))): pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6, f"{peak:,} bytes"


@pytest.mark.parametrize("rules", [Rules(), Rules("NFC"), Rules(lstrip=frozenset({"<|end|>"}), rstrip=frozenset({"<|end|>"}))], ids=["plain", "composed", "trimmed"])
def test_streaming_follows_the_rules_of_a_file(rules):
    "A text that is rewritten first is cut at safe places; where white space may go, all of it is awaited."
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], ["<|end|>"], rules=rules)
    text = "cafe\u0301 au lait, e\u0301 \n <|end|> \n\n and more of it. " * 3
    for size in 1, 7, 1000: assert list(tokenizer.encode_iterable((text[i:i + size] for i in range(0, len(text), size)), block=1)) == tokenizer.encode(text)


def test_a_byte_without_a_token_is_refused_with_its_place_in_the_stream():
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(128)}, [], ["<|end|>"])
    text = "some words, and more <|end|> of them: caf\u00e9"
    for encode in tokenizer.encode, lambda text: list(tokenizer.encode_iterable(text, block=1)):
        with pytest.raises(Unspelled, match=f"byte 0xc3 of 'é' is not in the vocabulary; it stands at position {len(text) - 1}$"): encode(text)


def test_a_batch_is_a_list_of_texts():
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], "<|end|>")
    assert tokenizer.special_tokens == {"<|end|>": 256}
    texts = ["a<|end|>", "", "b"]
    assert tokenizer.encode_batch(texts) == tokenizer.encode_batch(iter(texts), num_processes=2) == [[97, 256], [], [98]]
    assert tokenizer.encode_batch(texts, "none") == [list(text.encode()) for text in texts]
    with pytest.raises(ValueError, match="num_processes must be at least 1, but is 0"): tokenizer.encode_batch(texts, num_processes=0)


def test_streaming_with_a_pattern_of_ones_own():
    tokenizer = BpeTokenizer.train(["abc abc ab"], 256 + 4 + 1, pattern=r"[a-z ]{1,5}|\X")
    text = "abcabcab<|endoftext|>abc abc!é"
    assert list(tokenizer.encode_iterable(text, block=1)) == tokenizer.encode(text)


@given(st.text("ab", min_size=0, max_size=60))
@settings(max_examples=50, deadline=None)
def test_the_two_ways_to_merge_agree(text):
    merges = learn_merges({b"aabab": 5, b"abab": 4, b"aaaa": 3, b"babb": 2, b"bbb": 2}, 9)
    tokenizer = BpeTokenizer(dict(enumerate([bytes([b]) for b in range(256)] + [a + b for a, b in merges])), merges)
    args = tokenizer.ranks, tokenizer.joined
    assert merge_long(list(text.encode()), *args) == merge_by_rank(list(text.encode()), *args)


def join_one_by_one(ids, ranks, joined):
    "The definition: of all pairs the one that was learnt first, the leftmost of equals, until none is left."
    ids = list(ids)
    while known := [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]:
        rank, i = min(known)
        ids[i:i + 2] = [joined[rank]]
    return ids


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=400, deadline=None)
def test_long_runs_are_joined_as_one_by_one(chance, shuffled):
    "Merges in the order they were learnt, or in any order, as in a file of somebody else's."
    ids, pairs = list(range(chance.randint(1, 3))), []
    letters = list(ids)
    for _ in range(chance.randint(1, 10)):
        pair = chance.choice(ids), chance.choice(ids)
        if pair in dict(pairs): continue
        pairs.append((pair, len(ids)))
        ids.append(len(ids))
    if shuffled: chance.shuffle(pairs)
    ranks, joined = {pair: rank for rank, (pair, _) in enumerate(pairs)}, [new for _, new in pairs]
    for word in [chance.choice(letters)] * chance.randint(0, 50), chance.choices(letters, k=chance.randint(1, 9)) * chance.randint(1, 7):
        assert merge_long(list(word), ranks, joined) == join_one_by_one(word, ranks, joined)


def test_runs_shrink_before_the_queue_sees_them():
    ranks, joined = {(32, 32): 0, (256, 256): 1, (257, 257): 2}, [256, 257, 258]
    assert join_runs([32] * 100_003, ranks, joined) == [258] * 12_500 + [256, 32]
    assert join_runs([32, 7] * 50, ranks, joined) == [32, 7] * 50


def test_long_words_take_the_long_way(tokenizer):
    word = "".join(random.Random(0).choice("abetho") for _ in range(3000))
    short = tokenizer.joined, tokenizer.ranks
    ids = tokenizer.encode(word)
    assert tokenizer.decode(ids) == word and ids == merge_long([tokenizer.spelling.of_bytes[b] for b in word.encode()], short[1], short[0])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_counting_streams_and_agrees(tmp_path, num_processes, monkeypatch):
    path, special = tmp_path/"corpus.txt", ("<|endoftext|>", "fox's tail, isn't")
    text = (CORPUS + "<|endoftext|>") * 400
    path.write_bytes(text.encode())
    expected = count_corpus([text], special)
    assert count_corpus(path, special, num_processes=num_processes) == expected
    assert count_corpus(str(path), special) == count_corpus([path], special) == expected
    assert not any("<|" in word or "endoftext" in word for word in expected)


@pytest.mark.parametrize("name", PATTERNS)
@given(before=texts, after=texts)
@settings(max_examples=50, deadline=None)
@example(before="a", after="'s")
@example(before="あA, x", after="b")
def test_safe_cuts_change_nothing(name, before, after):
    text, pattern = before + after, PATTERNS[name]
    cut = safe_cut(before, pattern, SPECIAL)
    assert cut <= len(before)
    assert count_corpus([text], SPECIAL, pattern) == count_corpus([text[:cut], text[cut:]], SPECIAL, pattern)


def test_no_safe_cut_lies_in_a_special_token():
    text = "He said: a, b" + "~" * 30   # behind a letter and before a stop: after He, said and a
    cut = {special: safe_cut(text, PATTERNS["gpt2"], special) for special in [(), ("a, b",), ("d: a, b",), ("e said: a, b",)]}
    assert cut == {(): 10, ("a, b",): 7, ("d: a, b",): 2, ("e said: a, b",): 0}


def test_training_does_not_depend_on_the_number_of_processes(tmp_path):
    path = tmp_path/"corpus.txt"
    path.write_text((hard_text(200_000) + CORPUS * 100 + "<|endoftext|>") * 40, encoding="utf-8", newline="")
    assert path.stat().st_size > 2 << 22   # several errands
    one, two, three = (BpeTokenizer.train(path, 600, pattern="o200k", num_processes=n) for n in (1, 2, 3))
    assert one.merges == two.merges == three.merges and one.vocab == two.vocab == three.vocab


def test_counting_needs_memory_for_distinct_words_alone(tmp_path):
    peaks = []
    for size in 8, 32:   # megabytes
        path = tmp_path/f"{size}.txt"
        with open(path, "w", encoding="utf-8", newline="") as file:
            for _ in range(size): file.write(CORPUS * ((1 << 20) // len(CORPUS.encode())))
        tracemalloc.start()
        words = count_corpus(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(words) < 200
    assert peaks[1] < 1.2 * peaks[0]


def test_many_texts_at_once(tokenizer):
    texts = [CORPUS, "", "a<|end|>", *(CORPUS[seed:2 * seed] for seed in range(300))]
    whole = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == tokenizer.encode_batch(iter(texts), num_processes=2) == whole
    assert tokenizer.encode_batch(texts, "none") == [tokenizer.encode(text, "none") for text in texts]
    assert tokenizer.decode_batch(whole) == texts and tokenizer.encode_batch([]) == tokenizer.decode_batch([]) == []
    with pytest.raises(ValueError, match="holds the special token"): tokenizer.encode_batch(texts, "none_raise", num_processes=2)
    with pytest.raises(ValueError, match="num_processes must be at least 1"): tokenizer.encode_batch(texts, num_processes=0)


def test_the_view_shows_every_token_and_lets_no_code_through(tokenizer):
    text = "a<b>&\x1b[31m\tnaïve\n漢<|end|>\u202e"
    view = SplitView(tokenizer, text)
    assert view.ids == tokenizer.encode(text) and len(view.tokens) == len(view.ids)
    printed, page = str(view), view._repr_html_()
    assert re.sub(r"\x1b\[[\d;]*m", "", printed) == "".join(view.tokens) and "\x1b[31m" not in printed and "\u202e" not in printed + page
    assert printed.count("\x1b[30;48;5;") - printed.count("\n") == page.count("<span") == len(view.ids)
    assert all(line.endswith("\x1b[0m") for line in printed.split("\n") if line)   # no colour runs to the edge of the screen
    assert "a" in page and "&lt;" in page and "<b>" not in page and f'title="{tokenizer.special_tokens["<|end|>"]}"' in page
    assert readable_token("漢".encode()[:1]) == r"\xe6" and readable_token(b"\n") == "↵\n" and readable_token(b"\t") == r"\t" and readable_token(" ï".encode()) == " ï"


def test_ids_come_in_the_promised_order():
    tokenizer = BpeTokenizer.train(["low low lower"], 262, ("<|a|>", "<|b|>"))
    assert [tokenizer.vocab[i] for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [tokenizer.vocab[256 + i] for i in range(4)] == [left + right for left, right in tokenizer.merges]
    assert tokenizer.special_tokens == {"<|a|>": 260, "<|b|>": 261} and tokenizer.vocab_size == 262


def test_special_tokens_are_not_learned_from():
    "However often one comes, no token holds a piece of it, and no merge reaches over it."
    tokenizer = BpeTokenizer.train(["low<|endoftext|>est lower <|endoftext|>" * 50], 262)
    assert not [token for token in tokenizer.vocab.values() if b"<|" in token and token != b"<|endoftext|>"]
    assert b"lowest" not in tokenizer.vocab.values() and tokenizer.encode("low<|endoftext|>est").count(tokenizer.special_tokens["<|endoftext|>"]) == 1
    with pytest.warns(UserWarning, match="no pair is left"): tokenizer = BpeTokenizer.train(["low<|endoftext|>est lower <|endoftext|>" * 50], 400)
    assert not [token for token in tokenizer.vocab.values() if b"<" in token and len(token) > 1 and token != b"<|endoftext|>"]


def test_running_out_of_pairs_keeps_special_tokens_last():
    with pytest.warns(UserWarning, match="no pair is left"): tokenizer = BpeTokenizer.train(["aa"], 1000)
    assert tokenizer.vocab_size == 258 and tokenizer.encode("aa<|endoftext|>") == [256, 257]


def test_a_special_token_of_one_byte_keeps_its_id():
    tokenizer = BpeTokenizer.train(["ab\nab"], 257, ("\n",))
    assert tokenizer.special_tokens == {"\n": 10} and tokenizer.vocab[256] == b"ab" and len(set(tokenizer.vocab.values())) == 257


def test_allowed_special(tokenizer):
    text, id = "a<|end|>", tokenizer.special_tokens["<|end|>"]
    assert tokenizer.encode(text) == tokenizer.encode(text, {"<|end|>"}) == [97, id]
    for plain in "none", (), {"<|endoftext|>"}: assert id not in tokenizer.encode(text, plain)
    with pytest.raises(ValueError, match=r"holds the special token '<\|end\|>'"): tokenizer.encode(text, "none_raise")
    with pytest.raises(ValueError, match="is not a special token"): tokenizer.encode(text, {"nonsense"})
    with pytest.raises(ValueError, match="must be"): tokenizer.encode(text, "some")


def test_decode_refuses_what_is_no_id(tokenizer):
    with pytest.raises(ValueError, match="id 99999 is not in the vocabulary of 440 tokens"): tokenizer.decode([97, 99999])


def test_decode_takes_tensors(tokenizer):
    import torch
    assert tokenizer.decode(torch.tensor(tokenizer.encode("naïve"))) == "naïve"


# files

def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path/"tokenizer.json"
    tokenizer.save(path)
    for again in BpeTokenizer.load(path), BpeTokenizer.load(str(path)), BpeTokenizer.from_hf(tmp_path):
        for name in "vocab", "merges", "special_tokens", "pattern": assert getattr(again, name) == getattr(tokenizer, name), name
        assert again.encode(CORPUS) == tokenizer.encode(CORPUS)


def test_hf_decodes_what_we_encode(tokenizer, as_hf):
    assert as_hf.decode(tokenizer.encode(CORPUS + "<|end|>"), skip_special_tokens=False) == CORPUS + "<|end|>"


def test_reads_what_hf_trains(tmp_path):
    theirs = tokenizers.ByteLevelBPETokenizer()
    theirs.train_from_iterator([CORPUS], vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)
    theirs.save(str(tmp_path/"tokenizer.json"))
    ours = BpeTokenizer.from_hf(tmp_path)
    text = CORPUS + mixed(3000) + "<s>x</s>"
    assert ours.encode(text) == theirs.encode(text).ids and ours.special_tokens == {"<s>": 0, "</s>": 1}
    theirs.save_model(str(tmp_path))
    gpt2 = BpeTokenizer.from_gpt2(tmp_path/"vocab.json", tmp_path/"merges.txt")
    assert gpt2.encode(text) == ours.encode(text) and gpt2.special_tokens == ours.special_tokens


def write_ranks(ranks, path):
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))


def test_tiktoken_there_and_back(tokenizer, tmp_path):
    ranks = tokenizer.to_tiktoken()._mergeable_ranks
    write_ranks(ranks, tmp_path/"x.tiktoken")
    again = BpeTokenizer.from_tiktoken(tmp_path/"x.tiktoken", tokenizer.special_tokens, tokenizer.pattern)
    assert again.merges == tokenizer.merges and again.vocab == tokenizer.vocab
    text = CORPUS + mixed(3000)
    assert again.encode(text) == tokenizer.encode(text)


def test_a_possessive_pattern_means_the_same_to_hf(tmp_path):
    "OpenAI's own cl100k has digits as {1,3}+, which Hugging Face's library would read as a repeat."
    pattern = PATTERNS["cl100k"].replace(r"\p{N}{1,3}", r"\p{N}{1,3}+")
    assert pattern != PATTERNS["cl100k"]
    tokenizer = BpeTokenizer.train(["34 34"], 258, pattern=pattern)
    tokenizer.save(tmp_path/"tokenizer.json")
    text = "1234"
    ids = tokenizer.encode(text)
    assert ids == [*b"1234"]   # 123 and 4: the merge of 3 and 4 would reach across
    assert ids == tokenizer.to_tiktoken().encode(text) == tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json")).encode(text).ids


def test_tiktoken_ranks_that_no_merge_makes(tmp_path):
    "Ranks with holes, as some published files have: a token that stands only as a whole pre-token."
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"xyz": 257, b"abc": 300}
    write_ranks(ranks, tmp_path/"x.tiktoken")
    ours = BpeTokenizer.from_tiktoken(tmp_path/"x.tiktoken", {"<|x|>": 400})
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS["cl100k"], mergeable_ranks=ranks, special_tokens={"<|x|>": 400})
    for text in "xyz", "xyzz", " xyz", "abc", "zabcab", "<|x|>": assert ours.encode(text) == theirs.encode(text, allowed_special="all"), text
    ours.save(tmp_path/"tokenizer.json")
    hf = tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json"))
    for text in "xyz", "xyzz", " xyz", "abc": assert hf.encode(text).ids == ours.encode(text) == BpeTokenizer.load(tmp_path/"tokenizer.json").encode(text)


@pytest.mark.parametrize("content, message", [
    ("", "cut short or not JSON"), ("[1, 2", "cut short or not JSON"), (b"\xff\xfe\x00\x01junk", "not text"), ("[1, 2]", "no model"), ("{}", "no model"),
    ('{"model": {"type": "WordPiece"}}', "WordPiece, not BPE"), ('{"model": {"type": "BPE", "vocab": {}}}', "lacks vocab or merges"),
    ('{"model": {"type": "BPE", "vocab": {"Ж": 0}, "merges": []}}', "not byte-level"),
    ('{"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}', "its token 'a' has the id '0', which is too large for a vocabulary"),
    *((f'{{"model": {{"type": "BPE", "vocab": {{"a": {id}}}, "merges": []}}}}', "its token 'a' has the id") for id in ("-1", "true", "1.0", "null", "[]", 2**31, 10**400)),
    ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}', "share an id"), ('{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}', "says 'a' twice"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}', "not a pair"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": true}}', "byte_fallback"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "normalizer": {"type": "NFKC"}}', "rewrites text first .NFKC.|not byte-level"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "not byte-level"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}, "pre_tokenizer": {"type": "ByteLevel"}}', "merge 0 joins"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true}}', "space before"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [3]}', "lacks parts"),
])
def test_foreign_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path/"t.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught: BpeTokenizer.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


NO_TEXTS = [b"to be", bytearray(b"x"), None, 3, ["x"], Path("x")]


@pytest.mark.parametrize("wrong", NO_TEXTS, ids=str)
def test_what_is_no_text_is_refused_in_a_sentence(wrong):
    with pytest.raises(TypeError, match=f"encodes a text, a str, but this is {type(wrong).__name__}") as caught: check_text(wrong)
    assert ("decode them first" in str(caught.value)) == isinstance(wrong, bytes)


def test_what_is_no_text_is_refused_where_nothing_checks_annotations():
    done = apart(["-c", "import pathlib\nfrom llm_course.bpe_tokenizer import BpeTokenizer\ntokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [])\n"
                  f"for wrong in {', '.join('pathlib.Path()' if isinstance(wrong, Path) else repr(wrong) for wrong in NO_TEXTS)}:\n"
                  "    try: print('encoded', tokenizer.encode(wrong))\n    except TypeError as error: print(error)"])
    lines = done.stdout.splitlines()
    assert len(lines) == len(NO_TEXTS) and all("encodes a text" in line for line in lines) and "Traceback" not in done.stderr, done


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path/"t.json"
    BpeTokenizer.train(["aab aab"], 260).save(path)
    data = path.read_bytes()
    for cut in range(0, len(data) - 1, 97):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut short or not (JSON|text)"): BpeTokenizer.load(path)


def test_bad_gpt2_and_tiktoken_files(tmp_path):
    vocab, merges = tmp_path/"vocab.json", tmp_path/"merges.txt"
    vocab.write_text(json.dumps({spell(bytes([b])): b for b in range(256)} | {"ab": 256, "# #": 257}), "utf-8", newline="\n")
    merges.write_text("#version: 0.2\na b c\n", "utf-8", newline="\n")
    with pytest.raises(ValueError, match="line 2 is not a pair"): BpeTokenizer.from_gpt2(vocab, merges)
    merges.write_text("a b\na b\n", "utf-8", newline="\n")
    with pytest.raises(ValueError, match="holds a merge twice"): BpeTokenizer.from_gpt2(vocab, merges)
    merges.write_text("a c\n", "utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"vocab\.json is not a tokenizer that we can read: merge 0 joins b'a' and b'c'"): BpeTokenizer.from_gpt2(vocab, merges)
    whole = vocab.read_text("utf-8")
    for wrong, said in (whole.replace('"ab": 256', '"ab": 97'), "'a' and 'ab' share an id, 97"), (whole.replace("256", "-5"), "has the id -5"), (whole.replace("256", str(2**31)), "too large for a vocabulary"), ("[]", "does not map"):
        vocab.write_text(wrong, "utf-8", newline="\n")
        with pytest.raises(ValueError, match=said): BpeTokenizer.from_gpt2(vocab, merges)
    with pytest.raises(ValueError, match="does not hold tiktoken ranks: line 1"): BpeTokenizer.from_tiktoken(merges)
    merges.write_text("", "utf-8", newline="\n")
    with pytest.raises(ValueError, match="byte 0x00 is not among the tokens"): BpeTokenizer.from_tiktoken(merges)
    for wrong, said in ("YWI= -5", "has the id -5"), (f"YWI= {2**31}", "which is too large for a vocabulary"), ("YWI= 1\nYWM= 1", "share an id, 1"), ("YWI= 1\nYWI= 2", "line 2 repeats an earlier token"):
        merges.write_text(f"{wrong}\n", "utf-8", newline="\n")
        with pytest.raises(ValueError, match=said): BpeTokenizer.from_tiktoken(merges)
    merges.write_text("YWI= 0\n", "utf-8", newline="\n")
    with pytest.raises(ValueError, match="byte 0x00 is not among the tokens"): BpeTokenizer.from_tiktoken(merges)


# refusals

def test_the_parts_must_fit():
    with pytest.raises(ValueError, match="merge 0 joins b'a' and b'b', but b'ab' is not in the vocabulary"):
        BpeTokenizer({0: b"a", 1: b"b"}, [(b"a", b"b")])
    with pytest.raises(ValueError, match="second"): BpeTokenizer({0: b"a", 1: b"a"}, [])
    with pytest.raises(ValueError, match="not empty"): BpeTokenizer({0: b"a"}, [], [""])
    with pytest.raises(ValueError, match="cannot have id 0, which is b'a'"): BpeTokenizer({0: b"a"}, [], {"<s>": 0})
    with pytest.raises(ValueError, match="byte 0x62 of 'b' is not in the vocabulary"): BpeTokenizer({0: b"a"}, []).encode("b")


def test_training_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size must be at least 257 .256 bytes, 1 special., but is 100"):
        BpeTokenizer.train(["text"], 100)
    path = tmp_path/"latin.txt"
    path.write_bytes("é".encode() * 700_000 + b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8: byte 0xe9 at position 1400003"): BpeTokenizer.train(path, 300)
    path.write_bytes("é".encode()[:1])
    with pytest.raises(ValueError, match=r"byte 0xc3 at position 0"): BpeTokenizer.train(path, 300)
    with pytest.raises(ValueError, match="pass Path"): BpeTokenizer.train([str(path)], 300)
    with pytest.raises(ValueError, match="holds int"): BpeTokenizer.train(iter([3]), 300)
    with pytest.raises(FileNotFoundError): BpeTokenizer.train(tmp_path/"none.txt", 300)


@pytest.mark.parametrize("flags, message", [
    ("--corpus {tmp}/none.txt", "--corpus {tmp}/none.txt does not exist"), ("--corpus {tmp}/none", "none does not exist"), ("--corpus {tmp}/empty.txt", "is empty"),
    ("--corpus {tmp}/c.txt --vocab_size 200", "--vocab_size must be at least 257"), ("--corpus {tmp}/c.txt --pattern gpt5", "--pattern must be one of gpt2"),
    ("--corpus {tmp}/c.txt --output {tmp}", "is a folder"), ("--corpus {tmp}/c.txt --output {tmp}/c.txt", "is the corpus itself"),
    ("--corpus {tmp}/c.txt --num_processes 0", "--num_processes must be at least 1"),
])
def test_the_command_refuses_in_one_line(tmp_path, capsys, flags, message):
    (tmp_path/"empty.txt").touch()
    (tmp_path/"c.txt").write_text("some text", "utf-8", newline="\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as caught: main(flags.format(tmp=tmp_path).split())
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message.format(tmp=tmp_path) in error and error.count("\n") == 1 and sorted(tmp_path.iterdir()) == before


def test_the_command_trains(tmp_path, capsys):
    for name in "a.txt", "b.txt": (tmp_path/name).write_text(CORPUS, "utf-8", newline="\n")
    main(["--corpus", str(tmp_path/"a.txt"), str(tmp_path/"b.txt"), "--vocab_size", "300", "--output", str(tmp_path/"out"/"t.json"), "--pattern", "llama3"])
    tokenizer = BpeTokenizer.load(tmp_path/"out"/"t.json")
    assert tokenizer.vocab_size == 300 and tokenizer.pattern == PATTERNS["llama3"]
    assert tokenizer.vocab == BpeTokenizer.train([CORPUS], 300, pattern="llama3").vocab   # twice the counts, the same order
    assert "bytes per token" in capsys.readouterr().out


def test_helpers_answer_in_order_and_pass_on_what_went_wrong():
    assert list(in_processes(int, map(str, range(20)), 3)) == list(range(20)) and not list(in_processes(int, [], 2))
    with pytest.raises(ValueError, match="'x'"): list(in_processes(int, ["1", "2", "x", "3"], 2))


def test_nobody_runs_far_ahead_of_the_slowest():
    asked = []
    def items():
        for seconds in [1.5] + [0.] * 60:
            asked.append(seconds)
            yield seconds
    answers = in_processes(time.sleep, items(), 2)
    next(answers)
    assert len(asked) < 12   # a few for each, and not the sixty that the quick one could have had
    assert len(list(answers)) == 60


def test_the_first_error_in_order_is_the_one_that_is_told():
    with pytest.raises(ZeroDivisionError): list(in_processes(eval, ["__import__('time').sleep(1) or 1 / 0", "nothing"] + ["1"] * 9, 2))


def test_a_helper_that_dies_is_noticed():
    with pytest.raises(ChildProcessError, match="fewer with --num_processes"): list(in_processes(os._exit, range(9), 2))


@given(st.sets(st.text("ab<|.*(é", min_size=1, max_size=5), min_size=1, max_size=9), st.text("ab<|.*(éx", max_size=40), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_special_tokens_in_one_tree_are_found_as_the_longest_first(tokens, text, start):
    tokens = tuple(tokens)
    listed = re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))})")
    assert special_pattern(tokens).split(text) == listed.split(text)
    begun = [i for i in range(start, len(text)) if any(token != text[i:] and token.startswith(text[i:]) for token in tokens)]
    assert find_unfinished_token(text, start, tokens) == min(begun, default=len(text))


def test_special_tokens_that_begin_one_another_hundreds_of_times():
    assert list(map(len, special_pattern(tuple("a" * i for i in range(1, 500))).findall("a" * 1200))) == [499, 499, 202]


def test_thousands_of_special_tokens_cost_no_more_than_one():
    "A text of their first letter, one of their beginnings, and one of themselves; tried one by one they took 12 seconds."
    tokens = [f"<tok_{i}>" for i in range(3000)] + ["<|endoftext|>"]
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], tokens)
    began = time.process_time()
    for text, count in ("<" * 400_000, 400_000), ("<tok_" * 80_000, 400_000), ("<tok_7>" * 50_000, 50_000):
        assert len(tokenizer.encode(text)) == len(list(tokenizer.encode_iterable(text[i:i + 997] for i in range(0, len(text), 997)))) == count
    assert time.process_time() - began < 6


def test_no_safe_cut_behind_a_letter_that_is_newer_than_the_pattern():
    assert safe_cut("word, 北,, and", GPT2, ()) == len("word, 北")
    assert safe_cut("word, \U00032674,, and", GPT2, ()) == len("word")
