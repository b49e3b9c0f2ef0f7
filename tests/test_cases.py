"""Inputs from bug reports about other people's programs, by their kinds: what a file says is heeded, refused or told; what a tokenizer does, it does on every path."""
# ruff: noqa: F811   # fixtures of another file
import json
import re
import warnings

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from test_pretrained import HARD, agree, ask, llama_cpp, quantise, random_model, tokenizer  # noqa: F401
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from torch.testing import assert_close

from llm_course.bpe import GPT2
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from llm_course.data import load_ids, write_ids
from llm_course.engine.data_command import main as data_command
from llm_course.engine.encode_files import encode_spans, whole_file_span
from llm_course.engine.files import count_corpus
from llm_course.engine.foreign_tokenizers import PRE_TOKENIZERS, Composed, SentencePiece, load_tokenizer
from llm_course.engine.gguf_file import GgufFile
from llm_course.engine.rope_tables import RopeScaling
from llm_course.engine.spelling import Rules
from llm_course.engine.voices import end_ids, first_ids
from llm_course.generating import generate, generate_ids
from llm_course.optim import AdamW
from llm_course.pretrained import as_transformers, compare_with_transformers, export_gguf, export_pretrained, load_pretrained

END, TURN = "<|endoftext|>", "<|im_end|>"


def hf(alphabet=True, special=(END,), size=300, **options):
    "A tokenizer of Hugging Face's library, byte-level."
    made = tokenizers.Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    special = [*special, *filter(None, [options.get("unk_token")])]
    made.train_from_iterator(["the other then the end, one two", "un café, le thé"] * 9, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=letters, show_progress=False))
    return made


def folder_of(made, path, model=None, **config):
    "A folder of Hugging Face's with this tokenizer, and this in its tokenizer_config.json."
    model = model or random_model(vocab_size=400)
    export_pretrained(model, BpeTokenizer({i: bytes([i]) for i in range(256)}, []), path)
    made.save(str(path/"tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (path/"tokenizer_config.json").write_text(json.dumps(said), "utf-8", newline="\n")
    return path


# ---- A. What a file says is heeded, refused or told

@pytest.mark.parametrize("said, value, kind", [
    ("llama.rope.scaling.type", "yarn", "rule 'yarn'"),
    ("llama.rope.freq_base_swa", 7., "rope.freq_base_swa = 7.0"), ("llama.attention.scale", .5, "attention.scale"), ("llama.attention.clamp_kqv", 8., "clamp_kqv"),
    ("llama.attention.sliding_window", 16, "sliding_window"), ("llama.attention.causal", False, "causal"), ("llama.rope.scaling.attn_factor", 2., "attn_factor"),
    ("tokenizer.ggml.remove_extra_whitespaces", True, "remove_extra_whitespaces"), ("tokenizer.ggml.some_new_thing", "x", "some_new_thing"),
    ("split.count", 2, "file 1 of 2 of a model"), ("general.type", "adapter", "not a model, but of the type 'adapter'")], ids=str)
def test_what_a_gguf_says_of_numbers_is_not_passed_over(tokenizer, tmp_path, said, value, kind):
    export_gguf(random_model(), tokenizer, tmp_path/"a.gguf")
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", **{said: value})
    with pytest.raises(ValueError, match=re.escape(kind)) as caught: load_pretrained(tmp_path/"b.gguf", "cpu")
    assert "b.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("said", [{"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.}, {"llama.rope.scaling.factor": 1.}, {"llama.rope.scale_linear": 0.},
                                  {"llama.expert_count": 0}, {"tokenizer.ggml.add_space_prefix": False}, {"llama.attention.sliding_window": 0}, {"general.type": "model"}], ids=str)
def test_what_says_nothing_changes_nothing(tokenizer, tmp_path, said):
    model = random_model()
    export_gguf(model, tokenizer, tmp_path/"a.gguf")
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", **said)
    again, _ = load_pretrained(tmp_path/"b.gguf", "cpu")
    assert torch.equal(again.head.weight, model.head.weight)


@pytest.mark.parametrize("name", ["llama.rope.scale_linear", "llama.rope.scaling.factor"])
def test_a_factor_alone_slows_all_pairs_alike(tokenizer, tmp_path, name):
    export_gguf(random_model(), tokenizer, tmp_path/"a.gguf")
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", **{name: 4.})
    assert load_pretrained(tmp_path/"b.gguf", "cpu")[0].config.rope_scaling == RopeScaling(4., original_max_seq_len=1)


