"""Five skills whose answers can be checked exactly, as conversations: sums, spelling backwards, counting letters, sorting, copying a name. The questions of a test never occur in training."""
import random
import zlib

SKILLS = "sums", "backwards", "counting", "sorting", "copying"
MIXES = {"sums": (10, 3, 4, 2, 4), "sums and counting": (8, 2, 8, 1, 3), "sums, counting, copying": (9, 2, 6, 2, 4)}   # how often each skill is asked in training
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT = 10   # one question in ten is kept for the test, by its checksum


def word(draw: random.Random, least: int, most: int, letters: str = LETTERS) -> str:
    "Some letters that need not be a word, so that none can be known by heart."
    return "".join(draw.choices(letters, k=draw.randint(least, most)))


def ask(skill: str, draw: random.Random) -> tuple[str, str]:
    "A question, and the one right answer."
    if skill == "sums":
        a, b = draw.randrange(10, 100), draw.randrange(10, 100)
        return f"{a} + {b}?", str(a + b)
    if skill == "backwards":
        text = word(draw, 3, 6)
        return f"{text} backwards?", text[::-1]
    if skill == "counting":
        text, letter = word(draw, 3, 7, "abc"), draw.choice("abc")
        return f"How many {letter} in {text}?", str(text.count(letter))
    if skill == "sorting":
        digits = draw.sample("0123456789", draw.randint(3, 6))
        return f"Sort {''.join(digits)}.", "".join(sorted(digits))
    name, trade = word(draw, 3, 6).capitalize(), draw.choice(["baker", "smith", "cook", "monk"])
    return f"I am {name}, a {trade}. Who am I?", name


def question(skill: str, draw: random.Random, held_out: bool) -> tuple[str, str]:
    "A question of the test, or one that is not."
    while True:
        found = ask(skill, draw)
        if (zlib.crc32(found[0].encode()) % HELD_OUT == 0) == held_out: return found


def conversation(draw: random.Random, mix: str, turns: int = 1) -> list[dict[str, str]]:
    "A talk of one to `turns` questions, of any skills, with their answers."
    messages = []
    for _ in range(draw.randint(1, turns)):
        asked, said = question(draw.choices(SKILLS, MIXES[mix])[0], draw, held_out=False)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return messages


def test(skill: str, n: int, seed: int = 0) -> list[tuple[str, str]]:
    "The questions of a test, none twice."
    draw, found = random.Random(f"{skill} {seed}"), {}
    while len(found) < n: found.update([question(skill, draw, held_out=True)])
    return list(found.items())
