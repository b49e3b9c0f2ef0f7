"""Evaluating: log-likelihoods against torch and against lm_eval, intervals against their definitions, tasks that are refused, and the command."""
import json
import math
import random
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import load_model, save_checkpoint, save_model
from llm_course.engine import benchmarks, tasks
from llm_course.engine.evaluation_command import main
from llm_course.engine.scoring import Scorer
from llm_course.engine.tasks import MADE, Question, Task, is_right, read_questions, rotate_choices, with_letters, write_questions
from llm_course.evaluation import (
    bootstrap_interval,
    calibration,
    choice_scores,
    encode_pair,
    evaluate,
    log_likelihoods,
    ngram_overlap,
    ngrams,
    paired_difference,
    questions_needed,
    start_id,
    text_bits_per_byte,
    wilson_interval,
)
from llm_course.generating import DEMO, generate, load_demo
from llm_course.optim import AdamW
from llm_course.pretrained import export_gguf, export_pretrained
from llm_course.transformer import Transformer, TransformerBlock

TEXTS = ["The capital of France is", "A", "Once more, dear friends, ", "ends in a break\n", "", "Ünïcödé ♥ is"]
ENDINGS = [" Paris", " no, it is not at all", "?", "s and more words than before", "♥"]


@pytest.fixture(scope="module")
def demo(): return load_demo("cpu")


@pytest.fixture(scope="module")
def sharp():
    "A model with opinions: random weights that are large enough for its scores to differ."
    torch.manual_seed(0)
    model = Transformer(1024, max_seq_len=48, d_model=32, num_layers=2, num_heads=4, d_ff=48, num_kv_heads=2, tie=True).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.mul_(3)
    return model


def plainly(model, ids, count):
    "The same by torch's own functions, one row at a time."
    text = torch.tensor([ids[-(model.config.max_seq_len + 1):]])
    shares = torch.log_softmax(model(text[:, :-1]).double(), -1)
    return shares[0].gather(-1, text[0, 1:, None])[-count:].sum().item() if count else 0.


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_rows_of_unequal_lengths_have_the_numbers_of_single_rows(sharp, batch_size):
    draw = random.Random(0)
    rows = []
    for _ in range(11):
        ids = [draw.randrange(1024) for _ in range(draw.randrange(2, 49))]
        rows.append((ids, draw.randrange(len(ids))))
    with torch.no_grad(): wanted = [plainly(sharp, *row) for row in rows]
    assert log_likelihoods(sharp, rows, batch_size) == pytest.approx(wanted, abs=1e-4)
    assert min(wanted) < -10


def test_prompts_read_once_have_the_numbers_of_whole_texts(sharp, demo):
    scorer = Scorer(sharp)
    for prompt in TEXTS:
        pairs = [encode_pair(demo[1], prompt, ending) for ending in ENDINGS]
        question = Question(prompt, tuple(ENDINGS), 0)
        with torch.no_grad(): wanted = [plainly(sharp, first + last, len(last)) for first, last in pairs]
        for _ in range(2): assert choice_scores(question, demo[1], scorer) == pytest.approx(wanted, abs=1e-4)   # once anew, once remembered


def test_long_prompts_lose_their_beginning_and_long_answers_are_refused(sharp, demo):
    question = Question("My lord, my lord, " * 30, (" yes", " and so we come to an end at last"), 0)
    pairs = [encode_pair(demo[1], *pair) for pair in question.pairs]
    assert len(pairs[0][0]) > 100
    with torch.no_grad(): wanted = [plainly(sharp, first + last, len(last)) for first, last in pairs]
    assert choice_scores(question, demo[1], Scorer(sharp)) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(ValueError, match=r"an answer has .* tokens, but the model can read only 48"):
        choice_scores(Question("O", (" lord" * 60, " no"), 0), demo[1], Scorer(sharp))


