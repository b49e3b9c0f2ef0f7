"""Files to ids: parts of files, places for a cut, and the ids of the whole."""
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.corpora import end_of_text
from llm_course.engine.encode_files import (
    Merger,
    PieceTable,
    Span,
    block_spans,
    encode_block,
    encode_spans,
    merge_in_step,
    read_span,
    safe_place,
    whole_file_span,
)

few = settings(max_examples=40, deadline=None)


def contents(spans): return b"".join(path.read_bytes()[begin:end] for path, begin, end in spans)


# ---------------------------------------------------------------- text

def test_letters_that_a_piece_cuts_come_whole(tmp_path):
    text = "a" + "€" * 800_000 + "🎭" * 300_000   # 3 and 4 bytes each
    (tmp_path/"x.txt").write_bytes(text.encode())
    taken = []
    assert "".join(read_span(whole_file_span(tmp_path/"x.txt"), taken.append)) == text
    assert sum(taken) == len(text.encode()) and max(taken) <= 1 << 20


def test_line_ends_are_left_alone(tmp_path):
    (tmp_path/"x.txt").write_bytes(b"a\r\nb\rc\n")
    assert "".join(read_span(whole_file_span(tmp_path/"x.txt"))) == "a\r\nb\rc\n"


@pytest.mark.parametrize("prefix", [0, 5, (1 << 20) - 1, 1 << 20, 3_000_000])
def test_a_byte_that_is_not_utf8_is_located(prefix, tmp_path):
    (tmp_path/"x.txt").write_bytes(b"a" * prefix + b"\xff" + b"b" * 10)
    with pytest.raises(ValueError, match=rf"x\.txt is not UTF-8: byte 0xff at position {prefix};"): list(read_span(whole_file_span(tmp_path/"x.txt")))


def test_a_letter_that_goes_wrong_in_the_next_piece_is_located(tmp_path):
    (tmp_path/"x.txt").write_bytes(b"a" * ((1 << 20) - 1) + b"\xc3(" + b"b" * 10)
    with pytest.raises(ValueError, match=f"0xc3 at position {(1 << 20) - 1};"): list(read_span(whole_file_span(tmp_path/"x.txt")))


@pytest.mark.parametrize("prefix", [0, (1 << 20) - 1])
def test_a_letter_that_the_file_cuts_is_located(prefix, tmp_path):
    (tmp_path/"x.txt").write_bytes(b"a" * prefix + "é".encode()[:1])
    with pytest.raises(ValueError, match=f"0xc3 at position {prefix};"): list(read_span(whole_file_span(tmp_path/"x.txt")))


# ---------------------------------------------------------------- encoding

def mixture(rng, length):
    "Text of all sorts, with end-of-text tokens, of at least so many characters."
    odd = ["the moth ", "then\n", "é", "中文，也有。", "Привет, мир! ", "'s ", "  ", "\n\n", "\r\n", "12345", "://", "_x", " \t", "🎭", end_of_text, "<|endof", "\x85", "Ⅷ "]
    return "".join(rng.choice(odd, length))


def joined(encoded): return np.concatenate([ids for _, ids in encoded]).tolist()


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "llama3", r"\S+|\s+"])
def test_any_block_size_gives_the_ids_of_the_whole(pattern, tmp_path):
    text = mixture(np.random.default_rng(0), 3000)
    tokenizer = BpeTokenizer.train([text], 300, [end_of_text], pattern)
    (tmp_path/"x.txt").write_bytes(text.encode())
    size = len(text.encode())
    for block in 7, 100, 1000, 5000, size, 1 << 20:
        spans = list(block_spans(whole_file_span(tmp_path/"x.txt"), tokenizer, block))
        assert contents(spans) == text.encode() and len(spans) >= size // (2*block + 400)
        encoded = list(encode_spans(tokenizer, [whole_file_span(tmp_path/"x.txt")], block=block))
        assert joined(encoded) == tokenizer.encode(text) and sum(took for took, _ in encoded) == size


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_any_number_of_processes_gives_the_ids_of_the_whole(processes, tokenizer, tmp_path):
    text = mixture(np.random.default_rng(1), 20_000)
    (tmp_path/"x.txt").write_bytes(text.encode())
    encoded = list(encode_spans(tokenizer, [whole_file_span(tmp_path/"x.txt")], processes, block=9_000))
    assert len(encoded) > 7 and joined(encoded) == tokenizer.encode(text)
    assert all(ids.dtype == np.uint16 for _, ids in encoded)


@few
@given(st.text(alphabet="ab |<>é中. \n", max_size=60), st.integers(1, 30), st.sampled_from([("<|>",), ("<|>", "<|>a"), ("ab", "ba", "a b"), ("<", "<<|"), ()]),
       st.sampled_from(["gpt2", r"\S+|\s+"]))
def test_no_cut_touches_a_special_token(tmp_path_factory, text, block, special, pattern):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)} | {256: b" a", 257: b"bb"}, [(b" ", b"a"), (b"b", b"b")], special, pattern)
    path = tmp_path_factory.mktemp("cut")/"x.txt"
    path.write_bytes((text * 3).encode())
    assert [id for _, ids in encode_spans(tokenizer, [whole_file_span(path)], block=block) for id in ids.tolist()] == tokenizer.encode(text * 3)


