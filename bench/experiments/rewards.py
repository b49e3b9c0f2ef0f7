"""Learning from rewards, for chapter 27: a small adder that is sometimes right becomes one that is always right, and the demo model learns metre, rhyme, and both. Three seeds each.

`python -m bench.experiments.rewards` writes rewards.json, a cell at a time, and goes on where it stopped; `… adder` or `… metre 0` makes a part of it. Times are processor seconds of one thread."""
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch

from bench.experiments import keep
from bench.runner import machine, read
from llm_course.data import fetch
from llm_course.engine.rollouts import reward_signs
from llm_course.generating import DEMO, load_demo
from llm_course.loss import bits_per_byte
from llm_course.optim import AdamW, gradient_clip
from llm_course.rewards import kl_estimate, learn_from, make_rollout, pass_at_k, sample_answers, token_logprobs
from llm_course.training import evaluate
from llm_course.transformer import Transformer

SEEDS = 3

# ---- An adder: the last digit of a sum. A third of its examples keep a running total, the others answer at once

DIGITS, MARKS, SHARE = 5, "0123456789=.", .36
SHAPE = dict(vocab_size=len(MARKS), max_seq_len=32, d_model=64, num_layers=2, num_heads=4, d_ff=256)
FIRST, AFTER = 60., 20.   # processor seconds at most until 40 %, and then for each way to go on


def sums(seed: str, n: int) -> list[tuple[list[int], list[int]]]:
    "Questions and example answers, in ids."
    draw, found = random.Random(seed), []
    for _ in range(n):
        digits = [draw.randrange(10) for _ in range(DIGITS)]
        totals = [sum(digits[:i + 1]) % 10 for i in range(1, DIGITS)]
        if draw.random() > SHARE: totals = totals[-1:]
        found.append(([*digits, 10], [*totals, 11]))
    return found


def is_right(prompt: list[int], said: list[int]) -> bool:
    "Does an answer end with the last digit of the sum, and a full stop?"
    return len(said) > 1 and said[-1] == 11 and said[-2] == sum(prompt[:-1]) % 10


