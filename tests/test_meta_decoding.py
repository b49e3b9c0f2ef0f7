"A decoding step on a device: nothing is made elsewhere, and nobody waits for a value but where the page says so."
from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llm_course import generating
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine import sampling
from llm_course.engine.reader import Reader
from llm_course.engine.speculation import speculate
from llm_course.generating import Sampling, generate, generate_ids, next_probabilities, stream, stream_ids
from llm_course.transformer import Transformer

DIALS = [
    {"temperature": 0.}, {"temperature": 1., "top_p": 1.}, {"temperature": .8, "top_p": .9},
    {"temperature": 1., "top_p": .9, "top_k": 20, "min_p": .05, "repetition_penalty": 1.2},
]


def small(vocab=300, room=16, device="cpu", **more):
    torch.manual_seed(1)
    model = Transformer(vocab, room, 32, 2, 4, 48, device=device, **more)
    with torch.no_grad(): model.head.weight.normal_(std=0.5)
    return model.eval()


class Waits(TorchFunctionMode):
    "Counts the calls that hand a value to Python, or whose result has a size that only the values tell."
    names = "item", "tolist", "__bool__", "__int__", "__index__", "__float__", "numpy", "nonzero", "unique", "masked_select"
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))
        if name in self.names: self.found.append(name)
        if name == "__getitem__":
            inside = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in inside): self.found.append("mask")
        return function(*args, **(kwargs or {}))


class Scalars(TorchDispatchMode):
    "Counts what torch itself reads back, whoever asked for it."
    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_device(monkeypatch):
    "Go the way that is gone off the CPU."
    for module in generating, sampling: monkeypatch.setattr(module, "waiting_is_free", lambda x: False)


@pytest.mark.parametrize("how", DIALS, ids=str)
@pytest.mark.parametrize("more", [{}, {"num_kv_heads": 2}, {"tie": True}, {"qk_norm": True}], ids=str)
def test_a_step_runs_on_meta(how, more):
    "There no value can be asked for, and a tensor on another device is refused."
    model, ids = small(device="meta", **more), torch.zeros(2, 3, dtype=torch.int64, device="meta")
    with Scalars() as read:
        out = generate_ids(model, ids, 20, **how)   # past the context, too
    assert out.is_meta and out.shape == (2, 23) and read.found == 0
    assert Reader(model, 2)(ids).is_meta


@pytest.mark.parametrize("how", DIALS, ids=str)
def test_off_the_cpu_no_step_waits_and_the_tokens_are_the_same(how, as_on_a_device, monkeypatch):
    model, ids = small(), torch.arange(6).view(2, 3)
    tokens = stream_ids(model, ids, 30, Sampling(**how), torch.Generator().manual_seed(0))
    next(tokens)   # reads the prompt
    with Waits() as asked, Scalars() as read: said = [new for _, new in zip(range(29), tokens)]
    assert not asked.found and read.found == 0 and len(said) == 29
    off = generate_ids(model, ids, 30, generator=torch.Generator().manual_seed(0), **how)
    monkeypatch.undo()
    assert torch.equal(off, generate_ids(model, ids, 30, generator=torch.Generator().manual_seed(0), **how))


def test_what_the_counters_count():
    "They must see every kind of wait, or the other tests see nothing."
    x = torch.tensor([1, 2])
    for wait in (lambda: x[0].item(), lambda: x.tolist(), lambda: bool(x.any()), lambda: int(x[0]), lambda: x[x > 1], lambda: x.nonzero()):
        with Waits() as asked: wait()
        assert asked.found
    with Scalars() as read: x[0].item()
    assert read.found == 1


def test_with_an_end_it_waits_once_a_step(as_on_a_device):
    model, ids = small(), torch.arange(6).view(2, 3)
    with Waits() as asked: out = generate_ids(model, ids, 9, temperature=0., stop_id=299)
    assert out.shape[1] == 12 and asked.found == ["__bool__"] * (9 + 1)   # and once for the verdict


def test_a_stream_waits_once_a_step(as_on_a_device):
    tokenizer = BpeTokenizer({i: bytes([i]) for i in range(256)}, [])
    model = small(vocab=256)
    with Waits() as asked: said = list(stream(model, tokenizer, "ab", 12, seed=0))
    assert said and asked.found == ["tolist"] * 12


def test_speculation_waits_once_a_round(as_on_a_device):
    model, draft, ids = small(), small(), torch.arange(3)[None]
    with Waits() as asked: said = list(speculate(model, draft, ids, 8, partial(next_probabilities, how=Sampling()), torch.Generator().manual_seed(0), ahead=3))
    assert len(said) == 8 and asked.found == ["__int__"] * 2   # a draft that is the model itself is always right: four tokens a round


@pytest.mark.parametrize("temperature", [0., 1.])
def test_broken_scores_are_told_of_where_there_is_a_wait_anyway(temperature, as_on_a_device):
    model, tokenizer = small(vocab=256), BpeTokenizer({i: bytes([i]) for i in range(256)}, [])
    with torch.no_grad(): model.head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="did training diverge"): generate_ids(model, torch.zeros(2, 3, dtype=torch.int64), 4, temperature)
    with pytest.raises(ValueError, match="did training diverge"): generate(model, tokenizer, "ab", 4, temperature)
