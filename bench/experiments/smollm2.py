"""SmolLM2-135M-Instruct learns sums of two-digit numbers, in its own chat template: by LoRA from right answers, and by LoRA from rewards. And what it forgets meanwhile.

`python -m bench.experiments.smollm2` writes smollm2.json, a part at a time, and goes on where it stopped; `… before`, `… LoRA`, `… "rewards 0"` or `… "all weights"` makes one stage alone. The weights come from the package index (93 MB). One thread, float32; seconds are the processor's."""
import multiprocessing
import random
import sys
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.experiments import resume
from llm_course.bpe_tokenizer import BpeTokenizer
from llm_course.engine.chat import encode_chat
from llm_course.engine.diary import peak_memory
from llm_course.engine.lora import add_lora, load_adapter, merge_lora, save_adapter
from llm_course.engine.rollouts import sample_groups
from llm_course.engine.tasks import MADE, Task, is_right
from llm_course.evaluation import evaluate, wilson_interval
from llm_course.instruct import ConversationMask, Example, answers, as_example
from llm_course.optim import AdamW, gradient_clip
from llm_course.pretrained import load_pretrained
from llm_course.rewards import pass_at_k, policy_loss
from llm_course.schedule import linear_lr_scheduler
from llm_course.training import train_step
from llm_course.transformer import Transformer

STEPS, SUMS, RANK, RATE = 220, 16, 16, 1e-3   # sums of a step; the highest learning rate
DRAWS, PROMPTS, GROUP, LONGEST = 20, 4, 8, 12   # steps that learn from rewards; questions of a step; answers to each, and their tokens
SHOWN = (21, 14), (48, 37), (65, 89)   # sums that stand answered before each of those questions, as an equation: else the model explains, at a length that is dear to draw
TRIED = 32   # answers to each question of the exam
SENTENCES = 64   # tokens of an answer in an exam: untaught, the model explains at length
TARGETS = "q_proj", "k_proj", "v_proj", "output_proj", "w1", "w2", "w3"
TAUGHT = "What is {} + {}?"
EXAMS = {   # questions, digits, wording
    "two digits": (500, 2, TAUGHT), "three digits": (100, 3, TAUGHT), "a + b =": (100, 2, "{} + {} ="),
    "Add a and b.": (100, 2, "Add {} and {}. Give only the result.")}
ELSEWHERE = "letters", "agreement", "copying", "induction"   # tasks of chapter 24


def held_out(a: int, b: int) -> bool:
    "One pair in ten is kept for the exams, in either order."
    return zlib.crc32(f"{min(a, b)} {max(a, b)}".encode()) % 10 == 0


def sums(n: int, seed: str, digits: int = 2, held: bool = False) -> list[tuple[int, int]]:
    "Pairs of numbers, none twice: of those for the exams, or of the others."
    draw, low, high = random.Random(seed), 10**(digits - 1), 10**digits
    found: dict[tuple[int, int], None] = {}
    while len(found) < n:
        pair = draw.randrange(low, high), draw.randrange(low, high)
        if held_out(*pair) == held: found[pair] = None
    return list(found)


def talk(a: int, b: int, wording: str = TAUGHT) -> list[dict[str, str]]:
    "A question, and its answer."
    return [{"role": "user", "content": wording.format(a, b)}, {"role": "assistant", "content": str(a + b)}]


def equation(tokenizer: BpeTokenizer, a: int, b: int) -> list[int]:
    "A question behind others that are answered, and the beginning of its answer: all but the sum."
    turns = []
    for one, other in *SHOWN, (a, b): turns += [talk(one, other)[0], {"role": "assistant", "content": f"{one} + {other} = {one + other}"}]
    return encode_chat(tokenizer, turns[:-1], reply=True)[0] + tokenizer.encode(f"{a} + {b} =")


def exam(model: Transformer, tokenizer: BpeTokenizer, n: int, digits: int, wording: str) -> dict[str, Any]:
    "The share of right sums, and its interval: the last number of an answer counts, and it has to end."
    right, pairs = 0, sums(n, "exam", digits, held=True)
    for at in range(0, n, 50):
        some = pairs[at:at + 50]
        said = answers(model, tokenizer, [talk(a, b, wording)[:1] for a, b in some], SENTENCES)
        right += sum(text is not None and is_right(text, str(a + b), number=True) for text, (a, b) in zip(said, some))
    return {"questions": n, "right": right / n, "interval": [round(end, 4) for end in wilson_interval(right, n)]}


