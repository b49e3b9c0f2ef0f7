"""`TransformerBlock` and `Transformer`: against Hugging Face's Llama, against torch's own layers, and against what a language model must never do."""
import copy
import math
import os
import pickle
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from apart import apart
from conftest import stable_id
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_course.attention import ScaledDotProductAttention, attention
from llm_course.engine.kv_cache import new_cache
from llm_course.engine.parts import part_name
from llm_course.linear import Linear
from llm_course.multihead import MultiHeadAttention
from llm_course.softmax import Softmax
from llm_course.transformer import PARTS, ModelConfig, Transformer, TransformerBlock, start_small

SHAPE = dict(vocab_size=50, max_seq_len=16, d_model=32, num_layers=2, num_heads=4, d_ff=40)


def make(seed=0, **changes):
    "A small model whose weights are all of ordinary size, so that nothing hides behind a small start."
    torch.manual_seed(seed)
    model = Transformer(**{**SHAPE, **changes})
    with torch.no_grad():
        for p in model.parameters(): p.copy_(1 + torch.randn_like(p) / 4 if p.ndim == 1 else torch.randn_like(p) * p.shape[1]**-0.5)
    return model


def random_ids(*shape, device="cpu"): return torch.randint(SHAPE["vocab_size"], shape, device=device)


# ---- References

def halves_first(weight, heads):
    "Llama turns feature i with feature i + d/2; we turn neighbours. The same rows, otherwise ordered."
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

def as_llama(model, state):
    "Weights or gradients of ours, by the names and in the layout of theirs."
    c, kv, out = model.config, model.config.num_kv_heads or model.config.num_heads, {}
    names = {"attention_norm": "input_layernorm", "attention.q_proj": "self_attn.q_proj", "attention.k_proj": "self_attn.k_proj",
             "attention.v_proj": "self_attn.v_proj", "attention.output_proj": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn.w1": "mlp.gate_proj", "ffn.w2": "mlp.down_proj", "ffn.w3": "mlp.up_proj"}
    for name, x in state.items():
        name = name.replace("embedding.", "model.embed_tokens.").replace("head.", "lm_head.")
        if name == "norm.weight": name = "model.norm.weight"
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            if "q_proj" in rest: x = halves_first(x, c.num_heads)
            if "k_proj" in rest: x = halves_first(x, kv)
            name = f"model.layers.{layer}.{names[rest.removesuffix('.weight')]}.weight"
        out[name] = x
    return out

def llama(model):
    "Hugging Face's model with the weights of ours."
    from transformers import LlamaConfig, LlamaForCausalLM
    c = model.config
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads or c.num_heads, max_position_embeddings=c.max_seq_len, rms_norm_eps=1e-5, tie_word_embeddings=c.tie, rope_theta=c.rope_theta))
    theirs.load_state_dict(as_llama(model, model.state_dict()))
    return theirs.eval()

VARIANTS = {"plain": {}, "grouped": dict(num_kv_heads=2), "one key head": dict(num_kv_heads=1), "tied": dict(tie=True), "both": dict(num_kv_heads=2, tie=True)}

@pytest.mark.parametrize("variant", VARIANTS)
def test_agrees_with_llama(variant):
    model = make(**VARIANTS[variant])
    theirs, ids, targets = llama(model), random_ids(3, 16), random_ids(3, 16)
    logits, expected = model(ids), theirs(ids).logits
    assert_close(logits, expected)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    F.cross_entropy(expected.flatten(0, 1), targets.flatten()).backward()
    found = as_llama(model, {name: p.grad for name, p in model.named_parameters()})
    wanted = {name: p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == wanted.keys() and len(found) == 9 * 2 + 3 - model.config.tie   # every weight of both
    for name in wanted: assert_close(found[name], wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_rope_theta_reaches_every_block():
    near, far = make(rope_theta=100.), make()
    ids = random_ids(1, 16)
    assert not torch.allclose(near(ids), far(ids))
    assert_close(near(ids), llama(near)(ids).logits)


def block_of_torch(block, x):
    "A block without positions, out of torch's own layers."
    d, heads = x.shape[-1], block.attention.num_heads
    mha = nn.MultiheadAttention(d, heads, bias=False, batch_first=True)
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([block.attention.q_proj.weight, block.attention.k_proj.weight, block.attention.v_proj.weight]))
        mha.out_proj.weight.copy_(block.attention.output_proj.weight)
    norm = lambda layer, x: F.rms_norm(x, (d,), layer.weight, 1e-5)
    y = norm(block.attention_norm, x)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    x = x + mha(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]
    y = norm(block.ffn_norm, x)
    return x + F.linear(F.silu(F.linear(y, block.ffn.w1.weight)) * F.linear(y, block.ffn.w3.weight), block.ffn.w2.weight)

def test_block_agrees_with_torch_layers_where_all_stand_at_one_place():
    block, x = TransformerBlock(32, 4, 40), torch.randn(2, 7, 32)
    assert_close(block(x, torch.zeros(7, dtype=torch.long)), block_of_torch(block, x))   # equal angles cancel: RoPE does nothing


def test_gradient_is_exact():
    block = TransformerBlock(8, 2, 12, dtype=torch.float64)
    assert torch.autograd.gradcheck(block, torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True))


