"""Part IV: a whole step of training, forward, backward and optimiser, beside the same model out of torch's own layers and beside `transformers`."""
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from bench.cases.generating import llama
from bench.cases.pairs import same
from bench.runner import case

SIZES = {"large": ((10_000, 256, 512, 6, 8, 1344), 4), "small": ((1024, 64, 128, 4, 4, 352), 12)}   # vocabulary, context, width, layers, heads, hidden width; sequences in a batch


class Block(nn.Module):
    "A Llama block of torch's own layers."
    def __init__(self, d, heads, d_ff):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.RMSNorm(d, eps=1e-5) for _ in range(2))
        self.q, self.k, self.v, self.out = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (nn.Linear(*shape, bias=False) for shape in ((d, d_ff), (d, d_ff), (d_ff, d)))

    def forward(self, x, turn):
        y = self.norms[0](x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class BuiltIn(nn.Module):
    "The Transformer of this course, out of torch's own layers; rotary positions, which torch has none of, as Meta's Llama computes them."
    def __init__(self, vocab, context, d, layers, heads, d_ff):
        super().__init__()
        self.embedding, self.head, self.norm = nn.Embedding(vocab, d), nn.Linear(d, vocab, bias=False), nn.RMSNorm(d, eps=1e-5)
        self.blocks = nn.ModuleList(Block(d, heads, d_ff) for _ in range(layers))
        angles = torch.outer(torch.arange(context), 10_000. ** -(torch.arange(0, d // heads, 2) / (d // heads)))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def turn(self, x):
        if torch.compiler.is_compiling():   # the compiler knows no complex numbers
            a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a*self.cos - b*self.sin, a*self.sin + b*self.cos], -1).flatten(-2).to(x.dtype)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(self.cos, self.sin)).flatten(-2).to(x.dtype)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks: x = block(x, self.turn)
        return self.head(self.norm(x))


@torch.no_grad()
def built_in(model):
    "The same weights in torch's own layers."
    c = model.config
    theirs = BuiltIn(c.vocab_size, c.max_seq_len, c.d_model, c.num_layers, c.num_heads, c.d_ff)
    pairs = [(theirs.embedding, model.embedding), (theirs.head, model.head), (theirs.norm, model.norm)]
    for a, b in zip(theirs.blocks, model.blocks):
        pairs += [*zip(a.norms, (b.attention_norm, b.ffn_norm)), *zip((a.q, a.k, a.v, a.out), (b.attention.q_proj, b.attention.k_proj, b.attention.v_proj, b.attention.output_proj)),
                  *zip((a.gate, a.up, a.down), (b.ffn.w1, b.ffn.w3, b.ffn.w2))]
    for their, ours in pairs: their.weight.copy_(ours.weight)
    return theirs


def stepper(logits_of, loss_of, optimizer, batch, precision, compiled):
    "A function that takes one step and returns the loss before it."
    def loss():
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"): logits = logits_of(batch[:, :-1])
        return loss_of(logits.flatten(0, 1), batch[:, 1:].flatten())
    if compiled: loss = torch.compile(loss)

    def step():
        optimizer.zero_grad()
        out = loss()
        out.backward()
        optimizer.step()
        return out.detach().float()
    return step


def steppers(device, shape, batch_size, precision, compiled, peer):
    "Two functions that take the same steps, from the same weights."
    from llm_course.loss import cross_entropy
    from llm_course.optim import AdamW
    from llm_course.transformer import Transformer
    model = Transformer(*shape)
    theirs = peer(model).to(device).train()
    model, batch = model.to(device), torch.randint(shape[0], (batch_size, shape[1] + 1), device=device)
    their_logits = (lambda ids: theirs(ids, use_cache=False).logits) if peer is llama else theirs
    torch.testing.assert_close(model(batch[:, :-1]), their_logits(batch[:, :-1]), rtol=1e-4, atol=1e-4)
    ours_by, theirs_by = AdamW(model.parameters(), lr=1e-3), torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
    pair = (stepper(model, cross_entropy, ours_by, batch, precision, compiled),
                stepper(their_logits, lambda logits, ids: F.cross_entropy(logits.float(), ids), theirs_by, batch, precision, compiled))
    for _ in range(3): same(*pair, rtol=1e-2, atol=1e-2)   # they stay together, step by step; and what is compiled, is compiled now
    return pair


def only_products(device, shape, batch_size, joined=False):
    "The matrix products of a step, there and back, and the attention kernel, with nothing between them."
    vocab, context, d, layers, heads, d_ff = shape
    block = [(3*d, d), (d, d), (2*d_ff, d), (d, d_ff)] if joined else 4*[(d, d)] + 2*[(d_ff, d)] + [(d, d_ff)]
    weights = [torch.randn(size, device=device) for size in layers*block + [(vocab, d)]]
    rows = {size: torch.randn(batch_size * context, size, device=device) for w in weights for size in w.shape}
    q, k, v = (torch.randn(batch_size, heads, context, d // heads, device=device, requires_grad=True) for _ in range(3))

    def run():
        for w in weights: rows[w.shape[1]] @ w.T, rows[w.shape[0]] @ w, rows[w.shape[0]].T @ rows[w.shape[1]]
        for _ in range(layers): torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True).sum(), (q, k, v))
    return run


@case(peer="a whole step of transformers.LlamaForCausalLM, compiled", package="transformers")
def products_alone(device):
    "The matrix products and the attention of a step of the large model, float32, with nothing between them."
    return only_products(device, *SIZES["large"]), steppers(device, *SIZES["large"], "float32", True, llama)[1]


@case(peer="the same products one by one")
def products_joined(device):
    "The products of `products_alone` with queries, keys and values in one, gate and value in another."
    return only_products(device, *SIZES["large"], joined=True), only_products(device, *SIZES["large"])


def register(size, precision, way, rival):
    "A race for each size, precision, way of running, and rival."
    shape, batch_size = SIZES[size]
    peer, name, package = (built_in, "the same model of torch's own layers", "torch") if rival == "torch" else (llama, "transformers.LlamaForCausalLM", "transformers")
    def race(device): return steppers(device, shape, batch_size, precision, way == "compiled", peer)
    vocab, context, d, layers, heads, d_ff = shape
    race.__name__ = f"step_{size}_{precision}_{way}_{rival}"
    race.__doc__ = f"A step of training, V {vocab:,}, d {d}, {layers} layers, {heads} heads, d_ff {d_ff}, {batch_size} sequences of {context} tokens, {precision}, {way}."
    case(peer=name, package=package)(race)


for choice in product(SIZES, ("float32", "bfloat16"), ("eager", "compiled"), ("torch", "transformers")): register(*choice)
