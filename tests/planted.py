"""Faulty versions of the course's components: one realistic mistake each. Written blind to the grader and its tests."""
import math
import re
import warnings
from collections import Counter
from itertools import pairwise

import numpy as np
import regex
import torch
from torch import nn
from torch.nn import functional as F

from llm_course.attention import attention
from llm_course.bpe import GPT2
from llm_course.embedding import Embedding
from llm_course.ffn import FFN
from llm_course.generating import keep_min_p, keep_top_k, keep_top_p, penalise
from llm_course.linear import Linear
from llm_course.loss import cross_entropy  # noqa: F401, for the text of a version below
from llm_course.multihead import MultiHeadAttention
from llm_course.optim import gradient_clip  # noqa: F401
from llm_course.rmsnorm import RmsNorm
from llm_course.rope import RoPE
from llm_course.transformer import ModelConfig, TransformerBlock, start_small

FAULTY = {}   # component → parts, what is wrong with each, and what a hint that fits must say
def fault(component, wrong, fits):
    "Note a faulty version."
    def keep(part):
        FAULTY.setdefault(component, []).append((part, wrong, fits))
        return part
    return keep

def edits(component, source, *faults):
    "Note versions that differ from a right one by little: name, what is wrong, what a hint must say, and pairs of old and new text."
    for name, wrong, fits, *changes in faults:
        text = source
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text, (name, old)
            text = text.replace(old, new)
        exec(text, globals(), made := {})
        part = made.popitem()[1]
        part.__name__ = name
        fault(component, wrong, fits)(part)

# ---------------------------------------------------------------- Linear
def fresh(*shape, std, **kind): return nn.init.trunc_normal_(torch.empty(*shape, **kind), std=std, a=-3*std, b=3*std)

edits("Linear", """
class Part(nn.Module):
    def __init__(self, d_in, d_out, bias=False, device=None, dtype=None):
        super().__init__()
        kind = dict(device=device, dtype=dtype)
        self.weight = nn.Parameter(fresh(d_out, d_in, std=d_in**-.5, **kind))
        self.bias = nn.Parameter(torch.zeros(d_out, **kind)) if bias else None
    def forward(self, x): return F.linear(x, self.weight, self.bias)
""",
    ("LinearDrawnWithStdOne", "initial spread 1, not 1/√d_in: outputs grow", "fresh weights have the spread one", "std=d_in**-.5", "std=1."),
    ("LinearVarianceAsStd", "initial spread is 1/d_in instead of 1/√d_in (variance taken for standard deviation)", "the spread of fresh weights is what their variance should be", "d_in**-.5", "1/d_in"),
    ("LinearXavier", "initial spread: Xavier 2/(d_in+d_out) depends on d_out; only d_in counts", "the spread of fresh weights counts inputs and ou", "d_in**-.5", "(2 / (d_in + d_out))**.5"),
    ("LinearTorchInit", "nn.Linear's kaiming_uniform(a=√5) start: spread 1/√(3 d_in), too small", "the spread of fresh weights is 1/√(3 d_in)", "fresh(d_out, d_in, std=d_in**-.5, **kind)", "nn.init.kaiming_uniform_(torch.empty(d_out, d_in, **kind), a=math.sqrt(5))"),
    ("LinearTransposedWeight", "weight stored as (d_in, d_out): transposed", "the weight is stored the wrong way round", "fresh(d_out, d_in", "fresh(d_in, d_out", "self.weight, self.bias)", "self.weight.T, self.bias)"),
    ("LinearBiasByDefault", "has a bias by default", "there is a bias even where none was asked for", "bias=False", "bias=True"),
    ("LinearForgetsBias", "bias is created but never added", "the bias is there", "self.weight, self.bias)", "self.weight)"),
    ("LinearRandomBias", "bias starts random instead of at zero", "the bias begins with random numbers", "torch.zeros(d_out, **kind)", "torch.randn(d_out, **kind) * d_in**-.5"))

# ---------------------------------------------------------------- Embedding
class _Unique(torch.autograd.Function):
    @staticmethod
    def forward(ctx, ids, weight):
        ctx.save_for_backward(ids); ctx.shape = weight.shape
        return weight[ids]
    @staticmethod
    def backward(ctx, g):
        ids, = ctx.saved_tensors
        grad = g.new_zeros(ctx.shape)
        grad[ids] = g
        return None, grad

edits("Embedding", """
class Part(nn.Module):
    def __init__(self, num, d, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(fresh(num, d, std=1., device=device, dtype=dtype))
    def forward(self, ids): return self.weight[ids]
""",
    ("EmbeddingGpt2Init", "initial spread 0.02 (GPT-2) instead of 1", "fresh vectors are too small", "std=1.", "std=.02"),
    ("EmbeddingScaledInit", "initial spread 1/√d instead of 1", "the spread of fresh vectors shrinks with their s", "std=1.", "std=d**-.5"),
    ("EmbeddingTimesRootD", "multiplies the rows by √d_model", "the vectors are multiplied by √d", "self.weight[ids]", "self.weight[ids] * math.sqrt(self.weight.shape[1])"),
    ("EmbeddingPaddingZero", "id 0 treated as padding: its row gets no gradient", "the row of one id gets no gradient", "self.weight[ids]", "F.embedding(ids, self.weight, padding_idx=0)"),
    ("EmbeddingOffByOne", "off by one: looks up row id−1", "you read the row before the right one", "[ids]", "[ids - 1]"),
    ("EmbeddingReadsData", "the looked-up rows are detached (table.data): nothing is learnt", "what comes out is cut off from what it was compu", "self.weight[ids]", "self.weight.data[ids]"),
    ("EmbeddingTwoAxes", "only takes ids with two axes (batch, seq)", "for ids on one axis, the shape is", "self.weight[ids]", "self.weight[ids.unsqueeze(0) if ids.dim() == 1 else ids]"),
    ("EmbeddingGradOverwritten", "gradient of a repeated token is overwritten, not summed", "a token that occurs twice gets the gradient of o", "self.weight[ids]", "_Unique.apply(ids, self.weight)"))

# ---------------------------------------------------------------- RmsNorm
edits("RmsNorm", """
class Part(nn.Module):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
    def forward(self, x):
        h = x if x.dtype == torch.float64 else x.float()
        r = torch.sqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (h / r * self.weight).to(x.dtype)
""",
    ("RmsNormSubtractsMean", "subtracts the mean, as LayerNorm does", "the mean is subtracted first", "r = torch", "h = h - h.mean(-1, keepdim=True); r = torch"),
    ("RmsNormEpsOutside", "eps added outside the root", "eps stands outside the root", "keepdim=True) + self.eps)", "keepdim=True)) + self.eps"),
    ("RmsNormDividesByLength", "sum of squares instead of mean: divides by the length", "the squares are added up", ".mean(", ".sum("),
    ("RmsNormNoUpcast", "squares in half precision: no upcast to float32, overflows", "the squares are computed in the type of the input, but 300² does not fit into float16", "x if x.dtype == torch.float64 else x.float()", "x"),
    ("RmsNormGemmaGain", "gain starts at zero (1 + weight as in Gemma)", "the gain begins at zero and one is added to it, as in Gemma", "torch.ones", "torch.zeros", "* self.weight", "* (1 + self.weight)"),
    ("RmsNormForgetsGain", "forgets the gain in forward", "the gain is never applied", " * self.weight", ""),
    ("RmsNormMeanOverAll", "mean over all axes: vectors not normed one by one", "the mean runs over the whole batch", "mean(-1, keepdim=True)", "mean()"),
    ("RmsNormDetached", "rms is detached: gradient misses the term through the norm", "no gradient flows through the root mean square that you divide by", "h / r", "h / r.detach()"),
    ("RmsNormReturnsFloat32", "result stays float32: not cast back to the type of x", "the result is always float32", ".to(x.dtype)", ""),
    ("RmsNormFixedEps", "ignores the eps it is given (fixed 1e-5)", "eps is fixed in the code", "+ self.eps", "+ 1e-5"))

# ---------------------------------------------------------------- SiLu
edits("SiLu", """
class Part(nn.Module):
    def forward(self, x): return x * torch.sigmoid(x)
""",
    ("SiLuOnlySigmoid", "forgets to multiply by x: plain sigmoid", "this is the sigmoid alone", "x * torch", "torch"),
    ("SiLuIsGelu", "GELU instead of SiLU", "this is GELU", "x * torch.sigmoid(x)", "F.gelu(x)"),
    ("SiLuWrongSign", "sign: x·σ(−x)", "the sigmoid is mirrored", "x * torch.sigmoid(x)", "x / (1 + torch.exp(x))"),
    ("SiLuQuickGelu", "1.702 in the sigmoid (quick GELU)", "the input of the sigmoid is scaled", "sigmoid(x)", "sigmoid(1.702 * x)"),
    ("SiLuOverflows", "sigmoid written e^x/(1+e^x): overflows to nan for large x", "the exponential overflows far from zero", "torch.sigmoid(x)", "(torch.exp(x) / (1 + torch.exp(x)))"),
    ("SiLuDetachedGate", "gate is detached: gradient lacks the gate's part", "no gradient flows through the gate", "sigmoid(x)", "sigmoid(x).detach()"),
    ("SiLuNanGradient", "x/(1+e^−x): nan in the gradient far left (0·inf)", "the sigmoid is written out with e^−x", "x * torch.sigmoid(x)", "x / (1 + torch.exp(-x))"),
    ("SiLuTanh", "tanh instead of sigmoid", "the gate is a hyperbolic tangent", "sigmoid", "tanh"))

