"""A few numbers of the layers, kept as they are. They say that something changed, not that it was right: other tests do that."""
import pytest
import torch

from llm_course.attention import attention
from llm_course.ffn import FFN
from llm_course.multihead import MultiHeadAttention
from llm_course.rmsnorm import rms_norm
from llm_course.rope import RoPE
from llm_course.softmax import softmax
from llm_course.transformer import Transformer

pytestmark = pytest.mark.usefixtures("on_device")


def wave(*shape):
    "Numbers that need no generator."
    return torch.arange(torch.Size(shape).numel()).sin().view(shape)


def filled(layer):
    "The layer, with waves for weights."
    with torch.no_grad():
        for p in layer.parameters(): p.copy_(wave(*p.shape) / p.shape[-1]**0.5)
    return layer


@torch.no_grad()
def test_the_layers_give_what_they_gave(data_regression):
    x = wave(3, 8)
    outputs = {
        "softmax": softmax(x), "rms_norm": rms_norm(x, torch.ones(8)), "attention": attention(x, x.flip(0), x, causal=True), "RoPE": RoPE(8, 4)(x),
        "FFN": filled(FFN(8, 6))(x), "MultiHeadAttention": filled(MultiHeadAttention(8, 2, 1, max_seq_len=4))(x),
        "Transformer": filled(Transformer(5, 4, 8, 2, 2, 6))(torch.tensor([1, 4, 2]))}
    data_regression.check({name: [round(n, 3) + 0. for n in y.flatten()[::3].tolist()] for name, y in outputs.items()}, basename="layers")