def draw_answers(model: Transformer, tokenizer: BpeTokenizer, pairs: list[tuple[int, int]], dice: torch.Generator, g: int = GROUP) -> tuple[list[Example], Tensor]:
    "Draw some answers to each question. Returns them, and which of them are right."
    stop, examples, right = tokenizer.special_tokens["<|im_end|>"], [], []
    prompts = [equation(tokenizer, a, b) for a, b in pairs]
    for place, answer in enumerate(sample_groups(model, prompts, g, LONGEST, stop, dice)):
        prompt, (a, b) = prompts[place // g], pairs[place // g]
        examples.append(Example(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        right.append(answer[-1] == stop and is_right(tokenizer.decode(answer[:-1]), str(a + b), number=True))
    return examples, torch.tensor(right).view(-1, g)


def tries(model: Transformer, tokenizer: BpeTokenizer, n: int = 40) -> dict[str, Any]:
    "pass@1, pass@8 and pass@32 on questions of the exam, answers drawn at temperature 1, each with the standard error that comes of the choice of questions."
    dice, pairs, right, lengths = torch.Generator().manual_seed(0), sums(n, "exam", held=True), [], []
    for at in range(0, n, 4):
        examples, found = draw_answers(model, tokenizer, pairs[at:at + 4], dice, TRIED)
        right += found.unbind()
        lengths += [sum(example.learnt) for example in examples]
    told: dict[str, Any] = {"questions": n, "answers": TRIED, "length": round(fmean(lengths), 2)}
    for k in 1, 8, TRIED:
        each = [pass_at_k(row[None], k) for row in right]
        told[f"pass@{k}"] = [round(fmean(each), 4), round(stdev(each) / n**.5, 4)]
    return told


class Branches(ConversationMask):
    "Conversation 0 is what all of the others begin with, so they may look at it."
    def __init__(self, conversation: Tensor):
        super().__init__(conversation)
        self.same = self.same | (conversation == 0)[:, None, None]


def branches(examples: list[Example]) -> Tensor:
    "Lay conversations into one row, with what all of them begin with only once: as `batch_of` does, in less room."
    same, first = 0, min(example.learnt.index(True) for example in examples)
    while same < first - 1 and len({example.ids[same] for example in examples}) == 1: same += 1   # what predicts an answer stays with it
    parts = [torch.tensor([examples[0].ids[:same], examples[0].ids[1:same + 1], [0] * same, list(range(same)), [0] * same])]
    for number, (ids, learnt) in enumerate(examples, 1):
        length = len(ids) - 1 - same
        parts.append(torch.tensor([ids[same:-1], ids[same + 1:], list(map(int, learnt[same + 1:])), list(range(same, same + length)), [number] * length]))
    return torch.cat(parts, 1)[:, None]


def branch_logits(model: Transformer, batch: Tensor) -> Tensor:
    "The scores of what the assistant says, as `answer_logits` has them; no others are computed."
    ids, _, learnt, positions, conversation = batch
    x, cache = model.embedding(ids), Branches(conversation)
    for block in model.blocks: x = block(x, positions, cache)
    return model.head(model.norm(x[learnt.bool()]))


def teach(model: Transformer, tokenizer: BpeTokenizer, seed: int, steps: int, rate: float) -> dict[str, Any]:
    "Train what can learn."
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, scaler = AdamW(learning, lr=rate, weight_decay=0.), torch.amp.GradScaler("cpu", enabled=False)
    losses, start = [], time.process_time()
    for step in range(1, steps + 1):
        batch = branches([as_example(tokenizer, talk(a, b)) for a, b in sums(SUMS, f"{seed} {step}")])
        for group in optimizer.param_groups: group["lr"] = linear_lr_scheduler(step, min(10, steps), steps + 1, 0., rate)
        loss, _ = train_step(lambda b: branch_logits(model, b), optimizer, scaler, [(batch, batch[1][batch[2].bool()])], 1.)
        losses.append(round(float(loss), 4))
        if step % 20 == 0: print(step, sum(losses[-20:]) / 20, f"{time.process_time() - start:.0f} s", flush=True)
    return {"learning": sum(p.numel() for p in learning), "processor_seconds": round(time.process_time() - start, 1),
            "peak_mib": peak_memory(torch.device("cpu")), "losses": losses[9::10]}


def reward(model: Transformer, tokenizer: BpeTokenizer, seed: int, steps: int, rate: float) -> dict[str, Any]:
    "Draw answers, and make those likelier that were better than others to the same question."
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer, dice, rewards, start = AdamW(learning, lr=rate, weight_decay=0.), torch.Generator().manual_seed(seed), [], time.process_time()
    for step in range(1, steps + 1):
        examples, right = draw_answers(model, tokenizer, sums(PROMPTS, f"{seed} {step}"), dice)
        optimizer.zero_grad()
        for number, of_group in enumerate(right):
            if of_group.all() or not of_group.any(): continue   # all advantages are zero
            group = examples[number * GROUP:(number + 1) * GROUP]
            batch = branches(group)
            logprobs = branch_logits(model, batch).log_softmax(-1).gather(-1, batch[1][batch[2].bool()][:, None])[:, 0]
            each = logprobs.split([sum(example.learnt) for example in group])
            table, said = pad_sequence(each, True), pad_sequence([torch.ones_like(one, dtype=torch.bool) for one in each], True)
            (policy_loss(table, table.detach(), said, of_group[None].float()) / PROMPTS).backward()
        gradient_clip(learning, 1.)
        optimizer.step()
        rewards.append(round(float(right.float().mean()), 4))
        if step % 5 == 0: print(step, sum(rewards[-5:]) / 5, f"{time.process_time() - start:.0f} s", flush=True)
    return {"processor_seconds": round(time.process_time() - start, 1), "answers": PROMPTS * GROUP, "rewards": rewards}


FOLDER = Path(tempfile.gettempdir())/"llm_course_smollm2"   # what was learnt


@cache
def learner(stage: str) -> tuple[Transformer, BpeTokenizer]:
    "The model as it is, or with what it has learnt in a stage."
    model, tokenizer = load_pretrained("smollm2-135m", "cpu", max_seq_len=512)
    if stage != "before":
        load_adapter(model, FOLDER/stage)
        merge_lora(model)
    return model, tokenizer


def learn(stage: str, seed: int, steps: int, rate: float) -> dict[str, Any]:
    "Learn by LoRA, from answers or from rewards; or take some steps with all weights, for their cost."
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, tokenizer = load_pretrained("smollm2-135m", "cpu", max_seq_len=512)
    if stage == "all weights": return teach(model, tokenizer, seed, steps, rate)
    add_lora(model, RANK, 2. * RANK, TARGETS)
    found = (reward if stage.startswith("rewards") else teach)(model, tokenizer, seed, steps, rate)
    save_adapter(model, FOLDER/stage)
    return found


def run(stage: str, part: str, **settings) -> dict[str, Any]:
    "Let the model learn, in a process of its own which has the stage's peak of memory; or ask it."
    if part == "learning":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool: return pool.submit(learn, stage, **settings).result()
    model, tokenizer = learner(stage)
    if part == "drawn": return tries(model, tokenizer)
    if part in EXAMS: return exam(model, tokenizer, *EXAMS[part])
    return {"questions": 100, "right": evaluate(model, tokenizer, Task(part, tuple(MADE[part](100, 0)))).accuracy}


FEW = 10   # steps whose cost is measured
LEARNING = {"LoRA": {"seed": 0, "steps": STEPS, "rate": RATE}, "all weights": {"seed": 0, "steps": FEW, "rate": 1e-5}, "LoRA, a few steps": {"seed": 0, "steps": FEW, "rate": RATE}}
LEARNING |= {f"rewards {seed}": {"seed": seed, "steps": DRAWS, "rate": 5e-4} for seed in range(3)}
PARTS = {"before": (*EXAMS, *ELSEWHERE, "drawn"), "LoRA": (*EXAMS, *ELSEWHERE)}
PARTS |= {stage: ("drawn",) if stage.startswith("rewards") else () for stage in LEARNING if stage != "LoRA"}


def main(*stages: str) -> None:
    "Make the parts that are still missing. What is learnt lies in the system's folder for temporary files until all is asked."
    torch.set_num_threads(1)
    for stage in stages or PARTS:
        grid = [{"stage": stage, "part": "learning", **LEARNING[stage]}] if stage in LEARNING else []
        grid += [{"stage": stage, "part": part} for part in PARTS[stage]]
        resume(__file__, "Shares of questions that SmolLM2-135M-Instruct answers rightly, before and after it has learnt sums of two-digit numbers.", grid, run)


if __name__ == "__main__": main(*sys.argv[1:])