# ---------------------------------------------------------------- FFN
class _Ffn(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        kind = dict(device=device, dtype=dtype)
        self.w1, self.w2, self.w3 = Linear(d_model, d_ff, **kind), Linear(d_ff, d_model, **kind), Linear(d_model, d_ff, **kind)

@fault("FFN", "silu on w3's branch instead of w1's", "gate and value have changed places")
class FfnGatesSwapped(_Ffn):
    def forward(self, x): return self.w2(self.w1(x) * F.silu(self.w3(x)))

@fault("FFN", "silu applied to the product", "the bend is applied to the product of gate and value")
class FfnSiluOfProduct(_Ffn):
    def forward(self, x): return self.w2(F.silu(self.w1(x) * self.w3(x)))

@fault("FFN", "sigmoid gate (GLU) instead of silu", "the gate is a sigmoid alone")
class FfnSigmoidGate(_Ffn):
    def forward(self, x): return self.w2(torch.sigmoid(self.w1(x)) * self.w3(x))

@fault("FFN", "branches added instead of multiplied", "gate and value are added")
class FfnAdds(_Ffn):
    def forward(self, x): return self.w2(F.silu(self.w1(x)) + self.w3(x))

@fault("FFN", "w3 unused: no gate", "nothing is gated")
class FfnNoGate(_Ffn):
    def forward(self, x): return self.w2(F.silu(self.w1(x)))

@fault("FFN", "has biases", "the matrices have biases")
class FfnBiases(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.w1 = nn.Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = nn.Linear(d_ff, d_model, device=device, dtype=dtype)
        self.w3 = nn.Linear(d_model, d_ff, device=device, dtype=dtype)
    def forward(self, x): return self.w2(F.silu(self.w1(x)) * self.w3(x))

@fault("FFN", "w2 and w3 named the wrong way round", "w2 and w3 have changed their roles")
class FfnW2W3Swapped(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w3 = Linear(d_ff, d_model, device=device, dtype=dtype)
    def forward(self, x): return self.w3(F.silu(self.w1(x)) * self.w2(x))

@fault("FFN", "residual added inside the FFN", "the input is added")
class FfnResidualInside(_Ffn):
    def forward(self, x): return x + self.w2(F.silu(self.w1(x)) * self.w3(x))

@fault("FFN", "GELU instead of SiLU in the gate (GEGLU)", "the gate is bent by GELU")
class FfnGeglu(_Ffn):
    def forward(self, x):
        gate, up = self.w1(x), self.w3(x)
        return self.w2(F.gelu(gate) * up)

# ---------------------------------------------------------------- Softmax
edits("Softmax", """
class Part(nn.Module):
    def __init__(self, dim=-1):
        super().__init__()
        self.dim = dim
    def forward(self, x):
        h = x.float() if x.dtype == torch.float16 else x
        e = torch.exp(h - h.amax(self.dim, keepdim=True))
        return (e / e.sum(self.dim, keepdim=True)).to(x.dtype)
""",
    ("SoftmaxNoMax", "no maximum subtracted: overflows", "nothing is subtracted before the exponential", " - h.amax(self.dim, keepdim=True)", ""),
    ("SoftmaxLastAxis", "ignores dim: always the last axis", "the axis is always the last one", "(self.dim,", "(-1,"),
    ("SoftmaxGlobalMax", "maximum over the whole tensor instead of each row: far rows underflow / depend on others", "the largest of all scores is subtracted", "h.amax(self.dim, keepdim=True)", "h.max()"),
    ("SoftmaxGlobalSum", "sums over all entries: shares of rows do not add to one", "the shares of a row do not add up to one", "e.sum(self.dim, keepdim=True)", "e.sum()"),
    ("SoftmaxEpsInSum", "a constant (1e-3) added to the sum: shares do not add to one", "the shares of a row do not add up to one", "e.sum(self.dim, keepdim=True)", "(e.sum(self.dim, keepdim=True) + 1e-3)"),
    ("SoftmaxReturnsLog", "log-softmax returned: the last exp is missing", "this is the logarithm of the shares", "(e / e.sum(self.dim, keepdim=True)).to(x.dtype)", "x - torch.logsumexp(x, dim=self.dim, keepdim=True)"),
    ("SoftmaxShiftsByMin", "shift by the minimum instead of the maximum", "the smallest score is subtracted", "amax", "amin"),
    ("SoftmaxStaysFloat32", "result left in float32 for half-precision scores", "the type is torch.float32 and must be torch.float16", ".to(x.dtype)", ""),
    ("SoftmaxBaseTwo", "base 2 instead of e", "these are powers of two", "torch.exp(", "torch.exp2("),
    ("SoftmaxDetachedSum", "denominator detached: gradient lacks −p_i p_j", "in its gradient", "h.amax(self.dim, keepdim=True)", "h.amax(self.dim, keepdim=True).detach()", "e.sum(self.dim, keepdim=True)", "e.sum(self.dim, keepdim=True).detach()"),
    ("SoftmaxClamps", "scores clamped: minus infinity still gets a share / large gaps flattened", "scores far below the best are raised", "torch.exp(h - h.amax(self.dim, keepdim=True))", "(h - h.amax(self.dim, keepdim=True)).clamp(min=-10).exp()"))

# ---------------------------------------------------------------- ScaledDotProductAttention
def _up(q, k, v):
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.to(wide), k.to(wide), v.to(wide)

def _shares(scores, mask):
    "Right: masked softmax, zeros where nothing may be seen."
    if mask is None: return scores.softmax(-1)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~mask, 0)

@fault("ScaledDotProductAttention", "scores not divided by √d", "the scores are not divided by anything")
class SdpaNoScale(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        return (_shares(a @ b.mT, mask) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "divided by d instead of √d", "the scores are divided by d")
class SdpaDividesByD(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        return (_shares(a @ b.transpose(-2, -1) / q.size(-1), mask) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "scale uses the number of keys instead of the feature size", "the scores are divided by the root of the number")
class SdpaScaleBySeq(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        scores = torch.einsum("...td,...sd->...ts", a, b) / math.sqrt(k.shape[-2])
        return (_shares(scores, mask) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "mask inverted: true is taken for forbidden", "the mask is read the wrong way round")
class SdpaMaskInverted(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        return (_shares(a @ b.mT / math.sqrt(q.shape[-1]), None if mask is None else ~mask) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "mask applied after the softmax: shares no longer add to one", "the mask is applied after the softmax")
class SdpaMaskAfterSoftmax(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        w = (a @ b.mT / math.sqrt(q.shape[-1])).softmax(-1)
        if mask is not None: w = w * mask
        return (w @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "softmax over the queries (dim=-2) instead of the keys", "the softmax runs over the queries")
class SdpaSoftmaxOverQueries(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        s = a @ b.mT / math.sqrt(q.shape[-1])
        if mask is not None: s = s.masked_fill(~mask, torch.finfo(s.dtype).min)
        w = s.softmax(-2)
        if mask is not None: w = w.masked_fill(~mask, 0)
        return (w @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "masked scores set to 0 instead of minus infinity", "hidden scores become zero")
class SdpaMaskWithZero(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        s = a @ b.mT / math.sqrt(q.shape[-1])
        if mask is not None: s = s.masked_fill(~mask, 0.)
        return (s.softmax(-1) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "nan for a query that may look nowhere", "a query that may look nowhere gets nan")
class SdpaNanWhenAllMasked(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        s = a @ b.mT / math.sqrt(q.shape[-1])
        if mask is not None: s = s.masked_fill(~mask, -torch.inf)
        return (torch.softmax(s, -1) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "finite fill −1e9: a query that may look nowhere gets the mean of all", "hidden scores are a large negative number")
class SdpaMinusBillion(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        s = a @ b.mT / math.sqrt(q.shape[-1])
        if mask is not None: s = s.masked_fill(~mask, -1e9)
        return (torch.softmax(s, -1) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "scores computed in half precision: overflow", "in float16, large queries and keys give")
class SdpaHalfScores(nn.Module):
    def forward(self, q, k, v, mask=None):
        s = q @ k.mT / math.sqrt(q.shape[-1])
        return _shares(s, mask) @ v

@fault("ScaledDotProductAttention", "always causal, though no mask was given", "the future is always hidden")
class SdpaAlwaysCausal(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        tril = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        return (_shares(a @ b.mT / math.sqrt(q.shape[-1]), tril if mask is None else mask & tril) @ c).to(v.dtype)

@fault("ScaledDotProductAttention", "mask gets an extra head axis (unsqueeze(1)): does not broadcast as given", "each sequence or head was given a mask of its ow")
class SdpaMaskUnsqueezed(nn.Module):
    def forward(self, q, k, v, mask=None):
        a, b, c = _up(q, k, v)
        if mask is not None and mask.dim() == 3: mask = mask.unsqueeze(1)
        return (_shares(a @ b.mT / math.sqrt(q.shape[-1]), mask) @ c).to(v.dtype)

# ---------------------------------------------------------------- RoPE
class _Rope(nn.Module):
    "Right, except for what a subclass changes."
    def __init__(self, d_k, max_seq_len, theta=10000.0, device=None):
        super().__init__()
        self.d_k, self.theta = d_k, theta
        self.max_seq_len = max_seq_len
        self.device = device
        self.cos_t, self.sin_t = self.table()          # kept out of buffers, so `.bfloat16()` leaves them alone
    def frequency(self): return self.theta ** (-torch.arange(0, self.d_k, 2).double() / self.d_k)
    def table(self):
        a = torch.outer(torch.arange(self.max_seq_len).double(), self.frequency())
        return a.cos(), a.sin()
    def look(self, x, pos):
        if pos is None: pos = torch.arange(x.shape[-2])
        elif isinstance(pos, int): pos = torch.arange(pos, pos + x.shape[-2])
        return self.cos_t[pos], self.sin_t[pos]
    def forward(self, x, token_positions=None):
        cos, sin = self.look(x, token_positions)
        h = x.double()
        return self.turn(h, cos, sin).to(x.dtype)
    def turn(self, x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a*cos - b*sin, a*sin + b*cos], -1).flatten(-2)

@fault("RoPE", "pairs features i and i + d/2 (rotate-half) instead of neighbours", "feature i is paired with feature i + d/2")
class RopeRotateHalf(_Rope):
    def turn(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat([a*cos - b*sin, b*cos + a*sin], -1)

@fault("RoPE", "turns the wrong way: sign of the sine", "it turns backwards")
class RopeTurnsBackwards(_Rope):
    def turn(self, x, cos, sin):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a*cos + b*sin, b*cos - a*sin], -1).flatten(-2)

@fault("RoPE", "both signs plus: not a rotation, lengths change", "this is not a rotation")
class RopeNotARotation(_Rope):
    def turn(self, x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        out = torch.empty_like(x)
        out[..., ::2] = a*cos + b*sin
        out[..., 1::2] = a*sin + b*cos
        return out

@fault("RoPE", "exponent i/d instead of 2i/d: pairs too fast", "the exponent is half of what it should be")
class RopeExponentHalved(_Rope):
    def frequency(self): return self.theta ** (-torch.arange(self.d_k // 2).double() / self.d_k)

@fault("RoPE", "positions counted from 1", "positions are counted from one")
class RopeFromOne(_Rope):
    def table(self):
        a = torch.outer(torch.arange(1, self.max_seq_len + 1).double(), self.frequency())
        return a.cos(), a.sin()

@fault("RoPE", "token_positions ignored", "the given positions are ignored")
class RopeIgnoresPositions(_Rope):
    def look(self, x, pos): return self.cos_t[:x.shape[-2]], self.sin_t[:x.shape[-2]]

@fault("RoPE", "theta fixed at 10,000: argument ignored", "theta is fixed in the code")
class RopeFixedTheta(_Rope):
    def frequency(self): return 10000.0 ** (-torch.arange(0, self.d_k, 2).double() / self.d_k)

@fault("RoPE", "halves concatenated after interleaved rotation: output not interleaved again", "the pairs are taken apart correctly, but put back as two halves")
class RopeConcatenates(_Rope):
    def turn(self, x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat([a*cos - b*sin, a*sin + b*cos], dim=-1)

@fault("RoPE", "table is saved in the state_dict (persistent buffer)", "that is not to be")
class RopePersistentTable(_Rope):
    def __init__(self, d_k, max_seq_len, theta=10000.0, device=None):
        super().__init__(d_k, max_seq_len, theta, device)
        cos, sin = self.cos_t, self.sin_t
        del self.cos_t, self.sin_t
        self.register_buffer("cos_t", cos)
        self.register_buffer("sin_t", sin)
    def _apply(self, fn, recurse=True): return self

@fault("RoPE", "table follows .bfloat16(): angles rounded to half precision", "conversion to bfloat16 changes its angles")
class RopeHalfTable(nn.Module):
    def __init__(self, d_k, max_seq_len, theta=10000.0, device=None):
        super().__init__()
        freq = 1.0 / theta ** (torch.arange(0, d_k, 2).float() / d_k)
        self.register_buffer("inv_freq", freq, persistent=False)
        self.register_buffer("positions", torch.arange(max_seq_len).float(), persistent=False)
    def forward(self, x, token_positions=None):
        pos = self.positions[:x.shape[-2]] if token_positions is None else self.positions[token_positions]
        angle = pos[..., None] * self.inv_freq
        cos, sin = angle.cos(), angle.sin()
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a*cos - b*sin, a*sin + b*cos), dim=-1).flatten(-2).to(x.dtype)

@fault("RoPE", "second output built from the already rotated first (in place)", "the second feature of a pair is turned with the ")
class RopeInPlaceMix(_Rope):
    def turn(self, x, cos, sin):
        out = x.clone()
        out[..., 0::2] = out[..., 0::2]*cos - out[..., 1::2]*sin
        out[..., 1::2] = out[..., 0::2]*sin + out[..., 1::2]*cos
        return out

@fault("RoPE", "position taken from the wrong axis (batch/head instead of seq)", "vectors at the same position in different sequences are turned differently")
class RopeWrongAxis(_Rope):
    def forward(self, x, token_positions=None):
        if token_positions is not None or x.ndim < 3: return super().forward(x, token_positions)
        pos = torch.arange(x.shape[-3])
        h = x.double()
        return self.turn(h, self.cos_t[pos][:, None], self.sin_t[pos][:, None]).to(x.dtype)

# ---------------------------------------------------------------- MultiHeadAttention
class _Mha(nn.Module):
    "Right, except for what a subclass changes."
    def __init__(self, d_model, num_heads, num_kv_heads=None, max_seq_len=2048, theta=10000.0, device=None, dtype=None):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        self.d_k = d_model // num_heads
        kind = dict(device=device, dtype=dtype)
        self.q_proj = Linear(d_model, num_heads * self.d_k, **kind)
        self.k_proj = Linear(d_model, self.num_kv_heads * self.d_k, **kind)
        self.v_proj = Linear(d_model, self.num_kv_heads * self.d_k, **kind)
        self.output_proj = Linear(num_heads * self.d_k, d_model, **kind)
        self.rope = RoPE(self.d_k, max_seq_len, theta, device)
    def split(self, y, n): return y.view(*y.shape[:-1], n, self.d_k).transpose(-2, -3)
    def turn(self, q, k, v, pos): return self.rope(q, pos), self.rope(k, pos), v
    def share(self, k): return k.repeat_interleave(self.num_heads // self.num_kv_heads, dim=-3)
    def mask(self, t): return torch.ones(t, t, dtype=torch.bool).tril()
    def weigh(self, q, k, mask):
        s = torch.einsum("...td,...sd->...ts", q, k) / math.sqrt(self.d_k)
        return s.masked_fill(~mask, -torch.inf).softmax(-1)
    def join(self, o): return o.transpose(-2, -3).flatten(-2)
    def forward(self, x, token_positions=None):
        q = self.split(self.q_proj(x), self.num_heads)
        k, v = self.split(self.k_proj(x), self.num_kv_heads), self.split(self.v_proj(x), self.num_kv_heads)
        q, k, v = self.turn(q, k, v, token_positions)
        k, v = self.share(k), self.share(v)
        return self.output_proj(self.join(self.weigh(q, k, self.mask(x.shape[-2])) @ v))

@fault("MultiHeadAttention", "no causal mask: sees the future", "the causal mask is missing")
class MhaNotCausal(_Mha):
    def mask(self, t): return torch.ones(t, t, dtype=torch.bool)

@fault("MultiHeadAttention", "mask lets one future token through: diagonal=1", "the mask lets a token see the next one")
class MhaMaskOffByOne(_Mha):
    def mask(self, t): return torch.ones(t, t, dtype=torch.bool).tril(1)

@fault("MultiHeadAttention", "mask forbids a token to look at itself", "a token may not look at itself")
class MhaMaskExcludesSelf(_Mha):
    def mask(self, t):
        m = torch.ones(t, t, dtype=torch.bool).tril(-1)
        m[0, 0] = True
        return m

@fault("MultiHeadAttention", "heads merged without transposing back (reshape across tokens)", "the heads are joined without swapping their axis")
class MhaJoinsWithoutTranspose(_Mha):
    def join(self, o): return o.reshape(*o.shape[:-3], o.shape[-2], -1)

@fault("MultiHeadAttention", "heads split by view(h, t, d) without transpose: mixes tokens and heads", "the heads are cut out by a reshape that mixes to")
class MhaSplitByView(_Mha):
    def split(self, y, n): return y.reshape(*y.shape[:-2], n, y.shape[-2], self.d_k)

@fault("MultiHeadAttention", "features of a head interleaved (d, h) rather than neighbouring slices (h, d)", "a head takes every fourth feature")
class MhaInterleavedHeads(_Mha):
    def split(self, y, n): return y.view(*y.shape[:-1], self.d_k, n).movedim(-1, -3)

@fault("MultiHeadAttention", "RoPE turns the values too", "the values are turned as well")
class MhaRotatesValues(_Mha):
    def turn(self, q, k, v, pos): return self.rope(q, pos), self.rope(k, pos), self.rope(v, pos)

@fault("MultiHeadAttention", "RoPE applied to queries alone, not to keys", "the queries are turned and the keys are not")
class MhaRotatesQueriesOnly(_Mha):
    def turn(self, q, k, v, pos): return self.rope(q, pos), k, v

@fault("MultiHeadAttention", "no RoPE at all: positions are not used", "positions are never applied")
class MhaNoRope(_Mha):
    def turn(self, q, k, v, pos): return q, k, v

@fault("MultiHeadAttention", "token_positions not passed on to RoPE", "the given positions are ignored")
class MhaIgnoresPositions(_Mha):
    def turn(self, q, k, v, pos): return self.rope(q), self.rope(k), v

@fault("MultiHeadAttention", "scaled by √d_model instead of √d_k", "the scores are divided by the root of the whole ")
class MhaScaleByModel(_Mha):
    def weigh(self, q, k, mask):
        s = q @ k.mT / math.sqrt(self.d_k * self.num_heads)
        return s.masked_fill(~mask, -torch.inf).softmax(-1)

@fault("MultiHeadAttention", "kv heads shared by tiling (repeat) instead of repeat_interleave: wrong groups", "query head i uses key head i mod n")
class MhaTilesKvHeads(_Mha):
    def share(self, k):
        n = self.num_heads // self.num_kv_heads
        return torch.cat([k] * n, dim=-3)

@fault("MultiHeadAttention", "RoPE before heads are split: over the whole d_model", "queries and keys are turned before the heads are")
class MhaRopeBeforeSplit(_Mha):
    def __init__(self, d_model, num_heads, num_kv_heads=None, max_seq_len=2048, theta=10000.0, **kw):
        super().__init__(d_model, num_heads, num_kv_heads, max_seq_len, theta, **kw)
        self.rope = RoPE(d_model, max_seq_len, theta)
        self.rope_kv = RoPE(self.d_k * self.num_kv_heads, max_seq_len, theta)
    def forward(self, x, token_positions=None):
        q = self.split(self.rope(self.q_proj(x), token_positions), self.num_heads)
        k = self.split(self.rope_kv(self.k_proj(x), token_positions), self.num_kv_heads)
        v = self.split(self.v_proj(x), self.num_kv_heads)
        k, v = self.share(k), self.share(v)
        return self.output_proj(self.join(self.weigh(q, k, self.mask(x.shape[-2])) @ v))

@fault("MultiHeadAttention", "output projection forgotten", "the output projection is missing")
class MhaNoOutputProjection(_Mha):
    def forward(self, x, token_positions=None):
        q = self.split(self.q_proj(x), self.num_heads)
        k, v = self.split(self.k_proj(x), self.num_kv_heads), self.split(self.v_proj(x), self.num_kv_heads)
        q, k, v = self.turn(q, k, v, token_positions)
        return self.join(self.weigh(q, self.share(k), self.mask(x.shape[-2])) @ self.share(v))

@fault("MultiHeadAttention", "RoPE along the head axis: called before the transpose", "the outputs change when the whole text is shifted by 20 positions")
class MhaRopeOverHeads(_Mha):
    def turn(self, q, k, v, pos):
        if pos is not None: return self.rope(q, pos), self.rope(k, pos), v
        return self.rope(q.transpose(-2, -3)).transpose(-2, -3), self.rope(k.transpose(-2, -3)).transpose(-2, -3), v

# ---------------------------------------------------------------- CrossEntropyLoss
class _Ce(nn.Module):
    "Right, except for what a subclass changes."
    def __init__(self, ignore_index=-100):
        super().__init__()
        self.ignore_index = ignore_index
    def rows(self, logits, targets):
        wide = torch.promote_types(logits.dtype, torch.float32)
        z, t = logits.reshape(-1, logits.shape[-1]).to(wide), targets.reshape(-1)
        keep = torch.ones_like(t) > 0 if self.ignore_index is None else t != self.ignore_index
        return z, t.where(keep, 0), keep
    def nll(self, z, t):
        z = z - z.amax(-1, keepdim=True).detach()
        return z.exp().sum(-1).log() - z[torch.arange(len(z)), t]
    def mean(self, losses, keep): return (losses * keep).sum() / keep.sum()
    def forward(self, logits, targets):
        z, t, keep = self.rows(logits, targets)
        return self.mean(self.nll(z, t), keep)

@fault("CrossEntropyLoss", "no maximum subtracted: exp overflows", "nothing is subtracted before the exponential")
class CeNoMax(_Ce):
    def nll(self, z, t): return z.exp().sum(-1).log() - z.gather(-1, t[:, None])[:, 0]

@fault("CrossEntropyLoss", "log of the softmax: log 0 for improbable targets", "the logarithm is taken of a probability that has")
class CeLogOfSoftmax(_Ce):
    def nll(self, z, t): return -torch.log(torch.softmax(z, -1)[torch.arange(len(t)), t])

@fault("CrossEntropyLoss", "1e-9 inside the log: a ceiling on the loss", "a small number is added inside the logarithm")
class CeEpsInLog(_Ce):
    def nll(self, z, t): return -torch.log(z.softmax(-1).gather(-1, t.unsqueeze(-1)).squeeze(-1) + 1e-9)

@fault("CrossEntropyLoss", "sum instead of mean", "the losses are added up")
class CeSum(_Ce):
    def mean(self, losses, keep): return (losses * keep).sum()

@fault("CrossEntropyLoss", "divides by all rows, the ignored ones too", "the sum is divided by all positions")
class CeDividesByAll(_Ce):
    def mean(self, losses, keep): return (losses * keep).sum() / len(losses)

@fault("CrossEntropyLoss", "ignore_index not honoured: −100 indexes from the end / counts as class 0", "positions with the target −100 are counted")
class CeIgnoresIgnore(_Ce):
    def mean(self, losses, keep): return losses.mean()

@fault("CrossEntropyLoss", "sign: log-likelihood, without the minus", "the sign is turned round")
class CeWrongSign(_Ce):
    def nll(self, z, t): return z.log_softmax(-1)[torch.arange(len(t)), t]

@fault("CrossEntropyLoss", "maximum over the whole batch: rows far below underflow to log 0", "the largest logit of all rows is subtracted")
class CeGlobalMax(_Ce):
    def nll(self, z, t):
        z = z - z.max().detach()
        return z.exp().sum(-1).log() - z[torch.arange(len(z)), t]

@fault("CrossEntropyLoss", "softmax before log-softmax: probabilities taken for logits", "the softmax is applied twice")
class CeSoftmaxTwice(_Ce):
    def nll(self, z, t): return F.cross_entropy(z.softmax(-1), t, reduction="none")

@fault("CrossEntropyLoss", "in bits: log2 instead of ln", "the logarithm has the base two")
class CeBits(_Ce):
    def nll(self, z, t): return super().nll(z, t) / math.log(2)

@fault("CrossEntropyLoss", "mean over the vocabulary as well: one-hot product averaged instead of summed, V times too small", "the mean is taken over the vocabulary as well")
class CeMeanOverVocab(_Ce):
    def nll(self, z, t):
        onehot = torch.eye(z.shape[-1])[t].to(z.dtype)
        return -(onehot * z.log_softmax(-1)).mean(-1)

@fault("CrossEntropyLoss", "log-sum-exp taken over the rows (dim 0), not the vocabulary", "the softmax runs over the positions")
class CeWrongAxis(_Ce):
    def nll(self, z, t): return -F.log_softmax(z, 0)[torch.arange(len(t)), t]

@fault("CrossEntropyLoss", "label smoothing of 0.1 left on", "some of the target's share is given to all other")
class CeSmoothing(_Ce):
    def nll(self, z, t): return F.cross_entropy(z, t, reduction="none", label_smoothing=0.1)

@fault("CrossEntropyLoss", "computed in half precision", "the softmax is computed in half precision")
class CeHalf(_Ce):
    def rows(self, logits, targets):
        z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        keep = t != self.ignore_index
        return z, t.where(keep, 0), keep

# ---------------------------------------------------------------- SGDDecay
class _Sgd(torch.optim.Optimizer):
    "Right, except for what a subclass changes."
    def __init__(self, params, lr=1e-3):
        super().__init__(params, dict(lr=lr))
    def rate(self, lr, t): return lr / math.sqrt(t + 1)
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                state = self.state[p]
                t = state.get("t", 0)
                p.data -= self.rate(group["lr"], t) * p.grad.data
                state["t"] = t + 1
        return loss

@fault("SGDDecay", "t never counts up: the rate does not fall", "the rate never falls")
class SgdNoCount(_Sgd):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                t = self.state[p].get("t", 0)
                p.data -= group["lr"] / math.sqrt(t + 1) * p.grad.data
                t += 1

@fault("SGDDecay", "divides by t+1 instead of its root", "the rate falls like 1/(t + 1)")
class SgdNoRoot(_Sgd):
    def rate(self, lr, t): return lr / (t + 1)

@fault("SGDDecay", "counts from 1: the first step is already lr/√2", "t is counted from one")
class SgdCountsFromOne(_Sgd):
    def rate(self, lr, t): return lr / math.sqrt(t + 2)

@fault("SGDDecay", "one counter for all parameters, raised at each: t grows by the number of parameters", "it goes up with every parameter")
class SgdCountsParameters(_Sgd):
    def step(self, closure=None):
        self.t = getattr(self, "t", 0)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                p.data.add_(p.grad, alpha=-group["lr"] / math.sqrt(self.t + 1))
                self.t += 1

@fault("SGDDecay", "rates of groups ignored: uses the default lr", "a group's own lr is ignored")
class SgdDefaultRate(_Sgd):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                t = self.state[p].setdefault("t", 0)
                p.data.add_(p.grad, alpha=-self.defaults["lr"] / math.sqrt(t + 1))
                self.state[p]["t"] += 1

@fault("SGDDecay", "the rate is divided over and over: group['lr'] itself is lowered", "the divided rate is stored as lr")
class SgdCompoundsDecay(_Sgd):
    def step(self, closure=None):
        for group in self.param_groups:
            t = group.setdefault("t", 0)
            group["lr"] = group["lr"] / math.sqrt(t + 1)
            for p in group["params"]:
                if p.grad is not None: p.data -= group["lr"] * p.grad
            group["t"] += 1

@fault("SGDDecay", "goes uphill: adds the gradient", "it walks uphill")
class SgdUphill(_Sgd):
    def rate(self, lr, t): return -lr / math.sqrt(t + 1)

@fault("SGDDecay", "takes the sign of the gradient", "only the sign of the gradient counts")
class SgdSign(_Sgd):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                t = self.state[p].setdefault("t", 0)
                p.data.sub_(p.grad.sign() * self.rate(group["lr"], t))
                self.state[p]["t"] = t + 1

@fault("SGDDecay", "changes the gradient in place", "the gradient is changed")
class SgdScalesGradient(_Sgd):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None: continue
                t = self.state[p].setdefault("t", 0)
                p.data -= p.grad.mul_(self.rate(group["lr"], t))
                self.state[p]["t"] = t + 1

# ---------------------------------------------------------------- AdamW
class _Adam(torch.optim.Optimizer):
    "Right, except for what a subclass changes."
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    def grad(self, p, g): return p.grad
    def decay(self, p, g): p.mul_(1 - g["lr"] * g["weight_decay"])
    def moments(self, s, grad, g):
        b1, b2 = g["betas"]
        s["m"] = b1 * s["m"] + (1 - b1) * grad
        s["v"] = b2 * s["v"] + (1 - b2) * grad * grad
    def move(self, s, g):
        b1, b2 = g["betas"]
        m, v = s["m"] / (1 - b1**s["t"]), s["v"] / (1 - b2**s["t"])
        return g["lr"] * m / (v.sqrt() + g["eps"])
    @torch.no_grad()
    def step(self, closure=None):
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None: continue
                s = self.state[p]
                if not s: s.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                s["t"] += 1
                grad = self.grad(p, g)
                self.moments(s, grad, g)
                self.decay(p, g)
                p.sub_(self.move(s, g))

@fault("AdamW", "steps counted beside the state, so that no checkpoint knows of them", "the saved state is not complete")
class AdamCountsBesideTheState(_Adam):
    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.steps = Counter()
    def move(self, s, g):
        self.steps[id(s)] += 1
        return super().move(s | {"t": self.steps[id(s)]}, g)

@fault("AdamW", "no bias correction", "bias correction seems to be missing")
class AdamNoBiasCorrection(_Adam):
    def move(self, s, g): return g["lr"] * s["m"] / (s["v"].sqrt() + g["eps"])

@fault("AdamW", "bias correction of the mean square forgotten", "the mean of the squares is not corrected for its")
class AdamCorrectsMeanOnly(_Adam):
    def move(self, s, g): return g["lr"] / (1 - g["betas"][0]**s["t"]) * s["m"] / (s["v"].sqrt() + g["eps"])

@fault("AdamW", "t counts from 0 / not raised: bias correction always that of step 1", "the correction does not change with the steps")
class AdamStepStuckAtOne(_Adam):
    def move(self, s, g):
        s["t"] = 1
        return super().move(s, g)

@fault("AdamW", "weight decay added to the gradient (L2, as in Adam) instead of decoupled", "decay is folded into the gradient (L2)")
class AdamL2(_Adam):
    def grad(self, p, g): return p.grad + g["weight_decay"] * p
    def decay(self, p, g): pass

@fault("AdamW", "decay not multiplied by the learning rate", "decay subtracts wd times the parameter")
class AdamDecayWithoutLr(_Adam):
    def decay(self, p, g): p.mul_(1 - g["weight_decay"])

@fault("AdamW", "eps inside the root", "eps stands inside the root")
class AdamEpsInsideRoot(_Adam):
    def move(self, s, g):
        b1, b2 = g["betas"]
        m, v = s["m"] / (1 - b1**s["t"]), s["v"] / (1 - b2**s["t"])
        return g["lr"] * m / (v + g["eps"]).sqrt()

@fault("AdamW", "no root: divides by the mean square", "the root is missing")
class AdamNoRoot(_Adam):
    def move(self, s, g):
        b1, b2 = g["betas"]
        m, v = s["m"] / (1 - b1**s["t"]), s["v"] / (1 - b2**s["t"])
        return g["lr"] * m / (v + g["eps"])

@fault("AdamW", "betas swapped", "β₁ and β₂ have changed places")
class AdamBetasSwapped(_Adam):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, lr, tuple(reversed(betas)), eps, weight_decay)

@fault("AdamW", "eps before bias correction: eps is scaled by √(1−β2^t)", "eps is added before the mean of the squares is c")
class AdamEpsBeforeCorrection(_Adam):
    def move(self, s, g):
        b1, b2 = g["betas"]
        rate = g["lr"] * math.sqrt(1 - b2**s["t"]) / (1 - b1**s["t"])
        return rate * s["m"] / (s["v"].sqrt() + g["eps"])

@fault("AdamW", "decay multiplied by the bias-corrected rate instead of lr", "decay uses the corrected rate of the step")
class AdamDecayByCorrectedRate(_Adam):
    def decay(self, p, g):
        b1, b2 = g["betas"]
        t = self.state[p]["t"]
        p.mul_(1 - g["lr"] * math.sqrt(1 - b2**t) / (1 - b1**t) * g["weight_decay"])

@fault("AdamW", "second moment not squared: running mean of |gradient|", "the absolute values of the gradients are averaged, not their squares")
class AdamSecondMomentNotSquared(_Adam):
    def moments(self, s, grad, g):
        b1, b2 = g["betas"]
        s["m"] = b1 * s["m"] + (1 - b1) * grad
        s["v"] = b2 * s["v"] + (1 - b2) * grad.abs()

@fault("AdamW", "(1−β1) left out of the running mean", "gradients enter the first mean at full weight")
class AdamMeanUnweighted(_Adam):
    def moments(self, s, grad, g):
        b1, b2 = g["betas"]
        s["m"] = b1 * s["m"] + grad
        s["v"] = b2 * s["v"] + (1 - b2) * grad * grad

@fault("AdamW", "decay applied after the step, not before (of the moved parameter)", "decay comes after the step")
class AdamDecaysAfterStep(_Adam):
    def decay(self, p, g): pass
    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is not None: p.mul_(1 - g["lr"] * g["weight_decay"])

@fault("AdamW", "weight decay forgotten", "decay is missing")
class AdamNoDecay(_Adam):
    def decay(self, p, g): pass

@fault("AdamW", "decay has the wrong sign: weights grow", "decay has the wrong sign")
class AdamDecayGrows(_Adam):
    def decay(self, p, g): p.mul_(1 + g["lr"] * g["weight_decay"])

@fault("AdamW", "parameters without gradient decay too", "a parameter without a gradient moves")
class AdamDecaysIdle(_Adam):
    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None: p.mul_(1 - g["lr"] * g["weight_decay"])

@fault("AdamW", "one second moment for a whole tensor", "numbers of one parameter affect each other's steps")
class AdamWOneSquareForAll(_Adam):
    def moments(self, s, grad, group):
        b1, b2 = group["betas"]
        s["m"], s["v"] = b1 * s["m"] + (1 - b1) * grad, b2 * s["v"] + (1 - b2) * (grad**2).mean().expand_as(grad)

# ---------------------------------------------------------------- gradient_clip
def _params(params): return [params] if isinstance(params, torch.Tensor) else list(params)

edits("gradient_clip", """
def part(params, max_norm):
    params = [p for p in _params(params) if p.grad is not None]
    grads = [p.grad for p in params]
    norm = torch.cat([g.flatten() for g in grads]).norm() if grads else torch.tensor(0.)
    if norm > max_norm:
        for g in grads: g.mul_(max_norm / (norm + 1e-6))
    return norm
""",
    ("clip_each_by_itself", "each gradient clipped by itself, not by the norm of all", "each tensor is clipped by itself", "/ (norm +", "/ (max(g.norm(), max_norm) +"),
    ("clip_sum_of_norms", "sum of norms instead of root of the sum of squares", "the lengths of the tensors are added up", "torch.cat([g.flatten() for g in grads]).norm()", "sum(g.norm() for g in grads)"),
    ("clip_stretches", "always rescales: short gradients are stretched to max_norm", "short gradients are stretched", "norm > max_norm", "grads"),
    ("clip_without_root", "root forgotten: squared norm", "the squared length is returned and used", ".norm()", ".square().sum()"),
    ("clip_by_value", "clips values (clamp to ±max_norm) instead of the norm", "every number is cut off at the limit by itself", "g.mul_(max_norm / (norm + 1e-6))", "g.clamp_(-max_norm, max_norm)"),
    ("clip_not_in_place", "result not written back: p.grad rebinding a local name", "nothing is scaled", "g.mul_(max_norm / (norm + 1e-6))", "g = g * max_norm / (norm + 1e-6)"),
    ("clip_fails_without_grad", "fails on parameters without a gradient", "a parameter without a gradient raises an error", "[p for p in _params(params) if p.grad is not None]", "_params(params)"),
    ("clip_returns_norm_after", "returns the norm after clipping", "the length after clipping is returned", "return norm", "return norm.clamp(max=max_norm)"),
    ("clip_measures_params", "measures the parameters instead of their gradients", "the parameters are measured", "[g.flatten() for g in grads]", "[p.detach().flatten() for p in params]"),
    ("clip_returns_none", "returns nothing", "does every path end in a return?", "return norm", "pass"),
    ("clip_to_length_one", "max_norm compared, but gradients scaled to length one: not multiplied by max_norm", "the gradients are scaled to length one, whatever the limit", "max_norm / (norm", "1 / (norm"))

# ---------------------------------------------------------------- params_for_decay
@fault("params_for_decay", "biases and gains decay too", "everything decays")
def decay_everything(model, weight_decay=0.01):
    return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]

@fault("params_for_decay", "groups the wrong way round: vectors decay, matrices don't", "the groups have changed places")
def decay_swapped(model, weight_decay=0.01):
    ps = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in ps if p.dim() < 2], "weight_decay": weight_decay}, {"params": [p for p in ps if p.dim() >= 2], "weight_decay": 0.0}]

@fault("params_for_decay", "by the name 'bias' only: norm gains decay", "a gain decays unless its name is a known one")
def decay_by_bias_name(model, weight_decay=0.01):
    decay, rest = [], []
    for n, p in model.named_parameters():
        if p.requires_grad: (rest if n.endswith("bias") else decay).append(p)
    return [dict(params=decay, weight_decay=weight_decay), dict(params=rest, weight_decay=0.)]

@fault("params_for_decay", "frozen parameters not left out", "frozen parameters are in a group")
def decay_includes_frozen(model, weight_decay=0.01):
    ps = list(model.parameters())
    return [{"params": [p for p in ps if p.ndim >= 2], "weight_decay": weight_decay}, {"params": [p for p in ps if p.ndim < 2], "weight_decay": 0.0}]

@fault("params_for_decay", "embeddings left undecayed", "a parameter with two axes or more does not decay")
def decay_not_embeddings(model, weight_decay=0.01):
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    ps = [p for p in model.parameters() if p.requires_grad]
    yes = [p for p in ps if p.ndim >= 2 and id(p) not in tables]
    return [{"params": yes, "weight_decay": weight_decay}, {"params": [p for p in ps if p.ndim < 2 or id(p) in tables], "weight_decay": 0.}]

@fault("params_for_decay", "vectors forgotten: no second group", "gains and biases are in no group")
def decay_forgets_vectors(model, weight_decay=0.01):
    return [{"params": [p for p in model.parameters() if p.requires_grad and p.ndim > 1], "weight_decay": weight_decay}]

@fault("params_for_decay", "second group has no weight_decay of its own: gets the optimiser's default", "the second group has no weight_decay of its own")
def decay_second_group_default(model, weight_decay=0.01):
    ps = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in ps if p.ndim > 1], "weight_decay": weight_decay}, {"params": [p for p in ps if p.ndim <= 1]}]

@fault("params_for_decay", "weight_decay argument ignored: 0.1 fixed", "the given decay is ignored")
def decay_fixed(model, weight_decay=0.01):
    ps = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in ps if p.ndim > 1], "weight_decay": 0.1}, {"params": [p for p in ps if p.ndim <= 1], "weight_decay": 0.}]

@fault("params_for_decay", "only parameters of Linear and Embedding modules collected (others lost)", "a parameter is in no group")
def decay_by_module_type(model, weight_decay=0.01):
    yes, no = [], []
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Embedding)):
            if m.weight.requires_grad: yes.append(m.weight)
            if getattr(m, "bias", None) is not None: no.append(m.bias)
        elif isinstance(m, nn.LayerNorm): no += [m.weight, m.bias]
    return [{"params": yes, "weight_decay": weight_decay}, {"params": no, "weight_decay": 0.}]