# ---- What a language model must never do

def test_items_of_a_batch_do_not_touch(device):
    model, ids = make().to(device), random_ids(3, 9, device=device)
    assert_close(model(ids)[1], model(ids[1]))


@pytest.mark.parametrize("pieces", [[1]*16, [16], [5, 1, 9, 1], [15, 1]], ids=str)
@pytest.mark.parametrize("kv", [None, 2])
def test_cached_is_uncached(pieces, kv, device):
    model, ids = make(num_kv_heads=kv).to(device), random_ids(2, 16, device=device)
    caches = [new_cache(block.attention, 2) for block in model.blocks]
    with torch.no_grad(): assert_close(torch.cat([model(piece, caches=caches) for piece in ids.split(pieces, 1)], 1), model(ids))


def test_positions_may_be_given():
    model, ids = make(), random_ids(2, 6)
    assert_close(model(ids, torch.arange(6)), model(ids))
    assert_close(model(ids, torch.arange(6).expand(2, 6)), model(ids))


# ---- Shapes, types, places

@pytest.mark.parametrize("shape", [(0, 5), (2, 3, 5), (2, 16)], ids=str)
def test_any_leading_axes(shape, device):
    logits = make().to(device)(random_ids(*shape, device=device))
    assert logits.shape == (*shape, 50) and logits.isfinite().all()


def test_ids_need_not_be_contiguous():
    model, ids = make(), random_ids(6, 4)
    assert torch.equal(model(ids.T), model(ids.T.contiguous()))
    assert torch.equal(model(ids.int()), model(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_runs_in_other_types(dtype):
    torch.manual_seed(0)
    model = Transformer(**SHAPE, dtype=dtype)
    logits = model(random_ids(2, 5))
    assert logits.dtype == dtype and logits.isfinite().all() and {p.dtype for p in model.parameters()} == {dtype}


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="0 to 15, but these go from 0 to 16; raise max_seq_len"): make()(random_ids(1, 17))


def test_unknown_id_is_refused():
    with pytest.raises(IndexError, match="must lie in 0…49"): make()(torch.tensor([50]))


def test_there_is_a_cache_for_each_block():
    model = make()
    with pytest.raises(ValueError, match="shorter"): model(random_ids(1, 2), caches=[new_cache(model.blocks[0].attention, 1)])


def test_state_dict_holds_parameters_only():
    model = make(tie=True)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert "blocks.1.attention.q_proj.weight" in model.state_dict() and "head.weight" in model.state_dict()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_whole_and_their_own(clone):
    model, ids = make(tie=True), random_ids(2, 5)
    twin = clone(model)
    assert torch.equal(twin(ids), model(ids)) and twin.config == model.config and twin.head.weight is twin.embedding.weight
    with torch.no_grad(): twin.embedding.weight.add_(1)
    assert not torch.equal(twin(ids), model(ids))


SIZES = {   # vocab, context, d_model, layers, heads, d_ff → parameters, counted by hand from the shape
    "CS336 TinyStories": ((10_000, 256, 512, 4, 16, 1344), 22_696_448),
    "GPT-2 XL": ((50_257, 1024, 1600, 48, 25, 6400), 2_127_057_600),
}

@pytest.mark.parametrize("name", SIZES)
def test_parameter_count_on_the_meta_device(name):
    shape, expected = SIZES[name]
    model = Transformer(*shape, device="meta")
    assert sum(p.numel() for p in model.parameters()) == expected
    assert all(x.is_meta for x in [*model.parameters(), *model.buffers()])
    assert model(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, shape[0])


def test_readable_attention_can_take_the_place_of_the_fused():
    model, ids = make(num_kv_heads=2), random_ids(2, 16)
    fused = model(ids)
    for block in model.blocks: block.attention.attend = attention
    assert_close(model(ids), fused)


def test_the_stream_is_read_by_the_parts_that_are_there():
    model = make()
    torch.manual_seed(1)
    model.blocks[1] = TransformerBlock(32, 4, 64, 16)   # a block of one's own
    assert model(random_ids(2, 5)).shape == (2, 5, 50)


# ---- Parts of one's own

class Gain(nn.Module):
    "No norm, a gain alone; knows nothing of devices and types."
    def __init__(self, d_model):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d_model))
    def forward(self, x): return x * self.gain

