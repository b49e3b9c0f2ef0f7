"""The machine in the browser: the same ids, logits and shares as Python's, and a page that all can use. Chromium runs it."""
import base64
import gzip
import json
import random
import re
import time
import unicodedata
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import book
import pytest
import render
import torch
from conftest import PATIENCE
from safetensors.torch import load_file, save_file

from llm_course.bpe import PATTERNS, learn_merges, pre_tokens
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import save_model
from llm_course.generating import DEMO, Sampling, load_demo, next_probabilities
from llm_course.optim import AdamW, gradient_clip
from llm_course.schedule import cos_lr_scheduler
from llm_course.transformer import ModelConfig, Transformer

expect = pytest.importorskip("playwright.sync_api").expect
root = Path(__file__).parents[1]
phone, desk = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The page and its model, as the site has them."
    folder = tmp_path_factory.mktemp("site")/"machine"
    render.machine(folder)
    return folder


@pytest.fixture(scope="module")
def scripts(browser):
    "A window with the page's scripts and nothing else."
    window = browser.new_page()
    for name in "tokenizer", "model": window.add_script_tag(path=root/"web"/"machine"/f"{name}.js")
    window.evaluate("""() => {
      globalThis.refusal = work => { try { return {found: work()} } catch (error) { return {refused: error.message, name: error.constructor.name} } }
      globalThis.unpack = packed => Uint8Array.from(atob(packed), letter => letter.charCodeAt(0)).buffer }""")
    yield window
    window.close()


def packed(path): return base64.b64encode(Path(path).read_bytes()).decode()


@cache
def hostile(count, seed=0):
    "Texts of all that Unicode has assigned, of what is odd, and of what patterns look at; no half characters."
    chance = random.Random(seed)
    assigned = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    odd = [*list("\x00\t\n\r\v\f\x1c\x1f \x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\ufeff\u200d'’ſKİıßǅʕ\u0301\u0345²½٣一😀👩‍👩‍👧/._-"), "\r\n", "\n\n", "  "]
    words = ["I'LL", "don't", "'ſ", "we'Re", " the", "123456", "naïve", "ROMEO:", " \n ", "<|endoftext|>", "<|end", "!!!", "a" * 40, "  \t", "日本語", "ǅungla"]
    kinds = [assigned, odd, words, list("abcdeé 's1.\n")]
    return ["".join(chance.choice(chance.choice(kinds)) for _ in range(chance.randrange(24))) for _ in range(count)]


@cache
def learnt_from_hostile(): return BpeTokenizer.train([*hostile(2000)[:200], "the king will not go to the house of the king " * 9], 400, ["<|endoftext|>", "<|end|>", "<|endoftext|>2"])


# ---- The tokenizer

@pytest.mark.parametrize("name", PATTERNS)
def test_ids_are_equal_on_hostile_texts(scripts, name, tmp_path):
    texts, learnt = hostile(2000)[:2000 if name == "gpt2" else 500], learnt_from_hostile()   # two thousand for our own pattern
    tokenizer = BpeTokenizer(learnt.vocab, learnt.merges, learnt.special_tokens, name)
    tokenizer.save(tmp_path/"tokenizer.json")
    got = scripts.evaluate("""([file, texts]) => { const t = llm.readTokenizer(file)
      return texts.map(text => { const ids = t.encode(text); return [ids, t.decode(ids) === text] }) }""", [(tmp_path/"tokenizer.json").read_text("utf-8"), texts])
    assert all(same for _, same in got)
    assert [ids for ids, _ in got] == [tokenizer.encode(text) for text in texts]


def test_the_demos_ids_are_equal_and_long_texts_too(scripts):
    texts = [(DEMO/"held_out.txt").read_text("utf-8")[:20000], *hostile(2000)]
    got = scripts.evaluate("([file, texts]) => { const t = llm.readTokenizer(file); return texts.map(text => t.encode(text)) }", [(DEMO/"tokenizer.json").read_text("utf-8"), texts])
    demo = BpeTokenizer.load(DEMO/"tokenizer.json")
    assert got == [demo.encode(text) for text in texts]


def test_special_tokens_of_odd_letters_are_found_by_older_browsers_too(scripts, tmp_path):
    special = ["<|a-b|>", "[x]+", "a.b", "/s", "^$"]
    tokenizer = BpeTokenizer.train(["the king"], 256 + len(special), special)
    tokenizer.save(tmp_path/"tokenizer.json")
    text = "x".join(special) + " a-b [x] aXb / ^ $"
    got = scripts.evaluate("""([file, text]) => { const encoded = () => llm.readTokenizer(file).encode(text), escape = RegExp.escape
      const found = [encoded()]
      delete RegExp.escape
      try { return [...found, encoded()] } finally { if (escape) RegExp.escape = escape } }""", [(tmp_path/"tokenizer.json").read_text("utf-8"), text])
    assert got == [tokenizer.encode(text)] * 2


