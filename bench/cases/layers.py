"""Part II: one layer beside torch's own."""
import torch
from torch.nn import functional as F

from bench.cases.pairs import b, back, d_model, same, t
from bench.runner import case


@case(peer="F.rms_norm")
def rmsnorm(device):
    "RMSNorm of 1,024 tokens of width 512, forward and backward."
    from llm_course.engine.backward_passes import fused_rms_norm
    x = torch.randn(b, t, d_model, device=device, requires_grad=True)
    gain = torch.randn(d_model, device=device, requires_grad=True)
    theirs = back(lambda x, gain: F.rms_norm(x, (d_model,), gain, 1e-5), x, gain)
    return same(back(fused_rms_norm, x, gain), theirs, rtol=1e-4, atol=1e-4)


@case(peer="F.scaled_dot_product_attention")
def attention(device):
    "Causal attention written out, for 8 sequences of 128 tokens and 8 heads of 64, forward and backward."
    from llm_course.attention import attention
    q, k, v = (torch.randn(b, 8, t, 64, device=device, requires_grad=True) for _ in range(3))
    theirs = back(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True), q, k, v)
    return same(back(lambda *qkv: attention(*qkv, causal=True), q, k, v), theirs, rtol=1e-4, atol=1e-4)
