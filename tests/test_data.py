"""Batches and files of ids."""
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.data import (
    Draw,
    _epoch_rows,
    as_tensors,
    batch_starts,
    check_ids,
    epoch_starts,
    get_batch,
    id_dtype,
    load_ids,
    windows,
    write_ids,
)

few = settings(max_examples=40, deadline=None)


# ---------------------------------------------------------------- batches

def test_every_legal_start_is_equally_likely_and_no_other_is_drawn():
    length, max_seq_len, draws = 23, 5, 90_000
    counts = np.bincount(batch_starts(Draw(length, draws, max_seq_len, seed=3)), minlength=length)
    legal, expected = length - max_seq_len, draws / (length - max_seq_len)
    assert not counts[legal:].any()
    chi_square = ((counts[:legal] - expected)**2 / expected).sum()
    assert chi_square < 40.8   # 17 degrees of freedom: exceeded once in a thousand seeds, and this one is fixed


def test_a_dataset_one_longer_than_the_row_has_one_start():
    assert not batch_starts(Draw(6, 100, 5)).any()
    inputs, targets = get_batch(np.arange(6), 2, 5)
    assert inputs.tolist() == [[0, 1, 2, 3, 4]] * 2 and targets.tolist() == [[1, 2, 3, 4, 5]] * 2


def test_a_batch_depends_on_no_other_chance_and_no_order():
    ids = np.arange(1000)
    first = [get_batch(ids, 4, 8, seed=1, iteration=i) for i in range(5)]
    np.random.seed(7); torch.manual_seed(7)
    again = [get_batch(ids, 4, 8, seed=1, iteration=i) for i in reversed(range(5))][::-1]   # in any order, whatever else was drawn
    for (a, b), (c, d) in zip(first, again): assert torch.equal(a, c) and torch.equal(b, d)


def test_without_an_iteration_each_call_draws_anew():
    def drawn(order): return [get_batch(np.arange(1000), 4, 8, order=order)[0].tolist() for _ in range(3)]
    for order in "random", "epochs":
        np.random.seed(7)
        first = drawn(order)
        assert first[0] != first[1] != first[2]
        np.random.seed(7)
        assert drawn(order) == first


def test_known_starts_stay_known():
    "A resumed run must see the batches of the release that began it."
    assert batch_starts(Draw(1_000_000, 4, 256, seed=0, iteration=0)).tolist() == [850406, 636798, 511005, 269717]
    assert batch_starts(Draw(1_000_000, 4, 256, seed=1, iteration=99)).tolist() == [576582, 835241, 131830, 793390]


@few
@given(st.integers(2, 60), st.integers(1, 9), st.integers(1, 70), st.integers(0, 5))
def test_an_epoch_asks_for_each_row_once_and_for_nearly_every_id(length, batch_size, max_seq_len, epoch):
    max_seq_len = min(max_seq_len, length - 1)
    places = length - max_seq_len
    rows = max(1, places // max_seq_len)
    first, last = epoch * rows // batch_size, ((epoch + 1) * rows - 1) // batch_size
    starts = np.concatenate([epoch_starts(Draw(length, batch_size, max_seq_len, 3, i)) for i in range(first, last + 1)])
    starts = starts[epoch*rows - first*batch_size:][:rows]
    assert len(starts) == rows and 0 <= starts.min() and starts.max() < places
    targets = (starts[:, None] + np.arange(1, max_seq_len + 1)).ravel()
    assert len(set(targets.tolist())) == len(targets) > length - 1 - 2*max_seq_len
    assert np.array_equal(np.sort(starts), np.sort(_epoch_rows(places, max_seq_len, 3, epoch)))


def test_epochs_make_every_start_equally_likely():
    starts = np.concatenate([epoch_starts(Draw(23, 30, 5, seed=3, iteration=i)) for i in range(1000)])   # three rows an epoch
    counts = np.bincount(starts, minlength=18)
    assert len(counts) == 18
    assert ((counts - 30_000/18)**2 / (30_000/18)).sum() < 3 * 40.8   # the rows of an epoch go together, three by three


def test_epochs_are_cut_and_shuffled_anew_and_a_run_may_begin_anywhere():
    ids = np.arange(1000)
    batches = [get_batch(ids, 31, 8, seed=1, iteration=i, order="epochs")[0] for i in range(12)]   # 4 steps to an epoch
    epochs = [torch.cat(batches[i:i+4])[:, 0] for i in (0, 4, 8)]
    assert len({tuple((e % 8).bincount(minlength=8).tolist()) for e in epochs}) == 3, "the offset should change"
    assert not any(torch.equal(e, e.sort()[0]) for e in epochs), "the rows should be shuffled"
    assert torch.equal(batches[7], get_batch(ids, 31, 8, seed=1, iteration=7, order="epochs")[0])
    assert not torch.equal(batches[7], get_batch(ids, 31, 8, seed=2, iteration=7, order="epochs")[0])
    assert epoch_starts(Draw(1_000_000, 4, 256, seed=1, iteration=99)).tolist() == [200619, 655595, 114859, 951275]   # a resumed run must see the batches of the release that began it
    with pytest.raises(ValueError, match="order sorted is not one of random, epochs"): get_batch(ids, 4, 8, order="sorted")
    with pytest.raises(ValueError, match="more ids than max_seq_len, but 8 ≤ 8"): get_batch(ids[:8], 4, 8, order="epochs")


@pytest.mark.parametrize("dtype", [np.uint8, "<u2", np.uint32, np.int64], ids=str)
def test_targets_are_the_inputs_one_position_later(dtype, device):
    ids = np.arange(200).astype(dtype)
    inputs, targets = get_batch(ids, 5, 7, device)
    assert inputs.shape == targets.shape == (5, 7) and inputs.dtype == targets.dtype == torch.int64
    assert inputs.device.type == targets.device.type == torch.device(device).type
    assert inputs.is_contiguous() and targets.is_contiguous()
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(7, device=device))


