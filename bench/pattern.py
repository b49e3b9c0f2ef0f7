"""The regex library's part of tokenising: cut a text by its pattern, and do nothing with the pieces. `python -m bench.pattern TEXT PART PARTS` cuts one of several parts."""
import sys
from pathlib import Path

from llm_course.bpe import GPT2, pre_tokens

END = "<|endoftext|>"


def cut(path: Path, part: int = 0, parts: int = 1, block: int = 1 << 20) -> int:
    "Cut a part of a file, a megabyte at a time, and count the pieces."
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(size * part // parts)
        text = file.read(size * (part + 1) // parts - file.tell()).decode(errors="ignore")   # a letter may lie on the border
    # Our blocks end with documents. Where these end instead moves a few pieces and no time.
    return sum(len(pre_tokens(document, GPT2)) for at in range(0, len(text), block) for document in text[at : at + block].split(END))


if __name__ == "__main__": cut(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