def test_what_foreign_files_ask_for_is_done(scripts, tmp_path):
    "NFC, a token for unknown bytes, a vocabulary before merges, ids before a text."
    tokenizer = BpeTokenizer.train(["aaaa bbbb é"], 262, ["<s>"])
    tokenizer.save(tmp_path/"tokenizer.json")
    data = json.loads((tmp_path/"tokenizer.json").read_text("utf-8"))
    del data["model"]["vocab"]["z"]
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    data["model"] |= {"unk_token": "<s>", "fuse_unk": True, "ignore_merges": True}
    data["model"]["merges"] = data["model"]["merges"][:2]
    (tmp_path/"tokenizer.json").write_text(json.dumps(data), "utf-8", newline="\n")
    texts = ["zzzazz", "e\u0301", "aaaa bbbb", "<s>z"]
    want = [BpeTokenizer.load(tmp_path/"tokenizer.json").encode(text) for text in texts]
    assert scripts.evaluate("([file, texts]) => { const t = llm.readTokenizer(file); return texts.map(text => t.encode(text)) }", [json.dumps(data), texts]) == want


TRANSLATED = [r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|.|\n", r"a{,2}b|(?>a+)a|.|\n", r"\s+$|\S+|\s", r"(?i:[sdk]t|we)+?|[\x41-\u005a\]\-]|\pL|\P{L}", r"(?<=a)b|(?<!a)b|[\s\S]", r"\p{Han}+|\p{^Han}", r"[[a^]+|[^[a^]", r"\U0001F600+|(?=x)x|\d+|\D", r"(?i:'s|'ll|kiS)|[\d\D]", r"a{,}b|[\s\S]", r"(?i:\x4b[\x53a]|\pL\u0061)|[\s\S]"]


@pytest.mark.parametrize("pattern", TRANSLATED)
def test_patterns_are_translated(scripts, pattern):
    texts = [*hostile(300, 1), "aab aaab b", "K ſt sT KT", "a \n", "漢字x", "[a^]", "12٣", "\U0001F600\U0001F600x", "it'S 'LL KIſ"]
    assert scripts.evaluate("([pattern, texts]) => { const cut = llm.splitter(pattern); return texts.map(cut) }", [pattern, texts]) == [pre_tokens(text, pattern) for text in texts]


@pytest.mark.parametrize("pattern", [r"(a)|.", r"\w+|.", r"\bx|.", r"(?i)x|.", r"(?i:é)|.", r"[[:alpha:]]|.", r"(?<=a++)b|.", r"(?P<x>a)|.", r"*a", r"[a", r"(a", r"a)", r"\p{Nonsense}|.", r"(?i:[a-z])|.", "x\\", r"[z-a]", r"a{3,1}", r"(?i:\p{Lu})|.", r"(?i:[^\p{Ll}])|.", r"(?i:\xe9)|."])
def test_patterns_that_cannot_be_said_are_refused_in_one_sentence(scripts, pattern):
    got = scripts.evaluate("pattern => refusal(() => llm.splitter(pattern)('x'))", pattern)
    assert got.get("name") == "Refused" and re.fullmatch(r"The tokenizer's pattern [^\n]+\.", got["refused"]), got


def test_a_pattern_that_leaves_out_a_part_is_refused(scripts):
    assert scripts.evaluate("() => refusal(() => llm.splitter('a')('ab'))")["refused"] == "The tokenizer's pattern leaves out 1 of the text's 2 characters."


def test_merges_are_learnt_as_in_chapter_1(scripts):
    text = "low lower lowest, newer newest: the wider the newer. ééé 京京 aaaa bbbb " * 2
    words = {}
    for piece in pre_tokens(text): words[piece.encode()] = words.get(piece.encode(), 0) + 1
    want = learn_merges(words, 36)
    got = scripts.evaluate("text => [...llm.learnt(text)].slice(1, 37).map(({pair}) => pair.map(part => [...llm.bytesOf(part)]))", text)
    assert [tuple(map(bytes, pair)) for pair in got] == want


# ---- The model

SHAPES = {
    "grouped": dict(num_kv_heads=2, dropout=0.1), "tied": dict(tie=True), "biases": dict(qkv_bias=True), "normed": dict(qk_norm=True, num_kv_heads=1, norm_eps=1e-3), "wide heads": dict(d_k=10, rope_theta=500.0),
    "long": dict(rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=16)), "all": dict(num_kv_heads=2, tie=True, qkv_bias=True, qk_norm=True, d_k=6)}
LOGITS = """([file, ids]) => { const m = llm.readModel(unpack(file)); m.read(ids); const rows = ids.map((_, i) => Array.from(m.look(i).logits)); m.read(ids.slice(0, 3)); m.read(ids)
  return {rows, again: Array.from(m.look(ids.length - 1).logits), shares: m.shares(0, 0).map(row => Array.from(row)), count: m.count} }"""


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_logits_are_torchs_on_random_models(scripts, name, tmp_path):
    model = Transformer(37, 24, 24, 2, 4, 20, **SHAPES[name]).eval()
    for parameter in model.parameters(): parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2) + (parameter.ndim == 1))
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype).float()
        save_model(model, tmp_path/"model.safetensors", dtype)
        ids = torch.randint(37, (17,))
        got = scripts.evaluate(LOGITS, [packed(tmp_path/"model.safetensors"), ids.tolist()])
        torch.testing.assert_close(torch.tensor(got["rows"]), model(ids), rtol=0, atol=1e-4)
        assert got["again"] == got["rows"][-1]   # with a beginning that was read before
        assert got["count"] == sum(p.numel() for p in model.parameters())