class NoPositions(nn.Module):
    def __init__(self, d_k, max_seq_len, theta): super().__init__()
    def forward(self, x, token_positions=None): return x

class Relu(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.w1, self.w2 = (nn.Linear(*shape, bias=False, device=device, dtype=dtype) for shape in ((d_model, d_ff), (d_ff, d_model)))
    def forward(self, x): return self.w2(self.w1(x).relu())

class PostNorm(TransformerBlock):
    def forward(self, x, token_positions=None, cache=None):
        x = self.attention_norm(x + self.attention(x, token_positions, cache))
        return self.ffn_norm(x + self.ffn(x))

def louder(vocab_size, d_model): return nn.Embedding(vocab_size, d_model)

class Sharper(nn.Module):
    "A softmax that learns its temperature."
    def __init__(self, dim):
        super().__init__()
        self.dim, self.sharpness = dim, nn.Parameter(torch.tensor([[1.5]]))
    def forward(self, x): return (self.sharpness * x).softmax(self.dim)

class Straight(nn.Module):
    "A linear layer of somebody's own, which counts its calls."
    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.randn(out_features, in_features) * in_features**-0.5), 0
    def forward(self, x):
        self.calls += 1
        return torch.einsum("...i,oi->...o", x, self.weight)

OTHERS = {"norm": Gain, "rope": NoPositions, "ffn": Relu, "block": PostNorm, "attend": attention, "embedding": louder, "head": nn.Linear, "softmax": Sharper, "linear": Straight}

@pytest.mark.parametrize("role", OTHERS)
def test_a_part_of_ones_own_plays_its_role_everywhere(role, device):
    torch.manual_seed(0)
    model = Transformer(**SHAPE, parts={role: OTHERS[role]}, device=device)
    kind = nn.Embedding if role == "embedding" else OTHERS[role]
    places = [block.attention.attend for block in model.blocks] if role == "attend" else [m for m in model.modules() if isinstance(m, kind)]
    assert len(places) == {"norm": 5, "embedding": 1, "head": 1, "linear": 15}.get(role, 2)
    if role == "attend": assert all(attend is attention for attend in places)
    if role == "linear": assert type(model.head) is Straight and not any(type(m) is Linear for m in model.modules())
    assert {p.device.type for p in model.parameters()} == {device}
    logits = model(random_ids(2, 5, device=device))
    logits.square().sum().backward()
    assert logits.isfinite().all() and all(p.grad is not None and p.grad.any() for p in model.parameters() if p.ndim > 1)
    if role == "linear": assert all(m.calls == 1 for m in places)   # asked, not only looked at


def test_all_parts_may_be_ones_own_at_once():
    model = Transformer(**SHAPE, parts=OTHERS, dtype=torch.bfloat16)
    assert model(random_ids(2, 5)).dtype == torch.bfloat16 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    block = model.blocks[0]
    assert type(block) is PostNorm and type(block.ffn_norm) is Gain and type(block.attention.rope) is NoPositions and type(model.head) is nn.Linear
    assert block.attention.attend.part is attention and type(block.attention.attend.softmax) is Sharper and type(block.attention.q_proj) is Straight