@fault("params_for_decay", "nested modules met twice: parameters double (modules × parameters)", "parameters come more than once")
def decay_doubles(model, weight_decay=0.01):
    ps = [p for m in model.modules() for p in m.parameters() if p.requires_grad]
    return [{"params": [p for p in ps if p.ndim > 1], "weight_decay": weight_decay}, {"params": [p for p in ps if p.ndim <= 1], "weight_decay": 0.}]

# ---------------------------------------------------------------- cos_lr_scheduler
def _lr_ok(it, w, c, lo, hi):
    if not 0 <= w <= c or it < 0 or not 0 <= lo <= hi < math.inf: raise ValueError("bad schedule")

edits("cos_lr_scheduler", """
def part(it, warmup_iters, cos_cycle_iters, lr_min, lr_max):
    _lr_ok(it, warmup_iters, cos_cycle_iters, lr_min, lr_max)
    if it < warmup_iters: return lr_max * it / warmup_iters
    if it >= cos_cycle_iters: return lr_min
    r = (it - warmup_iters) / (cos_cycle_iters - warmup_iters)
    return lr_min + .5 * (1 + math.cos(math.pi * r)) * (lr_max - lr_min)
""",
    ("lr_progress_from_zero", "cosine over the whole run: warm-up not subtracted from the progress", "the way down is counted from step 0", "(it - warmup_iters) / (cos_cycle_iters - warmup_iters)", "it / cos_cycle_iters"),
    ("lr_nanogpt_warmup", "warm-up counts (it+1)/(warmup+1), as in nanoGPT", "the climb is (it + 1)/(w + 1), as in nanoGPT", "it / warmup_iters", "(it + 1) / (warmup_iters + 1)"),
    ("lr_rises_again", "after the cycle the cosine goes on (comes up again)", "after the cycle the curve goes on", "if it >= cos_cycle_iters: return lr_min", "pass"),
    ("lr_linear", "line instead of cosine", "the way down is a straight line", ".5 * (1 + math.cos(math.pi * r))", "(1 - r)"),
    ("lr_zero_after", "zero after the cycle instead of lr_min", "the rate falls below lr_min on its way", ">= cos_cycle_iters: return lr_min", "> cos_cycle_iters: return 0."),
    ("lr_min_not_subtracted", "lr_min added to the full range: starts at lr_max + lr_min", "lr_min is added on top", "(lr_max - lr_min)", "lr_max"),
    ("lr_warmup_from_min", "warm-up climbs from lr_min instead of 0", "the climb begins at lr_min instead of 0", "return lr_max * it", "return lr_min + (lr_max - lr_min) * it"),
    ("lr_cycle_after_warmup", "cos_cycle_iters taken for the length of the cosine, after the warm-up", "the cycle is counted from the end of the warm-up", ">= cos_cycle_iters", ">= warmup_iters + cos_cycle_iters", "(cos_cycle_iters - warmup_iters)", "cos_cycle_iters"),
    ("lr_division_by_zero", "divides by zero without warm-up (it <= warmup)", "without a warm-up, step 0 does not have", "it < warmup_iters", "it <= warmup_iters"),
    ("lr_does_not_refuse", "senseless warm-up (longer than the cycle) not refused", "a warm-up longer than the cycle is accepted without an error", "_lr_ok(it, warmup_iters, cos_cycle_iters, lr_min, lr_max)", "pass"),
    ("lr_whole_wave", "sine phase: 2π, a whole wave instead of half", "the way down goes up again before the end of the", "math.pi * r", "2 * math.pi * r"))