def test_every_option_of_a_model_is_among_these():
    sizes = "vocab_size", "max_seq_len", "d_model", "num_layers", "num_heads", "d_ff"
    assert {field.name for field in fields(ModelConfig)} - {"variant"} == {*sizes, *(name for options in SHAPES.values() for name in options)}


def test_a_model_of_another_family_is_refused_in_one_sentence(scripts, tmp_path):
    save_file({}, tmp_path/"model.safetensors", {"config": json.dumps(asdict(ModelConfig()) | {"variant": {"gelu": True}})})
    assert scripts.evaluate("file => refusal(() => llm.readModel(unpack(file)))", packed(tmp_path/"model.safetensors"))["refused"].startswith("This model is of another family than Llama's")


@torch.no_grad()
def test_logits_are_torchs_on_the_demo_model(scripts):
    model, tokenizer = load_demo("cpu")
    ids = torch.tensor(tokenizer.encode((DEMO/"held_out.txt").read_text("utf-8"))[:40])
    got = scripts.evaluate(LOGITS, [packed(DEMO/"model.safetensors"), ids.tolist()])
    torch.testing.assert_close(torch.tensor(got["rows"]), model(ids), rtol=0, atol=1e-4)
    assert all(abs(sum(row) - 1) < 1e-5 and len(row) == i + 1 for i, row in enumerate(got["shares"]))


@torch.no_grad()
def test_what_the_boxes_show_is_torchs(scripts):
    "Each vector on the way of one token, and what the stream says at each depth."
    model, tokenizer = load_demo("cpu")
    ids = tokenizer.encode("ROMEO: What is the king")
    got = scripts.evaluate("""([file, ids]) => { const m = llm.readModel(unpack(file)), plain = x => x instanceof Float32Array ? Array.from(x) : Array.isArray(x) ? x.map(plain) : x && typeof x === "object" ? Object.fromEntries(Object.entries(x).map(([name, part]) => [name, plain(part)])) : x
      m.read(ids)
      return plain(m.look(5)) }""", [packed(DEMO/"model.safetensors"), ids])
    close = lambda found, wanted: torch.testing.assert_close(torch.tensor(found), wanted[5], rtol=0, atol=1e-4)
    says, x = [], model.embedding(torch.tensor(ids))
    close(got["embedding"], x)
    streams = [x]
    for block, seen in zip(model.blocks, got["blocks"], strict=True):
        attention, ffn, normed = block.attention, block.ffn, block.attention_norm(x)
        found = attention(normed)
        middle = x + found
        normed2 = block.ffn_norm(middle)
        gate, value = torch.nn.functional.silu(ffn.w1(normed2)), ffn.w3(normed2)
        wanted = dict(before=x, normed=normed, q=attention.q_proj(normed), k=attention.k_proj(normed), v=attention.v_proj(normed), found=found, middle=middle, normed2=normed2, gate=gate, value=value, passed=gate * value, thought=ffn(normed2))
        q, k = (attention.rope(part.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)) for part in (wanted["q"], wanted["k"]))
        scores = (q @ k.mT)[:, 5, :6] / attention.d_k**0.5
        torch.testing.assert_close(torch.tensor(seen["scores"]), scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(seen["shares"]), scores.softmax(-1), rtol=0, atol=1e-4)
        close(seen["turned"], q.transpose(0, 1).flatten(1))
        x = middle + wanted["thought"]
        for name, tensor in (wanted | {"out": x}).items(): close(seen[name], tensor)
        streams += middle, x
    for stream in streams: says.append(model.head(model.norm(stream))[5].softmax(-1).topk(3))
    assert [[one["id"] for one in best] for best in got["lens"]] == [best.indices.tolist() for best in says]
    torch.testing.assert_close(torch.tensor([[one["share"] for one in best] for best in got["lens"]]), torch.stack([best.values for best in says]), rtol=0, atol=1e-4)


