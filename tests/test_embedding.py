"""`embedding` is torch's lookup, its gradients repeat to the last bit, and ids outside the vocabulary are named."""
import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.embedding import Embedding, embedding

dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", dtypes, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 5), (0,), (0, 3), (3, 0)], ids=str)
def test_agrees_with_torch(shape, dtype, device):
    ids = torch.randint(11, shape, device=device)
    weight = torch.randn(11, 5, device=device, dtype=dtype)
    rows = embedding(ids, weight)
    assert rows.dtype == dtype and rows.shape == (*shape, 5)
    assert torch.equal(rows, F.embedding(ids, weight))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3), st.integers(1, 9), st.integers(1, 9))
def test_any_shape_and_its_gradient(shape, vocab, d_model):
    ids = torch.randint(vocab, shape)
    ours = torch.randn(vocab, d_model, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    a, b = embedding(ids, ours), F.embedding(ids, theirs)
    assert torch.equal(a, b)
    grad = torch.randn_like(a)
    a.backward(grad); b.backward(grad)
    assert_close(ours.grad, theirs.grad)


def test_by_hand():
    weight = torch.tensor([[1., 2.], [3., 4.], [5., 6.], [7., 8.]], requires_grad=True)
    rows = embedding(torch.tensor([2, 0, 2]), weight)
    assert torch.equal(rows, torch.tensor([[5., 6.], [1., 2.], [5., 6.]]))
    rows.sum().backward()
    assert torch.equal(weight.grad, torch.tensor([[1., 1.], [0., 0.], [2., 2.], [0., 0.]]))


def test_is_the_product_with_one_hot_vectors():
    ids, weight = torch.randint(11, (2, 7)), torch.randn(11, 5, dtype=torch.float64)
    assert_close(embedding(ids, weight), F.one_hot(ids, 11).double() @ weight)


def test_gradient_is_exact():
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 5, 5], [5, 2, 0]])
    assert torch.autograd.gradcheck(lambda w: embedding(ids, w), weight)


def test_gradients_repeat_to_the_last_bit(device):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)   # on one thread nothing could differ
    try:
        ids = torch.randint(50, (16, 128), device=device)
        weight, grad = torch.randn(2000, 128, device=device, requires_grad=True), torch.randn(16, 128, 128, device=device)
        seen = [torch.autograd.grad(embedding(ids, weight), weight, grad)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_non_contiguous_ids_and_narrow_integers(device):
    ids, weight = torch.randint(11, (3, 4), device=device), torch.randn(11, 5, device=device)
    assert torch.equal(embedding(ids.mT, weight), F.embedding(ids.mT, weight))
    assert torch.equal(embedding(ids.int(), weight), F.embedding(ids, weight))


@pytest.mark.parametrize("ids, span", [([3, 11], "3…11"), ([-1, 4], "-1…4"), ([10**12], "1000000000000…1000000000000")], ids=str)
def test_ids_outside_the_vocabulary_are_named(ids, span):
    with pytest.raises(IndexError, match=f"must lie in 0…10, but these span {span}; were they made by another tokenizer") as caught:
        Embedding(11, 5)(torch.tensor(ids))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", dtypes, ids=str)
def test_rows_start_at_size_one(dtype, device):
    weight = Embedding(500, 400, device=device, dtype=dtype).weight
    assert weight.dtype == dtype and weight.device.type == device
    assert abs(weight.double().std().item() - 1) < 0.01 and weight.abs().max() < 3.06


def test_loads_what_torch_saves_and_the_other_way_round(device):
    ours, theirs = Embedding(11, 5, device=device), nn.Embedding(11, 5, device=device)
    ids = torch.randint(11, (2, 3), device=device)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(ids), theirs(ids))
    theirs.load_state_dict(Embedding(11, 5, device=device).state_dict())
    assert [*ours.state_dict()] == ["weight"]


def test_meta_copy_and_pickle():
    assert Embedding(11, 5, device="meta")(torch.zeros(4, 3, dtype=torch.long, device="meta")).shape == (4, 3, 5)
    layer, ids = Embedding(11, 5), torch.randint(11, (4,))
    for twin in copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)):
        assert torch.equal(twin(ids), layer(ids)) and twin.weight is not layer.weight


@pytest.mark.parametrize("vocab, d_model", [(0, 3), (3, 0), (-2, 4)])
def test_refuses_an_empty_table(vocab, d_model):
    with pytest.raises(ValueError, match=f"has {vocab} and {d_model}"): Embedding(vocab, d_model)