@pytest.mark.parametrize("special, window, cut", [
    (["one, two"], "e, two" + "~" * 30, 0),                # the window begins inside the token, behind "on"
    (["one, two"], "~" * 30 + ". Then~~" + "~" * 9, 0),
    (["one, two"], "~" * 30 + "Then, and~" + "~" * 9, 34),
    (["<|>"], "~~~ <|>~~~", 7),
    (["ab", "ba"], "~~~aba~~~", 0),                         # which of the two it is depends on what came before
    (["<|>", "<|>a"], "~~~~<|>", 0),                        # may become the longer one
    (["<|>", "<<|"], "<|>~~~~", 0),                         # the sign before the window may belong to it
    (["<|>", "<|>a"], "~~~~<|>~~~~", 7),
])
def test_a_window_tells_where_it_is_safe_to_cut(special, window, cut):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [], special, "gpt2" if special == ["one, two"] else r"\S+|\s+")
    assert safe_place(window.encode(), tokenizer) == cut


@few
@given(st.lists(st.text(alphabet="aab é", max_size=12) | st.text(max_size=6), min_size=1, max_size=9), st.integers(0, 2**32))
def test_in_step_joins_as_one_by_one_does(words, seed):
    "Merges in a random order: one may be learnt before those that make its parts."
    tokens = {bytes([i]): i for i in range(256)}
    pairs = [(a, b) for a in (b"a", b"b", b" ", b"aa", b"ab", b"ba", "é".encode()) for b in (b"a", b"b", b"aa", b"ab")] + [(b"\xc3", b"\xa9")]
    np.random.default_rng(seed).shuffle(pairs)
    for token in [x for pair in pairs for x in (*pair, b"".join(pair))]: tokens.setdefault(token, len(tokens))
    tokenizer = BpeTokenizer({id: token for token, id in tokens.items()}, pairs, ())
    ids, counts = merge_in_step([word.encode() for word in words], Merger(tokenizer))
    expected = [tokenizer.encode_piece(word) for word in words]
    assert ids.tolist() == [id for row in expected for id in row] and counts.tolist() == list(map(len, expected))


def test_what_is_a_token_whatever_the_merges_say_goes_alone():
    "As in Llama 3's tokenizer; long pre-tokens and special ones go alone, too."
    vocab = {i: bytes([i]) for i in range(256)} | {256: b"th", 257: b" moth", 258: end_of_text.encode()}
    tokenizer = BpeTokenizer(vocab, [(b"t", b"h")], [end_of_text], ignore_merges=True)
    text = f"the moth{end_of_text}{'th' * 400} moth moths{end_of_text}"
    ids = encode_block(text, PieceTable(tokenizer)).tolist()
    assert ids == tokenizer.encode(text) and ids[:3] == [256, ord("e"), 257] and ids.count(258) == 2


@pytest.mark.parametrize("seed", range(8))
def test_long_blocks_are_numbered_by_arrays_as_short_ones_are_by_strings(seed):
    "Special tokens side by side, one that is an ordinary token too, control characters, words of 15 and 16 bytes, letters newer than the pattern."
    chance = random.Random(seed)
    parts = ["a", "B", "l", "7", "123", " ", "  ", "\n", "\r", "\t", "'", "'s", "'LL", "'ll", "'ve", "s", ".", "/", "é", "漢", "\x85", "\xa0", "\u3000", "\U00032674",
             "\0", "\1", "fifteen" + "letters_", "sixteen" + "letters__", "verylong" * 9, *(special := ["<|e|>", "<|e|><|x|>", "s>", " x"])]
    tokens = [bytes([i]) for i in range(256)] + [b" x", b"th"]
    tokenizer = BpeTokenizer(dict(enumerate(tokens)), [(b" ", b"x"), (b"t", b"h")], special)
    table = PieceTable(tokenizer)
    for _ in range(2):
        text = "".join(chance.choices(chance.sample(parts, 20), k=5000))
        assert encode_block(text, table).tolist() == tokenizer.encode(text)


def test_a_byte_without_a_token_is_named_and_the_table_goes_on():
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(128)} | {128: b"th"}, [(b"t", b"h")], ())
    table = PieceTable(tokenizer)
    with pytest.raises(ValueError, match="byte 0xc3 of 'é' is not in the vocabulary; it stands at position 4"): encode_block("the é", table)
    assert encode_block("then the", table).tolist() == tokenizer.encode("then the")


def test_the_table_starts_afresh_when_it_is_full(tokenizer):
    table = PieceTable(tokenizer, limit=50)
    for i in range(30):
        text = f"the {i} moth {end_of_text} thin{i} " * 3
        assert encode_block(text, table).tolist() == tokenizer.encode(text)
        assert table.size < 150 and len(table) < 30
    assert not len(encode_block("", table))


def test_a_part_of_a_file_gives_the_ids_of_that_part(corpus, tokenizer):
    ids = joined(encode_spans(tokenizer, [Span(corpus, 100, 300), Span(corpus, 0, 50)]))
    text = corpus.read_text("utf-8")
    assert ids == tokenizer.encode(text[100:300]) + tokenizer.encode(text[:50])


def test_encoding_takes_constant_memory(tokenizer, tmp_path):
    peaks = []
    for size in 1, 4:   # megabytes
        path = tmp_path/f"{size}.txt"
        path.write_text("the moth and then\n" * (size * 1_000_000 // 18), "utf-8", newline="\n")
        tracemalloc.start()
        for _ in encode_spans(tokenizer, [whole_file_span(path)], block=1 << 17): pass
        peaks.append(tracemalloc.get_traced_memory()[1]); tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] < 20_000_000


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_that_finds_no_utf8_says_so_in_the_end(processes, tokenizer, tmp_path):
    path = tmp_path/"x.txt"
    path.write_bytes(b"the moth\n" * 300_000 + b"\xff" + b" the moth" * 200_000)
    with pytest.raises(ValueError, match=r"x\.txt is not UTF-8: byte 0xff at position 2700000"): list(encode_spans(tokenizer, [whole_file_span(path)], processes))