def test_a_step_of_training_is_torchs(scripts):
    "The loss of each target, the gradient of the head, its length, AdamW's step, and the loss after it."
    model, tokenizer = load_demo("cpu")
    ids = tokenizer.encode("ROMEO: What is the king")
    got = scripts.evaluate("""([file, ids]) => { const m = llm.readModel(unpack(file))
      m.read(ids)
      const before = Array.from(m.look(3).logits), found = m.learn(llm.rateAt(300), 4)
      m.read(ids.slice(0, 2))
      m.read(ids)
      return {...found, gradient: Array.from(found.gradient), change: Array.from(found.change), same: before.every((logit, i) => logit === m.look(3).logits[i])} }""", [packed(DEMO/"model.safetensors"), ids])
    assert got["same"] and got["targets"] == ids[1:] and got["shown"] == ids[5]
    inputs, targets, weight = torch.tensor(ids[:-1]), torch.tensor(ids[1:]), model.head.weight
    losses = lambda: torch.nn.functional.cross_entropy(model(inputs), targets, reduction="none")
    before = losses()
    torch.testing.assert_close(torch.tensor(got["losses"]), before, rtol=0, atol=1e-4)
    before.mean().backward()
    gradient = weight.grad.clone()
    norm = gradient_clip([weight], 1.)
    assert got["norm"] == pytest.approx(norm.item(), rel=1e-4) and norm > 1   # so that clipping shows
    torch.testing.assert_close(torch.tensor(got["gradient"]), gradient[ids[5]], rtol=0, atol=1e-5)
    old = weight.detach().clone()
    AdamW([weight], lr=cos_lr_scheduler(300, 100, 1000, 0., 0.01), weight_decay=0.01).step()
    change = weight.detach() - old
    torch.testing.assert_close(torch.tensor(got["change"]), change[ids[5]], rtol=1e-4, atol=1e-6)
    assert got["ratio"] == pytest.approx((change.norm() / old.norm()).item(), rel=1e-3)
    torch.testing.assert_close(torch.tensor(got["after"]), losses().detach(), rtol=0, atol=1e-3)
    assert sum(got["after"]) < sum(got["losses"])


def test_the_learning_rate_is_chapter_14s(scripts):
    steps = [0, 1, 50, 99, 100, 101, 550, 999, 1000, 2000]
    assert scripts.evaluate("steps => steps.map(step => llm.rateAt(step))", steps) == pytest.approx([cos_lr_scheduler(step, 100, 1000, 0., 0.01) for step in steps])


@torch.no_grad()
def test_a_head_that_is_off_says_nothing(scripts, tmp_path):
    model = Transformer(11, 8, 16, 2, 4, 8).eval()
    for parameter in model.parameters(): parameter.copy_(torch.randn_like(parameter) * 0.4)
    save_model(model, tmp_path/"model.safetensors", torch.float32)
    ids = torch.randint(11, (6,))
    got = scripts.evaluate("([file, ids]) => { const m = llm.readModel(unpack(file)); m.read(ids); m.read(ids, [5]); return Array.from(m.look(5).logits) }", [packed(tmp_path/"model.safetensors"), ids.tolist()])
    model.blocks[1].attention.output_proj.weight[:, 4:8] = 0   # of block 2, what head 2 hands on
    torch.testing.assert_close(torch.tensor(got), model(ids)[-1], rtol=0, atol=1e-4)


def test_the_demo_has_the_heads_that_chapter_9_asks_for(scripts):
    tokenizer = BpeTokenizer.load(DEMO/"tokenizer.json")
    ids = tokenizer.encode("ROMEO:\nI know the king; he will not come.")
    got = scripts.evaluate("""([file, ids]) => { const m = llm.readModel(unpack(file)); m.read(ids)
      return [0, 1, 2].flatMap(block => [0, 1, 2, 3].map(head => m.shares(block, head).map(row => Array.from(row)))) }""", [packed(DEMO/"model.safetensors"), ids])
    line = ids.index(tokenizer.encode("\n")[0])
    mean = lambda rows, place: sum(row[place(i)] for i, row in enumerate(rows) if i > line + 1) / (len(ids) - line - 2)
    assert max(mean(rows, lambda i: line) for rows in got) > 0.5 and max(mean(rows, lambda i: i - 1) for rows in got) > 0.4


# ---- The draw

