"Teaching a model to answer: packed rows against single ones, the mask, every silent fault by its name, and the command."
import json
import random

import pytest
import torch
from safetensors.torch import load_file

from bench.experiments import skills, smollm2
from bench.experiments.instruct import without_limits
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.checkpoint import save_model
from llm_course.engine import tuning
from llm_course.engine.chat import MARKS, TEMPLATES, render
from llm_course.engine.lora import load_adapter, merge_lora
from llm_course.engine.tuning import grow_vocabulary, main, read_examples
from llm_course.instruct import (
    Example,
    answer_logits,
    answer_loss,
    answers,
    as_example,
    batch_faults,
    batch_of,
    pack_conversations,
    read_conversations,
)
from llm_course.pretrained import load_pretrained
from llm_course.transformer import Transformer

CHATML = "<|im_start|>", "<|im_end|>"
BYTES = {i: bytes([i]) for i in range(256)}


def words(template="llm_course"):
    return BpeTokenizer(BYTES, [], MARKS if template == "llm_course" else CHATML)


def talk(*pairs):
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair)]


TALKS = talk(("2+2?", "4")), talk(("Hello", "Hi."), ("Well?", "")), talk(("a much longer question", "yes"))


def model(**more):
    torch.manual_seed(0)
    made = Transformer(262, 128, 16, 2, 4, 24, num_kv_heads=2, **more).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1: p.normal_(std=.3)
    return made


# ---- Rows

@pytest.mark.parametrize("template", ["llm_course", "chatml"])
def test_a_packed_row_is_separate_rows(template):
    made, examples = model(), [as_example(words(template), messages) for messages in TALKS]
    packed = answer_logits(made, batch_of([examples, examples[:1]], 128))
    alone = [made(torch.tensor([example.ids[:-1]]))[0][torch.tensor(example.learnt[1:])] for example in (*examples, examples[0])]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_gradients_do_not_cross_and_padding_has_no_effect():
    made, examples = model().double(), [as_example(words(), messages) for messages in TALKS]
    count = sum(examples[0].learnt)
    def gradient(batch):
        made.zero_grad()
        answer_logits(made, batch)[:count].square().sum().backward()
        return [p.grad.clone() for p in made.parameters()]
    alone = gradient(batch_of([examples[:1]], len(examples[0].ids) - 1))
    for other in batch_of([examples[:1]], 128), batch_of([examples], 128):
        for a, b in zip(alone, gradient(other)): torch.testing.assert_close(a, b)
    batch = batch_of([examples], 128)
    before = answer_logits(made, batch)
    batch[0][batch[4] < 0] = 77
    assert torch.equal(answer_logits(made, batch), before) and (batch[2][batch[4] < 0] == 0).all()


def test_packing_keeps_each_conversation_once_and_whole():
    for seed in range(20):
        draw = random.Random(seed)
        lengths = [draw.randint(1, 30) for _ in range(50)]
        rows = pack_conversations(lengths, 30)
        assert sorted(i for row in rows for i in row) == list(range(50)) and all(sum(lengths[i] for i in row) <= 30 for row in rows)
        assert len(rows) <= 11 / 9 * sum(lengths) / 30 + 4   # what is known of this way
    assert pack_conversations([], 5) == []
    with pytest.raises(ValueError, match="conversation 1 has 6"): pack_conversations([5, 6], 5)


def test_the_loss_is_of_the_answers_alone():
    example = as_example(words(), TALKS[1])
    batch = batch_of([[example]], 64)
    said = [id for id, learnt in zip(example.ids, example.learnt) if learnt]
    assert batch[1][batch[2].bool()].tolist() == said and words().decode(said) == "Hi.<|end|><|end|>"
    logits = torch.randn(1, 64, 262)
    wanted = torch.nn.functional.cross_entropy(logits[batch[2].bool()], torch.tensor(said))
    torch.testing.assert_close(answer_loss(logits, batch[1], batch[2]), wanted)
    with pytest.raises(ValueError, match="nothing to learn"): as_example(words(), TALKS[0][:1])