def test_other_words_of_a_family_are_told(tokenizer, tmp_path):
    export_gguf(random_model(), tokenizer, tmp_path/"a.gguf")
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", **{"llama.logit_scale": 2.})
    with pytest.warns(UserWarning, match="logit_scale = 2.0"): load_pretrained(tmp_path/"b.gguf", "cpu")


def add_said(source, path, tokens=None, kinds=None, **said):
    "Copy a GGUF file; say more in it, or the same otherwise."
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    types = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in said: continue
        value = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}.get(name) or field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[1] if len(field.types) > 1 else None)
    for name, value in said.items():
        if value is not None: writer.add_key_value(name, value, types[type(value)])
    for tensor in reader.tensors: writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_texts_that_llama_cpp_stops_at(tokenizer, tmp_path, end, kind):
    ours = BpeTokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
    export_gguf(random_model(), ours, tmp_path/"a.gguf")
    said = GgufFile(tmp_path/"a.gguf").said
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    at = tokens.index("<|im_start|>")
    tokens[at], kinds[at] = end, kind
    tokens[tokens.index(TURN, at)] = end if end == TURN else "<|other|>"
    if end == TURN: tokens[at] = "<|im_start|>"; at = tokens.index(TURN)
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", tokens=tokens, kinds=kinds)
    _, read = load_pretrained(tmp_path/"b.gguf", "cpu")
    assert end_ids(read) == {ours.special_tokens[END], at} and read.encode(f"a{end}")[-1] == at


@pytest.mark.parametrize("say", ["added_tokens_decoder", "eos_token", "as a dict", "extra_special_tokens", "additional_special_tokens", "special_tokens_map.json", "added_tokens.json"])
def test_a_token_that_only_the_other_file_names(tmp_path, say):
    flags = dict(content=TURN, lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    made = hf(size=300)
    more = {"added_tokens_decoder": {str(made.get_vocab_size()): flags}, "eos_token": TURN, "as a dict": {"__type": "AddedToken"} | flags,
            "extra_special_tokens": [TURN], "additional_special_tokens": [TURN]}
    name = "eos_token" if say in ("as a dict", "special_tokens_map.json") else say
    folder = folder_of(made, tmp_path, **({name: more[say]} if say in more else {}))
    if say == "added_tokens.json": (folder/say).write_text(json.dumps({TURN: made.get_vocab_size()}), "utf-8", newline="\n")
    elif say not in more: (folder/"special_tokens_map.json").write_text(json.dumps({"eos_token": TURN}), "utf-8", newline="\n")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    _, ours = load_pretrained(folder, "cpu")
    assert ours.encode(f"one{TURN}two") == theirs(f"one{TURN}two").input_ids
    assert ours.special_tokens[TURN] == made.get_vocab_size() and (ours.special_tokens[TURN] in end_ids(ours)) == (name == "eos_token")
    export_pretrained(random_model(vocab_size=400), ours, tmp_path/"b")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path/"b")(f"one{TURN}").input_ids == ours.encode(f"one{TURN}")


@pytest.mark.parametrize("said, why", [
    ({"added_tokens_decoder": {"390": {"content": TURN}}}, "the id 390"), ({"eos_token": {"content": TURN, "single_word": True}}, "single_word"), ({"split_special_tokens": True}, None),
    ({"add_prefix_space": True}, "a space before"), ({"some_new_option": 3}, None), ({"pad_token": "[PAD]"}, None)], ids=str)
def test_what_a_tokenizer_config_says_is_refused_or_told(tmp_path, said, why):
    folder = folder_of(hf(size=300), tmp_path, random_model(vocab_size=hf(size=300).get_vocab_size() if "pad_token" in said else 400), **said)
    if why:
        with pytest.raises(ValueError, match=re.escape(why)): load_pretrained(folder, "cpu")
    else:
        with pytest.warns(UserWarning, match="no id for it" if "pad_token" in said else next(iter(said))): load_pretrained(folder, "cpu")


