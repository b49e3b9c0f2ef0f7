"""Families of models that differ from the course's own by a `Variant`: logits equal to transformers' on tiny random models, both ways, and refusals by name."""
import re
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import torch
import transformers
from test_pretrained import agree, llama_cpp  # noqa: F401
from torch.testing import assert_close

from llm_course import training
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, save_model
from llm_course.engine.batching import Batch
from llm_course.engine.families import Variant, windowed_attention
from llm_course.engine.gguf import architecture_of
from llm_course.engine.hf_config import as_usual, family_of, from_hf_config, to_hf_config
from llm_course.engine.kv_cache import new_cache
from llm_course.engine.reader import Reader, side_by_side
from llm_course.engine.rope_tables import RopeScaling
from llm_course.generating import generate, generate_ids
from llm_course.generating import main as generating
from llm_course.pretrained import as_transformers, compare_with_transformers, export_gguf, export_pretrained, load_pretrained
from llm_course.transformer import ModelConfig, Transformer

SHAPE = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             pad_token_id=None, bos_token_id=0, eos_token_id=0)
LINEAR = RopeScaling(8., original_max_seq_len=1)
GEMMA_3 = {"full_attention": {"rope_type": "linear", "factor": 8., "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
THEIRS = {   # every window is shorter than the texts of these tests
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=8),
    "phi3": lambda: transformers.Phi3Config(**SHAPE, sliding_window=7),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=32, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "olmo2": lambda: transformers.Olmo2Config(**SHAPE),
    "gemma2": lambda: transformers.Gemma2Config(**SHAPE, head_dim=32, sliding_window=8, query_pre_attn_scalar=48, attn_logit_softcapping=2., final_logit_softcapping=3.),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**SHAPE, head_dim=32, sliding_window=8, query_pre_attn_scalar=24, sliding_window_pattern=2, rope_parameters=GEMMA_3),
}


@pytest.fixture(scope="module")
def tokenizer(): return BpeTokenizer.train(["the cat sat on the mat, and the dog sat on the log. " * 5], 300, ["<|endoftext|>"])


@pytest.fixture(scope="module", params=THEIRS)
def family(request, tokenizer, tmp_path_factory):
    "A tiny random model of theirs, its folder, and the same model as we read it."
    torch.manual_seed(0)
    theirs, folder = transformers.AutoModelForCausalLM.from_config(THEIRS[request.param]()).eval(), tmp_path_factory.mktemp(request.param)
    with torch.no_grad():
        for name, p in theirs.named_parameters():   # large enough that every part matters
            gain = "gemma" not in request.param   # Gemma's are stored less one
            p.copy_(torch.rand_like(p) + .5 * gain - .5 * (not gain) if "norm" in name else torch.randn_like(p) * (.3 if p.ndim == 1 else p.shape[1]**-.5))
    theirs.save_pretrained(folder)
    tokenizer.save(folder/"tokenizer.json")
    return theirs, folder, load_pretrained(folder, "cpu")[0]


@pytest.fixture
def ids(): return torch.randint(300, (2, 40))


def close(one, other): assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_are_those_of_transformers(family, ids):
    "The whole text at once, in pieces, one token at a time, and with padding before a shorter text: always beyond the window."
    theirs, _, model = family
    wanted = theirs(ids).logits
    close(model(ids), wanted)
    for pieces in ids.split(1, 1), ids.split([3, 20, 1, 16], 1):
        caches = [new_cache(block.attention, 2) for block in model.blocks]
        close(torch.cat([model(piece, caches=caches) for piece in pieces], 1), wanted)
    rows, padding = side_by_side([ids[0].tolist(), ids[1, :25].tolist()])
    reader = Reader(model, 2, padding)
    close(reader(rows)[1], wanted[1, 24])
    batch = Batch(model)   # rows of different lengths, the shorter one on the left
    for row, length in (0, 30), (1, 12):
        reader = Reader(model, longest=length)
        reader(ids[row:row + 1, :length])
        batch.join(reader)
    for step in range(8): close(batch.read([int(ids[0, 30 + step]), int(ids[1, 12 + step])]), torch.stack([wanted[0, 30 + step], wanted[1, 12 + step]]))


