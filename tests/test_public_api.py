"""The names and signatures that notebooks, tests and users rely on."""
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import llm_course

root = Path(__file__).parents[1]
FACADE = """Transformer TransformerBlock MultiHeadAttention ScaledDotProductAttention FFN RoPE RmsNorm Embedding Linear Softmax
CrossEntropyLoss AdamW SGDDecay cos_lr_scheduler gradient_clip""".split()

# Each name, and the parameters that it takes in this order; `...` where more may follow.
SIGNATURES = {
    "linear.Linear": "in_features out_features bias=False device=None dtype=None",
    "embedding.Embedding": "num_embeddings embedding_dim device=None dtype=None",
    "rmsnorm.RmsNorm": "d_model eps=1e-05 device=None dtype=None",
    "ffn.FFN": "d_model d_ff device=None dtype=None",
    "ffn.SiLu": "",
    "softmax.Softmax": "dim=-1",
    "softmax.Softmax.forward": "self x",
    "attention.ScaledDotProductAttention.forward": "self q k v mask=None",
    "rope.RoPE": "d_k max_seq_len theta=10000.0 ...",
    "rope.RoPE.forward": "self x token_positions=None",
    "multihead.MultiHeadAttention": "d_model num_heads num_kv_heads=None max_seq_len theta ...",
    "loss.CrossEntropyLoss.forward": "self logits targets",
    "optim.SGDDecay": "params lr",
    "optim.AdamW": "params lr betas eps weight_decay ...",
    "optim.gradient_clip": "params max_norm",
    "schedule.cos_lr_scheduler": "it warmup_iters cos_cycle_iters lr_min lr_max",
    "transformer.TransformerBlock": "d_model num_heads d_ff ...",
    "transformer.Transformer": "vocab_size max_seq_len d_model num_layers num_heads d_ff rope_theta=10000.0 ...",
    "checkpoint.save_checkpoint": "model optimizer iteration out ...",
    "checkpoint.load_checkpoint": "source model optimizer=None",
    "checkpoint.load_model": "path device=None parts=None",
    "training.train": "config parts=None model=None examine=None",
    "data.get_batch": "dataset batch_size max_seq_len device ...",
    "data.fetch": "name ...",
    "generating.generate_ids": "model ids max_tokens temperature top_p ...",
    "generating.generate": "model tokenizer prompt max_tokens=100 temperature=0.8 top_p=0.9 ...",
    "generating.stream": "model tokenizer prompt ...",
    "bpe_tokenizer.BpeTokenizer": "vocab merges special_tokens=None pattern ...",
    "bpe_tokenizer.BpeTokenizer.train": "source vocab_size special_tokens ...",
    "bpe_tokenizer.BpeTokenizer.load": "path",
    "bpe_tokenizer.BpeTokenizer.from_gpt2": "vocab_json merges_txt ...",
    "bpe_tokenizer.BpeTokenizer.from_tiktoken": "path ...",
    "bpe_tokenizer.BpeTokenizer.from_hf": "path",
    "bpe_tokenizer.BpeTokenizer.encode": "self text ...",
    "bpe_tokenizer.BpeTokenizer.encode_iterable": "self chunks ...",
    "bpe_tokenizer.BpeTokenizer.decode": "self ids",
    "bpe_tokenizer.BpeTokenizer.save": "self path",
}


