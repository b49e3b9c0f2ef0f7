"""`embedding` is torch's lookup, its gradients repeat to the last bit, and ids outside the vocabulary are named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llm_course.embedding import Embedding, embedding

pytestmark = pytest.mark.usefixtures("on_device")
dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_gradients_repeat_to_the_last_bit():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)   # on one thread nothing could differ
    try:
        ids = torch.randint(50, (16, 128))
        weight, grad = torch.randn(2000, 128, requires_grad=True), torch.randn(16, 128, 128)
        seen = [torch.autograd.grad(embedding(ids, weight), weight, grad)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_non_contiguous_ids_and_narrow_integers():
    ids, weight = torch.randint(11, (3, 4)), torch.randn(11, 5)
    assert torch.equal(embedding(ids.mT, weight), F.embedding(ids.mT, weight))
    assert torch.equal(embedding(ids.int(), weight), F.embedding(ids, weight))


@pytest.mark.parametrize("ids, span", [([3, 11], "3…11"), ([-1, 4], "-1…4"), ([10**12], "1000000000000…1000000000000")], ids=str)
def test_ids_outside_the_vocabulary_are_named(ids, span):
    with pytest.raises(IndexError, match=f"must lie in 0…10, but these span {span}; were they made by another tokenizer") as caught:
        Embedding(11, 5, device="cpu")(torch.tensor(ids, device="cpu"))   # a GPU stops for good
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_rows_start_at_size_one(dtype, device):
    weight = Embedding(500, 400, device=device, dtype=dtype).weight
    assert weight.dtype == dtype and weight.device.type == device
    assert abs(weight.double().std().item() - 1) < 0.01 and weight.abs().max() < 3.06


def test_loads_what_torch_saves_and_the_other_way_round():
    ours, theirs = Embedding(11, 5), nn.Embedding(11, 5)
    ids = torch.randint(11, (2, 3))
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(ids), theirs(ids))
    theirs.load_state_dict(Embedding(11, 5).state_dict())
    assert [*ours.state_dict()] == ["weight"]


@pytest.mark.parametrize("vocab, d_model", [(0, 3), (3, 0), (-2, 4)])
def test_refuses_an_empty_table(vocab, d_model):
    with pytest.raises(ValueError, match=f"has {vocab} and {d_model}"): Embedding(vocab, d_model)