def test_there_and_back(family, tokenizer, tmp_path, ids):
    "transformers reads what we write, and so do we; a checkpoint of ours keeps the variant."
    theirs, _, model = family
    with pytest.warns(UserWarning, match="AutoTokenizer") if model.config.qkv_bias else nullcontext(): export_pretrained(model, tokenizer, tmp_path/"export")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"export", dtype=torch.float32)
    for other in again, as_transformers(model): assert compare_with_transformers(model, other, ids)[0] < 1e-4
    back, _ = load_pretrained(tmp_path/"export", "cpu")
    with torch.no_grad(): close(back(ids), theirs(ids).logits)
    assert back.config == replace(model.config, d_k=model.blocks[0].attention.d_k) and back.config.variant is not None
    save_model(model, tmp_path/"model.safetensors", torch.float32)
    ours = load_model(tmp_path/"model.safetensors", "cpu")
    assert ours.config == model.config
    with torch.no_grad(): assert torch.equal(ours(ids), model(ids))


def test_what_differs_is_noticed(family, tokenizer, ids):
    "Without the variant, the same weights give other logits."
    _, _, model = family
    if model.config.variant.norms == "before":
        plain = Transformer(**asdict(model.config) | {"variant": None}).eval()
        plain.load_state_dict(model.state_dict())
        with torch.no_grad(): gap = (plain(ids) - model(ids)).abs().amax((0, 2))
        first = model.config.variant.window   # the first place that has lost sight of a token
        assert gap[:first].max() < 1e-5 < 1e-3 < gap[first:].min()
    for field in "window", "score_cap", "logit_cap", "short_theta":
        if getattr(model.config.variant, field) is None: continue
        plain = Transformer(**asdict(model.config) | {"variant": replace(model.config.variant, **{field: None})}).eval()
        plain.load_state_dict(model.state_dict())
        with torch.no_grad(): assert (plain(ids) - model(ids)).abs().max() > 1e-3, field


def test_the_command_speaks_by_it(family, capsys):
    theirs, folder, model = family
    tokenizer = load_pretrained(folder, "cpu")[1]
    generating(["--model_path", str(folder), "--prompt", "the cat", "--max_tokens", "12", "--temperature", "0", "--device", "cpu"])
    assert generate(model, tokenizer, "the cat", 12, temperature=0.) in capsys.readouterr().out
    said = generate_ids(model, torch.tensor([tokenizer.encode("the cat")]), 12, temperature=0.)
    with torch.no_grad(): assert torch.equal(theirs(said).logits[0, -13:-1].argmax(-1), said[0, -12:])


def test_gguf(family, tokenizer, tmp_path, ids):
    "Read back with the same numbers where GGUF has words for the family, and refused in one line elsewhere."
    _, _, model = family
    path, name = tmp_path/"model.gguf", family_of(model.config)
    if name == "gemma3_text":   # llama.cpp knows one pattern only
        with pytest.raises(ValueError, match="another pattern of layers for gemma3 than SL"): export_gguf(model, tokenizer, path)
        variant = replace(model.config.variant, pattern="S" * 5 + "L")
        wide = Transformer(**asdict(model.config) | {"variant": variant}).eval()
        wide.load_state_dict(model.state_dict())
        model = wide
    elif name in ("mistral", "qwen2", "qwen3"):
        with pytest.raises(ValueError, match="cannot describe the windows" if name == "mistral" else "another pattern of layers"): export_gguf(model, tokenizer, path)
        assert not path.exists()
        return
    export_gguf(model, tokenizer, path)
    back, _ = load_pretrained(path, "cpu")
    assert replace(as_usual(model.config), d_k=back.config.d_k) == back.config
    with torch.no_grad(): assert torch.equal(back(ids), model(ids))


def words(family, **more): return {"model_type": family, **{name: value for name, value in SHAPE.items() if "token" not in name}, "rms_norm_eps": 1e-6, "tie_word_embeddings": True} | more


