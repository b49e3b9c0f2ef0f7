"""What is refused in one line, and rare ways beside it, that no other test enters: see tests/branches."""
import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import llm_course
from llm_course import evaluation, generating, instruct, rewards, training
from llm_course.bpe import learn_merges
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import check_moments, save_checkpoint, save_model
from llm_course.engine import budget, commands, exchange, gguf, gguf_file, race, recipes, rollouts, speaking, tuning
from llm_course.engine.averages import average_weights
from llm_course.engine.batching import Job, Scheduler, StepResult
from llm_course.engine.benchmarks import _read_parquet
from llm_course.engine.chat import check_messages, encode_chat
from llm_course.engine.commands import one_line
from llm_course.engine.corpora import _keep_copy
from llm_course.engine.data_command import _load_tokenizer
from llm_course.engine.decoding import _bits, _is_plain_block, bind_product
from llm_course.engine.diary import keep_checkpoint, read_history, report
from llm_course.engine.evaluation_command import EvaluationConfig, _texts, compare, open_task
from llm_course.engine.exchange import open_model, open_start
from llm_course.engine.families import Variant
from llm_course.engine.fast_bpe import CacheDict, gpt2_pre_tokens, join_runs
from llm_course.engine.files import count_corpus, helpers_for
from llm_course.engine.foreign_tokenizers import SentencePiece, _read_config, from_hf_pieces, from_scores, to_hf_pieces
from llm_course.engine.hf_config import _one_rope
from llm_course.engine.int8 import at_precision
from llm_course.engine.lora import projection, save_adapter
from llm_course.engine.model_files import Stored, check_weights, without_copies
from llm_course.engine.optimizers import with_step_count
from llm_course.engine.package_index import _uv_tables, read_member
from llm_course.engine.processes import moments_of
from llm_course.engine.reader import Reader
from llm_course.engine.rollouts import RewardsConfig, _reward_kept, find_stop, sample_groups
from llm_course.engine.rope_tables import RopeScaling, scaling_of
from llm_course.engine.run_config import check_types, find_tokenizer, model_in, new_model, settle
from llm_course.engine.speaking import GenerateConfig, check_generate_config
from llm_course.engine.spelling import Rules, Spelling
from llm_course.engine.tasks import Question, _neighbours, question_of, read_questions, write_questions
from llm_course.engine.text_files import Reading, plain_files
from llm_course.engine.tokenizer_command import TokenizerConfig, check_config, train_tokenizer
from llm_course.engine.tokenizer_formats import _hf_pattern, check_added, errors_that_name, from_hf_dict, ids_around, to_hf
from llm_course.engine.tuning import with_template
from llm_course.engine.voices import Voice
from llm_course.evaluation import Result, encode_pair
from llm_course.experiments import bootstrap_laws, fit_law, is_significant
from llm_course.generating import Sampling
from llm_course.grading.grading import sources
from llm_course.instruct import answers
from llm_course.linear import Linear
from llm_course.optim import AdamW
from llm_course.pretrained import export_pretrained
from llm_course.training import TrainConfig, start
from llm_course.transformer import ModelConfig, Transformer, start_small

BYTES = {i: bytes([i]) for i in range(256)}
SHAPE = dict(vocab_size=8, max_seq_len=4, d_model=4, num_layers=1, num_heads=1, d_ff=4)
tiny = BpeTokenizer(BYTES | {256: b"th"}, [(b"t", b"h")], ["<|endoftext|>"])
bytes_of_pieces = [*range(1, 257)]   # the id of each byte; 0 is a letter


def write(path, content=b"x"):
    path.write_bytes(content)
    return path
def rows(path, questions):
    pytest.importorskip("pyarrow.parquet").write_table(__import__("pyarrow").table({"text": questions}), path)
    return path
def packed(path):
    inside = tarfile.TarInfo("inside")
    inside.type = tarfile.DIRTYPE
    with tarfile.open(path, "w") as archive: archive.addfile(inside)
    return path
def stored(shapes, **more): return Stored(Path("x"), ModelConfig(**SHAPE, **more), shapes, None, {}, False)
def run_in(folder, **more):
    write(folder/"x.bin", bytes([0, 0, 1, 0] * 40))
    sizes = SHAPE | dict(batch_size=4, iterations=2, val_batches=1, device="cpu", output=folder/"run", warmup_iters=0)
    return TrainConfig(train_data=folder/"x.bin", val_data=folder/"x.bin", **sizes | more)


class Whole:
    "A model that has to read the whole text each time."
    config, blocks = SimpleNamespace(max_seq_len=4), [object()]
    def __call__(self, ids): return torch.nn.functional.one_hot(ids, 8).float()


def pieces(**more): return dict(pieces={0: "a"}, merges=[], byte_ids=bytes_of_pieces, special_tokens={"</s>": 257}) | more
def held(**changes): return to_hf(tiny.vocab, tiny.merges, tiny.special_tokens, tiny.pattern) | changes
def of_gguf(**said): return {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1], "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": []} | {
    f"tokenizer.ggml.{name}": value for name, value in said.items()}