def exam(model: Transformer, n: int = 250, g: int = 8) -> dict[str, float]:
    "pass@1 and pass@8 on new questions, and the mean length of an answer."
    prompts = [prompt for prompt, _ in sums("exam", n)]
    said = sample_answers(model, prompts, g, DIGITS + 3, 11, torch.Generator().manual_seed(0))
    right = torch.tensor([is_right(prompts[i // g], answer) for i, answer in enumerate(said)]).view(n, g)
    return {"pass@1": round(pass_at_k(right, 1), 4), "pass@8": round(pass_at_k(right, 8), 4), "length": round(sum(map(len, said)) / len(said), 2)}


def imitate(model: Transformer, optimizer: AdamW, seed: str, n: int = 128) -> None:
    "One step of fine-tuning on example answers."
    prompts, answers = zip(*sums(seed, n))
    ids, said = make_rollout(prompts, answers)
    loss = -(token_logprobs(model, ids) * said).sum() / said.sum()
    optimizer.zero_grad()
    loss.backward()
    gradient_clip(list(model.parameters()), 1.)
    optimizer.step()


def go_on(model: Transformer, seconds: float, seed: int, way: str, rate: float, stop: float = 2.) -> list[dict]:
    "Fine-tune, or learn from rewards, for a time; look every few seconds. `stop` ends it at a share of right answers."
    model, reference = model, deepcopy(model)
    optimizer = AdamW(model.parameters(), lr=rate, betas=(.9, .95), weight_decay=0.)
    dice, spent, step, curve = torch.Generator().manual_seed(seed), 0., 0, [{"seconds": 0., **exam(model)}]
    while spent < seconds and curve[-1]["pass@1"] < stop:
        start = time.process_time()
        while time.process_time() - start < seconds / 25:
            step += 1
            if way == "imitation": imitate(model, optimizer, f"{way} {seed} {step}")
            else:
                prompts = [prompt for prompt, _ in sums(f"{way} {seed} {step}", 32)]
                said = sample_answers(model, prompts, 8, DIGITS + 3, 11, dice)
                rewards = torch.tensor([float(is_right(prompts[i // 8], answer)) for i, answer in enumerate(said)]).view(32, 8)
                learn_from(model, optimizer, reference, make_rollout([p for p in prompts for _ in range(8)], said), rewards, way)
        spent += time.process_time() - start   # the exam is not counted
        curve.append({"seconds": round(spent, 1), **exam(model)})
        print(way, seed, step, curve[-1], flush=True)
    return curve


def adder(seed: int) -> Iterator[dict]:
    "Imitate up to 40 %, then go on in two ways for the same time."
    torch.manual_seed(seed)
    model = Transformer(**SHAPE)
    first = go_on(model, FIRST, seed, "imitation", 3e-3, .38)
    cell = {"parameters": sum(p.numel() for p in model.parameters()), "first": first}
    for way, rate in ("imitation", 1e-3), ("dr_grpo", 1e-3):
        cell[way] = go_on(deepcopy(model), AFTER, seed + 100, way, rate)
    yield cell | {"done": True}


# ---- Metre and rhyme

SPEAKERS = "ROMEO JULIET HAMLET KING QUEEN PORTIA BRUTUS HELENA DUKE ROSALIND OTHELLO IAGO ANTONIO CASSIUS MACBETH EDGAR".split()
ROOM, TOKENS = {1: 24, 2: 40}, 48   # tokens of one or two lines at most, and of a free text that is looked at
PROMPTS, GROUP, RATE = 16, 8, 3e-4
SECONDS = 300.   # processor seconds of learning


def syllables(word: str) -> int:
    "Count groups of vowels; an e at the end is silent, unless it is the only one, or follows an l."
    word = re.sub("[^a-z]", "", word.lower())
    count = len(re.findall("[aeiouy]+", word))
    if count > 1 and word.endswith("e") and not word.endswith(("le", "ee", "ye")): count -= 1
    return max(count, 1 if word else 0)


def verses(text: str) -> list[str]:
    "The lines that count: those that have an end, without empty ones and names of speakers."
    return [line for line in text.split("\n")[:-1] if line.strip() and not line.rstrip().endswith(":")]


def length(line: str) -> int:
    "Syllables of a line."
    return sum(map(syllables, line.split()))


def metre(line: str) -> float:
    "1 for ten syllables, 1/4 for nine or eleven, 1/16 for one further, and so on; nothing for a line that has no end."
    return .25 ** abs(length(line) - 10) if line.endswith("\n") else 0.


def ending(line: str) -> tuple[str, str]:
    "The last word of a line, and how it sounds at its end, as far as spelling tells: the last vowels and what follows them, a silent e among it."
    words = [re.sub("[^a-z]", "", word) for word in line.lower().split()]
    word = next((word for word in reversed(words) if word), "")
    found = re.search("[aeiouy]+[^aeiouy]*e?$", word)
    return word, found[0] if found else ""


def rhyme(line: str, before: str) -> float:
    "1 if a line ends as the line before it does, in another word; 1/4 if only the last letter is the same."
    (word, sound), (other, wanted) = ending(line), ending(before)
    if word == other or word[-1:] != other[-1:]: return 0.
    return 1. if sound == wanted != "" else .25


def couplet(text: str) -> float:
    "Half for the metre of two lines, half for their rhyme; nothing for what has no end."
    first, second = [line + "\n" for line in [*text.split("\n")[:-1], "", ""][:2]]
    return (metre(first) + metre(second)) / 4 + rhyme(second, first) / 2


def rhyme_alone(text: str) -> float:
    "The rhyme of two lines, whatever their metre."
    first, second = [line + "\n" for line in [*text.split("\n")[:-1], "", ""][:2]]
    return rhyme(second, first)


RULES = {   # the lines of an answer, and what it is worth: the next rule takes over where the mean reward of five steps has reached ENOUGH
    "metre": (1, metre), "rhyme alone": (2, rhyme_alone), "both at once": (2, couplet), "rhyme first": (2, rhyme_alone, couplet)}
ENOUGH = .7


def cut(tokenizer, answer: list[int], lines: int) -> list[int]:
    "Cut an answer behind its first line breaks: this is where it ends."
    for i, id in enumerate(answer):
        lines -= tokenizer.vocab[id].count(b"\n")
        if lines <= 0: return answer[:i + 1]
    return answer


def rhymes(texts: list[str]) -> dict[str, float]:
    "Which share of neighbouring lines rhyme, of texts whose first two do, and of texts whose first two have ten syllables each as well; the share of the commonest rhyme among them; and of the commonest last word of a line."
    pairs = [pair for text in texts for pair in pairwise(verses(text))]
    firsts = [([*pairwise(verses(text))] or [("", "")])[0] for text in texts]
    right = torch.tensor([rhyme(b, a) == 1 for a, b in firsts]).view(len(SPEAKERS), -1)
    whole = right & torch.tensor([length(a) == length(b) == 10 for a, b in firsts]).view(len(SPEAKERS), -1)
    sounds = Counter(ending(a)[1] for a, b in pairs if rhyme(b, a) == 1)
    words = Counter(ending(line)[0] for text in texts for line in verses(text))
    return {"rhymes": sum(sounds.values()) / max(1, len(pairs)), "rhyme@1": pass_at_k(right, 1), "rhyme@8": pass_at_k(right, 8), "both@1": pass_at_k(whole, 1), "both@8": pass_at_k(whole, 8),
            "commonest_rhyme": max(sounds.values(), default=0) / max(1, sum(sounds.values())), "commonest_last_word": max(words.values(), default=0) / max(1, sum(words.values()))}


def is_enough(history: list[dict]) -> bool:
    "Has the mean reward of the last five steps, under the rule that holds now, reached ENOUGH?"
    last = [line["reward"] for line in history[-5:] if line["rule"] == history[-1]["rule"]]
    return len(last) == 5 and sum(last) / 5 >= ENOUGH


def beginnings(plays: str) -> list[str]:
    "Beginnings of speeches: the speaker, and up to two lines."
    found = []
    for speech in plays.split("\n\n"):
        name, *lines = speech.split("\n")
        if name.endswith(":") and len(lines) > 2: found += ["\n".join([name, *lines[:n], ""]) for n in range(3)]
    return found


def watch(model: Transformer, reference: Transformer, tokenizer, known: set[str], held_out: torch.Tensor, size: int) -> dict:
    "What is said of a model: metre, words, bits per byte on plays it has not read, distance, variety."
    prompts = [tokenizer.encode(f"{name}:\n") for name in SPEAKERS]
    said = sample_answers(model, prompts, 16, TOKENS, None, torch.Generator().manual_seed(1))
    texts = [tokenizer.decode(answer) for answer in said]
    lines = [line for text in texts for line in verses(text)]
    words = [re.sub("[^a-z']", "", word.lower()) for line in lines for word in line.split()]
    words = [word for word in words if word]
    firsts = [tokenizer.decode(cut(tokenizer, answer, 1)) for answer in said]
    right = torch.tensor([metre(line) == 1 for line in firsts]).view(len(prompts), 16)
    rows = make_rollout([p for p in prompts for _ in range(16)], said)
    with torch.no_grad(): kl = kl_estimate(token_logprobs(model, rows.ids), token_logprobs(reference, rows.ids), rows.answer_mask)
    nats = evaluate(model, [(held_out[:, :-1], held_out[:, 1:])])
    found = {
        "ten_syllables": sum(length(line) == 10 for line in lines) / max(1, len(lines)), "lines": len(lines) / len(texts),
        "pass@1": pass_at_k(right, 1), "pass@8": pass_at_k(right, 8),
        "dictionary": sum(word in known for word in words) / max(1, len(words)), "distinct_words": len(set(words)) / max(1, len(words)),
        "distinct_lines": len(set(lines)) / max(1, len(lines)), "words_a_line": len(words) / max(1, len(lines)),
        "letters_a_word": sum(map(len, words)) / max(1, len(words)),
        "bits_per_byte": bits_per_byte(nats, held_out[:, 1:].numel(), size), "kl": float(kl) / TOKENS, **rhymes(texts)}
    return {name: round(value, 4) for name, value in found.items()} | {"sample": texts[0] + "|" + texts[17]}


def verse(what: str, seed: int, beta: float, seconds: float = SECONDS, rate: float = RATE, watches: int = 4) -> Iterator[dict]:
    "Let the demo model learn by one of the `RULES`; what has been seen so far, at every look."
    lines, *rules = RULES[what]
    model, tokenizer = load_demo("cpu")
    reference = deepcopy(model)
    plays = Path(fetch("shakespeare")).read_text("utf-8")
    known, starts = {re.sub("[^a-z']", "", word.lower()) for word in plays.split()}, beginnings(plays)
    ids = tokenizer.encode((DEMO/"held_out.txt").read_text("utf-8"))
    held_out = torch.tensor(ids[:len(ids) // 128 * 128][:32 * 128]).view(-1, 128)
    size = sum(len(tokenizer.vocab[id]) for id in held_out[:, 1:].flatten().tolist())
    look = [reference, tokenizer, known, held_out, size]
    optimizer = AdamW(model.parameters(), lr=rate, betas=(.9, .95), weight_decay=0.)
    dice, draw, spent, step, history = torch.Generator().manual_seed(seed), random.Random(seed), 0., 0, []
    curve = [{"seconds": 0., **watch(model, *look)}]
    while spent < seconds:
        start = time.process_time()
        step += 1
        prompts = [tokenizer.encode(begun)[-16:] for begun in draw.sample(starts, PROMPTS)]
        said = [cut(tokenizer, answer, lines) for answer in sample_answers(model, prompts, GROUP, ROOM[lines], None, dice)]
        rewards = torch.tensor([rules[0](tokenizer.decode(answer)) for answer in said]).view(PROMPTS, GROUP)
        rows = make_rollout([p for p in prompts for _ in range(GROUP)], said)
        old, begun = learn_from(model, optimizer, reference, rows, rewards, "dr_grpo", beta=beta)
        spent += time.process_time() - start
        signs = reward_signs(said, rewards, old, begun, rows.answer_mask) | {"whole": float((rewards == 1).float().mean())}   # answers that got the whole reward
        history.append({name: round(value, 4) for name, value in signs.items()} | {"rule": rules[0].__name__})
        if len(rules) > 1 and is_enough(history): rules.pop(0)
        if step % 20 == 0: print(step, f"{spent:.0f} s", history[-1], flush=True)
        if spent > seconds / watches * len(curve):
            curve.append({"seconds": round(spent, 1), "steps": step, **watch(model, *look)})
            yield {"curve": curve, "history": history[::5], "done": spent >= seconds}


def main(*names: str) -> None:
    "Make the cells that are missing, on one thread."
    torch.set_num_threads(1)
    path = Path(__file__).with_suffix(".json")
    grid = [{"what": "adder", "seed": seed} for seed in range(SEEDS)]
    grid += [{"what": "metre", "seed": seed, "beta": beta} for seed in range(SEEDS) for beta in (BETA, 0.)]
    grid += [{"what": "rhyme alone", "seed": seed, "beta": BETA, "rate": 6e-4, "seconds": 100.} for seed in range(SEEDS)]
    grid += [{"what": what, "seed": seed, "beta": BETA, "rate": 6e-4, "seconds": 240.} for what in ("both at once", "rhyme first") for seed in range(SEEDS)]
    for cell in grid:
        if names and not {*names} <= {cell["what"], *map(str, cell.values())}: continue
        if any({**cell, "done": True}.items() <= other.items() for other in read(path).get("cells", [])): continue
        for made in adder(cell["seed"]) if cell["what"] == "adder" else verse(**cell):
            others = [other for other in read(path).get("cells", []) if not cell.items() <= other.items()]   # another process may have added to them
            keep(__file__, {"what": "An adder and the demo model learn from rewards; times are processor seconds of one thread.", "cells": [*others, cell | made | {"machine": machine("cpu")["kind"]}]})


BETA = .01   # what a nat of distance from the demo model costs

if __name__ == "__main__":
    main(*sys.argv[1:])