def test_attention_without_a_cache_is_scored_too(demo):
    class Plain(torch.nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.inner = TransformerBlock(*shape)
        def forward(self, x, positions=None, cache=None): return self.inner(x, positions)
    torch.manual_seed(0)
    own = Transformer(1024, 32, 16, 1, 2, 24, block=lambda *shape: Plain(*shape[:3]))
    question = Question("My lord,", (" yes", " no more"), 0)
    pairs = [encode_pair(demo[1], *pair) for pair in question.pairs]
    with torch.no_grad(): wanted = [plainly(own, first + last, len(last)) for first, last in pairs]
    assert choice_scores(question, demo[1], Scorer(own)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("prompt", TEXTS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_prompt_and_ending_are_one_text(demo, prompt, ending):
    _, tokenizer = demo
    first, last = encode_pair(tokenizer, prompt, ending)
    begun = first if first != [start_id(tokenizer)] else []
    assert tokenizer.decode(begun) == prompt.rstrip() and tokenizer.decode(begun + last) == prompt + ending and last
    if (prompt + ending)[:2] != "As": assert begun + last == tokenizer.encode(prompt + ending)   # no token reaches over the cut


def test_the_four_scores_are_what_they_say(sharp, demo):
    _, tokenizer = demo
    question, scorer = Question("My lord,", (" yes", " not at all"), 0), Scorer(sharp)
    sums = choice_scores(question, tokenizer, scorer)
    sizes = [len(encode_pair(tokenizer, *pair)[1]) for pair in question.pairs]
    bare = choice_scores(replace(question, prompt=""), tokenizer, scorer)
    assert choice_scores(question, tokenizer, scorer, "token") == pytest.approx([s / n for s, n in zip(sums, sizes)])
    assert choice_scores(question, tokenizer, scorer, "byte") == pytest.approx([sums[0] / 3, sums[1] / 10])
    assert choice_scores(question, tokenizer, scorer, "unconditioned") == pytest.approx([s - b for s, b in zip(sums, bare)], abs=1e-4)
    with pytest.raises(ValueError, match="score must be one of"): evaluate(sharp, tokenizer, Task("x", (question,), "best"))


def test_a_model_without_opinions_is_never_right(demo):
    _, tokenizer = demo
    flat = Transformer(1024, 32, 8, 1, 1, 8)
    torch.nn.init.zeros_(flat.head.weight)
    questions = Question("My", (" A", " A."), 0), Question("A", (" B", " C"), 0)
    for score in "token", "sum":
        result = evaluate(flat, tokenizer, Task("flat", questions[score == "sum":], score))
        assert not any(result.right) and result.chance == .5 and result.sure == ([pytest.approx(.5)] if score == "sum" else [])


@pytest.mark.parametrize("stride", [1, 7, 32, None])
def test_bits_per_byte_counts_each_token_once_and_documents_apart(demo, sharp, stride):
    _, tokenizer = demo
    first, second = "To be, or not to be: that is the question.\n" * 8, "♥ Ünïcödé"
    bits = [text_bits_per_byte(sharp, tokenizer, text, stride) for text in (first, second)]
    sizes = [len(text.encode()) for text in (first, second)]
    assert text_bits_per_byte(sharp, tokenizer, f"{first}<|endoftext|>{second}<|endoftext|>", stride) == pytest.approx(
        (bits[0] * sizes[0] + bits[1] * sizes[1]) / sum(sizes), abs=1e-6)
    flat = Transformer(1024, 32, 8, 1, 1, 8)
    torch.nn.init.zeros_(flat.head.weight)
    assert text_bits_per_byte(flat, tokenizer, first, stride) == pytest.approx(10 * len(tokenizer.encode(first)) / sizes[0], abs=1e-5)


def test_bits_per_byte_refuses_what_has_no_answer(demo, sharp):
    _, tokenizer = demo
    for text, stride, said in ("", None, "the text is empty"), ("a", 0, "stride must lie"), ("a", 49, "stride must lie"):
        with pytest.raises(ValueError, match=said): text_bits_per_byte(sharp, tokenizer, text, stride)
    with pytest.raises(ValueError, match=r"has no <\|endoftext\|>"): start_id(BpeTokenizer({0: b"a"}, [], {}))


@pytest.mark.parametrize("n", [1, 5, 40])
def test_wilsons_interval_holds_the_accuracies_that_a_count_is_compatible_with(n):
    for right in range(n + 1):
        low, high = wilson_interval(right, n)
        for i in range(1, 1000):
            p = i / 1000
            inside = abs(right / n - p) <= 1.959964 * math.sqrt(p * (1 - p) / n)
            if min(abs(p - low), abs(p - high)) > 1e-6: assert inside == (low < p < high), (right, p)
    for bad in (3, 2), (-1, 2), (0, 0):
        with pytest.raises(ValueError, match="right must lie"): wilson_interval(*bad)


def test_pairs_bootstraps_and_numbers_of_questions():
    draw = random.Random(0)
    a = [draw.random() < .7 for _ in range(500)]
    b = [x if draw.random() < .8 else not x for x in a]
    gap, low, high = paired_difference(a, b)
    assert gap == pytest.approx((sum(a) - sum(b)) / 500) and low < gap < high
    assert bootstrap_interval([float(x) - y for x, y in zip(a, b)]) == pytest.approx((low, high), abs=.01)
    assert paired_difference(a, a) == (0, 0, 0)
    assert questions_needed(.05, .3) == math.ceil(.3 * ((1.959964 + .841621) / .05)**2)
    for bad in (0., .3), (.4, .3), (.1, 1.1):
        with pytest.raises(ValueError, match="gap must not be 0"): questions_needed(*bad)
    with pytest.raises(ValueError, match="the same questions"): paired_difference(a, b[1:])


def test_calibration_by_hand():
    assert calibration([1., .5, .5], [True, True, False])[0] == 0
    error, table = calibration([.95] * 4 + [.25] * 2, [True, True, True, False, False, False])
    assert error == pytest.approx((.2 * 4 + .25 * 2) / 6) and [n for *_, n in table] == [2, 4]


@pytest.mark.parametrize("said, answer, number, right", [
    (" 12\n", "12", False, True), ("12.", "12", False, False), ("so 1,200.", "1200", True, True), ("-3 and 4", "4.0", True, True), ("none", "4", True, False),
    ("", "4", True, False), ("none", "none", True, False), ("4 or 5", "4", True, False)])
def test_written_answers(said, answer, number, right): assert is_right(said, answer, number) is right


def test_written_answers_are_asked_for_together_and_apart(demo):
    model, tokenizer = demo
    prompts = ["ROMEO:\nI", "O", "KING HENRY V:\nOnce more unto the"] * 4
    said = [generate(model, tokenizer, p, 6, temperature=0., stop="\n")[len(p):].strip() for p in prompts]
    questions = [Question(p, (), s) for p, s in zip(prompts, said)] + [Question("O", (), "never this"), Question("O", (" a", " b"), 0)]
    assert evaluate(model, tokenizer, Task("w", tuple(questions), max_tokens=6)).right[:-1] == [True] * 12 + [False]


def test_contamination():
    words = [f"word{i}" for i in range(100)]
    seen = ngrams(" ".join(words))
    assert ngram_overlap(" ".join(words[20:40]).upper().replace(" ", ",\n"), seen) == 1 and ngram_overlap(" ".join(words[::2]), seen) == 0
    half = ngram_overlap(" ".join([*words[:15], *("new" + w for w in words[:15])]), seen)
    assert 0 < half < 1 and ngram_overlap("too short", seen) == 0


# ---- Tasks

@pytest.mark.parametrize("name", MADE)
def test_made_questions_are_whole_and_come_from_the_seed(name, tmp_path):
    made = MADE[name](60, 3)
    assert len(made) == 60 and made == MADE[name](60, 3) != MADE[name](60, 4)
    write_questions(tmp_path/"t.jsonl", made)
    assert list(read_questions(tmp_path/"t.jsonl")) == made
    places = [q.answer for q in made if q.choices]
    if places: assert {*places} == {*range(len(made[0].choices))} and all(q.prompt + q.choices[q.answer] for q in made)


def test_speakers_and_lines_are_those_of_the_text():
    text = tasks.HELD_OUT.read_text("utf-8")
    for q in MADE["cloze"](40): assert q.prompt + q.choices[q.answer] in text and sum(q.prompt + c in text for c in q.choices) == 1
    for q in MADE["speaker"](40): assert q.prompt + q.choices[q.answer] in text
    for make in tasks.cloze, tasks.speaker:
        with pytest.raises(ValueError, match="too few"): make(3, text="One line.\n")


def test_the_demo_model_has_not_seen_the_held_out_play():
    readme = (tasks.HELD_OUT.parent/"README.md").read_text("utf-8")
    assert "held_out.txt" in readme and "four plays are held out" in readme


def test_letters_and_turns_keep_what_is_right():
    q = Question("Which?", (" a", " b", " c"), 1)
    for by in range(-3, 7): assert rotate_choices(q, by).choices[rotate_choices(q, by).answer] == " b"
    assert with_letters(q) == Question("Which?\nA. a\nB. b\nC. c\nAnswer:", (" A", " B", " C"), 1)
    with pytest.raises(ValueError, match="two to ten"): with_letters(replace(q, choices=tuple(map(str, range(11)))))


BAD = ['{', '3', '[]', 'null', '{"answer": 0}', '{"prompt": 3, "answer": "x"}', '{"prompt": "a", "choices": "bc", "answer": 0}', '{"prompt": "a", "choices": ["b"], "answer": 0}',
       '{"prompt": "a", "choices": ["b", "b"], "answer": 0}', '{"prompt": "a", "choices": ["b", ""], "answer": 0}', '{"prompt": "a", "choices": ["b", 3], "answer": 0}',
       '{"prompt": "a", "choices": ["b", "c"], "answer": 2}', '{"prompt": "a", "choices": ["b", "c"], "answer": -1}', '{"prompt": "a", "choices": ["b", "c"], "answer": true}',
       '{"prompt": "a", "choices": ["b", "c"], "answer": "b"}', '{"prompt": "a", "choices": ["b", "c"]}', '{"prompt": "a"}', '{"prompt": "a", "answer": 3}', '{"prompt": "", "answer": "x"}',
       '{"prompt": "a", "choices": ["b", "c"], "answer": 0, "after": 1}', '{"prompt": "a", "answer": ""}', '{"prompt": "a", "answer": NaN}', "[" * 100_000]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_bad_lines_are_refused_in_one_line_that_names_them(line, tmp_path, capsys):
    path = tmp_path/"bad.jsonl"
    path.write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n\n' + line + "\n", "utf-8", newline="\n")
    refused(["--tasks", path], capsys, f"error: {path}, line 3")


def refused(words, capsys, begins):
    "The command ends with 2 and one line."
    with pytest.raises(SystemExit) as ended: main([*map(str, words)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(begins) and said.count("\n") == 1 and len(said) < 400, said


@pytest.mark.parametrize("content, said", [(b"", " holds no line of JSON"), (b"\n \n", " holds no line of JSON"), (b"\xff\xfe", " is not UTF-8"), (None, " does not exist")])
def test_files_that_are_no_tasks_are_refused(content, said, tmp_path, capsys):
    path = tmp_path/"bad.jsonl"
    if content is not None: path.write_bytes(content)
    with pytest.raises(SystemExit): main(["--tasks", str(path)])
    assert f"{path}{said}" in capsys.readouterr().err


@pytest.mark.parametrize("words, begins", [
    (["--tasks", "sum"], "error: there is no task sum; choose sums,"), (["--questions", "0"], "error: --questions must be 1 or more"), (["--score", "x"], "error: --score x is not one of"),
    (["--corpus", "nowhere.txt"], "error: --corpus nowhere.txt does not exist"), (["--model_path", "nowhere.pt"], "error: --model_path nowhere.pt does not exist"),
    (["--tasks", "agreement", "--train_corpus", "none"], "error: --train_corpus none does not exist")])
def test_bad_flags_are_refused(words, begins, capsys): refused(words, capsys, begins)


# ---- Benchmarks, in small files of the form that the hub has

RECORDS = {
    "hellaswag": (dict(ind=4, activity_label="Baking", ctx_a="A man opens an oven.", ctx_b="he", ctx="A man opens an oven. he",
                       endings=["takes  out a cake.", "flies [step] away.", "sleeps. [title] Now.", "is a cake."], label="2"),
                  Question("Baking: A man opens an oven. He", (" takes out a cake.", " flies away.", " sleeps.. Now.", " is a cake."), 2)),
    "arc_easy": (dict(id="x", question="What is ice?", choices={"text": ["gas", "water", "stone"], "label": ["1", "2", "3"]}, answerKey="2"),
                 Question("Question: What is ice?\nAnswer:", (" gas", " water", " stone"), 1)),
    "piqa": (dict(goal="Dry hair", sol1="use a towel", sol2="use a spoon", label=0), Question("Question: Dry hair\nAnswer:", (" use a towel", " use a spoon"), 0)),
    "winogrande": (dict(sentence="Ann met Eve, and _ was glad.", option1="Ann", option2="Eve", answer="2"), Question("Ann met Eve, and ", ("Ann", "Eve"), 1, " was glad.")),
    "mmlu": (dict(question="What is 7 + 5? ", subject="maths", choices=["10", "11", "12", "13"], answer=2),
             Question("What is 7 + 5?\nA. 10\nB. 11\nC. 12\nD. 13\nAnswer:", (" A", " B", " C", " D"), 2)),
    "gsm8k": (dict(question="Two and two?", answer="2 + 2 = <<2+2=4>>4\n#### 4"), Question("Question: Two and two?\nAnswer:", (), "4")),
    "blimp": (dict(sentence_good="Cats sleep.", sentence_bad="Cats sleeps.", field="syntax"), Question("", ("Cats sleep.", "Cats sleeps."), 0)),
}
RECORDS["arc_challenge"] = RECORDS["arc_easy"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_benchmarks_are_read(name, kind, tmp_path, capsys):
    record, wanted = RECORDS[name]
    path = tmp_path/f"file.{kind}"
    def write(records):
        if kind == "jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8", newline="\n")
        else:
            pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    write([record] * 3)
    task = benchmarks.read_benchmark(name, path)
    assert task.questions == (wanted,) * 3 and task.score == benchmarks.BENCHMARKS[name].score
    for key in {"hellaswag": ["label", "endings"], "mmlu": ["choices"], "gsm8k": ["answer"], "winogrande": ["sentence", "answer"]}.get(name, [*record][-1:]):
        write([{**record, key: {"label": "9", "endings": None, "choices": ["a"], "answer": "x", "sentence": "no gap"}.get(key)}])
        if name != "blimp": refused(["--tasks", f"{name}={path}"], capsys, f"error: {path}, ")


def test_a_damaged_parquet_file_is_refused(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install pyarrow")
    path = tmp_path/"x.parquet"
    path.write_bytes(b"PAR1 and nothing")
    refused(["--tasks", f"piqa={path}"], capsys, f"error: {path} is not a Parquet file")


def test_a_benchmark_is_fetched_by_its_name(tmp_path, monkeypatch, capsys):
    asked = []
    path = tmp_path/"piqa.jsonl"
    path.write_text(json.dumps(RECORDS["piqa"][0]), "utf-8", newline="\n")
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = lambda *words, **more: asked.append((words, more)) or str(path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    main(["--tasks", "piqa", "--device", "cpu"])
    assert asked == [((benchmarks.BENCHMARKS["piqa"].repository, benchmarks.BENCHMARKS["piqa"].file), {"repo_type": "dataset"})]
    def fails(*words, **more): raise RuntimeError("offline")
    hub.hf_hub_download = fails
    capsys.readouterr()
    refused(["--tasks", "piqa"], capsys, "error: piqa could not be fetched")


# ---- The command

def test_the_command_tells_what_the_functions_give(tmp_path, capsys, demo):
    text = tmp_path/"text.txt"
    text.write_text(tasks.HELD_OUT.read_text("utf-8")[:3000], "utf-8", newline="\n")
    main(["--tasks", "agreement", "speaker", "--questions", "12", "--device", "cpu", "--output", str(tmp_path/"out.json"), "--corpus", str(text), "--train_corpus", str(text),
          "--against", str(DEMO/"model.safetensors")])
    shown, told = capsys.readouterr().out, json.loads((tmp_path/"out.json").read_text("utf-8"))
    wanted = evaluate(*demo, Task("speaker", tuple(MADE["speaker"](12)), "unconditioned"))
    assert told["tasks"]["speaker"]["right"] == wanted.right
    torch.testing.assert_close(torch.tensor(told["tasks"]["speaker"]["scores"]), torch.tensor(wanted.scores))
    assert told["bits_per_byte"] == pytest.approx(text_bits_per_byte(*demo, text.read_text("utf-8"))) and f"{wanted.accuracy:.1%}" in shown
    assert shown.count("a difference is not shown") == 2 and shown.count("of them occur in") == 2


@pytest.mark.parametrize("count", [1, 2])
def test_two_models_are_compared_by_what_texts_cost(count, sharp, demo, tmp_path, capsys):
    save_model(sharp, tmp_path/"model.safetensors")
    demo[1].save(tmp_path/"tokenizer.json")
    texts = {str(tmp_path/f"{i}.txt"): tasks.HELD_OUT.read_text("utf-8")[1000 * i:][:600] for i in range(count)}
    for path, text in texts.items(): Path(path).write_text(text, "utf-8", newline="\n")
    main(["--corpus", *texts, "--against", str(tmp_path/"model.safetensors"), "--device", "cpu", "--output", str(tmp_path/"out.json")])
    shown, told = capsys.readouterr().out, json.loads((tmp_path/"out.json").read_text("utf-8"))
    own, other = ({name: text_bits_per_byte(*model, text) for name, text in texts.items()} for model in (demo, (load_model(tmp_path/"model.safetensors", "cpu"), demo[1])))
    assert told["texts"] == pytest.approx(own) and told["against"]["texts"] == pytest.approx(other)
    last = shown.partition("the first model minus ")[2].splitlines()[1:]
    wanted = [f"{name}: {told['texts'][name] - told['against']['texts'][name]:+.4f} bits per byte" for name in texts]
    if count > 1: wanted.append(f"all 2 texts: {told['bits_per_byte'] - told['against']['bits_per_byte']:+.4f} bits per byte")
    assert last == wanted and all(f"{name}: {bits[name]:.4f} bits per byte, " in shown for bits in (own, other) for name in texts)


def test_the_same_questions_are_chosen_from_a_long_file(tmp_path, capsys):
    write_questions(tmp_path/"own.jsonl", MADE["sums"](50))
    for _ in range(2): main(["--tasks", str(tmp_path/"own.jsonl"), "--questions", "10", "--letters", "--device", "cpu"])
    first, second = capsys.readouterr().out.split("task ")[1:]
    assert first == second and "own " in first
    main(["--tasks", str(tmp_path/"own.jsonl"), "--questions", "10", "--against", str(DEMO/"model.safetensors"), "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "a difference is not shown" in shown and "bits per byte" not in shown


@pytest.mark.parametrize("name", ["model.pt", "export", "model.gguf"])
def test_a_model_has_the_same_numbers_from_files_of_every_kind(name, tmp_path, capsys, demo):
    model, tokenizer = demo
    path = tmp_path/name
    if name == "export": export_pretrained(model, tokenizer, path)
    elif name == "model.gguf": export_gguf(model, tokenizer, path)
    else:
        save_checkpoint(model, AdamW(model.parameters()), 0, path)
        tokenizer.save(tmp_path/"tokenizer.json")
    questions = ["--tasks", "cloze", "sums_written", "--questions", "5", "--device", "cpu", "--output", str(tmp_path/"out.json")]
    main([*questions, "--model_path", str(path)])
    told = json.loads((tmp_path/"out.json").read_text("utf-8"))["tasks"]
    wanted = evaluate(model, tokenizer, Task("cloze", tuple(MADE["cloze"](5))))
    torch.testing.assert_close(torch.tensor(told["cloze"]["scores"]), torch.tensor(wanted.scores), atol=1e-4, rtol=0)
    assert told["cloze"]["right"] == wanted.right and len(told["sums_written"]["right"]) == 5