@pytest.mark.parametrize("change, why", [
    ({"truncation": {"max_length": 4}}, None), ({"padding": {"strategy": "BatchLongest"}}, None), ({"some_new_section": {"a": 1}}, "some_new_section"),
    ({"post_processor": {"type": "NewKind"}}, "NewKind"), ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}}, "Lowercase"),
    ({"decoder": {"type": "WordPiece"}}, "WordPiece"), ({"model": {"dropout": .1}}, "dropout"), ({"model": {"some_new_option": True}}, "some_new_option"),
    *(({"added_tokens": {flag: True}}, flag) for flag in ("single_word", "some_new_flag"))], ids=str)
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_every_section_of_a_tokenizer_file_is_looked_at(tmp_path, kind, change, why):
    path = tmp_path/"tokenizer.json"
    (BpeTokenizer.train(["the other then the end"], 270) if kind == "bytes" else pieces()).save(path)
    data = json.loads(path.read_text("utf-8"))
    for name, value in change.items():
        if name == "model": data["model"] |= value
        elif name == "added_tokens": data["added_tokens"][0] |= value
        else: data[name] = value
    path.write_text(json.dumps(data), "utf-8", newline="\n")
    if why:
        with pytest.raises(ValueError): load_tokenizer(tmp_path)
        with pytest.raises(ValueError): (BpeTokenizer if kind == "bytes" else SentencePiece).load(path)
    else:
        with pytest.warns(UserWarning, match=next(iter(change))): load_tokenizer(tmp_path)


@pytest.mark.parametrize("added, why", [   # `END` stands in the vocabulary with the last of 300 ids, the others do not
    ([(END, 299)], None), ([(END, 299), (END, 299)], None), ([(END, 299), ("<b>", 300), ("<c>", 301)], None), ([("<b>", 300), (END, 299), ("<b>", 300)], None),
    ([(END, 299), (END, 300)], "two ids, 299 and 300"), ([(END, 300), (END, 299)], "two ids, 299 and 300"), ([("<b>", 300), ("<b>", 301)], "two ids, 300 and 301"),
    ([("<b>", 301)], "the next free one, 300"), ([("<b>", 299)], "the next free one, 300"), ([("<b>", 301), ("<c>", 300)], "the next free one, 300"), ([(END, 299), ("<b>", 300), ("<c>", 302)], "the next free one, 301")], ids=str)
def test_an_added_token_has_the_id_that_tokenizers_gives_it_or_is_refused(tmp_path, added, why):
    path = tmp_path/"tokenizer.json"
    BpeTokenizer.train(["".join(map(chr, range(300, 400)))*2], 300, [END]).save(path)
    data = json.loads(path.read_text("utf-8"))
    data["added_tokens"] = [data["added_tokens"][0] | {"content": token, "id": id} for token, id in added]
    path.write_text(json.dumps(data), "utf-8", newline="\n")
    theirs, text = tokenizers.Tokenizer.from_file(str(path)), "".join(f"a{token}" for token, _ in added)
    same = all(theirs.token_to_id(token) == id for token, id in added)
    assert same == (why is None)
    for load in lambda: BpeTokenizer.load(path), lambda: load_tokenizer(tmp_path):
        if same: assert load().encode(text) == theirs.encode(text).ids
        else:
            with pytest.raises(ValueError, match=why) as caught: load()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said, told", [({"rope_scaling": {"factor": 4.}}, "factor"), ({"rope_parameters": {"rope_theta": 1e4, "beta_fast": 3.}}, "beta_fast"),
                                        ({"rope_scaling": {"type": "linear", "beta_slow": 2.}}, "beta_slow"), ({"some_new_option": 3}, None), ({"logit_scale": .5}, None)], ids=str)
def test_what_a_config_says_is_refused_or_told(tokenizer, tmp_path, said, told):
    export_pretrained(random_model(), tokenizer, tmp_path)
    data = json.loads((tmp_path/"config.json").read_text("utf-8")) | said
    (tmp_path/"config.json").write_text(json.dumps(data), "utf-8", newline="\n")
    if told:
        with pytest.raises(ValueError, match=told): load_pretrained(tmp_path, "cpu")
    else:
        with pytest.warns(UserWarning, match=next(iter(said))): load_pretrained(tmp_path, "cpu")