def test_a_batch_does_not_share_memory_with_the_dataset():
    ids = np.arange(50)
    get_batch(ids, 2, 4)[0].fill_(-1)
    assert np.array_equal(ids, np.arange(50))


def test_on_cuda_the_block_is_pinned_and_copied_beside_the_work(monkeypatch):
    "Seen without a GPU: what torch is asked to do, and in which order."
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pin") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking=False: asked.append((str(device), non_blocking)) or self)
    get_batch(np.arange(50), 2, 4, "cuda:0")
    get_batch(np.arange(50), 2, 4, "cpu")
    assert asked == ["pin", ("cuda:0", True), ("cpu", False)]


def test_large_ids_keep_their_value():
    assert as_tensors(np.array([[2**32 - 1, 7]], np.uint32))[0].item() == 2**32 - 1


@pytest.mark.parametrize("arguments, message", [
    ((5, 1, 5), "more ids than max_seq_len, but 5 ≤ 5"), ((0, 1, 1), "0 ≤ 1"), ((9, 0, 1), "must be at least 1, but they are 0 and 1"),
    ((9, 1, 0), "at least 1"), ((9, 1, -3), "at least 1"), ((9, 1, 1, -1), "not be negative"), ((9, 1, 1, 0, -1), "not be negative")])
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message): Draw(*arguments)


@few
@given(st.integers(2, 60), st.integers(1, 7), st.integers(1, 70))
def test_windows_ask_for_every_id_but_the_first_once_and_in_order(length, batch_size, max_seq_len):
    pairs = list(windows(np.arange(length, dtype=np.uint16), batch_size, max_seq_len))
    assert torch.equal(torch.cat([t.ravel() for _, t in pairs]), torch.arange(1, length))
    for inputs, targets in pairs:
        assert torch.equal(inputs + 1, targets) and inputs.shape[0] <= batch_size and inputs.shape[1] <= max_seq_len
    assert all(inputs.shape[1] == max_seq_len for inputs, _ in pairs[:-1])


@pytest.mark.parametrize("arguments", [(1, 2, 3), (0, 2, 3), (5, 0, 3), (5, 2, 0)])
def test_windows_refuse_what_has_no_target(arguments):
    length, batch_size, max_seq_len = arguments
    with pytest.raises(ValueError): list(windows(np.arange(length), batch_size, max_seq_len))


# ---------------------------------------------------------------- files of ids