def test_an_attention_of_ones_own_need_not_know_of_inner_parts():
    class Mean(nn.Module):
        def __init__(self, d_model, num_heads, num_kv_heads, max_seq_len, theta): super().__init__()
        def forward(self, x, token_positions=None, cache=None): return x.cumsum(-2) / torch.arange(1, x.shape[-2] + 1)[:, None]
    assert Transformer(**SHAPE, parts={"attention": Mean})(random_ids(2, 5)).shape == (2, 5, 50)
    with pytest.raises(ValueError, match=r"parts\['attention'\] is built as .*Mean\(32, 4, None, 16, 10000.0, rope=…\), but got an unexpected keyword argument 'rope'"):
        Transformer(**SHAPE, parts={"attention": Mean, "rope": NoPositions})


def of_mask(q, k, v, mask=None): return attention(q, k, v, mask)
def of_limits(q, k, v, **limits): return attention(q, k, v, **limits)

class Asked(nn.Module):
    "Attention as a student's class, called as chapter 09's; with a weight of its own."
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, 1))
    def forward(self, q, k, v, mask=None): return self.gain * attention(q, k, v, mask)

@pytest.mark.parametrize("part", [of_mask, of_limits, ScaledDotProductAttention, Asked, attention], ids=lambda part: part.__name__)
@pytest.mark.parametrize("kv", [None, 2])
def test_an_attention_of_ones_own_may_be_a_function_or_a_class(part, kv):
    torch.manual_seed(0)
    model, ids = Transformer(**SHAPE, num_kv_heads=kv, parts={"attend": part}), random_ids(2, 7)
    torch.manual_seed(0)
    plain = Transformer(**SHAPE, num_kv_heads=kv)
    with torch.no_grad():
        assert_close(model(ids), plain(ids))
        caches = [new_cache(block.attention, 2) for block in model.blocks]
        assert_close(torch.cat([model(piece, caches=caches) for piece in ids.split([3, 2, 1, 1], 1)], 1), plain(ids))
    assert sum(name.endswith("gain") for name in model.state_dict()) == 2 * (part is Asked)
    assert_close(copy.deepcopy(model)(ids), plain(ids))


def test_softmax_and_attention_of_ones_own_go_together_or_say_why_not():
    torch.manual_seed(0)
    model, ids = Transformer(**SHAPE, parts={"softmax": Softmax, "attend": attention}), random_ids(2, 7)   # ours is nobody else's
    assert model.parts == {"attend": attention}
    torch.manual_seed(0)
    sharp = Transformer(**SHAPE, parts={"softmax": Sharper})
    before = sharp(ids)
    for block in sharp.blocks: nn.init.ones_(block.attention.attend.softmax.sharpness)
    assert_close(sharp(ids), model(ids))
    assert not torch.allclose(before, model(ids))
    with pytest.raises(ValueError, match="which takes no softmax; leave one of them out"): Transformer(**SHAPE, parts={"softmax": Sharper, "attend": of_mask})
    with pytest.raises(ValueError, match=r"wrap it in a function of \(q, k, v, mask\)"): Transformer(**SHAPE, parts={"attend": F.scaled_dot_product_attention})


def test_a_linear_of_ones_own_gives_the_same_and_leaves_others_parts_alone():
    torch.manual_seed(0)
    plain, model, ids = Transformer(**SHAPE, qkv_bias=True), Transformer(**SHAPE, qkv_bias=True, parts={"linear": nn.Linear, "ffn": Relu}), random_ids(2, 7)
    assert model.blocks[0].attention.q_proj.bias is not None and type(model.head) is nn.Linear
    model = Transformer(**SHAPE, parts={"linear": Straight})
    plain = Transformer(**SHAPE)
    plain.load_state_dict(model.state_dict())
    assert_close(model(ids), plain(ids))
    assert type(Transformer(**SHAPE, parts={"linear": Straight, "head": nn.Linear}).head) is nn.Linear


def test_our_own_parts_by_name_change_nothing():
    torch.manual_seed(0)
    plain = Transformer(**SHAPE)
    torch.manual_seed(0)
    named = Transformer(**SHAPE, parts=PARTS)
    ids = random_ids(2, 5)
    assert torch.equal(named(ids), plain(ids)) and named.parts == {}


def test_without_positions_the_order_of_what_came_before_is_lost():
    ids = random_ids(1, 8)
    shuffled = ids[:, [2, 0, 3, 1, 6, 4, 5, 7]]
    for parts, same in ({}, False), ({"rope": NoPositions}, True):
        torch.manual_seed(0)
        model = Transformer(**{**SHAPE, "num_layers": 1}, parts=parts)
        assert torch.allclose(model(ids)[:, -1], model(shuffled)[:, -1], atol=1e-6) == same