def test_what_a_generation_config_forbids_is_told_and_its_ends_are_kept(tokenizer, tmp_path):
    export_pretrained(random_model(), tokenizer, tmp_path)
    (tmp_path/"generation_config.json").write_text(json.dumps({"suppress_tokens": [3], "temperature": .6, "eos_token_id": [7]}), "utf-8", newline="\n")
    with pytest.warns(UserWarning, match=r"generation_config.json has settings that are ignored: suppress_tokens = \[3\]$"): _, read = load_pretrained(tmp_path, "cpu")
    assert 7 in read.ends
    (tmp_path/"generation_config.json").unlink()
    data = json.loads((tmp_path/"config.json").read_text("utf-8")) | {"eos_token_id": [8, 9]}
    (tmp_path/"config.json").write_text(json.dumps(data), "utf-8", newline="\n")
    assert {8, 9} <= load_pretrained(tmp_path, "cpu")[1].ends


def test_what_we_write_is_all_understood(tokenizer, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in "a", "b.gguf":
            (export_gguf if name[1:] else export_pretrained)(random_model(), tokenizer, tmp_path/name)
            load_pretrained(tmp_path/name, "cpu")


@pytest.mark.parametrize("fuse", [False, True])
def test_an_unknown_byte_has_a_token(tmp_path, fuse):
    made = hf(alphabet=False, size=60, unk_token="[UNK]", fuse_unk=fuse)
    made.save(str(tmp_path/"tokenizer.json"))
    ours = BpeTokenizer.load(tmp_path/"tokenizer.json")
    ours.save(tmp_path/"again.json")
    (tmp_path/"text").write_text("the öther\n öö end, 漢字 then" * 9, "utf-8", newline="\n")
    for text in [*HARD, "the öther", "öö", "漢字漢", (tmp_path/"text").read_text("utf-8")]:
        ids = made.encode(text).ids
        assert ours.encode(text) == ids == list(ours.encode_iterable(iter(text), block=1)), text
        assert tokenizers.Tokenizer.from_file(str(tmp_path/"again.json")).encode(text).ids == ids
    assert np.concatenate([ids for _, ids in encode_spans(ours, [whole_file_span(tmp_path/"text")], block=64)]).tolist() == ids
    data = json.loads((tmp_path/"tokenizer.json").read_text("utf-8"))
    data["model"]["unk_token"] = "[NONE]"
    (tmp_path/"tokenizer.json").write_text(json.dumps(data), "utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"unknown token '\[NONE\]' is not in"): BpeTokenizer.load(tmp_path/"tokenizer.json")


# ---- A. What stands around a prompt

def template(made, single, *names):
    made.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=[(name, made.token_to_id(name)) for name in names])
    return made


@pytest.mark.parametrize("how", ["<s> $A", "$A </s>", "<s> $A </s>", "<s> <s> $A", "sequence", "add_bos_token", "add_eos_token", "add_bos_token against the file", "byte-level"])
def test_prompts_are_fed_as_transformers_feeds_them(tmp_path, how):
    made, config = hf(special=(END, "<s>", "</s>")), {"bos_token": "<s>", "eos_token": "</s>"}
    if "$A" in how: template(made, how, *{name for name in ("<s>", "</s>") if name in how})
    elif how == "sequence": made.post_processor = processors.Sequence([processors.ByteLevel(), template(hf(special=(END, "<s>", "</s>")), "<s> $A", "<s>").post_processor])
    elif how == "byte-level": made.post_processor = processors.ByteLevel(trim_offsets=False)
    else: config[how.split()[0]] = "against" not in how
    if "against" in how: template(made, "<s> $A", "<s>")
    model = random_model(vocab_size=400)
    folder = folder_of(made, tmp_path/"a", model, **config)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    with (pytest.warns(UserWarning, match=how.split()[0]) if "add" in how else warnings.catch_warnings()): _, ours = load_pretrained(folder, "cpu")
    export_pretrained(model, ours, tmp_path/"b")
    _, again = load_pretrained(tmp_path/"b", "cpu")
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path/"b")
    for text in "the other", "un", END:
        wanted = theirs(text).input_ids
        assert first_ids(model, ours, text) == wanted == first_ids(model, again, text) == auto(text).input_ids
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    ours.save(tmp_path/"tokenizer.json")
    assert BpeTokenizer.load(tmp_path/"tokenizer.json").rules == ours.rules
    if how == "<s> <s> $A": return
    gguf_like = BpeTokenizer(ours.vocab, ours.merges, ours.special_tokens, rules=ours.rules)
    gguf_like.roles = ours.roles
    export_gguf(model, gguf_like, tmp_path/"model.gguf")
    assert first_ids(model, load_pretrained(tmp_path/"model.gguf", "cpu")[1], "the") == first_ids(model, ours, "the")


