"""Are the committed outputs of a page what its cells give?

Words must agree, and numbers to the last digit that is shown. A cell that cannot promise this says why:
  `#| varies: time`      it reads a clock: words agree, and numbers need not in lines that speak of time or speed;
  `#| varies: rounding`  it computes long in floating point, which each kind of processor rounds in its own way: numbers agree within 5 %,
                         but for those below a hundred-thousandth, which are nothing but rounding;
  `#| varies: training`  it trains so fast that one rounding leads elsewhere: words agree, numbers need not;
  `#| varies: text`      it shows what a model writes, where one rounding may turn a word, and all that follow: something must be shown
                         (or what is there in a clone only, and another test holds);
  `#| reads: bench`      it shows what a race of `bench/` wrote down, and nothing where that folder is missing."""
import math
import re
from collections.abc import Iterator

REASONS = "time", "rounding", "training", "text"
clocked = re.compile(r"×|\b(?:ms|µs|s|MB/s|times?)\b")
number = re.compile(r"(?:(?<![\w.,)])[-+−]|(?<![\w.,]))\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?(?!\w)")
shown = "text/plain", "text/html", "text/markdown"


def directive(source: str, name: str) -> str | None:
    "What a cell says by `#| name: ...`."
    found = re.search(rf"^#\| *{name}: *(.*?) *$", source, re.M)
    return found and found[1]


def texts(outputs: list[dict]) -> list[tuple[str, str]]:
    "What a cell shows, by kind: prints in one piece, pictures by their kind alone, objects without their address in memory."
    found = []
    for out in outputs:
        if out["output_type"] == "stream": parts = [(out["name"], out["text"])]
        elif out["output_type"] == "error": parts = [("error", out["ename"])]
        else: parts = sorted((kind, data if kind in shown else "") for kind, data in out["data"].items())
        for kind, text in parts:
            text = re.sub(r" at 0x[0-9a-f]+>", ">", text if isinstance(text, str) else "".join(text))
            if found and found[-1][0] == kind in ("stdout", "stderr"): found[-1] = kind, found[-1][1] + text
            else: found.append((kind, text))
    return sorted(found, key=lambda part: part[0] not in ("stdout", "stderr"))   # prints may come before or after a picture


def differences(committed: list[dict], fresh: list[dict], reason: str | None = None) -> Iterator[str]:
    "What is wrong with the committed outputs of a cell, beside those of a new run."
    before, after = texts(committed), texts(fresh)
    if [kind for kind, _ in before] != [kind for kind, _ in after]:
        yield f"shows {[kind for kind, _ in after] or 'nothing'}, but committed is {[kind for kind, _ in before] or 'nothing'}: {' '.join(text for _, text in after or before)[:200]}"
        return
    if reason == "text": return
    for (_, old), (_, new) in zip(before, after):
        if same(old, new, reason): continue
        pairs = [(a, b) for a, b in zip(old.splitlines(), new.splitlines()) if not same(a, b, reason)] or [(old, new)]
        yield from (f"committed: {a[:300]}\n      now: {b[:300]}" for a, b in pairs[:6])


def same(old: str, new: str, reason: str | None) -> bool:
    "Do two texts agree, as far as they must?"
    if reason == "time":
        lines = old.splitlines(), new.splitlines()
        return len(lines[0]) == len(lines[1]) and all(words(a) == words(b) if clocked.search(a) else same(a, b, None) for a, b in zip(*lines))
    return words(old) == words(new) and all(agree(a, b, reason) for a, b in zip(number.findall(old), number.findall(new)))


def words(text: str) -> list[str]:
    "The text between the numbers, whatever blanks align them."
    return [" ".join(part.split()) for part in number.split(text)]


def agree(old: str, new: str, reason: str | None) -> bool:
    "Do two numbers agree, as far as they must?"
    if old == new or reason == "training": return True
    a, b, digit = value(old), value(new), max(last_digit(old), last_digit(new))
    if reason == "rounding" and (math.isclose(a, b, rel_tol=.05) or max(abs(a), abs(b)) < 1e-5): return True
    return abs(a - b) <= 1.001 * digit * (reason == "rounding" or digit < 1)


def value(shown: str) -> float: return float(shown.replace(",", "").replace("−", "-"))


def last_digit(shown: str) -> float:
    "What the last digit of a number stands for: a hundredth in 3.04, a millionth in 1.2e-05."
    mantissa, _, exponent = shown.partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
