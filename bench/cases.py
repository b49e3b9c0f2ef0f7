"""The races. Each makes its inputs, makes sure that both runners compute the same, and hands both over.

A case is a function that takes a device and returns two functions without arguments: ours and the peer's.
Its docstring says what is timed; `peer` names the other side, `package` whose version to note."""
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from bench.runner import case

b, t, d_model, vocab = 8, 128, 512, 10_000   # a small batch of a small model


def back(function, *inputs):
    "A function that runs `function` on the inputs, then its gradient back to those that ask for one."
    asking = [x for x in inputs if x.requires_grad]
    def run():
        out = function(*inputs)
        return out, *torch.autograd.grad(out, asking, torch.ones_like(out))
    return run


def same(ours, peer, **tolerance):
    "Both, once they are seen to agree."
    assert_close(ours(), peer(), **tolerance)
    return ours, peer


@case(peer="F.rms_norm")
def rmsnorm(device):
    "RMSNorm of 1,024 tokens of width 512, there and back."
    from llm_course.rmsnorm import rms_norm
    x = torch.randn(b, t, d_model, device=device, requires_grad=True)
    gain = torch.randn(d_model, device=device, requires_grad=True)
    theirs = back(lambda x, gain: F.rms_norm(x, (d_model,), gain, 1e-5), x, gain)
    return same(back(rms_norm, x, gain), theirs, rtol=1e-4, atol=1e-4)


@case(peer="F.scaled_dot_product_attention")
def attention(device):
    "Causal attention written out, for 8 sequences of 128 tokens and 8 heads of 64, there and back."
    from llm_course.attention import attention
    q, k, v = (torch.randn(b, 8, t, 64, device=device, requires_grad=True) for _ in range(3))
    theirs = back(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), q, k, v)
    return same(back(lambda *qkv: attention(*qkv, causal=True), q, k, v), theirs, rtol=1e-4, atol=1e-4)


@case(peer="F.cross_entropy")
def cross_entropy(device):
    "The loss of 1,024 tokens over a vocabulary of 10,000, there and back."
    from llm_course.loss import cross_entropy
    logits = torch.randn(b * t, vocab, device=device, requires_grad=True)
    targets = torch.randint(vocab, (b * t,), device=device)
    return same(back(lambda x: cross_entropy(x, targets), logits), back(lambda x: F.cross_entropy(x, targets), logits))


@case(peer="torch.optim.AdamW(foreach=True)")
def adamw(device):
    "One step on the 39 tensors, 9.3 million numbers, of a Transformer of four blocks of width 256 and a vocabulary of 10,000."
    from llm_course.optim import AdamW
    shapes = [(vocab, 256)] * 2 + [(256,)] + 4 * [(256,), (256, 256), (256, 256), (256, 256), (256, 256), (256,), (1024, 256), (1024, 256), (256, 1024)]
    params = [[torch.nn.Parameter(torch.full(shape, .5, device=device)) for shape in shapes] for _ in range(2)]
    for p, q in zip(*params): p.grad = q.grad = torch.randn_like(p)
    ours, theirs = AdamW(params[0], lr=1e-3), torch.optim.AdamW(params[1], lr=1e-3, foreach=True)
    def step(optimizer, params):
        optimizer.step()
        return params
    return same(lambda: step(ours, params[0]), lambda: step(theirs, params[1]))


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