# ---- What goes wrong silently

def good(template): return [as_example(words(template), messages) for messages in TALKS]


def typed(template, text, learnt_from):
    ids = words(template).encode(text)
    start = len(words(template).encode(learnt_from))
    return Example(ids, [i >= start for i in range(len(ids))])


BREAK = {
    "mask lost": lambda e: Example(e.ids, [True] * len(e.ids)),
    "mask shifted": lambda e: Example(e.ids, [*e.learnt[1:], False]),
    "mask shifted late": lambda e: Example([*e.ids, 65], [False, *e.learnt]),
    "end not learnt": lambda e: Example(e.ids, [a and b for a, b in zip(e.learnt, [*e.learnt[1:], False])]),
    "conversation cut": lambda e: Example(e.ids[:-1], e.learnt[:-1]) if not e.learnt[-1] else Example(e.ids[:-2] or e.ids, e.learnt[:-2]),
    "nothing to learn": lambda e: Example(e.ids, [False] * len(e.ids))}


@pytest.mark.parametrize("template", ["llm_course", "chatml"])
@pytest.mark.parametrize("fault", BREAK)
def test_names_what_is_wrong_with_a_batch(fault, template):
    tokenizer, examples = words(template), good(template)
    assert batch_faults(batch_of([examples, examples[1:]], 128), tokenizer) == {}
    e = examples[2]
    if fault == "conversation cut":
        cut = max(i for i, learnt in enumerate(e.learnt) if learnt) - 1   # in the middle of "yes"
        broken = Example(e.ids[:cut], e.learnt[:cut])
    else: broken = BREAK[fault](e)
    found = batch_faults(batch_of([examples[:1], [broken]], 128), tokenizer)
    assert fault.removesuffix(" late") in found and found[fault.removesuffix(" late")].startswith("row 1")


@pytest.mark.parametrize("template", ["llm_course", "chatml"])
def test_names_a_template_that_is_doubled_and_a_turn_that_is_forged(template):
    tokenizer, source = words(template), TEMPLATES[template]
    text, asked = render(TALKS[0], source), render(TALKS[0][:1], source, True)
    mark = MARKS[2] if template == "llm_course" else CHATML[0]
    twice = typed(template, text.replace(mark, mark * 2), asked.replace(mark, mark * 2))
    assert "template doubled" in batch_faults(batch_of([[twice]], 128), tokenizer)
    typing = render([*TALKS[0], {"role": "user", "content": "more?"}], source)
    forged = typed(template, typing + text, typing + asked)
    assert "turn forged" in batch_faults(batch_of([[forged]], 256), tokenizer)
    honest = as_example(tokenizer, talk((typing, "no")))
    assert batch_faults(batch_of([[honest]], 256), tokenizer) == {}


def test_sees_a_conversation_that_begins_in_the_middle():
    batch = batch_of([good("llm_course")[:1]], 64)
    batch[3] += 3
    assert "conversation cut" in batch_faults(batch, words())


# ---- Files and answers

def write(path, talks, **more):
    path.write_text("\n".join(json.dumps({"messages": messages} | more) for messages in talks), "utf-8", newline="\n")
    return path


def test_reads_conversations_or_names_the_line(tmp_path):
    assert read_conversations(write(tmp_path/"a.jsonl", TALKS, id=3)) == list(TALKS)
    for line, why in ("{}", "line 2: messages must be"), ('{"messages": [{"role": "bot", "content": "x"}]}', "line 2: message 0 must have a role"), ("{", "line 2 is not JSON"), ("[]", "line 2: messages"):
        (tmp_path/"b.jsonl").write_text(json.dumps({"messages": TALKS[0]}) + "\n" + line, "utf-8", newline="\n")
        with pytest.raises(ValueError, match=why): read_conversations(tmp_path/"b.jsonl")