def of_llama(name="llama", **said):
    sizes = {"context_length": 8, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8, "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5, "attention.sliding_window": 4}
    return {"general.architecture": name} | {f"{name}.{key}": value for key, value in (sizes | said).items()}
def slowed():
    frequency = 1e4 ** -(torch.arange(0, 64, 2) / 64)
    return frequency / RopeScaling(8.).slow(frequency)
def tensors(dims, kind=0): return SimpleNamespace(tensors={"x": (dims, kind, 0)}, start=0)
def written(tokenizer): return lambda folder: gguf._write_tokenizer(SimpleNamespace(**{f"add_{name}": lambda *words: None for name in (
    "tokenizer_model", "tokenizer_pre", "token_list", "token_types", "token_merges", "bos_token_id", "add_bos_token", "add_eos_token")}), tokenizer, tokenizer.vocab_size, {})


REFUSED = {
    "save_model can write only a Transformer": lambda folder: save_model(nn.Linear(2, 2), folder/"x.safetensors"),
    "optimiser has no moments": lambda folder: check_moments([], AdamW([nn.Parameter(torch.ones(2))])),
    "are for models of this course, not for": lambda folder: open_model(folder, "--model_path", parts={"norm": nn.LayerNorm}),
    "names a tensor 3": lambda folder: unwrap(check_weights)("x", ModelConfig(**SHAPE), {3: torch.ones(2)}),   # the tests check types
    "--stop must not be empty": lambda folder: check_generate_config(GenerateConfig(prompt="", stop=("",))),
    "--special_tokens holds an empty one": lambda folder: check_config(TokenizerConfig((folder/"x",), special_tokens=("",))),
    "no law of this form fits": lambda folder: fit_law([(1., 1., 1.), (2., 2., 2.), (4., 4., 4.), (8., 8., 8.), (16., 3., 30.)]),
    "is not smollm2-135m: its sha256 is": lambda folder: _keep_copy("smollm2-135m", write(folder/"x"), folder),
    "x is not UTF-8 text": lambda folder: _texts((write(folder/"x", b"\xff"),), "--text", EvaluationConfig()),
    "x is empty": lambda folder: _texts((write(folder/"x", b""),), "--text", EvaluationConfig()),
    "num_processes must be at least 1, but is 0": lambda folder: count_corpus(["a"], num_processes=0),
    "--precision int3 is not one of": lambda folder: at_precision(nn.Linear(2, 2), "int3"),
    "no LoRA layers to save": lambda folder: save_adapter(Transformer(**SHAPE), folder),
    "adds no token to its prompt": lambda folder: encode_pair(tiny, "a", ""),
    "holds no questions": lambda folder: _read_parquet(rows(folder/"x.parquet", []), question_of),
    "is a folder": lambda folder: read_member(packed(folder/"x.tar"), "inside"),
    "cannot be read as Python": lambda folder: list(sources(write(folder/"x.py", b"# coding: nonsense"))),
    "a KVCache; give one at a time": lambda folder: Reader(Whole(), padding=torch.zeros(1, dtype=torch.int64)),
    "--eval_tasks needs a whole model in each process": lambda folder: settle(run_in(folder, eval_tasks=("cloze",), parallel="fsdp")),
    "--batch_size must be a multiple of the 3 processes, but is 4": lambda folder: start(settle(run_in(folder)), 0, 3),
    "which is not the table of rope_theta": lambda folder: without_copies(stored({"a.rotary_emb.inv_freq": (3,)}), "head", "embedding"),
    "but head differs from embedding": lambda folder: without_copies(stored({"head": (2, 2), "embedding": (3, 3)}, tie=True), "head", "embedding"),
    "message 0 must have a role": lambda folder: check_messages([3]),
    "holds only special tokens": lambda folder: train_tokenizer(TokenizerConfig((write(folder/"x", b"<|endoftext|>"),), 300, folder/"t.json"), BpeTokenizer.learn),
    # tokenizers
    "the pattern leaves out": lambda folder: BpeTokenizer(BYTES, [], pattern=r"\w+|\s+"),
    "the pattern leaves out ": lambda folder: BpeTokenizer.train(["of words alone"], 260, pattern=r"\w+| "),
    "prompts need the token with the id 999, which does not exist": lambda folder: BpeTokenizer(BYTES, [], rules=Rules(before=(999,))),
    "beside an ordinary token with the same spelling": lambda folder: to_hf({**BYTES, 256: "Ġ".encode()}, [], {"Ġ": 256}, "."),
    "by something other than a single pattern": lambda folder: _hf_pattern({"pretokenizers": [{"type": "Punctuation"}, {"type": "ByteLevel", "use_regex": True}]}),
    "by something other than a single pattern ": lambda folder: _hf_pattern({"pretokenizers": [{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, {"type": "ByteLevel", "use_regex": False}]}),
    "is looked for in rewritten text": lambda folder: check_added([{"content": "<x>", "normalized": True}], {"type": "NFC"}),
    "repeats or drops texts": lambda folder: ids_around({"type": "TemplateProcessing", "single": [], "special_tokens": {}}),
    "tiktoken needs ids in the order of the merges": lambda folder: BpeTokenizer({**BYTES, 256: b"he", 257: b"th"}, [(b"t", b"h"), (b"h", b"e")]).to_tiktoken(),
    "it has ids for 3 bytes": lambda folder: SentencePiece(**pieces(byte_ids=[1, 2, 3])),
    "has the score nan": lambda folder: from_scores({0: "a"}, {0: float("nan")}, bytes_of_pieces, {}),
    "it ignores merges": lambda folder: from_hf_pieces({"model": {"vocab": {}, "merges": [], "ignore_merges": True}}),
    # GGUF
    "mixture of experts": lambda folder: gguf.from_gguf_config(of_llama(expert_count=8), None, {}),
    "the 27B of gemma2": lambda folder: gguf.from_gguf_config(of_llama("gemma2", block_count=46), None, {}),
    "scales RoPE by two rules": lambda folder: gguf.from_gguf_config(of_llama(embedding_length=64, **{"attention.head_count": 1, "rope.scale_linear": 2.}), slowed(), {"token_embd.weight": (8, 64), "output.weight": (8, 64)}),
    "it does not begin with GGUF": lambda folder: gguf_file.GgufFile(write(folder/"x.gguf", b"GGML" + bytes(60))),
    "it is of version 1 of the format": lambda folder: gguf_file.GgufFile(write(folder/"x.gguf", b"GGUF\1" + bytes(60))),
    "which no Gemma 3 model has": lambda folder: gguf.from_gguf_config(of_llama("gemma3", attn_logit_softcapping=50.), None, {"token_embd.weight": (8, 8), "output.weight": (8, 8)}),
    "x has no shape": lambda folder: unwrap(gguf_file._layout)(tensors([]), "x"),
    "the rows of x are not whole blocks": lambda folder: unwrap(gguf_file._layout)(tensors([33], 2), "x"),
    "follows a different rule": lambda folder: scaling_of(torch.ones(2), 1e4, 4),
    "follows a different rule ": lambda folder: scaling_of(torch.full((32,), 8.), 1e4, 64),
    "follows a different rule  ": lambda folder: scaling_of(torch.zeros(0), 1e4, 4),
    "it has 2 tokens, and kinds for 1": lambda folder: gguf.from_gguf_tokenizer(of_gguf(token_type=[1])),
    "it holds the token 'a' twice": lambda folder: gguf.from_gguf_tokenizer(of_gguf(tokens=["a", "a"], token_type=[3, 3])),
    "its token 1 is of the kind 9": lambda folder: gguf.from_gguf_tokenizer(of_gguf(token_type=[1, 9])),
    "asks for a bos token at each prompt, but does not say which": lambda folder: gguf.from_gguf_tokenizer(of_gguf(add_bos_token=True)),
    "its bos_token_id is 7": lambda folder: gguf.from_gguf_tokenizer(of_gguf(bos_token_id=7)),
    "cannot say that letters are composed": written(BpeTokenizer(BYTES, [], rules=Rules("NFC"))),
    "cannot describe the tokens (1, 2)": written(BpeTokenizer(BYTES, [], rules=Rules(before=(1, 2)))),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why, tmp_path):
    with pytest.raises(ValueError) as refused: REFUSED[why](tmp_path)
    assert why.strip() in str(refused.value) and "\n" not in str(refused.value)


# ---- Before a model is loaded, and of which model

def refusal(capsys, main, words):
    with pytest.raises(SystemExit) as stopped: main([str(word) for word in words])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(errors) == 1
    return errors[0].removeprefix("error: ")


def model_in_a_folder(folder):
    tokenizer = BpeTokenizer(BYTES, [], ["<|endoftext|>"])
    tokenizer.save(folder/"tokenizer.json")
    model = Transformer(**SHAPE | dict(vocab_size=257, max_seq_len=64))
    save_model(model, folder/"model.safetensors", torch.float32)
    write(folder/"talks.jsonl", b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n')
    write(folder/"prompts.jsonl", b'{"prompt": "a"}\n')
    write(folder/"bad.jsonl", b'{"prompt": "a"}\n{"question": "b"}\n')
    return model


def test_a_file_of_a_models_folder_is_refused_with_the_folder(tmp_path, capsys):
    run, export = tmp_path/"run", tmp_path/"export"
    run.mkdir()
    model = model_in_a_folder(run)
    export_pretrained(model, BpeTokenizer.load(run/"tokenizer.json"), export)
    (run/"config.json").write_text("{}", "utf-8", newline="\n")
    for path in *(export/name for name in ("config.json", "tokenizer.json", "model.safetensors")), run/"config.json":
        said = refusal(capsys, generating.main, ["--model_path", path, "--device", "cpu"])
        assert said == f"--model_path {path} is a file of a model's folder; name the folder, {path.parent}"
    generating.main(["--model_path", str(run/"model.safetensors"), "--max_tokens", "1", "--device", "cpu"])   # whole in itself
    (run/"model.safetensors").write_bytes(b"x")
    assert "is not a model of this course" in refusal(capsys, generating.main, ["--model_path", run/"model.safetensors", "--device", "cpu"])


TALKS = "--train_data talks.jsonl --val_data talks.jsonl --init_from model.safetensors"
ASKED = "--prompts prompts.jsonl --reward math:gcd --init_from model.safetensors"
EARLY = {   # the words of a command, and why it is refused before it loads a model
    "--draft_path missing.pt does not exist": (generating, "--model_path model.safetensors --draft_path missing.pt"),
    "--against missing.safetensors does not exist": (evaluation, "--model_path model.safetensors --tasks sums --against missing.safetensors"),
    "--lr_max must be at least 0": (instruct, f"{TALKS} --lr_max -1"), "--decay slow is not one of": (instruct, f"{TALKS} --decay slow"), "but is float16": (instruct, f"{TALKS} --precision float16"),
    "--iterations must be at least 1": (instruct, f"{TALKS} --iterations 0"), "--warmup_iters <= ": (instruct, f"{TALKS} --iterations 2 --warmup_iters 3"), "--max_seq_len must be at least 1": (instruct, f"{TALKS} --max_seq_len 0"),
    "--lora_rank must be 0 or more": (instruct, f"{TALKS} --lora_rank -1"), "--method ppo is not one of": (rewards, f"{ASKED} --method ppo"), "--group must be at least 2": (rewards, f"{ASKED} --group 1"),
    "--seed must be at least 0": (rewards, f"{ASKED} --seed -1"), "--beta must be 0 or more": (rewards, f"{ASKED} --beta nan"), "--prompts missing does not exist": (rewards, f"{ASKED} --prompts missing"),
    "bad.jsonl, line 2: it must be an object with a prompt": (rewards, f"{ASKED} --prompts bad.jsonl"), "reward nothing:x cannot be loaded": (rewards, f"{ASKED} --reward nothing:x"),
    "reward my_rules.py:score names a file, not a module; write my_rules:score": (rewards, f"{ASKED} --reward my_rules.py:score"),
    "write my_rules:score, and put": (rewards, f"{ASKED} --reward rules/my_rules.py:score"), "put rules on PYTHONPATH": (rewards, f"{ASKED} --reward rules/my_rules:score"),
}

@pytest.mark.parametrize("why", EARLY)
def test_what_is_wrong_is_said_before_a_model_is_loaded(why, tmp_path, monkeypatch, capsys):
    model_in_a_folder(tmp_path)
    def load(*words): raise AssertionError("a model was loaded first")
    for name in "load_model", "load_pretrained": monkeypatch.setattr(exchange, name, load)
    monkeypatch.chdir(tmp_path)
    module, words = EARLY[why]
    assert why in refusal(capsys, module.main, f"{words} --device cpu".split())


@pytest.mark.parametrize("module, words", [(generating, "--prompt a"), (generating, "--prompt a --temperature 0 --precision bfloat16"), (evaluation, "--tasks sums"), (evaluation, "--tasks sums_written"),
                                           (evaluation, "--corpus prompts.jsonl --text_field prompt")], ids=lambda value: value if isinstance(value, str) else "")
def test_a_model_whose_scores_are_not_finite_is_named(module, words, tmp_path, monkeypatch, capsys):
    "Each of its numbers is finite; so it is read."
    model = model_in_a_folder(tmp_path)
    with torch.no_grad(): model.get_parameter("head.weight").fill_(3e38)
    save_model(model, tmp_path/"model.safetensors", torch.float32)
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, module.main, ["--model_path", "model.safetensors", "--device", "cpu", *words.split()]).startswith("model.safetensors: the scores of the next token are not finite")


# ---- Rare ways

def test_a_tokenizer_whose_pattern_leaves_text_out_is_refused_by_its_file(tmp_path):
    tiny.save(tmp_path/"tokenizer.json")
    data = json.loads((tmp_path/"tokenizer.json").read_text("utf-8"))
    for pattern in "", "x", r"\p{L}+| ?\p{N}+|\s+", r" ?\S+":
        data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
        (tmp_path/"tokenizer.json").write_text(json.dumps(data), "utf-8", newline="\n")
        with pytest.raises(ValueError, match="pattern leaves out") as refused: BpeTokenizer.load(tmp_path/"tokenizer.json")
        assert str(refused.value).startswith(f"{tmp_path/'tokenizer.json'} is not a tokenizer")


def test_a_single_special_token_and_a_file_by_its_name(tmp_path):
    made = BpeTokenizer(BYTES, [], "<|x|>")
    made.save(tmp_path/"tokenizer.json")
    assert made.special_tokens == {"<|x|>": 256} == BpeTokenizer.from_hf(tmp_path/"tokenizer.json").special_tokens


def test_pairs_may_be_written_as_texts():
    data = held()
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    assert from_hf_dict(data)["merges"] == tiny.merges
    letters = SentencePiece(**pieces(pieces={0: "a", 258: "aa"}, merges=[("a", "a")]))
    data = to_hf_pieces(letters)
    assert data["model"]["unk_token"] is None
    data["model"]["merges"] = ["a a"]
    assert from_hf_pieces(data).merges == letters.merges


def test_moments_may_be_plain_numbers():
    optimizer = AdamW([nn.Parameter(torch.ones(2))])
    saved = optimizer.state_dict() | {"state": {0: {"step": 3, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}}
    check_moments(saved, optimizer)
    optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()   # the kernel counts in a tensor
    assert optimizer.state_dict()["state"][0]["step"] == 4


def test_what_is_frozen_has_no_mean():
    frozen, learns = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([frozen, learns])
    average_weights(optimizer, .9)
    learns.sum().backward()
    optimizer.step()
    assert "average" in optimizer.state[learns] and frozen not in optimizer.state


def test_an_answer_that_would_join_its_question_stands_alone():
    talk = [{"role": "user", "content": "t"}, {"role": "assistant", "content": "he"}]
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert tiny.encode("the")[0] == 256
    assert encode_chat(tiny, talk, template) == ([*b"the"], [False, True, True])


def test_memory_of_the_machine_and_of_a_container(monkeypatch):
    whole = budget.machine_memory()
    for text, wanted in ("max\n", whole), ("1048576\n", 1 << 20):
        monkeypatch.setattr(budget.Path, "read_text", lambda *words, text=text: text)
        assert budget.machine_memory() == wanted
    def unknown(name): raise ValueError(name)
    monkeypatch.setattr(budget.os, "sysconf", unknown, raising=False)
    assert budget.machine_memory() is None
    monkeypatch.delattr(budget.os, "sysconf", raising=False)
    assert budget.machine_memory() is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_holds_all_scores_at_once(precision):
    config = ModelConfig(**SHAPE | {"vocab_size": 300_000}, dropout=.1)
    here, there = (budget.estimate_memory(config, 16, precision, device=device).peak for device in ("cpu", "cuda"))
    assert there > here


def test_times_are_told_in_the_unit_that_fits():
    assert [budget._duration(seconds) for seconds in (1.5, 300., 7200., 200_000.)] == ["1.5 s", "5.0 min", "2.0 h", "2.3 days"]


def test_two_results_are_compared_if_they_have_questions():
    def result(right): return Result("x", right, [], .5, [])
    assert "too few questions" in compare(result([True]), result([True]))
    assert compare(result([True] * 50), result([False] * 50)).endswith("is shown")


def test_questions_with_an_ending_are_written_and_read(tmp_path):
    question = Question("I", (" am", " is"), 0, " here")
    write_questions(tmp_path/"x.jsonl", [question])
    assert read_questions(tmp_path/"x.jsonl") == (question,) and question.pairs == [("I am", " here"), ("I is", " here")]


def test_a_line_of_metrics_that_is_none_is_skipped(tmp_path):
    assert read_history(tmp_path, 9) == []
    lines = ['{"iteration": 1, "sample": "x"}', '{"iteration": 2, "lr": 1e400000}', f'{{"iteration": 3, "x": {10**30}}}', '{"iteration": 4, "x": []}', '{"iteration": 5, "sample": 1}']
    (tmp_path/"metrics.jsonl").write_text("\n".join(lines), "utf-8", newline="\n")
    assert [line["iteration"] for line in read_history(tmp_path, 9)] == [1, 2]


def test_a_missing_tokenizer_is_the_systems_to_report(tmp_path):
    with pytest.raises(FileNotFoundError): _load_tokenizer(tmp_path/"none")


def test_an_error_without_a_file_is_one_line(): assert one_line(OSError(28, "No space left\non device")) == "No space left on device"


def test_a_command_may_run_in_a_thread():
    ended = []
    def work():
        with commands.sigterm_as_interrupt(): ended.append(True)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended


@pytest.mark.parametrize("words, said", [
    ("tokenizer --corpuss a.txt", "--corpuss is not a flag of this command; did you mean --corpus?"), ("tokenizer --corpus a.txt --vocab-sise=3", "--vocab_sise is not a flag of this command; did you mean --vocab_size?"),
    ("train --train_dat x --val_data y", "--train_dat is not a flag of this command; did you mean --train_data?"), ("train --no_resum --train_data x", "--no_resum is not a flag of this command; did you mean --resume?"),
    ("data --tokenzier a", "--tokenzier is not a flag of this command; did you mean --tokenizer?"), ("rewards --promts a", "did you mean --prompts?"), ("instruct --train_dta a", "did you mean --train_data?"),
    ("serve --prot 3", "did you mean --port?"), ("generate --zzz", "--zzz is not a flag of this command; --help lists them"), ("pretrained export --model_pth x", "did you mean --model_path?"), ("train --conf x", "did you mean --config?")])
def test_a_misspelt_flag_is_one_line_that_names_the_nearest(words, said, capsys):
    with pytest.raises(SystemExit) as refused: commands.main(words.split())
    out, err = capsys.readouterr()
    assert refused.value.code == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1 and not out


def test_a_misspelt_command_is_one_line(capsys, monkeypatch):
    for words, said in (["trian"], "did you mean train?"), (["zzz"], "there are data, tokenizer"):
        with pytest.raises(SystemExit) as refused: commands.main(words)
        assert refused.value.code == 2 and said in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["llm-course", "--version"])
    commands.main()
    assert capsys.readouterr().out.strip() == llm_course.__version__
    with pytest.raises(SystemExit) as helped: commands.main(["grade", "--help"])
    assert helped.value.code == 0 and "llm-course grade" in capsys.readouterr().out


def test_what_is_done_already_is_marked(tmp_path):
    assert "done" not in commands.overview(tmp_path)
    for path in filter(None, commands.STEPS):
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/path).touch()
    assert "done" in commands.overview(tmp_path)


TALK = """
import sys
from dataclasses import dataclass
from llm_course.engine.commands import run_command
@dataclass
class Nothing: "Talks."
def work(_):
    while True: print("x" * 1000)
run_command(Nothing, work, [], "talk")"""


@pytest.mark.skipif(os.name == "nt", reason="Windows tells it otherwise")
def test_a_reader_that_goes_away_ends_a_command_quietly():
    with subprocess.Popen([sys.executable, "-c", TALK], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as talk:
        talk.stdout.read(10)
        talk.stdout.close()
        assert (talk.wait(), talk.stderr.read()) == (1, b"")


def test_texts_and_ids_of_odd_sizes(monkeypatch):
    assert gpt2_pre_tokens("") == [] and join_runs([0x110000], {}, []) == [0x110000]
    few = CacheDict(list, limit=2)
    assert [few[word] for word in "abca"] == [["a"], ["b"], ["c"], ["a"]] and len(few) == 2
    assert helpers_for(1 << 20, None) == 1 and helpers_for(1, 7) == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 3}, raising=False)
    assert helpers_for(1 << 24, None) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert helpers_for(1 << 24, None) == (os.cpu_count() or 1)