@pytest.mark.parametrize("vocab_size, dtype", [(1, "u1"), (256, "u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_the_smallest_type_that_holds_them(vocab_size, dtype): assert id_dtype(vocab_size) == np.dtype(dtype)


@pytest.mark.parametrize("lengths", [[], [0], [1], [3, 0, 4], [100] * 30], ids=str)
def test_ids_come_back_as_they_were_written(lengths, tmp_path):
    blocks = [np.arange(n, dtype=np.uint32) + n for n in lengths]
    with open(tmp_path/"x.bin", "wb") as file: assert write_ids(file, iter(blocks), 70_000) == sum(lengths)
    loaded = np.load(tmp_path/"x.bin")
    assert loaded.dtype == np.uint32 and np.array_equal(loaded, np.concatenate([np.zeros(0, int), *blocks]))
    assert (tmp_path/"x.bin").stat().st_size == 128 + 4 * sum(lengths)


def test_files_are_mapped_not_read(tmp_path):
    np.save(tmp_path/"x.npy", np.zeros(10_000_000, np.uint16))
    tracemalloc.start()
    ids = load_ids(tmp_path/"x.npy")
    get_batch(ids, 8, 64)
    _, peak = tracemalloc.get_traced_memory(); tracemalloc.stop()
    assert isinstance(ids, np.memmap) and peak < 1_000_000


def test_checking_takes_constant_memory(tmp_path):
    np.save(tmp_path/"x.npy", np.zeros(30_000_000, np.uint8))
    tracemalloc.start()
    load_ids(tmp_path/"x.npy", 10)
    _, peak = tracemalloc.get_traced_memory(); tracemalloc.stop()
    assert peak < 10_000_000


def test_raw_uint16_is_read_as_nanogpt_writes_it(tmp_path):
    np.array([1, 500, 65_535], np.uint16).tofile(tmp_path/"x.bin")
    assert load_ids(tmp_path/"x.bin", 65_536).tolist() == [1, 500, 65_535]


@pytest.mark.parametrize("name, text", [("a.txt", "To be, or not to be: that is the question.\r\n"), ("a", "Füße\tkalt\n"), ("rows.jsonl", '{"text": "a"}\n'), ("old.md", b"caf\xe9\n")])
def test_a_text_is_no_row_of_ids(name, text, tmp_path):
    (tmp_path/name).write_bytes(2 * (text if isinstance(text, bytes) else text.encode()))   # an even number of bytes
    with pytest.raises(ValueError, match=rf"{name} is a text and not a file of ids; turn a text into ids with python -m llm_course.data$"): load_ids(tmp_path/name, 65_536)


@pytest.mark.parametrize("name, ids", [("ids.bin", [0x4141] * 3_000), ("ids.u16", [300, 7, 9_000, 11]), ("ids", list(range(50)) * 9)])
def test_bare_ids_that_look_like_letters_are_read(name, ids, tmp_path):
    np.array(ids, "<u2").tofile(tmp_path/name)
    assert load_ids(tmp_path/name, 65_536).tolist() == ids


DRAWN = np.random.default_rng(0)
WIDE = {   # raw ids of 32 bits
    "one": [7], "three": [5, 300, 1_000], "eight": range(1, 9), "a large one": [5, 70_000, 1_000], "large ones": [70_000, 70_001], "up to 2^18": DRAWN.integers(0, 1 << 18, 5_000),
    "as GPT-2's": DRAWN.integers(0, 50_257, 5_000), "as Llama 3's": DRAWN.zipf(1.2, 100_000) % 128_256, "as Qwen's": DRAWN.integers(0, 151_936, 40), "100,000": DRAWN.integers(0, 100_000, 300_000), "in order": range(70_000)}


@pytest.mark.parametrize("vocab_size", [None, 50_257, 65_536])
@pytest.mark.parametrize("ids", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("kind", ["<u4", "<i4"])
def test_raw_ids_of_32_bits_are_not_read_as_pairs(ids, vocab_size, kind, tmp_path):
    np.array(ids, kind).tofile(tmp_path/"x.bin")
    with pytest.raises(ValueError, match=r"x.bin has no .npy header, so its ids would be read as uint16, but they are wider.*save them with numpy.save") as refused: load_ids(tmp_path/"x.bin", vocab_size)
    assert "\n" not in str(refused.value)


def test_ids_of_64_bits_are_not_read_as_four(tmp_path):
    DRAWN.integers(0, 50_257, 100).astype("<i8").tofile(tmp_path/"x.bin")
    with pytest.raises(ValueError, match="they are wider"): load_ids(tmp_path/"x.bin", 65_536)


BYTES = {"text": b"To be, or not to be: that is the question. " * 100, "letters": bytes(DRAWN.permutation(np.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz" * 40, np.uint8))), "any": DRAWN.bytes(20_000), "few": DRAWN.bytes(1_000)}


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("vocab_size", [None, 65_536])
def test_raw_ids_of_8_bits_get_a_note(data, vocab_size, tmp_path):
    (tmp_path/"x.bin").write_bytes(data)
    with pytest.warns(UserWarning, match=r"x.bin has no .npy header, so its ids are read as uint16, but they look like bytes; save them with numpy.save"): load_ids(tmp_path/"x.bin", vocab_size)


NARROW = {   # raw ids of 16 bits
    "as GPT-2's": DRAWN.zipf(1.2, 100_000) % 50_257, "level": DRAWN.integers(0, 50_257, 100_000), "few": DRAWN.integers(0, 50_257, 40), "characters": DRAWN.integers(0, 65, 1_000), "two": DRAWN.integers(0, 2, 1_000),
    "with one end": [*DRAWN.integers(0, 65, 999), 50_256], "zeros": [0] * 100, "digits and spaces": [5, 1, 6, 1, 7, 1, 8, 1] * 50, "odd": [5, 0, 6], "bytes": DRAWN.integers(0, 256, 10_000)}


@pytest.mark.parametrize("ids", NARROW.values(), ids=NARROW)
@pytest.mark.parametrize("vocab_size", [None, 65_536])
def test_raw_uint16_is_read_without_a_word(ids, vocab_size, tmp_path, recwarn):
    np.array(ids, "<u2").tofile(tmp_path/"x.bin")
    assert np.array_equal(load_ids(tmp_path/"x.bin", vocab_size), np.array(ids)) and not recwarn


@pytest.mark.parametrize("make, message", [
    (lambda p: p.touch(), "is empty"),
    (lambda p: p.write_bytes(b"abc"), "3 bytes are not whole uint16"),
    (lambda p: np.save(p.open("wb"), np.ones(4)), "holds float64 in the shape"),
    (lambda p: np.save(p.open("wb"), np.ones(4, bool)), "holds bool"),
    (lambda p: np.save(p.open("wb"), np.ones((2, 2), int)), r"in the shape \(2, 2\)"),
    (lambda p: np.save(p.open("wb"), np.zeros(0, int)), "x.bin"),
    (lambda p: np.save(p.open("wb"), np.array([{}]), allow_pickle=True), "not a complete .npy file"),
    (lambda p: np.savez(p.open("wb"), np.arange(100)), "is a zip archive"),
    (lambda p: p.write_bytes(np.array([20240520, 1, 4] + [0] * 253, "<i4").tobytes() + bytes(8)), "is a file of llm.c's"),
    (lambda p: p.write_bytes(b"\x93NUMPY"), "not a complete .npy file"),
    (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00\x05\x00junk!"), "not a complete .npy file"),
], ids=["empty", "odd", "float", "bool", "square", "no ids", "objects", "several arrays", "llm.c", "cut magic", "junk header"])
def test_anything_but_a_row_of_ids_is_refused(make, message, tmp_path):
    make(tmp_path/"x.bin")
    with pytest.raises(ValueError, match=message) as refused: load_ids(tmp_path/"x.bin")
    assert "x.bin" in str(refused.value) and "llm_course.data" in str(refused.value) and "\n" not in str(refused.value)


def test_a_header_with_any_bit_flipped_is_read_or_refused(tmp_path):
    np.save(tmp_path/"x.npy", np.arange(100))
    whole, refused = (tmp_path/"x.npy").read_bytes(), 0
    for place in range(8, 75):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (tmp_path/"x.npy").write_bytes(damaged)
            try: load_ids(tmp_path/"x.npy")
            except ValueError as error:
                assert "x.npy" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 200


def test_a_truncated_file_is_refused(tmp_path):
    np.save(tmp_path/"x.npy", np.arange(1000))
    (tmp_path/"x.npy").write_bytes((tmp_path/"x.npy").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.npy is not a complete \.npy file"): load_ids(tmp_path/"x.npy")


@pytest.mark.parametrize("dtype, at, value", [(np.uint16, 0, 50), (np.uint32, 5_000_000, 2**31), (np.int64, 4_194_304, -1), (np.int32, 4_194_303, 50)])
def test_an_id_outside_the_vocabulary_is_found(dtype, at, value):
    ids = np.zeros(5_000_001, dtype)
    ids[at] = value
    ids[-1] = 0 if at < 5_000_000 else value
    with pytest.raises(ValueError, match=f"corpus holds the id {value} at position {at}, but a vocabulary of 50 ends at 49"):
        check_ids(ids, 50, "corpus")


def test_the_last_id_of_the_vocabulary_is_allowed(): check_ids(np.array([0, 49]), 50)


def test_without_a_vocabulary_nothing_is_checked(tmp_path):
    np.save(tmp_path/"x.npy", np.array([70_000]))
    assert load_ids(tmp_path/"x.npy")[0] == 70_000