@pytest.mark.parametrize("found, said", [
    (dict(model_type="gpt2"), "family 'gpt2' (it learns a vector for each position"), (dict(model_type="gemma3"), "family 'gemma3' (it sees images"), (dict(model_type="gemma"), "family 'gemma' (it is the first Gemma"), (dict(model_type="mixtral"), "family 'mixtral' (its layers hold several feed-forward networks"), (dict(model_type="gpt_neox"), "family 'gpt_neox' (its norms and matrices have biases"),
    (dict(model_type="smollm3"), "family 'smollm3' (every fourth of its layers"), (dict(model_type="mamba"), "family 'mamba', and"),
    (words("gemma2", hidden_activation="relu"), "hidden_activation is 'relu'"), (words("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention is True"),
    (words("gemma3_text", attn_logit_softcapping=50.), "attn_logit_softcapping is 50.0"), (words("phi3", partial_rotary_factor=.75), "partial_rotary_factor is 0.75"),
    (words("phi3", rope_scaling={"type": "longrope", "factor": 2.}), "rule 'longrope'"), (words("olmo2", attention_bias=True), "attention_bias is True"), (words("qwen3", attention_bias=True), "attention_bias is True"),
    (words("mistral", sliding_window=8, layer_types=["full_attention"] * 3), "layers of full_attention"), (words("gemma2", layer_types=["chunked_attention"] * 3), "layers of chunked_attention"),
    (words("gemma2", layer_types=["full_attention"]), "names the kinds of 1 layers, but has 3"), (words("gemma2", sliding_window=0), "window must be positive"), (words("mistral", sliding_window=-3), "window must be positive"),
    (words("gemma3_text", rope_parameters=GEMMA_3 | {"sliding_attention": {"rope_type": "yarn"}}), "rule 'yarn' in layers with a window"), (words("gemma2", sliding_window="8"), "its window should be of type int"),
    (words("gemma2", final_logit_softcapping=[1]), "its logit_cap should be of type float"), (words("qwen2", use_sliding_window=True, layer_types=["x"] * 3), "layers of x")], ids=lambda value: str(value)[:60])
def test_what_we_do_not_compute_is_refused(found, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught: from_hf_config(found)
    assert "\n" not in str(caught.value)


DEFAULT, TWICE, THRICE = {"rope_type": "default"}, {"rope_type": "linear", "factor": 2.}, {"type": "linear", "factor": 3.}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("found, said", [   # None: transformers gives the same
    (dict(rope_scaling=TWICE, rope_parameters=TWICE), None), (dict(rope_scaling=TWICE, rope_parameters={"type": "linear"} | TWICE), None), (dict(rope_scaling=None, rope_parameters=TWICE), None), (dict(rope_scaling={}, rope_parameters=TWICE), None),
    (dict(rope_scaling=TWICE, rope_parameters=None), None), (dict(rope_theta=3e4, rope_parameters=TWICE | {"rope_theta": 3e4}), None), (dict(rope_parameters=TWICE | {"rope_theta": 3e4}), None), (dict(rope_theta=3e4, rope_scaling=TWICE), None),
    (dict(rope_scaling=DEFAULT, rope_parameters=TWICE), "which differ; delete"), (dict(rope_scaling=TWICE, rope_parameters=DEFAULT), "which differ; delete"), (dict(rope_scaling=TWICE, rope_parameters=THRICE), "which differ; delete"),
    (dict(rope_scaling=TWICE, rope_parameters=TWICE | {"rope_theta": 3e4}), "which differ; delete"), (dict(rope_theta=1e4, rope_parameters=TWICE | {"rope_theta": 3e4}), "its rope_theta is 10000.0, and in rope_parameters it is 30000.0; delete"),
    (dict(rope_theta=1e4, rope_scaling=DEFAULT | {"rope_theta": 3e4}), "and in rope_scaling it is 30000.0"), (dict(rope_scaling={"type": "yarn"} | TWICE), "by the rules 'yarn' and 'linear'; delete")], ids=str)
def test_two_words_on_rope_agree_or_are_refused(family, found, said):
    if said is None:
        config, theirs = from_hf_config(words(family, **found)), transformers.LlamaConfig.from_dict(deepcopy(words("llama", **found))).rope_parameters
        if "rope_theta" in theirs and family == "llama": assert config.rope_theta == theirs["rope_theta"]
        assert config.rope_scaling.factor == theirs["factor"]
        return
    with pytest.raises(ValueError, match=re.escape(said)) as caught: from_hf_config(words(family, **found))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "distilgpt2"])
