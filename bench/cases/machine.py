"""Part IV: a whole step of training, forward, backward and optimiser, beside the same model out of torch's own layers and beside `transformers`."""
from itertools import product
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bench.cases.generating import llama
from bench.cases.pairs import same
from bench.runner import case

PRODUCTS = "the matrix products and the attention kernel of the step, forward and backward, alone"
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


def steppers(device, shape, batch_size, precision, compiled, peer, lr=1e-3):
    "Two functions that take the same steps, from the same weights."
    from llm_course.loss import cross_entropy
    from llm_course.optim import AdamW
    from llm_course.transformer import Transformer
    model = Transformer(*shape)
    theirs = peer(model).to(device).train()
    model, batch = model.to(device), torch.randint(shape[0], (batch_size, shape[1] + 1), device=device)
    their_logits = (lambda ids: theirs(ids, use_cache=False).logits) if peer is llama else theirs
    with torch.no_grad(): torch.testing.assert_close(model(batch[:1, :-1]), their_logits(batch[:1, :-1]), rtol=1e-4, atol=1e-4)
    ours_by, theirs_by = AdamW(model.parameters(), lr=lr), torch.optim.AdamW(theirs.parameters(), lr=lr, fused=True)
    pair = (stepper(model, cross_entropy, ours_by, batch, precision, compiled),
                stepper(their_logits, lambda logits, ids: F.cross_entropy(logits.float(), ids), theirs_by, batch, precision, compiled))
    for _ in range(3): same(*pair, rtol=1e-2, atol=1e-2)   # they stay together, step by step; and what is compiled, is compiled now
    return pair


def only_products(device, shape, batch_size, dtype=torch.float32, joined=False):
    "The matrix products of a step, forward and backward, and the attention kernel, with nothing between them."
    vocab, context, d, layers, heads, d_ff = shape
    like = {"device": device, "dtype": dtype}
    block = [(3*d, d), (d, d), (2*d_ff, d), (d, d_ff)] if joined else 4*[(d, d)] + 2*[(d_ff, d)] + [(d, d_ff)]
    weights = [torch.randn(size, **like) for size in layers*block + [(vocab, d)]]
    rows, outs = ({size: torch.randn(batch_size * context, size, **like) for w in weights for size in w.shape} for _ in range(2))
    grads = {w.shape: torch.empty_like(w) for w in weights}
    q, k, v = (torch.randn(batch_size, heads, context, d // heads, requires_grad=True, **like) for _ in range(3))

    def run():
        for w in weights:
            d_out, d_in = w.shape
            torch.mm(rows[d_in], w.T, out=outs[d_out])
            torch.mm(rows[d_out], w, out=outs[d_in])
            torch.mm(rows[d_out].T, rows[d_in], out=grads[w.shape])
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


def training_steps(device, shape, batch_size):
    "A step as `training` takes it and one of Llama with torch's AdamW, each with its defaults and the same settings; and the limit."
    from llm_course.engine.run_config import optimizer_for
    from llm_course.training import TrainConfig, train_step
    from llm_course.transformer import Transformer
    config = TrainConfig(train_data=Path(), val_data=Path())   # its files are not asked for
    model = Transformer(*shape).to(device)
    theirs = llama(model).to(device).train()
    ids = torch.randint(shape[0], (batch_size, shape[1] + 1), device=device)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    optimizer, scaler = optimizer_for(model, config), torch.amp.GradScaler(device, enabled=False)
    for group in optimizer.param_groups: group["lr"] = 1e-4   # with no warm-up, the default would let two equal models part
    settings = dict(lr=1e-4, betas=(config.beta1, config.beta2), eps=1e-8)
    decaying = [{"params": [p for p in theirs.parameters() if (p.ndim > 1) == matrix], "weight_decay": config.weight_decay * matrix} for matrix in (True, False)]
    their_optimizer = torch.optim.AdamW(decaying, **settings)

    def ours(): return train_step(model, optimizer, scaler, [(inputs, targets)], config.grad_clip)[0]

    def peer():
        their_optimizer.zero_grad()
        logits = theirs(inputs, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), config.grad_clip)
        their_optimizer.step()
        return loss.detach()

    for _ in range(3): same(ours, peer, rtol=1e-3, atol=1e-3)   # they stay together, step by step
    return ours, peer, only_products(device, shape, batch_size)


@case(peer="transformers.LlamaForCausalLM, clip_grad_norm_ and torch.optim.AdamW", package="transformers", limit=PRODUCTS)
def train_step(device):
    "A step as `training` takes it by default, in float32, eager: V 10,000, d 512, 6 layers, 8 heads, d_ff 1344, 4 sequences of 256 tokens."
    return training_steps(device, *SIZES["large"])


@case(peer="transformers.LlamaForCausalLM, clip_grad_norm_ and torch.optim.AdamW", package="transformers", limit=PRODUCTS)
def train_step_small(device):
    "A step as `training` takes it by default, in float32, eager: V 1,024, d 128, 4 layers, 4 heads, d_ff 352, 12 sequences of 64 tokens."
    return training_steps(device, *SIZES["small"])


def register(size, precision, way, rival):
    "A race for each size, precision, way of running, and rival."
    shape, batch_size = SIZES[size]
    peer, name, package = (built_in, "the same model of torch's own layers", "torch") if rival == "torch" else (llama, "transformers.LlamaForCausalLM", "transformers")
    def race(device):
        pair = steppers(device, shape, batch_size, precision, way == "compiled", peer)
        return *pair, only_products(device, shape, batch_size, getattr(torch, precision))
    vocab, context, d, layers, heads, d_ff = shape
    race.__name__ = f"step_{size}_{precision}_{way}_{rival}"
    race.__doc__ = f"A step of training, V {vocab:,}, d {d}, {layers} layers, {heads} heads, d_ff {d_ff}, {batch_size} sequences of {context} tokens, {precision}, {way}."
    case(peer=name, package=package, limit=PRODUCTS)(race)


for choice in product(SIZES, ("float32", "bfloat16"), ("eager", "compiled"), ("torch", "transformers")): register(*choice)
