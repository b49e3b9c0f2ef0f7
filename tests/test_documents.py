"""Documents in files: which are for training, and which for validation."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.engine.corpora import end_of_text
from llm_course.engine.documents import split_documents
from llm_course.engine.encode_files import Span

few = settings(max_examples=40, deadline=None)


def contents(spans): return b"".join(path.read_bytes()[begin:end] for path, begin, end in spans)


@pytest.mark.parametrize("fraction, documents", [(0.1, 2), (0.05, 1), (0.01, 1), (0.5, 10), (0.52, 10), (0.53, 11), (0.999, 19)])
def test_validation_gets_the_last_documents_nearest_to_the_fraction(fraction, documents, corpus):
    train, val = split_documents([corpus], fraction)
    assert contents(train) + contents(val) == corpus.read_bytes()
    assert len(contents(val)) == 100 * documents and contents(train).endswith(end_of_text.encode())


def test_white_space_behind_the_token_stays_with_its_document(tmp_path):
    path = tmp_path/"x.txt"
    path.write_text(f"one\n{end_of_text}\ntwo\n{end_of_text}\n", "utf-8", newline="\n")
    _, val = split_documents([path], 0.1)
    assert contents(val).decode() == f"two\n{end_of_text}\n"


def test_the_end_of_a_file_ends_a_document(tmp_path, capsys):
    paths = [tmp_path/f"{i}.txt" for i in range(5)]
    for i, path in enumerate(paths): path.write_text(str(i) * 10, "utf-8", newline="\n")
    train, val = split_documents(paths, 0.2)
    assert train == [Span(p, 0, 10) for p in paths[:4]] and val == [Span(paths[4], 0, 10)]
    train, val = split_documents(paths, 0.01)
    assert val == [Span(paths[4], 0, 10)] and not capsys.readouterr().err


def test_a_cut_may_fall_inside_the_last_file(tmp_path):
    a, b = tmp_path/"a.txt", tmp_path/"b.txt"
    a.write_text("a" * 50, "utf-8", newline="\n"); b.write_text("b" * 36 + end_of_text + "c" * 37, "utf-8", newline="\n")
    train, val = split_documents([a, b], 0.3)
    assert train == [Span(a, 0, 50), Span(b, 0, 49)] and contents(val) == b"c" * 37


def test_a_single_document_is_cut_between_lines_with_a_note(tmp_path, capsys):
    path = tmp_path/"x.txt"
    path.write_text("line one\nline two\nline three\nline four\n" + end_of_text, "utf-8", newline="\n")
    train, val = split_documents([path], 0.4)
    assert contents(train) == b"line one\nline two\nline three\n"
    assert contents(train) + contents(val) == path.read_bytes()
    assert "x.txt is a single document, so it is cut between two lines" in capsys.readouterr().err


@pytest.mark.parametrize("text, message", [("", "is empty"), ("one line only", "is a single line"), ("one line\n", "is a single line")])
def test_what_cannot_be_cut_is_refused(text, message, tmp_path):
    (tmp_path/"x.txt").write_text(text, "utf-8", newline="\n")
    with pytest.raises(ValueError, match=message): split_documents([tmp_path/"x.txt"], 0.1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_fractions_outside_zero_and_one_are_refused(fraction, corpus):
    with pytest.raises(ValueError, match="must lie between 0 and 1"): split_documents([corpus], float(fraction))


@few
@given(st.lists(st.integers(1, 40), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_no_other_cut_is_nearer(tmp_path_factory, sizes, fraction):
    path = tmp_path_factory.mktemp("split")/"x.txt"
    path.write_text("".join("x" * size + end_of_text for size in sizes), "utf-8", newline="\n")
    total = path.stat().st_size
    (_, begin, end), = split_documents([path], fraction)[0]
    places = np.cumsum([size + len(end_of_text) for size in sizes])[:-1]
    assert begin == 0 and end in places and abs(end - total * (1 - fraction)) <= abs(places - total * (1 - fraction)).min() + 1


def test_a_fraction_too_small_for_a_byte_takes_what_there_is(corpus):
    train, val = split_documents([corpus], 1e-300)
    assert (train, val) == ([Span(corpus, 0, 1900)], [Span(corpus, 1900, 2000)])