def test_gpt2_by_its_name_is_refused_with_the_reason(name, tmp_path, capsys):
    with pytest.raises(ValueError, match="it learns a vector for each position"): load_pretrained(name)
    for main, words in (training.main, ["--train_data", "a.bin", "--val_data", "b.bin", "--init_from", name]), (generating, ["--model_path", name]):
        with pytest.raises(SystemExit): main(words)
        told = capsys.readouterr().err
        assert name in told and "it learns a vector for each position" in told and told.count("\n") == 1


def test_what_is_left_out_means_what_it_means_to_transformers():
    "Configurations that say the least give the same shapes as those that transformers completes."
    for family, kind in ("mistral", "Mistral"), ("qwen3", "Qwen3"), ("gemma2", "Gemma2"), ("gemma3_text", "Gemma3Text"):
        least = {**SHAPE, "max_position_embeddings": 1 << 13, "num_hidden_layers": 8, "num_attention_heads": 8, "rms_norm_eps": 1e-6}
        del least["num_key_value_heads"]
        if family == "qwen3": least["num_key_value_heads"] = 2
        completed = getattr(transformers, f"{kind}Config")(**least)
        ours, theirs = from_hf_config({"model_type": family, **least}), from_hf_config(completed.to_dict())
        assert ours == replace(theirs, d_k=ours.d_k) and ours.variant == theirs.variant


def test_a_window_that_hides_nothing_is_none():
    config = ModelConfig(320, 64, 64, 3, 4, 96, num_kv_heads=2, d_k=16, variant=Variant(window=64))
    assert as_usual(config).variant is None and family_of(config) == "llama"
    assert from_hf_config(words("mistral", sliding_window=None)).variant is from_hf_config(words("phi3")).variant is None
    assert as_usual(replace(config, variant=Variant(window=8, pattern="SSS"))).variant == Variant(window=8)
    assert as_usual(replace(config, variant=Variant(window=8, pattern="LLLS"))).variant is None


@pytest.mark.parametrize("variant", [Variant(norms="after"), Variant(logit_cap=30.), Variant(gate="gelu"), Variant(window=8, pattern="SL"), Variant(embedding_scale=2.)], ids=str)
def test_what_no_family_has_is_not_exported(variant):
    with pytest.raises(ValueError, match="no family of Hugging Face's library computes a model with Variant"): to_hf_config(ModelConfig(320, 64, 64, 3, 4, 96, variant=variant))


@pytest.mark.parametrize("wrong, said", [
    (dict(norms="none"), "norms must be one of before, after, both"), (dict(gate="relu"), "gate must be one of"), (dict(pattern=""), "pattern must be made of S and L"), (dict(pattern="SX"), "pattern must be"),
    (dict(window=0), "window must be positive"), (dict(score_cap=-1.), "score_cap must be positive"), (dict(embedding_scale=float("nan")), "embedding_scale must be")], ids=str)
def test_variants_that_make_no_sense(wrong, said):
    with pytest.raises(ValueError, match=said): Variant(**wrong)


def test_parts_that_cannot_obey():
    shape = dict(vocab_size=50, max_seq_len=16, d_model=16, num_layers=1, num_heads=2, d_ff=24)
    with pytest.raises(ValueError, match="wide_qk_norm needs qk_norm"): Transformer(**shape, variant=Variant(wide_qk_norm=True))
    with pytest.raises(ValueError, match="score_cap needs the course's own attention"): Transformer(**shape, variant=Variant(score_cap=5.), parts={"softmax": torch.nn.Softmax})