def test_a_block_alone_takes_parts_too():
    torch.manual_seed(0)
    block, x = TransformerBlock(32, 4, 40, norm=nn.Identity, ffn=Relu), torch.randn(2, 5, 32)
    by_hand = x + block.attention(x)
    assert_close(block(x), by_hand + block.ffn.w2(block.ffn.w1(by_hand).relu()))


def test_keywords_and_names_give_the_same_model(device):
    own = partial(MultiHeadAttention, attend=attention, rope=NoPositions)
    torch.manual_seed(0)
    by_keyword = Transformer(**SHAPE, device=device, embedding=louder, head=nn.Linear, final_norm=Gain,
                             block=partial(PostNorm, norm=Gain, attention=own, ffn=Relu))
    torch.manual_seed(0)
    by_name = Transformer(**SHAPE, device=device, parts={"embedding": louder, "head": nn.Linear, "norm": Gain, "block": PostNorm,
                                                         "attention": own, "ffn": Relu})
    ids = random_ids(2, 5, device=device)
    assert torch.equal(by_keyword(ids), by_name(ids)) and by_keyword.parts.keys() == {"embedding", "head", "final_norm", "block"}
    assert {x.device.type for x in by_keyword.state_dict().values()} == {device}


@pytest.mark.parametrize("file", ["checkpoint.pt", "model.safetensors"])
def test_a_model_of_keywords_is_not_taken_for_ours_when_it_is_loaded(file, tmp_path):
    "A post-norm block has our parameters, so its weights alone would fit our model."
    from llm_course.checkpoint import load_model, save_checkpoint, save_model
    from llm_course.transformer import AdamW
    model, ids = Transformer(**SHAPE, block=partial(PostNorm, norm=Gain)), random_ids(2, 5)
    if file == "checkpoint.pt": save_checkpoint(model, AdamW(model.parameters()), 0, tmp_path/file)
    else: save_model(model, tmp_path/file, torch.float32)
    with pytest.raises(ValueError, match=r"parts={'block': PostNorm\(norm=Gain\)}"): load_model(tmp_path/file, "cpu")
    with pytest.raises(ValueError, match="needs parts"): load_model(tmp_path/file, "cpu", {"block": PostNorm})
    assert torch.equal(load_model(tmp_path/file, "cpu", {"block": partial(PostNorm, norm=Gain)})(ids), model(ids))


@pytest.mark.parametrize("name, part", [
    ("llm_course.linear.Linear", Linear), (f"{__name__}.number", lambda: number), ("llm_course.linear.Linear(bias=True)", partial(Linear, bias=True)),
    (f"{__name__}.PostNorm(norm={__name__}.Gain)", lambda: partial(PostNorm, norm=Gain)), ("3", 3)], ids=stable_id)
def test_a_part_has_a_name(name, part):
    assert part_name(part() if getattr(part, "__name__", "") == "<lambda>" else part) == name


def number(d_model): return d_model

WRONG = {
    "parts has no role 'nrm'; the roles are embedding, norm, attention, rope, attend, softmax, ffn, linear, head, final_norm, block": {"nrm": Gain},
    "parts['norm'] must be a class or a function that builds one, but is 3": {"norm": 3},
    f"parts['ffn'] is built as {__name__}.Gain(32, 40), but too many positional arguments": {"ffn": Gain},
    f"parts['norm'] must build an nn.Module, but {__name__}.number built 32": {"norm": number},
    "tie needs a head and an embedding with weights of the same shape": {"head": nn.Identity},
}

@pytest.mark.parametrize("message", WRONG)
def test_a_part_that_cannot_play_its_role_is_refused_in_one_line(message):
    with pytest.raises(ValueError) as caught: Transformer(**SHAPE, tie="tie" in message, parts=WRONG[message])
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- The start

@pytest.mark.parametrize("vocab, layers", [(50, 1), (300, 4), (5000, 12)])
def test_the_first_loss_is_ln_v(vocab, layers):
    torch.manual_seed(0)
    ids = torch.randint(vocab, (4, 17))
    for tie, excess in (False, 0.1**2 / 2), (True, 1 / 2):   # ln V + σ²/2
        losses = []
        for _ in range(3):
            logits = Transformer(**{**SHAPE, "vocab_size": vocab, "num_layers": layers, "tie": tie})(ids[:, :-1])
            losses.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item())
        assert abs(sum(losses) / 3 - math.log(vocab) - excess) < (.25 if tie else .05)