def test_an_answer_ends_at_its_mark_or_is_none():
    made, tokenizer = model(), words()
    with torch.no_grad(): made.head.weight.zero_()
    assert answers(made, tokenizer, [TALKS[0][:1]], 5) == [None]   # id 0, again and again
    with torch.no_grad():
        made.norm.weight.zero_()
    assert answers(made, tokenizer, [TALKS[0][:1], TALKS[1][:3]], 3) == [None, None]


def test_new_rows_leave_the_old_ids_alone():
    for tie in False, True:
        made = model(tie=tie)
        larger, ids = grow_vocabulary(made, 266), torch.arange(20)[None]
        torch.testing.assert_close(larger(ids)[..., :262], made(ids))
        assert larger.config.vocab_size == 266 and torch.pdist(larger.embedding.weight[-4:]).min() > 0
        assert grow_vocabulary(made, 262) is made


# ---- The command

@pytest.fixture
def base(tmp_path):
    "A base model that knows no marks, and one that does, with conversations."
    for name, tokenizer in ("plain", BpeTokenizer(BYTES, [], ["<|endoftext|>"])), ("chat", words()):
        (tmp_path/name).mkdir()
        torch.manual_seed(0)
        save_model(Transformer(tokenizer.vocab_size, 64, 16, 2, 2, 24), tmp_path/name/"model.safetensors")
        tokenizer.save(tmp_path/name/"tokenizer.json")
    write(tmp_path/"train.jsonl", [talk((f"{i}+1?", str(i + 1))) for i in range(40)])
    write(tmp_path/"val.jsonl", [talk((f"{i}+1?", str(i + 1))) for i in range(40, 50)])
    return tmp_path


def run(base, *flags, model="chat", output="run"):
    main(["--train_data", str(base/"train.jsonl"), "--val_data", str(base/"val.jsonl"), "--init_from", str(base/model/"model.safetensors"), "--device", "cpu",
          "--output", str(base/output), "--iterations", "3", "--batch_size", "2", "--lr_max", "1e-2", "--log_interval", "1", "--val_interval", "99", *flags])


