"""Part I: from text to ids."""
from bench.runner import case


@case(peer="tokenizers.Tokenizer.encode", package="tokenizers")
def encode(device):
    "Half a megabyte of Python, by a tokenizer of 2,000 tokens that was trained on it; one thread each, caches warm."
    import os
    import tempfile

    from llm_course.bpe_tokenizer import BpeTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer
    text = corpus()
    ours = BpeTokenizer.train([text], 2_000)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(f"{folder}/tokenizer.json")
        theirs = Tokenizer.from_file(f"{folder}/tokenizer.json")
    assert ours.encode(text) == theirs.encode(text).ids
    return lambda: ours.encode(text), lambda: theirs.encode(text).ids


@case(peer="tokenizers' BpeTrainer", package="tokenizers")
def train_tokenizer(device):
    "Learning 2,000 tokens from half a megabyte of Python; one process each."
    import os

    from llm_course.bpe_tokenizer import BpeTokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    text = corpus()
    def ours(): return len(BpeTokenizer.train([text], 2_000).merges)
    def theirs():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.train_from_iterator([text], trainers.BpeTrainer(
            vocab_size=2_000, show_progress=False, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return tokenizer.get_vocab_size() - 257
    assert ours() == theirs()
    return ours, theirs


def corpus():
    "Half a megabyte that every Python brings along: the sources of its standard library, in alphabetical order."
    import sysconfig
    from pathlib import Path
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(path.read_text("utf-8") for path in files)[:500_000]
