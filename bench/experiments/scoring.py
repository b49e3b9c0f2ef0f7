"""How long do 500 four-way questions take on SmolLM2-135M? `python -m bench.experiments.scoring` writes scoring.json.

Chapter 24's tasks make the questions: no examples in front, prompt and longest answer together at most 64 tokens. The weights come from the package index (93 MB).
One thread: other work on the machine lengthens the wall's seconds, but hardly the processor's. The first questions are also read answer by answer. `… scoring sums` asks one task alone."""
import sys
import time
from pathlib import Path

import torch

from bench.experiments import keep
from bench.runner import read
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.tasks import MADE, Question, Task
from llm_course.evaluation import encode_pair, evaluate, log_likelihoods
from llm_course.pretrained import load_pretrained
from llm_course.transformer import Transformer

TASKS, COUNT, LONGEST = ("cloze", "copying", "induction", "letters", "sums"), 100, 64
ONE_BY_ONE = 5   # Questions of each task that are asked the slow way, too


def size(tokenizer: BpeTokenizer, question: Question) -> int:
    "Tokens of the prompt and the longest answer."
    return max(len(prompt) + len(ending) for prompt, ending in (encode_pair(tokenizer, *pair) for pair in question.pairs))


def short(tokenizer: BpeTokenizer, name: str) -> Task:
    "The first questions of a task that are short enough."
    fitting = [question for question in MADE[name](3 * COUNT, 0) if size(tokenizer, question) <= LONGEST]
    if len(fitting) < COUNT: raise ValueError(f"only {len(fitting)} questions of {name} have at most {LONGEST} tokens")
    return Task(name, tuple(fitting[:COUNT]))


def one_by_one(model: Transformer, tokenizer: BpeTokenizer, task: Task) -> None:
    "Read prompt and answer anew for each answer."
    for question in task.questions[:ONE_BY_ONE]:
        pairs = [encode_pair(tokenizer, *pair) for pair in question.pairs]
        log_likelihoods(model, [(prompt + ending, len(ending)) for prompt, ending in pairs], 1)


def ask(model: Transformer, tokenizer: BpeTokenizer, task: Task) -> dict:
    "The seconds of a task, and what was right."
    wall, used = time.perf_counter(), time.process_time()
    result = evaluate(model, tokenizer, task)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    slow = time.process_time()
    one_by_one(model, tokenizer, task)
    slow = (time.process_time() - slow) / ONE_BY_ONE * COUNT
    tokens = sum(size(tokenizer, question) for question in task.questions) / COUNT
    return {"right": sum(result.right), "questions": COUNT, "mean_tokens": round(tokens, 1), "seconds": round(wall, 1), "processor_seconds": round(used, 1),
            "processor_seconds_one_by_one": round(slow, 1)}


def main(*names: str) -> None:
    "Ask the questions of all tasks, or of some, and keep each task's seconds."
    torch.set_num_threads(1)
    model, tokenizer = load_pretrained("smollm2-135m", "cpu", max_seq_len=256)
    evaluate(model, tokenizer, Task("warm", tuple(MADE["sums"](2, 0))))   # the first call is slower
    for name in names or TASKS:
        tasks = read(Path(__file__).with_suffix(".json")).get("tasks", {}) | {name: ask(model, tokenizer, short(tokenizer, name))}
        print(name, tasks[name], flush=True)
        total = sum(told["processor_seconds"] for told in tasks.values())
        keep(__file__, {"what": f"Four-way questions on SmolLM2-135M-Instruct, each of at most {LONGEST} tokens; the prompt is read once; one thread.",
                        "questions": sum(told["questions"] for told in tasks.values()), "processor_seconds": round(total, 1), "tasks": tasks})


if __name__ == "__main__": main(*sys.argv[1:])