def look_up(path):
    module, *names = path.split(".")
    found = importlib.import_module(f"llm_course.{module}")
    for name in names: found = getattr(found, name)
    return found


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature(path):
    actual = inspect.signature(look_up(path)).parameters
    expected = SIGNATURES[path].split()
    open_ended = expected[-1:] == ["..."]
    expected = expected[:-1] if open_ended else expected
    names = [name for name, p in actual.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert names[:len(expected)] == [word.split("=")[0] for word in expected]
    assert open_ended or len(names) == len(expected), f"more parameters than the contract has: {names}"
    for word in expected:
        name, _, default = word.partition("=")
        if default: assert str(actual[name].default) == default


FIRST_EDITION = {   # what the first edition called them: the name of today
    "bpe_tokenizer.visible": "readable_token", "rope.look_up": "look_up_turns",
    "checkpoint.bare": "unwrap_model", "checkpoint.build": "build_model", "generating.continuations": "stream_ids",
    "health.last": "last_value", "health.band": "band_of_runs",
    "pretrained.rename": "rename_parameter", "pretrained.is_turned": "is_turned_by_rope", "pretrained.fill": "fill_model",
    "pretrained.differences": "compare_with_transformers",
}


@pytest.mark.parametrize("path", FIRST_EDITION)
def test_a_name_of_the_first_edition_still_works_and_is_not_offered(path):
    module, _, name = path.partition(".")
    assert look_up(path) is look_up(f"{module}.{FIRST_EDITION[path]}")
    offered = look_up(module).__all__
    assert name not in offered and FIRST_EDITION[path] in offered


def test_transformer_is_a_facade_for_parts_two_and_three():
    transformer = importlib.import_module("llm_course.transformer")
    for name in FACADE:
        assert name in transformer.__all__
        assert importlib.import_module(getattr(transformer, name).__module__).__dict__[name] is getattr(transformer, name)


@pytest.mark.parametrize("name", llm_course.__all__)
def test_package_offers_the_name_lazily(name):
    assert getattr(llm_course, name) is look_up(f"{llm_course._home[name]}.{name}")
    assert name in dir(llm_course)


@pytest.mark.parametrize("name", [*FACADE, "BpeTokenizer"])
def test_package_offers_what_the_facade_does(name): assert name in llm_course.__all__


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Transfomer'"): _ = llm_course.Transfomer


CHEAP = {   # a line of Python: heavy modules that it has no need of
    "import llm_course; llm_course.__version__": "torch numpy matplotlib tyro",
    "import llm_course.bpe_tokenizer": "torch matplotlib",
    "llm('--help')": "torch numpy matplotlib",
    "llm('train', '--help')": "torch numpy matplotlib",
    "llm('generate', '--help')": "torch numpy matplotlib",
    "llm('train', '--d_modle', '8')": "torch numpy matplotlib",
    "llm('tokens', 'To', 'be')": "torch matplotlib",
    "llm('generate', '--prompt', 'O', '--max_tokens', '1', '--device', 'cpu')": "matplotlib einx sympy torch._dynamo torch.fx.experimental.symbolic_shapes",
}


@pytest.mark.parametrize("line", CHEAP)
def test_nothing_waits_for_what_it_does_not_need(line):
    "Modules are counted, not seconds."
    code = f"""import sys
def llm(*words):
    from llm_course.engine.commands import main
    try: main([*words])
    except SystemExit: pass
{line}
print(*[name for name in {CHEAP[line].split()} if name in sys.modules], file=sys.stderr)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8").stderr.splitlines()[-1] == ""


CLIENT = f"""# mypy: disallow-untyped-calls, disallow-any-generics, disallow-untyped-defs, warn-return-any, warn-unused-ignores, strict-equality
from pathlib import Path
from typing import assert_type
from collections.abc import Iterator
from llm_course import {', '.join(llm_course.__all__)}
from llm_course import Nonsense  # type: ignore[attr-defined]
import llm_course
llm_course.generates  # type: ignore[attr-defined]
model = load_model("checkpoint.pt")
tokenizer = BpeTokenizer.load("tokenizer.json")
assert_type(model, Transformer)
assert_type(tokenizer.encode("a text"), list[int])
assert_type(generate(model, tokenizer, "one"), str)
assert_type(generate(model, tokenizer, ["one", "two"], top_k=3), list[str])
assert_type(stream(model, tokenizer, "one"), Iterator[str])
assert_type(stream(model, tokenizer, ["one"]), Iterator[list[str]])
generate(model, tokenizer, 1)  # type: ignore[type-var]
generate(model, tokenizer, "one", min_p=.1, stop="x", seed=3, ahead=2)
generate(model, tokenizer, "one", max_new_tokens=3)  # type: ignore[call-arg]
generate(model, tokenizer, "one", top_k="3")  # type: ignore[arg-type]
stream(model, tokenizer, "one", stop=["x"], repetition_penalty=1.1)
stream(model, tokenizer, "one", topk=3)  # type: ignore[call-arg]
config = TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), iterations=3)
assert_type(config.lr_max, float)
TrainConfig(train_data=Path("train.bin"), val_data=Path("val.bin"), iterations="3")  # type: ignore[arg-type]
assert_type(train(config).done, int)
def best(n: int) -> float: return train(config).best
"""


def test_a_strict_type_checker_knows_every_name(tmp_path):
    "Each comment is an error that mypy must find: an unused one is an error, too. It takes the project's settings, and so what it knows of the package already."
    pytest.importorskip("mypy")   # in a process of its own, since what it learns fills a gigabyte
    (tmp_path/"client.py").write_text(CLIENT, "utf-8", newline="\n")
    done = subprocess.run([sys.executable, "-m", "mypy", "--config-file", root/"pyproject.toml", "--cache-dir", root/".mypy_cache", tmp_path/"client.py"],
                          capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_version_comes_from_settings():
    from configparser import ConfigParser
    from pathlib import Path
    settings = ConfigParser()
    settings.read(Path(__file__).parent.parent/"settings.ini")
    assert settings["DEFAULT"]["version"] == llm_course.__version__