# ---------------------------------------------------------------- TransformerBlock
class _Block(nn.Module):
    "Right, except for what a subclass changes."
    def __init__(self, d_model, num_heads, d_ff, max_seq_len=2048, theta=10000.0, num_kv_heads=None, device=None, dtype=None):
        super().__init__()
        kind = dict(device=device, dtype=dtype)
        self.attention_norm, self.ffn_norm = RmsNorm(d_model, **kind), RmsNorm(d_model, **kind)
        self.attention = MultiHeadAttention(d_model, num_heads, num_kv_heads, max_seq_len, theta, **kind)
        self.ffn = FFN(d_model, d_ff, **kind)
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.attention(self.attention_norm(x), token_positions, cache)
        x = x + self.ffn(self.ffn_norm(x))
        return x

@fault("TransformerBlock", "post-norm: norms after the addition", "the norms come after the sums, on the stream itself")
class BlockPostNorm(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = self.attention_norm(x + self.attention(x, token_positions, cache))
        return self.ffn_norm(x + self.ffn(x))

@fault("TransformerBlock", "no residual around the attention", "attention does not add to the stream")
class BlockNoAttentionResidual(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = self.attention(self.attention_norm(x), token_positions, cache)
        return x + self.ffn(self.ffn_norm(x))

@fault("TransformerBlock", "no residual around the FFN", "the feed-forward network does not add to the str")
class BlockNoFfnResidual(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.attention(self.attention_norm(x), token_positions, cache)
        return self.ffn(self.ffn_norm(x))

@fault("TransformerBlock", "residual adds the normed stream, not the raw one", "the branches are added to the normalised stream")
class BlockResidualOfNormed(_Block):
    def forward(self, x, token_positions=None, cache=None):
        h = self.attention_norm(x)
        x = h + self.attention(h, token_positions, cache)
        h = self.ffn_norm(x)
        return h + self.ffn(h)

@fault("TransformerBlock", "branches in parallel: FFN reads x, not x + attention", "both branches read the same stream")
class BlockParallel(_Block):
    def forward(self, x, token_positions=None, cache=None):
        return x + self.attention(self.attention_norm(x), token_positions, cache) + self.ffn(self.ffn_norm(x))

@fault("TransformerBlock", "FFN before attention", "the feed-forward network comes before attention")
class BlockFfnFirst(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.ffn(self.ffn_norm(x))
        return x + self.attention(self.attention_norm(x), token_positions, cache)

@fault("TransformerBlock", "attention_norm used twice; ffn_norm unused", "one norm serves both branches")
class BlockSameNormTwice(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.attention(self.attention_norm(x), token_positions, cache)
        return x + self.ffn(self.attention_norm(x))

@fault("TransformerBlock", "second addition uses the original x: attention's part lost", "the network's output is added to the block's input")
class BlockForgetsAttention(_Block):
    def forward(self, x, token_positions=None, cache=None):
        residual = x
        x = residual + self.attention(self.attention_norm(x), token_positions, cache)
        return residual + self.ffn(self.ffn_norm(x))

@fault("TransformerBlock", "no norm before the FFN", "the norm before the feed-forward network is miss")
class BlockNoFfnNorm(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.attention(self.attention_norm(x), token_positions, cache)
        return x + self.ffn(x)

@fault("TransformerBlock", "dropout on the branches, always on", "it draws from the generator that all share")
class BlockDropout(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + F.dropout(self.attention(self.attention_norm(x), token_positions, cache), 0.1)
        return x + F.dropout(self.ffn(self.ffn_norm(x)), 0.1)

@fault("TransformerBlock", "norm on the branch's output (x + norm(f(x))) instead of its input", "the norms are applied to the outputs of the branches")
class BlockNormsOutput(_Block):
    def forward(self, x, token_positions=None, cache=None):
        x = x + self.attention_norm(self.attention(x, token_positions, cache))
        return x + self.ffn_norm(self.ffn(x))

# ---------------------------------------------------------------- Transformer
class _Model(nn.Module):
    "Right, except for what a subclass changes."
    def __init__(self, vocab_size, max_seq_len, d_model, num_layers, num_heads, d_ff, rope_theta=10000.0, num_kv_heads=None, tie=False, device=None, dtype=None):
        super().__init__()
        self.config = ModelConfig(vocab_size, max_seq_len, d_model, num_layers, num_heads, d_ff, rope_theta, num_kv_heads, tie)
        self.embedding = Embedding(vocab_size, d_model)
        self.blocks = self.make(num_layers, d_model, num_heads, d_ff, max_seq_len, rope_theta, num_kv_heads)
        self.norm = RmsNorm(d_model)
        self.head = Linear(d_model, vocab_size)
        if tie: self.head.weight = self.embedding.weight
        self.start()
        self.to(device=device, dtype=dtype)
    def make(self, n, *shape): return nn.ModuleList([TransformerBlock(*shape) for _ in range(n)])
    def start(self): start_small(self)
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks: x = block(x, token_positions)
        return self.head(self.norm(x))

@fault("Transformer", "final norm forgotten", "the norm before the head is missing")
class ModelNoFinalNorm(_Model):
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks: x = block(x, token_positions)
        return self.head(x)

@fault("Transformer", "same block repeated: [block]*n shares the weights", "all blocks are one and the same")
class ModelSharedBlocks(_Model):
    def make(self, n, *shape): return nn.ModuleList([TransformerBlock(*shape)] * n)

@fault("Transformer", "output of a block dropped: every block reads the embedding", "every block reads the embedding")
class ModelDropsBlockOutput(_Model):
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks: y = block(x, token_positions)
        return self.head(self.norm(y))

@fault("Transformer", "softmax applied to the logits", "probabilities are returned")
class ModelReturnsProbabilities(_Model):
    def forward(self, ids, token_positions=None): return super().forward(ids, token_positions).softmax(-1)

@fault("Transformer", "logits for the last position only", "only the last position gets scores")
class ModelLastOnly(_Model):
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks: x = block(x, token_positions)
        return self.head(self.norm(x[..., -1:, :]))

@fault("Transformer", "tie ignored: two matrices", "embedding and head are two matrices")
class ModelTieIgnored(_Model):
    def __init__(self, *shape, tie=False, **kw): super().__init__(*shape, **kw)

@fault("Transformer", "tied by copying the values, not by sharing the parameter", "embedding and head are two matrices")
class ModelTieCopies(_Model):
    def __init__(self, *shape, tie=False, **kw):
        super().__init__(*shape, **kw)
        if tie: self.head.weight = nn.Parameter(self.embedding.weight.detach().clone())

@fault("Transformer", "blocks in a Python list: not registered, never trained", "a plain list hides what it holds")
class ModelPlainList(_Model):
    def make(self, n, *shape): return [TransformerBlock(*shape) for _ in range(n)]
    @torch.no_grad()
    def start(self):
        for b in self.blocks:
            for last in b.attention.output_proj, b.ffn.w2: last.weight *= (2 * len(self.blocks))**-.5
        self.head.weight *= self.config.d_model**-.5 if self.config.tie else .1

@fault("Transformer", "initial weights of head/branches not made small: fresh loss far above ln V (tied table of spread 1)", "the fresh head is too large")
class ModelLargeStart(_Model):
    def start(self):
        with torch.no_grad(): self.head.weight.normal_()

@fault("Transformer", "one block too few", "one block is left out")
class ModelSkipsLast(_Model):
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids)
        for block in self.blocks[:-1]: x = block(x, token_positions)
        return self.head(self.norm(x))

@fault("Transformer", "learned absolute positions added besides RoPE", "there is a parameter or buffer positions.")
class ModelAddsPositions(_Model):
    def __init__(self, vocab_size, max_seq_len, d_model, *rest, **kw):
        super().__init__(vocab_size, max_seq_len, d_model, *rest, **kw)
        self.positions = Embedding(max_seq_len, d_model)
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids) + self.positions(torch.arange(ids.shape[-1]))
        for block in self.blocks: x = block(x, token_positions)
        return self.head(self.norm(x))

@fault("Transformer", "blocks not causal: bidirectional attention inside", "the future leaks")
class ModelBidirectional(_Model):
    def make(self, n, *shape):
        def both_ways(q, k, v, mask=None, causal=False): return attention(q, k, v, mask)
        blocks = super().make(n, *shape)
        for b in blocks: b.attention.attend = both_ways
        return blocks

@fault("Transformer", "embedding frozen / detached: gets no gradient", "no gradient reaches the embedding")
class ModelDetachesEmbedding(_Model):
    def forward(self, ids, token_positions=None):
        x = self.embedding(ids).detach()
        for block in self.blocks: x = block(x, token_positions)
        return self.head(self.norm(x))

# ---------------------------------------------------------------- train_step
def _all(optimizer): return [p for g in optimizer.param_groups for p in g["params"]]

edits("train_step", """
def part(model, optimizer, scaler, batches, max_norm):
    optimizer.zero_grad()
    total = 0.
    for x, y in batches:
        loss = cross_entropy(model(x), y) / len(batches)
        scaler.scale(loss).backward()
        total = total + loss.detach()
    scaler.unscale_(optimizer)
    norm = gradient_clip(_all(optimizer), max_norm or math.inf)
    scaler.step(optimizer); scaler.update()
    return total, norm
""",
    ("step_without_zero_grad", "gradients not zeroed before: they pile up over steps", "gradients of an earlier step are not cleared", "optimizer.zero_grad()", "pass"),
    ("step_zeroes_each_batch", "zero_grad inside the loop: only the last small batch counts", "gradients are cleared before each small batch", "        loss =", "        optimizer.zero_grad(); loss ="),
    ("step_sums_batches", "loss not divided by the number of batches: gradients summed, not averaged", "the gradients of small batches are added up", "y) / len(batches)", "y)", "loss.detach()", "loss.detach() / len(batches)"),
    ("step_returns_last_loss", "returns the last batch's loss, not the mean", "the loss of the last small batch is returned", "total + loss.detach()", "loss.detach() * len(batches)"),
    ("step_clips_after", "clips after the optimiser's step: no effect", "nothing is clipped", "    norm =", "    scaler.step(optimizer); scaler.update(); norm =", "    scaler.step(optimizer); scaler.update()\n", ""),
    ("step_clips_to_zero", "max_norm 0 not taken as 'no clipping': gradients become zero", "a limit of zero clips everything away", "max_norm or math.inf", "max_norm"),
    ("step_never_clips", "never clips", "nothing is clipped", "max_norm or math.inf", "math.inf"),
    ("step_each_batch", "steps after every small batch instead of once", "small batches do not give the same step as one large batch", "        loss =", "        optimizer.zero_grad(); loss =", "    scaler.unscale_", "        scaler.unscale_", "    norm =", "        norm =", "    scaler.step", "        scaler.step"),
    ("step_norm_after", "norm returned is that after clipping", "the length after clipping is returned", "norm = gradient_clip(_all(optimizer), max_norm or math.inf)", "gradient_clip(_all(optimizer), max_norm or math.inf); norm = torch.cat([p.grad.flatten() for p in _all(optimizer)]).norm()"),
    ("step_clips_each_backward", "clips after each backward, while gradients still accumulate", "the gradient is clipped after each small batch", "    scaler.unscale_(optimizer)\n    norm", "        norm"),
    ("step_never_steps", "optimizer.step() forgotten", "no step is taken", "scaler.step(optimizer); scaler.update()", "pass", "scaler.unscale_(optimizer)", "pass"),
    ("step_clips_scaled", "gradients clipped while still scaled: unscale_ forgotten", "gradients are clipped while they are still multi", "scaler.unscale_(optimizer)", "pass"))

# ---------------------------------------------------------------- keep_top_k
def _top(logits, k):
    "Right: the k best, lower ids first."
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.full_like(logits, -torch.inf).scatter(-1, order, logits.gather(-1, order))

@fault("keep_top_k", "threshold: ties with the k-th kept as well (more than k)", "all tokens as likely as the last one kept are ke")
def top_k_keeps_ties(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    kth = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)

@fault("keep_top_k", "strictly greater than the k-th: keeps k−1", "one token too few is kept")
def top_k_drops_the_kth(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    out = logits.masked_fill(logits <= logits.topk(k).values[..., -1:], -torch.inf)
    return out if k > 1 else _top(logits, 1)

@fault("keep_top_k", "threshold of the first row used for all (values[-1] of the batch)", "the whole batch is cut together")
def top_k_one_threshold(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    kth = logits.topk(k).values.reshape(-1, k)[0, -1]
    return logits.masked_fill(logits < kth, -torch.inf)

@fault("keep_top_k", "left-out scores set to 0 instead of minus infinity", "tokens are left out by the score zero")
def top_k_zeros(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    found, order = logits.topk(k)
    return torch.zeros_like(logits).scatter(-1, order, found)

@fault("keep_top_k", "k larger than the vocabulary fails", "a k beyond the vocabulary raises an error")
def top_k_too_large_fails(logits, k):
    if k == 0: return logits
    found, order = torch.topk(logits, k, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, found)

@fault("keep_top_k", "k=0 keeps none instead of all", "k = 0 keeps nothing")
def top_k_zero_keeps_none(logits, k):
    return _top(logits, min(k, logits.shape[-1]))

@fault("keep_top_k", "keeps the k least likely (ascending sort)", "a token is left out that is likelier than one that is kept")
def top_k_of_the_worst(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    order = logits.argsort(-1)[..., :k]
    return torch.full_like(logits, -torch.inf).scatter(-1, order, logits.gather(-1, order))

@fault("keep_top_k", "returns sorted scores, not at their own ids", "kept scores are changed, or moved to other ids")
def top_k_sorted(logits, k):
    if k == 0 or k >= logits.shape[-1]: return logits
    found = logits.sort(dim=-1, descending=True).values.clone()
    found[..., k:] = -torch.inf
    return found

# ---------------------------------------------------------------- keep_top_p
def _top_p(logits, p, cut):
    "Sort, cut, put back; `cut` says what is dropped from shares (sorted) and their running sum."
    if p >= 1: return logits
    z, order = logits.sort(dim=-1, descending=True, stable=True)
    shares = z.softmax(-1)
    drop = cut(shares, shares.cumsum(-1))
    return torch.full_like(logits, -torch.inf).scatter(-1, order, z.masked_fill(drop, -torch.inf))

@fault("keep_top_p", "the token that crosses p is dropped", "the one that crosses p must stay")
def top_p_drops_the_crossing(logits, p):
    def cut(s, c):
        d = c > p
        d[..., 0] = False
        return d
    return _top_p(logits, p, cut)

@fault("keep_top_p", "one token too many (shift by two)", "one token too many is kept after the one that crosses p")
def top_p_one_too_many(logits, p):
    def cut(s, c):
        d = (c >= p).roll(2, -1)
        d[..., :2] = False
        return d
    return _top_p(logits, p, cut)

@fault("keep_top_p", "the best is not kept for p=0: nothing is left", "p = 0 keeps nothing")
def top_p_nothing_left(logits, p): return _top_p(logits, p, lambda s, c: c - s >= p)

@fault("keep_top_p", "cut not scattered back: mask in sorted order used on unsorted scores", "the marks are right in sorted order")
def top_p_not_scattered_back(logits, p):
    if p >= 1: return logits
    s = logits.softmax(-1).sort(dim=-1, descending=True).values
    drop = s.cumsum(-1) - s >= p
    drop[..., 0] = False
    return logits.masked_fill(drop, -torch.inf)

@fault("keep_top_p", "ascending: the least likely hold the mass", "shares are added up from the least likely")
def top_p_ascending(logits, p):
    if p >= 1: return logits
    z, order = logits.sort(-1)
    s = z.softmax(-1)
    d = s.cumsum(-1) - s >= p
    d[..., 0] = False
    return torch.full_like(logits, -torch.inf).scatter(-1, order, z.masked_fill(d, -torch.inf))

@fault("keep_top_p", "p taken as a threshold for each probability", "too little is left out")
def top_p_as_threshold(logits, p):
    if p >= 1: return logits
    s = logits.softmax(-1)
    keep = (s >= p) | (s == s.amax(-1, keepdim=True))
    return logits.masked_fill(~keep, -torch.inf)

@fault("keep_top_p", "cumsum of the logits, not of probabilities", "scores are added up instead of shares")
def top_p_of_logits(logits, p):
    if p >= 1: return logits
    z, order = logits.sort(dim=-1, descending=True, stable=True)
    c = z.cumsum(-1)
    d = c - z >= p
    d[..., 0] = False
    return torch.full_like(logits, -torch.inf).scatter(-1, order, z.masked_fill(d, -torch.inf))

@fault("keep_top_p", "returns probabilities renormalised, not scores", "shares are returned")
def top_p_returns_probabilities(logits, p):
    def cut(s, c):
        d = c - s >= p
        d[..., 0] = False
        return d
    return _top_p(logits, p, cut).softmax(-1)

@fault("keep_top_p", "p=1 cuts far tokens through rounding of the running sum", "p = 1 drops tokens with tiny shares")
def top_p_rounds_at_one(logits, p):
    z, order = logits.sort(dim=-1, descending=True, stable=True)
    s = z.softmax(-1)
    d = s.cumsum(-1) - s >= p
    d[..., 0] = False
    return torch.full_like(logits, -torch.inf).scatter(-1, order, z.masked_fill(d, -torch.inf))

@fault("keep_top_p", "unstable sort: of equals, any may stay", "of equally likely tokens the higher ids stay")
def top_p_prefers_higher_ids(logits, p):
    return _top_p(logits.flip(-1), p, lambda s, c: (c - s >= p) & (torch.arange(s.shape[-1]) > 0)).flip(-1)

# ---------------------------------------------------------------- keep_min_p
@fault("keep_min_p", "p as an absolute probability, not a share of the best", "shares are compared with p itself")
def min_p_absolute(logits, p): return logits.masked_fill(logits.softmax(-1) < p, -torch.inf)

@fault("keep_min_p", "compares scores with p times the best score (logits, not probabilities)", "p times the highest score is the threshold")
def min_p_of_logits(logits, p): return logits.masked_fill(logits < p * logits.amax(-1, keepdim=True), -torch.inf) if p else logits

@fault("keep_min_p", "best of the whole batch, not of each row", "shares are compared with the best of the whole batch")
def min_p_global_best(logits, p):
    if p == 0: return logits
    s = logits.softmax(-1)
    return logits.masked_fill(s < p * s.max() * (1 - 1e-6), -torch.inf)

@fault("keep_min_p", "log(p) added to the mean score rather than the highest", "the logarithm of p is added to the mean score")
def min_p_from_mean(logits, p):
    if p == 0: return logits
    return logits.masked_fill(logits < logits.mean(-1, keepdim=True) + math.log(p), -torch.inf)

@fault("keep_min_p", "p=0 fails: log of zero", "p = 0 does not keep everything")
def min_p_log_zero(logits, p): return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)

@fault("keep_min_p", "strict comparison: p=1 leaves nothing", "a token exactly p times as likely as the best is")
def min_p_strict(logits, p):
    if p == 0: return logits
    return logits.masked_fill(logits <= logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)

@fault("keep_min_p", "difference subtracted from the best probability (max − p) instead of the product", "1 − p is subtracted from the best share")
def min_p_difference(logits, p):
    s = logits.softmax(-1)
    return logits.masked_fill(s < s.amax(-1, keepdim=True) - (1 - p), -torch.inf)

@fault("keep_min_p", "keeps those below and drops those above: inverted", "a token is left out that is likelier than one that is kept")
def min_p_inverted(logits, p):
    if p == 0: return logits
    return logits.masked_fill(logits > logits.amax(-1, keepdim=True) + math.log(p), -torch.inf)

@fault("keep_min_p", "sets dropped scores to 0", "tokens are left out by the score zero")
def min_p_zero_fill(logits, p):
    if p == 0: return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), 0.)

# ---------------------------------------------------------------- penalise
@fault("penalise", "only divides: negative scores rise (CTRL paper's formula)", "negative scores are divided too")
def penalise_only_divides(logits, ids, penalty):
    return logits.scatter(-1, ids, logits.gather(-1, ids) / penalty)

@fault("penalise", "penalty applied once for each occurrence", "a token that was said twice is punished twice")
def penalise_each_time(logits, ids, penalty):
    out = logits.clone()
    for row, said in zip(out.view(-1, out.shape[-1]), ids[None] if ids.ndim == 1 else ids):
        for i in said.tolist(): row[i] = row[i] / penalty if row[i] > 0 else row[i] * penalty
    return out

@fault("penalise", "penalty subtracted instead", "the penalty minus one is subtracted")
def penalise_subtracts(logits, ids, penalty):
    return logits.scatter(-1, ids, logits.gather(-1, ids) - (penalty - 1))

@fault("penalise", "changes the scores it was given, in place", "an operation in place does that")
def penalise_in_place(logits, ids, penalty):
    said = logits.gather(-1, ids)
    return logits.scatter_(-1, ids, torch.where(said > 0, said / penalty, said * penalty))

@fault("penalise", "sign the wrong way: positive multiplied, negative divided", "positive scores are multiplied and negative ones")
def penalise_rewards(logits, ids, penalty):
    said = torch.gather(logits, -1, ids)
    return logits.scatter(-1, ids, torch.where(said < 0, said / penalty, said * penalty))

@fault("penalise", "ids of all rows penalised in every row", "tokens that one row said are punished in another")
def penalise_all_rows(logits, ids, penalty):
    out = logits.clone()
    for i in set(ids.flatten().tolist()):
        out[..., i] = torch.where(out[..., i] > 0, out[..., i] / penalty, out[..., i] * penalty)
    return out

@fault("penalise", "all tokens penalised, not only those said", "every token is punished")
def penalise_everything(logits, ids, penalty):
    return torch.where(logits > 0, logits / penalty, logits * penalty)

@fault("penalise", "only the last token said is penalised", "only the last token is punished")
def penalise_last_only(logits, ids, penalty):
    last = ids[..., -1:]
    said = logits.gather(-1, last)
    return logits.scatter(-1, last, torch.where(said > 0, said / penalty, said * penalty))

# ---------------------------------------------------------------- next_probabilities


def _next(logits, ids, how, order="penalty temperature k p min", scale=lambda z, t: (z - z.amax(-1, keepdim=True)) / t):
    "Right in the given order."
    z = logits.float()
    if "penalty" in order and how.temperature == 0: return F.one_hot(penalise(z, ids, how.repetition_penalty).argmax(-1), z.shape[-1]).float()
    for what in order.split():
        if what == "penalty": z = penalise(z, ids, how.repetition_penalty)
        if what == "temperature": z = scale(z, how.temperature)
        if what == "k": z = keep_top_k(z, how.top_k)
        if what == "p": z = keep_top_p(z, how.top_p)
        if what == "min": z = keep_min_p(z, how.min_p)
    return z.softmax(-1)

@fault("next_probabilities", "multiplies by the temperature", "scores are multiplied by the temperature")
def next_times_temperature(logits, ids, how): return _next(logits, ids, how, scale=lambda z, t: z * t)

@fault("next_probabilities", "temperature after the cuts", "the temperature comes last")
def next_temperature_last(logits, ids, how): return _next(logits, ids, how, "penalty k p min temperature")

@fault("next_probabilities", "temperature 0 divides by zero: nan", "at temperature 0 the likeliest token does not get everything")
def next_zero_is_nan(logits, ids, how):
    z = penalise(logits, ids, how.repetition_penalty) / how.temperature if how.temperature else penalise(logits, ids, how.repetition_penalty) * torch.inf
    return keep_min_p(keep_top_p(keep_top_k(z, how.top_k), how.top_p), how.min_p).softmax(-1)

@fault("next_probabilities", "temperature 0 treated as 1 (falsy)", "at temperature 0 the likeliest token does not get everything")
def next_zero_is_one(logits, ids, how):
    z = penalise(logits, ids, how.repetition_penalty) / (how.temperature or 1.)
    return keep_min_p(keep_top_p(keep_top_k(z, how.top_k), how.top_p), how.min_p).softmax(-1)

@fault("next_probabilities", "top-p before top-k", "top-p comes before top-k")
def next_p_before_k(logits, ids, how): return _next(logits, ids, how, "penalty temperature p k min")

@fault("next_probabilities", "penalty forgotten", "the repetition penalty has no effect")
def next_without_penalty(logits, ids, how):
    z = logits / how.temperature if how.temperature else logits * 1e6
    return keep_min_p(keep_top_p(keep_top_k(z, how.top_k), how.top_p), how.min_p).softmax(-1)

@fault("next_probabilities", "shares of the kept not renormalised", "the shares are those from before the cuts")
def next_not_renormalised(logits, ids, how):
    z = penalise(logits, ids, how.repetition_penalty)
    if how.temperature == 0: return F.one_hot(z.argmax(-1), z.shape[-1]).float()
    z = z / how.temperature
    kept = keep_min_p(keep_top_p(keep_top_k(z, how.top_k), how.top_p), how.min_p)
    return z.softmax(-1).masked_fill(kept == -torch.inf, 0.)

@fault("next_probabilities", "min-p not applied", "min-p has no effect")
def next_without_min_p(logits, ids, how): return _next(logits, ids, how, "penalty temperature k p")

@fault("next_probabilities", "min-p before top-p", "min-p comes before top-p")
def next_min_p_first(logits, ids, how): return _next(logits, ids, how, "penalty temperature k min p")

@fault("next_probabilities", "returns scores, softmax forgotten", "scores are returned")
def next_returns_scores(logits, ids, how):
    z = penalise(logits, ids, how.repetition_penalty)
    if how.temperature == 0: return F.one_hot(z.argmax(-1), z.shape[-1]).float()
    return keep_min_p(keep_top_p(keep_top_k(z / how.temperature, how.top_k), how.top_p), how.min_p)

# ---------------------------------------------------------------- pre_tokens
@fault("pre_tokens", "splits at spaces: they are lost", "spaces are thrown away")
def cut_str_split(text, pattern=GPT2): return text.split() if pattern == GPT2 else regex.findall(pattern, text)

@fault("pre_tokens", "the pattern argument is ignored", "the given pattern is ignored")
def cut_ignores_pattern(text, pattern=GPT2): return regex.findall(GPT2, text)

@fault("pre_tokens", "the space before a word is a piece of its own (' ?' left out)", "the pattern's spaces are left out")
def cut_space_alone(text, pattern=GPT2):
    if pattern == GPT2: pattern = r"'(?:[sdmt]|ll|ve|re)|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)

@fault("pre_tokens", "lookahead \\s+(?!\\S) missing: runs of spaces swallow the one before the word", "a run of spaces is taken whole")
def cut_without_lookahead(text, pattern=GPT2):
    if pattern == GPT2: pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
    return regex.findall(pattern, text)

@fault("pre_tokens", "contractions missing: 'll is cut into ' and ll", "contractions such as 'll are not pieces")
def cut_without_contractions(text, pattern=GPT2):
    if pattern == GPT2: pattern = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)

@fault("pre_tokens", "ASCII letters only (re, [A-Za-z]): other scripts are lost", "letters outside ASCII are lost")
def cut_ascii_only(text, pattern=GPT2):
    if pattern == GPT2: return re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[!-/:-@\[-`{-~]+|\s+(?!\S)|\s+", text)
    return regex.findall(pattern, text)

@fault("pre_tokens", "capturing group: findall returns what the group caught", "the results are not pieces of text")
def cut_capturing_group(text, pattern=GPT2):
    if pattern == GPT2: pattern = r"'([sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)

@fault("pre_tokens", "regex.split: empty pieces between", "there are empty pieces")
def cut_by_split(text, pattern=GPT2): return regex.split(f"({pattern})", text)

@fault("pre_tokens", "text lower-cased / normalised first", "the text is converted to lower case first")
def cut_lower_cases(text, pattern=GPT2): return regex.findall(pattern, text.lower())

@fault("pre_tokens", "strips the text: spaces at the edges are lost", "the spaces at the ends of the text are stripped")
def cut_strips(text, pattern=GPT2): return regex.findall(pattern, text.strip())

@fault("pre_tokens", "contractions case-insensitive, unlike GPT-2's", "contractions are matched in capitals too")
def cut_ignores_case(text, pattern=GPT2): return regex.findall(pattern, text, flags=regex.IGNORECASE)

@fault("pre_tokens", "unicode normalised (NFKC): characters change", "the characters are changed")
def cut_normalises(text, pattern=GPT2):
    import unicodedata
    return regex.findall(pattern, unicodedata.normalize("NFKC", text))

# ---------------------------------------------------------------- merge
@fault("merge", "overlap: goes on by one after a join, so a joined id is used twice", "pairs overlap")
def merge_overlaps(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i+1]) == pair: out.append(new)
        else: out.append(ids[i])
        i += 1
    return out

@fault("merge", "loop ends one early: the last id is lost", "the last id is lost")
def merge_loses_last(ids, pair, new):
    out, i = [], 0
    while i < len(ids) - 1:
        if ids[i] == pair[0] and ids[i+1] == pair[1]:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out

@fault("merge", "only the first occurrence is joined", "only the first pair is joined")
def merge_first_only(ids, pair, new):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == tuple(pair): return [*ids[:i], new, *ids[i + 2:]]
    return list(ids)

@fault("merge", "changes the list it was given", "an operation in place does that")
def merge_in_place(ids, pair, new):
    i = 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair: ids[i:i + 2] = [new]
        i += 1
    return ids

@fault("merge", "joins the pair in either order", "the pair is joined in either order")
def merge_either_order(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i < len(ids) - 1 and {ids[i], ids[i+1]} == set(pair):
            out.append(new); i += 2
        else:
            out.append(ids[i]); i += 1
    return out

@fault("merge", "reads beyond the end: IndexError when the first of the pair stands last", "an index runs past the end")
def merge_index_error(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and ids[i+1] == pair[1]:
            out.append(new); i += 2
        else:
            out.append(ids[i]); i += 1
    return out

@fault("merge", "from the right: odd runs joined at the wrong end", "pairs are joined from the right")
def merge_from_right(ids, pair, new):
    out, i = [], len(ids) - 1
    while i >= 0:
        if i > 0 and (ids[i-1], ids[i]) == pair:
            out.insert(0, new); i -= 2
        else:
            out.insert(0, ids[i]); i -= 1
    return out

@fault("merge", "edge i < len(ids)−2: a pair at the very end is not joined", "a pair at the very end is missed")
def merge_misses_end(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i < len(ids) - 2 and (ids[i], ids[i+1]) == pair:
            out.append(new); i += 2
        else:
            out.append(ids[i]); i += 1
    return out

@fault("merge", "works on a string of ids (replace): 1,2 found inside 11,2", "ids are compared as text")
def merge_by_string(ids, pair, new):
    s = ",".join(map(str, ids)).replace(f"{pair[0]},{pair[1]}", str(new))
    return [int(x) for x in s.split(",")] if s else []

# ---------------------------------------------------------------- learn_merges
def _join(pieces, pair):
    out, i = [], 0
    while i < len(pieces):
        if tuple(pieces[i:i+2]) == pair: out.append(pieces[i] + pieces[i+1]); i += 2
        else: out.append(pieces[i]); i += 1
    return out

def _learn(words, n, key=lambda c, p: (c[p], p), weight=lambda n: n, join=_join):
    "Right unless told otherwise."
    split, merges = {w: [bytes([b]) for b in w] for w in words}, []
    for _ in range(n):
        counts = Counter()
        for w, pieces in split.items():
            for p in pairwise(pieces): counts[p] += weight(words[w])
        if not counts:
            warnings.warn("no pair is left", stacklevel=2)
            break
        best = max(counts, key=lambda p: key(counts, p))
        merges.append(best)
        split = {w: join(pieces, best) for w, pieces in split.items()}
    return merges

@fault("learn_merges", "ties go to the pair met first, not the greater one", "ties go to the pair that was seen first")
def learn_ties_first(words, num_merges, progress=False): return _learn(words, num_merges, key=lambda c, p: c[p])

@fault("learn_merges", "ties go to the smaller pair", "ties go to the lesser pair")
def learn_ties_smallest(words, num_merges, progress=False):
    return _learn(words, num_merges, key=lambda c, p: (c[p], tuple((*tuple(-b for b in x), 1) for x in p)))

@fault("learn_merges", "word counts ignored: each distinct word counts once", "a word counts only once")
def learn_ignores_counts(words, num_merges, progress=False): return _learn(words, num_merges, weight=lambda n: 1)

@fault("learn_merges", "counts taken once and never again: new pairs never learnt", "the pairs are counted only once, at the start")
def learn_counts_once(words, num_merges, progress=False):
    counts = Counter()
    for w, n in words.items():
        for a, b in pairwise(w): counts[bytes([a]), bytes([b])] += n
    return sorted(counts, key=lambda p: (counts[p], p), reverse=True)[:num_merges]

@fault("learn_merges", "pairs across word borders counted", "pairs are counted across the boundary between two words")
def learn_crosses_words(words, num_merges, progress=False):
    pieces = [bytes([b]) for w, n in words.items() for _ in range(n) for b in w]
    return _learn({b"".join(pieces): 1}, num_merges)

@fault("learn_merges", "ties compared by token id (age), not by bytes", "ties go to the greater ids")
def learn_ties_by_id(words, num_merges, progress=False):
    ids = {w: list(w) for w in words}
    vocab, merges = [bytes([i]) for i in range(256)], []
    while len(merges) < num_merges:
        counts = Counter()
        for w, seq in ids.items():
            for p in pairwise(seq): counts[p] += words[w]
        if not counts: break
        best = max(counts, key=lambda p: (counts[p], p))
        merges.append((vocab[best[0]], vocab[best[1]]))
        vocab.append(b"".join(merges[-1]))
        for w, seq in ids.items():
            out, i = [], 0
            while i < len(seq):
                if tuple(seq[i:i+2]) == best: out.append(len(vocab) - 1); i += 2
                else: out.append(seq[i]); i += 1
            ids[w] = out
    return merges

@fault("learn_merges", "ties compared by the joined bytes instead of the pair", "ties are broken by the joined bytes")
def learn_ties_by_joined(words, num_merges, progress=False): return _learn(words, num_merges, key=lambda c, p: (c[p], p[0] + p[1]))

@fault("learn_merges", "neighbours' counts not lowered after a merge (incremental update forgets the old pairs)", "pairs that a merge has removed keep their old counts")
def learn_stale_counts(words, num_merges, progress=False):
    split, merges, counts = {w: [bytes([b]) for b in w] for w in words}, [], Counter()
    for w, pieces in split.items():
        for p in pairwise(pieces): counts[p] += words[w]
    while counts and len(merges) < num_merges:
        best = max(counts, key=lambda p: (counts[p], p))
        merges.append(best)
        del counts[best]
        for w, pieces in split.items():
            new = _join(pieces, best)
            if len(new) < len(pieces):
                split[w] = new
                for p in pairwise(new):
                    if best[0] + best[1] in p: counts[p] += words[w]
    return merges

@fault("learn_merges", "fails (max of nothing) when no pair is left", "an error is raised when no pair is left")
def learn_fails_when_empty(words, num_merges, progress=False):
    split, merges = {w: [bytes([b]) for b in w] for w in words}, []
    for _ in range(num_merges):
        counts = Counter()
        for w, pieces in split.items():
            for p in pairwise(pieces): counts[p] += words[w]
        best = max(counts, key=lambda p: (counts[p], p))
        merges.append(best)
        split = {w: _join(pieces, best) for w, pieces in split.items()}
    return merges

@fault("learn_merges", "num_merges taken for the vocabulary's size: 256 fewer merges", "the number of merges is treated as the size of the vocabulary")
def learn_vocab_size(words, num_merges, progress=False): return _learn(words, num_merges - 256)

@fault("learn_merges", "stops when a pair occurs only once", "a pair that occurs once is never joined")
def learn_stops_at_one(words, num_merges, progress=False):
    split, merges = {w: [bytes([b]) for b in w] for w in words}, []
    while len(merges) < num_merges:
        counts = Counter()
        for w, pieces in split.items():
            for p in pairwise(pieces): counts[p] += words[w]
        if not counts: break
        best = max(counts, key=lambda p: (counts[p], p))
        if counts[best] < 2: break
        merges.append(best)
        split = {w: _join(pieces, best) for w, pieces in split.items()}
    return merges

@fault("learn_merges", "a pair counted once per word, however often it occurs in it", "a pair counts once per word, however often it occurs there")
def learn_once_per_word(words, num_merges, progress=False):
    split, merges = {w: [bytes([b]) for b in w] for w in words}, []
    while len(merges) < num_merges:
        counts = Counter()
        for w, pieces in split.items():
            for p in set(pairwise(pieces)): counts[p] += words[w]
        if not counts: break
        best = max(counts, key=lambda p: (counts[p], p))
        merges.append(best)
        split = {w: _join(pieces, best) for w, pieces in split.items()}
    return merges

@fault("learn_merges", "only the first occurrence in each word is joined", "a merge is applied only at its first place in each word")
def learn_joins_first_only(words, num_merges, progress=False):
    def join(pieces, pair):
        for i in range(len(pieces) - 1):
            if (pieces[i], pieces[i+1]) == pair: return [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2:]]
        return pieces
    return _learn(words, num_merges, join=join)

# ---------------------------------------------------------------- BpeTokenizer
class _Tok:
    "Right, except for what a subclass changes."
    def __init__(self, vocab, merges, special_tokens=None, pattern=GPT2):
        self.vocab, self.merges, self.pattern = dict(vocab), [tuple(m) for m in merges], pattern
        self.ids = {b: i for i, b in self.vocab.items()}
        self.rank = {m: i for i, m in reversed(list(enumerate(self.merges)))}
        self.special_tokens = {}
        for s in special_tokens or ():
            b = s.encode("utf-8")
            if b not in self.ids:
                n = max(self.vocab) + 1
                self.vocab[n], self.ids[b] = b, n
            self.special_tokens[s] = self.ids[b]
    def byte_pieces(self, word): return [bytes([b]) for b in word.encode("utf-8")]
    def choose(self, pairs): return min(pairs, key=lambda p: self.rank.get(p, math.inf))
    def word(self, word):
        pieces = self.byte_pieces(word)
        while len(pieces) > 1:
            best = self.choose(list(pairwise(pieces)))
            if best not in self.rank: break
            pieces = _join(pieces, best)
        return self.to_ids(pieces)
    def to_ids(self, pieces): return [self.ids[p] for p in pieces]
    def words(self, text): return regex.findall(self.pattern, text)
    def ordinary(self, text): return [i for w in self.words(text) for i in self.word(w)]
    def special_pattern(self):
        return "(" + "|".join(re.escape(s) for s in sorted(self.special_tokens, key=len, reverse=True)) + ")"
    def encode(self, text):
        if not self.special_tokens: return self.ordinary(text)
        out = []
        for part in re.split(self.special_pattern(), text):
            if part in self.special_tokens: out.append(self.special_tokens[part])
            elif part: out += self.ordinary(part)
        return out
    def encode_iterable(self, pieces): yield from self.encode("".join(pieces))
    def decode(self, ids): return b"".join(self.vocab[i] for i in ids).decode("utf-8", errors="replace")

@fault("BpeTokenizer", "longest token that fits, greedily, instead of merges in the order learnt", "the longest token that fits is taken each time")
class TokGreedyLongest(_Tok):
    def word(self, word):
        b, i, out = word.encode(), 0, []
        while i < len(b):
            j = next(j for j in range(len(b), i, -1) if b[i:j] in self.ids)
            out.append(self.ids[b[i:j]])
            i = j
        return out

@fault("BpeTokenizer", "joins the leftmost known pair, not the one learnt first", "pairs are joined from left to right")
class TokLeftmostPair(_Tok):
    def choose(self, pairs): return next((p for p in pairs if p in self.rank), pairs[0])

@fault("BpeTokenizer", "joins the pair learnt last", "the pair that was learnt last is joined first")
class TokLastLearntFirst(_Tok):
    def choose(self, pairs): return max(pairs, key=lambda p: self.rank.get(p, -1))

@fault("BpeTokenizer", "decodes token by token: characters split over tokens are lost", "each id is decoded by itself")
class TokDecodesEachToken(_Tok):
    def decode(self, ids): return "".join(self.vocab[i].decode("utf-8", errors="replace") for i in ids)

@fault("BpeTokenizer", "strict decoding: fails on bytes that are no UTF-8", "bytes that are not valid UTF-8 raise an error")
class TokDecodesStrictly(_Tok):
    def decode(self, ids): return b"".join(self.vocab[i] for i in ids).decode("utf-8")

@fault("BpeTokenizer", "errors='ignore': wrong bytes vanish instead of U+FFFD", "bytes that are not valid UTF-8 are dropped")
class TokIgnoresErrors(_Tok):
    def decode(self, ids): return b"".join([self.vocab[i] for i in ids]).decode("utf-8", "ignore")

@fault("BpeTokenizer", "no pre-tokens: merges over the edges of words", "the text is not cut into pre-tokens")
class TokWithoutPreTokens(_Tok):
    def words(self, text): return [text] if text else []

@fault("BpeTokenizer", "special tokens encoded as plain text", "special tokens are encoded like other text")
class TokSpecialAsText(_Tok):
    def encode(self, text): return self.ordinary(text)

@fault("BpeTokenizer", "special tokens tried in the order given, the shorter first", "of special tokens that overlap")
class TokShortSpecialFirst(_Tok):
    def special_pattern(self): return "(" + "|".join(re.escape(s) for s in self.special_tokens) + ")"

@fault("BpeTokenizer", "special tokens not escaped in the regular expression", "escape them in the pattern")
class TokSpecialNotEscaped(_Tok):
    def special_pattern(self): return "(" + "|".join(sorted(self.special_tokens, key=len, reverse=True)) + ")"

@fault("BpeTokenizer", "special tokens split away and dropped (no capturing group)", "special tokens are thrown away")
class TokDropsSpecial(_Tok):
    def special_pattern(self): return super().special_pattern().strip("()")

@fault("BpeTokenizer", "special tokens are left out when decoding", "special tokens are left out in decoding")
class TokSkipsSpecialInDecode(_Tok):
    def decode(self, ids): return super().decode([i for i in ids if i not in self.special_tokens.values()])

@fault("BpeTokenizer", "encode_iterable encodes each piece by itself: cuts through words", "a stream's chunks are encoded one by one")
class TokStreamsByPiece(_Tok):
    def encode_iterable(self, pieces):
        for piece in pieces: yield from self.encode(piece)

@fault("BpeTokenizer", "encode_iterable holds back only to the last space: special tokens and runs of spaces are cut", "a stream is cut between")
class TokStreamsBySpace(_Tok):
    def encode_iterable(self, pieces):
        rest = ""
        for piece in pieces:
            rest += piece
            at = rest.rfind(" ")
            if at >= 0:
                yield from self.encode(rest[:at])
                rest = rest[at:]
        yield from self.encode(rest)

@fault("BpeTokenizer", "encode_iterable: what is held back at the end is never given out", "the last ids of a stream are never returned")
class TokStreamLosesTail(_Tok):
    def encode_iterable(self, pieces):
        ids = self.encode("".join(pieces))
        yield from ids[:-1]

@fault("BpeTokenizer", "characters (code points) instead of UTF-8 bytes", "characters are treated as bytes")
class TokCodePoints(_Tok):
    def byte_pieces(self, word): return [bytes([ord(c)]) for c in word]

@fault("BpeTokenizer", "each merge is applied once at most, at the first place", "each merge is tried once")
class TokJoinsOncePerMerge(_Tok):
    def word(self, word):
        pieces = self.byte_pieces(word)
        for pair in self.merges:
            for i in range(len(pieces) - 1):
                if (pieces[i], pieces[i+1]) == pair:
                    pieces[i:i+2] = [b"".join(pair)]
                    break
        return self.to_ids(pieces)

@fault("BpeTokenizer", "ids of merged tokens taken as 256 + rank instead of looked up in the vocabulary", "merged tokens are simply numbered from 256")
class TokIdsFromRank(_Tok):
    def to_ids(self, pieces):
        made = {a + b: 256 + r for (a, b), r in self.rank.items()}
        return [made.get(p, self.ids[p]) for p in pieces]

@fault("BpeTokenizer", "a byte's id taken to be the byte, not looked up in the vocabulary (GPT-2 shuffles them)", "a byte's value is used as its id")
class TokByteIsId(_Tok):
    def to_ids(self, pieces): return [p[0] if len(p) == 1 else self.ids[p] for p in pieces]

@fault("BpeTokenizer", "the pattern it is given is ignored", "the given pattern is ignored")
class TokIgnoresPattern(_Tok):
    def words(self, text): return regex.findall(GPT2, text)

@fault("BpeTokenizer", "a special token already in the vocabulary gets a second id", "where a special token is in the ")
class TokSpecialSecondId(_Tok):
    def __init__(self, vocab, merges, special_tokens=None, pattern=GPT2):
        super().__init__(vocab, merges, None, pattern)
        for s in special_tokens or ():
            n = len(self.vocab)
            self.vocab[n] = s.encode()
            self.special_tokens[s] = n

@fault("BpeTokenizer", "a word that is in the vocabulary is taken whole, merges or not", "a word that is in the vocabulary is taken whole")
class TokWholeWordFirst(_Tok):
    def word(self, word):
        b = word.encode()
        return [self.ids[b]] if b in self.ids else super().word(word)

# ---------------------------------------------------------------- get_batch
def _rng(seed, iteration): return np.random.default_rng([seed, np.random.randint(2**31) if iteration is None else iteration])

def _rows(dataset, starts, t, shift=1, kind=np.int64):
    x = np.stack([dataset[s:s + t] for s in starts]).astype(kind)
    y = np.stack([dataset[s + shift:s + shift + t] for s in starts]).astype(kind)
    return torch.from_numpy(x), torch.from_numpy(y)

edits("get_batch", """
def part(dataset, batch_size, t, device="cpu", *, seed=0, iteration=None, order="random"):
    chance = _rng(seed, iteration)
    starts = chance.integers(0, len(dataset) - t, batch_size)
    x, y = _rows(dataset, starts, t)
    return x.to(device), y.to(device)
""",
    ("batch_not_shifted", "targets not shifted: the same as the inputs", "the targets are the inputs themselves", "starts, t)", "starts, t, 0)"),
    ("batch_misses_last_start", "last start left out: high is exclusive (len − t − 1)", "the last legal start is never drawn", "- t,", "- t - 1,"),
    ("batch_reads_past_end", "starts one too many: the last target lies beyond the end", "does a row begin too near the end?", "- t,", "- t + 1,"),
    ("batch_misses_first_start", "off by one at the front: start 0 is never drawn", "the first place is never drawn", "integers(0,", "integers(1,"),
    ("batch_ignores_seed", "seed and iteration ignored: another batch each time", "it draws from the generator that all share", "chance.integers(0, len(dataset) - t, batch_size)", "torch.randint(len(dataset) - t, (batch_size,)).tolist()"),
    ("batch_ignores_iteration", "iteration ignored: every step sees the same batch", "the iteration is ignored", "_rng(seed, iteration)", "np.random.default_rng(seed)"),
    ("batch_adds_seed_and_iteration", "seed + iteration: seed 1 sees at step 5 what seed 0 sees at 6", "seed and iteration are added", "_rng(seed, iteration)", "np.random.default_rng(seed + iteration)"),
    ("batch_int32", "ids not int64 (int32)", "the ids have a type other than int64", "starts, t)", "starts, t, kind=np.int32)"),
    ("batch_shifted_by_two", "targets shifted by two", "the targets are more than one place later", "- t,", "- t - 1,", "starts, t)", "starts, t, 2)"),
    ("batch_swapped", "inputs and targets the wrong way round", "inputs and targets have changed places", "x, y =", "y, x ="),
    ("batch_multiples_only", "only starts at multiples of the row length", "rows begin only at multiples of their length", "integers(0, len(dataset) - t, batch_size)", "integers(0, (len(dataset) - 1) // t, batch_size) * t"),
    ("batch_rolls", "targets wrap round within the row (np.roll): the last target is the first input", "the last target of a row is not the next id of t", "y.to(device)", "x.roll(-1, dims=1).to(device)"),
    ("batch_rows_too_short", "max_seq_len + 1 ids cut, and then both of full length less one: rows one too short", "rows are one id too short", "x.to(device), y.to(device)", "x[:, :-1].to(device), y[:, :-1].to(device)"),
    ("batch_multiplies_seed", "seed × iteration: at step 0 all seeds alike, and steps repeat among seeds", "seed and iteration are multiplied", "_rng(seed, iteration)", "np.random.default_rng(seed * iteration)"),
    ("batch_ignores_order", "the order argument is ignored", "`order` has no effect", "x, y", "x, y"))