def test_generation_goes_on_from_what_transformers_reads(tmp_path):
    model = random_model(vocab_size=400)
    folder = folder_of(template(hf(special=(END, "<s>")), "<s> $A", "<s>"), tmp_path/"a", model, bos_token="<s>")
    tokens, theirs = transformers.AutoTokenizer.from_pretrained(folder), None
    export_pretrained(model, load_pretrained(folder, "cpu")[1], tmp_path/"b")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"b", dtype=torch.float32)
    read, ours = load_pretrained(tmp_path/"b", "cpu")
    said = theirs.generate(**tokens("the other", return_tensors="pt"), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    ids = torch.tensor([first_ids(read, ours, "the other")])
    assert generate_ids(read, ids, 8, temperature=0.)[0].tolist() == said.tolist()


@pytest.mark.parametrize("bos, eos", [(True, False), (False, False), (None, None), (True, True)])
@pytest.mark.parametrize("pattern", ["gpt-2", "llama-bpe"])
def test_prompts_are_fed_as_llama_cpp_feeds_them(tokenizer, tmp_path, llama_cpp, bos, eos, pattern):
    ours = BpeTokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens, PRE_TOKENIZERS[pattern], ignore_merges=pattern == "llama-bpe")
    model = random_model()
    export_gguf(model, ours, tmp_path/"a.gguf")
    add_said(tmp_path/"a.gguf", tmp_path/"b.gguf", **{"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos})
    _, read = load_pretrained(tmp_path/"b.gguf", "cpu")
    server = llama_cpp(tmp_path/"b.gguf")
    for text in "the other", "hi<|im_end|>":
        assert ask(server, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"] == first_ids(model, read, text), text


def pieces(**more):
    "A tokenizer as Llama 2's."
    texts = ["▁", *"hoetan", "▁h", "▁ho", "th", "the"]
    return SentencePiece({i: text for i, text in enumerate(texts)}, [("▁", "h"), ("▁h", "o"), ("t", "h"), ("th", "e")], [*range(20, 276)], {"<unk>": 276, "<s>": 277, "</s>": 278}, **more)


def test_an_empty_prompt_begins_as_the_tokenizer_says(tmp_path):
    model = random_model(vocab_size=279)
    said = pieces()
    said.roles, said.ends = {"bos_token": "<s>", "eos_token": "</s>"}, {278}
    assert first_ids(model, said, "") == [277] and isinstance(generate(model, said, "", 3), str)
    export_pretrained(model, said, tmp_path)
    assert first_ids(model, load_pretrained(tmp_path, "cpu")[1], "") == [277]
    assert first_ids(model, pieces(rules=Rules(before=(277,))), "") == [277]
    with pytest.raises(ValueError, match="the prompt is empty"): first_ids(model, pieces(), "")


# ---- B. A tokenizer's own work is done on every path, and outlives its own file

def composing(pattern=GPT2):
    made = hf(special=(END,))
    made.normalizer = normalizers.NFC()
    return made


DECOMPOSED = "cafe\u0301 un un un, e\u0301\u0301 \u1100\u1161\u11a8. " + f"A\u030a{END}\u0338 q\u0307\u0323, \u0958. \u0344"


@pytest.mark.parametrize("block", [1, 5, 1 << 14])
def test_letters_are_composed_on_every_path(tmp_path, block):
    made, text = composing(), DECOMPOSED * 40
    made.save(str(tmp_path/"tokenizer.json"))
    wanted = made.encode(text).ids
    for ours in load_tokenizer(tmp_path), BpeTokenizer.load(tmp_path/"tokenizer.json"), Composed.load(tmp_path/"tokenizer.json"):
        assert ours.encode(text) == wanted == list(ours.encode_iterable([text], block=block)) == list(ours.encode_iterable(iter(text), block=block))
    assert ours.encode_batch([text]) == [wanted]
    (tmp_path/"text").write_text(text, "utf-8", newline="")
    assert np.concatenate([ids for _, ids in encode_spans(ours, [whole_file_span(tmp_path/"text")], block=max(block, 64))]).tolist() == wanted
    assert np.concatenate([ids for _, ids in encode_spans(ours, [whole_file_span(tmp_path/"text")])]).tolist() == wanted
    ours.save(tmp_path/"again.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path/"again.json")).encode(text).ids == wanted == type(ours).load(tmp_path/"again.json").encode(text)
    with pytest.raises(ValueError, match="rewrites"): ours.to_tiktoken()


def test_letters_are_composed_for_learning_and_for_the_data_command(tmp_path, capsys):
    assert count_corpus([DECOMPOSED], [END], normalizer="NFC") == count_corpus([part for part in map(normalizers.NFC().normalize_str, DECOMPOSED.split(END))])
    assert "café".encode() in Composed.train(["cafe\u0301 " * 9], 262).vocab.values()
    composing().save(str(tmp_path/"tokenizer.json"))
    (tmp_path/"text.txt").write_text(DECOMPOSED * 99, "utf-8", newline="")
    for processes in "1", "2":
        data_command(["--tokenizer", str(tmp_path/"tokenizer.json"), "--corpus", str(tmp_path/"text.txt"), "--output", str(tmp_path/"out"), "--num_processes", processes])
        ids = np.concatenate([load_ids(tmp_path/"out"/name) for name in ("train.bin", "val.bin")]).tolist()
        assert ids == composing().encode(DECOMPOSED * 99).ids


def test_a_special_token_that_composing_makes_is_ordinary(tmp_path):
    "It is looked for before."
    ours = Composed({i: bytes([i]) for i in range(256)}, [], ["é"])
    (tmp_path/"text").write_text("e\u0301 é" * 2000, "utf-8", newline="\n")
    assert np.concatenate([ids for _, ids in encode_spans(ours, [whole_file_span(tmp_path/"text")])]).tolist() == ours.encode("e\u0301 é" * 2000)
    assert ours.encode("e\u0301") == [*"é".encode()]


def test_pieces_outlive_their_file(tmp_path):
    said = pieces(rules=Rules(before=(277,)))
    said.save(tmp_path/"tokenizer.json")
    for again in SentencePiece.load(tmp_path/"tokenizer.json"), load_tokenizer(tmp_path):
        assert (again.vocab, again.merges, again.rules) == (said.vocab, said.merges, said.rules)
    assert tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json")).encode("ho the").ids == first_ids(random_model(vocab_size=279), again, "ho the")
    with pytest.raises(ValueError, match="tiktoken"): said.to_tiktoken()


@pytest.mark.parametrize("token", ["the", " the", "t", " ", "!", "then", "hello", "éé"])
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_a_token_may_be_ordinary_and_special(tmp_path, token, ignore_merges):
    learnt = BpeTokenizer.train(["the other then the end " * 20], 280, [])
    ours = BpeTokenizer(learnt.vocab, learnt.merges, [token], ignore_merges=ignore_merges)
    ours.save(tmp_path/"tokenizer.json")
    again, theirs = BpeTokenizer.load(tmp_path/"tokenizer.json"), tokenizers.Tokenizer.from_file(str(tmp_path/"tokenizer.json"))
    for text in "the other then the end", "athe hello then!", " the t", token * 3, f"a{token}b":
        assert ours.encode(text) == again.encode(text) == theirs.encode(text).ids, text
        assert ours.encode(text, "none") == again.encode(text, "none"), text
        assert ours.decode(ours.encode(text)) == text
    assert (again.vocab, again.special_tokens) == (ours.vocab, ours.special_tokens)
    if not ignore_merges: assert ours.encode("the other " + token, "none") == learnt.encode("the other " + token)


@pytest.mark.parametrize("token", ["hello", "the", "he he"])
def test_tokens_that_were_added_without_being_special(tmp_path, token):
    made = hf()
    made.add_tokens([token])
    made.save(str(tmp_path/"a.json"))
    ours = BpeTokenizer.load(tmp_path/"a.json")
    ours.save(tmp_path/"b.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path/"b.json"))
    text = f"the {token} others{token}{END} end"
    assert ours.encode(text) == made.encode(text).ids == again.encode(text).ids == BpeTokenizer.load(tmp_path/"b.json").encode(text)
    assert again.decode(ours.encode(text), skip_special_tokens=True) == made.decode(made.encode(text).ids, skip_special_tokens=True) == text.replace(END, "")


# ---- 4. tiktoken, and time

@pytest.mark.parametrize("special", [["<a>", "<a><b>"], ["<a><b>", "<a>"], ["<|x|>", "<|x|>y", "<|x|>yz"], ["a", "ab", "abc", "abcd"]], ids=str)
def test_tiktoken_gives_the_same_ids_or_is_refused(special):
    ours = BpeTokenizer.train(["the other then the end " * 20], 280, special)
    try: theirs = ours.to_tiktoken()
    except ValueError as error: assert "a shorter special token" in str(error)
    else:
        for text in "".join(special), special[-1] * 3, "z".join(reversed(special)): assert theirs.encode(text, allowed_special="all") == ours.encode(text)


def test_tiktoken_refuses_what_it_would_join_otherwise():
    every = {i: bytes([i]) for i in range(256)}
    for vocab, merges, why in [(every | {256: b"ab", 257: b"abc"}, [(b"a", b"b")], "other merges"), (every | {256: b"bc", 257: b"abc", 258: b"ab"}, [(b"b", b"c"), (b"a", b"bc"), (b"a", b"b")], None),
                               ({i: bytes([i]) for i in range(128)}, [], "not among the tokens")]:
        ours = BpeTokenizer(vocab, merges)
        if why:
            with pytest.raises(ValueError, match=why): ours.to_tiktoken()
        else:
            for text in "abc", "ababc", "abcab": assert ours.to_tiktoken().encode(text) == ours.encode(text)


# ---- G. Places are counted in the whole text

def test_half_a_character_is_found_in_the_whole_text(tokenizer):
    text = "hello world, good \ud83d"
    for work in (lambda: tokenizer.encode(text), lambda: tokenizer.encode(text, "none"), lambda: list(tokenizer.encode_iterable([text[:9], text[9:]], block=2)),
                 lambda: list(tokenizer.encode_iterable(iter(text))), lambda: tokenizer.encode_batch(["a", text]), lambda: BpeTokenizer.train([text], 260),
                 lambda: BpeTokenizer({i: bytes([i]) for i in range(128)}, []).encode(text), lambda: Composed(tokenizer.vocab, []).encode(text)):
        with pytest.raises(UnicodeEncodeError, match=r"position 18\b|position 18-18"): work()


def test_a_byte_without_an_id_is_found_in_the_whole_text(tmp_path):
    ours, text = BpeTokenizer({i: bytes([i]) for i in range(128)}, [], [END]), f"hello{END} world, good \u00e9" + " and so on" * 99
    at = text.index("\u00e9")
    for work in (lambda: ours.encode(text), lambda: list(ours.encode_iterable([text[:9], text[9:]], block=2)), lambda: list(ours.encode_iterable(iter(text)))):
        with pytest.raises(ValueError, match=f"byte 0xc3 of '\u00e9' is not in the vocabulary; it stands at position {at}$"): work()
    path = tmp_path/"text.txt"
    path.write_text("♠".replace("♠", "a. ") * 5000 + text, "utf-8", newline="\n")
    for block in 64, 1 << 20:
        with pytest.raises(ValueError, match=f"text.txt holds '\u00e9' at position {15000 + at}, whose byte 0xc3"): list(encode_spans(ours, [whole_file_span(path)], block=block))


# ---- C. Sharing that the configuration does not know

def two_blocks(model): model.blocks[1].ffn = model.blocks[0].ffn
def head_and_embedding(model): model.head.weight = model.embedding.weight
def within_a_block(model): model.blocks[0].ffn.w1.weight = model.blocks[0].ffn.w3.weight
def a_block(model): model.blocks[1] = model.blocks[0]
def norms(model): model.norm.weight = model.blocks[0].ffn_norm.weight
def a_view(model): model.blocks[0].ffn.w1.weight = torch.nn.Parameter(model.blocks[1].ffn.w1.weight.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("share", [two_blocks, head_and_embedding, within_a_block, a_block, norms, a_view])
def test_what_is_shared_without_a_word_is_read_back(tokenizer, tmp_path, share, dtype):
    model, ids = random_model(), torch.randint(320, (2, 30))
    share(model)
    optimizer = AdamW(model.parameters(), 1e-3)
    save_model(model, tmp_path/"model.safetensors", dtype)
    save_checkpoint(model, optimizer, 3, tmp_path/"checkpoint.pt")
    export_pretrained(model, tokenizer, tmp_path/"folder", dtype=dtype)
    export_gguf(model, tokenizer, tmp_path/"model.gguf", dtype=dtype)
    near = dict(rtol=0, atol=0) if dtype == torch.float32 else dict(rtol=.1, atol=.1)
    with torch.no_grad():
        wanted = model(ids)
        for read in load_model(tmp_path/"model.safetensors", "cpu"), load_model(tmp_path/"checkpoint.pt", "cpu"), *(load_pretrained(tmp_path/name, "cpu")[0] for name in ("folder", "model.gguf")):
            assert_close(read(ids), wanted, **near)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/"folder", dtype=torch.float32)
        assert compare_with_transformers(model, theirs, ids)[0] < (1e-3 if dtype == torch.float32 else .1)
        assert compare_with_transformers(model, as_transformers(model), ids)[0] < 1e-3
    if share is a_view: return   # two parameters with one memory: no optimiser can tell
    other = random_model()
    with pytest.raises(ValueError, match="another model or optimiser") as caught: load_checkpoint(tmp_path/"checkpoint.pt", other, AdamW(other.parameters(), 1e-3))
    assert "\n" not in str(caught.value)
    share(other)
    assert load_checkpoint(tmp_path/"checkpoint.pt", other, AdamW(other.parameters(), 1e-3)) == 3


def test_models_that_are_not_what_they_say_are_refused(tokenizer, tmp_path):
    model = random_model(tie=True)
    model.head.weight = torch.nn.Parameter(model.embedding.weight + 1)
    for write in (lambda: save_model(model, tmp_path/"m.safetensors"), lambda: save_checkpoint(model, AdamW(model.parameters(), 1e-3), 1, tmp_path/"c.pt")):
        with pytest.raises(ValueError, match="ties its head to its embedding, but the two differ"): write()
    model = random_model()
    model.blocks.append(model.blocks[0])
    for write in (lambda: export_pretrained(model, tokenizer, tmp_path), lambda: export_gguf(model, tokenizer, tmp_path/"m.gguf")):
        with pytest.raises(ValueError, match=r"blocks\.2\.attention"): write()
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".gguf", ".safetensors", ".pt")]


# ---- E. A width that is guessed

@pytest.mark.parametrize("ids, vocab_size, why", [
    (np.arange(70_000, 70_100, dtype=np.uint32), 100_277, "uint16"), (np.arange(100, dtype=np.uint32), 300, "uint16"), (np.arange(100, dtype=np.int64), 300, "uint16"), (np.arange(100, dtype=np.uint32), None, "uint16"),
    (np.arange(100, dtype=np.uint16), 65_537, "uint16"), (np.arange(101, dtype=np.uint8), 300, "uint16"), (np.arange(250, 350, dtype=np.uint16), 300, "the id 300 at position 50"),
    (np.arange(100, dtype=np.uint16), 65_536, None), (np.zeros(100, np.uint16), 300, None), (np.array([5, 0] * 4, np.uint16), 300, "uint16")], ids=str)
def test_a_file_of_bare_ids_is_wide_enough(tmp_path, ids, vocab_size, why):
    ids.tofile(tmp_path/"t.bin")
    if why is None: assert load_ids(tmp_path/"t.bin", vocab_size).tolist() == ids.tolist()
    else:
        with pytest.raises(ValueError, match=why) as caught: load_ids(tmp_path/"t.bin", vocab_size)
        assert "t.bin" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("vocab_size", [256, 65_536])
def test_ids_that_do_not_fit_are_not_written(tmp_path, vocab_size):
    with open(tmp_path/"t.bin", "wb") as file, pytest.raises(ValueError, match=f"the id {vocab_size} at position 1"): write_ids(file, [np.array([0, vocab_size])], vocab_size)
