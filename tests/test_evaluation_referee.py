"""The referee: EleutherAI's lm_eval asks the same model the same questions from the same files, and must get the same numbers.

It comes with the extra `evaluation-referee` (about half a gigabyte), and the test is skipped where that is not installed."""
import importlib.util
import json

import pytest

from llm_course.engine.scoring import Scorer
from llm_course.engine.tasks import HELD_OUT, MADE, Question, Task, write_questions
from llm_course.evaluation import choice_scores, evaluate, text_bits_per_byte
from llm_course.generating import generate, load_demo
from llm_course.pretrained import export_pretrained

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install -e .[evaluation-referee]")
COUNT = 25
UNEQUAL = [Question("To be, or not to be: that is", (" the question.", " a matter of some doubt, my lord", " it"), 0),
           Question("", ("The kings are here.", "The kings is here, and we are not amused."), 0),
           Question("My lord, ", ("he comes.", "he come."), 0), Question("♥ Ünïcödé is", (" ♥", " naïve indeed"), 1),
           Question("My lord, my lord, my good lord, " * 20, (" yes", " no, and so we end"), 1)]
QUESTIONS = {name: MADE[name](COUNT) for name in ("speaker", "cloze", "copying", "sums")} | {"unequal": UNEQUAL * 5}


@pytest.fixture(scope="module")
def demo(): return load_demo("cpu")


@pytest.fixture(scope="module")
def theirs(demo, tmp_path_factory):
    "What lm_eval finds, in one call: for each task its accuracies and samples."
    folder = tmp_path_factory.mktemp("referee")
    with pytest.MonkeyPatch.context() as patch:
        for name in "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE": patch.setenv(name, "1")
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        export_pretrained(*demo, folder/"model")
        found = lm_eval.simple_evaluate(
            HFLM(pretrained=str(folder/"model"), device="cpu", dtype="float32", batch_size=4), tasks=[*choices(folder), written(folder), rolling(folder)],
            bootstrap_iters=0, log_samples=True, verbosity="ERROR")
    return found


def task(folder, name, **more):
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder/f"{name}.jsonl")}}, "test_split": "test"}
    return {"task": name, **data, "metadata": {"version": 1}, **more}


def choices(folder):
    for name, questions in QUESTIONS.items():
        space = all(choice.startswith(" ") for q in questions for choice in q.choices)
        write_questions(folder/f"{name}.jsonl", questions if not space else [Question(q.prompt, tuple(c[1:] for c in q.choices), q.answer) for q in questions])
        yield task(folder, name, output_type="multiple_choice", doc_to_text="{{prompt}}", doc_to_choice="{{choices}}", doc_to_target="{{answer}}", target_delimiter=" " if space else "",
                   metric_list=[{"metric": "acc"}, {"metric": "acc_bytes"}, {"metric": "acc_mutual_info"}])


def written(folder):
    write_questions(folder/"sums_written.jsonl", MADE["sums_written"](COUNT))
    return task(folder, "sums_written", output_type="generate_until", doc_to_text="{{prompt}}", doc_to_target="{{answer}}", metric_list=[{"metric": "exact_match"}],
                generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False})


def rolling(folder):
    (folder/"play.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8", newline="\n")
    return task(folder, "play", output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}", metric_list=[{"metric": "bits_per_byte"}])


# No text that repeats itself: where two windows of lm_eval 0.4.13 hold the same ids, it takes the scores of one for the other, however many of them are asked for.
TEXTS = [HELD_OUT.read_text("utf-8")[:2500], "♥ Ünïcödé, and no more."]


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_choice_has_the_same_log_likelihood_and_each_accuracy_is_the_same(theirs, demo, name):
    model, tokenizer = demo
    scorer, samples = Scorer(model), sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(QUESTIONS[name])
    for question, sample in zip(QUESTIONS[name], samples, strict=True):
        found = [float(response[0]) for response in sample["filtered_resps"]][:len(question.choices)]   # behind them stand those without a prompt
        assert choice_scores(question, tokenizer, scorer) == pytest.approx(found, abs=1e-3), question
    for score, metric in ("sum", "acc"), ("byte", "acc_bytes"), ("unconditioned", "acc_mutual_info"):
        if (name, score) == ("unequal", "unconditioned"): continue   # it has questions without a prompt, where all choices tie
        ours = evaluate(model, tokenizer, Task(name, tuple(QUESTIONS[name]), score))
        assert [float(right) for right in ours.right] == [sample[metric] for sample in samples]
        assert ours.accuracy == theirs["results"][name][f"{metric},none"]


def test_the_same_is_written(theirs, demo):
    for question, sample in zip(MADE["sums_written"](COUNT), sorted(theirs["samples"]["sums_written"], key=lambda sample: sample["doc_id"]), strict=True):
        said = generate(*demo, question.prompt, 8, temperature=0., stop="\n")[len(question.prompt):]
        assert said.strip() == sample["filtered_resps"][0].strip()


def test_bits_per_byte_are_the_same(theirs, demo):
    assert text_bits_per_byte(*demo, "<|endoftext|>".join(TEXTS)) == pytest.approx(theirs["results"]["play"]["bits_per_byte,none"], abs=1e-4)