HOW = [dict(), dict(temperature=0.0), dict(temperature=1.0, top_p=1.0), dict(top_k=3), dict(top_k=50, top_p=0.5), dict(top_p=0.0), dict(min_p=0.1, top_p=1.0), dict(temperature=1.7, top_k=9, top_p=0.8, min_p=0.05), dict(top_k=1), dict(min_p=1.0)]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_shares_to_draw_from_are_torchs(scripts, how):
    for logits in torch.randn(20, 60) * 3, torch.randint(4, (20, 60)).float():   # the second ones have ties
        want = next_probabilities(logits, torch.zeros(20, 1, dtype=torch.long), Sampling(**how))
        got = torch.tensor(scripts.evaluate("([rows, how]) => rows.map(row => Array.from(llm.nextProbabilities(Float32Array.from(row), how)))", [logits.tolist(), asdict(Sampling(**how))]), dtype=torch.float32)
        assert torch.equal(got > 0, want > 0)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_draw_is_the_first_id_whose_sum_exceeds_the_chance(scripts):
    assert scripts.evaluate("chances => chances.map(chance => llm.draw([0, .25, 0, .5, .25, 0], chance))", [0, .2, .25, .5, .7499, .75, .999999, 1]) == [1, 1, 3, 3, 3, 4, 4, 4]


# ---- Files that are damaged, or of another kind

def test_a_damaged_model_gets_one_sentence(scripts, tmp_path):
    model = Transformer(11, 8, 16, 2, 4, 8)
    save_model(model, tmp_path/"model.safetensors", torch.float16)
    whole, chance = (tmp_path/"model.safetensors").read_bytes(), random.Random(0)
    size = 8 + int.from_bytes(whole[:8], "little")
    files = [whole[:n] for n in (0, 7, 8, 60, size, size + 9, len(whole) - 1)] + [b"PK\3\4" + whole, b"\xff" * 99]
    for _ in range(150):   # anything but a digit of a weight
        at = chance.randrange(size)
        files.append(whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1:])
    tensors = load_file(tmp_path/"model.safetensors")
    config = asdict(model.config)
    for change in dict(num_layers=10**6), dict(num_layers=1), dict(d_model=18), dict(num_kv_heads=3), dict(d_k=5), dict(rope_theta=0), dict(tie="yes"), dict(vocab_size=None), dict(toString=1), dict(rope_scaling={}):
        save_file(tensors, tmp_path/"other.safetensors", {"config": json.dumps(config | change)})
        files.append((tmp_path/"other.safetensors").read_bytes())
    broken = tensors | {"norm.weight": torch.full((16,), torch.nan)}
    for other, about in (tensors, {}), (broken, {"config": json.dumps(config)}), (tensors | {"more": torch.ones(1)}, {"config": json.dumps(config)}), (tensors, {"config": json.dumps(config), "parts": '{"norm": "mine"}'}):
        save_file(other, tmp_path/"other.safetensors", about)
        files.append((tmp_path/"other.safetensors").read_bytes())
    got = scripts.evaluate("files => files.map(file => refusal(() => { llm.readModel(unpack(file)) }))", [base64.b64encode(file).decode() for file in files])
    for file, said in zip(files, got):
        if "refused" not in said and len(file) == len(whole): continue   # a letter that changes nothing that matters
        assert said.get("name") == "Refused" and re.fullmatch(r"This [^\n]+\.", said["refused"]), said
    assert sum("refused" in said for said in got) > len(files) * 0.6


def test_a_damaged_tokenizer_gets_one_sentence(scripts):
    data = json.loads((DEMO/"tokenizer.json").read_text("utf-8"))
    model = data["model"]
    files = ["", "{", "[]", "null", '{"model": 3}', json.dumps(data)[:1000]]
    changes = [dict(model=model | change) for change in (dict(type="Unigram"), dict(vocab=[]), dict(merges=None), dict(merges=[["a", "zzz"]]), dict(merges=[3]), dict(byte_fallback=True), dict(vocab=model["vocab"] | {"a": -1}), dict(vocab=model["vocab"] | {"a": 7.5}), dict(vocab=model["vocab"] | {"a": 98}), dict(vocab=model["vocab"] | {"京": 5000}), dict(dropout=0.1))]
    changes += [dict(pre_tokenizer=None), dict(pre_tokenizer={"type": "Whitespace"}), dict(normalizer={"type": "Lowercase"}), dict(decoder={"type": "Metaspace"}), dict(post_processor={"type": "Other"}), dict(added_tokens=[dict(id=1023, content="x", lstrip=True)]), dict(added_tokens=3), dict(added_tokens=[dict(id=1023, content="")]), *(dict(added_tokens=[data["added_tokens"][0], dict(id=id, content=text)]) for id, text in ((1024, "<|endoftext|>"), (1023, "x"), (2000, "x"))), dict(added_tokens=[dict(id=1024, content="<|endoftext|>")]), dict(model=model | dict(unk_token="<nope>")), dict(surprise=1)]
    files += [json.dumps(data | change) for change in changes]
    for file, said in zip(files, scripts.evaluate("files => files.map(file => refusal(() => { llm.readTokenizer(file) }))", files)):
        assert said.get("name") == "Refused" and re.fullmatch(r"(This|Merge)[^\n]+\.", said["refused"]), (file[-80:], said)
    assert scripts.evaluate("file => refusal(() => llm.readTokenizer(file).encode('a\\ud800'))", json.dumps(data))["refused"] == "The text holds half a character."