def test_paths_may_be_texts_in_a_list():
    config = TrainConfig(train_data=Path("x"), val_data=Path("v.bin"))
    object.__setattr__(config, "train_data", ["a.bin", "b.bin"])   # the tests check types
    config.__post_init__()
    assert config.train_data == (Path("a.bin"), Path("b.bin"))


def test_checkpoints_are_kept_where_there_are_no_links(tmp_path, monkeypatch):
    def no_links(*names): raise OSError(95, "not supported")
    monkeypatch.setattr(os, "link", no_links)
    (tmp_path/"checkpoint_mine.pt").touch()
    for step in 1, 2, 3:
        (tmp_path/"checkpoint.pt").write_bytes(bytes([step]))
        keep_checkpoint(tmp_path, step, 2)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint_*")} == {"checkpoint_mine.pt": b"", "checkpoint_2.pt": b"\2", "checkpoint_3.pt": b"\3"}


def test_a_run_without_a_line_is_reported(capsys):
    report(TrainConfig(train_data=Path("a.bin"), val_data=Path("v.bin"), iterations=3), [], 0, float("inf"))
    assert "stopped after 0 of 3 steps" in capsys.readouterr().out


def test_a_written_answer_gets_no_letters():
    task = open_task("sums_written", EvaluationConfig(letters=True, questions=2))
    assert not any(question.choices for question in task.questions)


