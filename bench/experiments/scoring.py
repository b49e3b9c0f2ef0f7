"""Four answers to a question on a model of SmolLM2-135M's shape: `python -m bench.experiments.scoring` writes scoring.json.

The weights are random, for they do not matter to the clock. A question has a prompt of 48 tokens and four answers of 4 to 16; part of 500 are asked."""
import random
from time import perf_counter

import torch

from bench.experiments import keep
from llm_course.engine.scoring import Scorer
from llm_course.evaluation import log_likelihoods
from llm_course.transformer import Transformer

COUNT = 12


def main() -> None:
    "Ask by both ways, one question after the other."
    torch.manual_seed(0)
    model = Transformer(49152, 512, 576, 30, 9, 1536, num_kv_heads=3, tie=True).eval()
    draw = random.Random(0)
    ids = lambda n: [draw.randrange(49152) for _ in range(n)]
    questions = [(ids(48), [ids(draw.randrange(4, 17)) for _ in range(4)]) for _ in range(COUNT)]
    scorer = Scorer(model)
    ways = {"one by one": lambda prompt, endings: log_likelihoods(model, [(prompt + ending, len(ending)) for ending in endings], 1),
            "prompt read once": scorer}
    found = {}
    for name, way in ways.items():
        way(*questions[0])   # the first call is slower
        began = perf_counter()
        for question in questions: way(*question)
        found[name] = round((perf_counter() - began) / COUNT, 3)
        print(f"{name}: {found[name]} s a question, {500 * found[name] / 60:.1f} minutes for 500", flush=True)
    keep(__file__, {"what": "Seconds for a question of a prompt of 48 tokens and four answers, on a model of SmolLM2-135M's shape.", "threads": torch.get_num_threads(), "seconds": found})


if __name__ == "__main__": main()