# ---- The page

def test_all_of_it_is_small(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_500_000


@pytest.fixture(scope="module", params=[(phone, "light"), (desk, "dark")], ids=["phone", "desk"])
def page(request, browser, folder):
    "The page, opened from the disk; what goes wrong in it, and what it asks the world for, is noted."
    size, scheme = request.param
    window = browser.new_page(viewport=size, color_scheme=scheme)
    window.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    window.troubles, window.asked = [], []
    window.on("console", lambda message: window.troubles.append(message.text) if message.type in ("error", "warning") else None)
    window.on("pageerror", lambda error: window.troubles.append(str(error)))
    window.on("request", lambda asked: window.asked.append(asked.url))
    window.goto((folder/"index.html").as_uri())
    window.wait_for_selector("body[data-read]")
    yield window
    window.close()


def settled(page, count):
    "Wait until the machine has read so many tokens."
    page.wait_for_selector(f"body[data-read='{count}']")


def first_shares(page): return page.locator("#next .bars .amount").all_inner_texts()


def test_a_text_becomes_tokens_and_the_next_is_drawn(page):
    tokenizer = BpeTokenizer.load(DEMO/"tokenizer.json")
    ids = tokenizer.encode("Enter the king")
    page.get_by_label("Type anything").fill("Enter the king")
    settled(page, len(ids))
    assert page.locator("#text .chip small").all_inner_texts() == [str(i) for i in ids]
    model, _ = load_demo("cpu")
    with torch.no_grad(): shares = model(torch.tensor(ids))[-1].softmax(-1)
    assert page.locator("#softmax .bars .token").first.inner_text() == tokenizer.decode([int(shares.argmax())]).replace(" ", "·").replace("\n", "⏎")
    page.get_by_role("button", name="Draw the next token").click()
    settled(page, len(ids) + 1)
    assert "was drawn" in page.locator("#next").inner_text()
    page.get_by_role("button", name="Take one back").click()
    settled(page, len(ids))
    assert page.locator("#typed").input_value() == "Enter the king" and not page.troubles


def test_dials_move_the_shares_and_keys_choose_a_token(page):
    page.get_by_label("Type anything").fill("ROMEO: What is")
    settled(page, 8)
    before = first_shares(page)
    page.locator("#next input[type=range]").first.focus()
    for _ in range(8): page.keyboard.press("ArrowRight")
    assert first_shares(page) != before
    page.locator("#next input[type=range]").nth(1).fill("2")
    assert sum(amount != "cut" for amount in first_shares(page)) == 2
    page.locator("#text .chip[aria-pressed=true]").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#text .chip").nth(6)).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.activeElement === document.querySelectorAll('#text .chip')[6]")
    assert "the text continues with" in page.locator("#next").inner_text()


def test_a_head_can_be_switched_off(page):
    page.get_by_label("Type anything").fill("ROMEO: What is")
    expect(page.locator("#text .chip").nth(7)).to_have_attribute("aria-pressed", "true")
    before = page.locator("#head .bars").inner_text()
    for head in range(4): page.locator("#heads input[type=checkbox]").nth(head).click()
    expect(page.locator("#attention")).to_contain_text("This head is off")
    expect(page.locator("#head .bars")).not_to_have_text(before, use_inner_text=True)
    assert "with all heads on" in page.locator("#next").inner_text()
    for head in range(4): page.locator("#heads input[type=checkbox]").nth(head).click()
    expect(page.locator("#head .bars")).to_have_text(before, use_inner_text=True)


def boxes(page): return page.evaluate("[...document.querySelectorAll('#plan a')].map(link => [link.getAttribute('href').slice(1), ...link.textContent.match(/(.+) ([0-9]+)$/).slice(1)])")


def test_every_box_of_the_front_page_is_there_and_leads_to_its_chapter(page):
    chapters = {f"{book.number(path):02}": render.address(path.relative_to(root).as_posix()) for path in book.parts()}
    front = next(cell for cell in json.loads((root/"nbs"/"index.ipynb").read_text("utf-8"))["cells"] if cell["id"] == "machine")
    wanted = re.findall(r'aria-label="([^"]+), chapter (\d\d)"', "".join(front["outputs"][0]["data"]["text/html"]))
    assert len(wanted) > 20 and {*wanted} == {(label, number) for _, label, number in boxes(page)}
    for target, _, number in boxes(page):
        links = page.locator(f"#{target} .chapter").evaluate_all("links => links.map(link => [link.textContent, link.getAttribute('href')])")
        assert [f"chapter {number}", f"../{chapters[number]}"] in links, (target, number)


def test_behind_every_box_are_the_numbers_of_the_token_that_is_followed(page):
    page.get_by_label("Type anything").fill("ROMEO: What is")
    settled(page, 8)
    parts = sorted({target for target, *_ in boxes(page)} - {"block", "training"})
    shown = lambda: {part: page.evaluate("part => { const box = document.querySelector(`#${part} .live`) ?? document.querySelector(`#${part}`); return box.innerHTML + Array.from(box.querySelectorAll('canvas'), canvas => canvas.toDataURL()).join() }", part) for part in parts}
    before = shown()
    assert all(re.search(r"\d", said) for said in before.values()) and page.locator("#plan").is_visible()
    page.locator("#text .chip").nth(4).click()
    expect(page.locator("#embedding")).to_contain_text("Row 58")
    unmoved = {part for part, said in shown().items() if said == before[part]}
    assert unmoved == {"data", "loss", "schedule", "health", "checkpoint"}   # these are of the whole text, or of the model
    loss = page.locator("#loss").inner_text()
    page.locator("#schedule input").fill("0")
    expect(page.locator("#health")).to_contain_text("0 %")
    assert page.locator("#loss").inner_text() != loss
    names = page.locator("#checkpoint tbody th").all_inner_texts()
    page.locator("#block .choice input").nth(2).click()
    expect(page.locator("#checkpoint")).to_contain_text("blocks.2.ffn.w1.weight")
    assert len(names) == 12 and len(page.locator("#lens tbody tr").all()) == 7   # the embedding, and twice for each block
    page.get_by_label("Type anything").fill("a")
    settled(page, 1)
    assert page.locator("#loss").inner_text().endswith("two tokens.")


def test_it_writes_on_until_it_is_stopped(page):
    page.get_by_label("Type anything").fill("ROMEO: What is")
    settled(page, 8)
    page.get_by_role("button", name="Write on").click()
    page.wait_for_selector("#text .chip:nth-child(21)")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Write on")).to_be_visible()
    written, tokenizer = page.locator("#typed").input_value(), BpeTokenizer.load(DEMO/"tokenizer.json")   # whole when the writing stops; the tokens follow when they have been read
    def shown(): return tokenizer.decode([int(number) for number in page.locator("#text .chip small").all_inner_texts()])
    end = time.monotonic() + PATIENCE / 1000
    while shown() != written and time.monotonic() < end: page.wait_for_timeout(50)
    assert shown() == written == page.locator("#typed").input_value() and not page.troubles


def test_it_fits_and_can_be_read_by_all(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    noted = len(page.troubles)
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    del page.troubles[noted:]   # axe tries to fetch style sheets, and may not
    assert not [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found]
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0


def test_a_readers_own_model_runs_and_a_broken_one_gets_a_sentence(page, tmp_path):
    told = page.locator("#told")
    (tmp_path/"broken.safetensors").write_bytes(b"no model")
    page.set_input_files("#files", tmp_path/"broken.safetensors")
    expect(told).to_contain_text("This is not a complete .safetensors file")
    page.set_input_files("#files", {"name": "cat.png", "mimeType": "image/png", "buffer": b""})
    expect(told).to_contain_text("cat.png is neither")
    tokenizer = BpeTokenizer.train(["the king and the queen " * 5], 262, ["<|endoftext|>"])
    tokenizer.save(tmp_path/"tokenizer.json")
    save_model(Transformer(262, 16, 24, 1, 6, 16, num_kv_heads=2, tie=True), tmp_path/"model.safetensors")
    page.set_input_files("#files", [tmp_path/"model.safetensors", tmp_path/"tokenizer.json"])
    expect(told).to_contain_text("Your model runs")
    page.get_by_label("Type anything").fill("the king")
    settled(page, len(tokenizer.encode("the king")))
    page.set_input_files("#files", {"name": "config.json", "mimeType": "application/json", "buffer": b"{}"})
    expect(told).to_contain_text("This is not a tokenizer.json")
    page.evaluate("""() => { const data = new DataTransfer()
      data.items.add(new File(["no model"], "dropped.safetensors"))
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})) }""")
    expect(told).to_contain_text("This is not a complete .safetensors file")
    assert len(page.locator("#heads .head").all()) == 6 and "serves 3 heads" in page.locator("#linear").inner_text()
    page.get_by_label("Type anything").fill("the king " * 40)   # more than there is room for
    expect(told).to_contain_text("There is room for 16 tokens")
    assert told.is_visible() and not page.troubles


def test_nothing_leaves_the_page(page, folder):
    assert all(address.startswith((folder.as_uri(), "blob:", "data:")) for address in page.asked)
    refused = page.evaluate("fetch('https://example.org').then(() => 'sent', error => error.name)")
    assert refused == "TypeError" and "connect-src 'none'" in (folder/"index.html").read_text("utf-8")
    page.troubles.clear()


def test_it_can_be_opened_without_a_script(browser, folder):
    window = browser.new_context(java_script_enabled=False).new_page()
    window.goto((folder/"index.html").as_uri())
    assert "needs JavaScript" in window.locator("main").inner_text()
    window.close()


# ---- The figures in the chapters

FIGURES = {"01_bpe": "merges", "08_softmax": "temperature", "09_attention": "looks", "10_rope": "turning", "18_generating": "cuts"}


@pytest.fixture(scope="module")
def figures(browser, folder):
    "All figures on a page like a chapter's."
    divs = "".join(f'<div data-figure="{name}"></div>' for name in FIGURES.values())
    inner = re.search(r"^ *(if .*data-figure.*)$", (root/"web"/"site.js").read_text("utf-8"), re.M)[1].replace("site)", "location.href)")
    (folder.parent/"style.css").write_text((root/"web"/"style.css").read_text("utf-8"), "utf-8", newline="\n")
    (folder.parent/"page.html").write_text(f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>t</title><link rel="stylesheet" href="style.css"><nav class="book" aria-label="b"></nav><main><h1>t</h1>{divs}</main><script>{inner}</script></html>', "utf-8", newline="\n")
    window = browser.new_page(viewport=phone, color_scheme="dark")
    window.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    window.troubles = []
    window.on("pageerror", lambda error: window.troubles.append(str(error)))
    window.goto((folder.parent/"page.html").as_uri())
    expect(window.locator("[data-figure] > .try")).to_have_count(len(FIGURES))
    yield window
    window.close()


def test_every_figure_has_its_place_in_a_chapter():
    for page, name in FIGURES.items():
        cells = json.loads((root/"nbs"/f"{page}.ipynb").read_text("utf-8"))["cells"]
        at = next(i for i, cell in enumerate(cells) if f'<div data-figure="{name}"></div>' in "".join(cell["source"]))
        assert any("image/svg+xml" in out.get("data", {}) for out in cells[at - 1]["outputs"])   # the picture that stands there in Colab and in print
    assert "machine/figures.js" in (root/"_quarto.yml").read_text("utf-8")   # Quarto's pages ask for it as ours do


def test_the_button_says_how_large_the_model_is(folder):
    size = sum(len(gzip.compress((folder/f"demo_{name}.js").read_bytes())) for name in ("model", "tokenizer"))
    assert f'SIZE = "{size / 1e6:.1f} MB"' in (folder/"figures.js").read_text("utf-8")


def test_the_figures_live(figures, folder):
    part = lambda name: figures.locator(f"[data-figure={name}]")
    part("merges").locator("textarea").fill("aaaa aaaa")
    part("merges").locator("input").fill("2")
    expect(part("merges")).to_contain_text("Merge 2 joins aa and aa, which stand side by side 2 times. 3 tokens, of which 2 are distinct.")
    expect(part("temperature").locator(".amount").first).to_have_text("56 %")   # of the scores 3, 2.2, 1.6, 0.2, -1
    part("temperature").locator("input").first.fill("0.05")
    expect(part("temperature").locator(".amount").first).to_have_text("100 %")
    score = part("turning").locator("strong").inner_text()
    part("turning").get_by_role("button", name="Both one on").click()
    assert part("turning").locator("output").all_inner_texts() == ["10", "5"] and part("turning").locator("strong").inner_text() == score
    part("turning").locator("input").first.fill("20")
    assert part("turning").locator("strong").inner_text() != score
    part("looks").scroll_into_view_if_needed()
    start = lambda name: part(name).get_by_role("button", name="Load the demo model (1.7 MB)")
    expect(start("looks")).to_be_visible()
    assert not part("looks").locator("textarea").is_visible() and not figures.locator("script[src*=demo_]").count()   # nobody has asked for it
    model = (folder/"demo_model.js").rename(folder/"away.js")
    start("looks").press("Enter")
    expect(part("looks").get_by_role("status")).to_contain_text("demo_model.js could not be fetched.")
    model.rename(folder/"demo_model.js")
    start("looks").press("Enter")   # it can be tried again
    expect(part("looks")).to_contain_text("takes most from")
    assert figures.evaluate("document.activeElement.ariaLabel") == "A text for the demo model" and not start("looks").count()
    part("looks").locator("button.look").first.click()
    expect(part("looks")).to_contain_text("(100 %)")   # the first token can look at itself alone
    start("cuts").click()
    expect(part("cuts")).to_contain_text("1024 of 1024 tokens are kept")
    part("cuts").locator("input").nth(1).fill("3")
    expect(part("cuts")).to_contain_text("3 of 1024 tokens are kept")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    assert not [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in axe.Axe().run(figures, options={"resultTypes": ["violations"]}).response["violations"]]
    assert figures.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0 and not figures.troubles
    figures.emulate_media(media="print")
    assert not figures.locator(".try").first.is_visible()
