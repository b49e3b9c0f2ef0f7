"""Cleaning text: extraction, languages, rules, masks, copies and near copies, and what the validation text gives away."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_course.engine.cleaning import (
    SAMPLES,
    Languages,
    c4_faults,
    c4_lines,
    candidate_pairs,
    candidate_rate,
    drop_repeated_lines,
    drop_repeated_lines_of_files,
    extract_text,
    first_copies,
    first_files_of_similar,
    first_of_similar,
    gopher_faults,
    jaccard,
    mask_emails,
    mask_ips,
    mask_phone_numbers,
    minhash,
    shared_ngrams,
    word_ngrams,
)

few = settings(max_examples=30, deadline=None)
languages = Languages(SAMPLES)
ALPHABETS = "", " \n\t", "word", "слово и дело", "كلمة واحدة", "欢迎来到我们的网站", "नमस्ते दुनिया", "🙂🙃", "\ud800", "\x00"


@pytest.mark.parametrize("text", ALPHABETS, ids=ascii)
def test_every_step_takes_every_text(text):
    assert extract_text(text) == " ".join(text.split()) and 0 < languages.identify(text)[1] <= 1
    assert "number of words" in gopher_faults(text) and c4_lines(text) == "" and c4_faults(text) == ["fewer than 3 sentences"]
    assert all(mask(text) == (text, 0) for mask in (mask_emails, mask_phone_numbers, mask_ips))
    assert first_copies([text, text + "!"]) == [0, 1] and drop_repeated_lines([text], most=9) == [text]
    assert first_of_similar([text, text]) == [0] and jaccard(word_ngrams(text), word_ngrams(text)) == 1
    assert shared_ngrams(text, set()) == set() and len(minhash(word_ngrams(text), 8)) == 8


def test_no_documents(): assert first_copies([]) == first_of_similar([]) == drop_repeated_lines([]) == [] and candidate_pairs([]) == set()


@pytest.mark.parametrize("page, text", [
    ("<p>one<p>two", "one\ntwo"), ("a<br/>b", "a\nb"), ("<b>un</b>bold", "unbold"), ("&lt;p&gt; &eacute;&#233;", "<p> éé"),
    ("<script>var x = '<p>no</p>'</script>yes", "yes"), ("<style>p{}</style>yes", "yes"), ("<script>never closed", ""),
    ("<nav>menu<nav>inner</nav>outer</nav>text", "text"), ("<nav>menu<p>text", "menu\ntext"), ("<nav>menu<script>x</script><p>text", "menu\ntext"), ("</nav></p>text", "text"),
    ("<![foo bar]>text", "text"), ("<![CDATA[x]]>text", "text"), ("<p a='<'>text", "text"), ("text<!-- never closed", "text"),
    ("<html><head><title>no</title></head><body>\n <h1>A Whale - A Story</h1>\n <div>\n  <p>\n   Of iron, and\n   of bread.\n  </p>\n </div>\n</body></html>\n", "A Whale - A Story\nOf iron, and of bread."),
    ("<b>a</b>\n<i>b</i>", "a b"), ("<ul><li>a<li>b</ul>c", "a\nb\nc"), ("a\n  b\tc", "a b c")])
def test_pages_good_and_broken(page, text):
    assert extract_text(page).removesuffix("<!-- never closed") == text == extract_text(page.encode()).removesuffix("<!-- never closed")


@pytest.mark.parametrize("page, text", [
    ("<body><div><h1>Tea - A Guide</h1>\n<div><p>\n  Warm the\n  pot.\n</p><img src=x><p>See <a href=y>here</a>.</p></div>\n<div><ul>\n <li>Drink</li>\n</ul></div></div></body>",
     "Tea - A Guide\n\nWarm the pot.\n\nSee here.\n\n  • Drink"),
    ("<ul><li>a<li><p>b</p><p>c</p><li></li><li>d</ul>e", "  • a\n  • b\n\nc\n\n  • d\n\ne"), ("a<br>b<hr>c", "a\nb\n\nc"), ("<nav><ul><li>Home</ul></nav>text", "text"), ("<p>•</p>a\fb", "•\n\na b"), ("", "")])
def test_blank_lines_between_blocks_and_bullets_before_points(page, text):
    assert extract_text(page, blank_lines=True) == text == extract_text(page.encode(), blank_lines=True)


def test_deep_nesting_and_other_encodings():
    assert extract_text("<div><b>" * 20_000 + "deep") == "deep"
    assert extract_text(b"caf\xe9 \x93said\x94") == "café “said”"


@few
@given(st.text(alphabet="<>/![]-&;ap=' \"", max_size=60))
def test_no_page_is_too_broken(page): extract_text(page)


@pytest.mark.parametrize("text, language", [
    ("Welcome to our website, and please come again.", "en"), ("欢迎来到我们的网站", "zh"), ("Willkommen auf unserer Seite", "de"),
    ("Bienvenue sur notre site, nous sommes heureux de vous voir", "fr"), ("Bienvenidos a nuestra página de la ciudad", "es")])
def test_languages(text, language):
    assert languages.identify(text)[0] == language


def test_languages_by_hand():
    "Each sample has four pieces, a with a blank before it, behind it, on both sides and on none; so each counts 2 of 12 against 1 of 12."
    two = Languages({"a": "a", "b": "b"})
    assert two.different == 8 and two.identify("a") == ("a", pytest.approx(2**4 / (2**4 + 1)))
    assert two.identify("1 2") == ("a", 0.5)


GOOD = "The string you are reading is an okay example of text. "

@pytest.mark.parametrize("text, fault", [
    (GOOD * 4, "number of words"), (GOOD * 10_000, "number of words"), ("the be " * 100, "length of words"),
    ("the and " + "extraordinarily extraordinarily longest " * 100, "length of words"), (GOOD * 10 + "#" * 12, "symbols"),
    ("\n".join(["- " + GOOD] * 10), "bullets"), ("\n".join([GOOD + "and on..."] * 7 + [GOOD] * 13), "lines that break off"),
    (GOOD * 5 + "12 34 " * 20, "words without letters"), ("bread butter cheese wine " * 20, "common words")])
def test_gopher_rules_one_by_one(text, fault): assert fault in gopher_faults(text)


@pytest.mark.parametrize("text", [GOOD * 5, GOOD * 9_000, "the with " * 100, "\n".join([GOOD + "and on..."] * 6 + [GOOD] * 14), "the and this is fine " * 100])
def test_gopher_keeps_what_is_just_within(text): assert gopher_faults(text) == []


def test_c4_rules():
    lines = "This line has five words.", "Too few words.", "A line that does not end", "Please turn on JavaScript, dear reader.", 'He said, "It is quite enough."'
    assert c4_lines("\n".join(lines)) == f"{lines[0]}\n{lines[4]}"
    assert c4_faults("One. Two. Three.") == [] and c4_faults("One. Two. 3.14 three") == ["fewer than 3 sentences"]
    assert c4_faults("One. Two. Lorem Ipsum. {") == ["curly bracket", "lorem ipsum"]


@pytest.mark.parametrize("mask, text, masked, times", [
    (mask_emails, "at test@gmail.com, if", "at |||EMAIL_ADDRESS|||, if", 1), (mask_emails, "a.b+c@d-e.co.uk.", "|||EMAIL_ADDRESS|||.", 1),
    (mask_emails, "|||EMAIL_ADDRESS||| a@b.ai b@b.ai", "|||EMAIL_ADDRESS||| |||EMAIL_ADDRESS||| |||EMAIL_ADDRESS|||", 2), (mask_emails, "@decorator x@y", "@decorator x@y", 0),
    *((mask_phone_numbers, f"at {number} if", "at |||PHONE_NUMBER||| if", 1) for number in ("2831823829", "(283)-182-3829", "(283) 182 3829", "283-182-3829", "+1 283.182.3829")),
    (mask_phone_numbers, "28318238290 0.2831823829", "28318238290 0.2831823829", 0),
    (mask_ips, "at 192.0.2.146.", "at |||IP_ADDRESS|||.", 1), (mask_ips, "0.0.0.0 255.255.255.255", "|||IP_ADDRESS||| |||IP_ADDRESS|||", 2),
    (mask_ips, "256.1.1.1 1.2.3 1.2.3.4.5", "256.1.1.1 1.2.3 1.2.3.4.5", 0)])
def test_masks(mask, text, masked, times): assert mask(text) == (masked, times)


def test_long_words_cost_no_more_than_short_ones():
    "A pattern that starts anew at every letter would take hours here."
    assert mask_emails("a" * 300_000) == ("a" * 300_000, 0) and mask_ips("1" * 300_000)[1] == 0


def test_lines_that_come_more_than_once_go_with_all_their_copies():
    documents = ["a\n\nb\nshared line\n", "c\n\nshared line", ""]
    assert drop_repeated_lines(documents) == ["a\nb\n", "c\n", ""]
    assert drop_repeated_lines(documents, most=2) == documents
    assert drop_repeated_lines(documents, min_words=1) == ["a\n\nb\n", "c\n\n", ""]


def test_files_that_share_lines_or_are_equal():
    "Of five short files two are equal, and a third shares a line with a fourth: as documents one goes, as lines all that two files share."
    files = "one line\nand another\n", "one line\nand another\n", "a third, and shared\n\nalone\n", "a third, and shared\nalone, too\n", "nothing shared\n"
    assert first_of_similar(files, hashes=100, bands=10) == first_copies(files) == [0, 2, 3, 4]
    assert drop_repeated_lines(files) == ["", "", "\nalone\n", "alone, too\n", "nothing shared\n"]


PAGES = {"a.txt": "to the start\nall pages\n", "b.txt": "to the start\nall pages\n", "c.txt": "to the start\nall pages\nso\nOf hats.\n", "d.txt": "to the start\nall pages\r\nOf shoes.", "e.txt": "Nobody else says this: é\n"}

@pytest.fixture
def pages(tmp_path):
    (tmp_path/"in").mkdir()
    for name, text in PAGES.items(): (tmp_path/"in"/name).write_text(text, encoding="utf-8", newline="")
    return sorted((tmp_path/"in").iterdir())


def contents(folder): return {path.name: path.read_bytes().decode() for path in folder.iterdir()}


def test_lines_that_files_share_go_and_each_file_stays(pages, tmp_path):
    drop_repeated_lines_of_files(pages, tmp_path/"out"/"here")
    assert contents(tmp_path/"out"/"here") == {"a.txt": "", "b.txt": "", "c.txt": "so\nOf hats.\n", "d.txt": "Of shoes.", "e.txt": PAGES["e.txt"]}
    drop_repeated_lines_of_files(map(str, pages), str(tmp_path/"out"/"here"), most=4)
    assert contents(tmp_path/"out"/"here") == PAGES and contents(tmp_path/"in") == PAGES


def test_the_first_of_files_that_are_alike_is_kept_as_it_was(pages, tmp_path):
    assert first_files_of_similar(pages, tmp_path/"out", hashes=100, bands=10) == ["a.txt", "c.txt", "d.txt", "e.txt"]
    assert contents(tmp_path/"out") == {name: text for name, text in PAGES.items() if name != "b.txt"}
    body = " ".join(f"word{i}" for i in range(200))
    licences = {"one": f"Copyright 2004 A. Person\n\n{body}\n", "two": f"Copyright (c) B. Company and others\n{body.replace(' ', '  ')}\n", "three": " ".join(body.split()[::-1])}
    for name, text in licences.items(): (tmp_path/"in"/name).write_text(text, encoding="utf-8", newline="")
    kept = first_files_of_similar([tmp_path/"in"/name for name in licences], tmp_path/"near", hashes=500, bands=50, n=5, threshold=.8)
    assert kept == ["one", "three"] and contents(tmp_path/"near") == {name: licences[name] for name in kept}


def test_no_file_is_overwritten(pages, tmp_path):
    with pytest.raises(ValueError, match="would be overwritten; name another folder"): drop_repeated_lines_of_files(pages, tmp_path/"out"/".."/"in")
    (tmp_path/"also").mkdir()
    (tmp_path/"also"/"a.txt").write_text("other", encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=r"two files have the name a\.txt"): first_files_of_similar([*pages, tmp_path/"also"/"a.txt"], tmp_path/"out")
    assert not (tmp_path/"out").exists() and contents(tmp_path/"in") == PAGES


def test_a_classifier_of_quality_from_two_samples():
    good = "A theory of bread says why the crumb has holes. It is grounded in the chemistry of yeast, which has been described in many books since 1857. "
    bad = "Learn fast and get paid!! Board index FAQ Search Memberlist Register Log in Powered by a board. All rights reserved © "
    taste = Languages({"reference": good * 3, "crawl": bad * 3})
    for text, kind in ("Board index: search the memberlist, register or log in to check your messages. All rights reserved.", "crawl"), ("Many books have described the chemistry of bread, and why yeast makes holes in it.", "reference"):
        found, score = taste.identify(text)
        assert found == kind and isinstance(score, float) and score > .5


def test_near_copies_of_a_licence():
    licence = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated files " * 1
    words = [f"word{i}" for i in range(200)]
    text = licence + " ".join(words)
    documents = ["Copyright 2004 David. " + text, "An essay on " + " ".join(words[::-1]), "Copyright (c) Meta.\n\n  " + text.upper().replace(" ", "\n "), text]
    assert first_of_similar(documents, hashes=500, bands=50) == [0, 1]
    assert first_of_similar(documents, threshold=1.) == [0, 1, 2, 3]


def test_groups_reach_over_several_steps():
    words = [f"w{i}" for i in range(60)]
    chain = [" ".join(words[i : i + 40]) for i in (0, 3, 6, 9, 12)]
    grams = [word_ngrams(text) for text in chain]
    assert jaccard(grams[0], grams[1]) >= .8 > jaccard(grams[0], grams[2])
    assert first_of_similar(chain, hashes=500, bands=125) == [0]


sets = st.sets(st.integers(0, 60), max_size=60)

@few
@given(sets, sets)
def test_minhash_estimates_jaccard(a, b):
    a, b = ({f"{i}" for i in one} for one in (a, b))
    s = jaccard(a, b)
    estimate = float((minhash(a, 1000) == minhash(b, 1000)).mean())
    assert abs(estimate - s) <= 6 * (s * (1 - s) / 1000)**.5 + .03
    if s in (0, 1): assert estimate == s


@pytest.mark.parametrize("bands, rows", [(20, 5), (10, 10), (50, 2)])
@pytest.mark.parametrize("shared", [60, 120, 160, 180])
def test_pairs_are_found_at_the_rate_of_the_s_curve(bands, rows, shared):
    "A union of 200; a signature of many parts is as good as many trials."
    edge = (200 - shared) // 2
    a, b = {f"{i}" for i in range(200 - edge)}, {f"{i}" for i in range(edge, 200)}
    assert jaccard(a, b) == shared / 200
    one, other = (np.split(minhash(some, 100 * bands * rows, seed=1), 100) for some in (a, b))
    found = sum(candidate_pairs(pair, bands) == {(0, 1)} for pair in zip(one, other)) / 100
    p = candidate_rate(shared / 200, bands, rows)
    assert abs(found - p) <= 4.5 * (p * (1 - p) / 100)**.5 + .015


def test_bands_must_divide():
    with pytest.raises(ValueError, match="4 numbers cannot be cut into 3"): candidate_pairs([np.zeros(4)], bands=3)


def test_what_is_shared_with_held_out_texts():
    words = " ".join(f"w{i}" for i in range(20))
    known = word_ngrams(words, 13)
    assert len(shared_ngrams("Before! " + words.upper() + " after", known)) == 8
    assert shared_ngrams(words.replace("w10", "other"), known) == set()