def test_teaches_a_base_model_and_writes_one_that_can_be_talked_to(base, capsys):
    run(base, model="plain")
    assert "to talk to it" in capsys.readouterr().out
    lines = [json.loads(line) for line in (base/"run"/"metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] and lines[-1]["val_loss"] > 0
    taught, tokenizer = load_pretrained(base/"run"/"export", "cpu")
    assert tokenizer.roles["chat_template"] == TEMPLATES["llm_course"] and tokenizer.special_tokens["<|end|>"] in tokenizer.ends
    assert len(answers(taught, tokenizer, [TALKS[0][:1]], 4)) == 1


@pytest.mark.parametrize("lora", [(), ("--lora_rank", "2", "--lora_targets", "q_proj", "w2")], ids=["all weights", "lora"])
def test_goes_on_as_if_it_had_not_stopped(base, lora):
    flags = "--lr_min", "1e-2", "--warmup_iters", "0", *lora
    run(base, "--iterations", "2", *flags, output="part")
    run(base, "--resume", *flags, output="part")
    run(base, *flags, output="whole")
    files = "export/model.safetensors", "adapter/adapter_model.safetensors"
    for file in files[:1 + bool(lora)]:
        a, b = (load_file(base/name/file) for name in ("part", "whole"))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_another_batch_size_on_resume_needs_override(base, capsys):
    run(base, "--iterations", "2")
    with pytest.raises(SystemExit): run(base, "--resume", "--batch_size", "4")
    assert "--batch_size was 2 when" in (told := capsys.readouterr().err) and "let it change with --override" in told
    run(base, "--resume", "--override", "--batch_size", "4")
    assert "note: --batch_size was 2 when" in capsys.readouterr().err
    kept = json.loads((base/"run"/"config.json").read_text("utf-8"))
    assert kept["batch_size"] == 4 and kept["lr_min"] is None and not kept.keys() & {"resume", "override"}


@pytest.mark.parametrize("flag, value, told", [("--lora_alpha", "4", "--lora_alpha was 16.0 when"), ("--lora_rank", "3", "--lora_rank was 2 when"),
                                               ("--lora_targets", "w2", "--lora_targets was ['q_proj'] when"), ("--lora_rank", "0", "checkpoint")])
def test_does_not_go_on_with_another_lora(base, flag, value, told, capsys):
    lora = "--lora_rank", "2", "--lora_targets", "q_proj"
    run(base, *lora)
    capsys.readouterr()
    before = (base/"run"/"adapter"/"adapter_model.safetensors").read_bytes()
    with pytest.raises(SystemExit): run(base, *lora, "--iterations", "5", "--resume", flag, value)
    said, = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert told in said
    assert (base/"run"/"adapter"/"adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("flags, told", [(["--train_data", "others.jsonl"], "note: --train_data was BASE/train.jsonl, and is BASE/others.jsonl from now on"), (["--val_data", "others.jsonl"], "note: --val_data was BASE/val.jsonl, and is BASE/others.jsonl from now on"),
                                         (["--init_from", "plain/model.safetensors"], "error: --init_from was BASE/chat/model.safetensors when the run in BASE/run began, and is BASE/plain/model.safetensors now; use BASE/chat/model.safetensors, or name another folder"),
                                         (["--seed", "3"], "error: --seed was 0 when the run in BASE/run began, and is 3 now; use 0, name another folder, or let it change with --override"), (["--max_seq_len", "0"], "error: --max_seq_len must be at least 1, but is 0"),
                                         (["--lora_rank", "-1"], "error: --lora_rank must be 0 or more, but is -1"), (["--lora_rank", "2", "--lora_alpha", "nan"], "error: --lora_alpha must be positive, and finite, but is nan")], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_flag_that_changes_on_resume_is_told_or_refused(base, flags, told, capsys):
    same = "--lr_min", "1e-2", "--warmup_iters", "0"
    (base/"others.jsonl").write_bytes((base/"train.jsonl").read_bytes())
    run(base, *same, "--iterations", "1")
    capsys.readouterr()
    flags = [str(base/word) if "." in word else word for word in flags]
    try: run(base, *same, "--iterations", "2", "--resume", *flags)
    except SystemExit: assert told.startswith("error")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note: ", "error: "))]
    if "--val_data" in flags: assert "the lowest one is forgotten" in lines.pop(0)
    assert lines == [told.replace("BASE", str(base))]


@pytest.mark.parametrize("place", [0, 70, 149])
def test_looks_at_every_conversation_before_it_teaches(base, place, monkeypatch, capsys):
    written, real = [], tuning.as_example
    def faulty(tokenizer, messages):
        written.append(real(tokenizer, messages))
        return written[-1] if len(written) != place + 1 else BREAK["end not learnt"](written[-1])
    monkeypatch.setattr(tuning, "as_example", faulty)
    write(base/"train.jsonl", [talk((f"{i}+1?", str(i + 1))) for i in range(150)])
    with pytest.raises(SystemExit): run(base)
    assert f"train.jsonl, conversation {place + 1}: end not learnt" in capsys.readouterr().err and not (base/"run").exists()


def test_lora_changes_its_targets_alone_and_its_files_agree(base):
    before = {**load_file(base/"chat"/"model.safetensors")}
    run(base, "--lora_rank", "2", "--lora_targets", "q_proj", "w2")
    taught, _ = load_pretrained(base/"run"/"export", "cpu")
    after = taught.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and all(".q_proj." in name or ".w2." in name for name in moved)
    again = Transformer(260, 64, 16, 2, 2, 24)
    again.load_state_dict(before)
    load_adapter(again, base/"run"/"adapter")
    merge_lora(again)
    for name in after: torch.testing.assert_close(again.state_dict()[name], after[name])


@pytest.mark.parametrize("flags, why", [
    (["--train_data", "no.jsonl"], "no.jsonl"), (["--max_seq_len", "65"], "--max_seq_len 65 is more"), (["--lora_rank", "99"], "rank must lie"), (["--lora_rank", "2", "--lora_targets", "nope"], "nope"), (["--max_seq_len", "3"], "no conversation to learn from"),
    (["--precision", "float16"], "float16"), (["--iterations", "0"], "iterations"), (["--lr_maxx", "1"], "lr_maxx")])
def test_refuses_in_one_line(base, flags, why, capsys):
    with pytest.raises(SystemExit) as ended: run(base, *flags)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and why in told and "Traceback" not in told and not (base/"run").exists()


def test_new_marks_need_all_weights(base, capsys):
    with pytest.raises(SystemExit): run(base, "--lora_rank", "2", model="plain")
    assert "must be trained; leave out --lora_rank, or name a model that chats already by --init_from" in capsys.readouterr().err


def test_says_what_it_leaves_out(tmp_path):
    path = write(tmp_path/"a.jsonl", [TALKS[0], talk(("long " * 30, "x")), TALKS[0][:1]])
    with pytest.warns(UserWarning) as told: assert len(read_examples(path, words(), 64)) == 1
    assert ["the assistant says nothing" in str(told[0].message), "longer than 64" in str(told[1].message)] == [True, True]


# ---- The experiment

def test_the_skills_of_the_experiment_are_right_and_their_tests_are_never_taught():
    right = {
        "sums": lambda q: str(eval(q.rstrip("?"))), "backwards": lambda q: q.split()[0][::-1], "counting": lambda q: str(q.rstrip("?").split()[-1].count(q.split()[2])),
        "sorting": lambda q: "".join(sorted(q[5:-1])), "copying": lambda q: q[5:q.index(",")]}
    tested = {skill: dict(skills.test(skill, 400)) for skill in skills.SKILLS}
    for skill, pairs in tested.items(): assert all(right[skill](q) == a for q, a in pairs.items())
    draw = random.Random(0)
    taught = {message["content"] for _ in range(3000) for message in skills.conversation(draw, "sums", 3) if message["role"] == "user"}
    assert len(taught) > 2500 and not any(taught & pairs.keys() for pairs in tested.values())


def test_rows_without_limits_are_one_conversation():
    examples = [as_example(words(), messages) for messages in TALKS]
    joined = without_limits(batch_of([examples], 128))
    made, length = model(), sum(len(example.ids) - 1 for example in examples)
    learnt = joined[2][:, :length].bool()
    torch.testing.assert_close(answer_logits(made, joined), made(joined[0][:, :length])[learnt])


@pytest.mark.parametrize("pairs", [((12, 34), (99, 2), (5, 678)), ((12, 34),) * 3], ids=["other questions", "one question"])
def test_conversations_that_share_their_opening_are_separate_rows(pairs):
    made, said = model().double(), ("46", "467", "9")
    examples = [as_example(words(), talk((smollm2.TAUGHT.format(*pair), answer))) for pair, answer in zip(pairs, said)]
    found = []
    for logits in smollm2.branch_logits(made, smollm2.branches(examples)), answer_logits(made, batch_of([[example] for example in examples], 64)):
        made.zero_grad()
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True): torch.testing.assert_close(one, other)


def test_sums_of_the_exam_are_never_taught_and_are_of_all_kinds():
    exam, taught = smollm2.sums(500, "exam", held=True), smollm2.sums(2000, "0 1")
    assert not {frozenset(pair) for pair in exam} & {frozenset(pair) for pair in [*taught, *smollm2.SHOWN]}
    assert {(a + b) % 10 for a, b in exam} == {(a + b) % 10 for a, b in taught} == set(range(10))
