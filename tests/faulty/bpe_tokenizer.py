"""Tokenizers, with mistakes."""
import re
from itertools import pairwise

from llm_course.bpe import GPT2, pre_tokens


class Right:
    "A slow `BpeTokenizer` without mistakes, for the others to be derived from."
    def __init__(self, vocab, merges, special_tokens=None, pattern=GPT2):
        self.vocab, self.merges, self.pattern = dict(vocab), {tuple(m): i for i, m in enumerate(merges)}, pattern
        self.special_tokens = {}
        for token in special_tokens or []:
            known = [id for id, spelled in self.vocab.items() if spelled == token.encode()]
            self.special_tokens[token] = id = (known or [max(self.vocab) + 1])[0]
            self.vocab[id] = token.encode()
        self.ids = {token: id for id, token in self.vocab.items()}

    def bpe(self, word):
        parts = [word[i:i+1] for i in range(len(word))]
        while len(parts) > 1:
            rank, i = min((self.merges.get((a, b), 10**9), i) for i, (a, b) in enumerate(pairwise(parts)))
            if rank == 10**9: break
            parts[i:i+2] = [parts[i] + parts[i+1]]
        return [self.ids[p] for p in parts]

    def ordinary(self, text): return [id for piece in pre_tokens(text, self.pattern) for id in self.bpe(piece.encode())]

    def split(self, text):
        if not self.special_tokens: return [text]
        return re.split("(" + "|".join(re.escape(t) for t in sorted(self.special_tokens, key=len, reverse=True)) + ")", text)

    def encode(self, text):
        ids = []
        for part in self.split(text): ids += [self.special_tokens[part]] if part in self.special_tokens else self.ordinary(part)
        return ids

    def decode(self, ids): return b"".join(self.vocab[int(i)] for i in ids).decode("utf-8", errors="replace")

    def encode_iterable(self, chunks): yield from self.encode("".join(chunks))


class MergesInOrderOfTheText(Right):
    def bpe(self, word):
        parts, i = [word[i:i+1] for i in range(len(word))], 0
        while i < len(parts) - 1:
            if (parts[i], parts[i+1]) in self.merges:
                parts[i:i+2] = [parts[i] + parts[i+1]]
                i = max(i - 1, 0)
            else: i += 1
        return [self.ids[p] for p in parts]

class LongestMatch(Right):
    def bpe(self, word):
        ids = []
        while word:
            size = max(n for n in range(1, len(word) + 1) if word[:n] in self.ids)
            ids.append(self.ids[word[:size]])
            word = word[size:]
        return ids

class OnePassOverTheMerges(Right):
    "Each merge is tried once, at its first place only."
    def bpe(self, word):
        parts = [word[i:i+1] for i in range(len(word))]
        for a, b in self.merges:
            for i in range(len(parts) - 1):
                if (parts[i], parts[i+1]) == (a, b):
                    parts[i:i+2] = [a + b]
                    break
        return [self.ids[p] for p in parts]

class NoPreTokens(Right):
    def ordinary(self, text): return self.bpe(text.encode())

class CodePoints(Right):
    def ordinary(self, text): return [id for piece in pre_tokens(text, self.pattern) for id in self.bpe(piece.encode("latin-1", errors="ignore"))]

class StrictDecoding(Right):
    def decode(self, ids): return b"".join(self.vocab[i] for i in ids).decode("utf-8")

class TokenByToken(Right):
    def decode(self, ids): return "".join(self.vocab[i].decode("utf-8", errors="replace") for i in ids)

class DropsBadBytes(Right):
    def decode(self, ids): return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="ignore")

class SpecialTokensAreText(Right):
    def split(self, text): return [text]
    def encode(self, text): return self.ordinary(text)

class ShorterSpecialTokenWins(Right):
    def split(self, text): return re.split("(" + "|".join(map(re.escape, sorted(self.special_tokens, key=len))) + ")", text) if self.special_tokens else [text]

class ForgetsToEscape(Right):
    def split(self, text): return re.split("(" + "|".join(sorted(self.special_tokens, key=len, reverse=True)) + ")", text) if self.special_tokens else [text]

class ChunkByChunk(Right):
    def encode_iterable(self, chunks):
        for chunk in chunks: yield from self.encode(chunk)

class SpacesBetween(Right):
    def decode(self, ids): return " ".join(self.vocab[i].decode("utf-8", errors="replace") for i in ids)


FAULTY = {"BpeTokenizer": [MergesInOrderOfTheText, LongestMatch, OnePassOverTheMerges, NoPreTokens, CodePoints, StrictDecoding, TokenByToken, DropsBadBytes,
                           SpecialTokensAreText, ShorterSpecialTokenWins, ForgetsToEscape, ChunkByChunk, SpacesBetween]}