def test_one_of_several_templates_is_taken_by_its_name(tmp_path):
    said = {"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}
    (tmp_path/"tokenizer_config.json").write_text(json.dumps(said), "utf-8", newline="\n")
    assert _read_config(tmp_path)["chat_template"] == "yes"


def test_what_gemma_and_qwen_leave_open():
    said = {"rope_parameters": {"full_attention": {"rope_type": "default"}, "sliding_attention": {}}}
    assert _one_rope(said)["rope_parameters"] == {"rope_type": "default"}
    assert gguf.from_gguf_tokenizer(of_gguf(pre="qwen2", token_type=[1, 5])).rules.normalizer == "NFC"   # 5: a place that is not in use


class Doubled(nn.Module):
    "Stands in for a layer."
    bias = None
    def forward(self, x): return 2 * x


def test_decoding_takes_any_layer():
    x = torch.randn(3, 4)
    for add in False, True:
        out = torch.ones(3, 4)
        bind_product(Doubled(), x, out, add)()
        assert torch.equal(out, 2*x + 1 if add else 2*x)
    across = Linear(4, 4)
    across.weight = nn.Parameter(across.weight.detach().mT.contiguous().mT)
    assert _bits(across) == 0 == _bits(Doubled()) and _bits(Linear(4, 4)) == 32
    block = Transformer(**SHAPE).blocks[0]
    assert _is_plain_block(block) and not _is_plain_block(Doubled())
    for owner, name in (block.attention, "rope"), (block, "attention"):
        setattr(owner, name, Doubled())
        assert not _is_plain_block(block)


def test_a_start_without_a_tokenizer_is_taken_as_it_is(tmp_path):
    model = Transformer(**SHAPE)
    save_model(model, tmp_path/"model.safetensors", torch.float32)
    start = open_start(TrainConfig(train_data=tmp_path/"none.bin", val_data=tmp_path/"none.bin", init_from=tmp_path/"model.safetensors"))
    assert torch.equal(start.head.weight, model.head.weight)


# ---- Speaking and serving

def chatting(length=48):
    "A small model of few tokens, and its tokenizer with the marks of turns."
    tokenizer = BpeTokenizer(BYTES, [], ["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    return Transformer(tokenizer.vocab_size, length, 8, 1, 1, 8).eval(), tokenizer


def test_old_turns_leave_a_conversation_that_grows_too_long(capsys, monkeypatch):
    model, tokenizer = chatting(64)
    turns = [{"role": role, "content": "x" * 9} for role in ("system", "user", "assistant", "user", "assistant", "user")]
    how = Sampling(0.)
    assert "".join(speaking.reply(model, tokenizer, turns, 2, how, seed=3)) is not None and [turn["role"] for turn in turns] == ["system", "user"]
    with pytest.raises(ValueError, match=r"this turn takes .* tokens, but the context leaves"): next(speaking.reply(model, tokenizer, [{"role": "user", "content": "x" * 99}], 2, how))
    monkeypatch.setattr(sys, "stdin", io.StringIO("xxxxxxxxx\nxxxxxxxxx\nxxxxxxxxx\n"))
    speaking.chat(GenerateConfig(prompt="first", max_tokens=2, seed=3), model, tokenizer, how)
    assert "(the oldest turns no longer fit the context)" in capsys.readouterr().out


def test_ctrl_c_ends_what_is_read_from_a_file_and_one_answer_at_a_terminal(monkeypatch):
    def interrupted(*words, **named): raise KeyboardInterrupt
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt): next(speaking.typed_prompts())
    monkeypatch.setattr(speaking, "stream", lambda *words, **named: iter(interrupted, None))
    speaking._print_samples(GenerateConfig(prompt="", interactive=True), (None, None, None), "", {})
    with pytest.raises(KeyboardInterrupt): speaking._print_samples(GenerateConfig(prompt=""), (None, None, None), "", {})


def test_texts_that_nobody_waits_for_leave_wherever_they_are():
    model, tokenizer = chatting()
    said = []
    def job(length, name, **more): return Job([1] * length, 3, Sampling(0.), Voice(tokenizer), lambda what: said.append((name, what.end)), **more)
    work = Scheduler(model, rows=2, piece=4)
    reads, waits, late = job(20, "reads"), job(2, "waits"), job(20, "late")
    for each in reads, waits: work.submit(each)
    work.step()   # a part of the first prompt
    reads.cancelled = waits.cancelled = True
    work.submit(late)
    work.step()
    assert said == [("waits", "cancelled"), ("reads", "cancelled")] and work.reading[0] is late
    work._end_all("no more")
    assert said[2:] == [("late", "error")]
    ends = job(2, "ends")
    ends.voice.ends = {*range(tokenizer.vocab_size)}
    work.submit(ends)
    work.step()
    assert said[-1] == ("ends", "stop")


def test_what_a_client_may_ask_for():
    pytest.importorskip("starlette")
    from llm_course.engine import serve
    model, tokenizer = chatting()
    wish = serve.read_request({"prompt": "x", "stop": "end", "n": 1}, False)
    assert wish.stop == ("end",) and wish.max_tokens == 16
    for body, chat, why in ({}, False, "prompt must be a text"), ({"messages": [3]}, True, "a message must be an object"), ({"messages": [{"content": [3]}]}, True, "must be a text"):
        with pytest.raises(serve.Refused, match=why): serve.read_request(body, chat)
    talk = serve.read_request({"messages": [{"role": "user", "content": "x"}]}, True)
    assert serve.Service(model, tokenizer).prepare(talk)[0].max_tokens > 0
    with pytest.raises(serve.Refused, match="ask /v1/completions"): serve.Service(Transformer(**SHAPE | {"vocab_size": 258}), tiny).prepare(talk)


def test_a_client_hears_of_an_error_and_is_waited_for_until_it_goes():
    pytest.importorskip("starlette")
    from llm_course.engine import serve
    async def follow():
        heard = asyncio.Queue()
        heard.put_nowait((0, StepResult("it broke", end="error")))
        job, events = Job([1], 1, Sampling(), Voice(tiny), print), iter([{"type": "http.request"}, {"type": "http.disconnect"}])
        async def receive(): return next(events)
        told = [event async for event in serve._events([job], heard, None, False)]
        await serve._cancel_when_gone(SimpleNamespace(receive=receive), [job])
        return told, job.cancelled
    told, gone = asyncio.run(follow())
    assert "it broke" in told[0] and len(told) == 1 and gone


def test_texts_that_stay_broken_are_skipped_and_many_are_counted(tmp_path, capsys):
    names = [f"{i}.jsonl" for i in range(5)]
    for name in names: (tmp_path/name).write_bytes(b'{"text": 3}')
    write(tmp_path/"good.txt")
    assert len(plain_files([tmp_path/name for name in [*names, "good.txt"]], tmp_path, Reading(on_error="replace"))) == 1
    assert "note: files: 6; skipped: 5 (0.jsonl, 1.jsonl, 2.jsonl, …)" in capsys.readouterr().err
    table = pytest.importorskip("pyarrow").table({"text": ["a", None, "b"]})
    __import__("pyarrow.parquet").parquet.write_table(table, tmp_path/"x.parquet")
    [(_, copy)] = plain_files([tmp_path/"x.parquet"], tmp_path)
    assert copy.read_text("utf-8") == "a<|endoftext|>b<|endoftext|>"


# ---- Models, runs and experiments

def test_a_model_that_keeps_nothing_reads_the_whole_text():
    assert torch.equal(Reader(Whole()).read(torch.tensor([[1, 2, 3]])), Whole()(torch.tensor([[3]])))


def test_short_layers_may_turn_by_a_base_of_their_own():
    model = Transformer(**SHAPE | {"num_layers": 2}, variant=Variant(window=2, pattern="SL", short_theta=1e3))
    assert [block.attention.rope.theta for block in model.blocks] == [1e3, 1e4]


def test_parts_of_an_account_that_are_nothing_are_not_told():
    told = budget.describe(budget.MemoryAccount(1, 1, 1, 1, 1, 0, 9))
    assert "logits" in told and "measurements" not in told
    assert budget._time_step(ModelConfig(**SHAPE), 1, "float32", True, "cpu") > 0


def test_a_head_without_a_matrix_is_left_alone():
    with torch.no_grad(): start_small(SimpleNamespace(blocks=nn.ModuleList(), config=SimpleNamespace(tie=False), head=Doubled()))


def test_numbers_that_are_no_steps():
    assert with_step_count({"lr": 0.}) == {"lr": 0., "t": 0} and projection(Transformer(**SHAPE)) == 0.
    x = torch.ones(2)
    assert unwrap(moments_of)(SimpleNamespace(state={0: {"step": 3, "m": x}})) == [x]
    assert find_stop(tiny, "t") == ord("t") and _reward_kept([{"loss": 1.}, *[{"reward": 2.}] * 5]) == 1.
    assert not is_significant([1., 2., 3.], [1., 2., 3.])
    points = [(n, t, 2 + n**-.3 + t**-.3) for n in (1e3, 1e4) for t in (1e5, 1e6)]
    assert 0 < len(bootstrap_laws(points, 30)) < 30   # some tables have too few different rows


def test_the_same_tokenizer_in_two_folders_is_one(tmp_path):
    for name in "a", "b":
        (tmp_path/name).mkdir()
        tiny.save(tmp_path/name/"tokenizer.json")
    config = TrainConfig(train_data=(tmp_path/"a"/"x.bin", tmp_path/"b"/"x.bin"), val_data=tmp_path/"x.bin")
    assert find_tokenizer(config) == tmp_path/"a"/"tokenizer.json"
    object.__setattr__(config, "batch_size", "many")
    with pytest.raises(ValueError, match="--batch_size must be of type int, but is 'many'"): check_types(config)


def test_a_run_that_was_stopped_ends_as_ctrl_c_does(tmp_path, monkeypatch, capsys):
    config = run_in(tmp_path)
    monkeypatch.setattr(training, "train", lambda *words, **named: SimpleNamespace(history=[], done=1, best=2., rank=0, train_ids=[]))
    words = [f"--{name}={getattr(config, name)}" for name in ("train_data", "val_data", *SHAPE, "batch_size", "iterations", "warmup_iters", "device", "output")]
    with pytest.raises(SystemExit) as stopped: training.main(words)
    assert stopped.value.code == 130 and "stopped after 1 of 2 steps" in capsys.readouterr().out


def test_what_lies_inside_a_message_keeps_its_name_and_its_kind():
    for error in MemoryError(), ValueError("x is cut short"):
        with pytest.raises(type(error)) as kept, errors_that_name("x"): raise error
        assert kept.value is error
    with pytest.raises(ValueError, match="byte 0xc3 of 'é' is not in the vocabulary"): Spelling({b"a": 0}, {}, Rules()).first_ids("é")


def test_other_peoples_files_in_rare_forms(tmp_path, monkeypatch):
    assert ids_around({"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2]}) == ((1,), (2,))
    lines = [b"%s %d" % (base64.b64encode(token), id) for id, token in BYTES.items()]
    assert BpeTokenizer.from_tiktoken(write(tmp_path/"x.tiktoken", b"\n\n".join(lines))).vocab == BYTES
    assert from_scores({0: "a", 258: "ab"}, {0: 0., 258: -1.}, bytes_of_pieces, {"</s>": 257}, space_first=False).merges == []
    (tmp_path/"uv.toml").write_text('index-url = "https://example.org/simple"', "utf-8", newline="\n")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path/"uv.toml"))
    assert [settings.get("index-url") for _, settings in _uv_tables()][-1] == "https://example.org/simple"


def test_a_race_is_decided_by_the_last_pair():
    rising = [1 + .01 * i for i in range(race.LOOKS[-1])]
    assert race.verdict(rising, rising[::-1]) == "undecided" and race.verdict(rising[:race.LOOKS[0]], rising[:race.LOOKS[0]][::-1]) is None
    assert race.verdict([x + 1 for x in rising], rising) == "worse"
    with pytest.raises(race.Refused, match="the entry failed: it broke"): race._answer(subprocess.CompletedProcess([], 1, "", "x\nit broke\n"))


def test_an_entry_without_a_module_trains_by_its_recipe(tmp_path, monkeypatch, capsys):
    assert race._own_module(tmp_path) is None
    write(tmp_path/"recipe.json", b'{"iterations": 1, "max_seq_len": 4}')
    called = []
    monkeypatch.setattr(race, "guard", lambda *folders: called.append("guard"))
    monkeypatch.setattr(race, "train_recipe", lambda *words: called.append(words[1:3]))
    race.main(["learn", str(tmp_path), str(tmp_path), "3", "1"])
    assert called == ["guard", (3, 1)]
    (tmp_path/"run").mkdir()
    tiny.save(tmp_path/"tokenizer.json")
    model = Transformer(**SHAPE | {"vocab_size": tiny.vocab_size})
    save_checkpoint(model, AdamW(model.parameters()), 1, tmp_path/"run"/"checkpoint.pt")
    assert 0 < race._score(tmp_path, tmp_path, "the moth and the flame", 1) < 20


def test_steps_of_a_recipe_are_taken_once(tmp_path, capsys, monkeypatch):
    recipe, taken = next(iter(recipes.RECIPES.values())), []
    for _ in range(2): recipes.run_recipe(recipe, tmp_path, taken.append)
    assert len(taken) == len(recipes.steps(recipe, tmp_path))
    recipes.show(recipe, tmp_path)
    assert capsys.readouterr().out.count("done python -m llm_course.") == len(taken)
    made = recipes.steps(recipe, tmp_path/"new")
    recipes.run_recipe(recipe, tmp_path/"new", lambda words: [mark.touch() for mark, its in made.items() if its == words])   # as most commands do
    monkeypatch.setattr(recipes, "run_recipe", lambda *words: taken.append("all"))
    recipes._work(recipes.ExperimentConfig(next(iter(recipes.RECIPES)), output=tmp_path))
    assert taken[-1] == "all"
    for code in 0, 1:
        monkeypatch.setattr(subprocess, "run", lambda words, code=code: subprocess.CompletedProcess(words, code))
        if not code: recipes.run_words(["training", "--help"])
    with pytest.raises(ValueError, match="training failed; run it again"): recipes.run_words(["training"])


def test_experiments_are_in_a_clone_and_a_race_needs_an_entry(monkeypatch):
    ran = []
    monkeypatch.setattr(recipes.runpy, "run_module", lambda name, run_name: ran.append(name))
    monkeypatch.setattr(sys, "argv", ["x"])
    recipes._work(recipes.ExperimentConfig(next(iter(recipes.experiments()))))
    assert ran[0].startswith("bench.experiments.")
    with pytest.raises(ValueError, match="race needs the folder of an entry"): recipes._work(recipes.ExperimentConfig("race"))
    monkeypatch.setitem(sys.modules, "bench.experiments", None)
    with pytest.raises(ValueError, match="the experiments are in a clone"): recipes._work(recipes.ExperimentConfig("nonsense"))


def test_answers_that_all_end_and_a_template_that_is_there():
    model, tokenizer = chatting()
    with torch.no_grad():
        model.head.weight.zero_()
        model.embedding.weight.fill_(1.)
        model.head.weight[5] = 100.
        model.norm.weight.fill_(1.)
    assert sample_groups(model, [[1], [2]], 2, 9, stop_id=5) == [[5]] * 4
    _, same, new = with_template(model, tokenizer)
    assert not new and same.roles["chat_template"] and "eos_token" not in same.roles
    assert answers(model, tokenizer, [[{"role": "user", "content": "x"}]], 4) == [None]
    with torch.no_grad(): model.head.weight[[5, tokenizer.special_tokens["<|im_end|>"]]] = model.head.weight[[tokenizer.special_tokens["<|im_end|>"], 5]]
    assert answers(model, tokenizer, [[{"role": "user", "content": "x"}]], 4) == [""]


# ---- Doors

def test_the_plain_way_learns_what_the_quick_one_does():
    words = {b"banana": 3, b"an": 2, b"n": 9}
    assert learn_merges(words, 3, incremental=False) == learn_merges(words, 3)
    with pytest.warns(UserWarning, match="no pair is left after 4 of 99 merges"): assert len(learn_merges(words, 99, incremental=False)) == 4


def test_a_line_of_reward_is_not_needed(tmp_path, monkeypatch, capsys):
    ended = SimpleNamespace(history=[], done=0, config=SimpleNamespace(output=tmp_path))
    monkeypatch.setattr(rollouts, "learn", lambda config: ended)
    rollouts.main(["--prompts", "x", "--reward", "a:b"])
    monkeypatch.setattr(tuning, "instruct", lambda config: ended)
    tuning.main(["--train_data", "x", "--val_data", "y"])
    assert capsys.readouterr().out.count("the model after 0 steps") == 2
    assert rollouts.settle(RewardsConfig(prompts=Path("x"), reward="a:b", method="reinforce", group=1, device="cpu"), Transformer(**SHAPE)).batch_size == 8
    (tmp_path/"samples.jsonl").write_text('{"iteration": 1}\n', "utf-8", newline="\n")
    rollouts.Session._open_samples(SimpleNamespace(run=ended))
    assert (tmp_path/"samples.jsonl").read_bytes() == b""   # of a run that left no checkpoint


def test_a_given_model_gets_the_dropout_that_is_asked_for(tmp_path):
    given = Transformer(**SHAPE)
    made = new_model(settle(run_in(tmp_path, dropout=.3), given), given)
    assert made.config.dropout == .3 and torch.equal(made.head.weight, given.head.weight) and made is not given


def test_a_server_says_what_it_serves_and_to_whom(tmp_path, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    from llm_course.engine import serve
    model, tokenizer = chatting()
    save_model(model, tmp_path/"tiny.safetensors", torch.float32)
    tokenizer.save(tmp_path/"tokenizer.json")
    monkeypatch.setattr(serve, "_make_server", lambda app: SimpleNamespace(run=lambda sockets: None))
    for host in "127.0.0.1", "0.0.0.0":
        serve.serve(serve.ServeConfig(model_path=tmp_path/"tiny.safetensors", host=host, port=0, device="cpu"))
        told = capsys.readouterr().out
        assert told.startswith("tiny is served at") and ("anyone who can reach" in told) == (host == "0.0.0.0")


def test_no_wrong_answer_is_negative():
    for seed in range(20): assert all(int(wrong) >= 0 for wrong in _neighbours(1, 10, random.Random(seed)))


def test_numbers_of_four_bits_need_rows_of_whole_groups(monkeypatch):
    layers = at_precision(nn.Sequential(Linear(64, 4, bias=True), Linear(6, 4)), "int4")
    assert [layer.bits for layer in layers] == [4, 8]
    loops = pytest.importorskip("llm_course.engine.loops")
    monkeypatch.setattr(loops, "times_vectors", lambda *words: None)
    layers[0].bias = nn.Parameter(torch.ones(4))
    out = torch.zeros(1, 4)
    layers[0].bind(torch.ones(1, 64), out)()
    assert out.tolist() == [[1.] * 4]


def test_a_run_folder_stands_for_its_best_model(tmp_path):
    assert model_in(tmp_path) == tmp_path
    (tmp_path/"export").mkdir()
    for name, best in (None, "export"), ("tokenizer.json", None), ("checkpoint.pt", "checkpoint.pt"), ("best.pt", "best.pt"):
        if name: (tmp_path/name).touch()
        assert model_in(tmp_path) == (tmp_path/best if best else tmp_path)
