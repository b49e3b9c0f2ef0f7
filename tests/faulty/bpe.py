"""Byte-pair encoding, with mistakes."""
from collections import Counter
from itertools import pairwise

import regex

from llm_course.bpe import GPT2


def named(name, part):
    part.__name__ = name
    return part


def found(name, pattern=None, finish=lambda pieces: pieces, start=lambda text: text):
    "A `pre_tokens` that is right but for what is given."
    return named(name, lambda text, given=GPT2: finish([m.group() for m in regex.finditer(pattern(given) if pattern else given, start(text))]))


def splits_at_spaces(text, pattern=GPT2): return text.split(" ")

def words_only(text, pattern=GPT2): return regex.findall(r"\w+", text)

def words_and_signs(text, pattern=GPT2): return regex.findall(r"\s?\w+|[^\w\s]|\s", text)


def while_loop(name, match=lambda ids, i, pair: (ids[i], ids[i+1]) == pair, upto=lambda ids: len(ids) - 1, step=2, tail=True):
    "A `merge` that is right but for what is given."
    def part(ids, pair, new):
        out, i = [], 0
        while i < upto(ids):
            if match(ids, i, pair):
                out.append(new)
                i += step
            else:
                out.append(ids[i])
                i += 1
        return out + ids[i:] if tail else out
    return named(name, part)


def replaces_in_place(ids, pair, new):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i+1]) == tuple(pair): ids[i:i+2] = [new]
        i += 1
    return ids


def compares_with_the_last_written(ids, pair, new):
    out = []
    for id in ids:
        if out and (out[-1], id) == pair: out[-1] = new
        else: out.append(id)
    return out if pair[0] != pair[1] else [new if a == b == pair[0] else a for a, b in zip(ids, [*ids[1:], None])]


def by_text(ids, pair, new): return [int(x) for x in " ".join(map(str, ids)).replace(f"{pair[0]} {pair[1]}", str(new)).split()]


def learner(name, choose=lambda pairs: max(pairs, key=lambda p: (pairs[p], p)), count=lambda n: n, stop=False, rejoin=True, whole=False, order=None):
    "A `learn_merges` that is right but for what is given."
    def part(words, num_merges):
        corpus = [([bytes([b]) for b in word], count(n)) for word, n in words.items()]
        if whole: corpus = [([piece for spelled, n in corpus for piece in spelled * n], 1)]
        merges = []
        for _ in range(num_merges):
            pairs = Counter()
            for spelled, n in corpus:
                for pair in pairwise(spelled): pairs[pair] += n
            if not pairs: break
            best = choose(pairs)
            if stop and pairs[best] < 2: break
            merges.append(best if order is None else order(best))
            if not rejoin:
                corpus = [([x for x in spelled], n) for spelled, n in corpus]
                for p in merges: pairs.pop(p, None)
                if not (pairs := Counter({p: n for p, n in pairs.items() if p not in merges})): break
                merges += [p for p, _ in pairs.most_common(num_merges - len(merges))]
                return merges
            new = []
            for spelled, n in corpus:
                out, i = [], 0
                while i < len(spelled):
                    if tuple(spelled[i:i+2]) == best: out.append(spelled[i] + spelled[i+1]); i += 2
                    else: out.append(spelled[i]); i += 1
                new.append((out, n))
            corpus = new
        return merges
    return named(name, part)


def keeps_stale_counts(words, num_merges):
    "New pairs are counted, and old ones never go."
    corpus, pairs, merges = [([bytes([b]) for b in word], n) for word, n in words.items()], Counter(), []
    for _ in range(num_merges):
        for spelled, n in corpus:
            for pair in pairwise(spelled): pairs[pair] += n
        left = {p: n for p, n in pairs.items() if p not in merges}
        if not left: break
        merges.append(best := max(left, key=lambda p: (left[p], p)))
        corpus = [(while_loop("")(spelled, best, b"".join(best)), n) for spelled, n in corpus]
    return merges


FAULTY = {
    "pre_tokens": [
        splits_at_spaces, words_only, words_and_signs,
        found("no_contractions", lambda p: p.replace("'(?:[sdmt]|ll|ve|re)|", "")),
        found("space_stays_behind", lambda p: p.replace(" ?", "")),
        found("takes_all_spaces", lambda p: p.replace(r"|\s+(?!\S)", "")),
        found("letters_only_ascii", lambda p: p.replace(r"\p{L}", "A-Za-z").replace(" ?A-Za-z+", " ?[A-Za-z]+")),
        found("strips_the_text", start=str.strip),
        found("ignores_the_pattern", lambda p: GPT2),
        found("any_case_contractions", lambda p: p.replace("'(?:", "'(?i:")),
        found("an_empty_piece_at_the_end", finish=lambda pieces: [*pieces, ""]),
    ],
    "merge": [
        while_loop("moves_on_by_one", step=1), while_loop("forgets_the_last", tail=False),
        while_loop("either_order", match=lambda ids, i, pair: {ids[i], ids[i+1]} == set(pair)),
        while_loop("misses_the_end", upto=lambda ids: len(ids) - 2),
        while_loop("only_the_left_counts", match=lambda ids, i, pair: ids[i] == pair[0]),
        while_loop("only_the_right_counts", match=lambda ids, i, pair: ids[i+1] == pair[1]),
        while_loop("never_matches_a_list", match=lambda ids, i, pair: ids[i:i+2] == pair),
        replaces_in_place, compares_with_the_last_written, by_text,
        named("joins_once", lambda ids, pair, new: next(([*ids[:i], new, *ids[i+2:]] for i in range(len(ids)) if tuple(ids[i:i+2]) == pair), ids)),
    ],
    "learn_merges": [
        learner("first_seen_wins", choose=lambda pairs: max(pairs, key=pairs.get)),
        learner("lesser_pair_wins", choose=lambda pairs: min(pairs, key=lambda p: (-pairs[p], p))),
        learner("compares_what_they_make", choose=lambda pairs: max(pairs, key=lambda p: (pairs[p], b"".join(p)))),
        learner("each_word_once", count=lambda n: 1),
        learner("never_joins", rejoin=False),
        learner("over_the_edges_of_words", whole=True),
        learner("stops_at_pairs_seen_once", stop=True),
        learner("longest_token_first", choose=lambda pairs: max(pairs, key=lambda p: (len(b"".join(p)), pairs[p], p))),
        learner("the_rarest", choose=lambda pairs: min(pairs, key=lambda p: (pairs[p], p))),
        learner("turned_round", order=lambda p: (p[1], p[0])),
        named("one_merge_too_few", lambda words, n: learner("")(words, n - 1)),
        keeps_stale_counts,
    ],
}
