"""Part IV: writing 128 tokens after a prompt of 16, one text, beside `generate` of Hugging Face's library on the same weights."""
from timeit import timeit

import torch

from bench.runner import case

VECTORS = "the model's matrices times a vector, once for each token"


def llama(model):
    "The same weights as a `LlamaForCausalLM`, which turns the two halves of a head instead of neighbours."
    from transformers import LlamaConfig, LlamaForCausalLM
    c = model.config
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        max_position_embeddings=c.max_seq_len, rms_norm_eps=1e-5, rope_theta=c.rope_theta, tie_word_embeddings=c.tie,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)).eval()
    halves = lambda w: w.unflatten(0, (c.num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    inner, pairs = theirs.model, [(theirs.lm_head, model.head), (theirs.model.embed_tokens, model.embedding), (theirs.model.norm, model.norm)]
    with torch.no_grad():
        for their, ours in zip(inner.layers, model.blocks):
            a, b = their.self_attn, ours.attention
            a.q_proj.weight.copy_(halves(b.q_proj.weight))
            a.k_proj.weight.copy_(halves(b.k_proj.weight))
            pairs += [(a.v_proj, b.v_proj), (a.o_proj, b.output_proj), (their.input_layernorm, ours.attention_norm), (their.post_attention_layernorm, ours.ffn_norm),
                      (their.mlp.gate_proj, ours.ffn.w1), (their.mlp.up_proj, ours.ffn.w3), (their.mlp.down_proj, ours.ffn.w2)]
        for their, ours in pairs: their.weight.copy_(ours.weight)
    return theirs


def writers(device, *shape):
    "Two functions that write the same greedy text, and the products that each of its tokens needs."
    from llm_course.generating import generate_ids
    from llm_course.transformer import Transformer
    model = Transformer(*shape).eval()
    with torch.no_grad(): model.head.weight.mul_(10)   # favourites that are no matter of rounding
    theirs, model, ids = llama(model).to(device), model.to(device), torch.randint(shape[0], (1, 16), device=device)
    ours = lambda: generate_ids(model, ids, 128, temperature=0.)
    peer = lambda: theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=128, do_sample=False)
    assert torch.equal(ours(), peer()), "the greedy texts differ"
    return ours, peer, only_vectors([p.detach() for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embedding")], 128)


@torch.inference_mode()
def only_vectors(weights, times):
    "Every matrix times a vector, so many times, with nothing between them; the matrices lie in memory as is fastest here."
    like = {"device": weights[0].device, "dtype": weights[0].dtype}
    inputs = {size: torch.randn(1, size, **like) for w in weights for size in w.shape}

    def in_parts(parts):
        pairs = [(w.unflatten(0, (parts, -1)), inputs[w.shape[1]].mT.expand(parts, -1, 1)) for w in weights if w.shape[0] % parts == 0]
        if len(pairs) < len(weights): return products(weights)

        @torch.inference_mode()
        def once():
            for matrix, column in pairs: torch.bmm(matrix, column)
        return once

    def products(weights):
        rows = [(inputs[w.shape[1]], w.T, torch.empty(1, w.shape[0], **like)) for w in weights]

        @torch.inference_mode()
        def once():
            for row, matrix, out in rows: torch.mm(row, matrix, out=out)
        return once

    def seconds(once):
        once()
        return min(timeit(lambda: (once(), weights[0].new_zeros(1).item()), number=3) for _ in range(5))   # a GPU is waited for

    ways = [products(weights), products([w.T.contiguous().T for w in weights]), in_parts(2), in_parts(4)]   # by rows, by columns, as a batch of parts
    fastest = min(ways, key=seconds)

    def run():
        for _ in range(times): fastest()
    return run


@case(peer="transformers generate", package="transformers", limit=VECTORS)
def generate(device):
    "128 tokens, greedily, by a model of 6 layers of width 512 with 10,000 tokens."
    return writers(device, 10_000, 256, 512, 6, 8, 1344)


@case(peer="transformers generate", package="transformers", limit=VECTORS)
def generate_small(device):
    "128 tokens, greedily, by a model of 4 layers of width 128 with 1,024 tokens."
    return writers(device, 1024, 256, 128, 4, 4, 352)


def rounded(precision, device):
    "The same writer with rounded weights, beside itself in float32."
    from copy import deepcopy

    from llm_course.engine.int8 import at_precision
    from llm_course.generating import generate_ids
    from llm_course.transformer import Transformer
    model = Transformer(10_000, 256, 512, 6, 8, 1344).eval().to(device)
    ids = torch.randint(10_000, (1, 16), device=device)
    small = at_precision(deepcopy(model), precision)
    return lambda: generate_ids(small, ids, 128, temperature=0.), lambda: generate_ids(model, ids, 128, temperature=0.)


@case(peer="float32", package="torch")
def generate_int8(device):
    "128 tokens by the model of width 512 whose weights are eight bits each."
    return rounded("int8", device)


@case(peer="float32", package="torch")
def generate_int4(device):
    "The same with four bits."
    return rounded("int4", device)