def test_a_window_learns(ids):
    "Gradients reach what is seen, and nothing else."
    q, k, v = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64).requires_grad_().unbind()
    windowed_attention(q, k, v, causal=True, window=4)
    k = torch.randn(1, 2, 12, 4, dtype=torch.float64, requires_grad=True)
    grad, = torch.autograd.grad(windowed_attention(q, k, v, causal=True, window=4)[:, :, 9].sum(), k)
    assert (grad[:, :, :6] == 0).all() and (grad[:, :, 6:10].abs() > 0).all() and (grad[:, :, 10:] == 0).all()


def test_fused_matrices_are_whole(tokenizer, tmp_path):
    "A Phi-3 whose joined matrix lacks rows is refused, with its name."
    from safetensors.torch import load_file, save_file
    theirs = transformers.AutoModelForCausalLM.from_config(THEIRS["phi3"]())
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path/"tokenizer.json")
    tensors = load_file(tmp_path/"model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    save_file(tensors | {name: tensors[name][:-1].clone()}, tmp_path/"model.safetensors")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} in 127 rows, but its configuration asks for 128"): load_pretrained(tmp_path, "cpu")


LLAMA_CPP = {
    "olmo2": dict(qk_norm=True, variant=Variant(norms="after", wide_qk_norm=True)),
    "gemma2": dict(tie=True, d_k=32, variant=Variant(norms="both", gate="gelu", window=8, pattern="SL", score_cap=5., logit_cap=8., embedding_scale=8.)),
    "gemma3": dict(tie=True, d_k=32, qk_norm=True, rope_theta=1e6, num_layers=7, rope_scaling=LINEAR,
                   variant=Variant(norms="both", gate="gelu", window=8, pattern="SSSSSL", short_theta=1e4, embedding_scale=8.)),
    "llama": dict(rope_scaling=LINEAR)}


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_llama_cpp_says_what_we_say(name, tokenizer, tmp_path, llama_cpp):  # noqa: F811
    torch.manual_seed(0)
    model = Transformer(**dict(vocab_size=320, max_seq_len=64, d_model=64, num_layers=3, num_heads=4, d_ff=96, num_kv_heads=2) | LLAMA_CPP[name]).eval()
    with torch.no_grad():
        for key, p in model.named_parameters(): p.copy_(torch.rand_like(p) + .5 if "norm" in key else torch.randn_like(p) * p.shape[-1]**-.5)
        for id in range(model.config.vocab_size):   # what is no text of its own is not said, since llama.cpp holds it back
            if id >= tokenizer.vocab_size or id in tokenizer.special_tokens.values() or "\ufffd" in tokenizer.vocab[id].decode(errors="replace"): model.head.weight[id] = 0
    export_gguf(model, tokenizer, tmp_path/"model.gguf")
    assert load_pretrained(tmp_path/"model.gguf", "cpu")[0].config == replace(as_usual(model.config), d_k=model.blocks[0].attention.d_k)
    agree(model, llama_cpp(tmp_path/"model.gguf"), torch.randint(300, (20,)).tolist(), 16)


@pytest.mark.parametrize("layers, told", [(46, "one way only"), (3, None)])
def test_the_largest_gemma_is_not_put_into_gguf(layers, told):
    "llama.cpp knows it by its number of blocks, and divides its scores by another number."
    config = ModelConfig(320, 64, 64, layers, 4, 96, num_kv_heads=2, **LLAMA_CPP["gemma2"])
    if told is None: assert architecture_of(config) == "gemma2"
    else:
        with pytest.raises(ValueError, match=told): architecture_of(config)


def test_all_pairs_slowed_alike(tokenizer, tmp_path, ids):
    "The rule `linear`, from transformers and back."
    model = Transformer(320, 64, 64, 2, 4, 96, rope_scaling=LINEAR).eval()
    export_pretrained(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.rope_parameters["rope_type"] == "linear" and compare_with_transformers(model, theirs, ids)[0] < 1e-4
    assert compare_with_transformers(Transformer(320, 64, 64, 2, 4, 96), theirs, ids)[0] > 1e-3
    assert load_pretrained(tmp_path, "cpu")[0].config.rope_scaling == LINEAR