def test_start_small_shrinks_last_matrices_and_logits_only():
    torch.manual_seed(0)
    small = Transformer(**SHAPE)
    before = {name: p.clone() for name, p in small.named_parameters()}
    start_small(small)   # once more
    for name, p in small.named_parameters():
        factor = 0.5 if name.endswith(("output_proj.weight", "w2.weight")) else 0.1 if name == "head.weight" else 1   # 4 branches: 1/√4
        assert_close(p, before[name] * factor)


def test_the_stream_ends_at_one_size_whatever_the_depth():
    torch.manual_seed(0)
    ids, sizes = random_ids(4, 16), []
    for depth in 4, 16, 64:
        model = Transformer(**{**SHAPE, "num_layers": depth})
        model.norm.register_forward_hook(lambda module, inputs, out: sizes.append(inputs[0].square().mean().sqrt().item()))
        model(ids)
    assert max(sizes) < 1.15 * min(sizes)


def test_one_batch_can_be_learnt_by_heart():
    from llm_course.transformer import AdamW, CrossEntropyLoss
    torch.manual_seed(0)
    model, ids, loss_of = Transformer(**SHAPE), random_ids(4, 9), CrossEntropyLoss()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = loss_of(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# ---- The shape

REFUSED = {
    "vocab_size must be at least 1, and whole, but is 0": dict(vocab_size=0),
    "max_seq_len must be at least 1, and whole, but is -3": dict(max_seq_len=-3),
    "d_model must be at least 1, and whole, but is 2.5": dict(d_model=2.5),
    "num_layers must be at least 1, and whole, but is '4'": dict(num_layers="4"),
    "d_ff must be at least 1, and whole, but is None": dict(d_ff=None),
    "num_heads must divide d_model, but 256 % 7 = 4": dict(num_heads=7),
    "d_model / num_heads must be even, but 24 / 8 = 3": dict(d_model=24),
    "num_kv_heads must divide num_heads, but 3 does not divide 8": dict(num_kv_heads=3),
    "num_kv_heads must divide num_heads, but 0 does not divide 8": dict(num_kv_heads=0),
    "num_kv_heads must divide num_heads, but 16 does not divide 8": dict(num_kv_heads=16),
    "rope_theta must be positive and finite, but is 0": dict(rope_theta=0),
    "rope_theta must be positive and finite, but is nan": dict(rope_theta=math.nan),
    "rope_theta must be positive and finite, but is inf": dict(rope_theta=math.inf),
}

@pytest.mark.parametrize("message", REFUSED)
def test_a_shape_that_cannot_work_is_refused(message):
    with pytest.raises((ValueError, TypeError)) as caught: Refusable(**REFUSED[message])
    assert message in str(caught.value) and "\n" not in str(caught.value)

class Refusable:
    "Calls the check of `ModelConfig` without the types that pytest enforces on its constructor."
    def __new__(cls, **changes):
        config = object.__new__(ModelConfig)
        for name, value in {**asdict(ModelConfig()), **changes}.items(): object.__setattr__(config, name, value)
        config.__post_init__()


def test_a_model_knows_its_shape():
    config = ModelConfig(**SHAPE, num_kv_heads=2, tie=True, rope_theta=500.)
    assert Transformer(**asdict(config)).config == config
    assert replace(config, tie=False) != config
    with pytest.raises(ValueError, match="num_heads must divide"): Transformer(**{**SHAPE, "num_heads": 5})


def test_compiled_in_one_piece_it_says_the_same():
    code = """
import torch
from llm_course.transformer import Transformer
torch.manual_seed(0)
model, ids = Transformer(50, 16, 32, 2, 4, 40, num_kv_heads=2), torch.randint(50, (2, 16))
torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(ids), model(ids))
"""
    apart(["-c", code], {**os.environ, "JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1"}).check_returncode()


@pytest.mark.parametrize("change, said", [
    (dict(d_k=5), "d_k must be even"), (dict(d_k=0), "d_k must be at least 1"), (dict(norm_eps=0.), "norm_eps must be positive"), (dict(norm_eps=math.inf), "norm_eps must be"),
    (dict(rope_scaling={"factor": .5}), "a RopeScaling needs")], ids=str)
def test_options_are_checked(change, said):
    with pytest.raises(ValueError, match=said): ModelConfig(**SHAPE, **change)


def test_options_reach_their_parts():
    model = Transformer(**{**SHAPE, "d_model": 30, "num_heads": 4}, norm_eps=1e-6, d_k=8, qkv_bias=True, qk_norm=True, rope_scaling={"factor": 4.})
    assert {m.eps for m in model.modules() if type(m).__name__ == "RmsNorm"} == {1e-6}
    attention = model.blocks[0].attention
    assert (attention.d_k, attention.q_norm.weight.shape, attention.v_proj.bias.shape) == (8, (8,), (32,)) and attention.rope.scaling.factor == 4
    assert Transformer(**asdict(model.config)).config == model.config
    assert model.blocks[0].attention.rope.turns is model.blocks[1].attention.rope.turns


def test_foreign_parts_need_not_know_of_options():
    class Own(torch.nn.Module):
        def __init__(self, d_model, *args): super().__init__()
        def forward(self, x, *args): return x
    model = Transformer(**SHAPE, parts={"norm": Own, "attention": Own})   # nothing out of the ordinary: nothing said
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape[-1] == SHAPE["vocab_size"]
    with pytest.raises(ValueError, match="qkv_bias"): Transformer(**SHAPE, parts={"attention": Own}, qkv_bias=True)


# ---- A student's parts, from the first step to the last

def test_a_run_with_parts_of_ones_own_trains_resumes_loads_and_speaks(tmp_path, device):
    from llm_course.checkpoint import load_model
    from llm_course.generating import generate_ids
    from llm_course.training import TrainConfig, train
    ids = np.arange(2_000, dtype=np.uint16) % 50
    for name in "train.bin", "val.bin": ids.tofile(tmp_path/name)
    def config(output, **changes):
        return TrainConfig(train_data=tmp_path/"train.bin", val_data=tmp_path/"val.bin", output=tmp_path/output, batch_size=8, iterations=6, val_interval=3,
                           val_batches=1, checkpoint_interval=2, device=device, precision="float32", **SHAPE, **changes)
    mine = {"norm": Gain, "ffn": Relu, "attend": Asked, "linear": Straight}
    whole = train(config("whole"), mine)
    assert type(whole.model.blocks[1].ffn) is Relu and whole.model.blocks[0].attention.attend.part.gain != 1   # it was trained, too
    train(replace(config("cut"), iterations=3, cos_cycle_iters=6), mine)
    rest = train(replace(config("cut"), resume=True), mine)
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True): assert torch.equal(a, b)

    needed = ", ".join(f"{role}: {__name__}.{part.__name__}" for role, part in mine.items())
    for refused in lambda: train(replace(config("cut", resume=True), iterations=8)), lambda: load_model(tmp_path/"cut/checkpoint.pt", device):
        with pytest.raises(ValueError) as caught: refused()
        assert f"needs parts that are not this course's own ({needed})" in str(caught.value) and "\n" not in str(caught.value)
        assert "parts={'norm': Gain, 'ffn': Relu, 'attend': Asked, 'linear': Straight}" in str(caught.value)
    back = load_model(tmp_path/"cut/checkpoint.pt", device, mine)
    prompt = torch.arange(5, device=device)[None]
    assert_close(back(prompt), rest.model(prompt))
    written = generate_ids(back, prompt, 4, temperature=0.)
    for block in back.blocks: assert block.attention.q_proj.calls >= 4   # the student's own layer did the work
    longer = torch.cat([prompt, written.to(device)], 1) if written.shape[1] == 4 else written
    for i in range(5, 9): assert back(longer[:, :i])[0, -1].argmax() == longer[0, i]


def test_numbers_of_numpy_are_numbers():
    "As the largest id of an array, and one more; in a process of its own, since the types that tests check would refuse them."
    code = """import numpy as np
from llm_course.transformer import ModelConfig, Transformer
for kind in np.int64, np.uint16:
    config = Transformer(*map(kind, (50, 16, 16, 1, 2, 24)), num_kv_heads=kind(1)).config
    assert config == ModelConfig(50, 16, 16, 1, 2, 24, num_kv_heads=1) and kind not in {type(x) for x in vars(config).values()}"""
    apart(["-c", code]).check_returncode()
